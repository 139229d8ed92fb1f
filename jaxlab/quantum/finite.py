"""Gradients of any function of a pytree of real arrays, from its values alone: finite differences and SPSA.

References: Fornberg 1988 for the coefficients; Spall, IEEE Trans. Automatic Control 37 (1992) for SPSA.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxlab.errors import InputError

Strategy = Literal["forward", "backward", "center"]
_LEAST_SINGLE_STEP = 1e-3
"""Below, the rounding of single precision is larger than the difference."""


@functools.lru_cache(maxsize=64)
def difference_rule(order: int, strategy: Strategy) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and shifts, both in units of the step, of a first derivative exact to h^order.

    Raises:
      InputError: order < 1, an odd order in the centre, or an unknown strategy.
    """
    if strategy not in ("forward", "backward", "center"):
        raise InputError(f"strategy is {strategy!r}; it must be 'forward', 'backward' or 'center'")
    if order < 1 or (strategy == "center" and order % 2):
        raise InputError(f"order is {order}; it must be at least 1, and even for strategy 'center'")
    if strategy == "center":
        shifts = np.arange(-(order // 2), order // 2 + 1)
    else:
        shifts = np.arange(order + 1) * (1 if strategy == "forward" else -1)
    powers = shifts[None, :].astype(float) ** np.arange(len(shifts))[:, None]
    wanted = np.zeros(len(shifts))
    wanted[1] = 1
    coefficients = np.linalg.solve(powers, wanted)
    kept = np.abs(coefficients) > 1e-12
    return coefficients[kept], shifts[kept].astype(float)


def finite_difference_gradient(
    fn: Callable[[Any], Any],
    params: Any,
    *,
    h: float = 1e-7,
    order: int = 1,
    strategy: Strategy = "forward",
    batch: int = 64,
) -> Any:
    """Derivatives of fn (a real array) in every entry of params: params' structure, fn's axes in front.

    Args:
      fn: function of `params`.
      params: pytree of real arrays.
      h: step; single precision needs at least 1e-3.
      order: of the error in h.
      strategy: side of the differences.
      batch: evaluations that run together.

    Raises:
      InputError: an argument is out of range.
    """
    flat, unravel = _raveled(params, h)
    coefficients, shifts = difference_rule(order, strategy)
    directions = jnp.eye(flat.shape[0], dtype=flat.dtype)

    def slope(direction: jax.Array) -> jax.Array:
        values = jnp.stack([fn(unravel(flat + h * shift * direction)) for shift in shifts])
        return jnp.tensordot(jnp.asarray(coefficients / h, values.dtype), values, 1)

    found = jax.lax.map(slope, directions, batch_size=min(batch, flat.shape[0]))
    return _like_params(jnp.moveaxis(found, 0, -1), params)


def spsa_gradient(
    key: jax.Array,
    fn: Callable[[Any], Any],
    params: Any,
    *,
    h: float = 1e-5,
    order: int = 2,
    strategy: Strategy = "center",
    directions: int = 1,
) -> Any:
    """Unbiased estimate of the gradient from differences along random signs, two evaluations a direction.

    Args:
      key: PRNG key of the signs.
      fn: real-valued function of `params`.
      params: pytree of real arrays.
      h: step; single precision needs at least 1e-3.
      order: of the error in h.
      strategy: side of the differences.
      directions: that are averaged, >= 1.

    Raises:
      InputError: an argument is out of range.
    """
    if directions < 1:
        raise InputError(f"directions is {directions}; it must be at least 1")
    flat, unravel = _raveled(params, h)
    coefficients, shifts = difference_rule(order, strategy)

    def estimate(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(key, flat.shape, flat.dtype)
        values = jnp.stack([fn(unravel(flat + h * shift * signs)) for shift in shifts])
        slope = jnp.tensordot(jnp.asarray(coefficients / h, values.dtype), values, 1)
        return slope[..., None] * signs

    found = jax.vmap(estimate)(jax.random.split(key, directions)).mean(0)
    return _like_params(found, params)


def _raveled(params: Any, h: float) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    flat, unravel = ravel_pytree(params)
    if not h > 0:
        raise InputError(f"h is {h}; it must be > 0")
    if not jnp.issubdtype(flat.dtype, jnp.floating) or not flat.size:
        raise InputError(f"params has {flat.size} entries of dtype {flat.dtype}; real ones are needed")
    if flat.dtype == jnp.float32 and h < _LEAST_SINGLE_STEP:
        warnings.warn(f"h = {h} is too small for single precision; take at least 1e-3", stacklevel=3)
    return flat, unravel


def _like_params(flat: jax.Array, params: Any) -> Any:
    """Splits the last axis as `params` is split."""
    leaves, structure = jax.tree.flatten(params)
    sizes = np.cumsum([math.prod(jnp.shape(leaf)) for leaf in leaves])[:-1]
    pieces = jnp.split(flat, sizes, axis=-1)
    shaped = [p.reshape(*p.shape[:-1], *jnp.shape(leaf)) for p, leaf in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)
