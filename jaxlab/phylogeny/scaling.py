"""Multidimensional scaling: points in the plane whose distances resemble those of a matrix.

References: Torgerson, "Multidimensional scaling", 1952; de Leeuw, "Applications of convex analysis to multidimensional
scaling", 1977 (SMACOF).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.phylogeny.checks import require_square


class ClassicalScaling(NamedTuple):
    """Principal coordinates."""

    points: Float[Array, "taxa dimensions"]
    shares: Float[Array, " dimensions"]
    """Each eigenvalue divided by the sum of the absolute values of all."""


class MetricScaling(NamedTuple):
    """The end of SMACOF's steps."""

    points: Float[Array, "taxa dimensions"]
    stress: Float[Array, ""]
    """Sum over pairs of (distance of points - distance)^2."""


def classical_scaling(distances: Float[Array, "taxa taxa"], *, dimensions: int = 2) -> ClassicalScaling:
    """Points from the largest eigenvalues of -1/2 J D^2 J; exact if the distances are those of such points.

    Axes point so that their entry of the greatest size is positive. Negative eigenvalues count as 0.

    Args:
      distances: symmetric.
      dimensions: 1 to the number of taxa.

    Raises:
      InputError: the matrix or `dimensions` does not fit.
    """
    require_square("distances", distances)
    taxa = distances.shape[0]
    if not 1 <= dimensions <= taxa:
        raise InputError(f"dimensions is {dimensions}; it must be in 1..{taxa}")
    squares = jnp.asarray(distances) ** 2
    centred = squares - squares.mean(0) - squares.mean(1, keepdims=True) + squares.mean()
    values, vectors = jnp.linalg.eigh(-centred / 2)
    kept, axes = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    largest = jnp.take_along_axis(axes, jnp.argmax(jnp.abs(axes), axis=0)[None], axis=0)
    points = axes * jnp.where(largest < 0, -1, 1) * jnp.sqrt(jnp.maximum(kept, 0))
    return ClassicalScaling(points, kept / jnp.abs(values).sum())


def smacof(
    distances: Float[Array, "taxa taxa"], start: Float[Array, "taxa dimensions"], *, steps: int = 300
) -> MetricScaling:
    """Points of lower stress, by Guttman transforms; no step raises it.

    Args:
      distances: symmetric.
      start: such as the points of `classical_scaling`.
      steps: at least 0.

    Raises:
      InputError: the matrix, the start or `steps` does not fit.
    """
    require_square("distances", distances)
    taxa = distances.shape[0]
    if jnp.ndim(start) != 2 or start.shape[0] != taxa:
        raise InputError(f"start has shape {jnp.shape(start)}; it must be ({taxa}, dimensions)")
    if steps < 0:
        raise InputError(f"steps is {steps}; it must be at least 0")

    def guttman(_: int, points: Float[Array, "taxa dimensions"]) -> Float[Array, "taxa dimensions"]:
        apart = _apart(points)
        ratios = jnp.where(apart > 0, distances / jnp.where(apart > 0, apart, 1), 0)
        return (ratios.sum(1, keepdims=True) * points - ratios @ points) / taxa

    points = jax.lax.fori_loop(0, steps, guttman, jnp.asarray(start))
    return MetricScaling(points, jnp.triu((_apart(points) - distances) ** 2, 1).sum())


def _apart(points: Float[Array, "taxa dimensions"]) -> Float[Array, "taxa taxa"]:
    return jnp.linalg.norm(points[:, None] - points, axis=-1)
