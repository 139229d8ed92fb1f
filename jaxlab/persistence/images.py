"""Images as filtered cubical complexes, by any number of channels."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.complexes import cubical_complex
from jaxlab.persistence.filtrations import Filtration, lower_star, upper_star


def image_filtration(image: Float[Array, "*shape p"], *, construction: Literal["V", "T"] = "V") -> Filtration:
    """The cubical filtration of an image with p channels, in any number of dimensions.

    Args:
      image: pixels, the channels last.
      construction: "V": pixels are vertices, every cell enters with its last vertex (multipers' `Cubical`); "T": pixels
        are top cells, every cell enters with the first pixel that it touches (gudhi's `top_dimensional_cells`). In "V"
        pixels are connected along edges, in "T" also across corners.

    Raises:
      InputError: no pixels or channels, NaN or -inf, or an unknown construction.
    """
    if image.ndim < 2 or min(image.shape) < 1:
        raise InputError(
            f"image has shape {image.shape}, but must have pixels along at least one axis, and channels"
        )
    if construction not in ("V", "T"):
        raise InputError(f"construction is {construction!r}; it must be 'V' or 'T'")
    pixels = image.reshape(-1, image.shape[-1])
    if construction == "V":
        return lower_star(cubical_complex(image.shape[:-1]), pixels)
    return upper_star(cubical_complex([size + 1 for size in image.shape[:-1]]), pixels)


def edge_distance(
    image: Float[Array, "height width"], *, threshold: float = 0.25
) -> Float[Array, "height width"]:
    """Distance of each pixel to the nearest edge of the picture, as a share of the largest one.

    An edge is a pixel whose gradient (central differences) is at least `threshold` long. Together with the intensity
    it gives a filtration by two parameters. In an image without edges all pixels are far, 1.

    Args:
      image: intensities, at least 2 x 2.
      threshold: > 0, in units of the intensity.

    Raises:
      InputError: an image that is too small or has other axes, or threshold <= 0.
    """
    if image.ndim != 2 or min(image.shape) < 2:
        raise InputError(f"image has shape {image.shape}; it must be [height, width], both at least 2")
    if not threshold > 0:
        raise InputError(f"threshold is {threshold}; it must be > 0")
    down, right = jnp.gradient(image)
    edges = jnp.hypot(down, right) >= threshold
    i, j = (jnp.arange(size, dtype=image.dtype) for size in image.shape)
    # The square of a distance is a sum over both axes: the nearest edge of each row, then the best row.
    rows = jnp.min(jnp.where(edges[:, None], (j[:, None] - j) ** 2, jnp.inf), axis=-1)
    square = jnp.min(rows + ((i[:, None] - i) ** 2)[..., None], axis=1)
    largest = jnp.sqrt(jnp.max(square))
    share = jnp.sqrt(square) / jnp.where(largest > 0, largest, 1)
    return jnp.where(jnp.any(edges), share, 1)
