"""Phases and affine permutations of a state vector: whatever X, CNOT, SWAP, RZ, CZ, MultiRZ, ... do together.

psi'[A x XOR offset] = exp(i phase(x)) psi[x], phase(x) = sum over terms of c (-1)^(number of ones of x AND mask). An
index is split in halves, so that neither a phase nor a permutation needs a constant as large as the state: the signs of
a mask factorise, and so does the XOR of the columns of A. States are complex [2^n]; batches by `vmap`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
_LARGEST_CONSTANT = 1 << 13
"""Numbers in a table that a program holds ready. Smaller ones would be made anew by every call, in which each operation
of a small state counts."""


def parity(x: jax.Array) -> jax.Array:
    """Number of ones modulo 2."""
    return jax.lax.population_count(x) & 1


def pick(array: jax.Array, places: Sequence[int]) -> jax.Array:
    """array[places] along the first axis, as a slice where places are evenly spaced: its transpose is no scatter."""
    steps = np.diff(places)
    if len(places) and (not len(steps) or (steps[0] != 0 and (steps == steps[0]).all())):
        step = int(steps[0]) if len(steps) else 1
        least, most = (int(places[end]) for end in ((0, -1) if step > 0 else (-1, 0)))
        part = jax.lax.slice_in_dim(array, least, most + 1, abs(step))
        return part if step > 0 else jax.lax.rev(part, (0,))
    return array[np.asarray(places, np.int32)]


class Sources(NamedTuple):
    """Where an affine permutation takes an amplitude from: the XOR of an entry for each half of the index.

    int32 [2^(n//2)] and [2^(n - n//2)], or with a leading axis for the steps of a loop.
    """

    upper: np.ndarray
    lower: np.ndarray


def sources(inverse_columns: Sequence[int] | None, offset: int, n: int) -> Sources | None:
    """The tables of psi'[y] = psi[A^-1 (y XOR offset)]; None for the identity.

    Args:
      inverse_columns: of A^-1 over GF(2), column b as the mask of the image of bit b; None for the identity.
      offset: XORed to the result of A.
      n: number of wires.
    """
    if inverse_columns is None and not offset:
        return None
    columns = inverse_columns or [1 << bit for bit in range(n)]
    low = n - n // 2
    tables = []
    for first, bits in ((low, n // 2), (0, low)):
        index = np.arange(1 << bits, dtype=np.int32)
        table = np.zeros_like(index)
        for bit in range(bits):
            table ^= (index >> bit & 1) * np.int32(columns[first + bit])
        tables.append(table)
    start = functools.reduce(int.__xor__, [columns[bit] for bit in range(n) if offset >> bit & 1], 0)
    return Sources(tables[0] ^ np.int32(start), tables[1])


def permute(psi: jax.Array, tables: Sources | None) -> jax.Array:
    """The permutation of `sources` on psi [2^n]."""
    if tables is None:
        return psi
    if psi.size <= _LARGEST_CONSTANT and isinstance(tables.upper, np.ndarray):
        return psi.at[(tables.upper[:, None] ^ tables.lower).reshape(-1)].get(mode="promise_in_bounds")
    # XLA would make one constant as large as the state of them.
    upper, lower = jax.lax.optimization_barrier(tuple(jnp.asarray(table) for table in tables))
    return psi.at[(upper[:, None] ^ lower).reshape(-1)].get(mode="promise_in_bounds")


class _Halves(NamedTuple):
    """Terms by where their masks lie."""

    upper: list[int]
    lower: list[int]
    both: list[int]


def _split(masks: Sequence[int], n: int) -> _Halves:
    low = (1 << (n - n // 2)) - 1
    sides = [(bool(mask & ~low), bool(mask & low)) for mask in masks]
    return _Halves(
        [i for i, (upper, lower) in enumerate(sides) if not lower],
        [i for i, (upper, lower) in enumerate(sides) if lower and not upper],
        [i for i, (upper, lower) in enumerate(sides) if lower and upper],
    )


def _signs(masks: Sequence[int], chosen: list[int], n: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """(-1)^parity of the chosen masks, for all values of the upper and of the lower half of an index."""
    low = n - n // 2
    picked = np.array([masks[i] for i in chosen], np.int32)
    halves = []
    for part, bits in ((picked >> low, n // 2), (picked & ((1 << low) - 1), low)):
        if len(chosen) << bits <= _LARGEST_CONSTANT:
            ones: Any = np.bitwise_count(np.arange(1 << bits) & part[:, None]).astype(np.int32) & 1
        else:
            ones = parity(jax.lax.iota(jnp.int32, 1 << bits) & jnp.asarray(part)[:, None])
        halves.append(jnp.asarray(1 - 2 * ones, dtype))
    return halves[0], halves[1]


@jax.custom_jvp
def waves(phase: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of real phases, which XLA on a CPU does not compute anew for every use.

    It would fuse them into whatever uses them; behind a matrix product, here with the identity, it cannot.
    """
    both = jnp.stack([jnp.cos(phase), jnp.sin(phase)])
    kept = jnp.tensordot(np.eye(2, dtype=phase.dtype), both, axes=1, precision=_HIGHEST)
    return kept[0], kept[1]


@waves.defjvp
def _waves_derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    cosine, sine = waves(*primals)
    return (cosine, sine), (-sine * tangents[0], cosine * tangents[0])


def side_factors(coefficients: jax.Array, masks: Sequence[int], n: int) -> tuple[jax.Array, ...]:
    """exp(i sum_t coefficients[t] (-1)^parity(x AND masks[t])) over masks that lie in one half of an index.

    Args:
      coefficients: real [terms].
      masks: one for each term.
      n: number of wires.

    Returns:
      Factors that broadcast to [2^(n//2), 2^(n - n//2)], for the halves that there are masks in.
    """
    halves = _split(masks, n)
    sides = []
    for chosen, side in ((halves.upper, 0), (halves.lower, 1)):
        if chosen:
            signs = _signs(masks, chosen, n, coefficients.dtype)[side]
            sides.append(jnp.matmul(pick(coefficients, chosen), signs, precision=_HIGHEST))
    if not sides:
        return ()
    factor = jax.lax.complex(*waves(jnp.concatenate(sides)))
    upper = len(sides[0]) if halves.upper else 0
    return (factor[:upper, None],) * bool(halves.upper) + (factor[upper:],) * bool(halves.lower)


def multiply_phases(
    psi: jax.Array,
    coefficients: jax.Array,
    sides: tuple[jax.Array, ...],
    masks: Sequence[int],
    n: int,
    *,
    inverse: bool = False,
) -> jax.Array:
    """psi[x] exp(i sum_t coefficients[t] (-1)^parity(x AND masks[t])); `inverse` takes that back.

    Args:
      psi: [2^n].
      coefficients: real [terms].
      sides: their `side_factors`; made apart, so that a loop over layers can have them from outside.
      masks: one for each term.
      n: number of wires.
      inverse: the other sign of the phase.
    """
    if not masks:
        return psi
    factors = list(sides)
    both = _split(masks, n).both
    if both:
        upper, lower = _signs(masks, both, n, coefficients.dtype)
        phase = jnp.matmul(upper.T * pick(coefficients, both), lower, precision=_HIGHEST)
        factors.append(jax.lax.complex(jnp.cos(phase), jnp.sin(phase)))
    out = psi.reshape(1 << (n // 2), -1)
    for factor in factors:
        out = out * (factor.conj() if inverse else factor)
    return out.reshape(-1)


def phase_gradient(after: jax.Array, psi: jax.Array, masks: Sequence[int], n: int) -> jax.Array:
    """Gradient [terms] of `multiply_phases` in its coefficients.

    Args:
      after: conjugate cotangent of the result, [2^n].
      psi: the result itself, [2^n].
      masks: one for each term.
      n: number of wires.
    """
    return parity_sums(-jnp.imag(after.conj() * psi), masks, n)


def parity_sums(weight: jax.Array, masks: Sequence[int], n: int) -> jax.Array:
    """Sums [terms] over x of weight[x] (-1)^parity(x AND mask), of real weights [2^n]."""
    weight = weight.reshape(1 << (n // 2), -1)
    halves = _split(masks, n)
    order = halves.lower + halves.upper + halves.both  # of ascending masks without any in both halves
    found = []
    if halves.lower:
        found.append(
            jnp.matmul(_signs(masks, halves.lower, n, weight.dtype)[1], weight.sum(0), precision=_HIGHEST)
        )
    if halves.upper:
        found.append(
            jnp.matmul(_signs(masks, halves.upper, n, weight.dtype)[0], weight.sum(1), precision=_HIGHEST)
        )
    if halves.both:
        upper, lower = _signs(masks, halves.both, n, weight.dtype)
        found.append(jnp.sum(jnp.matmul(upper, weight, precision=_HIGHEST) * lower, axis=1))
    return pick(jnp.concatenate(found), np.argsort(order).tolist())
