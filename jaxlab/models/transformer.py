"""The forward pass of Llama, Mistral, Qwen2, Qwen3, Gemma 3, OPT, GPT-2, GPT-NeoX, Phi and the encoder BERT as pure
functions of a parameter pytree.

`params` is `{"embed": [V, D], "layers": {name: [L, ...]} or a tuple of per-layer dicts, "final_norm": [D],
"head": [V, D] (absent when tied)}` with all matrices `[out, in]`; `validation.top_shapes` says what flags of the
configuration add. Stacked layers run under one `lax.scan`; a tuple runs as a Python loop of the same `block`, so that
its members may differ in kind and width; a layer may have no key-value heads or no hidden units left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlab.models.attention import attend
from jaxlab.models.cache import Cache, read, write
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import at_layer, dense, keeps_whole, linear, matrix_rows
from jaxlab.models.rope import frequency_table, layer_geometry, rotary_factors, rotate
from jaxlab.models.validation import (
    check_cache,
    check_causal,
    check_params,
    check_positions,
    check_tokens,
)

Params = dict[str, Any]
Taps = dict[str, Array]
Attention = Callable[..., Float[Array, "batch time heads head_dim"]]

INPUT_SITES: dict[str, tuple[str, ...]] = {
    "attention_input": ("q", "k", "v"),
    "attention_output": ("o",),
    "mlp_input": ("gate", "up"),
    "mlp_hidden": ("down",),
}
"""The four inputs of a block's matrices, and the matrices that read each of them."""
SITE_OF = {name: site for site, names in INPUT_SITES.items() for name in names}


class Forward(NamedTuple):
    """Result of `forward`: the hidden states after the final norm, and the cache with the new tokens.

    Where `cfg.embed_size` is given they have that width.
    """

    hidden: Float[Array, "batch time hidden"]
    cache: Cache | None


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    *,
    positions: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    token_types: Int[Array, "batch time"] | None = None,
    cache: Cache | None = None,
) -> Forward:
    """Hidden states of every token; `logits` makes them into scores over the vocabulary.

    Attention is causal in the order of the axis `time`. Right padding therefore needs no mask; for left
    padding, packed sequences, or any padding of an encoder give `segment_ids`.

    Args:
        params: see the module.
        cfg: static.
        tokens: int32, in [0, vocab_size).
        positions: rotary or learned positions; default 0, 1, 2, ... or, with a cache, on from each row's length.
        segment_ids: tokens attend only to tokens of the same id. Not with a cache.
        token_types: kind of each token, 0 to `cfg.token_types` - 1; default 0. For BERT alone.
        cache: tokens seen before; room for `time` more in every row. A row that overflows
            is not detected where its length is traced.

    Raises:
        InputError: tokens of a wrong rank, dtype or range, a sequence longer than cfg.max_positions or than
            the room in the cache, or parameters whose names or shapes are not those of `cfg`.
    """
    check_params(params, cfg)
    check_tokens(tokens, cfg, positions=positions, segment_ids=segment_ids, token_types=token_types)
    check_positions(positions, token_types, cfg)
    if cache is not None:
        check_cache(cache, cfg, tokens, segment_ids)
    return _forward(params, cfg, tokens, positions, segment_ids, token_types, cache)


def logits(
    params: Params, cfg: ModelConfig, hidden: Float[Array, "... hidden"]
) -> Float[Array, "... vocabulary"]:
    """Scores over the vocabulary, from hidden states after the final norm.

    Raises:
        InputError: the model is an encoder.
    """
    check_causal(cfg, "logits")
    scores = linear(hidden, params["embed"] if cfg.tie_embeddings else params["head"])
    return scores + jnp.asarray(params["head_bias"], scores.dtype) if cfg.head_bias else scores


def embed(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    *,
    positions: Int[Array, "batch time"] | None = None,
    token_types: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time hidden"]:
    """Input of the first block; as in transformers, Gemma's factor is rounded to the dtype of the weights.

    Args:
        params: see the module.
        cfg: static.
        tokens: int32.
        positions: see `forward`; they matter only where positions are learned.
        token_types: see `forward`.
    """
    hidden = matrix_rows(params["embed"], tokens)
    if cfg.embed_scale != 1.0:
        hidden = hidden * jnp.asarray(cfg.embed_scale, hidden.dtype)
    if cfg.embed_size is not None:
        hidden = linear(hidden, params["project_in"])
    if cfg.learned_positions:
        if positions is None:
            positions = default_positions(tokens.shape[0], tokens.shape[1], None)
        rows = positions + cfg.position_offset
        hidden = hidden + jnp.take(dense(params["positions"]), rows, axis=0, mode="clip")
    if cfg.token_types:
        kinds = jnp.zeros_like(tokens) if token_types is None else token_types
        hidden = hidden + jnp.take(dense(params["token_types"]), kinds, axis=0, mode="clip")
    return norm(hidden, params, "embed_norm", cfg) if cfg.embed_norm else hidden


def block(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "batch time hidden"],
    *,
    inverse_frequencies: Float[Array, " half_dim"],
    window: int | Int[Array, ""] | None = None,
    positions: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    cache: Cache | None = None,
    layer_index: int | Int[Array, ""] = 0,
) -> tuple[Float[Array, "batch time hidden"], Cache | None, Taps]:
    """One transformer block. The numbers of heads are read off the weights, so that they may differ by layer.

    Args:
        layer: one layer's parameters.
        cfg: static.
        hidden: residual stream.
        inverse_frequencies: the layer's row of `layer_geometry(cfg)[0]`.
        window: the layer's entry of `layer_geometry(cfg)[1]`; None is global attention.
        positions: see `forward`.
        segment_ids: see `forward`.
        cache: of the whole model; written and read at `layer_index`, its `length` left as it is.
        layer_index: this layer's place in the cache.

    Returns:
        The residual stream, the cache, and taps: the inputs of the matrices by the names in `INPUT_SITES`.
    """
    if positions is None:
        positions = default_positions(hidden.shape[0], hidden.shape[1], cache)
    rope = rotary_factors(inverse_frequencies, positions)
    return _block(layer, cfg, hidden, rope, window, segment_ids, cache, layer_index)


def attention_input(
    layer: dict[str, Any], cfg: ModelConfig, hidden: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time hidden"]:
    """What q, k and v read."""
    return hidden if cfg.post_norm else norm(hidden, layer, "attn_norm", cfg)


def attention_output(
    layer: dict[str, Any],
    cfg: ModelConfig,
    normed: Float[Array, "batch time hidden"],
    *,
    inverse_frequencies: Float[Array, " half_dim"],
    window: int | Int[Array, ""] | None = None,
) -> Float[Array, "batch time heads"]:
    """What o reads, from what q, k and v read; arguments as for `block`."""
    rope = rotary_factors(inverse_frequencies, default_positions(normed.shape[0], normed.shape[1], None))
    return self_attention(layer, cfg, normed, rope, window, None, None, 0)[0]


def mlp_input(
    layer: dict[str, Any], cfg: ModelConfig, hidden: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time hidden"]:
    """What gate and up read, from the residual stream after attention (`cfg.parallel_residual`: before it)."""
    if cfg.post_norm:
        return hidden
    return norm(hidden, layer, "attn_norm" if cfg.shared_norm else "mlp_norm", cfg)


def mlp_hidden(
    layer: dict[str, Any], cfg: ModelConfig, normed: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time units"]:
    """What down reads, from what gate and up read."""
    activation = ACTIVATION_FUNCTIONS[cfg.activation]
    if not cfg.gated_mlp:
        return activation(_affine(normed, layer, "up"))
    gate, up = _affine(normed, layer, "gate"), _affine(normed, layer, "up")
    return activation(gate) * up


def add_branch(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Float[Array, "batch time hidden"],
    product: Float[Array, "batch time hidden"],
    name: Literal["o", "down"],
) -> Float[Array, "batch time hidden"]:
    """The residual stream after a branch, given what its last matrix made of its input (without the bias)."""
    bias = layer.get(f"{name}_bias")
    branch = product if bias is None else product + jnp.asarray(bias, product.dtype)
    if cfg.sandwich_norms:
        branch = norm(branch, layer, "post_attn_norm" if name == "o" else "post_mlp_norm", cfg)
    if cfg.post_norm:
        return norm(hidden + branch, layer, "attn_norm" if name == "o" else "mlp_norm", cfg)
    return hidden + branch


def _block(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Array,
    rope: tuple[Array, Array],
    window: int | Array | None,
    segment_ids: Array | None,
    cache: Cache | None,
    layer_index: int | Array,
    attention: Attention = attend,
) -> tuple[Array, Cache | None, Taps]:
    """`block`, given cos and sin."""
    taps = {"attention_input": attention_input(layer, cfg, hidden)}
    taps["attention_output"], cache = self_attention(
        layer,
        cfg,
        taps["attention_input"],
        rope,
        window,
        segment_ids,
        cache,
        layer_index,
        attention=attention,
    )
    attended = add_branch(layer, cfg, hidden, linear(taps["attention_output"], layer["o"]), "o")
    taps["mlp_input"] = mlp_input(layer, cfg, hidden if cfg.parallel_residual else attended)
    taps["mlp_hidden"] = mlp_hidden(layer, cfg, taps["mlp_input"])
    hidden = add_branch(layer, cfg, attended, linear(taps["mlp_hidden"], layer["down"]), "down")
    return hidden, cache, taps


def self_attention(
    layer: dict[str, Any],
    cfg: ModelConfig,
    normed: Float[Array, "batch time hidden"],
    rope: tuple[Array, Array] | None,
    window: int | Array | None,
    segment_ids: Int[Array, "batch time"] | None,
    cache: Cache | None,
    layer_index: int | Array,
    score_bias: Float[Array, "#batch heads time keys"] | None = None,
    attention: Attention = attend,
) -> tuple[Float[Array, "batch time heads"], Cache | None]:
    """What o reads, and the cache with the new tokens; arguments as for `block`, and:

    Args:
        layer: see `block`.
        cfg: static.
        normed: what q, k and v read.
        rope: cosines and sines; None where nothing is rotated.
        window: see `block`.
        segment_ids: see `forward`.
        cache: see `block`.
        layer_index: see `block`.
        score_bias: added to the scaled scores; its keys are the cache's slots, if there is one.
        attention: in place of `attend`, where there is no cache.
    """
    q = split_heads(_affine(normed, layer, "q"), cfg)
    k = split_heads(_affine(normed, layer, "k"), cfg)
    v = split_heads(_affine(normed, layer, "v"), cfg)
    if cfg.qk_norm:
        q, k = rms_norm(q, layer["q_norm"], cfg), rms_norm(k, layer["k_norm"], cfg)
    if cfg.rotated and rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)

    scale = cfg.head_dim**-0.5 if cfg.attention_scale is None else cfg.attention_scale
    kv_heads = k.shape[2]
    if kv_heads == 0:
        mixed = v  # nothing is left to attend with: the branch is its bias, or nothing
    elif cache is None:
        mixed = attention(
            q,
            k,
            v,
            scale=scale,
            window=window,
            segment_ids=segment_ids,
            score_bias=score_bias,
            causal=cfg.causal,
        )
    else:
        cache = write(cache, layer_index, k, v)
        keys, values = read(cache, layer_index, kv_heads)
        mixed = attend(
            q, keys, values, scale=scale, window=window, first_slot=cache.length, score_bias=score_bias
        )
    return mixed.reshape(*normed.shape[:2], -1), cache


def run_layers(
    params: Params,
    cfg: ModelConfig,
    hidden: Float[Array, "batch time hidden"],
    *,
    positions: Int[Array, "batch time"] | None = None,
    segment_ids: Int[Array, "batch time"] | None = None,
    cache: Cache | None = None,
    collect: Callable[[Taps], Any] = lambda taps: None,
    attention: Attention = attend,
    remat: bool = False,
) -> tuple[Float[Array, "batch time hidden"], Cache | None, Any]:
    """All blocks one after the other, before the final norm.

    Args:
        params: see the module.
        cfg: static.
        hidden: what `embed` returns.
        positions: see `forward`.
        segment_ids: see `forward`.
        cache: see `forward`; its `length` is left as it is.
        collect: what to keep of each block's taps.
        attention: what mixes tokens, with the arguments of `attend`; not with a cache.
        remat: static; keep only what goes into each block, and compute the block again in the backward pass.

    Returns:
        The residual stream, the cache, and what was collected: stacked along a leading layer axis for stacked
        layers, a tuple for a tuple of layers.
    """
    if positions is None:
        positions = default_positions(hidden.shape[0], hidden.shape[1], cache)
    run = block_by_index(cfg, positions, segment_ids, attention)

    layers, carry = params["layers"], (hidden, cache)
    whole = (
        {}
        if isinstance(layers, tuple)
        else {name: leaf for name, leaf in layers.items() if keeps_whole(leaf)}
    )

    def step(carry: tuple[Array, Cache | None], inputs: tuple) -> tuple[tuple[Array, Cache | None], Any]:
        layer, index = inputs
        layer = layer | {name: at_layer(leaf, index) for name, leaf in whole.items()}
        hidden, cache, taps = run(layer, carry[0], index, carry[1])
        return (hidden, cache), collect(taps)

    if remat:
        step = jax.checkpoint(step)
    if isinstance(layers, tuple):
        collected = []
        for index, layer in enumerate(layers):
            carry, kept = step(carry, (layer, index))
            collected.append(kept)
        return *carry, tuple(collected)
    sliced = {name: leaf for name, leaf in layers.items() if name not in whole}
    carry, kept = lax.scan(step, carry, (sliced, jnp.arange(cfg.num_layers)))
    return *carry, kept


def block_by_index(
    cfg: ModelConfig,
    positions: Int[Array, "batch time"],
    segment_ids: Int[Array, "batch time"] | None = None,
    attention: Attention = attend,
) -> Callable[..., tuple[Float[Array, "batch time hidden"], Cache | None, Taps]]:
    """`block` of any layer, with the rotary factors of all layers computed once: outside of a loop over the layers,
    where XLA cannot fuse the cosines into every head's rotation and repeat them there.

    Returns:
        (layer, hidden, index of the layer, cache or None) -> what `block` returns.
    """
    _, windows = layer_geometry(cfg)
    frequencies, kind_of_layer = frequency_table(cfg)
    cos, sin = jax.vmap(rotary_factors, in_axes=(0, None))(jnp.asarray(frequencies), positions)
    kinds = jnp.asarray(kind_of_layer)
    everywhere_global = all(window is None for window in cfg.layer_windows)

    def run(
        layer: dict[str, Any], hidden: Array, index: int | Array, cache: Cache | None = None
    ) -> tuple[Array, Cache | None, Taps]:
        rope = (cos[0], sin[0]) if len(frequencies) == 1 else (cos[kinds[index]], sin[kinds[index]])
        window = None if everywhere_global else windows[index]
        return _block(layer, cfg, hidden, rope, window, segment_ids, cache, index, attention)

    return run


def norm(
    x: Float[Array, "... width"], weights: dict[str, Any], name: str, cfg: ModelConfig
) -> Float[Array, "... width"]:
    """The model's kind of norm, with the weight called `name` and the bias, where it has one, called `name`_bias."""
    if cfg.norm == "rms":
        return rms_norm(x, weights[name], cfg)
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + cfg.norm_eps)
    scale, bias = (jnp.asarray(weights[key], jnp.float32) for key in (name, f"{name}_bias"))
    return (normed * scale + bias).astype(x.dtype)


def final_hidden(
    params: Params, cfg: ModelConfig, hidden: Float[Array, "batch time hidden"]
) -> Float[Array, "batch time out"]:
    """What `logits` reads, from what the last block returns."""
    if not cfg.post_norm:
        hidden = norm(hidden, params, "final_norm", cfg)
    return hidden if cfg.embed_size is None else linear(hidden, params["project_out"])


def rms_norm(
    x: Float[Array, "... width"], weight: Float[Array, " width"], cfg: ModelConfig
) -> Float[Array, "... width"]:
    """Compute x / rms(x) * (norm_offset + weight), in float32, returned in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    normed = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + cfg.norm_eps)
    return (normed * (cfg.norm_offset + jnp.asarray(weight, jnp.float32))).astype(x.dtype)


def default_positions(batch: int, time: int, cache: Cache | None) -> Int[Array, "batch time"]:
    """0, 1, 2, ... in every row, or on from the row's length in the cache."""
    start = jnp.zeros(batch, jnp.int32) if cache is None else cache.length
    return start[:, None] + jnp.arange(time, dtype=jnp.int32)


@partial(jax.jit, static_argnames="cfg")
def _forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Array,
    positions: Array | None,
    segment_ids: Array | None,
    token_types: Array | None,
    cache: Cache | None,
) -> Forward:
    if cfg.learned_positions and positions is None:
        positions = default_positions(tokens.shape[0], tokens.shape[1], cache)
    hidden = embed(params, cfg, tokens, positions=positions, token_types=token_types)
    hidden, cache, _ = run_layers(
        params, cfg, hidden, positions=positions, segment_ids=segment_ids, cache=cache
    )
    if cache is not None:
        cache = cache._replace(length=cache.length + tokens.shape[1])
    return Forward(final_hidden(params, cfg, hidden), cache)


def _affine(x: Array, layer: dict[str, Any], name: str) -> Array:
    """The matrix `name` of the layer and, where the model has one, its bias."""
    out = linear(x, layer[name])
    bias = layer.get(f"{name}_bias")
    return out if bias is None else out + jnp.asarray(bias, out.dtype)


def split_heads(
    x: Float[Array, "batch time width"], cfg: ModelConfig
) -> Float[Array, "batch time heads head_dim"]:
    """The heads of every token."""
    return x.reshape(*x.shape[:2], x.shape[-1] // cfg.head_dim, cfg.head_dim)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
