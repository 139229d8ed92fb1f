"""A torch twin whose layers lost their last hidden units and key-value heads: cut off here, zeroed there."""

import copy
import dataclasses

import torch
from torch_twins import twin

from jaxlab.models import LayerWidths, unstack_layers

WIDTHS = (LayerWidths(13, 0), LayerWidths(0, 1), LayerWidths(48, 2), LayerWidths(30, 1))
"""Of the twins' 48 hidden units and 2 heads; the first layer without any head is the hardest for a cache."""


def narrow_twin(case, widths=WIDTHS, seed=3):
    """(torch model with zeros, params with narrower layers, their cfg)."""
    model, params, cfg = twin(case, seed)
    widths = widths[: cfg.num_layers]
    layers = tuple(
        narrowed(layer, cfg, *one)
        for layer, one in zip(unstack_layers(params)["layers"], widths, strict=True)
    )
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, (units, kv_heads) in zip(model.model.layers, widths, strict=True):
            layer.self_attn.o_proj.weight[:, kv_heads * query_width(cfg) :] = 0.0
            layer.mlp.down_proj.weight[:, units:] = 0.0
    return model, dict(params, layers=layers), dataclasses.replace(cfg, layer_widths=widths)


def query_width(cfg):
    """Query columns of one key-value head."""
    return cfg.num_heads // cfg.num_kv_heads * cfg.head_dim


def narrowed(layer, cfg, units, kv_heads):
    """The layer with its first hidden units and key-value heads alone."""
    kept = {"q": kv_heads * query_width(cfg), "gate": units, "up": units}
    kept |= dict.fromkeys(("k", "v"), kv_heads * cfg.head_dim)
    rows = {
        name: layer[name][:size]
        for stem, size in kept.items()
        for name in (stem, f"{stem}_bias")
        if name in layer
    }
    return layer | rows | {"o": layer["o"][:, : kept["q"]], "down": layer["down"][:, :units]}
