"""Small fully connected networks as plain pytrees: what the neural teachers are made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[[jax.Array, tuple[int, int]], Array]
"""(key, (inputs, outputs)) -> kernel."""


class Dense(NamedTuple):
    """x -> x kernel + bias."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]


def fan_in_kernel(key: jax.Array, shape: tuple[int, int]) -> Float[Array, "inputs outputs"]:
    """Normal of std 1 / sqrt(inputs), cut at two of them: the default of Sonnet, in which Setter-Solver was written."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) / jnp.sqrt(shape[0])


def init_layers(key: jax.Array, sizes: Sequence[int], *, initializer: Initializer) -> tuple[Dense, ...]:
    """Layers between consecutive sizes, biases 0."""
    shapes = list(zip(sizes[:-1], sizes[1:], strict=True))
    keys = jax.random.split(key, len(shapes))
    return tuple(
        Dense(initializer(k, shape), jnp.zeros(shape[1])) for k, shape in zip(keys, shapes, strict=True)
    )


def dense(layer: Dense, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """The layer at x."""
    return x @ layer.kernel + layer.bias


def perceptron(
    layers: Sequence[Dense], x: Float[Array, "*batch inputs"], *, activation: Callable[[Array], Array]
) -> Float[Array, "*batch outputs"]:
    """The layers one after the other, with the activation between them."""
    for layer in layers[:-1]:
        x = activation(dense(layer, x))
    return dense(layers[-1], x)
