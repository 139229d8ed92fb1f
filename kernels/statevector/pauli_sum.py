"""A sum of Pauli words on a state vector: one pass for all words that flip the same bits, and no matrix.

A word with masks x (its X and Y) and z (its Z and Y) and y letters Y takes psi to (-i)^y (-1)^parity(j AND z)
psi[j XOR x]. So the words of one x are a gather and a diagonal D_x; over a row of words that all have an even, or all
an odd, number of Y the diagonal of real coefficients is real. Words come in rows of a few, all of one x and one parity
of y; several rows may share both. A loop over rows makes each diagonal from signs of the two halves of j, by a small
matrix product, or reads it from `tables`. States are complex [..., 2^n], wire 0 the most significant bit of j.
"""

import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxlab.kernels.hadamard import base_matrix
from jaxlab.kernels.statevector import blocks
from jaxlab.kernels.statevector.monomials import parity

WIDTH = 8
"""Words in a row. Of 1 to 16, 6 to 8 were fastest on the sums of LiH, H2O and N2 (x86 CPU, complex128)."""

_HADAMARD_WIRES = 4
"""Of one matrix, where Hadamard gates are on all wires."""

_TILE_BITS = 13
"""Amplitudes that a CPU goes through all rows with at once: they and a diagonal stay in its second-level cache, which
makes 20 wires two to three times as fast. Accelerators take the state whole."""


class Words(NamedTuple):
    """Sum over m, t of c[m, t] times the word of masks x[m], z[m, t], bit n - 1 - w of a mask being wire w.

    In a row the words have one parity of the number of ones of x AND z; padding has c = 0. x: int32 [M]; z: int32
    [M, T]; c: real or complex [M, T].
    """

    x: jax.Array
    z: jax.Array
    c: jax.Array


class Tables(NamedTuple):
    """The same with all diagonals made: x: int32 [M]; odd, the parity of the number of Y: bool [M]; values: [M, 2^n].

    Applying it takes half to two thirds of the time of `Words` on a CPU, and M 2^n numbers of memory.
    """

    x: jax.Array
    odd: jax.Array
    values: jax.Array


class Split(NamedTuple):
    """A sum in three parts, any of which may be missing: two diagonal in a basis of product states, and others.

    A diagonal part is one row with x = 0, however many words it has: `of_z` those of Z alone; `of_x` those of X alone,
    written as what they become behind a Hadamard gate on every wire.
    """

    of_z: Words | Tables | None
    of_x: Words | Tables | None
    others: Words | Tables | None


Operator = TypeVar("Operator", bound=Words | Tables)
"""In rows."""

AnyOperator = TypeVar("AnyOperator", bound=Words | Tables | Split)


def tables(words: Words, n: int) -> Tables:
    """All diagonals of a sum on n wires; differentiable in the coefficients."""
    values = jax.lax.map(lambda row: _diagonal(row, 0, n), words)
    return Tables(words.x, _odd(words), values)


def apply_sum(psi: jax.Array, operator: AnyOperator) -> jax.Array:
    """H psi. Reverse-mode derivatives only, in psi and in the coefficients.

    Args:
      psi: complex [..., 2^n].
      operator: the sum; its coefficients are cast to the precision of psi.

    Raises:
      ValueError: a shape or dtype does not fit.
    """
    return _over_batch(_linear, psi, _checked(psi, operator))


def expectation(psi: jax.Array, operator: AnyOperator) -> jax.Array:
    """<psi|H|psi> of real coefficients, [...]; derivatives in all modes, in psi and in the coefficients.

    The gradient in psi is 2 H psi, which the value has already: it costs no further pass.

    Args:
      psi: complex [..., 2^n], normalised or not.
      operator: the sum; its coefficients are cast to the precision of psi.

    Raises:
      ValueError: a shape or dtype does not fit.
    """
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(operator)):
        raise ValueError("the coefficients are complex; an expectation value needs real ones")
    return _over_batch(_expectation, psi, _checked(psi, operator))


def _checked(psi: jax.Array, operator: AnyOperator) -> AnyOperator:
    if isinstance(operator, Split):
        return type(operator)._make(None if part is None else _checked(psi, part) for part in operator)
    size = psi.shape[-1] if psi.ndim else 0
    if size < 2 or size & (size - 1) or not jnp.iscomplexobj(psi):
        raise ValueError(
            f"psi has shape {psi.shape} and dtype {psi.dtype}; it must be complex [..., 2^n], n >= 1"
        )
    rows: tuple[int, ...] = operator.x.shape
    if isinstance(operator, Words):
        fits = len(rows) == 1 and operator.z.ndim == 2 and operator.z.shape == operator.c.shape
        fits = fits and operator.z.shape[:1] == rows
    else:
        fits = len(rows) == 1 and operator.odd.shape == rows and operator.values.shape == (*rows, size)
    if not fits:
        shapes = {name: part.shape for name, part in operator._asdict().items()}
        needed = "[M], [M, T], [M, T]" if isinstance(operator, Words) else f"[M], [M], [M, {size}]"
        raise ValueError(f"the sum has arrays of shapes {shapes}; they must be {needed}")
    x, middle, coefficients = (jnp.asarray(part) for part in operator)
    dtype = psi.dtype if jnp.iscomplexobj(coefficients) else psi.real.dtype
    return type(operator)(x, middle, coefficients.astype(dtype))


def _over_batch(function: Any, psi: jax.Array, operator: AnyOperator) -> jax.Array:
    for _ in range(psi.ndim - 1):
        function = jax.vmap(function, in_axes=(0, None))
    return function(psi, operator)


@jax.custom_vjp
def _linear(psi: jax.Array, operator: AnyOperator) -> jax.Array:
    return _apply(psi, operator)


def _linear_forward(psi: jax.Array, operator: AnyOperator) -> tuple[jax.Array, tuple[jax.Array, AnyOperator]]:
    return _apply(psi, operator), (psi, operator)


def _linear_backward(kept: tuple[jax.Array, AnyOperator], ct: jax.Array) -> tuple[jax.Array, Any]:
    psi, operator = kept
    return _apply(ct, operator, transpose=True), _operator_cotangent(ct, psi, operator)


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_jvp
def _expectation(psi: jax.Array, operator: AnyOperator) -> jax.Array:
    return jnp.real(jnp.vdot(psi, _apply(psi, operator)))


@functools.partial(_expectation.defjvp, symbolic_zeros=True)
def _expectation_derivative(
    primals: tuple[jax.Array, AnyOperator], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    psi, operator = primals
    # Not `_linear`, of which a Hessian would need the forward derivative.
    applied = _apply(psi, operator)
    value = jnp.real(jnp.vdot(psi, applied))
    slope = jnp.zeros_like(value)
    if not _is_zero(tangents[0]):
        slope += 2 * jnp.real(jnp.vdot(applied, tangents[0]))
    if not all(map(_is_zero, _coefficients(tangents[1]))):
        slopes = _coefficients(_operator_cotangent(psi.conj(), psi, operator))
        for of_coefficient, tangent in zip(slopes, _coefficients(tangents[1]), strict=True):
            if not _is_zero(tangent):
                slope += jnp.sum(of_coefficient * tangent)
    return value, slope


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is jax.custom_derivatives.SymbolicZero


def _coefficients(operator: Any) -> list[Any]:
    """Of all parts, or what has their place in tangents."""
    parts = operator if isinstance(operator, Split) else (operator,)
    return [part[-1] for part in parts if part is not None]


def _operator_cotangent(ct: jax.Array, psi: jax.Array, operator: AnyOperator) -> Any:
    """The derivative of sum_j ct[j] (H psi)[j] in the coefficients, masks without one."""
    if isinstance(operator, Split):
        pairs = ((ct, psi), (_hadamards(ct), _hadamards(psi)), (ct, psi))
        return Split(
            *(
                None if part is None else _operator_cotangent(*pair, part)
                for pair, part in zip(pairs, operator, strict=True)
            )
        )
    return type(operator)._make((None, None, _coefficient_cotangent(ct, psi, operator)))


def _hadamards(psi: jax.Array) -> jax.Array:
    """A Hadamard gate on every wire."""
    n = psi.shape[0].bit_length() - 1
    count = -(-n // _HADAMARD_WIRES)
    sizes = [n // count + (i < n % count) for i in range(count)]
    return blocks.turn(psi, [jnp.asarray(base_matrix(1 << size), psi.real.dtype) for size in sizes])


def _apply(psi: jax.Array, operator: AnyOperator, *, transpose: bool = False) -> jax.Array:
    if not isinstance(operator, Split):
        return _apply_rows(psi, operator, transpose=transpose)
    n = psi.shape[0].bit_length() - 1
    found = []
    if operator.of_x is not None:
        found.append(_hadamards(_times(_only_diagonal(operator.of_x, n), _hadamards(psi))))
    if operator.of_z is not None:
        found.append(_times(_only_diagonal(operator.of_z, n), psi))
    if operator.others is not None:
        found.append(_apply_rows(psi, operator.others, transpose=transpose))
    return functools.reduce(jnp.add, found) if found else jnp.zeros_like(psi)


def _only_diagonal(row: Operator, n: int) -> jax.Array:
    """Of a sum that is one row."""
    return _diagonal(type(row)._make(part[0] for part in row), 0, n)


@functools.partial(jax.jit, static_argnames="transpose", inline=True)
def _apply_rows(psi: jax.Array, operator: Operator, *, transpose: bool = False) -> jax.Array:
    n = psi.shape[0].bit_length() - 1
    whole = functools.partial(_in_tiles, bits=n, transpose=transpose)
    if n <= _TILE_BITS:
        return whole(psi, operator)
    tiled = functools.partial(_in_tiles, bits=_TILE_BITS, transpose=transpose)
    return jax.lax.platform_dependent(psi, operator, cpu=tiled, default=whole)


def _in_tiles(psi: jax.Array, operator: Operator, *, bits: int, transpose: bool) -> jax.Array:
    """H psi by tiles of 2^bits amplitudes; a row takes each tile from one other."""
    tiles = psi.reshape(-1, 1 << bits)

    def one(tile: jax.Array) -> jax.Array:
        def add_row(total: jax.Array, row: Operator) -> tuple[jax.Array, None]:
            source = tiles[tile ^ (row.x >> bits)]
            partners = _partners(source, row.x & ((1 << bits) - 1), _odd(row), transpose)
            return total + _times(_diagonal(row, tile, bits), partners), None

        return jax.lax.scan(add_row, jnp.zeros_like(tiles[0]), operator)[0]

    if len(tiles) == 1:
        return one(jnp.int32(0))
    return jax.lax.map(one, jnp.arange(len(tiles), dtype=jnp.int32)).reshape(-1)


@functools.partial(jax.jit, inline=True)
def _coefficient_cotangent(ct: jax.Array, psi: jax.Array, operator: Operator) -> jax.Array:
    """For each coefficient, or entry of a table, the derivative of sum_j ct[j] (H psi)[j] in it."""
    n = psi.shape[0].bit_length() - 1
    dtype = operator[-1].dtype

    def of_row(row: Operator) -> jax.Array:
        of_diagonal = ct * _partners(psi, row.x, _odd(row), transpose=False)
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            of_diagonal = of_diagonal.real
        _, pull = jax.vjp(lambda part: _diagonal(row._replace(**{row._fields[-1]: part}), 0, n), row[-1])
        return pull(of_diagonal)[0]

    return jax.lax.map(of_row, operator)


def _partners(psi: jax.Array, x: jax.Array, odd: jax.Array, transpose: bool) -> jax.Array:
    """(-i)^odd psi[j XOR x] for all j; of the transposed sum, i^odd."""
    index = jax.lax.iota(jnp.int32, psi.shape[0])
    found = psi.at[index ^ x].get(mode="promise_in_bounds")
    turned = (-found.imag, found.real) if transpose else (found.imag, -found.real)
    return jax.lax.complex(jnp.where(odd, turned[0], found.real), jnp.where(odd, turned[1], found.imag))


def _times(diagonal: jax.Array, psi: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(diagonal):
        return diagonal * psi
    # XLA would make the real factor complex first.
    return jax.lax.complex(diagonal * psi.real, diagonal * psi.imag)


def _odd(operator: Operator) -> jax.Array:
    """Whether words have an odd number of Y, [M]; of a single row, []."""
    if isinstance(operator, Tables):
        return operator.odd
    return parity(operator.x & operator.z[..., 0]) == 1


def _diagonal(row: Operator, tile: jax.Array | int, bits: int) -> jax.Array:
    """The diagonal of a row without (-i)^odd, at the 2^bits indices of a tile."""
    if isinstance(row, Tables):
        return row.values.reshape(-1, 1 << bits)[tile]
    pairs_of_y = jax.lax.population_count(row.x & row.z) >> 1
    upper, lower = bits // 2, bits - bits // 2
    outer = pairs_of_y ^ jax.lax.population_count((row.z >> bits) & tile)
    weights = row.c * _sign(outer, row.c.dtype)
    signs = [
        _sign(jax.lax.population_count(jax.lax.iota(jnp.int32, 1 << count) & mask[:, None]), row.c.dtype)
        for count, mask in ((upper, row.z >> lower), (lower, row.z))
    ]
    return jnp.matmul((weights[:, None] * signs[0]).T, signs[1], precision="highest").reshape(-1)


def _sign(exponent: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (1 - 2 * (exponent & 1)).astype(dtype)
