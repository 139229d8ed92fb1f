"""States of N modes by their amplitudes of photon numbers below a cutoff: preparations and gates, Gaussian or not.

A gate is a function `gate(state, parameters, wires) -> state`. Its matrix elements below the cutoff are exact; what it
would lead beyond the cutoff is lost, so that the norm shrinks: see `leakage` and `require_small_leakage` of
`jaxlab.quantum.fock_measurements`. Parameters are real scalars; batches by `vmap`. All functions raise InputError for
wires that are out of range, repeated or of a wrong number, for parameters that are not real scalars, and for states
whose modes have different cutoffs.

hbar = 2, names and signs are PennyLane's. Reference: arXiv:1811.04968; Miatto and Quesada, arXiv:2004.11002.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from jaxlab.errors import InputError
from jaxlab.quantum import fock_matrices
from jaxlab.quantum.gaussian import Gaussian, modes_of, purity
from jaxlab.quantum.gaussian_measurements import generating_function
from jaxlab.quantum.hermite import hermite_tensor
from jaxlab.quantum.modes import Real, chosen_wires, concrete, parameter, require_positive

_MIXED = 1e-3
"""How far from 1 the purity may be for a state to pass as pure; float32 included."""

Kernel = Any
"""What a gate multiplies by; a pytree of arrays."""


class Fock(NamedTuple):
    """<n_1, .., n_N | psi> for all n below the cutoff D, which is static: the length of each of the N axes."""

    amp: Complex[Array, "D ... D"]


class GateKernel(NamedTuple):
    """A kind of gate on the Fock backend."""

    wires: int
    build: Callable[..., Kernel]
    """From parameters, and `cutoff` by name."""
    apply: Callable[[Fock, Kernel, tuple[int, ...]], Fock]


def vacuum(modes: int, *, cutoff: int, dtype: Any = None) -> Fock:
    """N modes without photons; arguments as for `number_state`."""
    return number_state((0,) * modes, cutoff=cutoff, dtype=dtype)


def number_state(photons: Sequence[int], *, cutoff: int, dtype: Any = None) -> Fock:
    """|n_1, .., n_N>.

    Args:
      photons: one number a mode, below the cutoff.
      cutoff: D, >= 1. Memory is D^N.
      dtype: complex64 or complex128; None is JAX's default. All gates keep it.

    Raises:
      InputError: no mode, or a number that is negative or not below the cutoff.
    """
    counted = tuple(int(number) for number in photons)
    if not counted or not all(0 <= number < cutoff for number in counted):
        raise InputError(f"photons is {counted}; each mode needs a number of 0 to cutoff - 1 = {cutoff - 1}")
    return Fock(jnp.zeros((cutoff,) * len(counted), complex if dtype is None else dtype).at[counted].set(1))


def from_gaussian(state: Gaussian, *, cutoff: int) -> Fock:
    """The amplitudes of a pure Gaussian state, with that of the vacuum positive.

    Args:
      state: without leading axes.
      cutoff: D, >= 1.

    Raises:
      InputError: cutoff < 1, or the state is concrete and not pure.
    """
    require_positive("cutoff", cutoff)
    known = concrete(purity(state))
    if known is not None and not abs(known - 1) <= _MIXED:
        raise InputError(f"state has purity {known:.4g}; only pure states (purity 1) have amplitudes")
    modes = modes_of(state)
    A, b, c = generating_function(state)
    return Fock(hermite_tensor(A[modes:, modes:], b[modes:], jnp.sqrt(c), (cutoff,) * modes))


def shape_of(state: Fock) -> tuple[int, int]:
    """Number of modes and cutoff.

    Raises:
      InputError: `amp` is not complex, or its axes have different lengths.
    """
    amp = state.amp
    if not amp.ndim or len(set(amp.shape)) != 1 or not jnp.issubdtype(amp.dtype, jnp.complexfloating):
        raise InputError(f"amp has shape {amp.shape} and dtype {amp.dtype}; it must be complex (D, .., D)")
    return amp.ndim, amp.shape[0]


def rotation(state: Fock, phi: Real, wire: int) -> Fock:
    """exp(i phi n): the phase of a mode advances by phi."""
    return _gate("Rotation", state, (phi,), wire)


def displacement(state: Fock, a: Real, phi: Real, wire: int) -> Fock:
    """exp(alpha a^dagger - h.c.) with alpha = a e^(i phi)."""
    return _gate("Displacement", state, (a, phi), wire)


def squeezing(state: Fock, r: Real, phi: Real, wire: int) -> Fock:
    """exp((zeta^* a^2 - h.c.) / 2) with zeta = r e^(i phi)."""
    return _gate("Squeezing", state, (r, phi), wire)


def quadratic_phase(state: Fock, s: Real, wire: int) -> Fock:
    """exp(i s x^2 / (2 hbar))."""
    return _gate("QuadraticPhase", state, (s,), wire)


def cubic_phase(state: Fock, gamma: Real, wire: int, *, largest: float = 1.0) -> Fock:
    """exp(i gamma x^3 / (3 hbar)), |gamma| <= `largest`; see `jaxlab.quantum.fock_matrices.cubic_phase`."""
    matrix = fock_matrices.cubic_phase(
        _parameters(state, (gamma,))[0], cutoff=shape_of(state)[1], largest=largest
    )
    return apply_matrix(state, matrix, chosen_wires(wire, shape_of(state)[0], 1))


def kerr(state: Fock, kappa: Real, wire: int) -> Fock:
    """exp(i kappa n^2)."""
    return _gate("Kerr", state, (kappa,), wire)


def cross_kerr(state: Fock, kappa: Real, wires: Sequence[int]) -> Fock:
    """exp(i kappa n_1 n_2)."""
    return _gate("CrossKerr", state, (kappa,), wires)


def beamsplitter(state: Fock, theta: Real, phi: Real, wires: Sequence[int]) -> Fock:
    """exp(theta (e^(i phi) a b^dagger - h.c.)): transmits the amplitude cos(theta), reflects e^(i phi) sin(theta)."""
    return _gate("Beamsplitter", state, (theta, phi), wires)


def two_mode_squeezing(state: Fock, r: Real, phi: Real, wires: Sequence[int]) -> Fock:
    """exp(r (e^(i phi) a^dagger b^dagger - h.c.))."""
    return _gate("TwoModeSqueezing", state, (r, phi), wires)


def controlled_addition(state: Fock, s: Real, wires: Sequence[int]) -> Fock:
    """exp(-i s x_1 p_2 / hbar); its matrix has D^4 elements."""
    return _gate("ControlledAddition", state, (s,), wires)


def controlled_phase(state: Fock, s: Real, wires: Sequence[int]) -> Fock:
    """exp(i s x_1 x_2 / hbar); its matrix has D^4 elements."""
    return _gate("ControlledPhase", state, (s,), wires)


def apply_matrix(state: Fock, matrix: Inexact[Array, "..."], wires: int | Sequence[int]) -> Fock:
    """Any operator on k wires, unitary or not.

    Args:
      state: before.
      matrix: [D, .., D], first the k indices after it, then the k before it, in the order of the wires.
      wires: k of them.

    Raises:
      InputError: the matrix does not fit.
    """
    modes, cutoff = shape_of(state)
    chosen = chosen_wires(wires, modes)
    k = len(chosen)
    if matrix.shape != (cutoff,) * (2 * k):
        raise InputError(f"matrix has shape {matrix.shape}; on {k} wires it must be {(cutoff,) * (2 * k)}")
    out = jnp.tensordot(
        matrix.astype(state.amp.dtype), state.amp, (tuple(range(k, 2 * k)), chosen), precision="highest"
    )
    return Fock(jnp.moveaxis(out, tuple(range(k)), chosen))


def _apply_phases(state: Fock, phases: Complex[Array, "D ..."], wires: tuple[int, ...]) -> Fock:
    """A diagonal operator on one or two wires."""
    front = jnp.moveaxis(state.amp, wires, range(len(wires)))
    spread = phases.reshape(phases.shape + (1,) * (front.ndim - phases.ndim))
    return Fock(jnp.moveaxis(front * spread, range(len(wires)), wires))


def _apply_conserving(
    state: Fock,
    kernel: tuple[Float[Array, "2D-1 D D"], Complex[Array, " D"]],
    wires: tuple[int, ...],
    *,
    difference: bool,
) -> Fock:
    """exp(-i phi n_1) B exp(i phi n_1), with the real blocks B of a conserved sum, or difference, of photons.

    With the second mode counted backwards a difference is a sum. Reals times complex numbers are two real products.
    """
    blocks, turn = kernel
    cutoff = len(turn)
    front = _apply_phases(state, turn, wires[:1]).amp
    front = jnp.moveaxis(front, wires, (0, 1)).reshape(cutoff, cutoff, -1)
    if difference:
        front = front[:, ::-1]
    total, index = jnp.ogrid[: 2 * cutoff - 1, :cutoff]
    # Where total - index is no photon number the block is zero.
    skew = front[index, jnp.clip(total - index, 0, cutoff - 1)]
    planar = jnp.stack([skew.real, skew.imag], axis=-1)
    mixed = jnp.einsum("tmp,tprc->tmrc", blocks, planar, precision="highest")
    m, n = jnp.ogrid[:cutoff, :cutoff]
    back = jax.lax.complex(mixed[..., 0], mixed[..., 1])[m + n, m]
    if difference:
        back = back[:, ::-1]
    shape = (cutoff,) * state.amp.ndim
    out = Fock(jnp.moveaxis(back.reshape(shape), (0, 1), wires))
    return _apply_phases(out, turn.conj(), wires[:1])


def _beamsplitter(theta: Array, phi: Array, *, cutoff: int) -> Kernel:
    return fock_matrices.beamsplitter_blocks(theta, cutoff=cutoff), fock_matrices.phases(phi, cutoff=cutoff)


def _two_mode_squeezing(r: Array, phi: Array, *, cutoff: int) -> Kernel:
    return fock_matrices.two_mode_squeezing_blocks(r, cutoff=cutoff), fock_matrices.phases(
        -phi, cutoff=cutoff
    )


def _kerr(kappa: Array, *, cutoff: int) -> Kernel:
    return jnp.exp(1j * kappa * np.arange(cutoff) ** 2)


def _cross_kerr(kappa: Array, *, cutoff: int) -> Kernel:
    n = np.arange(cutoff)
    return jnp.exp(1j * kappa * np.outer(n, n))


def _controlled_phase(s: Array, *, cutoff: int) -> Kernel:
    """p_2 turned into -x_2 by a quarter of a rotation."""
    quarter = jnp.asarray((-1j) ** (np.arange(cutoff) % 4), jnp.result_type(s, jnp.complex64))
    real = fock_matrices.controlled_addition(s, cutoff=cutoff)
    return quarter.conj()[:, None, None] * real * quarter


KERNELS: dict[str, GateKernel] = {
    "Rotation": GateKernel(1, fock_matrices.phases, _apply_phases),
    "Displacement": GateKernel(1, fock_matrices.displacement, apply_matrix),
    "Squeezing": GateKernel(1, fock_matrices.squeezing, apply_matrix),
    "QuadraticPhase": GateKernel(1, fock_matrices.quadratic_phase, apply_matrix),
    "CubicPhase": GateKernel(1, fock_matrices.cubic_phase, apply_matrix),
    "Kerr": GateKernel(1, _kerr, _apply_phases),
    "CrossKerr": GateKernel(2, _cross_kerr, _apply_phases),
    "Beamsplitter": GateKernel(2, _beamsplitter, functools.partial(_apply_conserving, difference=False)),
    "TwoModeSqueezing": GateKernel(
        2, _two_mode_squeezing, functools.partial(_apply_conserving, difference=True)
    ),
    "ControlledAddition": GateKernel(2, fock_matrices.controlled_addition, apply_matrix),
    "ControlledPhase": GateKernel(2, _controlled_phase, apply_matrix),
}
"""By PennyLane's names."""


def _gate(kind: str, state: Fock, parameters: tuple[Real, ...], wires: int | Sequence[int]) -> Fock:
    modes, cutoff = shape_of(state)
    known = KERNELS[kind]
    chosen = chosen_wires(wires, modes, known.wires)
    return known.apply(state, known.build(*_parameters(state, parameters), cutoff=cutoff), chosen)


def _parameters(state: Fock, values: tuple[Real, ...]) -> list[Array]:
    """As scalars of the state's precision."""
    arrays = [parameter("a parameter", value) for value in values]
    for array in arrays:
        if array.shape:
            raise InputError(f"a parameter has shape {array.shape}; it must be a scalar (vmap for batches)")
    return [array.astype(jnp.finfo(state.amp.dtype).dtype) for array in arrays]
