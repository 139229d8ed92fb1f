"""Putting parameters together from tensors that a file holds one a layer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.placement import model_shardings
from jaxlab.models.tensor_layouts import Part
from jaxlab.models.validation import layer_shapes, stacked_shapes, top_shapes

Read = Callable[[str, int | None, np.ndarray], str]
"""`read(name, layer, out)` writes leaf `name` (of layer `layer`, or None) into `out`, float32 of the leaf's shape, and
returns the tensor's name in the file."""


ReadPart = Callable[[str, int | None, tuple[int, ...], Part, np.ndarray], str]
"""`read(name, layer, shape, part, out)` writes part of a leaf of this shape into `out`, float32, and returns the
tensor's name in the file."""


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


def assemble_on_mesh(
    cfg: ModelConfig, read: ReadPart, mesh: Mesh, *, source: str, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """`assemble_params` over the devices of a mesh, by `model_shardings`; a process reads what its own devices hold.

    At no time does a process keep more in its own memory, beside what is on its devices, than its part of one leaf of
    all layers.

    Args:
      cfg: the model.
      read: see `ReadPart`.
      mesh: devices of one or more processes.
      source: name of the file or directory, for error messages.
      dtype: of the returned arrays.

    Raises:
      InputError: a tensor holds NaN or infinity, or the mesh cannot share a leaf out.
    """
    stacked = stacked_shapes(layer_shapes(cfg), cfg.num_layers)
    shapes = {**top_shapes(cfg), "layers": stacked}
    where = model_shardings(
        jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=_is_shape), cfg, mesh
    )

    def place(name: str, shape: tuple[int, ...], sharding: NamedSharding, *, stack: bool) -> jax.Array:
        @functools.cache  # devices that hold the same part
        def values_of(part: Part) -> np.ndarray:
            values = np.empty([last - first for first, last in part], dtype)
            layers = range(*part[0]) if stack else (None,)
            for layer, out in zip(layers, values if stack else (values,), strict=True):
                wide = np.empty(out.shape, np.float32)
                inner = (shape[1:], part[1:]) if stack else (shape, part)
                _check_finite(wide, read(name, layer, *inner, wide), source)
                out[...] = wide
            return values

        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            slices = (slice(None),) * len(shape) if index is None else index
            return values_of(tuple(cut.indices(size)[:2] for cut, size in zip(slices, shape, strict=True)))

        return jax.make_array_from_callback(shape, sharding, of_device, dtype=dtype)

    params: dict[str, Any] = {
        name: place(name, shape, where[name], stack=False) for name, shape in top_shapes(cfg).items()
    }
    return params | {
        "layers": {
            name: place(name, shape, where["layers"][name], stack=True) for name, shape in stacked.items()
        }
    }


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


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
    _check_finite(out, read(name, layer, out), source)


def _check_finite(values: np.ndarray, tensor: str, source: str) -> None:
    if not np.isfinite(values).all():
        raise InputError(f"{source}: tensor {tensor!r} holds NaN or infinity: the weights are damaged")
