"""Putting parameters together from tensors that a file holds one a layer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.validation import layer_shapes, top_shapes

Read = Callable[[str, int | None, np.ndarray], str]
"""`read(name, layer, out)` writes leaf `name` (of layer `layer`, or None) into `out`, float32 of the leaf's shape, and
returns the tensor's name in the file."""


def assemble_params(cfg: ModelConfig, read: Read, *, source: str, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Parameters in the stacked layout.

    Args:
      cfg: the model; decides which leaves there are and their shapes.
      read: see `Read`.
      source: name of the file or directory, for error messages.
      dtype: of the returned arrays.

    Returns:
      `{"embed", "layers": {name: [L, ...]}, "final_norm", "head" unless tied}`, all jax arrays.

    Raises:
      InputError: a tensor holds NaN or infinity.
    """
    params = {
        name: read_leaf(read, name, None, shape, source=source, dtype=dtype)
        for name, shape in top_shapes(cfg).items()
    }
    return params | {
        "layers": {
            name: read_stack(read, name, (cfg.num_layers, *shape), source=source, dtype=dtype)
            for name, shape in layer_shapes(cfg).items()
        }
    }


def read_stack(
    read: Read, name: str, shape: tuple[int, ...], *, source: str, dtype: Any = jnp.float32
) -> Any:
    """One leaf of all layers, `shape` with the layer axis in front; arguments and errors as for `assemble_params`."""
    out = np.empty(shape, np.float32)
    for layer in range(shape[0]):
        _fill(read, name, layer, out[layer], source)
    return jnp.asarray(out, dtype)


def read_leaf(
    read: Read, name: str, layer: int | None, shape: tuple[int, ...], *, source: str, dtype: Any = jnp.float32
) -> Any:
    """One leaf as a jax array; arguments and errors as for `assemble_params`."""
    out = np.empty(shape, np.float32)
    _fill(read, name, layer, out, source)
    return jnp.asarray(out, dtype)


def _fill(read: Read, name: str, layer: int | None, out: np.ndarray, source: str) -> None:
    tensor = read(name, layer, out)
    if not np.isfinite(out).all():
        raise InputError(f"{source}: tensor {tensor!r} holds NaN or infinity: the weights are damaged")
