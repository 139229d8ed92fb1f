"""Causal grouped-query attention, softmax in float32, with windows, segments and a cache.

Without a cache the queries are cut into chunks, and a chunk meets only the keys up to its own end: most of
the score matrix above the diagonal is never computed, and [T, T] scores never exist as a whole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

QUERY_CHUNK = 128  # at least this many queries in a chunk ...
MAX_CHUNKS = 8  # ... and at most this many chunks in a program
HIDDEN = -1e30  # added to the score of a key that a query does not see


def attend(
    q: Float[Array, "B T heads dim"],
    k: Float[Array, "B S kv_heads dim"],
    v: Float[Array, "B S kv_heads dim"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    first_slot: Int[Array, " B"] | None = None,
) -> Float[Array, "B T heads dim"]:
    """Attention output of every query over the keys at or before it.

    Args:
        q: queries; heads is a multiple of kv_heads, and head h uses key head h * kv_heads // heads.
        k: keys. Without a cache S = T; with one, slot s holds the row's token s.
        v: values.
        scale: factor of the scores.
        window: keys that a query sees, itself included; None is all.
        segment_ids: tokens see each other only within a segment (no cache).
        first_slot: slot of each row's first query in a cache; None: queries and keys are the same tokens.
    """
    batch, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = (q * scale).reshape(batch, time, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def bias(start: int, stop: int, keys: int) -> Float[Array, "#B stop-start keys"]:
        slots = jnp.arange(start, stop)[None, :]
        if first_slot is not None:
            slots = slots + first_slot[:, None]
        distance = slots[:, :, None] - jnp.arange(keys)
        visible = distance >= 0
        if window is not None:
            visible &= distance < window
        if segment_ids is not None:
            visible &= segment_ids[:, start:stop, None] == segment_ids[:, None, :keys]
        return jnp.where(visible, 0.0, HIDDEN)

    if first_slot is not None:
        out = _softmax_mix(q, k, v, bias(0, time, k.shape[2]))
    else:
        size = max(QUERY_CHUNK, -(-time // MAX_CHUNKS))
        chunks = []
        for start in range(0, time, size):
            stop = min(start + size, time)
            keys, values = k[:, :, :stop], v[:, :, :stop]
            chunks.append(_softmax_mix(q[:, :, :, start:stop], keys, values, bias(start, stop, stop)))
        out = jnp.concatenate(chunks, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def _softmax_mix(
    q: Float[Array, "B kv_heads group T dim"],
    k: Float[Array, "B kv_heads S dim"],
    v: Float[Array, "B kv_heads S dim"],
    bias: Float[Array, "#B T S"],
) -> Float[Array, "B kv_heads group T dim"]:
    """Mix v by softmax(q k^T + bias), normalised after the product, which has fewer entries than the weights.

    The group is folded into the queries' axis, so that each key head is one large matrix product. A bias that
    is added is much faster on CPUs than a mask that selects.
    """
    batch, kv_heads, group, time, dim = q.shape
    rows = q.reshape(batch, kv_heads, group * time, dim)
    scores = jnp.einsum("bktd,bksd->bkts", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, time, -1) + bias[:, None, None]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "bkts,bksd->bktd",
        weights.reshape(batch, kv_heads, group * time, -1).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return (mixed.reshape(q.shape) / weights.sum(-1, keepdims=True)).astype(v.dtype)
