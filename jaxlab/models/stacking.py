"""The two layouts of a model's layers: stacked for `lax.scan`, or a tuple of layers that may differ."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.errors import InputError


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The same model with `params["layers"]` as a tuple of per-layer dicts."""
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    split = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count))
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
