"""What is read off a state over several devices: sums of Pauli words, <Z> of all wires, probabilities of some.

Words and parities are carried into the frame of the state, where they are again words and parities. Each device looks
at its own amplitudes, and what it finds is summed over devices; where words flip global bits, it also gets the
amplitudes of another device, once for all words with the same such flip.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.kernels.hadamard import hadamard_transform
from jaxlab.kernels.statevector.monomials import parity_sums
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.frames import Frame, image
from jaxlab.quantum.pauli_sums import PauliSum
from jaxlab.quantum.sharded import ShardedState, on_devices
from jaxlab.quantum.sharded_run import Device

_MOST_WIRES = 12
"""Of joint probabilities, which are found from as many parities."""


class _Group(NamedTuple):
    """Words that flip the same global bits and have, in these bits, the same parity of the number of Y."""

    flip: int
    odd: int
    words: tuple[int, ...]
    """Which of the sum's words they are."""
    x: tuple[int, ...]
    z: tuple[int, ...]
    device_z: tuple[int, ...]
    flipped: tuple[int, ...]
    """Whether the sign of the coefficient changes."""


class _Static(NamedTuple):
    groups: tuple[_Group, ...]
    mesh: Mesh
    axis: str
    local: int


def sharded_expval(state: ShardedState, hamiltonian: PauliSum) -> Float[Array, ""]:
    """<psi|H|psi>; differentiable in reverse mode, in the amplitudes and in the coefficients.

    The amplitudes of a device go to another one once for every set of global bits that words flip, at most 2^g - 1
    times for 2^g devices.

    Args:
      state: batches by `vmap`.
      hamiltonian: on as many wires; its masks must not be traced, its coefficients may be.

    Raises:
      InputError: the wires differ, the masks are traced, or the coefficients are complex.
    """
    frame = state.frame
    if hamiltonian.n != frame.n:
        raise InputError(f"the sum is on {hamiltonian.n} wires, the state on {frame.n}")
    if jnp.iscomplexobj(hamiltonian.c):
        raise InputError(
            "the sum has complex coefficients; an expectation value needs real ones (a Hermitian sum)"
        )
    x, z, c = pauli_sums.all_terms(hamiltonian)
    static = _Static(_groups(frame, x.tolist(), z.tolist()), state.mesh, state.axis, frame.local)
    return _energy(static, jnp.asarray(c, state.amplitudes.real.dtype), state.amplitudes)


def _groups(frame: Frame, x: Sequence[int], z: Sequence[int]) -> tuple[_Group, ...]:
    found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    low = (1 << frame.local) - 1
    of_z = {mask: frame.split(mask) for mask in set(z)}
    of_x = {mask: image(frame.columns, mask) for mask in set(x)}
    for word, (flips, signs) in enumerate(zip(x, z, strict=True)):
        placed = of_x[flips]
        local_z, device_z, flipped = of_z[signs]
        # A word is (-i)^y (-1)^parity(j AND z): of its y letters Y some are counted in local bits, the rest here.
        rest = (flips & signs).bit_count() - (placed & low & local_z).bit_count()
        row = (word, placed & low, local_z, device_z, flipped ^ (rest >> 1 & 1))
        found.setdefault((placed >> frame.local, rest & 1), []).append(row)
    return tuple(_Group(*key, *zip(*rows, strict=True)) for key, rows in sorted(found.items()))


def _applied(static: _Static, c: Array, psi: Array, device: Device) -> Array:
    """The device's part of H psi."""
    total = jnp.zeros_like(psi)
    partners = {0: psi}
    for group in static.groups:
        if group.flip not in partners:
            pairs = [(number, number ^ group.flip) for number in range(device.size)]
            partners[group.flip] = jax.lax.ppermute(psi, device.axis, pairs)
        own = c[np.array(group.words)] * device.signs(group.device_z, group.flipped, c.dtype)
        words = pauli_sums.from_masks(np.array(group.x), np.array(group.z), own, device.local)
        part = pauli_sums.apply(words, partners[group.flip])
        total += -1j * part if group.odd else part
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _energy(static: _Static, c: Array, psi: Array) -> Array:
    return _energy_forward(static, c, psi)[0]


def _energy_forward(static: _Static, c: Array, psi: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    def run(device: Device, c: Array, psi: Array) -> tuple[Array, Array]:
        applied = _applied(static, c, psi, device)
        return jax.lax.psum(jnp.real(jnp.vdot(psi, applied)), device.axis), applied

    split = PartitionSpec(static.axis)
    value, applied = _mapped(static, run, (PartitionSpec(), split), (PartitionSpec(), split))(c, psi)
    return value, (c, psi, applied)


def _energy_backward(
    static: _Static, kept: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    c, psi, applied = kept

    def slopes(device: Device, c: Array, psi: Array) -> Array:
        def value(c: Array) -> Array:
            return jnp.real(jnp.vdot(psi, _applied(static, c, psi, device)))

        return jax.lax.psum(jax.grad(value)(c), device.axis)

    split = PartitionSpec(static.axis)
    of_c = _mapped(static, slopes, (PartitionSpec(), split), PartitionSpec())(c, psi)
    return cotangent * of_c, 2 * cotangent * applied.conj()


_energy.defvjp(_energy_forward, _energy_backward)


def _mapped(static: _Static, function: Any, in_specs: Any, out_specs: Any) -> Any:
    return on_devices(function, static.mesh, static.axis, static.local, in_specs, out_specs)


def sharded_marginal_z(state: ShardedState) -> Float[Array, " n"]:
    """<Z> of every wire; differentiable."""
    return _parities(state, [1 << bit for bit in reversed(range(state.frame.n))])


def sharded_probs(state: ShardedState, wires: Sequence[int]) -> Float[Array, " 2^w"]:
    """Probability of every outcome on the wires, the first of them most significant; differentiable.

    Args:
      state: normalised.
      wires: up to 12.

    Raises:
      InputError: a wire is out of range or stands twice, or there are none or more than 12.
    """
    n, chosen = state.frame.n, [int(wire) for wire in wires]
    if not all(0 <= wire < n for wire in chosen) or len(set(chosen)) != len(chosen):
        raise InputError(f"wires is {chosen}; they lie between 0 and {n - 1}, and none may stand twice")
    if not 1 <= len(chosen) <= _MOST_WIRES:
        raise InputError(f"wires are {len(chosen)}; there may be 1 to {_MOST_WIRES}; see in_order for more")
    masks = [0]
    for wire in chosen:
        masks = [mask | 1 << (n - 1 - wire) if more else mask for mask in masks for more in (0, 1)]
    # A Walsh transform, whose entries here are +-2^(-w/2).
    return hadamard_transform(_parities(state, masks)) / 2 ** (len(chosen) / 2)


def _parities(state: ShardedState, masks: Sequence[int]) -> Array:
    """Expectation of (-1)^parity(x AND mask), for all masks."""
    frame = state.frame
    local, device_masks, flipped = zip(*map(frame.split, masks), strict=True)

    def run(device: Device, psi: Array) -> Array:
        weight = jnp.square(psi.real) + jnp.square(psi.imag)
        sums = parity_sums(weight, local, device.local)
        return jax.lax.psum(sums * device.signs(device_masks, flipped, sums.dtype), device.axis)

    mapped = on_devices(
        run, state.mesh, state.axis, frame.local, (PartitionSpec(state.axis),), PartitionSpec()
    )
    return mapped(state.amplitudes)
