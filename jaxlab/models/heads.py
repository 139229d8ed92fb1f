"""Small networks on top of a model's hidden states: values of states for reinforcement learning, classes of texts.

They are pytrees of their own, so that a frozen model's heads train beside its adapters. Reference for the sizes: Carta
et al., arXiv:2302.02662, section 4 (two hidden layers of 1024).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from jaxlab.errors import InputError
from jaxlab.models.linear import linear

Head = tuple[dict[str, Any], ...]
"""Layers `{"weight": [out, in], "bias": [out]}`, first to last."""


def init_head(
    key: Key[Array, ""], width: int, outputs: int = 1, *, hidden: Sequence[int] = (1024, 1024)
) -> Head:
    """Weights and biases uniform within 1 / sqrt(inputs), as torch's linear layers begin, in float32.

    Args:
        key: for the draws.
        width: of the states that the head reads: `cfg.hidden_size`, at least 1.
        outputs: classes, or 1 for a value; at least 1.
        hidden: units of the hidden layers, each at least 1; none for a linear head.

    Raises:
        InputError: a size below 1.
    """
    sizes = (width, *hidden, outputs)
    for name, size in (("width", width), ("outputs", outputs), *(("hidden", units) for units in hidden)):
        if size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")
    layers = []
    for inputs, units, layer_key in zip(
        sizes[:-1], sizes[1:], jax.random.split(key, len(sizes) - 1), strict=True
    ):
        bound = inputs**-0.5
        drawn = jax.random.uniform(layer_key, (units, inputs + 1), minval=-bound, maxval=bound)
        layers.append({"weight": drawn[:, :inputs], "bias": drawn[:, inputs]})
    return tuple(layers)


def class_scores(
    head: Head,
    states: Float[Array, "... width"],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "... outputs"]:
    """Scores of the classes (logits), in the dtype of the head.

    Args:
        head: what `init_head` makes; its matrices may carry adapters.
        states: hidden states, such as `ContinuationScores.prompt_hidden`.
        activation: between layers.

    Raises:
        InputError: states of another width than the head reads.
    """
    x = states.astype(head[0]["bias"].dtype)
    for number, layer in enumerate(head):
        x = linear(activation(x) if number else x, layer["weight"]) + layer["bias"]
    return x


def state_values(
    head: Head,
    states: Float[Array, "... width"],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "..."]:
    """A number a state; arguments as for `class_scores`.

    Raises:
        InputError: the head has more than one output, or reads states of another width.
    """
    outputs = len(head[-1]["bias"])
    if outputs != 1:
        raise InputError(f"head has {outputs} outputs; a value head has 1")
    return class_scores(head, states, activation=activation)[..., 0]
