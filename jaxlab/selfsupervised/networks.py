"""Encoders of small images, and the heads that joint-embedding methods train on top of them, for flax nnx.

Images are [n, height, width, channels]. ResNet-18 is that of He et al., arXiv:1512.03385, with the stem that is usual
for images of 32 pixels: one convolution of 3 x 3, no pooling. Projectors follow arXiv:2510.23484, table 6.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlab.errors import InputError

_MOMENTUM = 0.9  # of running means and variances; 1 less torch's
_EPS = 1e-5


class ConvNet(nnx.Module):
    """Convolutions of 3 x 3 with stride 2, each followed by batch normalisation and ReLU, then the mean over pixels."""

    def __init__(
        self,
        *,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers.

        Args:
          channels: of the images, >= 1.
          widths: channels behind each convolution, each >= 1.
          axis_name: mesh axis over which batch statistics are averaged.
          rngs: for the weights.

        Raises:
          InputError: a size below 1, or no widths.
        """
        _require_sizes(channels=(channels,), widths=tuple(widths))
        sizes = (channels, *widths)
        self.convolutions = nnx.List(
            [
                _convolution(inputs, outputs, 3, 2, rngs)
                for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )
        self.norms = nnx.List([_norm(width, axis_name, rngs) for width in widths])
        self.features = widths[-1]

    def __call__(self, images: Float[Array, "n height width channels"]) -> Float[Array, "n features"]:
        """Features of every image."""
        hidden = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = jax.nn.relu(norm(convolution(hidden)))
        return hidden.mean((1, 2))


class ResNet18(nnx.Module):
    """Eight blocks of two convolutions, the mean over pixels behind them: 512 features at width 64."""

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 64,
        small_images: bool = True,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers.

        Args:
          channels: of the images, >= 1.
          width: channels behind the stem, >= 1; doubled three times.
          small_images: stem of 3 x 3 without pooling; otherwise 7 x 7 with stride 2 and pooling.
          axis_name: mesh axis over which batch statistics are averaged.
          rngs: for the weights.

        Raises:
          InputError: a size below 1.
        """
        _require_sizes(channels=(channels,), width=(width,))
        self.small_images = small_images
        self.stem = _convolution(channels, width, *((3, 1) if small_images else (7, 2)), rngs)
        self.stem_norm = _norm(width, axis_name, rngs)
        blocks, inputs = [], width
        for stage in range(4):
            for number in range(2):
                stride = 2 if stage and not number else 1
                blocks.append(_Block(inputs, width << stage, stride, axis_name, rngs))
                inputs = width << stage
        self.blocks = nnx.List(blocks)
        self.features = inputs

    def __call__(self, images: Float[Array, "n height width channels"]) -> Float[Array, "n features"]:
        """Features of every image."""
        hidden = jax.nn.relu(self.stem_norm(self.stem(images)))
        if not self.small_images:
            hidden = nnx.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean((1, 2))


class Perceptron(nnx.Module):
    """Linear layers with batch normalisation and ReLU between them: a projector, or BYOL's predictor."""

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        last_bias: bool = False,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers.

        Args:
          sizes: width of the input, of the hidden layers, of the output; at least two, each >= 1.
          last_bias: whether the last layer has a bias.
          axis_name: mesh axis over which batch statistics are averaged.
          rngs: for the weights.

        Raises:
          InputError: fewer than two sizes, or one below 1.
        """
        _require_sizes(sizes=tuple(sizes))
        if len(sizes) < 2:
            raise InputError(f"sizes is {tuple(sizes)}; it must hold at least an input and an output width")
        last = len(sizes) - 2
        self.layers = nnx.List(
            [
                nnx.Linear(inputs, outputs, use_bias=last_bias if number == last else True, rngs=rngs)
                for number, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
            ]
        )
        self.norms = nnx.List([_norm(width, axis_name, rngs) for width in sizes[1:-1]])

    def __call__(self, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """The output, not normalised."""
        hidden = features
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            hidden = jax.nn.relu(norm(layer(hidden)))
        return self.layers[-1](hidden)


class _Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, axis_name: str | None, rngs: nnx.Rngs) -> None:
        self.first, self.first_norm = (
            _convolution(inputs, outputs, 3, stride, rngs),
            _norm(outputs, axis_name, rngs),
        )
        self.second, self.second_norm = (
            _convolution(outputs, outputs, 3, 1, rngs),
            _norm(outputs, axis_name, rngs),
        )
        widens = stride > 1 or inputs != outputs
        self.shortcut = _convolution(inputs, outputs, 1, stride, rngs) if widens else None
        self.shortcut_norm = _norm(outputs, axis_name, rngs) if widens else None

    def __call__(self, hidden: Float[Array, "n h w inputs"]) -> Float[Array, "n h2 w2 outputs"]:
        branch = jax.nn.relu(self.first_norm(self.first(hidden)))
        branch = self.second_norm(self.second(branch))
        if self.shortcut is not None and self.shortcut_norm is not None:
            hidden = self.shortcut_norm(self.shortcut(hidden))
        return jax.nn.relu(branch + hidden)


def _convolution(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    around = size // 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((around, around), (around, around)),
        use_bias=False,
        kernel_init=jax.nn.initializers.he_normal(),
        conv_general_dilated=_convolve,
        rngs=rngs,
    )


def _convolve(
    images: Float[Array, "n h w inputs"],
    kernel: Float[Array, "size size inputs outputs"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **others: Any,
) -> Float[Array, "n h2 w2 outputs"]:
    """`lax.conv_general_dilated`, or a product of patches and kernel where fewer places come out than the kernel spans.

    There XLA's CPU backend has slow loops alone for the gradient in the images: 80 ms in place of 3 for 256 images of
    4 x 4 pixels and 128 channels, two thirds of a training step of `ConvNet`.
    """
    size, stride = kernel.shape[0], strides[0]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    height, width = ((pixels - size) // stride + 1 for pixels in padded.shape[1:3])
    if min(height, width) >= size:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **others)
    patches = [
        padded[:, row : row + stride * height : stride, column : column + stride * width : stride]
        for row in range(size)
        for column in range(size)
    ]
    products = jnp.concatenate(patches, axis=-1).reshape(-1, size**2 * kernel.shape[2])
    flat = products @ kernel.reshape(-1, kernel.shape[3])
    return flat.reshape(len(images), height, width, -1)


def _norm(width: int, axis_name: str | None, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=_MOMENTUM, epsilon=_EPS, axis_name=axis_name, rngs=rngs)


def _require_sizes(**sizes: tuple[int, ...]) -> None:
    for name, values in sizes.items():
        if not values or min(values) < 1:
            raise InputError(f"{name} is {values}; it must hold sizes of at least 1")
