"""Moving points by the gradient of a topological loss, on Delaunay complexes that follow them.

The triangulation is made anew on the host, padded to one size, so that one program does for all steps. Its flag
filtration by edge length and a function is planar: no 2-cycles, so degree 1 needs no matrix. Reference:
arXiv:2406.07224, section 5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import require_shape
from jaxlab.persistence.complexes import Complex, pad_complex
from jaxlab.persistence.delaunay import delaunay_complex
from jaxlab.persistence.filtrations import Filtration, raise_to_faces
from jaxlab.persistence.gradients import integrate_phi
from jaxlab.persistence.grids import make_grid
from jaxlab.persistence.hilbert import signed_measure
from jaxlab.persistence.measures import DenseMeasure

Loss = Callable[[Float[Array, "n 2"], Complex], tuple[Float[Array, ""], Any]]
"""Of points and their triangulation: the loss, and figures to show beside it."""


def padded_delaunay(points: Float[Array, "n 2"]) -> Complex:
    """The Delaunay triangulation of points in the plane, padded to the 3 n edges and 2 n triangles it can have.

    Raises:
      InputError: points that have no triangulation, see `delaunay_complex`, or that are not in the plane.
    """
    require_shape("points", points, (None, 2))
    n = len(points)
    return pad_complex(delaunay_complex(points), (n, 3 * n, 2 * n))


def delaunay_filtration(
    points: Float[Array, "n d"], complex: Complex, values: Float[Array, "n q"]
) -> Filtration:
    """Edges enter with their length, vertices at 0, higher cells with their last edge; and all with their last vertex.

    Args:
      points: may be elsewhere than where the complex was made: it need not be their triangulation any more.
      complex: simplicial, on these points.
      values: further functions on the points.

    Raises:
      InputError: a wrong shape.
    """
    n = complex.sizes[0]
    require_shape("points", points, (n, None))
    require_shape("values", values, (n, None))
    i, j = jnp.maximum(complex.faces[1], 0).T
    squares = jnp.sum(jnp.square(points[i] - points[j]), -1)
    apart = squares > 0
    lengths = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
    lowest = [jnp.full((size, 1 + values.shape[1]), -jnp.inf, points.dtype) for size in complex.sizes[1:]]
    grades = [jnp.concatenate([jnp.zeros((n, 1), points.dtype), values], 1), *lowest]
    grades[1] = grades[1].at[:, 0].set(lengths)
    return raise_to_faces(complex, grades)


def delaunay_measure(
    points: Float[Array, "n d"], complex: Complex, values: Float[Array, " n"], *, degree: int
) -> DenseMeasure:
    """Hilbert signed measure of `delaunay_filtration` on its exact grid: lines are 0, edge lengths, and values."""
    filtration = delaunay_filtration(points, complex, values[:, None])
    lengths = jnp.where(complex.masks[1], filtration.grades[1][:, 0], jnp.inf)
    grid = make_grid([jnp.append(lengths, 0.0), values])
    return signed_measure(filtration, grid, degree=degree)


def modes_loss(
    centres: Float[np.ndarray, "modes 2"], *, width: float = 0.17, height: float = 0.65, degree: int = 1
) -> Loss:
    """sum w r (height - d) over atoms (r, d): rings around the modes of a fixed density, d = 1 - sum of Gaussians.

    Experiment "cycles on modes" of the authors' library.
    """

    def loss(points: Array, complex: Complex) -> tuple[Array, Any]:
        squares = jnp.sum(jnp.square(points[:, None] - jnp.asarray(centres, points.dtype)), -1)
        values = 1 - jnp.sum(jnp.exp(-squares / width**2), -1)
        measure = delaunay_measure(points, complex, values, degree=degree)
        value = integrate_phi(measure, lambda x: x[:, 0] * (height - x[:, 1]))
        return value, {"atoms": jnp.count_nonzero(measure.weights)}

    return loss


def density_loss(*, bandwidth: float = 0.2, degree: int = 1) -> Loss:
    """(sum of |x|_1 over atoms of weight > 0, less that over those of weight < 0) / their number.

    By edge length and -log density of the moving points, so that no box is needed to hold them. Experiment
    "density-preserving circle" of the authors' library. The number of atoms carries no gradient.
    """

    def loss(points: Array, complex: Complex) -> tuple[Array, Any]:
        squares = jnp.sum(jnp.square(points[:, None] - points), -1)
        values = -jnp.log(jnp.mean(jnp.exp(-squares / (2 * bandwidth**2)), -1))
        measure = delaunay_measure(points, complex, values, degree=degree)
        atoms = jnp.count_nonzero(measure.weights)
        value = integrate_phi(measure, lambda x: jnp.sum(jnp.abs(x), -1))
        return value / jnp.maximum(atoms, 1), {"atoms": atoms}

    return loss


def persistence_loss(*, degree: int = 1) -> Loss:
    """The same by edge length alone: one parameter, which lets points escape."""

    def loss(points: Array, complex: Complex) -> tuple[Array, Any]:
        measure = delaunay_measure(points, complex, jnp.zeros(len(points), points.dtype), degree=degree)
        atoms = jnp.count_nonzero(measure.weights)
        value = integrate_phi(measure, lambda x: x[:, 0])
        return value / jnp.maximum(atoms, 1), {"atoms": atoms}

    return loss


class PointState(NamedTuple):
    """Of an optimisation: where the points are, the optimiser's state, and the steps done."""

    points: Float[Array, "n 2"]
    optimizer: Any
    step: int


def start(points: Float[Array, "n 2"], optimizer: optax.GradientTransformation) -> PointState:
    """The state before the first step."""
    return PointState(points, optimizer.init(points), 0)


def point_step(
    loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[PointState], tuple[PointState, dict[str, float]]]:
    """A step: triangulate, gradient, update. It gives the state after it, and the loss and figures before it.

    Raises:
      InputError: the loss is not finite.
    """

    @jax.jit
    def moved(points: Array, state: Any, complex: Complex) -> tuple[Array, Any, Array, Any]:
        (value, figures), gradient = jax.value_and_grad(loss, has_aux=True)(points, complex)
        updates, state = optimizer.update(gradient, state, points)
        return optax.apply_updates(points, updates), state, value, figures

    def step(state: PointState) -> tuple[PointState, dict[str, float]]:
        complex = padded_delaunay(state.points)
        points, inner, value, figures = moved(state.points, state.optimizer, complex)
        if not np.isfinite(float(value)):
            raise InputError(f"the loss is {float(value)} at step {state.step}; lower the learning rate")
        shown = {name: float(one) for name, one in figures.items()}
        return PointState(points, inner, state.step + 1), {"loss": float(value), **shown}

    return step
