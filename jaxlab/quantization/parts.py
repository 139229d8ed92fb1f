"""What is left of the matrices of a pruned model, so that bits are spent on nothing else.

A model is quantized with its layers stacked and of equal widths, zeros where something was pruned. `find_parts` sees
from the zeros which rows and columns of every matrix are left; only these are coded, and the file holds only these.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import LayerWidths, ModelConfig
from jaxlab.models.gathered import Gathered, part
from jaxlab.models.linear import LINEARS
from jaxlab.models.validation import layer_shapes

_WORTHWHILE = 0.95  # a part larger than this share of its matrix would spare less than its indices are worth


class Part(NamedTuple):
    """Rows and columns of one matrix that are coded."""

    rows: Int[np.ndarray, " n_out"]
    columns: Int[np.ndarray, " n_in"]
    shape: tuple[int, int]
    """Of the matrix in the quantized model; the rows and columns lie in it."""

    @property
    def whole(self) -> bool:
        """Whether nothing of the matrix is left out."""
        return (len(self.rows), len(self.columns)) == self.shape


Parts = tuple[dict[str, Part], ...]
"""By layer and matrix."""


def find_parts(
    params: dict[str, Any], cfg: ModelConfig, *, multiple: int
) -> tuple[ModelConfig, Parts | None]:
    """The parts of a model's matrices that are not zero, with columns in multiples of the group size.

    Pruned columns fill up where those that are left are no multiple.

    Args:
      params: dense, layers stacked (`stack_padded`).
      cfg: the model's configuration, possibly with `layer_widths`, which `params` fill up with zeros.
      multiple: of the number of columns, where the matrix has as many.

    Returns:
      The configuration of the quantized model, with hidden units in multiples, and the parts in it; None where
      every matrix is whole.

    Raises:
      InputError: `multiple` is below 1, or a matrix is not finite.
    """
    if multiple < 1:
        raise InputError(f"multiple is {multiple}; it must be at least 1")
    if cfg.layer_widths is not None:
        widths = tuple(
            LayerWidths(_rounded(one.mlp_size, multiple, cfg.mlp_size), max(one.num_kv_heads, 1))
            for one in cfg.layer_widths
        )
        cfg = dataclasses.replace(cfg, layer_widths=widths)
    found = []
    for layer in range(cfg.num_layers):
        shapes = layer_shapes(cfg, layer)
        parts = {}
        for name in LINEARS:
            rows, columns = shapes[name]
            matrix = np.asarray(params["layers"][name][layer])[:rows, :columns]
            if not np.isfinite(matrix).all():
                raise InputError(f"non-finite weight in layer {layer}, matrix {name}")
            parts[name] = _part(matrix != 0, multiple)
        found.append(parts)
    stacked = {name: params["layers"][name].shape[1:] for name in LINEARS}
    whole = all(one.whole and one.shape == stacked[name] for parts in found for name, one in parts.items())
    return cfg, None if whole else tuple(found)


def cut(matrix: Float[Array, "rows columns"], one: Part | None) -> Float[Array, "rows n_in"]:
    """The matrix of a stacked model with only the columns that are left, and zeros in rows that are not.

    All rows stay, so that parts of different heights share one program.
    """
    if one is None:
        return matrix
    alive = np.zeros(matrix.shape[0], bool)
    alive[one.rows] = True
    narrow = part(matrix, np.arange(matrix.shape[0]), one.columns)
    return jnp.asarray(np.where(alive[:, None], np.asarray(narrow), 0))


def cut_inputs(moment: Float[Array, "columns columns"], one: Part | None) -> Float[Array, "n_in n_in"]:
    """A moment of the inputs with only the columns that are left."""
    return moment if one is None else part(moment, one.columns, one.columns)


def cut_outputs(moment: Float[Array, "rows rows"], one: Part | None) -> Float[Array, "rows rows"]:
    """A damped moment of the outputs in which rows that are pruned have nothing to do with the others.

    A moment of zeros, of a matrix that is pruned away, becomes the identity.
    """
    if one is None:
        return moment
    values = np.asarray(moment)
    alive = np.zeros(len(values), bool)
    alive[one.rows] = values.any()
    diagonal = np.where(alive, 0, values.diagonal().mean(dtype=np.float64) or 1).astype(values.dtype)
    return jnp.asarray(np.where(alive[:, None] & alive, values, 0) + np.diag(diagonal))


def take_rows(tensor: Any, one: Part | None) -> Any:
    """A quantized matrix with only the rows that are left."""
    if one is None or len(one.rows) == tensor.shape[-2]:
        return tensor
    return _with_rows(tensor, lambda field: np.asarray(field)[one.rows])


def spread_rows(tensor: Any, one: Part | None, rows: int) -> Any:
    """The inverse of `take_rows`: `rows` rows, codes of zero in those that are not there."""
    if one is None or tensor.shape[-2] == rows:
        return tensor

    def spread(field: Array) -> np.ndarray:
        values = np.asarray(field)
        full = np.zeros((rows, *values.shape[1:]), values.dtype)
        full[one.rows] = values
        return full

    return _with_rows(tensor, spread)


def put_back(
    matrix: Float[Array, "rows n_in"], one: Part | None, columns: int
) -> Float[Array, "rows columns"]:
    """A matrix of the columns that are left, in the stacked model's width."""
    if one is None:
        return matrix
    full = np.zeros((matrix.shape[0], columns), matrix.dtype)
    full[:, one.columns] = np.asarray(matrix)
    return jnp.asarray(full)


def as_leaf(tensor: Any, one: Part | None) -> Any:
    """The quantized matrix as a leaf of the quantized model."""
    if one is None or one.whole:
        return tensor
    return Gathered(tensor, jnp.asarray(one.rows, jnp.int32), jnp.asarray(one.columns, jnp.int32), *one.shape)


def _part(left: np.ndarray, multiple: int) -> Part:
    rows, columns = left.any(axis=1), left.any(axis=0)
    count = _rounded(int(columns.sum()), multiple, columns.size)
    # Stable: those that are left in order, then pruned ones from the left on.
    chosen = np.sort(np.argsort(~columns, kind="stable")[:count]).astype(np.int32)
    alive = np.flatnonzero(rows).astype(np.int32) if rows.any() else np.zeros(1, np.int32)
    if len(alive) * len(chosen) > _WORTHWHILE * left.size:
        alive, chosen = (np.arange(size, dtype=np.int32) for size in left.shape)
    return Part(alive, chosen, (left.shape[0], left.shape[1]))


def _rounded(size: int, multiple: int, most: int) -> int:
    """Up to a multiple, at least one of them, but not above `most`."""
    return min(-(-max(size, 1) // multiple) * multiple, most)


def _with_rows(tensor: Any, change: Any) -> Any:
    fields = {name: getattr(tensor, name, None) for name in ("words", "scale", "minimum")}
    return dataclasses.replace(
        tensor, **{name: jnp.asarray(change(field)) for name, field in fields.items() if field is not None}
    )


def part_of(parts: Parts | None, layer: int, name: str) -> Part | None:
    """The part of one matrix; None for all of it."""
    return None if parts is None else parts[layer][name]
