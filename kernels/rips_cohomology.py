"""First homology of a Rips filtration by implicit cohomology: no complex, few columns, all of them in bits.

Edges are ranked, ties by position, so every triangle has one last edge and is known by (rank of it, opposite vertex).
Columns are coboundaries of edges, reduced from the last edge to the first; the pivot is a column's first triangle.
Most edges need no column: those of the minimum spanning forest end components (clearing), and an edge that is the last
one of some triangle pairs with the first such triangle at once, at no distance (apparent pairs). What is left is a
column for each class that lives, a table of one bit a triangle; where a pivot belongs to an apparent edge the n - 2
triangles of its coboundary are made on the fly.

What depends on the distances alone (order of the edges, which vertices come before which edge) is found once and shared
by all slices.

References: de Silva, Morozov, Vejdemo-Johansson, "Dualities in persistent (co)homology", 2011; Bauer, "Ripser",
arXiv:1908.02518, sections 3 and 4.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.kernels.spanning_forest import spanning_forest
from jaxlab.kernels.z2_reduction import WORD, pack_flags


class RipsEdges(NamedTuple):
    """The edges of a complete graph from first to last, and everything by rank; their number is the rank of none."""

    ends: jax.Array
    weight: jax.Array
    rank: jax.Array
    """int[n, n]"""
    earlier: jax.Array
    """uint32[words, edges]: bit v of edge e says that the edges from v to both ends of e come before e."""


def rips_edges(weights: jax.Array) -> RipsEdges:
    """The edges in order of weight, ties by position. O(n^3) bits.

    Args:
      weights: int[n, n], symmetric, n >= 2.
    """
    n = weights.shape[0]
    i, j = np.triu_indices(n, 1)
    total = len(i)
    weight = weights[i, j].astype(jnp.int32)
    order = jnp.argsort(weight, stable=True)
    ends = jnp.stack([jnp.asarray(i, jnp.int32)[order], jnp.asarray(j, jnp.int32)[order]], -1)
    position = jnp.arange(total, dtype=jnp.int32)
    rank = jnp.full((n, n), total, jnp.int32)  # no edge from a vertex to itself
    rank = rank.at[ends[:, 0], ends[:, 1]].set(position).at[ends[:, 1], ends[:, 0]].set(position)
    earlier = jnp.maximum(rank[ends[:, 0]], rank[ends[:, 1]]) < position[:, None]
    return RipsEdges(ends, weight[order], rank, pack_flags(earlier).T)


def rips_h1_curve(
    edges: RipsEdges, present: jax.Array, *, lines: int, max_cols: int, implementation: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """dim H_1 of the Rips complex of some of the points, at every line.

    Time is about (columns + XORs) n^3 / 64, memory max_cols n^3 / 64 words. Works under jit and vmap.

    Args:
      edges: from `rips_edges`; those of weight `lines` or more never enter.
      present: bool[n].
      lines: number of lines.
      max_cols: room for columns.
      implementation: "xla", or "pallas", a kernel for NVIDIA GPUs that reduces the columns of a slice in one program
        (interpreted, slowly, on a CPU; "xla" on a TPU). None is "pallas" where JAX's default device is a GPU.

    Returns:
      int32[lines], and the number of columns that were needed; if that is above `max_cols`, the curve is wrong.

    Raises:
      ValueError: an unknown implementation, or too many points for the kernel.
    """
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation = {implementation!r}; it must be None, 'xla' or 'pallas'")
    n, total = present.shape[0], edges.weight.shape[0]
    there = present[edges.ends[:, 0]] & present[edges.ends[:, 1]] & (edges.weight < lines)
    forest = spanning_forest(edges.ends, there, vertices=n)
    apex = _first_bit(edges.earlier & pack_flags(present)[:, None], n)
    column = there & ~forest & (apex == n)
    needed = jnp.sum(column, dtype=jnp.int32)
    backwards = jnp.nonzero(column[::-1], size=max_cols, fill_value=-1)[0].astype(jnp.int32)
    columns = jnp.where(backwards < 0, total, total - 1 - backwards)
    slice_ = _Slice(edges, present, apex, jnp.sum(edges.weight < lines, dtype=jnp.int32))
    reduce = _reduce
    if implementation == "pallas" or (implementation is None and jax.default_backend() == "gpu"):
        reduce = functools.partial(_reduce_in_kernel, interpret=implementation == "pallas")
    deaths = reduce(slice_, columns, jnp.minimum(needed, max_cols))
    at = jnp.append(edges.weight, lines)
    change = jnp.zeros(lines, jnp.int32).at[at[columns]].add(1, mode="drop")
    change = change.at[jnp.where(columns < total, at[deaths], lines)].add(-1, mode="drop")
    return jnp.cumsum(change, dtype=jnp.int32), needed


class _Slice(NamedTuple):
    edges: RipsEdges
    present: jax.Array
    apex: jax.Array
    """Of the apparent pair of each edge; n where there is none."""
    active: jax.Array
    """Rank from which on no edge enters."""


class _State(NamedTuple):
    table: jax.Array
    """uint32[words, edges]: the column at work; bit v of edge e is the triangle of e and v, e its last edge."""
    pivot: tuple[jax.Array, jax.Array]
    started: jax.Array
    """Columns begun."""
    kept: jax.Array
    """Reduced columns, and one place more for what is not kept."""
    keys: jax.Array
    """Pivots of those, as edge * n + vertex."""
    deaths: jax.Array
    """Last edge of the triangle that ends each class; the number of edges if none does."""


def _reduce_in_kernel(slice_: _Slice, columns: jax.Array, count: jax.Array, *, interpret: bool) -> jax.Array:
    from jaxlab.kernels.rips_cohomology_pallas import reduce_columns

    def kernel(slice_: _Slice, columns: jax.Array, count: jax.Array, **options: bool) -> jax.Array:
        edges, present, apex, active = slice_
        return reduce_columns(edges.ends, edges.rank, present, apex, active, columns, count, **options)

    return jax.lax.platform_dependent(
        slice_,
        columns,
        count,
        cpu=functools.partial(kernel, interpret=True) if interpret else _reduce,
        cuda=kernel,
        default=_reduce,
    )


def _reduce(slice_: _Slice, columns: jax.Array, count: jax.Array) -> jax.Array:
    """Each step finishes a column and begins the next, or adds a kept one; then apparent pivots go, the bulk of it."""
    n, total, room = slice_.present.shape[0], slice_.edges.weight.shape[0], columns.shape[0]
    words = slice_.edges.earlier.shape[0]
    columns = jnp.append(columns, total)

    def step(state: _State) -> _State:
        edge, vertex = state.pivot
        key = edge * n + vertex
        some = edge < total
        owner = jnp.max(jnp.where(state.keys == key, jnp.arange(room + 1), -1))
        finished = ~(some & (owner >= 0))
        place = jnp.where(finished & (state.started > 0), state.started - 1, room)
        kept = jax.lax.dynamic_update_index_in_dim(state.kept, state.table, place, 0)
        keys = state.keys.at[place].set(jnp.where((place < room) & some, key, -1))
        deaths = state.deaths.at[place].set(edge)
        other = jax.lax.dynamic_index_in_dim(kept, jnp.maximum(owner, 0), 0, keepdims=False)
        table = jnp.where(finished, 0, state.table ^ other)
        new = jnp.where(finished, columns[jnp.minimum(state.started, room)], total)
        table = _add_coboundary(table, slice_, new)
        table, pivot = _without_apparent_pivots(table, slice_)
        return _State(table, pivot, state.started + finished, kept, keys, deaths)

    nothing = jnp.asarray(total, jnp.int32), jnp.asarray(0, jnp.int32)
    start = _State(
        jnp.zeros((words, total), jnp.uint32),
        nothing,
        jnp.asarray(0, jnp.int32),
        jnp.zeros((room + 1, words, total), jnp.uint32),
        jnp.full(room + 1, -1, jnp.int32),
        jnp.full(room + 1, total, jnp.int32),
    )
    return jax.lax.while_loop(lambda state: state.started <= count, step, start).deaths[:room]


def _without_apparent_pivots(
    table: jax.Array, slice_: _Slice
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Adds coboundaries of apparent edges until the pivot belongs to none; the column, and that pivot."""
    total = table.shape[1]

    def apparent(state: tuple[jax.Array, tuple[jax.Array, jax.Array]]) -> jax.Array:
        edge, vertex = state[1]
        return (edge < total) & (slice_.apex[jnp.minimum(edge, total - 1)] == vertex)

    def add(
        state: tuple[jax.Array, tuple[jax.Array, jax.Array]],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        table = _add_coboundary(state[0], slice_, state[1][0])
        return table, _pivot(table)

    return jax.lax.while_loop(apparent, add, (table, _pivot(table)))


def _pivot(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First edge with a bit, and its first bit; the number of edges if there is none."""
    words, total = table.shape
    filled = jax.lax.reduce(table, np.uint32(0), jax.lax.bitwise_or, (0,)) != 0
    edge = jnp.min(jnp.where(filled, jnp.arange(total, dtype=jnp.int32), total))
    own = jax.lax.dynamic_slice_in_dim(table, jnp.minimum(edge, total - 1), 1, 1)
    return edge, jnp.minimum(_first_bit(own, WORD * words - 1)[0], WORD * words - 1)


def _add_coboundary(table: jax.Array, slice_: _Slice, edge: jax.Array) -> jax.Array:
    """XORs the triangles of one edge into the table; those that never enter are left out. Nothing if edge = total."""
    edges, total = slice_.edges, table.shape[1]
    n = slice_.present.shape[0]
    own = jnp.minimum(edge, total - 1)
    i, j = edges.ends[own]
    vertex = jnp.arange(n, dtype=jnp.int32)
    to_i, to_j = edges.rank[i], edges.rank[j]
    other = jnp.maximum(to_i, to_j)
    there = slice_.present & (vertex != i) & (vertex != j) & (jnp.maximum(edge, other) < slice_.active)
    # Triangles of which `edge` is the last one share its row; all others have rows of their own.
    table = table.at[:, edge].set(table[:, own] ^ pack_flags(there & (other < edge)), mode="drop")
    opposite = jnp.where(to_i > to_j, j, i)
    row = jnp.where(there & (other > edge), other, total)
    bit = jnp.uint32(1) << (opposite % WORD).astype(jnp.uint32)
    changed = table[opposite // WORD, jnp.minimum(row, total - 1)] ^ bit
    return table.at[opposite // WORD, row].set(changed, mode="drop", unique_indices=True)


def _first_bit(words: jax.Array, none: int) -> jax.Array:
    """Lowest bit set in each column of uint32[words, columns], `none` where there is none."""
    # Bits below the lowest one are counted; float32 logarithms are wrong for high bits.
    below = (words & (jnp.uint32(0) - words)) - jnp.uint32(1)
    first = jax.lax.population_count(below).astype(jnp.int32)
    first += WORD * jnp.arange(words.shape[0], dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(words != 0, first, none), axis=0)
