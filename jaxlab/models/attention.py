"""Grouped-query attention, softmax in float32, causal or not, with windows, segments and a cache.

Without a cache the queries are cut into chunks, and under causality a chunk meets only the keys up to its own end:
most of the score matrix above the diagonal is never computed, and [T, T] scores never exist as a whole. Half-precision
queries on NVIDIA's GPUs go to cuDNN's flash attention, and on a TPU to splash attention.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.models.attention_tpu import attend_splash

QUERY_CHUNK = 128  # at least this many queries in a chunk ...
MAX_CHUNKS = 8  # ... and at most this many chunks in a program
_CUDNN_WIDTH = 128  # heads that cuDNN takes on every GPU
HIDDEN = -1e30  # added to the score of a key that a query does not see


def attend(
    q: Float[Array, "B T heads dim"],
    k: Float[Array, "B S kv_heads dim"],
    v: Float[Array, "B S kv_heads dim"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    first_slot: Int[Array, " B"] | None = None,
    score_bias: Float[Array, "#B heads T S"] | None = None,
    causal: bool = True,
) -> Float[Array, "B T heads dim"]:
    """Attention output of every query over the keys at or before it, or over all keys.

    Without a cache or biases of scores, half precision goes to cuDNN on GPUs (`attend_fused`), and bfloat16 on a TPU by
    itself, where windows are static, to `attend_splash`. All else is XLA's.

    Args:
        q: queries; heads is a multiple of kv_heads, and head h uses key head h * kv_heads // heads.
        k: keys. Without a cache S = T, unless they are other tokens'; with one, slot s holds the row's token s.
        v: values.
        scale: factor of the scores.
        window: keys that a query sees, itself included; None is all.
        segment_ids: tokens see each other only within a segment (no cache).
        key_segment_ids: segments of the keys, where these are other tokens than the queries.
        first_slot: slot of each row's first query in a cache; None: there is no cache.
        score_bias: added to the scaled scores.
        causal: static. False: no order, and no window.
    """
    batch, time, heads, dim = q.shape
    half = q.dtype in (jnp.bfloat16, jnp.float16) and dim % 8 == 0 and dim <= _CUDNN_WIDTH
    if half and first_slot is None and score_bias is None and jax.default_backend() == "gpu":
        return attend_fused(
            q,
            k,
            v,
            scale=scale,
            window=window,
            segment_ids=segment_ids,
            key_segment_ids=key_segment_ids,
            causal=causal,
        )
    itself = first_slot is None and score_bias is None and key_segment_ids is None and k.shape[1] == time
    if itself and q.dtype == jnp.bfloat16 and not isinstance(window, jax.Array) and _on_one_tpu():
        return attend_splash(q, k, v, scale=scale, window=window, segment_ids=segment_ids, causal=causal)
    kv_heads = k.shape[2]
    q = (q * scale).reshape(batch, time, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    key_segments = segment_ids if key_segment_ids is None else key_segment_ids

    def bias(start: int, stop: int, keys: int) -> Float[Array, "#B stop-start keys"]:
        if causal:
            slots = jnp.arange(start, stop)[None, :]
            if first_slot is not None:
                slots = slots + first_slot[:, None]
            distance = slots[:, :, None] - jnp.arange(keys)
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
        else:
            visible = jnp.ones((1, stop - start, keys), bool)
        if segment_ids is not None and key_segments is not None:
            visible &= segment_ids[:, start:stop, None] == key_segments[:, None, :keys]
        return jnp.where(visible, 0.0, HIDDEN)

    def extra(start: int, stop: int, keys: int) -> Float[Array, "#B kv_heads group stop-start keys"] | None:
        if score_bias is None:
            return None
        part = score_bias[:, :, start:stop, :keys]
        return part.reshape(part.shape[0], kv_heads, -1, *part.shape[2:])

    if first_slot is not None:
        slots = k.shape[2]
        out = _softmax_mix(q, k, v, bias(0, time, slots), extra(0, time, slots))
    else:
        size = max(QUERY_CHUNK, -(-time // MAX_CHUNKS))
        chunks = []
        for start in range(0, time, size):
            stop = min(start + size, time)
            seen = stop if causal else k.shape[2]
            keys, values = k[:, :, :seen], v[:, :, :seen]
            chunks.append(
                _softmax_mix(
                    q[:, :, :, start:stop], keys, values, bias(start, stop, seen), extra(start, stop, seen)
                )
            )
        out = jnp.concatenate(chunks, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, dim)


def _on_one_tpu() -> bool:
    """Whether a program may hold kernels for TPUs that nobody has shared out over devices."""
    return jax.default_backend() == "tpu" and jax.device_count() == 1


def attend_fused(
    q: Float[Array, "B T heads dim"],
    k: Float[Array, "B S kv_heads dim"],
    v: Float[Array, "B S kv_heads dim"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    causal: bool = True,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T heads dim"]:
    """`attend` by `jax.nn.dot_product_attention`: cuDNN's flash attention on NVIDIA's GPUs.

    `attend` takes it there for bfloat16 and float16 without a cache or biases of scores. cuDNN knows causality
    and static windows; segments, and windows that differ by layer, become a mask of [B, 1, T, S] bits.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: see `attend`.
        window: see `attend`.
        segment_ids: see `attend`.
        key_segment_ids: see `attend`.
        causal: see `attend`.
        implementation: static; "xla" runs everywhere.
    """
    mask = local = None
    if causal and isinstance(window, int):
        local = (window - 1, 0)
    elif causal and window is not None:
        time, slots = jnp.arange(q.shape[1]), jnp.arange(k.shape[1])
        mask = (time[:, None] - slots < window)[None, None]
    if segment_ids is not None:
        keys = segment_ids if key_segment_ids is None else key_segment_ids
        same = (segment_ids[:, :, None] == keys[:, None])[:, None]
        mask = same if mask is None else mask & same
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=scale,
        is_causal=causal,
        local_window_size=local,
        implementation=implementation,
    )


def attend_tree(
    q: Float[Array, "B T heads dim"],
    k: Float[Array, "B T kv_heads dim"],
    v: Float[Array, "B T kv_heads dim"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    prompt_len: Int[Array, " B"],
    branches: tuple[int, int],
    **options: None,
) -> Float[Array, "B T heads dim"]:
    """Attention in rows of a prompt and branches that follow upon it, T = prompt + number * length of the branches.

    A branch sees the tokens of the prompt and its own up to the token itself, as if it stood right behind the prompt;
    scores between branches are never computed.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: see `attend`.
        window: see `attend`; distances are those in the sequence of the prompt and one branch.
        prompt_len: tokens of each prompt, which is right-padded.
        branches: static; their number and length.
        options: of `attend`, left at None.
    """
    number, length = branches
    batch, time, heads, dim = q.shape
    kv_heads, prompt = k.shape[2], time - number * length
    own = attend(q[:, :prompt], k[:, :prompt], v[:, :prompt], scale=scale, window=window)

    def split(x: Array) -> tuple[Array, Array]:
        """`[B, kv_heads, prompt, dim]` and `[B, kv_heads, number, length, dim]`."""
        x = x.transpose(0, 2, 1, 3)
        return x[:, :, :prompt], x[:, :, prompt:].reshape(batch, kv_heads, number, length, dim)

    (k_prompt, k_own), (v_prompt, v_own) = split(k), split(v)
    asked = (
        (q[:, prompt:] * scale).reshape(batch, number, length, kv_heads, -1, dim).transpose(0, 3, 4, 1, 2, 5)
    )
    slots, steps = jnp.arange(prompt), jnp.arange(length)
    distance = prompt_len[:, None, None] + steps[:, None] - slots
    sees_prompt, sees_own = slots < prompt_len[:, None, None], steps[:, None] >= steps
    if window is not None:
        sees_prompt, sees_own = (
            sees_prompt & (distance < window),
            sees_own & (steps[:, None] - steps < window),
        )
    wide = {"preferred_element_type": jnp.float32}
    to_prompt = jnp.einsum("bkgnld,bksd->bkgnls", asked, k_prompt, **wide)
    to_own = jnp.einsum("bkgnld,bknmd->bkgnlm", asked, k_own, **wide)
    to_prompt += jnp.where(sees_prompt, 0.0, HIDDEN)[:, None, None, None]
    to_own += jnp.where(sees_own, 0.0, HIDDEN)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1)).astype(v.dtype)
    mixed = jnp.einsum("bkgnls,bksd->bkgnld", weights[..., :prompt], v_prompt, **wide)
    mixed += jnp.einsum("bkgnlm,bknmd->bkgnld", weights[..., prompt:], v_own, **wide)
    mixed = mixed.astype(v.dtype).transpose(0, 3, 4, 1, 2, 5).reshape(batch, number * length, heads, dim)
    return jnp.concatenate([own, mixed], axis=1)


def _softmax_mix(
    q: Float[Array, "B kv_heads group T dim"],
    k: Float[Array, "B kv_heads S dim"],
    v: Float[Array, "B kv_heads S dim"],
    bias: Float[Array, "#B T S"],
    extra: Float[Array, "#B kv_heads group T S"] | None,
) -> Float[Array, "B kv_heads group T dim"]:
    """Mix v by softmax(q k^T + bias + extra), normalised after the product, which has fewer entries than the weights.

    The group is folded into the queries' axis, so that each key head is one large matrix product. A bias that
    is added is much faster on CPUs than a mask that selects.
    """
    batch, kv_heads, group, time, dim = q.shape
    rows = q.reshape(batch, kv_heads, group * time, dim)
    scores = jnp.einsum("bktd,bksd->bkts", rows, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, time, -1) + bias[:, None, None]
    if extra is not None:
        scores += extra
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "bkts,bksd->bktd",
        weights.reshape(batch, kv_heads, group * time, -1).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return (mixed.reshape(q.shape) / weights.sum(-1, keepdims=True)).astype(v.dtype)
