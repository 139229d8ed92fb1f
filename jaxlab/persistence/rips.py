"""Rips filtrations by distance and further parameters, from the distance matrix alone.

Fixing the further parameters leaves an ordinary Rips filtration whose vertices are born late: never or at 0 for
function-Rips (vertices of small function value only), at the distance of the k-th neighbour for degree-Rips. So one
program counts components of both. References: arXiv:2306.03801, section 4; for degree-Rips Lesnick and Wright,
"Interactive visualization of 2-D persistence modules", 2015, whose slices are those of HDBSCAN.
"""

import functools
from collections.abc import Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.spanning_forest import complete_forest_weights
from jaxlab.persistence.checks import is_concrete, require_distances, require_no_nan, require_shape
from jaxlab.persistence.complexes import Complex, simplicial_complex
from jaxlab.persistence.filtrations import Filtration, raise_to_faces
from jaxlab.persistence.grids import Grid, grid_ranks, line_ranks, make_grid, require_grid


def hilbert_h0_dense(
    distances: Float[Array, "n n"], values: Float[Array, "n q"], grid: Grid
) -> Int[Array, "*lines"]:
    """Components of a function-Rips filtration: Prim's algorithm in all slices at once, O(slices n^2).

    Args:
      distances: symmetric, zero diagonal; equal points are allowed.
      values: q >= 0 functions on the points.
      grid: 1 + q parameters, the distance first.

    Raises:
      InputError: no points, NaN, a matrix that is no distance matrix, or a grid that does not fit.
    """
    ranks, births = function_rips_slices(distances, values, grid)
    return _components(ranks, births, grid.shape[0]).T.reshape(grid.shape)


def hilbert_h0_degree_rips(
    distances: Float[Array, "n n"], degrees: Sequence[int], grid: Grid
) -> Int[Array, "lines degrees"]:
    """Components of a degree-Rips filtration, as a function of distance and of the negated degree.

    At (r, k) there are the points with at least k others within r, and the edges between them of length at most r.

    Args:
      distances: symmetric, zero diagonal.
      degrees: decreasing, so that the second parameter -k increases; 0 to n - 1.
      grid: the distance, and -degrees as made by `degree_rips_grid`.

    Raises:
      InputError: as for `hilbert_h0_dense`, or degrees that do not decrease, are out of range or are not the grid's.
    """
    ranks, births = degree_rips_slices(distances, degrees, grid)
    return _components(ranks, births, grid.shape[0]).T


def function_rips_slices(
    distances: Float[Array, "n n"], values: Float[Array, "n q"], grid: Grid
) -> tuple[Int[Array, "n n"], Int[Array, "slices n"]]:
    """Ranks of the distances on the grid, and in each slice the rank at which a vertex is born.

    Slices are in row-major order of the grid's further parameters. The number of lines means never.
    """
    require_distances(distances)
    n = distances.shape[0]
    require_shape("values", values, (n, None))
    require_no_nan("values", values, infinite=True)
    require_grid(grid, 1 + values.shape[1])
    ranks = line_ranks(distances, grid.coords[0])
    further = grid.shape[1:]
    points = jnp.asarray(
        np.indices(further).reshape(len(further), -1).T if further else np.zeros((1, 0), int)
    )
    there = (
        jnp.all(grid_ranks(values, Grid(grid.coords[1:])) <= points[:, None], axis=-1) if further else True
    )
    return ranks, jnp.where(there, jnp.diagonal(ranks), grid.shape[0]) * jnp.ones((len(points), 1), jnp.int32)


def degree_rips_slices(
    distances: Float[Array, "n n"], degrees: Sequence[int], grid: Grid
) -> tuple[Int[Array, "n n"], Int[Array, "slices n"]]:
    """As `function_rips_slices`, one slice a degree: a vertex is born at the distance of its k-th neighbour."""
    births = neighbour_distances(distances, degrees)
    require_grid(grid, 2)
    lines = grid.coords[1]
    if is_concrete(lines) and not np.array_equal(np.asarray(lines), -np.asarray(degrees, lines.dtype)):
        raise InputError(f"grid.coords[1] is {lines}, but must be the negated degrees {list(degrees)}")
    return line_ranks(distances, grid.coords[0]), line_ranks(births, grid.coords[0])


def neighbour_distances(distances: Float[Array, "n n"], degrees: Sequence[int]) -> Float[Array, "degrees n"]:
    """Distance of each point's k-th nearest other point, for each k in `degrees`; 0 for k = 0.

    Raises:
      InputError: no points, a matrix that is no distance matrix, or degrees that do not decrease within 0 to n - 1.
    """
    require_distances(distances)
    n = distances.shape[0]
    wanted = [int(k) for k in degrees]
    decreasing = all(a > b for a, b in zip(wanted, wanted[1:], strict=False))
    if not wanted or not decreasing or wanted[0] >= n or wanted[-1] < 0:
        raise InputError(f"degrees is {wanted}, but must decrease, within 0 to {n - 1}")
    # The point itself comes first, at distance 0, also among equal points.
    return jnp.sort(distances, axis=1)[:, np.array(wanted)].T


def rips_grid(
    distances: Float[Array, "n n"],
    values: Float[Array, "n q"],
    *,
    strategy: str = "exact",
    resolution: int | Sequence[int] | None = None,
) -> Grid:
    """`make_grid` of a function-Rips filtration: lines from 0 and the distances of pairs, and from the values.

    Raises:
      InputError: as for `make_grid`.
    """
    i, j = np.triu_indices(distances.shape[0], 1)
    scale = jnp.concatenate([jnp.zeros(1, distances.dtype), distances[i, j]])
    return make_grid([scale, *values.T], strategy=strategy, resolution=resolution)  # type: ignore[arg-type]


def degree_rips_grid(
    distances: Float[Array, "n n"],
    degrees: Sequence[int],
    *,
    strategy: str = "exact",
    resolution: int | None = None,
) -> Grid:
    """A grid for degree-Rips: lines from 0 and the distances of pairs, and -degrees, which must decrease."""
    scale = rips_grid(distances, distances[:, :0], strategy=strategy, resolution=resolution).coords[0]
    return Grid((scale, -jnp.asarray(degrees, scale.dtype)))


def rips_complex(points: int, *, max_dim: int = 2) -> Complex:
    """All simplices on so many points up to a dimension; for small clouds, as their number grows with its power.

    Raises:
      InputError: no points, or a negative dimension.
    """
    if points < 1 or max_dim < 0:
        raise InputError(
            f"points is {points} and max_dim {max_dim}; at least one point and dimension 0 are needed"
        )
    corners = range(2, min(max_dim + 1, points) + 1)
    return simplicial_complex(points, *(np.array(list(combinations(range(points), c))) for c in corners))


def function_rips(
    distances: Float[Array, "n n"], values: Float[Array, "n q"], *, max_dim: int = 2
) -> Filtration:
    """The function-Rips filtration with all its cells, for small clouds and for `signed_measure`.

    Grades are (largest distance, coordinatewise maximum of `values`), vertices at distance 0.

    Raises:
      InputError: as for `hilbert_h0_dense`.
    """
    require_distances(distances)
    n = distances.shape[0]
    require_shape("values", values, (n, None))
    require_no_nan("values", values, infinite=True)
    complex = rips_complex(n, max_dim=max_dim)
    low = jnp.full((1, values.shape[1]), -jnp.inf, distances.dtype)
    grades = [jnp.concatenate([jnp.diagonal(distances)[:, None], values], axis=1)]
    for dimension, size in enumerate(complex.sizes[1:], 1):
        if dimension == 1:
            i, j = complex.faces[1].T
            first = distances[i, j][:, None]
        else:
            first = jnp.full((size, 1), -jnp.inf, distances.dtype)
        grades.append(jnp.concatenate([first, jnp.broadcast_to(low, (size, values.shape[1]))], axis=1))
    return raise_to_faces(complex, grades)


def _components(ranks: Array, births: Array, lines: int) -> Array:
    """int[slices, lines]: points born less edges of the minimum spanning tree, both up to each line."""
    n = ranks.shape[0]
    if (lines + 1) * n >= 2**31:
        raise InputError(
            f"{lines} lines of distance for {n} points: (lines + 1) n must stay below 2^31; use a coarser grid"
        )
    return _count_components(ranks, births, lines=lines)


@functools.partial(jax.jit, static_argnames="lines")
def _count_components(ranks: Array, births: Array, *, lines: int) -> Array:
    joined = complete_forest_weights(ranks, births, never=lines)
    lane = jnp.arange(births.shape[0])
    change = jnp.zeros((len(lane), lines), jnp.int32)
    change = change.at[lane[:, None], births].add(1, mode="drop").at[lane, joined].add(-1, mode="drop")
    return jnp.cumsum(change, axis=1, dtype=jnp.int32)
