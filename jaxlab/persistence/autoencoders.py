"""How far the topology of codes is from that of inputs, by one parameter and by two: for autoencoders.

In degree 0 distances look at edges of minimum spanning trees: those of the whole cloud, or those of its dense parts
too, as the signed measure of (scale, function) does. References: Moor, Horn, Rieck, Borgwardt, "Topological
autoencoders", 2020; arXiv:2406.07224 for the gradient of measures.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.spanning_forest import complete_forest_weights
from jaxlab.persistence.checks import require_distances, require_no_nan, require_shape
from jaxlab.persistence.grids import make_grid
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, mobius
from jaxlab.persistence.rips import rips_grid
from jaxlab.persistence.rips_homology import hilbert_rips_h1
from jaxlab.persistence.sliced_wasserstein import sw_distance


def tree_edge_distance(first: Float[Array, "n n"], second: Float[Array, "n n"]) -> Float[Array, ""]:
    """Half the sum of squared differences of lengths, over the edges of each cloud's minimum spanning tree.

    Edges are chosen in one cloud and measured in both, so it is more than a distance of barcodes: points correspond.

    Args:
      first: distances in one cloud, symmetric, zero diagonal.
      second: distances of the same points in the other.

    Returns:
      The sum; 0 if all these edges are equally long. Differentiable in both, the choice of edges is constant.

    Raises:
      InputError: no distance matrices, of different sizes, or too large to rank (n^3 / 2 must stay below 2^31).

    Reference: Moor et al. 2020, section 3.
    """
    require_distances(first, name="first")
    require_distances(second, name="second")
    require_shape("second", second, first.shape)
    i, j = np.triu_indices(first.shape[0], 1)
    difference = (first - second)[i, j]
    everywhere = jnp.ones((1, first.shape[0]), bool)
    squares = [jnp.sum(difference[_forests(own, everywhere).pairs[0]] ** 2) for own in (first, second)]
    return 0.5 * (squares[0] + squares[1])


def function_rips_atoms(
    distances: Float[Array, "n n"], values: Float[Array, " n"], lines: Float[Array, " k"]
) -> SparseMeasure:
    """Signed measure in degree 0 of a function-Rips filtration: exact in scale, on given lines of the function.

    The spanning forest of {values <= lines[j]} is the barcode of slice j; its atoms enter at line j and are taken back
    at line j + 1. An edge of both forests stands there with both signs: its atoms cancel. With all values as lines
    this is the measure on the exact grid, without its n^3 / 2 places.

    Args:
      distances: symmetric, zero diagonal.
      values: of the function on the points.
      lines: not decreasing, the last one not below any value, so that all points enter; see `make_grid`.

    Returns:
      k (2 n - 1) - n + 1 atoms (scale, function), of total mass 1. Differentiable in distances and lines.

    Raises:
      InputError: no distance matrix, values of another shape, NaN, or too large to rank (n^3 / 2 must stay below 2^31).
    """
    require_distances(distances)
    n = distances.shape[0]
    require_shape("values", values, (n,))
    require_no_nan("values", values)
    require_shape("lines", lines, (None,))
    require_no_nan("lines", lines)
    there = jax.lax.stop_gradient(values) <= jax.lax.stop_gradient(lines)[:, None]
    forests = _forests(distances, there)
    i, j = np.triu_indices(n, 1)
    deaths = jnp.where(forests.mask, distances[i, j][forests.pairs], 0)
    births = jnp.diff(jnp.sum(there, axis=1), prepend=0)
    at = jnp.broadcast_to(lines[:, None], deaths.shape)
    points = [
        jnp.stack([jnp.zeros_like(lines), lines], -1),
        jnp.stack([deaths, at], -1).reshape(-1, 2),
        jnp.stack([deaths[:-1], at[1:]], -1).reshape(-1, 2),
    ]
    masks = [births > 0, forests.mask.reshape(-1), forests.mask[:-1].reshape(-1)]
    signs = [births, -jnp.ones(deaths.size, births.dtype), jnp.ones(deaths[:-1].size, births.dtype)]
    mask, weights = jnp.concatenate(masks), jnp.concatenate(signs)
    return SparseMeasure(
        jnp.where(mask[:, None], jnp.concatenate(points), 0), jnp.where(mask, weights, 0), mask
    )


def codensity_rips_distance(
    first: tuple[Float[Array, "n n"], Float[Array, " n"]],
    second: tuple[Float[Array, "n n"], Float[Array, " n"]],
    directions: Float[Array, "2 directions"],
    *,
    slices: int,
) -> Float[Array, ""]:
    """Sliced Wasserstein distance of two clouds' measures by scale and a function, in degree 0: exact in scale.

    Args:
      first: distances and values of the function, of one cloud.
      second: of the other, with as many points: both measures have mass 1.
      directions: unit vectors, see `random_directions`.
      slices: lines of the function in each cloud, quantiles of its values, at least 2.

    Raises:
      InputError: as for `function_rips_atoms`, or fewer than two slices.
    """
    if slices < 2:
        raise InputError(f"slices is {slices}, but must be at least 2")

    def atoms(distances: Array, values: Array) -> SparseMeasure:
        grid = make_grid([values], strategy="quantile", resolution=slices)
        return function_rips_atoms(distances, values, grid.coords[0])

    return sw_distance(atoms(*first), atoms(*second), directions)


def codensity_rips_cycle_distance(
    first: tuple[Float[Array, "n n"], Float[Array, " n"]],
    second: tuple[Float[Array, "m m"], Float[Array, " m"]],
    directions: Float[Array, "2 directions"],
    *,
    lines: int,
    slices: int,
    max_cols: int | None = None,
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The same in degree 1, on a grid: gradients reach the pairs of points whose distances are its lines.

    That is a bias where lines are few: a cycle's scale is rounded up to a line, and the pair that the line belongs to
    is moved in its place.

    Args:
      first: distances and values of the function, of one cloud.
      second: of the other. At the largest distance there are no cycles: both measures have mass 0.
      directions: unit vectors, see `random_directions`.
      lines: of the scale, distances nearest to evenly spaced numbers, at least 2.
      slices: lines of the function, at least 2.
      max_cols: see `hilbert_rips_h1`.

    Returns:
      The distance, and whether `max_cols` was too small for one of the clouds, so that it is wrong.

    Raises:
      InputError: as for `hilbert_rips_h1` and `make_grid`.
    """

    def measure(distances: Array, values: Array) -> tuple[DenseMeasure, Array]:
        function = values[:, None]
        grid = rips_grid(distances, function, strategy="regular_closest", resolution=(lines, slices))
        hilbert, overflow = hilbert_rips_h1(distances, function, grid, max_cols=max_cols)
        return DenseMeasure(mobius(hilbert), grid), overflow

    (own, short), (other, also_short) = measure(*first), measure(*second)
    return sw_distance(own, other, directions), short | also_short


class _Forests(NamedTuple):
    """Edges of a forest in each slice, as places among the pairs i < j; there are fewer where `mask` is false."""

    pairs: Int[Array, "slices edges"]
    mask: Bool[Array, "slices edges"]


def _forests(distances: Array, there: Array) -> _Forests:
    n = distances.shape[0]
    i, j = np.triu_indices(n, 1)
    never = len(i)
    if (never + 1) * n >= 2**31:
        raise InputError(
            f"distances has shape {distances.shape}: too many pairs to rank, at most 1625 points"
        )
    # Ranks instead of lengths: equal lengths are told apart, and a rank says which edge it is.
    order = jnp.argsort(jax.lax.stop_gradient(distances[i, j])).astype(jnp.int32)
    rank = jnp.zeros(never, jnp.int32).at[order].set(jnp.arange(never, dtype=jnp.int32))
    half = jnp.zeros((n, n), jnp.int32).at[i, j].set(rank)
    chosen = complete_forest_weights(half + half.T, jnp.where(there, 0, never), never=never).T
    mask = chosen < never
    return _Forests(order[jnp.where(mask, chosen, 0)], mask)
