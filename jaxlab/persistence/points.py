"""Functions on point clouds: distances, codensity, distance to the empirical measure.

All are differentiable, with gradient 0 (never NaN) between equal points.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_distances, require_no_nan, require_shape


def pairwise_distance(points: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Euclidean distances, exactly symmetric, from differences, so that small ones are not cancelled away; O(n^2 d).

    Raises:
      InputError: no points, or NaN or infinity among them.
    """
    require_shape("points", points, (None, None))
    if points.shape[0] == 0:
        raise InputError(f"points has shape {points.shape}: a cloud must have at least one point")
    require_no_nan("points", points)
    return _root(jnp.sum((points[:, None] - points[None]) ** 2, axis=-1))


def codensity(distances: Float[Array, "n n"], *, bandwidth: float | Float[Array, ""]) -> Float[Array, " n"]:
    """-log of the mean over all points of exp(-d^2 / (2 bandwidth^2)): 0 in a single spot, large where it is empty.

    Args:
      distances: between points.
      bandwidth: > 0 in units of the distances; < 0 for |bandwidth| times the largest distance, which is then constant
        for autodiff. For a whole data set give the absolute value found on its training part.

    Raises:
      InputError: no points, NaN, or a bandwidth of zero.
    """
    require_distances(distances)
    if is_concrete(bandwidth) and not (math.isfinite(bandwidth) and bandwidth):
        raise InputError(f"bandwidth is {bandwidth}, but must be a finite number, not zero")
    bandwidth = jnp.asarray(bandwidth, distances.dtype)
    relative = -bandwidth * jax.lax.stop_gradient(jnp.max(distances))
    width = jnp.where(bandwidth > 0, bandwidth, relative)
    # One point, or all points equal, and a relative bandwidth: every distance is 0 and any width is right.
    width = jnp.where(width > 0, width, 1)
    log_mean = jax.scipy.special.logsumexp(-0.5 * (distances / width) ** 2, axis=1)
    return jnp.log(jnp.asarray(distances.shape[0], distances.dtype)) - log_mean


def distance_to_measure(distances: Float[Array, "n n"], *, mass: float) -> Float[Array, " n"]:
    """Root mean square distance to the nearest points that make up a share `mass` of all, the point itself included.

    Args:
      distances: between points.
      mass: in (0, 1]; ceil(mass n) points are taken.

    Raises:
      InputError: no points, NaN, or a mass out of range.

    Reference: Chazal, Cohen-Steiner, Merigot, "Geometric inference for probability measures", 2011.
    """
    require_distances(distances)
    if not 0 < mass <= 1:
        raise InputError(f"mass is {mass}, but must lie in (0, 1]")
    # 1e-9: 0.1 * 30 is a little more than 3 in floating point.
    nearest = max(1, math.ceil(mass * distances.shape[0] - 1e-9))
    closest = jnp.sort(distances, axis=1)[:, :nearest]
    return _root(jnp.mean(closest**2, axis=1))


def _root(squares: Array) -> Array:
    """Square root with gradient 0 at 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
