"""Where the parameters of a model lie on a mesh."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxlab.models.config import ModelConfig
from jaxlab.parallel.rules import REPLICATED, Rules, model_rules, shardings


def model_shardings(params: Any, cfg: ModelConfig, mesh: Mesh) -> Any:
    """A tree of `NamedSharding`: matrices over the axis `model` by `model_rules`, or all whole where there is none.

    Args:
        params: the model, or anything with its paths and shapes.
        cfg: its configuration.
        mesh: devices of one or more processes.

    Raises:
        InputError: the axis does not divide what it would cut.
    """
    rules: Rules = [("", REPLICATED)]
    if "model" in mesh.shape:
        rules = model_rules(mesh, num_heads=cfg.num_heads, num_kv_heads=cfg.num_kv_heads)
    return shardings(params, mesh, rules)


def place(params: dict[str, Any], cfg: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The model over the mesh, by `model_shardings`; arguments and errors are the same."""
    return jax.device_put(params, model_shardings(params, cfg, mesh))
