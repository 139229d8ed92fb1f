"""Intrinsic dimension and entropy of point clouds, read off the lengths of minimum spanning trees.

For n points drawn from a density f on a compact d-dimensional manifold, E / n^((d - 1) / d) tends to C_d times the
integral of f^((d - 1) / d). Hence log E over log n has the slope (d - 1) / d, and E measures the Renyi entropy of order
(d - 1) / d. References: Steele, "Growth rates of Euclidean minimal spanning trees with power weighted edges", 1988;
Costa and Hero, "Geodesic entropic graphs for dimension and entropy estimation in manifold learning", 2004;
arXiv:2510.23484, section 4.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.kernels.mst import mst_length
from jaxlab.selfsupervised.checks import require_embeddings, require_number


class DimensionEstimate(NamedTuple):
    """A line through (log n, log E)."""

    dimension: Float[Array, ""]
    """1 / (1 - slope); infinity for slopes of 1 or more."""
    slope: Float[Array, ""]
    log_lengths: Float[Array, " sizes"]
    """Mean of log E for each n."""


def mst_dimension(
    points: Float[Array, "n d"],
    key: Array,
    *,
    sizes: Sequence[int] = (256, 512, 1024, 2048),
    subsets: int = 4,
    algorithm: str | None = None,
) -> DimensionEstimate:
    """Intrinsic dimension from the growth of the tree with the number of points, by least squares.

    Biased downwards, the more the higher the dimension: uniform cubes of dimension 2, 4, 8 give about 2, 3.8, 7.1.

    Args:
      points: distinct points of the set.
      key: for random subsets.
      sizes: at least two different numbers of points, 2 to n each.
      subsets: of each size, >= 1, drawn without replacement within a subset.
      algorithm: of the tree, see `jaxlab.kernels.mst.mst_of_points`.

    Raises:
      InputError: sizes or subsets out of range, or not a matrix.
    """
    require_embeddings("points", points)
    n = len(points)
    sizes = tuple(sizes)
    if len(set(sizes)) < 2 or min(sizes) < 2 or max(sizes) > n:
        raise InputError(f"sizes is {sizes}; it must hold at least two different numbers from 2 to {n}")
    if subsets < 1:
        raise InputError(f"subsets is {subsets}; it must be at least 1")
    keys = jax.random.split(key, subsets)

    def mean_log_length(size: int) -> Array:
        def one(key: Array) -> Array:
            chosen = jax.random.permutation(key, n)[:size]
            return jnp.log(mst_length(points[chosen], algorithm=algorithm))

        return jnp.mean(jax.lax.map(one, keys))

    log_lengths = jnp.stack([mean_log_length(size) for size in sizes])
    log_sizes = jnp.log(jnp.asarray(sizes, log_lengths.dtype))
    centred = log_sizes - jnp.mean(log_sizes)
    slope = jnp.sum(centred * log_lengths) / jnp.sum(jnp.square(centred))
    dimension = jnp.where(slope < 1, 1 / jnp.where(slope < 1, 1 - slope, 1), jnp.inf)
    return DimensionEstimate(dimension, slope, log_lengths)


def mst_constant(
    key: Array, *, n: int, dimension: int, clouds: int = 8, algorithm: str | None = None
) -> Float[Array, ""]:
    """C_d as it appears at n points: mean of E / n^((d - 1) / d) over uniform clouds in the unit cube.

    About 0.65 for d = 2 and n = 1024; the limit is near 0.633. Larger than C_d by the cube's boundary.

    Args:
      key: for the clouds.
      n: >= 2.
      dimension: d >= 1.
      clouds: >= 1.
      algorithm: see `mst_dimension`.

    Raises:
      InputError: a number out of range.
    """
    for name, value, least in (("n", n, 2), ("dimension", dimension, 1), ("clouds", clouds, 1)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")

    def one(key: Array) -> Array:
        return mst_length(jax.random.uniform(key, (n, dimension)), algorithm=algorithm)

    return jnp.mean(jax.lax.map(one, jax.random.split(key, clouds))) / n ** ((dimension - 1) / dimension)


def renyi_entropy_mst(
    points: Float[Array, "n d"],
    *,
    dimension: float | None = None,
    constant: float | Float[Array, ""] = 1.0,
    algorithm: str | None = None,
) -> Float[Array, ""]:
    """Renyi entropy of order (d - 1) / d in nats: d (log(E / n^((d - 1) / d)) - log constant).

    Differentiable in the points; the uniform density on a set of volume V has entropy log V.

    Args:
      points: n >= 2 points drawn from the density.
      dimension: intrinsic, > 1; that of the space by default.
      constant: C_d, for instance `mst_constant` at the same n, which cancels much of the bias. With the default, the
        entropy lacks the same term for all clouds of this dimension, so that differences are right.
      algorithm: see `mst_dimension`.

    Raises:
      InputError: the dimension is not above 1, or not a matrix.
    """
    require_embeddings("points", points)
    dimension = points.shape[1] if dimension is None else dimension
    require_number("dimension", dimension, above=1)
    per_point = mst_length(points, algorithm=algorithm) / len(points) ** ((dimension - 1) / dimension)
    return dimension * (jnp.log(per_point) - jnp.log(constant))
