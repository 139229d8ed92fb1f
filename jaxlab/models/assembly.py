"""Putting parameters together from tensors that a file holds one a layer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.validation import layer_shapes

Read = Callable[[str, int | None, np.ndarray], str]


def assemble_params(cfg: ModelConfig, read: Read, *, source: str, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters in the stacked layout.

    Args:
      cfg: the model; decides which leaves there are and their shapes.
      read: `read(name, layer, out)` writes leaf `name` (of layer `layer`, or None) into `out`, float32 of the
        leaf's
        shape, and returns the tensor's name in the file.
      source: name of the file or directory, for error messages.
      dtype: of the returned arrays.

    Returns:
      `{"embed", "layers": {name: [L, ...]}, "final_norm", "head" unless tied}`, all jax arrays.

    Raises:
      InputError: a tensor holds NaN or infinity.
    """

    def fill(name: str, layer: int | None, out: np.ndarray) -> None:
        tensor = read(name, layer, out)
        if not np.isfinite(out).all():
            raise InputError(f"{source}: tensor {tensor!r} holds NaN or infinity: the weights are damaged")

    def top(name: str, *shape: int) -> Any:
        out = np.empty(shape, np.float32)
        fill(name, None, out)
        return jnp.asarray(out, dtype)

    def stacked(name: str, shape: tuple[int, ...]) -> Any:
        out = np.empty((cfg.num_layers, *shape), np.float32)
        for layer in range(cfg.num_layers):
            fill(name, layer, out[layer])
        return jnp.asarray(out, dtype)

    params = {
        "embed": top("embed", cfg.vocab_size, cfg.hidden_size),
        "layers": {name: stacked(name, shape) for name, shape in layer_shapes(cfg).items()},
        "final_norm": top("final_norm", cfg.hidden_size),
    }
    if not cfg.tie_embeddings:
        params["head"] = top("head", cfg.vocab_size, cfg.hidden_size)
    return params
