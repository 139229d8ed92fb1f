"""Keys and values of the tokens seen so far, so that decoding runs the model on the new tokens alone."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig


class Cache(NamedTuple):
    """Slots for `S` tokens of each of `B` rows in each of `L` layers.

    `kv_heads` is that of the widest layer; a narrower one uses the first of them.

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
        size: slots, at least 1.
        dtype: of keys and values; that of the embedding.

    Raises:
        InputError: a size out of range.
    """
    if batch < 1 or size < 1:
        raise InputError(f"init_cache: batch {batch} and size {size} must be at least 1")
    shape = cache_shape(cfg, batch, size)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


def cache_shape(cfg: ModelConfig, batch: int, size: int) -> tuple[int, int, int, int, int]:
    """Shape of the keys, and of the values, of a cache of `size` slots a row."""
    kv_heads = max(cfg.widths(layer).num_kv_heads for layer in range(cfg.num_layers))
    return cfg.num_layers, batch, size, kv_heads, cfg.head_dim


def write(
    cache: Cache,
    layer_index: int | Int[Array, ""],
    keys: Float[Array, "B T kv_heads head_dim"],
    values: Float[Array, "B T kv_heads head_dim"],
) -> Cache:
    """Put one layer's new keys and values into the slots from `length` on; `length` itself stays."""
    batch = keys.shape[0]
    starts = jnp.stack([jnp.full(batch, layer_index, jnp.int32), jnp.arange(batch), cache.length], axis=-1)
    # One scatter of whole [time, kv_heads, head_dim] slabs: a vmapped update would transpose the cache twice.
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0, 1), scatter_dims_to_operand_dims=(0, 1, 2)
    )

    def put(slots: Array, new: Array) -> Array:
        return lax.scatter(
            slots,
            starts,
            new.astype(slots.dtype),
            numbers,
            indices_are_sorted=True,
            unique_indices=True,
            mode=lax.GatherScatterMode.CLIP,
        )

    return cache._replace(keys=put(cache.keys, keys), values=put(cache.values, values))


def read(cache: Cache, layer_index: int | Int[Array, ""], kv_heads: int) -> tuple[Array, Array]:
    """One layer's keys and values `[B, S, kv_heads, head_dim]`, unused slots included."""
    keys = lax.dynamic_index_in_dim(cache.keys, layer_index, keepdims=False)
    values = lax.dynamic_index_in_dim(cache.values, layer_index, keepdims=False)
    return keys[:, :, :kv_heads], values[:, :, :kv_heads]
