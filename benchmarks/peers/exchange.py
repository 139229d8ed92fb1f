"""Weights between our models and the peers that prune them: matrices under their Hugging Face names."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxlab.models import LINEARS, Model, dense
from jaxlab.models.safetensors_weights import tensor_name


def linear_weights(model: Model) -> dict[str, np.ndarray]:
    """Every pruned matrix of a model, [out, in], under its Hugging Face name.

    Args:
      model: with stacked layers.
    """
    layers, found = model.params["layers"], {}
    for name in LINEARS:
        stacked = np.asarray(dense(layers[name]))
        found |= {tensor_name(model.cfg, name, layer): matrix for layer, matrix in enumerate(stacked)}
    return found


def with_linear_weights(model: Model, weights: Mapping[str, np.ndarray]) -> Model:
    """The model with its matrices replaced by a peer's, so that our evaluator can measure it.

    Args:
      model: with stacked layers; every other parameter is kept.
      weights: from a peer, at least every matrix that `linear_weights` names; further entries are ignored.

    Raises:
      KeyError: a matrix is missing.
    """
    layers = dict(model.params["layers"])
    for name in LINEARS:
        matrices = [weights[tensor_name(model.cfg, name, layer)] for layer in range(model.cfg.num_layers)]
        layers[name] = jnp.asarray(np.stack(matrices), layers[name].dtype)
    return model._replace(params=model.params | {"layers": layers})
