"""Images as filtered cubical complexes, by any number of channels."""

from typing import Literal

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
