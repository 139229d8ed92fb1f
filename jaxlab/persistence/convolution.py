"""Convolution of signed measures with Gaussian kernels: images of a fixed size, features for any classifier.

Phi(mu)(z) = sum_j w_j K(z - x_j). Reference: arXiv:2306.03801, section 3 (HSM-C and ESM-C).
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_shape
from jaxlab.persistence.grids import Grid, require_grid
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, atoms_of

Normalization = Literal["sum", "multipers-2.3", "kde"]
_NORMALIZATIONS = ("sum", "multipers-2.3", "kde")


def convolve(
    measure: DenseMeasure | SparseMeasure,
    out_grid: Grid,
    *,
    bandwidth: float | Float[Array, ""] | Float[Array, " p"],
    normalization: Normalization = "sum",
) -> Float[Array, "*out"]:
    """sum_j w_j exp(-|z - x_j|^2 / (2 bandwidth^2)) at every point z of a grid; differentiable in lines and bandwidth.

    On a grid the kernel is a product, so this is one small matrix product a parameter.

    Args:
      measure: dense, or a list of atoms.
      out_grid: where the image is sampled.
      bandwidth: standard deviation, > 0, in units of the filtration; one number, or one a parameter.
      normalization: "sum" is the paper's, and stable. The others divide by the number of atoms, which jumps when two
        atoms cancel; they are there for comparison: "multipers-2.3" also by b sqrt(2 pi), "kde" by (b sqrt(2 pi))^p.
        They carry no gradient in that number.

    Raises:
      InputError: the grid has another number of parameters, a bandwidth that is not positive, or an unknown
        normalization.
    """
    parameters = _parameters(measure)
    require_grid(out_grid, parameters)
    bandwidths = _bandwidths(bandwidth, parameters)
    if normalization not in _NORMALIZATIONS:
        raise InputError(
            f"normalization is {normalization!r}; it must be one of {', '.join(_NORMALIZATIONS)}"
        )
    if isinstance(measure, DenseMeasure):
        image = measure.weights.astype(out_grid.coords[0].dtype)
        for lines, samples, width in zip(measure.grid.coords, out_grid.coords, bandwidths, strict=True):
            # Contracts the first axis and appends the new one: after all parameters they are in order again.
            image = jnp.tensordot(image, _gaussian(samples, lines, width).T, axes=(0, 0), precision="highest")
    else:
        image = jnp.where(measure.mask, measure.weights, 0).astype(out_grid.coords[0].dtype)
        factors = [
            _gaussian(samples, measure.points[:, i], width)
            for i, (samples, width) in enumerate(zip(out_grid.coords, bandwidths, strict=True))
        ]
        for factor in reversed(factors[1:]):
            image = jnp.expand_dims(image, 0) * factor.reshape(-1, *(1,) * (image.ndim - 1), image.shape[-1])
        image = jnp.tensordot(factors[0], image, axes=(1, image.ndim - 1), precision="highest")
    return image / _divisor(measure, bandwidths, normalization)


def convolve_at(
    measure: DenseMeasure | SparseMeasure,
    points: Float[Array, "samples p"],
    precision: Float[Array, "p p"],
) -> Float[Array, " samples"]:
    """sum_j w_j exp(-(z - x_j)^T P (z - x_j) / 2) at any points z, for any symmetric P: to be learned as R^T R.

    Args:
      measure: dense (every grid point is visited), or a list of atoms.
      points: where to sample.
      precision: the inverse covariance P; identity / bandwidth^2 is `convolve`.

    Raises:
      InputError: a wrong shape.
    """
    parameters = _parameters(measure)
    require_shape("points", points, (None, parameters))
    require_shape("precision", precision, (parameters, parameters))
    atoms = atoms_of(measure)
    weights = jnp.where(atoms.mask, atoms.weights, 0).astype(points.dtype)
    # |z - x|^2_P is expanded, so that the largest array is [samples, atoms].
    centre = jax.lax.stop_gradient(points.mean(0))
    z, x = points - centre, atoms.points - centre
    cross = jnp.matmul(jnp.matmul(z, precision, precision="highest"), x.T, precision="highest")
    squares = [jnp.einsum("ip,pq,iq->i", a, precision, a, precision="highest") for a in (z, x)]
    exponent = cross - 0.5 * (squares[0][:, None] + squares[1])
    return jnp.matmul(jnp.exp(exponent), weights, precision="highest")


def _parameters(measure: DenseMeasure | SparseMeasure) -> int:
    return len(measure.grid.coords) if isinstance(measure, DenseMeasure) else measure.points.shape[-1]


def _bandwidths(bandwidth: object, parameters: int) -> list[Array]:
    given = jnp.asarray(bandwidth)
    if given.shape not in ((), (parameters,)):
        raise InputError(
            f"bandwidth has shape {given.shape}, but must be one number or one for each of {parameters}"
        )
    if is_concrete(given) and not bool(jnp.all(given > 0)):
        raise InputError(f"bandwidth is {given.tolist()}, but must be > 0")
    return list(jnp.broadcast_to(given, (parameters,)))


def _gaussian(samples: Array, lines: Array, bandwidth: Array) -> Array:
    """[samples, lines]; 0 at lines that are +inf, which are padding."""
    there = jnp.isfinite(lines)
    distance = (samples[:, None] - jnp.where(there, lines, 0)) / bandwidth.astype(samples.dtype)
    return jnp.where(there, jnp.exp(-0.5 * distance**2), 0)


def _divisor(measure: DenseMeasure | SparseMeasure, bandwidths: list[Array], normalization: str) -> Array:
    if normalization == "sum":
        return jnp.ones(())
    weights = (
        measure.weights if isinstance(measure, DenseMeasure) else jnp.where(measure.mask, measure.weights, 0)
    )
    atoms = jnp.maximum(jnp.count_nonzero(weights), 1)
    power = 1 if normalization == "multipers-2.3" else len(bandwidths)
    widths = jnp.stack(bandwidths[:power] if power == 1 else bandwidths)
    return atoms * jnp.prod(widths * math.sqrt(2 * math.pi))
