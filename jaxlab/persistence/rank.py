"""The rank invariant r(a, b) = rank(H_i(K_a) -> H_i(K_b)), a <= b, and its two signed decompositions.

It is a signed sum of the rank invariants of rectangles, or of hooks, in one way each. A tensor over all pairs of grid
points has lines^(2p) entries: keep 20 lines a parameter. References: Botnan, Oppermann, Oudot, "Signed barcodes for
multi-parameter persistence via rank decompositions", 2022; Botnan, Oppermann, Oudot, Scoccola, "On the bottleneck
stability of rank decompositions of multi-parameter persistence modules", 2022, for hooks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlab.errors import InputError
from jaxlab.kernels.spanning_forest import connected_components
from jaxlab.kernels.z2_reduction import lowest_ones, pack_columns
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.grids import Grid, grid_ranks, require_grid

_WORK_AT_ONCE = 2**22
MOST_ENTRIES = 2**26
"""Entries of a rank tensor: 256 MiB."""


def rank_h0(filtration: Filtration, grid: Grid) -> Int[Array, "*lines_lines"]:
    """Rank invariant in degree 0: how many components of K_b are met by K_a.

    Args:
      filtration: by p parameters; only vertices and edges are looked at, every edge with two ends.
      grid: p parameters.

    Returns:
      int32[*lines, *lines], first a, then b; 0 unless a <= b.

    Raises:
      InputError: a filtration that is not monotone or has NaN, a grid that does not fit or is too fine, or a chain
        complex whose edges have not two ends (`rank_generic` takes it).
    """
    _require(filtration, grid)
    complex = filtration.complex
    if complex.kind == "cells" and complex.dimension:
        raise InputError("the complex is of kind 'cells', whose edges may have no two ends; use rank_generic")
    return _rank_h0(filtration, grid)


@jax.jit
def _rank_h0(filtration: Filtration, grid: Grid) -> Array:
    complex, shape = filtration.complex, grid.shape
    vertices = complex.sizes[0]
    ranks = [grid_ranks(grades, grid) for grades in filtration.grades[:2]]
    edges = complex.faces[1] if complex.dimension else jnp.zeros((0, 2), jnp.int32)
    edge_ranks = ranks[1] if complex.dimension else jnp.zeros((0, len(shape)), jnp.int32)

    def met(b: Array) -> Array:
        labels = connected_components(edges, jnp.all(edge_ranks <= b, axis=1), vertices=vertices)
        label = jnp.where(jnp.all(ranks[0] <= b, axis=1), labels, vertices)
        first = jnp.zeros((vertices, *shape), jnp.int32).at[(label, *ranks[0].T)].set(1, mode="drop")
        for axis in range(1, first.ndim):
            first = jax.lax.cummax(first, axis)
        return jnp.sum(first, axis=0)

    work = vertices * int(np.prod(shape)) + len(edges)
    found = _over(_points(shape), met, work).reshape(*shape, *shape)  # first b, then a
    return _where_ordered(jnp.moveaxis(found, range(len(shape)), range(len(shape), 2 * len(shape))))


def rank_generic(filtration: Filtration, grid: Grid, *, degree: int) -> Int[Array, "*lines_lines"]:
    """Rank invariant in any degree: classes of K_a less those that a cell of K_b ends.

    For every a and every row of b one reduction over Z/2 with the cells of K_a first, so for small complexes.

    Args:
      filtration: of any complex.
      grid: p parameters.
      degree: 0 to the dimension of the complex.

    Returns:
      int32[*lines, *lines], first a, then b; 0 unless a <= b.

    Raises:
      InputError: as for `rank_h0`, or a degree above the dimension of the complex.
    """
    _require(filtration, grid)
    if not 0 <= degree <= filtration.complex.dimension:
        raise InputError(
            f"degree is {degree}, but must be 0 to {filtration.complex.dimension}, the dimension of the complex"
        )
    return _rank_generic(filtration, grid, degree=degree)


@functools.partial(jax.jit, static_argnames="degree")
def _rank_generic(filtration: Filtration, grid: Grid, *, degree: int) -> Array:
    faces, shape = filtration.complex.faces, grid.shape
    p = len(shape)
    ranks = [grid_ranks(grades, grid) for grades in filtration.grades]

    def lows(k: int, keys: Array, below: Array) -> tuple[Array, Array, Array]:
        """Lowest ones of the boundary of the k-cells, both sorted by key; cells with key `lines` are left out."""
        order, rows = jnp.argsort(keys, stable=True), jnp.argsort(below, stable=True)
        place = jnp.zeros(len(rows), jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
        own = faces[k][order]
        columns = pack_columns(jnp.where(own < 0, -1, place[own]), rows=len(rows))
        return lowest_ones(jnp.where(keys[order] < shape[0], columns, 0)), order, rows

    def row(lane: Array) -> Array:
        a, rest = lane[:p], lane[p:]

        def keys(k: int) -> Array:
            inside, there = jnp.all(ranks[k] <= a, axis=1), jnp.all(ranks[k][:, 1:] <= rest, axis=1)
            return jnp.where(inside, -1, jnp.where(there, ranks[k][:, 0], shape[0]))

        own = keys(degree)
        cycles = jnp.sum(own == -1, dtype=jnp.int32)
        if degree:
            cycles -= jnp.sum(lows(degree, jnp.where(own == -1, -1, shape[0]), keys(degree - 1))[0] >= 0)
        ended = jnp.zeros(shape[0], jnp.int32)
        if degree < filtration.complex.dimension:
            above = keys(degree + 1)
            low, order, rows = lows(degree + 1, above, own)
            ends = (low >= 0) & (own[rows][jnp.maximum(low, 0)] == -1)
            # Classes of K_a that end within K_a are gone at every b.
            ended = ended.at[jnp.maximum(above[order], 0)].add(ends, mode="drop")
        return cycles - jnp.cumsum(ended, dtype=jnp.int32)

    lanes = _points((*shape, *shape[1:]))
    work = sum(len(own) * (len(below) // 32 + 1) for below, own in zip(faces, faces[1:], strict=False)) + 1
    found = _over(lanes, row, work).reshape(*shape, *shape[1:], shape[0])
    return _where_ordered(jnp.moveaxis(found, -1, p))


def rectangles(rank: Int[Array, "*lines_lines"]) -> Int[Array, "*lines_lines"]:
    """Weights of the rectangles [a, b] whose rank invariants sum to `rank`: its Moebius inversion.

    Args:
      rank: int[*lines, *lines], first a, then b.

    Returns:
      The same shape. The rectangle (a, b) lives at the grid points between a and b, both included: it dies on the line
      after b, and never in a parameter in which b is the last line.
    """
    p = _parameters(rank)
    weights = _where_ordered(rank)
    for axis in range(p):
        weights = jnp.diff(weights, axis=axis, prepend=0)
    for axis in range(p, 2 * p):
        weights = jnp.flip(jnp.diff(jnp.flip(weights, axis), axis=axis, prepend=0), axis)
    return _where_ordered(weights)


def hooks(
    rank: Int[Array, "*lines_lines"],
) -> tuple[Int[Array, "*lines_lines"], Int[Array, "*lines"]]:
    """Weights of the hooks {x >= a, not x >= b} whose rank invariants sum to `rank`.

    Args:
      rank: int[*lines, *lines], first a, then b.

    Returns:
      The weight of every hook from a to b (0 unless a <= b and a != b), and of the hooks from a that never end.
    """
    p = _parameters(rank)
    shape = rank.shape[:p]
    born = _where_ordered(rank)
    for axis in range(p):
        born = jnp.diff(born, axis=axis, prepend=0)
    # born[a, y] is the weight of the hooks from a that have not ended at y >= a; ended is what it has lost since a.
    flat = born.reshape(int(np.prod(shape)), -1)
    start = jnp.diagonal(flat).reshape(*shape, *(1,) * p)
    ended = _where_ordered(start - born)
    for axis in range(p, 2 * p):
        ended = jnp.diff(ended, axis=axis, prepend=0)
    return _where_ordered(ended), flat[:, -1].reshape(shape)


def _require(filtration: Filtration, grid: Grid) -> None:
    require_filtration(filtration)
    require_grid(grid, filtration.parameters)
    entries = int(np.prod(grid.shape, dtype=float)) ** 2
    if entries > MOST_ENTRIES:
        raise InputError(
            f"grid has shape {grid.shape}: a rank tensor of {entries} entries is more than {MOST_ENTRIES}; coarsen it"
        )


def _parameters(rank: Array) -> int:
    p, odd = divmod(rank.ndim, 2)
    if odd or not p or rank.shape[:p] != rank.shape[p:]:
        raise InputError(f"rank has shape {rank.shape}, but must be a grid's shape twice")
    return p


def _points(shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.indices(shape).reshape(len(shape), -1).T, jnp.int32)


def _over(points: Array, function: Callable[[Array], Array], work: int) -> Array:
    batch = max(1, _WORK_AT_ONCE // work)
    return jax.lax.map(function, points, batch_size=min(batch, len(points)))


def _where_ordered(rank: Array) -> Array:
    """Zero unless a <= b."""
    p = rank.ndim // 2
    for axis in range(p):
        size = rank.shape[axis]
        ordered = jnp.arange(size)[:, None] <= jnp.arange(size)
        rank = jnp.where(
            jnp.expand_dims(ordered, [i for i in range(2 * p) if i not in (axis, p + axis)]), rank, 0
        )
    return rank
