"""Checks of values at the public boundary; only shapes and numbers, so that they cost nothing under a trace."""

import math
from typing import Any

import jax.numpy as jnp

from jaxlab.errors import InputError


def require_embeddings(name: str, values: Any, *, at_least: int = 2) -> None:
    """Raises InputError unless the array has shape (n, d) with n >= `at_least` and d >= 1."""
    shape = jnp.shape(values)
    if len(shape) != 2 or shape[0] < at_least or shape[1] < 1:
        raise InputError(f"{name} has shape {shape}; it must be (n, d) with n >= {at_least} and d >= 1")


def require_views(first: Any, second: Any, *, names: tuple[str, str] = ("first", "second")) -> None:
    """Raises InputError unless both are embeddings of one shape."""
    require_embeddings(names[0], first)
    if jnp.shape(first) != jnp.shape(second):
        raise InputError(
            f"{names[1]} has shape {jnp.shape(second)}; it must be that of {names[0]}, {jnp.shape(first)}"
        )


def require_number(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises InputError unless the number is finite and in range."""
    if not (math.isfinite(value) and above < value < below and value >= at_least):
        bounds = [f" > {above}"] * (above > -math.inf) + [f" >= {at_least}"] * (at_least > -math.inf)
        bounds += [f" < {below}"] * (below < math.inf)
        raise InputError(f"{name} is {value}; it must be a finite number{' and'.join(bounds)}")
