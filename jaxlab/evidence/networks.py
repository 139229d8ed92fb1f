"""Small networks that the evidence is usually shown on, for flax nnx: no batch statistics, no dropout.

Images are [n, height, width, channels]. Reference: arXiv:2306.03968, experiments; LeCun et al., "Gradient-based
learning applied to document recognition", 1998.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply


class MultilayerPerceptron(nnx.Module):
    """Linear layers with one activation between them; inputs of any shape are read as vectors."""

    def __init__(
        self, sizes: Sequence[int], *, activation: Callable[[Array], Array] = jnp.tanh, rngs: nnx.Rngs
    ) -> None:
        """Make the layers.

        Args:
          sizes: width of the input, of the hidden layers, of the output; at least two, each >= 1.
          activation: between the layers.
          rngs: for the weights.

        Raises:
          InputError: fewer than two sizes, or one below 1.
        """
        sizes = tuple(sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"sizes is {sizes}; it must hold at least two widths, each at least 1")
        self.activation = activation
        self.layers = nnx.List(
            [
                nnx.Linear(inputs, outputs, rngs=rngs)
                for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )

    def __call__(self, inputs: Float[Array, "n *item"]) -> Float[Array, "n outputs"]:
        """The last layer's outputs."""
        hidden = inputs.reshape(len(inputs), -1)
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        return self.layers[-1](hidden)


class ConvNet(nnx.Module):
    """Convolutions without padding, ReLU behind each and pooling of 2 x 2 behind the first ones; linear layers.

    `mini_net` and `le_net` make the two of the literature.
    """

    def __init__(
        self,
        *,
        side: int,
        channels: int,
        kernels: Sequence[tuple[int, int]],
        pooled: int,
        widths: Sequence[int],
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layers.

        Args:
          side: height and width of the images, pixels.
          channels: of the images, >= 1.
          kernels: (side, channels) of each convolution.
          pooled: convolutions with pooling behind them, the first ones.
          widths: of the linear layers, the last one the outputs.
          rngs: for the weights.

        Raises:
          InputError: the images are too small.
        """
        self.pooled = pooled
        convolutions, inputs, left = [], channels, side
        for number, (kernel, outputs) in enumerate(kernels):
            left = (left - kernel + 1) // (2 if number < pooled else 1)
            if left < 1:
                raise InputError(
                    f"side is {side}; images of {side} x {side} are too small for kernels {tuple(kernels)}"
                )
            convolutions.append(nnx.Conv(inputs, outputs, (kernel, kernel), padding="VALID", rngs=rngs))
            inputs = outputs
        self.convolutions = nnx.List(convolutions)
        self.head = MultilayerPerceptron((left**2 * inputs, *widths), activation=jax.nn.relu, rngs=rngs)

    def __call__(self, images: Float[Array, "n height width channels"]) -> Float[Array, "n outputs"]:
        """The last layer's outputs."""
        hidden = images
        for number, convolution in enumerate(self.convolutions):
            hidden = jax.nn.relu(_convolved(convolution, hidden))
            if number < self.pooled:
                hidden = _max_pool(hidden)
        return self.head(hidden)


def mini_net(*, outputs: int = 10, channels: int = 1, side: int = 28, rngs: nnx.Rngs) -> ConvNet:
    """Convolutions 8 of 5 x 5, 16 of 3 x 3, 32 of 5 x 5, and a linear layer: 14,538 parameters on 28 x 28.

    Args:
      outputs: classes.
      channels: of the images.
      side: of the images, pixels, >= 28 (smaller ones leave nothing for the last convolution).
      rngs: for the weights.

    Raises:
      InputError: the images are too small.
    """
    return ConvNet(
        side=side,
        channels=channels,
        kernels=((5, 8), (3, 16), (5, 32)),
        pooled=2,
        widths=(outputs,),
        rngs=rngs,
    )


def le_net(*, outputs: int = 10, channels: int = 1, side: int = 28, rngs: nnx.Rngs) -> ConvNet:
    """Convolutions 6 and 16 of 5 x 5, linear layers of 120 and 84.

    Args:
      outputs: classes.
      channels: of the images.
      side: of the images, pixels, >= 16.
      rngs: for the weights.

    Raises:
      InputError: the images are too small.
    """
    return ConvNet(
        side=side,
        channels=channels,
        kernels=((5, 6), (5, 16)),
        pooled=2,
        widths=(120, 84, outputs),
        rngs=rngs,
    )


def functional(model: nnx.Module) -> tuple[Apply, PyTree]:
    """`apply(params, inputs)` and the parameters of an nnx module, as the functions of this package want them.

    Args:
      model: without state beside its parameters: no batch statistics, no dropout.

    Raises:
      InputError: it has such state.
    """
    graph, state = nnx.split(model)
    params = nnx.filter_state(state, nnx.Param)
    rest = nnx.filter_state(state, nnx.Not(nnx.Param))
    kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)})
    if kinds:
        raise InputError(
            f"model holds {', '.join(kinds)} beside its parameters; batch statistics and dropout couple examples"
        )

    def apply(params: Any, inputs: Any) -> Array:
        return nnx.merge(graph, params)(inputs)

    return apply, nnx.to_pure_dict(params)


def _convolved(
    layer: nnx.Conv, images: Float[Array, "n height width inputs"]
) -> Float[Array, "n height2 width2 outputs"]:
    """What the layer does; on a CPU as a product with patches, whose gradient within a loop takes a sixth of the time.

    XLA has fast convolutions there, but not within `lax.scan` (JAX 0.10, 2 cores: a step of `mini_net` 60 ms, not 9).
    """
    if jax.default_backend() != "cpu":
        return layer(images)
    kernel, bias = layer.kernel[...], layer.bias
    assert bias is not None
    side, _, inputs, outputs = kernel.shape
    height, width = (size - side + 1 for size in images.shape[1:3])
    patches = [images[:, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return jnp.concatenate(patches, -1) @ kernel.reshape(side * side * inputs, outputs) + bias[...]


def _max_pool(
    images: Float[Array, "n height width channels"],
) -> Float[Array, "n half_height half_width channels"]:
    """Maxima of 2 x 2 pixels, an odd last row or column left out; by a reshape, whose gradient is cheap."""
    n, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
