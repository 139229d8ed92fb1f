"""Checks of arguments of this package; values are looked at where they are concrete, and tracers pass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError


def is_concrete(*values: Any) -> bool:
    """Whether none of these arrays is being traced."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def require_names(names: Sequence[str], *, taxa: int | None = None) -> None:
    """Raises InputError unless the names are distinct, not empty, and as many as there are taxa."""
    if taxa is not None and len(names) != taxa:
        raise InputError(f"names has {len(names)} entries; it must have {taxa}, one a taxon")
    if "" in names:
        raise InputError(f"names[{list(names).index('')}] is empty; every taxon must have a name")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"names holds {twice[0]!r} more than once; names must be distinct")


def require_square(name: str, matrix: Any, *, smallest: int = 1) -> None:
    """Raises InputError unless this is a square matrix, large enough, symmetric and finite."""
    shape = jnp.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(f"{name} has shape {shape}; it must be a square matrix")
    if shape[0] < smallest:
        raise InputError(f"{name} has {shape[0]} taxa; it must have at least {smallest}")
    if not is_concrete(matrix):
        return
    values = np.asarray(matrix)
    if not np.isfinite(values).all():
        i, j = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"{name}[{i}, {j}] is {values[i, j]}; it must be finite")
    apart = np.abs(values - values.T)
    if apart.max() > 1e-4 * max(1.0, float(np.abs(values).max())):
        i, j = np.unravel_index(int(apart.argmax()), apart.shape)
        raise InputError(
            f"{name}[{i}, {j}] is {values[i, j]}, but [{j}, {i}] is {values[j, i]}; it must be symmetric"
        )
