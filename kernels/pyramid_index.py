"""Rank and unrank of pyramid codewords: integer vectors y with sum |y_i| = k, numbered 0 to V(n, k) - 1.

The order "fischer-1" scans coordinates from the left and orders the values of each as 0, +1, -1, +2, -2, ...
Indices are little-endian uint32 limbs, so neither x64 nor division is needed; counts come from a table of
exact integers made on the host. Reference: Fischer, "A pyramid vector quantizer", IEEE Trans. IT, 1986.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_PULSES = 127  # y is int8
MAX_LIMBS = 4


@functools.lru_cache(maxsize=1024)
def _count_rows(n: int, k: int) -> tuple[tuple[int, ...], ...]:
    """V(i, j) for i = 0..n, j = 0..k by V(i,j) = V(i-1,j) + V(i,j-1) + V(i-1,j-1)."""
    rows = [(1,) + (0,) * k]
    for _ in range(n):
        above, row = rows[-1], [1]
        for j in range(1, k + 1):
            row.append(above[j] + row[j - 1] + above[j - 1])
        rows.append(tuple(row))
    return tuple(rows)


def count(n: int, k: int) -> int:
    """V(n, k): how many integer vectors of length n have sum |y_i| = k.

    Args:
      n: length, >= 0.
      k: sum of magnitudes ("pulses"), >= 0.

    Returns:
      The exact number.

    Raises:
      ValueError: n or k is negative.
    """
    if n < 0 or k < 0:
        raise ValueError(f"count(n={n}, k={k}): both must be >= 0")
    return _count_rows(n, k)[n][k]


def index_bits(n: int, k: int) -> int:
    """Bits that hold every index of (n, k): ceil(log2 V(n, k))."""
    return max(count(n, k) - 1, 0).bit_length()


def limbs(n: int, k: int) -> int:
    """How many uint32 limbs hold V(n, k): 1 to 4.

    Raises:
      ValueError: (n, k) is out of range, see `rank_tables`.
    """
    if n < 1:
        raise ValueError(f"n = {n}: a group needs at least 1 weight")
    if not 1 <= k <= MAX_PULSES:
        raise ValueError(f"k = {k}: pulses must lie between 1 and {MAX_PULSES}, since y is int8")
    size = -(-count(n, k).bit_length() // 32)
    if size > MAX_LIMBS:
        raise ValueError(
            f"n = {n}, k = {k}: indices need {index_bits(n, k)} bits, more than {32 * MAX_LIMBS}; "
            "use smaller groups or fewer pulses"
        )
    return size


@functools.lru_cache(maxsize=64)
def rank_tables(n: int, k: int) -> np.ndarray:
    """Cumulative counts from which `rank` and `unrank` work; made once on the host.

    Entry [i, j, m] is the number of codewords of length i + 1 with j pulses whose first magnitude is below m:
    0 for m = 0, else V(i, j) + 2 * sum of V(i, j - l) over l = 1..m-1. Beyond m = j + 1 it stays V(i + 1, j).

    Args:
      n: weights per group, >= 1.
      k: pulses, 1 to 127; V(n, k) must be below 2**128.

    Returns:
      uint32[n, k+1, k+2, L], L = `limbs(n, k)`, low limb first; read-only.

    Raises:
      ValueError: n or k is out of range.
    """
    size = limbs(n, k)
    rows = _count_rows(n, k)
    below = np.zeros((n, k + 1, k + 2), object)
    for i in range(n):
        for j in range(k + 1):
            total = 0
            for m in range(1, k + 2):
                if m <= j + 1:
                    total += rows[i][j] if m == 1 else 2 * rows[i][j - m + 1]
                below[i, j, m] = total
    table = np.stack([((below >> (32 * limb)) & 0xFFFFFFFF).astype(np.uint32) for limb in range(size)], -1)
    table.setflags(write=False)
    return table


@jax.jit
def rank(y: jax.Array, tables: jax.Array | np.ndarray, *, pulses: jax.Array | int | None = None) -> jax.Array:
    """Index of each codeword in the order "fischer-1".

    Args:
      y: integer[..., n] with sum |y| = k; another sum gives a meaningless index (check before).
      tables: `rank_tables(n, k)`.
      pulses: int32, broadcastable to the leading axes: sum |y| of each codeword where it is less than k; may be traced.

    Returns:
      uint32[..., L], low limb first.

    Raises:
      ValueError: the length of y is not the tables' n, or y is not an integer array.
    """
    n, k, size = _geometry(tables)
    if y.ndim < 1 or y.shape[-1] != n:
        raise ValueError(f"y has shape {y.shape}; the tables are for groups of n = {n} along the last axis")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y has dtype {y.dtype}; codewords are integers")
    flat = jnp.asarray(tables).reshape(-1, size)
    rows = y.reshape(-1, n).T

    def add_coordinate(
        state: tuple[jax.Array, ...], position: tuple[jax.Array, jax.Array]
    ) -> tuple[Any, None]:
        left, *index = state
        row, value = position[0], position[1].astype(jnp.int32)
        magnitude = jnp.abs(value)
        smaller = _lookup(flat, (row + left) * (k + 2) + magnitude)
        left = left - magnitude
        positive = _lookup(flat, (row + left) * (k + 2) + 1)  # V(n-1-i, left): the codewords with +|y_i|
        before = _add(smaller, [jnp.where(value < 0, limb, 0) for limb in positive])
        return (left, *_add(index, before)), None

    start = (_pulses(pulses, k, y.shape[:-1]), *[jnp.zeros(rows.shape[1:], jnp.uint32)] * size)
    (_, *index), _ = jax.lax.scan(add_coordinate, start, (_row_offsets(n, k), rows))
    return jnp.stack(index, -1).reshape(*y.shape[:-1], size)


@jax.jit
def unrank(
    index: jax.Array, tables: jax.Array | np.ndarray, *, pulses: jax.Array | int | None = None
) -> jax.Array:
    """Codeword of each index, the inverse of `rank`.

    Args:
      index: uint32[..., L] below V(n, k), low limb first; a larger one gives a meaningless codeword.
      tables: `rank_tables(n, k)`.
      pulses: int32, broadcastable to the leading axes: sum |y| of each codeword where it is less than k; may be traced.

    Returns:
      int8[..., n] with sum |y| = k.

    Raises:
      ValueError: the number of limbs is not the tables', or index is not uint32.
    """
    n, k, size = _geometry(tables)
    if index.ndim < 1 or index.shape[-1] != size:
        raise ValueError(
            f"index has shape {index.shape}; the tables of n = {n}, k = {k} need {size} limbs last"
        )
    if index.dtype != jnp.uint32:
        raise ValueError(f"index has dtype {index.dtype}; it must be uint32")
    flat = jnp.asarray(tables).reshape(-1, size)
    rest = tuple(index.reshape(-1, size).T)
    steps = jnp.asarray([1 << bit for bit in reversed(range(k.bit_length()))], jnp.int32)

    def next_coordinate(
        state: tuple[jax.Array, ...], row: jax.Array
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        left, *rest = state
        start = (row + left) * (k + 2)

        def probe(
            i: int, magnitude: jax.Array
        ) -> jax.Array:  # bisection for the largest m with entry <= rest
            larger = magnitude + steps[i]
            fits = (larger <= left) & ~_less(rest, _lookup(flat, start + jnp.minimum(larger, left)))
            return jnp.where(fits, larger, magnitude)

        magnitude = jax.lax.fori_loop(0, len(steps), probe, jnp.zeros_like(left))
        rest = _subtract(rest, _lookup(flat, start + magnitude))
        left = left - magnitude
        positive = _lookup(flat, (row + left) * (k + 2) + 1)
        negative = (magnitude > 0) & ~_less(rest, positive)
        rest = _subtract(rest, [jnp.where(negative, limb, 0) for limb in positive])
        return (left, *rest), jnp.where(negative, -magnitude, magnitude).astype(jnp.int8)

    left = _pulses(pulses, k, index.shape[:-1])
    _, y = jax.lax.scan(next_coordinate, (left, *rest), _row_offsets(n, k))
    return y.T.reshape(*index.shape[:-1], n)


def _pulses(pulses: jax.Array | int | None, k: int, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(k if pulses is None else pulses, jnp.int32), shape).reshape(-1)


def _geometry(tables: jax.Array | np.ndarray) -> tuple[int, int, int]:
    shape = tables.shape
    if len(shape) != 4 or shape[2] != shape[1] + 1 or tables.dtype != jnp.uint32:
        raise ValueError(
            f"tables has shape {shape}, dtype {tables.dtype}; expected those of rank_tables(n, k)"
        )
    return shape[0], shape[1] - 1, shape[3]


def _row_offsets(n: int, k: int) -> jax.Array:
    """Where the table of each coordinate begins, in units of its rows; coordinate i has n-1-i others after it."""
    return jnp.arange(n - 1, -1, -1) * (k + 1)


def _lookup(flat: jax.Array, at: jax.Array) -> list[jax.Array]:
    return [flat[:, limb].at[at].get(mode="promise_in_bounds") for limb in range(flat.shape[1])]


def _less(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    less = a[0] < b[0]
    for low, high in zip(a[1:], b[1:], strict=True):
        less = (low < high) | ((low == high) & less)
    return less


def _add(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    total, carry = [], None
    for low, high in zip(a, b, strict=True):
        limb = low + high
        over = limb < low
        if carry is not None:
            limb = limb + carry.astype(jnp.uint32)
            over = over | (carry & (limb == 0))
        total.append(limb)
        carry = over
    return total


def _subtract(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    difference, borrow = [], None
    for low, high in zip(a, b, strict=True):
        limb, under = low - high, low < high
        if borrow is not None:
            under = under | (borrow & (limb == 0))
            limb = limb - borrow.astype(jnp.uint32)
        difference.append(limb)
        borrow = under
    return difference
