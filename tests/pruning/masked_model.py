"""Models whose pruned rows and columns are zero, what all compact forms are compared with."""

import jax.numpy as jnp

from jaxlab.models import LINEARS, forward, logits


def zeroed(params, masks):
    """The model with pruned rows (biases too) and columns of its stacked layers set to zero."""
    layers = dict(params["layers"])
    for name in LINEARS:
        rows, columns = masks[name]
        layers[name] = jnp.where(rows[:, :, None] | columns[:, None, :], 0, layers[name])
        if f"{name}_bias" in layers:
            layers[f"{name}_bias"] = jnp.where(rows, 0, layers[f"{name}_bias"])
    return {**params, "layers": layers}


def scores(params, cfg, tokens):
    return logits(params, cfg, forward(params, cfg, tokens).hidden)
