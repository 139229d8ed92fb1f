"""Keys and values of the tokens seen so far, so that decoding runs the model on the new tokens alone.

They are kept as numbers, or in a code of fewer bits (`CodedVectors`): each head's vector is then encoded once, as it is
written, and decoded where attention reads it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig


class VectorCode(Protocol):
    """A code for the vector of one head of one token; hashable, since programs are compiled for it."""

    def encode(self, x: Float[Array, "... head_dim"]) -> Any:
        """A pytree of arrays `[..., some]`, a row a vector."""

    def decode(self, codes: Any, head_dim: int) -> Float[Array, "... head_dim"]:
        """The vectors that codes stand for, in float32."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "offset"],
    meta_fields=["code", "head_dim", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class CodedVectors:
    """Keys or values of a cache in a code; stands for an array `[L, B, S, kv_heads, head_dim]`."""

    codes: Any
    """What `code.encode` makes: arrays `[L, B, S, kv_heads, some]`."""
    offset: Float[Array, "L kv_heads head_dim"] | None
    """Taken off before encoding and added after decoding; None is nothing."""
    code: VectorCode
    head_dim: int
    dtype: Any
    """Of the decoded vectors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for."""
        return (*jax.tree.leaves(self.codes)[0].shape[:-1], self.head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, gains and scales included; the offset, which is the model's and not a token's, is not."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.codes))

    def __getitem__(self, index: Any) -> "CodedVectors":
        """Some of the rows, `coded[:, rows]`."""
        return dataclasses.replace(self, codes=jax.tree.map(lambda leaf: leaf[index], self.codes))


class Cache(NamedTuple):
    """Slots for `S` tokens of each of `B` rows in each of `L` layers.

    `kv_heads` is that of the widest layer; a narrower one uses the first of them.

    Row b's tokens lie in slots 0 .. length[b] - 1; what the later slots hold is never looked at, and the next
    token goes to slot length[b]. To drop tokens (right padding of a prompt) lower `length`.
    """

    keys: Float[Array, "L B S kv_heads head_dim"] | CodedVectors
    values: Float[Array, "L B S kv_heads head_dim"] | CodedVectors
    length: Int[Array, " B"]


def init_cache(
    cfg: ModelConfig,
    batch: int,
    size: int,
    *,
    dtype: jnp.dtype = jnp.float32,
    code: VectorCode | None = None,
    key_offset: Float[Array, "L kv_heads head_dim"] | None = None,
) -> Cache:
    """An empty cache of `size` slots a row.

    Args:
        cfg: the model.
        batch: rows, at least 1.
        size: slots, at least 1.
        dtype: of keys and values; that of the embedding.
        code: keep keys and values in this code; None keeps them as they are.
        key_offset: with a code, encode what keys are beyond this, for instance beyond their mean
            (`jaxlab.quantization.mean_keys`), which is most of them.

    Raises:
        InputError: a size out of range, a code that does not fit the heads, an offset of a wrong shape or without a
            code.
    """
    if batch < 1 or size < 1:
        raise InputError(f"init_cache: batch {batch} and size {size} must be at least 1")
    shape = cache_shape(cfg, batch, size)
    length = jnp.zeros(batch, jnp.int32)
    expected = shape[0], *shape[3:]
    if key_offset is not None and (code is None or key_offset.shape != expected):
        raise InputError(
            f"key_offset has shape {key_offset.shape}; it must be {expected}, and None where there is no code"
        )
    if code is None:
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), length)
    codes = jax.eval_shape(code.encode, jax.ShapeDtypeStruct(shape, jnp.float32))

    def empty(offset: Array | None) -> CodedVectors:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), codes)
        return CodedVectors(zeros, offset, code, cfg.head_dim, jnp.dtype(dtype))

    return Cache(empty(None if key_offset is None else jnp.asarray(key_offset)), empty(None), length)


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

    def scatter(slots: Array, new: Array) -> Array:
        return lax.scatter(
            slots,
            starts,
            new.astype(slots.dtype),
            numbers,
            indices_are_sorted=True,
            unique_indices=True,
            mode=lax.GatherScatterMode.CLIP,
        )

    def put(slots: Array | CodedVectors, new: Array) -> Array | CodedVectors:
        if not isinstance(slots, CodedVectors):
            return scatter(slots, new)
        if slots.offset is not None:
            new = new - slots.offset[layer_index, : new.shape[2]]
        codes = jax.tree.map(scatter, slots.codes, slots.code.encode(new))
        return dataclasses.replace(slots, codes=codes)

    return cache._replace(keys=put(cache.keys, keys), values=put(cache.values, values))


def read(cache: Cache, layer_index: int | Int[Array, ""], kv_heads: int) -> tuple[Array, Array]:
    """One layer's keys and values `[B, S, kv_heads, head_dim]`, unused slots included."""

    def take(slots: Array) -> Array:
        return lax.dynamic_index_in_dim(slots, layer_index, keepdims=False)[:, :, :kv_heads]

    def get(slots: Array | CodedVectors) -> Array:
        if not isinstance(slots, CodedVectors):
            return take(slots)
        vectors = slots.code.decode(jax.tree.map(take, slots.codes), slots.head_dim)
        if slots.offset is not None:
            vectors = vectors + slots.offset[layer_index, :kv_heads]
        return vectors.astype(slots.dtype)

    return get(cache.keys), get(cache.values)
