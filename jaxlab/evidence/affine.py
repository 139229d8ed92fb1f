"""Affine augmentations whose ranges are learned from the evidence: invariance by averaging outputs, not losses.

f(x) = mean over samples of f(A(u) x), A(u) = exp(sum_i u_i eta_i G_i), u uniform in [-1, 1]^6. The evidence of that f,
its averaged Jacobians in it, has a gradient in eta. Reference: LILA, arXiv:2202.10638; generators as
in Augerino, arXiv:2010.11882.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_count

_SQUARINGS = 6
_TERMS = 9  # rounding in float64 at norms of about 6
GENERATORS = np.array(
    [
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
    ],
    np.float32,
)
"""Shifts in x and y (in half widths), rotation (radians), scales of x and y, shear; of coordinates (x, y, 1)."""


def affine_views(
    key: jax.Array,
    images: Float[Array, "n height width channels"],
    eta: Float[Array, "6"],
    *,
    samples: int,
    flip: bool = False,
) -> Float[Array, "n samples height width channels"]:
    """Random affine views of every image, each with a draw of its own; differentiable in eta.

    Args:
      key: PRNG key.
      images: floating point.
      eta: ranges, in the order of `GENERATORS`; the rotation's is clipped to [-pi, pi]. 0 is no augmentation.
      samples: views an image, >= 1.
      flip: mirror every other view, at random.

    Raises:
      InputError: a shape or a count is wrong.
    """
    if jnp.ndim(images) != 4 or jnp.shape(eta) != (6,):
        raise InputError(
            f"images has shape {jnp.shape(images)} and eta {jnp.shape(eta)}; they must be "
            "[n, height, width, channels] and [6]"
        )
    require_count("samples", samples, at_least=1)
    draw_key, flip_key = jax.random.split(key)
    eta = eta.at[2].set(jnp.clip(eta[2], -math.pi, math.pi))
    draws = jax.random.uniform(draw_key, (len(images), samples, 6), eta.dtype, -1, 1)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), samples)) & flip
    matrices = affine_matrices(draws * eta)
    x_axis = jnp.where(mirrored[..., None], -1, 1) * matrices[..., 0]
    matrices = jnp.concatenate([x_axis[..., None], matrices[..., 1:]], axis=-1)
    each_view = jax.vmap(resample, in_axes=(None, 0))
    return jax.vmap(each_view)(images, matrices)


def affine_matrices(coefficients: Float[Array, "*batch 6"]) -> Float[Array, "*batch 3 3"]:
    """exp(sum_i coefficients_i G_i), by a Taylor series and squarings; for coefficients up to about 6.

    For matrices of 3 x 3 that is far cheaper, to compile as well, than `jax.scipy.linalg.expm` and its linear solves.
    """
    algebra = jnp.einsum("...i,ijk->...jk", coefficients, GENERATORS.astype(coefficients.dtype))
    small = algebra / 2**_SQUARINGS
    term = total = jnp.broadcast_to(jnp.eye(3, dtype=algebra.dtype), algebra.shape)
    for power in range(1, _TERMS + 1):
        term = jnp.matmul(term, small, precision="highest") / power
        total = total + term
    for _ in range(_SQUARINGS):
        total = jnp.matmul(total, total, precision="highest")
    return total


def resample(
    image: Float[Array, "height width channels"], matrix: Float[Array, "3 3"]
) -> Float[Array, "height width channels"]:
    """The image read at A (x, y, 1) for the pixel (x, y): bilinear, zero outside, corners at -1 and 1.

    Args:
      image: floating point.
      matrix: A, from the view's coordinates to the image's.
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(
        jnp.linspace(-1, 1, height, dtype=matrix.dtype),
        jnp.linspace(-1, 1, width, dtype=matrix.dtype),
        indexing="ij",
    )
    places = jnp.einsum("ij,jhw->ihw", matrix, jnp.stack([x, y, jnp.ones_like(x)]), precision="highest")
    rows, columns = (places[1] + 1) / 2 * (height - 1), (places[0] + 1) / 2 * (width - 1)

    def one(channel: Array) -> Array:
        return map_coordinates(channel, [rows, columns], order=1)

    return jax.vmap(one, in_axes=-1, out_axes=-1)(image)


def averaged(apply: Apply) -> Apply:
    """The model of views [n, samples, ...]: outputs are means over an example's views.

    Args:
      apply: the model of single views.
    """

    def over_views(params: Any, views: Float[Array, "n samples *view"]) -> Float[Array, "n C"]:
        n, samples = views.shape[:2]
        outputs = apply(params, views.reshape(n * samples, *views.shape[2:]))
        return outputs.reshape(n, samples, -1).mean(1)

    return over_views
