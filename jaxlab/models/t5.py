"""T5 and Flan-T5, an encoder and a decoder that attends to its output, as pure functions of a parameter pytree.

`params` is `{"embed": [V, D], "encoder": stack, "decoder": stack, "head": [V, D] (absent when tied)}`; a stack is
`{"layers": {name: [L, ...]}, "final_norm": [D], "position_bias": [buckets, heads]}`. Both stacks are made of the
blocks of `transformer`, without rotary positions; the decoder's have CROSS_LINEARS and `cross_norm` besides.

Reference: Raffel et al., Exploring the Limits of Transfer Learning, arXiv:1910.10683, sections 2.1 and 3.1.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.errors import InputError
from jaxlab.models.attention import attend
from jaxlab.models.cache import Cache, init_cache
from jaxlab.models.config import ModelConfig
from jaxlab.models.generation import (
    SMALLEST_PROMPT,
    Generation,
    Sampling,
    check_prompt,
    checked_sampling,
    decode_loop,
    power_of_two,
    row_keys,
)
from jaxlab.models.linear import dense, linear
from jaxlab.models.transformer import (
    Params,
    add_branch,
    attention_input,
    default_positions,
    mlp_hidden,
    mlp_input,
    norm,
    self_attention,
    split_heads,
)
from jaxlab.models.validation import check_cache, check_leaves, check_tokens, layer_shapes, stacked_shapes

_UNLIMITED = 2**30  # positions: only their distances matter, and far ones share a bucket


@dataclass(frozen=True)
class T5Config:
    """Shape and flags of an encoder-decoder; hashable, static under jit.

    Attributes:
        vocab_size: rows of the embedding, which encoder and decoder share.
        hidden_size: width of the residual streams.
        num_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        num_heads: of every attention.
        head_dim: width of a head; num_heads * head_dim may differ from `hidden_size`.
        mlp_size: hidden units of the MLPs.
        buckets: classes of distances, each with a bias a head; even.
        max_distance: all distances from here on share a bucket; at least `buckets`.
        norm_eps: added to the mean square in every RMSNorm.
        gated_mlp: the MLP has a gate (version 1.1 and Flan-T5).
        activation: see `ModelConfig`.
        tie_embeddings: the head is the embedding.
        scale_outputs: multiply hidden states by hidden_size ** -0.5 before the head (version 1.0).
        start_id: token that the decoder begins with.
        eos_ids: tokens that end a sequence.
        pad_id: padding token.

    Raises:
        InputError: a value out of range.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_dim: int
    mlp_size: int
    buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    gated_mlp: bool = True
    activation: str = "gelu_tanh"
    tie_embeddings: bool = False
    scale_outputs: bool = False
    start_id: int = 0
    eos_ids: tuple[int, ...] = (1,)
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.buckets < 4 or self.buckets % 2:
            raise InputError(f"T5Config.buckets is {self.buckets}; it must be even and at least 4")
        if self.max_distance < self.buckets:
            raise InputError(
                f"T5Config.max_distance is {self.max_distance}; it must be at least buckets, {self.buckets}"
            )
        for name in ("start_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InputError(
                    f"T5Config.{name} is {getattr(self, name)}; it must be 0 to {self.vocab_size - 1}"
                )
        _ = self.encoder, self.decoder  # their own checks

    @property
    def encoder(self) -> ModelConfig:
        """The blocks of the encoder."""
        return self._stack(self.num_layers, causal=False)

    @property
    def decoder(self) -> ModelConfig:
        """The blocks of the decoder, but for their attention to the encoder's output."""
        return self._stack(self.num_decoder_layers, causal=True)

    def _stack(self, layers: int, *, causal: bool) -> ModelConfig:
        return ModelConfig(
            family="t5",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            mlp_size=self.mlp_size,
            max_positions=_UNLIMITED,
            norm_eps=self.norm_eps,
            gated_mlp=self.gated_mlp,
            activation=self.activation,
            attention_scale=1.0,
            rotary_dim=0,
            causal=causal,
            tie_embeddings=self.tie_embeddings,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
        )


class Context(NamedTuple):
    """What the decoder sees of the encoder's output, computed once for all its tokens."""

    keys: Float[Array, "L B S heads head_dim"]
    values: Float[Array, "L B S heads head_dim"]
    mask: Bool[Array, "B S"]


class Decoded(NamedTuple):
    """Result of `decode`: hidden states after the final norm, and the cache with the new tokens."""

    hidden: Float[Array, "batch time hidden"]
    cache: Cache | None


def encode(
    params: Params,
    cfg: T5Config,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    segment_ids: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time hidden"]:
    """Hidden states of the encoder, after its final norm.

    Args:
        params: see the module.
        cfg: static.
        tokens: int32, in [0, vocab_size).
        mask: which tokens are not padding; None is all. What comes out at the others has no meaning.
        segment_ids: at least 0; tokens see each other only within a segment (packed sequences).

    Raises:
        InputError: tokens or a mask of a wrong shape, dtype or range, or parameters that are not those of `cfg`.
    """
    check_t5_params(params, cfg)
    check_tokens(tokens, cfg.encoder, mask=mask, segment_ids=segment_ids)
    return _encode(params, cfg, jnp.asarray(tokens), mask, segment_ids)


def encoder_context(
    params: Params,
    cfg: T5Config,
    encoded: Float[Array, "batch source hidden"],
    mask: Bool[Array, "batch source"] | None = None,
) -> Context:
    """Keys and values of the encoder's output in every block of the decoder.

    Args:
        params: see the module.
        cfg: static.
        encoded: what `encode` returns.
        mask: as for `encode`.

    Raises:
        InputError: arrays of other shapes than the model's.
    """
    check_t5_params(params, cfg)
    if encoded.ndim != 3 or encoded.shape[-1] != cfg.hidden_size:
        raise InputError(f"encoded has shape {encoded.shape}; it must be [batch, source, {cfg.hidden_size}]")
    if mask is not None and mask.shape != encoded.shape[:2]:
        raise InputError(f"mask has shape {mask.shape}; it must be that of the source, {encoded.shape[:2]}")
    return _context(params, cfg, encoded, mask)


def decode(
    params: Params,
    cfg: T5Config,
    tokens: Int[Array, "batch time"],
    context: Context,
    *,
    cache: Cache | None = None,
) -> Decoded:
    """Hidden states of the decoder; `output_logits` makes them into scores of the tokens that follow.

    Args:
        params: see the module.
        cfg: static.
        tokens: int32, in [0, vocab_size): `cfg.start_id`, then the target's tokens.
        context: what `encoder_context` returns.
        cache: tokens seen before, from `init_cache(cfg.decoder, batch, size)`.

    Raises:
        InputError: tokens, context or cache of a wrong shape, or parameters that are not those of `cfg`.
    """
    check_t5_params(params, cfg)
    check_tokens(tokens, cfg.decoder)
    batch, source = context.mask.shape
    expected = (cfg.num_decoder_layers, tokens.shape[0], source, cfg.num_heads, cfg.head_dim)
    if context.keys.shape != expected or context.values.shape != expected or batch != tokens.shape[0]:
        raise InputError(
            f"context has keys {context.keys.shape}, values {context.values.shape}, mask {context.mask.shape}; these "
            f"tokens need {expected} and {(tokens.shape[0], source)}"
        )
    if cache is not None:
        check_cache(cache, cfg.decoder, tokens, None)
    return _decode(params, cfg, jnp.asarray(tokens), context, cache)


def output_logits(
    params: Params, cfg: T5Config, hidden: Float[Array, "... hidden"]
) -> Float[Array, "... vocabulary"]:
    """Scores over the vocabulary, from the decoder's hidden states."""
    if cfg.scale_outputs:
        hidden = hidden * cfg.hidden_size**-0.5
    return linear(hidden, params["embed"] if cfg.tie_embeddings else params["head"])


def generate_target(
    params: Params,
    cfg: T5Config,
    source: Int[Array, "batch time"],
    source_len: Int[Array, " batch"],
    key: Key[Array, ""] | Key[Array, " batch"],
    *,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: tuple[int, ...] = (),
    logprobs: bool = False,
) -> Generation:
    """Encode every source and decode up to `max_new` tokens; options as for `jaxlab.models.generate`.

    Args:
        params: see the module.
        cfg: static.
        source: int32, right-padded.
        source_len: tokens of each source, 1 to time.
        key: one key, folded with the row's number, or a key a row.
        max_new: tokens to make, at least 1.
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 is all.
        top_p: keep the likeliest tokens until their probabilities reach top_p, in (0, 1].
        min_p: keep tokens at least min_p times as probable as the likeliest, in [0, 1].
        stop_ids: tokens that end a row (`cfg.eos_ids` for the model's own); none by default.
        logprobs: return the log-probabilities of the new tokens too.

    Raises:
        InputError: an option out of range, or sources of a wrong shape.
    """
    check_t5_params(params, cfg)
    check_tokens(source, cfg.encoder)
    source, source_len = jnp.asarray(source), jnp.asarray(source_len)
    check_prompt(source, source_len, max_new)
    sampling, choice = checked_sampling(temperature, top_k, top_p, min_p)
    batch, time = source.shape
    padded = power_of_two(time, SMALLEST_PROMPT)
    return _generate(
        params,
        cfg,
        jnp.pad(source, ((0, 0), (0, padded - time))),
        source_len.astype(jnp.int32),
        row_keys(key, batch),
        sampling,
        max_new=max_new,
        choice=choice,
        stop_ids=tuple(int(token) for token in stop_ids),
        with_logprobs=logprobs,
    )


def relative_buckets(
    distance: Int[Array, "..."], *, buckets: int, max_distance: int, causal: bool
) -> Int[Array, "..."]:
    """Class of each distance, key's position minus query's.

    Half of the classes (of one direction) are the distances 0, 1, 2, ... themselves, the others grow like their
    logarithm up to `max_distance`. An encoder has the same for keys behind the query, `buckets` / 2 further on; for
    a decoder keys ahead count as distance 0. Section 2.1.

    Args:
        distance: int32.
        buckets: number of classes.
        max_distance: see `T5Config`.
        causal: static; of a decoder.
    """
    one_way = buckets if causal else buckets // 2
    exact = one_way // 2
    # A table, so that what lies just at a class's edge does not depend on a device's logarithm.
    far = np.arange(max_distance + 1)
    growth = np.log(np.maximum(far, 1) / exact) / math.log(max_distance / exact) * (one_way - exact)
    table = np.where(far < exact, far, np.minimum(exact + growth.astype(np.int64), one_way - 1))
    size = jnp.maximum(-distance, 0) if causal else jnp.abs(distance)
    classes = jnp.asarray(table, jnp.int32)[jnp.minimum(size, max_distance)]
    return classes if causal else classes + one_way * (distance > 0)


def stack_shapes(cfg: T5Config, stack: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every leaf of one layer of the "encoder" or of the "decoder"."""
    shapes = layer_shapes(cfg.encoder)
    if stack == "encoder":
        return shapes
    cross = {f"cross_{name}": shapes[name] for name in ("q", "k", "v", "o")}
    return shapes | {"cross_norm": (cfg.hidden_size,)} | cross


def t5_top_shapes(cfg: T5Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of the leaves outside of the stacks."""
    vocabulary = (cfg.vocab_size, cfg.hidden_size)
    return {"embed": vocabulary} if cfg.tie_embeddings else {"embed": vocabulary, "head": vocabulary}


def stack_top_shapes(cfg: T5Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of a stack's leaves outside of its layers."""
    return {"final_norm": (cfg.hidden_size,), "position_bias": (cfg.buckets, cfg.num_heads)}


def check_t5_params(params: Params, cfg: T5Config) -> None:
    """Compare names and shapes of all leaves with the configuration; those of registered classes pass as they are.

    Raises:
        InputError: a leaf is missing, unknown, or of a wrong shape.
    """
    stacks = ("encoder", "decoder")
    unknown = sorted(set(params) - {*t5_top_shapes(cfg), *stacks})
    missing = [name for name in stacks if name not in params]
    if unknown or missing:
        raise InputError(f"params: missing {missing}, unexpected {unknown}")
    top = {name: leaf for name, leaf in params.items() if name not in stacks}
    check_leaves("params", top, t5_top_shapes(cfg))
    for stack, layers in zip(stacks, (cfg.num_layers, cfg.num_decoder_layers), strict=True):
        found = params[stack]
        where = f"params[{stack!r}]"
        if not isinstance(found.get("layers"), dict):
            raise InputError(f"{where}['layers'] must be one dict of stacked layers")
        top = {name: leaf for name, leaf in found.items() if name != "layers"}
        check_leaves(where, top, stack_top_shapes(cfg))
        check_leaves(f"{where}['layers']", found["layers"], stacked_shapes(stack_shapes(cfg, stack), layers))


@partial(jax.jit, static_argnames="cfg")
def _encode(
    params: Params, cfg: T5Config, tokens: Array, mask: Array | None, segment_ids: Array | None
) -> Array:
    stack, time = params["encoder"], tokens.shape[1]
    bias = _position_bias(stack, cfg, jnp.arange(time)[None], time, causal=False)
    segments = segment_ids
    if mask is not None:
        segments = jnp.where(
            mask, 0 if segments is None else segments, -1
        )  # no segment of tokens is called -1

    def step(hidden: Array, layer: dict[str, Any]) -> tuple[Array, None]:
        hidden, _ = _attention(layer, cfg.encoder, hidden, bias, segments, None, 0)
        return _mlp(layer, cfg.encoder, hidden), None

    hidden, _ = lax.scan(step, _embed(params, tokens), stack["layers"])
    return norm(hidden, stack, "final_norm", cfg.encoder)


@partial(jax.jit, static_argnames="cfg")
def _context(params: Params, cfg: T5Config, encoded: Array, mask: Array | None) -> Context:
    def one(layer: dict[str, Any]) -> tuple[Array, Array]:
        states = (linear(encoded, layer[name]) for name in ("cross_k", "cross_v"))
        keys, values = (split_heads(state, cfg.decoder) for state in states)
        return keys, values

    keys, values = lax.map(one, params["decoder"]["layers"])
    return Context(
        keys, values, jnp.ones(encoded.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    )


@partial(jax.jit, static_argnames="cfg")
def _decode(params: Params, cfg: T5Config, tokens: Array, context: Context, cache: Cache | None) -> Decoded:
    stack, (batch, time) = params["decoder"], tokens.shape
    positions = default_positions(batch, time, cache) if cache is not None else jnp.arange(time)[None]
    slots = time if cache is None else cache.keys.shape[2]
    bias = _position_bias(stack, cfg, positions, slots, causal=True)

    def step(carry: tuple[Array, Cache | None], inputs: Any) -> tuple[tuple[Array, Cache | None], None]:
        layer, index, keys, values = inputs
        hidden, cache = _attention(layer, cfg.decoder, carry[0], bias, None, carry[1], index)
        hidden = _cross_attention(layer, cfg.decoder, hidden, keys, values, context.mask)
        return (_mlp(layer, cfg.decoder, hidden), cache), None

    layers = (stack["layers"], jnp.arange(cfg.num_decoder_layers), context.keys, context.values)
    (hidden, cache), _ = lax.scan(step, (_embed(params, tokens), cache), layers)
    if cache is not None:
        cache = cache._replace(length=cache.length + time)
    return Decoded(norm(hidden, stack, "final_norm", cfg.decoder), cache)


@partial(jax.jit, static_argnames=("cfg", "max_new", "choice", "stop_ids", "with_logprobs"))
def _generate(
    params: Params,
    cfg: T5Config,
    source: Array,
    source_len: Array,
    keys: Array,
    sampling: Sampling,
    *,
    max_new: int,
    choice: str,
    stop_ids: tuple[int, ...],
    with_logprobs: bool,
) -> Generation:
    batch, time = source.shape
    mask = jnp.arange(time) < source_len[:, None]
    context = _context(params, cfg, _encode(params, cfg, source, mask, None), mask)

    def advance(cache: Cache, newest: Array) -> tuple[Array, Cache]:
        hidden, cache_after = _decode(params, cfg, newest, context, cache)
        assert cache_after is not None
        return hidden[:, 0], cache_after

    dtype = jax.eval_shape(dense, params["embed"]).dtype
    start = jnp.full((batch, 1), cfg.start_id, jnp.int32)
    hidden, cache = advance(init_cache(cfg.decoder, batch, max_new, dtype=dtype), start)
    return decode_loop(
        hidden,
        cache,
        lambda hidden: output_logits(params, cfg, hidden),
        advance,
        keys,
        sampling,
        max_new=max_new,
        choice=choice,
        padding=cfg.pad_id,
        stop_ids=stop_ids,
        with_logprobs=with_logprobs,
    )


def _embed(params: Params, tokens: Array) -> Array:
    return jnp.take(dense(params["embed"]), tokens, axis=0, mode="clip")


def _position_bias(
    stack: Params, cfg: T5Config, positions: Int[Array, "rows time"], keys: int, *, causal: bool
) -> Float[Array, "rows heads time keys"]:
    """Bias of the scores of keys 0, 1, 2, ..., in float32; all blocks of a stack share it."""
    distance = jnp.arange(keys) - positions[..., None]
    classes = relative_buckets(distance, buckets=cfg.buckets, max_distance=cfg.max_distance, causal=causal)
    return jnp.moveaxis(dense(stack["position_bias"]).astype(jnp.float32)[classes], -1, 1)


def _attention(
    layer: dict[str, Any],
    cfg: ModelConfig,
    hidden: Array,
    bias: Array,
    segment_ids: Array | None,
    cache: Cache | None,
    index: int | Array,
) -> tuple[Array, Cache | None]:
    normed = attention_input(layer, cfg, hidden)
    mixed, cache = self_attention(layer, cfg, normed, None, None, segment_ids, cache, index, bias)
    return add_branch(layer, cfg, hidden, linear(mixed, layer["o"]), "o"), cache


def _cross_attention(
    layer: dict[str, Any], cfg: ModelConfig, hidden: Array, keys: Array, values: Array, mask: Array
) -> Array:
    """The residual stream after the decoder's attention to the encoder's output; it has no position bias."""
    batch, time, _ = hidden.shape
    q = split_heads(linear(norm(hidden, layer, "cross_norm", cfg), layer["cross_q"]), cfg)
    mixed = attend(
        q,
        keys,
        values,
        scale=1.0,
        segment_ids=jnp.ones((batch, time), jnp.int32),
        key_segment_ids=mask.astype(jnp.int32),
        causal=False,
    )
    return hidden + linear(mixed.reshape(batch, time, -1), layer["cross_o"])


def _mlp(layer: dict[str, Any], cfg: ModelConfig, hidden: Array) -> Array:
    units = mlp_hidden(layer, cfg, mlp_input(layer, cfg, hidden))
    return add_branch(layer, cfg, hidden, linear(units, layer["down"]), "down")
