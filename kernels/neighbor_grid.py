"""Exact nearest neighbours among many points of one to three dimensions, by a uniform grid of cells.

For sets that stay as they are over many searches: the points are sorted by cell once. A search goes through the rings
of cells around each query, all queries at once, a chunk of points at a time, until no ring further out can hold a
nearer point. Made for CPUs; accelerators do better with `nearest_neighbor`, which also costs no sorting. (ALP-GMM uses
that one: its history grows and gathers in clouds, and sorting it anew costs what the searches save.)
Reference: Bentley, Weide and Yao, "Optimal expected-time algorithms for closest point problems", 1980.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

_POINTS_OF_A_CELL = 4
"""On average; twice or half as many changes little."""
_CHUNK = 32
_ROUNDING = 8
"""Units of the last place by which a point may lie beyond the border of its cell."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NeighborGrid:
    """Points in the order of their cells, the last coordinate running fastest."""

    points: jax.Array
    """[N, d]; those that are not looked at stand last."""
    order: jax.Array
    """int32[N]: where each stood; rising within a cell."""
    starts: jax.Array
    """int32[cells ** d + 1]: first point of each cell; the last one is how many points there are."""
    low: jax.Array
    """[d], corner of the grid."""
    width: jax.Array
    """[d], of a cell."""
    cells: int = dataclasses.field(metadata={"static": True})
    """In each dimension."""


def neighbor_grid(
    points: jax.Array, low: jax.Array, high: jax.Array, *, size: jax.Array | int | None = None
) -> NeighborGrid:
    """The grid of some points; about 4 of N points to a cell.

    Args:
      points: [N, d], d in 1..3.
      low: [d], lower corner of the box in which the points lie; those outside count to the nearest cell.
      high: [d], upper corner, above `low`.
      size: how many points there are, 0..N; the rest is not looked at. All of them by default.

    Raises:
      ValueError: the shapes are out of range.
    """
    if points.ndim != 2 or not 1 <= points.shape[1] <= 3 or not low.shape == high.shape == points.shape[1:]:
        raise ValueError(
            f"points, low and high have shapes {points.shape}, {low.shape}, {high.shape}; "
            "must be (N, d), (d,), (d,) with d in 1..3"
        )
    count, dimensions = points.shape
    cells = max(int((count / _POINTS_OF_A_CELL) ** (1 / dimensions)), 1)
    width = (high - low) / cells
    cell = _cells_of(points, low, width, cells)
    number = sum(cell[:, i] * cells ** (dimensions - 1 - i) for i in range(dimensions))
    index = jnp.arange(count, dtype=jnp.int32)
    number = jnp.where(index < (count if size is None else size), number, cells**dimensions)
    number, order = jax.lax.sort((number, index), num_keys=1, is_stable=True)
    members = jnp.zeros(cells**dimensions + 1, jnp.int32).at[number].add(1)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(members[:-1], dtype=jnp.int32)])
    return NeighborGrid(points[order], order, starts, low, width, cells)


class _Search(NamedTuple):
    """Where each query is: ring, segment of the ring, points of the segment already seen; and what it has found."""

    ring: jax.Array
    segment: jax.Array
    seen: jax.Array
    distance: jax.Array
    where: jax.Array
    active: jax.Array


def grid_neighbor(
    grid: NeighborGrid, queries: jax.Array, *, first: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The nearest point of each query, the lowest index of equals: as `nearest_neighbor`, by a grid.

    Works under `jit` and `vmap`.

    Args:
      grid: of the points.
      queries: [m, d], anywhere.
      first: [m] or one number, the first index that a query may choose.

    Returns:
      indices, int32[m], and squared distances, [m]; -1 and infinity where a query has no point.

    Raises:
      ValueError: the shapes do not fit.
    """
    count, dimensions = grid.points.shape
    if queries.ndim != 2 or queries.shape[1] != dimensions:
        raise ValueError(f"queries has shape {queries.shape}; it must be (m, {dimensions})")
    home = _cells_of(queries, grid.low, grid.width, grid.cells)
    lane = jnp.arange(_CHUNK, dtype=jnp.int32)

    def scan(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Smallest distance within a chunk, and its lowest index."""
        place = begin[:, None] + lane
        there = place < end[:, None]
        place = jnp.minimum(place, count - 1)
        index = grid.order[place]
        if first is not None:
            there &= index >= jnp.reshape(first, (-1, 1))
        distance = sum((grid.points[:, i][place] - queries[:, i, None]) ** 2 for i in range(dimensions))
        distance = jax.lax.optimization_barrier(jnp.where(there, distance, jnp.inf))
        nearest = distance.min(1)
        return nearest, jnp.min(jnp.where(distance == nearest[:, None], index, count), axis=1)

    def step(state: _Search) -> _Search:
        begin, end = _segment(grid, home, state.ring, state.segment)
        begin = begin + state.seen
        nearest, index = scan(begin, jnp.where(state.active, end, begin))
        older = (nearest == state.distance) & (index < state.where)
        better = (nearest < state.distance) | older
        distance = jnp.where(better, nearest, state.distance)
        more = begin + _CHUNK < end
        segment = jnp.where(more, state.segment, state.segment + 1)
        ring_ends = segment == 2 * (2 * state.ring + 1) ** (dimensions - 1)
        nothing_nearer = distance < _squared_border(grid, queries, home, state.ring)
        found = ring_ends & (nothing_nearer | (state.ring == grid.cells - 1))
        return _Search(
            state.ring + ring_ends,
            jnp.where(ring_ends, 0, segment),
            jnp.where(more, state.seen + _CHUNK, 0),
            distance,
            jnp.where(better, index, state.where),
            state.active & ~found,
        )

    zero = jnp.zeros(queries.shape[0], jnp.int32)
    start = _Search(
        zero,
        zero,
        zero,
        jnp.full(zero.shape, jnp.inf, queries.dtype),
        zero + count,
        jnp.full(zero.shape, count > 0),
    )
    last = jax.lax.while_loop(lambda state: jnp.any(state.active), step, start)
    return jnp.where(jnp.isinf(last.distance), -1, last.where), last.distance


def _cells_of(points: jax.Array, low: jax.Array, width: jax.Array, cells: int) -> jax.Array:
    return jnp.clip(jnp.floor((points - low) / width), 0, cells - 1).astype(jnp.int32)


def _segment(
    grid: NeighborGrid, home: jax.Array, ring: jax.Array, segment: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """First point and end of a run of cells of the ring around each query.

    A ring has (2 ring + 1)^(d-1) lines of cells along the last dimension, and each of them two segments: its two end
    cells, or on the border of the ring the whole line and nothing.
    """
    cells, dimensions = grid.cells, home.shape[1]
    line, second = segment // 2, segment % 2 == 1
    inner, outside = ring > 0, jnp.zeros(ring.shape, bool)
    before = jnp.zeros_like(ring)
    for i in range(dimensions - 1):
        offset = line % (2 * ring + 1) - ring
        line = line // (2 * ring + 1)
        inner &= jnp.abs(offset) < ring
        cell = home[:, i] + offset
        outside |= (cell < 0) | (cell >= cells)
        before += jnp.clip(cell, 0, cells - 1) * cells ** (dimensions - 1 - i)
    left = jnp.where(inner & second, home[:, -1] + ring, home[:, -1] - ring)
    right = jnp.where(inner & ~second, home[:, -1] - ring, home[:, -1] + ring)
    empty = outside | (~inner & second) | (right < 0) | (left >= cells)
    begin = grid.starts[before + jnp.clip(left, 0, cells - 1)]
    end = grid.starts[before + jnp.clip(right, 0, cells - 1) + 1]
    return begin, jnp.where(empty, begin, end)


def _squared_border(grid: NeighborGrid, queries: jax.Array, home: jax.Array, ring: jax.Array) -> jax.Array:
    """Any point of a ring further out is at least so far away; infinite where there is none."""
    near, far = home - ring[:, None], home + ring[:, None] + 1
    left = jnp.where(near <= 0, jnp.inf, queries - (grid.low + near * grid.width))
    right = jnp.where(far >= grid.cells, jnp.inf, grid.low + far * grid.width - queries)
    largest = jnp.abs(grid.low) + grid.cells * grid.width + jnp.abs(queries)
    border = jnp.minimum(left, right) - _ROUNDING * jnp.finfo(queries.dtype).eps * largest
    return jnp.square(jnp.maximum(border.min(1), 0))
