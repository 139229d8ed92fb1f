"""What has been pruned from each matrix of a model, and the matrices as pruning sees them.

A matrix with a bias is seen with the bias as a last column, whose input is a constant 1. That column is never pruned,
and a pruned row takes its bias along.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.linear import LINEARS


class Lines(NamedTuple):
    """Pruned rows and columns of one matrix in all layers."""

    rows: Bool[Array, "layers rows"]
    columns: Bool[Array, "layers columns"]


Masks = dict[str, Any]
"""By matrix `Lines`, or bool[layers, rows, columns] for pruned elements; without the column of a bias."""


def empty_lines(params: dict[str, Any]) -> dict[str, Lines]:
    """Nothing is pruned, in rows and columns."""
    shapes = {name: params["layers"][name].shape for name in LINEARS}
    return {
        name: Lines(jnp.zeros((layers, rows), bool), jnp.zeros((layers, columns), bool))
        for name, (layers, rows, columns) in shapes.items()
    }


def empty_elements(params: dict[str, Any]) -> dict[str, Bool[Array, "layers rows columns"]]:
    """Nothing is pruned, element by element."""
    return {name: jnp.zeros(params["layers"][name].shape, bool) for name in LINEARS}


def pruned_elements(mask: Lines | Bool[Array, "layers rows columns"]) -> Bool[Array, "layers rows columns"]:
    """The mask of one matrix, element by element."""
    return mask.rows[:, :, None] | mask.columns[:, None, :] if isinstance(mask, Lines) else mask


def augmented(layers: dict[str, Any], name: str) -> Float[Array, "layers rows columns"]:
    """The matrix, with its bias as a last column where it has one."""
    weight, bias = layers[name], layers.get(f"{name}_bias")
    return weight if bias is None else jnp.concatenate([weight, bias[..., None]], axis=-1)


def with_matrix(
    layers: dict[str, Any], name: str, matrix: Float[Array, "layers rows columns"]
) -> dict[str, Any]:
    """The layers with another matrix (and bias), as `augmented` gives it."""
    if f"{name}_bias" not in layers:
        return layers | {name: matrix}
    return layers | {name: matrix[..., :-1], f"{name}_bias": matrix[..., -1]}


def widened(mask: Bool[Array, "*axes columns"], bias: bool) -> Bool[Array, "*axes columns"]:
    """A mask of columns with one for the bias, which is not pruned."""
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, 1)]) if bias else mask


def linear_parameters(params: dict[str, Any]) -> int:
    """Parameters of the matrices of all blocks with their biases: what sparsity is a share of."""
    return sum(math.prod(_augmented_shape(params["layers"], name)) for name in LINEARS)


def removed_parameters(params: dict[str, Any], masks: Masks) -> dict[str, Int[np.ndarray, " layers"]]:
    """Pruned parameters of each matrix in each layer, the biases of pruned rows included."""
    removed = {}
    for name in LINEARS:
        mask = masks[name]
        if isinstance(mask, Lines):
            rows, columns = (np.asarray(part.sum(axis=1)) for part in mask)
            _, height, width = _augmented_shape(params["layers"], name)
            removed[name] = rows * width + columns * height - rows * columns
        else:
            removed[name] = np.asarray(jnp.sum(mask, axis=(1, 2)))
    return removed


def sparsity_of(params: dict[str, Any], masks: Masks) -> float:
    """Share of `linear_parameters` that is pruned."""
    return sum(int(count.sum()) for count in removed_parameters(params, masks).values()) / linear_parameters(
        params
    )


def check_pruned(params: dict[str, Any], masks: Masks) -> None:
    """Raises where a pruned weight is not zero.

    Raises:
        InputError: naming the matrix and the layer.
    """
    for name in LINEARS:
        wrong = jnp.any(pruned_elements(masks[name]) & (params["layers"][name] != 0), axis=(1, 2))
        for layer in np.flatnonzero(np.asarray(wrong)):
            raise InputError(
                f"{name}, layer {layer}, has weights that are not zero where its mask says pruned"
            )


def _augmented_shape(layers: dict[str, Any], name: str) -> tuple[int, int, int]:
    count, rows, columns = layers[name].shape
    return count, rows, columns + (f"{name}_bias" in layers)


def stacked_layers(params: dict[str, Any]) -> dict[str, Any]:
    """`params["layers"]`, if they are dense and of one shape.

    Raises:
        InputError: the layers are a tuple, or not dense.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        raise InputError("params['layers'] is a tuple; pruning needs layers of one shape (stack_layers)")
    for name in LINEARS:
        if not isinstance(layers[name], jax.Array | np.ndarray):
            raise InputError(
                f"params['layers'][{name!r}] is a {type(layers[name]).__name__}; pruning needs dense matrices "
                "(jaxlab.models.dense)"
            )
    return layers
