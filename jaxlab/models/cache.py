"""Keys and values of the tokens seen so far, so that decoding runs the model on the new tokens alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig


class Cache(NamedTuple):
    """Slots for `S` tokens of each of `B` rows in each of `L` layers.

    Row b's tokens lie in slots 0 .. length[b] - 1; what the later slots hold is never looked at, and the next
    token goes to slot length[b]. To drop tokens (right padding of a prompt) lower `length`.
    """

    keys: Float[Array, "L B S kv_heads head_dim"]
    values: Float[Array, "L B S kv_heads head_dim"]
    length: Int[Array, " B"]


def init_cache(cfg: ModelConfig, batch: int, size: int, *, dtype: jnp.dtype = jnp.float32) -> Cache:
    """An empty cache of `size` slots a row.

    Args:
        cfg: the model.
        batch: rows, at least 1.
        size: slots, between 1 and cfg.max_positions rounded up to a power of two.
        dtype: of keys and values; that of the embedding.

    Raises:
        InputError: a size out of range.
    """
    if batch < 1 or size < 1:
        raise InputError(f"init_cache: batch {batch} and size {size} must be at least 1")
    shape = (cfg.num_layers, batch, size, cfg.num_kv_heads, cfg.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


def write(
    cache: Cache,
    layer_index: int | Int[Array, ""],
    keys: Float[Array, "B T kv_heads head_dim"],
    values: Float[Array, "B T kv_heads head_dim"],
) -> Cache:
    """Put one layer's new keys and values into the slots from `length` on; `length` itself stays."""

    def put(slots: Array, new: Array) -> Array:
        def row(slots_of_row: Array, new_of_row: Array, start: Array) -> Array:
            at = (layer_index, start, 0, 0)
            return lax.dynamic_update_slice(slots_of_row, new_of_row[None].astype(slots.dtype), at)

        return jax.vmap(row, in_axes=(1, 0, 0), out_axes=1)(slots, new, cache.length)

    return cache._replace(keys=put(cache.keys, keys), values=put(cache.values, values))


def read(cache: Cache, layer_index: int | Int[Array, ""]) -> tuple[Array, Array]:
    """One layer's keys and values `[B, S, kv_heads, head_dim]`, unused slots included."""
    keys = lax.dynamic_index_in_dim(cache.keys, layer_index, keepdims=False)
    return keys, lax.dynamic_index_in_dim(cache.values, layer_index, keepdims=False)
