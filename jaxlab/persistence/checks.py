"""Checks of values at the public boundary; they look at concrete arrays and pass tracers through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError


def is_concrete(*values: Any) -> bool:
    """Whether no array of these pytrees is being traced, so that their values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def require_no_nan(name: str, values: Any, *, infinite: bool = False) -> None:
    """Raises InputError if an entry is NaN or -inf, or +inf unless `infinite` (a cell that never enters)."""
    if not is_concrete(values):
        return
    array = np.asarray(values)
    wrong = ~np.isfinite(array) & ~(infinite & np.isposinf(array))
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        allowed = "finite, or +inf for what never enters" if infinite else "finite"
        raise InputError(f"{name}[{', '.join(map(str, where))}] is {array[where]}; values must be {allowed}")


def require_shape(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    """Raises InputError unless the shape is this one; None stands for any size."""
    found = jnp.shape(values)
    fits = len(found) == len(shape) and all(w in (None, f) for f, w in zip(found, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{name} has shape {found}, but must have shape ({wanted})")


def require_distances(distances: Any, *, name: str = "distances") -> None:
    """Raises InputError unless it is a square matrix of at least one point, symmetric, zero on the diagonal.

    Equal points (distance zero) are allowed.
    """
    shape = jnp.shape(distances)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(f"{name} has shape {shape}, but must be a square matrix")
    if shape[0] == 0:
        raise InputError(f"{name} has shape {shape}: a cloud must have at least one point")
    if not is_concrete(distances):
        return
    require_no_nan(name, distances, infinite=True)
    matrix = np.asarray(distances)
    if (matrix < 0).any():
        i, j = np.argwhere(matrix < 0)[0]
        raise InputError(f"{name}[{i}, {j}] is {matrix[i, j]}; distances must not be negative")
    if (np.diagonal(matrix) != 0).any():
        i = int(np.flatnonzero(np.diagonal(matrix))[0])
        raise InputError(f"{name}[{i}, {i}] is {matrix[i, i]}; the diagonal must be zero")
    if (matrix != matrix.T).any():
        i, j = np.argwhere(matrix != matrix.T)[0]
        raise InputError(
            f"{name} is not symmetric: [{i}, {j}] is {matrix[i, j]} but [{j}, {i}] is {matrix[j, i]}; make it from "
            "the upper triangle alone, as pairwise_distance does"
        )
