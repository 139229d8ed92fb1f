"""Functionals of signed measures, and a check of topological gradients that knows about ties.

Weights are integers, constant for autodiff; points are gathered from grid lines, and so are gradients: L = sum of
w phi(x) has the slope w grad phi(x) at the value that each line is. It is right on every stratum where no two values
change their order, and one of Clarke's subgradients where two are equal. Reference: arXiv:2406.07224, section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, atoms_of


def integrate_phi(
    measure: DenseMeasure | SparseMeasure, phi: Callable[[Float[Array, "atoms p"]], Float[Array, " atoms"]]
) -> Float[Array, ""]:
    """sum_j w_j phi(x_j); differentiable in the points and in what phi depends on.

    Args:
      measure: dense, or a list of atoms.
      phi: of points [atoms, p], finite everywhere (points of weight 0 are visited too).

    Raises:
      InputError: phi does not give one number an atom.
    """
    atoms = atoms_of(measure)
    values = phi(atoms.points)
    if values.shape != atoms.weights.shape:
        raise InputError(
            f"phi gives shape {values.shape}; it must be {atoms.weights.shape}, one number an atom"
        )
    weights = jax.lax.stop_gradient(jnp.where(atoms.mask, atoms.weights, 0))
    return jnp.sum(weights.astype(values.dtype) * values)


class GradientCheck(NamedTuple):
    """Slopes of a loss along random directions: by autodiff, and by differences ahead, behind and central."""

    autodiff: Float[np.ndarray, " directions"]
    ahead: Float[np.ndarray, " directions"]
    behind: Float[np.ndarray, " directions"]
    central: Float[np.ndarray, " directions"]
    tie: Bool[np.ndarray, " directions"]
    """Where the slopes ahead and behind differ: two values are equal there, or about to be, and there is a kink."""
    error: Float[np.ndarray, " directions"]
    """Of autodiff over the largest slope; at a kink only what lies outside of the two one-sided slopes."""

    def ok(self, tolerance: float = 1e-3) -> bool:
        """Whether no error is above the tolerance."""
        return bool((self.error <= tolerance).all())


def check_gradient(
    loss: Callable[[Float[Array, "..."]], Float[Array, ""]],
    x: Float[Array, "..."],
    key: Array,
    *,
    directions: int = 8,
    step: float | None = None,
) -> GradientCheck:
    """Compares the gradient of a loss with finite differences along random unit directions.

    Args:
      loss: a number, of one array.
      x: where.
      key: PRNG key of the directions.
      directions: how many, at least 1.
      step: of the differences, > 0; the cube root of the dtype's rounding, times the size of x, if None. Double
        precision (`with jax.enable_x64(True)`) makes the check far sharper.

    Raises:
      InputError: x is not a floating point array, the loss is not a number, or an option is out of range.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x has dtype {x.dtype}, but must be floating point")
    if directions < 1 or (step is not None and not step > 0):
        raise InputError(f"directions is {directions} and step {step}; they must be at least 1, and > 0")
    value, gradient = jax.value_and_grad(loss)(x)
    if not np.isfinite(float(value)):
        raise InputError(f"the loss is {value} at x; it must be finite")
    rounding = float(jnp.finfo(x.dtype).eps)
    size = float(jnp.sqrt(jnp.mean(jnp.square(x)))) or 1.0
    h = step or rounding ** (1 / 3) * size * x.size**0.5
    found: list[tuple[float, float, float, float]] = []
    for own in jax.random.split(key, directions):
        direction = jax.random.normal(own, x.shape, x.dtype)
        direction /= jnp.linalg.norm(direction.reshape(-1))
        before, after = (float(loss(x + sign * h * direction)) for sign in (-1, 1))
        slope = float(jnp.vdot(gradient, direction))
        found.append(
            (slope, (after - float(value)) / h, (float(value) - before) / h, (after - before) / (2 * h))
        )
    autodiff, ahead, behind, central = np.array(found).T
    scale = max(np.abs(found).max(), rounding)
    # Curvature makes the two sides differ by a multiple of h; a kink by far more.
    noise = 8 * rounding * max(abs(float(value)), 1.0) / h
    tie = np.abs(ahead - behind) > max(0.02 * scale, noise)
    low, high = np.minimum(ahead, behind), np.maximum(ahead, behind)
    outside = np.maximum(np.maximum(low - autodiff, autodiff - high), 0)
    error = np.where(tie, outside, np.abs(autodiff - central)) / scale
    return GradientCheck(autodiff, ahead, behind, central, tie, error)
