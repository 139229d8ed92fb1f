"""First homology of a Rips filtration by implicit cohomology: no complex, few columns, all of them in bits.

Edges are ranked, ties by position, so every triangle has one last edge and is known by (rank of it, opposite vertex).
Columns are coboundaries of edges, reduced from the last edge to the first; the pivot is a column's first triangle.
Most edges need no column: those of the minimum spanning forest end components (clearing), and an edge that is the last
one of some triangle pairs with the first such triangle at once, at no distance (apparent pairs). What is left is a
column for each class that lives, a table of one bit a triangle; where a pivot belongs to an apparent edge the n - 2
triangles of its coboundary are made on the fly. Of reduced columns only the edges are kept whose coboundaries they are
the sum of.

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

from jaxlab.kernels.spanning_forest import complete_forest_weights, spanning_forest
from jaxlab.kernels.z2_reduction import WORD, pack_flags

_CHUNK = 64
"""Edges that the search for a pivot looks at together."""


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
    edges: RipsEdges,
    present: jax.Array,
    tree: jax.Array | None = None,
    *,
    lines: int,
    max_cols: int,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """dim H_1 of the Rips complex of some of the points, at every line.

    Time is about columns n^3 / 64 words and n for each coboundary that is added, memory n^3 / 64 + max_cols n^2 / 64
    words ("pallas": max_cols n^3 / 64). Works under jit and vmap.

    Args:
      edges: from `rips_edges`; those of weight `lines` or more never enter.
      present: bool[n].
      tree: the edges of their spanning tree, a row of `rips_trees`, where these are at hand.
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
    if tree is None:
        forest = spanning_forest(edges.ends, there, vertices=n)
    else:
        forest = jnp.zeros(total, bool).at[tree].set(True, mode="drop")
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


def rips_trees(edges: RipsEdges, present: jax.Array) -> jax.Array:
    """Minimum spanning trees of several selections of the points, found together: for `rips_h1_curve`.

    Args:
      edges: from `rips_edges`.
      present: bool[slices, n].

    Returns:
      int32[slices, n - 1], the edges of each tree; their number where there are fewer.
    """
    total = edges.weight.shape[0]
    # Ranks are distinct, so that the weights of the trees are their edges.
    return complete_forest_weights(edges.rank, jnp.where(present, 0, total), never=total).T


class _Slice(NamedTuple):
    edges: RipsEdges
    present: jax.Array
    apex: jax.Array
    """Of the apparent pair of each edge; n where there is none."""
    active: jax.Array
    """Rank from which on no edge enters."""


class _State(NamedTuple):
    table: jax.Array
    """uint32[edges + `_CHUNK`, words]: the column at work; bit v of row e is the triangle of e and v, e its last edge.
    Row `edges` takes what never enters; the others after it stay empty."""
    pivot: tuple[jax.Array, jax.Array]
    added: jax.Array
    """uint32[words of edges]: the edges whose coboundaries the table is the sum of, in bits."""
    started: jax.Array
    """Columns begun."""
    kept: jax.Array
    """Such edges of all reduced columns, and one place more for what is not kept."""
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
    columns = jnp.append(columns, total)

    def step(state: _State) -> _State:
        edge, vertex = state.pivot
        key = edge * n + vertex
        some = edge < total
        owner = jnp.max(jnp.where(state.keys == key, jnp.arange(room + 1), -1))
        finished = ~(some & (owner >= 0))
        place = jnp.where(finished & (state.started > 0), state.started - 1, room)
        keys = state.keys.at[place].set(jnp.where((place < room) & some, key, -1))
        deaths = state.deaths.at[place].set(edge)
        kept = state.kept.at[place].set(state.added)
        other = jnp.where(finished, 0, kept[jnp.maximum(owner, 0)])
        table = jax.lax.cond(finished, jnp.zeros_like, lambda table: table, state.table)
        table = _add_coboundaries(table, slice_, other)
        new = jnp.where(finished, columns[jnp.minimum(state.started, room)], total)
        table = _add_coboundary(table, slice_, new)
        added = _flip(jnp.where(finished, 0, state.added) ^ other, new)
        # No triangle of a column comes before its edge, or before a pivot that it had.
        first = jnp.where(finished, new, edge)
        table, added, pivot = _without_apparent_pivots(table, added, slice_, first)
        return _State(table, pivot, added, state.started + finished, kept, keys, deaths)

    nothing = jnp.asarray(total, jnp.int32), jnp.asarray(0, jnp.int32)
    none = jnp.zeros(total // WORD + 1, jnp.uint32)
    start = _State(
        jnp.zeros((total + _CHUNK, slice_.edges.earlier.shape[0]), jnp.uint32),
        nothing,
        none,
        jnp.asarray(0, jnp.int32),
        jnp.tile(none, (room + 1, 1)),
        jnp.full(room + 1, -1, jnp.int32),
        jnp.full(room + 1, total, jnp.int32),
    )
    return jax.lax.while_loop(lambda state: state.started <= count, step, start).deaths[:room]


_Reduced = tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]


def _without_apparent_pivots(
    table: jax.Array, added: jax.Array, slice_: _Slice, first: jax.Array
) -> _Reduced:
    """Adds coboundaries of apparent edges until the pivot belongs to none: the column, its edges, and that pivot.

    The pivot only moves on, so the search for it begins where the last one was, at first at `first`.
    """
    total = slice_.edges.weight.shape[0]

    def apparent(state: _Reduced) -> jax.Array:
        edge, vertex = state[2]
        return (edge < total) & (slice_.apex[jnp.minimum(edge, total - 1)] == vertex)

    def add(state: _Reduced) -> _Reduced:
        table, added, (edge, _) = state
        table = _add_coboundary(table, slice_, edge)
        return table, _flip(added, edge), _pivot(table, total, edge)

    return jax.lax.while_loop(apparent, add, (table, added, _pivot(table, total, first)))


def _add_coboundaries(table: jax.Array, slice_: _Slice, edges: jax.Array) -> jax.Array:
    """XORs the triangles of all edges whose bit is set."""
    word = jnp.arange(len(edges), dtype=jnp.int32)

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        table, edges = state
        at = jnp.min(jnp.where(edges != 0, word, len(edges) - 1))
        own = edges[at]
        edge = WORD * at + _first_bit(own[None, None], 0)[0]
        return _add_coboundary(table, slice_, edge), edges.at[at].set(own & (own - 1))

    return jax.lax.while_loop(lambda state: jnp.any(state[1] != 0), add, (table, edges))[0]


def _flip(bits: jax.Array, which: jax.Array) -> jax.Array:
    own = jnp.uint32(1) << (which % WORD).astype(jnp.uint32)
    return bits.at[which // WORD].set(bits[which // WORD] ^ own)


def _pivot(table: jax.Array, total: int, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First edge from `first` on with a bit, and its first bit; the number of edges if there is none."""
    place = jnp.arange(_CHUNK, dtype=jnp.int32)

    def look(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        edge = state[0]
        chunk = jax.lax.dynamic_slice_in_dim(table, edge, _CHUNK)
        filled = jax.lax.reduce(chunk, np.uint32(0), jax.lax.bitwise_or, (1,)) != 0
        step = jnp.min(jnp.where(filled, place, _CHUNK))
        return jnp.minimum(edge + step, total), (step < _CHUNK) | (edge + step >= total)

    edge = jax.lax.while_loop(lambda state: ~state[1], look, (first, first >= total))[0]
    own = jax.lax.dynamic_index_in_dim(table, edge, keepdims=False)
    return edge, _first_bit(own[:, None], WORD * own.size - 1)[0]


def _add_coboundary(table: jax.Array, slice_: _Slice, edge: jax.Array) -> jax.Array:
    """XORs the triangles of one edge into the table; those that never enter are left out. Nothing if edge = total."""
    edges, total = slice_.edges, slice_.edges.weight.shape[0]
    n = slice_.present.shape[0]
    i, j = edges.ends[jnp.minimum(edge, total - 1)]
    vertex = jnp.arange(n, dtype=jnp.int32)
    to_i, to_j = edges.rank[i], edges.rank[j]
    other = jnp.maximum(to_i, to_j)
    there = slice_.present & (vertex != i) & (vertex != j) & (jnp.maximum(edge, other) < slice_.active)
    # Triangles of which `edge` is the last one share its row; all others have rows of their own.
    own = jax.lax.dynamic_index_in_dim(table, edge, keepdims=False) ^ pack_flags(there & (other < edge))
    table = jax.lax.dynamic_update_index_in_dim(table, own, edge, 0)
    opposite = jnp.where(to_i > to_j, j, i)
    row = jnp.where(there & (other > edge), other, total)
    bit = jnp.uint32(1) << (opposite % WORD).astype(jnp.uint32)
    at = table.at[row, opposite // WORD]
    return at.set(at.get(mode="promise_in_bounds") ^ bit, mode="promise_in_bounds")


def _first_bit(words: jax.Array, none: int) -> jax.Array:
    """Lowest bit set in each column of uint32[words, columns], `none` where there is none."""
    # Bits below the lowest one are counted; float32 logarithms are wrong for high bits.
    below = (words & (jnp.uint32(0) - words)) - jnp.uint32(1)
    first = jax.lax.population_count(below).astype(jnp.int32)
    first += WORD * jnp.arange(words.shape[0], dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(words != 0, first, none), axis=0)
