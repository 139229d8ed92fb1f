"""The two layouts of a model's layers: stacked for `lax.scan`, or a tuple of layers that may differ."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import dense
from jaxlab.models.validation import check_params, concrete, layer_shapes


@jax.jit
def take_layer(stacked: Any, index: Any) -> Any:
    """Entry `index` of the leading axis of every leaf; compiled once for all indices."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The same model with `params["layers"]` as a tuple of per-layer dicts."""
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    split = tuple(take_layer(layers, i) for i in range(count))
    return {**params, "layers": split}


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The same model with `params["layers"]` as one dict whose arrays have a leading layer axis.

    Raises:
        InputError: the layers differ in names, kinds of leaves or shapes.
    """
    layers = params["layers"]
    if not isinstance(layers, tuple):
        return params
    described = [
        (jax.tree.structure(layer), [leaf.shape for leaf in jax.tree.leaves(layer)]) for layer in layers
    ]
    for i, one in enumerate(described):
        if one != described[0]:
            raise InputError(
                f"stack_layers: layer {i} is not made like layer 0; keep params['layers'] a tuple"
            )
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def stack_padded(params: dict[str, Any], cfg: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """The same model with dense, stacked layers: narrower ones are filled with zeros to the widths of `cfg`.

    Logits stay as they are: a hidden unit or a key-value group of zeros adds nothing.

    Args:
        params: the model; layers a tuple or stacked, of any leaves that `linear` takes.
        cfg: its configuration.

    Returns:
        Parameters, and the configuration without `layer_widths`.

    Raises:
        InputError: names or shapes are not those of `cfg`.
    """
    check_params(params, cfg)
    uniform = dataclasses.replace(cfg, layer_widths=None)
    layers = params["layers"]
    top = {name: dense(leaf) for name, leaf in params.items() if name != "layers"}
    if not isinstance(layers, tuple):
        return top | {"layers": {name: dense(leaf) for name, leaf in layers.items()}}, uniform
    rooms = layer_shapes(uniform)
    stacked = {
        name: jnp.stack([_padded(dense(layer[name]), room) for layer in layers])
        for name, room in rooms.items()
    }
    return top | {"layers": stacked}, uniform


def _padded(leaf: Array, room: tuple[int, ...]) -> Array:
    missing = [(0, most - size) for most, size in zip(room, leaf.shape, strict=True)]
    values = concrete(leaf)  # by NumPy, since XLA would compile a program for every shape
    return jnp.pad(leaf, missing) if values is None else jnp.asarray(np.pad(values, missing))
