"""What is read off a state vector: probabilities, samples, reduced states, entropies.

States are complex [2^n], wire 0 the most significant bit; batches by `vmap`. Everything is differentiable but samples
and counts, whose gradient is zero; `jaxlab.quantum.shift` has gradients from samples.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int, UInt8

from jaxlab.errors import InputError
from jaxlab.kernels.statevector.blocks import apply_block


def wires_of(state: Array) -> int:
    """Number of wires of a state.

    Raises:
      InputError: its length is no power of two.
    """
    size = state.shape[-1] if state.ndim else 0
    if state.ndim != 1 or size < 2 or size & (size - 1):
        raise InputError(f"state has shape {state.shape}; it must be (2^n,) (vmap for batches)")
    return int(math.log2(size))


def _checked(state: Array, wires: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    n = wires_of(state)
    chosen = tuple(range(n)) if wires is None else tuple(int(wire) for wire in wires)
    if not all(0 <= wire < n for wire in chosen):
        raise InputError(f"wires is {chosen}; they lie between 0 and {n - 1}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"wires is {chosen}; none may stand twice")
    return n, chosen


def probs(state: Complex[Array, " 2^n"], wires: Sequence[int] | None = None) -> Float[Array, " 2^w"]:
    """Probability of every outcome on the wires, the first of them most significant.

    Args:
      state: normalised.
      wires: all of them in order if None.

    Raises:
      InputError: a wire is out of range or stands twice.
    """
    n, chosen = _checked(state, wires)
    square = (jnp.square(state.real) + jnp.square(state.imag)).reshape((2,) * n)
    rest = tuple(wire for wire in range(n) if wire not in chosen)
    order = sorted(chosen)
    return jnp.sum(square, axis=rest).transpose([order.index(wire) for wire in chosen]).reshape(-1)


def marginal_z(state: Complex[Array, " 2^n"]) -> Float[Array, " n"]:
    """<Z> of every wire, in two passes over the probabilities."""
    n = wires_of(state)
    square = (jnp.square(state.real) + jnp.square(state.imag)).reshape(1 << (n // 2), -1)
    halves = []
    for sums, bits in ((square.sum(1), n // 2), (square.sum(0), n - n // 2)):
        index = jnp.arange(1 << bits)
        signs = 1 - 2 * (index >> jnp.arange(bits)[::-1, None] & 1)
        halves.append(jnp.matmul(signs.astype(sums.dtype), sums, precision="highest"))
    return jnp.concatenate(halves)


def expval_dense(
    state: Complex[Array, " 2^n"], matrix: Complex[Array, "K K"], wires: Sequence[int]
) -> Float[Array, ""]:
    """<psi| M |psi> of a Hermitian matrix on some wires, the first of them most significant.

    Raises:
      InputError: the matrix does not fit the wires.
    """
    return jnp.real(jnp.vdot(state, _applied(state, matrix, wires)))


def variance_dense(
    state: Complex[Array, " 2^n"], matrix: Complex[Array, "K K"], wires: Sequence[int]
) -> Float[Array, ""]:
    """<M^2> - <M>^2; arguments as for `expval_dense`."""
    applied = _applied(state, matrix, wires)
    mean = jnp.real(jnp.vdot(state, applied))
    return jnp.real(jnp.vdot(applied, applied)) - jnp.square(mean)


def _applied(state: Array, matrix: Array, wires: Sequence[int]) -> Array:
    _, chosen = _checked(state, wires)
    size = 1 << len(chosen)
    matrix = jnp.asarray(matrix)
    if matrix.shape != (size, size):
        raise InputError(
            f"matrix has shape {matrix.shape}; on {len(chosen)} wires it must be ({size}, {size})"
        )
    order = sorted(chosen)
    axes = [chosen.index(wire) for wire in order]
    k = len(chosen)
    tensor = matrix.reshape((2,) * (2 * k)).transpose([*axes, *(k + axis for axis in axes)])
    return apply_block(state, tensor.reshape(size, size).astype(state.dtype), order)


def density_matrix(state: Complex[Array, " 2^n"], wires: Sequence[int]) -> Complex[Array, "2^w 2^w"]:
    """The state of some wires, the others traced out; the first wire most significant.

    Raises:
      InputError: a wire is out of range or stands twice.
    """
    n, chosen = _checked(state, wires)
    rest = [wire for wire in range(n) if wire not in chosen]
    split = state.reshape((2,) * n).transpose([*chosen, *rest]).reshape(1 << len(chosen), -1)
    return jnp.matmul(split, split.conj().T, precision="highest")


def purity(state: Complex[Array, " 2^n"], wires: Sequence[int]) -> Float[Array, ""]:
    """tr rho^2 of some wires: 1 if they are not entangled with the others."""
    return jnp.sum(jnp.square(jnp.abs(density_matrix(state, wires))))


def vn_entropy(
    state: Complex[Array, " 2^n"], wires: Sequence[int], *, base: float | None = None
) -> Float[Array, ""]:
    """-tr rho log rho of some wires, in nats; `base` 2 gives bits."""
    values = jnp.linalg.eigvalsh(density_matrix(state, wires))
    # 0 log 0 = 0, in the gradient too
    safe = jnp.where(values > 0, values, 1)
    entropy = -jnp.sum(safe * jnp.log(safe))
    return entropy if base is None else entropy / math.log(base)


def mutual_info(
    state: Complex[Array, " 2^n"], wires0: Sequence[int], wires1: Sequence[int], *, base: float | None = None
) -> Float[Array, ""]:
    """S(A) + S(B) - S(AB) of two disjoint sets of wires.

    Raises:
      InputError: the sets share a wire.
    """
    both = (*wires0, *wires1)
    if len(set(both)) != len(both):
        raise InputError(f"wires0 is {tuple(wires0)} and wires1 {tuple(wires1)}; they must not share a wire")
    first, second, joint = (vn_entropy(state, wires, base=base) for wires in (wires0, wires1, both))
    return first + second - joint


def _indices(key: jax.Array, p: Array, shots: int) -> Int[Array, " shots"]:
    """Outcomes by the inverse of the cumulated probabilities."""
    if shots < 1:
        raise InputError(f"shots is {shots}; it must be at least 1")
    cumulated = jnp.cumsum(jax.lax.stop_gradient(p))
    drawn = jax.random.uniform(key, (shots,), cumulated.dtype) * cumulated[-1]
    found = jnp.searchsorted(cumulated, drawn, side="right").astype(jnp.int32)
    return jnp.minimum(found, p.shape[0] - 1)


def sample(
    key: jax.Array, state: Complex[Array, " 2^n"], shots: int, wires: Sequence[int] | None = None
) -> UInt8[Array, "shots w"]:
    """Measured bits; equal keys give equal samples, split the key for others.

    Args:
      key: PRNG key.
      state: need not be normalised.
      shots: how many, >= 1.
      wires: all of them in order if None.

    Raises:
      InputError: shots < 1, or a wire is wrong.
    """
    _, chosen = _checked(state, wires)
    index = _indices(key, probs(state, chosen), shots)
    shifts = jnp.arange(len(chosen))[::-1]
    return (index[:, None] >> shifts & 1).astype(jnp.uint8)


def counts(
    key: jax.Array, state: Complex[Array, " 2^n"], shots: int, wires: Sequence[int] | None = None
) -> Int[Array, " 2^w"]:
    """How often each outcome was measured; arguments as for `sample`."""
    p = probs(state, wires)
    return jnp.zeros(p.shape, jnp.int32).at[_indices(key, p, shots)].add(1)


def shadow(
    key: jax.Array, state: Complex[Array, " 2^n"], shots: int
) -> tuple[UInt8[Array, "shots n"], UInt8[Array, "shots n"]]:
    """Classical shadow: bits measured in random bases, and the bases (0, 1, 2 for X, Y, Z).

    One wire is measured after the other, the state halved each time, so that a shot costs two passes. Reference:
    Huang, Kueng and Preskill, Nature Physics 16 (2020).

    Raises:
      InputError: shots < 1.
    """
    n = wires_of(state)
    if shots < 1:
        raise InputError(f"shots is {shots}; it must be at least 1")
    root = math.sqrt(0.5)
    bases = jnp.asarray(
        [[[root, root], [root, -root]], [[root, -1j * root], [root, 1j * root]], [[1, 0], [0, 1]]]
    )

    def shot(key: jax.Array) -> tuple[Array, Array]:
        key, own = jax.random.split(key)
        recipe = jax.random.randint(own, (n,), 0, 3)
        psi, bits = state, []
        for wire in range(n):
            turned = jnp.matmul(
                bases[recipe[wire]].astype(psi.dtype), psi.reshape(2, -1), precision="highest"
            )
            weight = jnp.sum(jnp.square(jnp.abs(turned)), axis=1)
            drawn = jax.random.uniform(jax.random.fold_in(key, wire), (), weight.dtype) * jnp.sum(weight)
            bit = (drawn >= weight[0]).astype(jnp.int32)
            psi = turned[bit]
            bits.append(bit)
        return jnp.stack(bits).astype(jnp.uint8), recipe.astype(jnp.uint8)

    return jax.lax.map(shot, jax.random.split(key, shots), batch_size=min(shots, max(1, (1 << 22) >> n)))


def shadow_expval(
    bits: UInt8[Array, "shots n"], bases: UInt8[Array, "shots n"], word: str, *, groups: int = 1
) -> Float[Array, ""]:
    """Estimate of a Pauli word's expectation from a shadow: the median over groups of means.

    Args:
      bits: see `shadow`.
      bases: see `shadow`.
      word: a letter of IXYZ for each wire.
      groups: of shots, in order; divides the number of shots.

    Raises:
      InputError: the word has another length or other letters, or groups does not divide the shots.
    """
    shots, n = bits.shape
    if len(word) != n or not set(word) <= set("IXYZ"):
        raise InputError(f"word is {word!r}; it must be {n} letters of IXYZ")
    if groups < 1 or shots % groups:
        raise InputError(f"groups is {groups}; it must divide the {shots} shots")
    wires = [wire for wire, letter in enumerate(word) if letter != "I"]
    wanted = jnp.asarray(["XYZ".index(word[wire]) for wire in wires], bases.dtype)
    picked = jnp.asarray(wires, jnp.int32)
    signs = 1.0 - 2.0 * bits[:, picked]
    single = jnp.prod(jnp.where(bases[:, picked] == wanted, 3 * signs, 0.0), axis=1)
    return jnp.median(single.reshape(groups, -1).mean(axis=1))
