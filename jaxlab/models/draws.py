"""Draws from many distributions over a vocabulary with one random number each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_STRETCH = 256  # about the root of a vocabulary's size


def draw(key: jax.Array, p: Float[Array, "*shape values"]) -> Int[Array, "*shape"]:
    """One value a distribution, by where a uniform number falls in the sum: first which stretch, then where in it.

    `jax.random.categorical` takes one random number a value instead: on a CPU those would take as long as a
    small model's forward pass.

    Args:
        key: PRNG key.
        p: probabilities, or any weights >= 0 that are not all zero.
    """
    stretches = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % _STRETCH)])
    stretches = stretches.reshape(*p.shape[:-1], -1, _STRETCH)
    upto = jnp.cumsum(stretches.sum(-1), axis=-1)
    at = jax.random.uniform(key, p.shape[:-1]) * upto[..., -1]
    first = jnp.sum(upto <= at[..., None], axis=-1)
    before = jnp.take_along_axis(upto - stretches.sum(-1), first[..., None], axis=-1)
    inside = jnp.take_along_axis(stretches, first[..., None, None], axis=-2)[..., 0, :]
    second = jnp.sum(before + jnp.cumsum(inside, axis=-1) <= at[..., None], axis=-1)
    return jnp.minimum(first * _STRETCH + jnp.minimum(second, _STRETCH - 1), p.shape[-1] - 1)
