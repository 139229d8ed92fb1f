"""Weight matrices of which only some rows and columns are left, stored and multiplied as the small matrix.

Pruning by rows and columns leaves other rows and columns in every matrix, so that neighbours do not fit without
an index: the inputs that still count are taken, and the outputs put back among zeros.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear, register_linear
from jaxlab.models.validation import concrete


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "rows", "columns"],
    meta_fields=["size", "width"],
)
@dataclasses.dataclass(frozen=True)
class Gathered:
    """The matrix W `[size, width]` with W[rows][:, columns] = weight and zeros everywhere else.

    Attributes:
        weight: what is left of the matrix; any leaf that `linear` takes.
        rows: int32, increasing, in [0, size).
        columns: int32, increasing, in [0, width).
        size: number of outputs.
        width: number of inputs.
    """

    weight: Any
    rows: Int[Array, "*stack n_out"]
    columns: Int[Array, "*stack n_in"]
    size: int
    width: int


def gather(
    matrix: Any, kept_rows: Bool[np.ndarray, " outputs"], kept_columns: Bool[np.ndarray, " inputs"]
) -> Gathered:
    """What a matrix has in some of its rows and columns; the rest counts as zero from here on.

    Args:
        matrix: `[outputs, inputs]`, an array or a leaf that stands for one; may be traced.
        kept_rows: which rows stay. Not traced, since shapes depend on it; none at all is fine.
        kept_columns: which columns stay.

    Raises:
        InputError: a mask is not boolean, or its length is not that of the matrix.
    """
    matrix = dense(matrix)
    if matrix.ndim != 2:
        raise InputError(
            f"gather: matrix has shape {matrix.shape}; give one matrix [outputs, inputs] at a time"
        )
    masks = {"kept_rows": np.asarray(kept_rows), "kept_columns": np.asarray(kept_columns)}
    for (name, mask), length in zip(masks.items(), matrix.shape, strict=True):
        if mask.dtype != bool or mask.shape != (length,):
            raise InputError(
                f"gather: {name} has dtype {mask.dtype} and shape {mask.shape}; it must be bool ({length},)"
            )
    rows, columns = (np.flatnonzero(mask).astype(np.int32) for mask in masks.values())
    return Gathered(part(matrix, rows, columns), jnp.asarray(rows), jnp.asarray(columns), *matrix.shape)


def part(
    matrix: Float[Array, "outputs inputs"], rows: Int[np.ndarray, " n_out"], columns: Int[np.ndarray, " n_in"]
) -> Float[Array, "n_out n_in"]:
    """matrix[rows][:, columns]; by NumPy unless it is traced, since XLA would compile a program for every shape."""
    values = concrete(matrix)
    return matrix[rows][:, columns] if values is None else jnp.asarray(values[np.ix_(rows, columns)])


def checked_indices(values: Any, length: int) -> Int[np.ndarray, " count"]:
    """The numbers of kept rows or columns of a matrix that has `length` of them.

    Raises:
        InputError: they are not integers, not increasing, or out of range.
    """
    values = np.asarray(values)
    increasing = values.dtype.kind in "iu" and bool((np.diff(values.astype(np.int64)) > 0).all())
    if not increasing or (values.size and not (0 <= values[0] and values[-1] < length)):
        raise InputError(
            f"holds {values.dtype} {values.tolist() if values.size < 9 else [*values[:4], '...', *values[-4:]]}; "
            f"it must hold increasing integers from 0 to {length - 1}"
        )
    return values


def _apply(x: Float[Array, "... width"], leaf: Gathered) -> Float[Array, "... size"]:
    if x.shape[-1] != leaf.width:
        raise InputError(f"linear: a leaf of width {leaf.width} cannot act on inputs of width {x.shape[-1]}")
    count = leaf.rows.shape[0]
    out = linear(jnp.take(x, leaf.columns, axis=-1, mode="clip"), leaf.weight)
    if count == 0:
        return jnp.zeros((*x.shape[:-1], leaf.size), out.dtype)
    # Each output looks up its row: twice as fast on CPUs as scattering the rows.
    row_of = jnp.full(leaf.size, count, jnp.int32).at[leaf.rows].set(jnp.arange(count, dtype=jnp.int32))
    return jnp.where(row_of < count, jnp.take(out, row_of, axis=-1, mode="clip"), 0)


def _dense(leaf: Gathered) -> Float[Array, "*stack size width"]:
    if leaf.rows.ndim > 1:
        return jax.vmap(_dense)(leaf)
    weight = dense(leaf.weight)
    values, rows, columns = (concrete(array) for array in (weight, leaf.rows, leaf.columns))
    if values is not None and rows is not None and columns is not None:  # as in `part`
        whole = np.zeros((leaf.size, leaf.width), values.dtype)
        whole[np.ix_(rows, columns)] = values
        return jnp.asarray(whole)
    full = jnp.zeros((leaf.size, leaf.width), weight.dtype)
    return full.at[leaf.rows[:, None], leaf.columns].set(weight)


register_linear(Gathered, _apply, _dense)
