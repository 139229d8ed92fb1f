"""Attention by splash attention, the kernel for TPUs that comes with JAX: causal blocks that nobody sees are skipped.

The kernel keeps neither scores nor weights; [T, T] exists for a block at a time.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_LANES = 128
_BLOCKS = (512, 256, _LANES)
_PADDING = np.iinfo(np.int32).min  # segment of the rows that fill up a block


def attend_splash(
    q: Float[Array, "B T heads dim"],
    k: Float[Array, "B T kv_heads dim"],
    v: Float[Array, "B T kv_heads dim"],
    *,
    scale: float,
    window: int | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    causal: bool = True,
    interpret: bool = False,
) -> Float[Array, "B T heads dim"]:
    """`attend` of a sequence to itself, by `jax.experimental.pallas.ops.tpu.splash_attention`.

    Differentiable. A program for several devices has to call it under `jax.shard_map`, since XLA cannot share out
    what a kernel of its own does.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: see `attend`.
        window: static; see `attend`.
        segment_ids: see `attend`.
        causal: see `attend`.
        interpret: static; run the kernel step by step on any platform, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, time, heads, _ = q.shape
    padding = -time % _LANES
    width = time + padding
    size = (width, width)
    if not causal:
        mask: masks.Mask = masks.FullMask(size)
    elif window is None:
        mask = masks.CausalMask(size)
    else:
        mask = masks.LocalMask(size, (window - 1, 0), offset=0)
    block = next(block for block in _BLOCKS if width % block == 0)
    blocks = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    attention = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        interpret=interpret,
    )

    def heads_first(x: Array) -> Float[Array, "B heads width dim"]:
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    segments, ids = None, segment_ids
    if ids is None and padding and not causal:  # under causality nobody sees what fills up the end
        ids = jnp.zeros((batch, time), jnp.int32)
    if ids is not None:
        ids = jnp.asarray(ids, jnp.int32)
        ids = jnp.pad(ids, ((0, 0), (0, padding)), constant_values=_PADDING)
        segments = kernel.SegmentIds(ids, ids)
    mixed = jax.vmap(attention)(heads_first(q * scale), heads_first(k), heads_first(v), segments)
    return mixed[:, :, :time].transpose(0, 2, 1, 3)
