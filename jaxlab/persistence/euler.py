"""Euler characteristic surfaces and their signed measures: one scatter-add, no homology, any number of parameters.

chi(x) is the alternating number of cells at or below x, so its measure is the sum of (-1)^dim at the grades of the
cells. Reference: arXiv:2306.03801, section 2.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.z2_reduction import pack_flags
from jaxlab.persistence.checks import require_distances, require_no_nan, require_shape
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.grids import Grid, grid_ranks, line_ranks, require_grid
from jaxlab.persistence.measures import DenseMeasure

_MOST_LINES = 128
"""Lines of distance up to which triangles are counted in bits, three times as fast at 50 lines."""
_APEX_BLOCK, _ONE_BLOCK = 16, 64
"""Apexes of a block of triangles: small blocks waste less at their ends; up to 64 points one block is faster."""


def euler_measure(filtration: Filtration, grid: Grid) -> DenseMeasure:
    """Euler signed measure of any filtration; `integrate` gives the surface.

    Args:
      filtration: by any number of parameters.
      grid: cells above its last lines are left out.

    Raises:
      InputError: a filtration that is not monotone or has NaN, or a grid that does not fit.
    """
    require_filtration(filtration)
    require_grid(grid, filtration.parameters)
    return DenseMeasure(_euler(filtration, grid), grid)


@jax.jit
def _euler(filtration: Filtration, grid: Grid) -> Int[Array, "*lines"]:
    weights = jnp.zeros(grid.shape, jnp.int32)
    for dimension, grades in enumerate(filtration.grades):
        ranks = grid_ranks(grades, grid)
        weights = weights.at[tuple(ranks.T)].add((-1) ** dimension, mode="drop")
    return weights


def euler_rips_measure(
    distances: Float[Array, "n n"], values: Float[Array, "n q"], grid: Grid, *, max_dim: int = 2
) -> DenseMeasure:
    """Euler signed measure of the skeleton of a function-Rips filtration, without making the complex.

    A simplex has grade (largest distance, coordinatewise maximum of `values`); vertices have distance 0. All O(n^3)
    triangles are enumerated in blocks by their largest vertex; or, for at most one function on up to 128 lines of
    distance, counted in bits, O(lines n^3 / 32). So n = 1000 is practical.

    Args:
      distances: symmetric, zero diagonal.
      values: q functions on the points, q >= 0: q = 0 is the ordinary Rips filtration.
      grid: 1 + q parameters, the distance first.
      max_dim: largest dimension of a simplex, 0 to 2.

    Raises:
      InputError: no points, NaN, a matrix that is no distance matrix, sizes that do not fit, or a wrong max_dim.
    """
    require_distances(distances)
    n = distances.shape[0]
    require_shape("values", values, (n, None))
    require_no_nan("values", values, infinite=True)
    require_grid(grid, 1 + values.shape[1])
    if max_dim not in (0, 1, 2):
        raise InputError(f"max_dim is {max_dim}, but must be 0, 1 or 2")
    if max_dim == 2 and values.shape[1] <= 1 and grid.shape[0] <= _MOST_LINES:
        return DenseMeasure(_euler_in_bits(distances, values, grid), grid)
    return DenseMeasure(_euler_rips(distances, values, grid, max_dim=max_dim), grid)


@jax.jit
def _euler_in_bits(distances: Array, values: Array, grid: Grid) -> Int[Array, "*lines"]:
    """Vertices in order of their function: a simplex enters with its last one, whose earlier neighbours are counted.

    At one distance triangles are triples v > i > j of neighbours: for each edge (v, i) the common earlier neighbours.
    """
    n, lines = distances.shape[0], grid.shape[0]
    ranks = line_ranks(distances, grid.coords[0])
    if values.shape[1]:
        born = line_ranks(values[:, 0], grid.coords[1])
    else:
        born = jnp.zeros(n, jnp.int32)
    order = jnp.argsort(born, stable=True)
    ranks, earlier = ranks[order][:, order], np.tril(np.ones((n, n), bool), -1)

    def entered(line: Array) -> Array:
        """Euler characteristic of what has each vertex as its last."""
        near = (ranks <= line) & earlier
        bits = pack_flags(near)
        common = jnp.sum(jax.lax.population_count(bits[:, None] & bits), axis=-1, dtype=jnp.int32)
        triangles = jnp.sum(jnp.where(near, common, 0), axis=1)
        return triangles - jnp.sum(near, axis=1, dtype=jnp.int32) + (jnp.diagonal(ranks) <= line)

    change = jnp.diff(jax.lax.map(entered, jnp.arange(lines)), axis=0, prepend=0)
    further = grid.shape[1] if values.shape[1] else 1
    weights = jnp.zeros((lines, further), jnp.int32).at[:, born[order]].add(change, mode="drop")
    return weights.reshape(grid.shape)


@functools.partial(jax.jit, static_argnames="max_dim")
def _euler_rips(distances: Array, values: Array, grid: Grid, *, max_dim: int) -> Int[Array, "*lines"]:
    n, ranks = distances.shape[0], line_ranks(distances, grid.coords[0])
    born = grid_ranks(values, Grid(grid.coords[1:])).T if values.shape[1] else jnp.zeros((0, n), jnp.int32)
    counts, never = _Counter(grid.shape), grid.shape[0]
    counts.add(1, [jnp.diagonal(ranks), *born])
    if max_dim >= 1:
        i, j = _pairs(n)
        counts.add(-1, [ranks[i, j], *(jnp.maximum(own[i], own[j]) for own in born)])
    size = _APEX_BLOCK if n > _ONE_BLOCK else n
    for first in range(2 if max_dim == 2 else n, n, size):
        last = min(first + size, n)
        # Pairs come sorted by their larger vertex: a prefix holds all those below the last apex of the block.
        i, j = (end[: math.comb(last - 1, 2)] for end in _pairs(n))
        # Rows of a slice are gathered whole, ten times faster than entry by entry.
        block = jnp.where(np.arange(n)[:, None] < np.arange(first, last), ranks[:, first:last], never)
        scale = jnp.maximum(jnp.maximum(block[i], block[j]), ranks[i, j][:, None])
        further = [jnp.maximum(jnp.maximum(own[i], own[j])[:, None], own[first:last]) for own in born]
        counts.add(1, [scale, *further])
    return counts.weights()


class _Counter:
    """Adds signs at multi-indices; the number of lines is an index too, a bin that is sliced off in the end."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        bins = [size + 1 for size in shape]
        if math.prod(bins) >= 2**31:
            raise InputError(f"grid has shape {shape}: a dense measure must have fewer than 2^31 entries")
        self._bins = tuple(bins)
        self._flat = jnp.zeros(math.prod(bins), jnp.int32)

    def add(self, sign: int, ranks: list[Int[Array, "*cells"]]) -> None:
        """Adds `sign` at every cell's ranks."""
        index = ranks[0]
        for size, own in zip(self._bins[1:], ranks[1:], strict=True):
            index = index * size + own
        self._flat = self._flat.at[index.reshape(-1)].add(sign, mode="promise_in_bounds")

    def weights(self) -> Int[Array, "*lines"]:
        """What was added within the grid."""
        return self._flat.reshape(self._bins)[tuple(slice(size - 1) for size in self._bins)]


def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """All i < j < n, sorted by j."""
    j, i = np.tril_indices(n, -1)
    return i, j
