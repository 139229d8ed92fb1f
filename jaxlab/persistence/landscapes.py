"""Multiparameter persistence landscapes.

lambda_k(x) = sup{e >= 0 : rank(x - e v -> x + e v) >= k}: on the line through x the module has an ordinary barcode, and
lambda_k is the k-th largest of min(-birth, death)+, x being at 0. Reference: Vipond, "Multiparameter persistence
landscapes", 2020; arXiv:2406.07224 for the gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.barcodes import Backend, barcode, persistence_pairs
from jaxlab.persistence.checks import require_no_nan, require_shape
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.losses import landscape


def landscape_mp(
    filtration: Filtration,
    points: Float[Array, "samples p"],
    *,
    degree: int,
    count: int = 5,
    direction: Sequence[float] | None = None,
    backend: Backend = "auto",
) -> Float[Array, "count samples"]:
    """lambda_1 to lambda_count at every point; differentiable in the grades and in the points.

    The gradient goes through the cells that open and close the class, to the parameter that is last on the line (the
    first of equals).

    Args:
      filtration: by p >= 1 parameters.
      points: where to look.
      degree: of homology.
      count: landscapes, at least 1.
      direction: of the lines, p positive numbers; the diagonal if None.
      backend: see `persistence_pairs`.

    Raises:
      InputError: a wrong shape, NaN, a direction that is not positive, or as for `persistence_pairs`.
    """
    require_filtration(filtration)
    p = filtration.parameters
    require_shape("points", points, (None, p))
    require_no_nan("points", points)
    steps = np.ones(p) if direction is None else np.asarray(direction, float)
    if steps.shape != (p,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise InputError(f"direction is {direction}; it must be {p} positive numbers")

    def at(point: Array) -> Array:
        pushed = filtration._replace(
            grades=tuple(_pushed(grades, point, steps) for grades in filtration.grades)
        )
        pairs = persistence_pairs(pushed, degree=degree, backend=backend)
        return landscape(barcode(pushed, pairs, degree=degree), jnp.zeros(1, point.dtype), count=count)[:, 0]

    return jax.vmap(at, out_axes=1)(points)


def _pushed(grades: Array, point: Array, steps: np.ndarray) -> Array:
    """When the line through the point enters each cell's upper set, [cells, 1]."""
    times = (grades - point) / jnp.asarray(steps, grades.dtype)
    latest = times[:, 0]
    for i in range(1, len(steps)):
        latest = jnp.where(times[:, i] > latest, times[:, i], latest)
    return latest[:, None]
