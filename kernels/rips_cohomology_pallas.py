"""The reduction of `rips_cohomology` as one Pallas kernel for GPUs: a program reduces all columns of a slice.

Columns are added and looked at a few at a time, instead of a whole table each time: a coboundary touches n words, and
the pivot only moves ahead, so that the search for the next one begins where the last one was. Columns are too large for
registers and stay in device memory, where they are reduced in place. Nothing waits for other slices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxlab.kernels.z2_reduction import WORD

_CHUNK = 2048
"""Words that are looked at together, at most; 16 for each thread of 4 warps."""


def reduce_columns(
    ends: jax.Array,
    rank: jax.Array,
    present: jax.Array,
    apex: jax.Array,
    active: jax.Array,
    columns: jax.Array,
    count: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Last edge of the triangle that ends the class of each column. Works under jit and vmap.

    Args:
      ends: int32[edges, 2], from first to last.
      rank: int32[n, n], the edge between two vertices; `edges` from a vertex to itself.
      present: bool[n].
      apex: int32[edges], the vertex of each apparent pair; n where there is none.
      active: int32[], rank from which on no edge enters.
      columns: int32[room], edges to reduce, in this order.
      count: int32[], how many of them there are, at most `room`.
      interpret: runs on any device, slowly.

    Returns:
      int32[room]; `edges` for a class that nothing ends.

    Raises:
      ValueError: bits of a column, or words of all columns, cannot be numbered in 31 bits.
    """
    total, n, room = ends.shape[0], rank.shape[0], columns.shape[0]
    sizes = _sizes(total, n, room)
    if max(total * sizes.width, room * sizes.words) >= 2**31:
        raise ValueError(
            f"{n} points and {room} columns: {total * sizes.width} bits of a column and {room * sizes.words} words in "
            "all must be below 2^31"
        )
    wide = ((0, 0), (0, sizes.width - n))
    pivots = jnp.full(sizes.lanes, total * sizes.width, jnp.int32)
    tables = jnp.zeros(room * sizes.words, jnp.uint32)
    barrier = (lambda: None) if interpret else triton.debug_barrier
    options: dict[str, Any] = (
        {"interpret": True} if interpret else {"compiler_params": triton.CompilerParams(num_warps=4)}
    )

    def kernel(*refs: Any) -> None:
        *given, _, _, found, kept = refs
        _kernel(_Slice(sizes, barrier, *given), found, kept)

    found, _ = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (pivots, tables)],
        input_output_aliases={6: 0, 7: 1},
        **options,
    )(
        ends,
        jnp.pad(rank, wide, constant_values=total),
        jnp.pad(present.astype(jnp.int32), wide[1]),
        apex,
        columns,
        jnp.stack([active, count]),
        pivots,
        tables,
    )
    return found[:room] // sizes.width


class _Sizes(NamedTuple):
    """All but the number of edges are powers of two, as Triton wants them."""

    total: int
    """Edges."""
    width: int
    """Bits of an edge's row, at least one for each vertex."""
    lanes: int
    """Places for pivots, at least one for each column."""
    chunk: int
    chunks: int

    @property
    def words(self) -> int:
        """Of a column."""
        return self.chunk * self.chunks


def _sizes(total: int, n: int, room: int) -> _Sizes:
    width = max(WORD, pl.next_power_of_2(n))
    words = total * (width // WORD)
    chunk = min(_CHUNK, pl.next_power_of_2(words))
    return _Sizes(total, width, pl.next_power_of_2(room), chunk, pl.cdiv(words, chunk))


class _Slice(NamedTuple):
    sizes: _Sizes
    barrier: Callable[[], None]
    """What a thread has written is seen by the others behind it."""
    ends: Any
    rank: Any
    present: Any
    apex: Any
    columns: Any
    limits: Any
    """Rank from which on no edge enters, and the number of columns."""


def _kernel(slice_: _Slice, pivots: Any, kept: Any) -> None:
    total, width, lanes = slice_.sizes[:3]
    lane = jax.lax.iota(jnp.int32, lanes)

    def step(place: jax.Array, pivot: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Adds what owns the pivot; the next pivot, and whether there was an owner."""
        some = pivot < total * width
        edge, vertex = _divided(pivot, width)
        apparent = some & (slice_.apex[jnp.minimum(edge, total - 1)] == vertex)
        owner = jnp.max(jnp.where((pivots[...] == pivot) & some, lane, -1))
        pl.when(apparent)(lambda: _add_coboundary(slice_, kept, place, edge))
        pl.when(owner >= 0)(lambda: _add_column(slice_, kept, place, owner, pivot))
        return _pivot(slice_, kept, place, pivot), apparent | (owner >= 0)

    def reduce(place: jax.Array, _: None) -> None:
        edge = slice_.columns[place]
        _add_coboundary(slice_, kept, place, edge)
        first = _pivot(slice_, kept, place, edge * width)
        pivots[place] = jax.lax.while_loop(
            lambda state: state[1], lambda state: step(place, state[0]), (first, jnp.asarray(True))
        )[0]

    jax.lax.fori_loop(0, slice_.limits[1], reduce, None)


def _pivot(slice_: _Slice, kept: Any, place: jax.Array, start: jax.Array) -> jax.Array:
    """First bit of a column, as edge * width + vertex, of which it is known that none lies before `start`."""
    sizes = slice_.sizes
    none = sizes.total * sizes.width
    word = jax.lax.iota(jnp.int32, sizes.chunk)
    slice_.barrier()

    def look(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chunk, _ = state
        at = chunk * sizes.chunk + word
        bits = kept[place * sizes.words + at]
        # Bits below the lowest one are counted; float32 logarithms are wrong for high bits.
        below = (bits & (jnp.uint32(0) - bits)) - jnp.uint32(1)
        first = at * WORD + jax.lax.population_count(below).astype(jnp.int32)
        return chunk + 1, jnp.min(jnp.where(bits != 0, first, none))

    chunk, _ = _divided(start, sizes.chunk * WORD)
    return jax.lax.while_loop(
        lambda state: (state[0] < sizes.chunks) & (state[1] == none), look, (chunk, jnp.asarray(none))
    )[1]


def _add_column(slice_: _Slice, kept: Any, place: jax.Array, owner: jax.Array, start: jax.Array) -> None:
    """XORs the column at `owner`, which has no bit before `start`, into that at `place`."""
    sizes = slice_.sizes
    word = jax.lax.iota(jnp.int32, sizes.chunk)

    def add(chunk: jax.Array, _: None) -> None:
        at = chunk * sizes.chunk + word
        own = place * sizes.words + at
        kept[own] = kept[own] ^ kept[owner * sizes.words + at]

    jax.lax.fori_loop(_divided(start, sizes.chunk * WORD)[0], sizes.chunks, add, None)


def _add_coboundary(slice_: _Slice, kept: Any, place: jax.Array, edge: jax.Array) -> None:
    """XORs the triangles of an edge into the column at `place`; those that never enter are left out."""
    sizes = slice_.sizes
    words = sizes.width // WORD
    vertex = jax.lax.iota(jnp.int32, sizes.width)
    i, j = slice_.ends[edge, 0], slice_.ends[edge, 1]
    to_i, to_j = slice_.rank[i, :], slice_.rank[j, :]
    other = jnp.maximum(to_i, to_j)
    # The rank of i or j itself, and of padding, is that of no edge, and never below the limit.
    there = (slice_.present[...] != 0) & (jnp.maximum(edge, other) < slice_.limits[0])
    start = place * sizes.words
    # Triangles of which `edge` is the last one share its row; all others have rows of their own.
    bits = jnp.where(there & (other < edge), _bit(vertex), jnp.uint32(0)).reshape(words, WORD)
    row = start + edge * words + jax.lax.iota(jnp.int32, words)
    kept[row] = kept[row] ^ jnp.sum(bits, axis=1, dtype=jnp.uint32)
    opposite = jnp.where(to_i > to_j, j, i)
    last = there & (other > edge)
    own = kept.at[start + jnp.where(last, other, edge) * words + _divided(opposite, WORD)[0]]
    changed = triton.load(own, mask=last, other=jnp.uint32(0)) ^ _bit(opposite)
    triton.store(own, changed, mask=last)


def _bit(vertex: jax.Array) -> jax.Array:
    return jnp.uint32(1) << _divided(vertex, WORD)[1].astype(jnp.uint32)


def _divided(x: jax.Array, power_of_two: int) -> tuple[jax.Array, jax.Array]:
    return x >> (power_of_two.bit_length() - 1), x & (power_of_two - 1)
