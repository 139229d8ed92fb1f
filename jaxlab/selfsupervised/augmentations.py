"""Random views of images as pure functions of a key and one image, [height, width, channels] with values 0 to 1.

What each does and how its strength is drawn follow torchvision's transforms of the same names, as solo-learn uses them;
colour jitter keeps one order (brightness, contrast, saturation, hue), where torchvision draws the order too.
References: arXiv:2002.05709, appendix A; arXiv:2006.07733, appendix B; arXiv:2510.23484, table 6.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxlab.errors import InputError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MOST_SIGMAS = 2.0


@dataclasses.dataclass(frozen=True)
class Views:
    """How a view is made; the defaults are those for CIFAR.

    Saturation, hue and greyscale leave images of one channel as they are.

    Raises:
      InputError: a probability outside 0 to 1, or a range that is not one.

    Reference: arXiv:2510.23484, section 5; solo-learn's asymmetric CIFAR settings, first view.
    """

    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image that a crop takes, above 0 to 1."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a crop."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """A factor is drawn from 1 - this to 1 + this."""
    contrast: float = 0.4
    """As for brightness."""
    saturation: float = 0.2
    """As for brightness."""
    hue: float = 0.1
    """Turns of the colour circle, at most 0.5, either way."""
    greyscale: float = 0.2
    """Probability of dropping colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Its smallest and largest deviation in pixels."""
    solarise: float = 0.1
    """Probability of inverting values above 1/2."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "greyscale", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; a probability must lie between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue is {self.hue}; it must lie between 0 and 0.5")
        for name, most in (("crop_area", 1.0), ("crop_aspect", math.inf), ("blur_sigma", _MOST_SIGMAS)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(f"{name} is {(low, high)}; it must be 0 < smallest <= largest <= {most}")


def random_view(
    key: Key[Array, ""], image: Float[Array, "height width channels"], views: Views
) -> Float[Array, "height width channels"]:
    """One view: crop, jitter, greyscale, blur, solarise, flip; of the image's size, values 0 to 1.

    Under `vmap` give a key an image.

    Args:
      key: for all draws.
      image: values 0 to 1.
      views: static.
    """
    keys = iter(jax.random.split(key, 7))
    image = random_resized_crop(next(keys), image, area=views.crop_area, aspect=views.crop_aspect)
    image = _sometimes(next(keys), views.jitter, image, lambda key, x: colour_jitter(key, x, views))
    image = _sometimes(next(keys), views.greyscale, image, lambda key, x: adjust_saturation(x, 0.0))
    image = _sometimes(next(keys), views.blur, image, lambda key, x: _random_blur(key, x, views.blur_sigma))
    image = _sometimes(next(keys), views.solarise, image, lambda key, x: jnp.where(x >= 0.5, 1 - x, x))
    return _sometimes(next(keys), views.flip, image, lambda key, x: x[:, ::-1])


def random_resized_crop(
    key: Key[Array, ""],
    image: Float[Array, "height width channels"],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Float[Array, "height width channels"]:
    """A random box, resized to the whole image.

    Area uniform, aspect log-uniform, corners uniform on the pixels. Where the box would not fit, each side is cut to
    the image's (torchvision draws again, up to ten times).
    """
    height, width, _ = image.shape
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    share = jax.random.uniform(area_key, minval=area[0], maxval=area[1])
    ratio = jnp.exp(jax.random.uniform(aspect_key, minval=math.log(aspect[0]), maxval=math.log(aspect[1])))
    pixels = share * height * width
    box_height = jnp.clip(jnp.round(jnp.sqrt(pixels / ratio)), 1, height)
    box_width = jnp.clip(jnp.round(jnp.sqrt(pixels * ratio)), 1, width)
    top = jnp.floor(jax.random.uniform(top_key) * (height - box_height + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - box_width + 1))
    return resized_crop(image, top, left, box_height, box_width)


def resized_crop(
    image: Float[Array, "height width channels"],
    top: Float[Array, ""] | float,
    left: Float[Array, ""] | float,
    box_height: Float[Array, ""] | float,
    box_width: Float[Array, ""] | float,
) -> Float[Array, "height width channels"]:
    """A box of whole pixels resized to the image's size, bilinear and antialiased: two products of matrices."""
    height, width, _ = image.shape
    rows = _resampling(height, top, box_height)
    columns = _resampling(width, left, box_width)
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image, precision=jax.lax.Precision.HIGHEST)


def colour_jitter(
    key: Key[Array, ""], image: Float[Array, "height width channels"], views: Views
) -> Float[Array, "height width channels"]:
    """Brightness, contrast, saturation and hue, each changed by a random amount."""
    keys = jax.random.split(key, 4)

    def factor(key: Array, strength: float) -> Array:
        return jax.random.uniform(key, minval=1 - strength, maxval=1 + strength)

    image = jnp.clip(image * factor(keys[0], views.brightness), 0, 1)
    image = adjust_contrast(image, factor(keys[1], views.contrast))
    if image.shape[-1] != 3:
        return image
    image = adjust_saturation(image, factor(keys[2], views.saturation))
    return adjust_hue(image, jax.random.uniform(keys[3], minval=-views.hue, maxval=views.hue))


def adjust_contrast(
    image: Float[Array, "height width channels"], factor: Float[Array, ""] | float
) -> Float[Array, "height width channels"]:
    """Away from (factor > 1) or towards the mean grey of the image."""
    return _blend(image, _grey(image).mean(), factor)


def adjust_saturation(
    image: Float[Array, "height width channels"], factor: Float[Array, ""] | float
) -> Float[Array, "height width channels"]:
    """Away from (factor > 1) or towards each pixel's grey, which factor 0 gives."""
    return _blend(image, _grey(image), factor)


def adjust_hue(
    image: Float[Array, "height width 3"], turns: Float[Array, ""] | float
) -> Float[Array, "height width 3"]:
    """Colours turned around the circle of hues by so many turns, with value and saturation kept."""
    most, least = image.max(-1), image.min(-1)
    spread = most - least
    safe = jnp.where(spread > 0, spread, 1)
    red, green, blue = jnp.moveaxis(image, -1, 0)
    hue = jnp.where(
        most == red,
        (green - blue) / safe,
        jnp.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (hue / 6 + turns) * 6
    # Channel c of a pure hue is a trapezoid around its own place on the circle.
    places = hue[..., None] + jnp.array([5.0, 3.0, 1.0])
    distance = jnp.mod(places, 6)
    share = jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)
    return most[..., None] - spread[..., None] * share


def gaussian_blur(
    image: Float[Array, "height width channels"], sigma: Float[Array, ""] | float
) -> Float[Array, "height width channels"]:
    """Convolution with a Gaussian of this deviation in pixels (at most 2), cut off at 6 pixels; edges are reflected."""
    reach = int(3 * _MOST_SIGMAS)
    offsets = jnp.arange(-reach, reach + 1)
    weights = jnp.exp(-(offsets**2) / (2 * jnp.square(sigma)))
    weights = weights / weights.sum()

    def along(x: Array, axis: int) -> Array:
        around = [(reach, reach) if own == axis else (0, 0) for own in range(3)]
        padded = jnp.pad(x, around, mode="reflect")
        size = x.shape[axis]
        return sum(
            (weights[k] * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * reach + 1)),
            start=jnp.zeros_like(x),
        )

    return along(along(image, 0), 1)


def _random_blur(key: Array, image: Array, sigma: tuple[float, float]) -> Array:
    return gaussian_blur(image, jax.random.uniform(key, minval=sigma[0], maxval=sigma[1]))


def _resampling(size: int, start: Array | float, length: Array | float) -> Float[Array, "size size"]:
    """Weights of the pixels start .. start + length - 1 in `size` pixels that are to take their place."""
    step = length / size
    pixels = jnp.arange(size)
    centres = start + (pixels + 0.5) * step
    away = jnp.abs(pixels + 0.5 - centres[:, None]) / jnp.maximum(step, 1.0)
    inside = (pixels >= start) & (pixels < start + length)
    weights = jnp.where(inside, jnp.maximum(1 - away, 0), 0)
    return weights / weights.sum(1, keepdims=True)


def _grey(image: Float[Array, "height width channels"]) -> Float[Array, "height width 1"]:
    return image if image.shape[-1] != 3 else (image @ _LUMA)[..., None]


def _blend(image: Array, other: Array, factor: Array | float) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _sometimes(
    key: Array, probability: float, image: Array, change: Callable[[Array, Array], Array]
) -> Array:
    if probability == 0:
        return image
    draw_key, own_key = jax.random.split(key)
    return jnp.where(jax.random.uniform(draw_key) < probability, change(own_key, image), image)
