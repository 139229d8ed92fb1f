"""Log-probabilities of given tokens, and the divergence between two models, without scores of all positions.

The head is applied to chunks of positions, so that [batch, time, vocabulary] never exists: for Gemma's
vocabulary of 262144 and 1024 positions it would take 1.07 GB per row.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.cross_entropy import Scores, cross_entropy, summed_cross_entropy
from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import Params, forward, logits
from jaxlab.models.validation import check_causal, check_tokens


def token_logprobs(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    chunk: int = 256,
) -> Float[Array, "batch time-1"]:
    """Natural logarithm of the probability of each token given those before it.

    Args:
        params: the model.
        cfg: static.
        tokens: int32, at least two a row; right-padded rows are fine.
        mask: which tokens to score; the others get 0, and chunks without any are not computed. None is all.
        chunk: positions, over all rows, whose scores exist at the same time; at least 1.

    Returns:
        Entry [b, t] belongs to tokens[b, t + 1]; float32 (float64 for float64 parameters).

    Raises:
        InputError: see `forward`; a row of one token, a mask of another shape, or a chunk below 1.
    """
    _check(tokens, cfg, chunk, mask)
    return _token_logprobs(params, cfg, jnp.asarray(tokens), mask, chunk)


def hidden_logprobs(
    params: Params,
    cfg: ModelConfig,
    hidden: Float[Array, "batch time hidden"],
    targets: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    chunk: int = 256,
) -> Float[Array, "batch time"]:
    """Natural logarithm of the probability of each target, given hidden states after the final norm.

    Args:
        params: the model, of which only the head (where tied: the embedding) is read.
        cfg: static.
        hidden: what `forward` returns.
        targets: the token that follows upon each position.
        mask: which positions to score; see `token_logprobs`.
        chunk: see `token_logprobs`.

    Raises:
        InputError: the model is an encoder, shapes that do not fit, or a chunk below 1.
    """
    scores, head = _scores_and_head(params, cfg, hidden, targets, mask, chunk)
    if mask is None and len(targets) <= chunk:
        # Rows stay apart, so that devices that share them out do not have to exchange hidden states.
        return -cross_entropy(scores, head, hidden, targets, chunk=chunk // len(targets))
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if mask is None:
        return -cross_entropy(scores, head, flat, wanted, chunk=chunk).reshape(targets.shape)
    order = _wanted_first(mask)
    losses = cross_entropy(scores, head, flat[order], wanted[order], chunk=chunk, count=mask.sum())
    return jnp.zeros_like(losses).at[order].set(-losses, unique_indices=True).reshape(targets.shape)


def hidden_loss(
    params: Params,
    cfg: ModelConfig,
    hidden: Float[Array, "batch time hidden"],
    targets: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    chunk: int = 256,
) -> Float[Array, ""]:
    """`-hidden_logprobs(...).sum()`, for training: with gradients it takes three products with the head, not four.

    Arguments and errors are those of `hidden_logprobs`.
    """
    scores, head = _scores_and_head(params, cfg, hidden, targets, mask, chunk)
    weights = jnp.ones(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32))
    if mask is None and len(targets) <= chunk:
        return summed_cross_entropy(scores, head, hidden, targets, weights, chunk=chunk // len(targets))
    flat, wanted, weights = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1)
    if mask is None:
        return summed_cross_entropy(scores, head, flat, wanted, weights, chunk=chunk)
    order = _wanted_first(mask)
    weights = jnp.where(mask.reshape(-1)[order], weights, 0)
    return summed_cross_entropy(
        scores, head, flat[order], wanted[order], weights, chunk=chunk, count=mask.sum()
    )


def _scores_and_head(
    params: Params, cfg: ModelConfig, hidden: Array, targets: Array, mask: Array | None, chunk: int
) -> tuple[Scores, Params]:
    check_causal(cfg, "log-probabilities")
    _check_chunk(chunk)
    if hidden.shape[:-1] != targets.shape or (mask is not None and mask.shape != targets.shape):
        masked = "" if mask is None else f", mask {mask.shape}"
        raise InputError(
            f"hidden has shape {hidden.shape}, targets {targets.shape}{masked}; "
            "they must share batch and time"
        )
    names = ("embed" if cfg.tie_embeddings else "head", *(("head_bias",) if cfg.head_bias else ()))
    return lambda head, rows: logits(head, cfg, rows), {name: params[name] for name in names}


def _wanted_first(mask: Array) -> Int[Array, " positions"]:
    """Wanted positions share chunks, and the chunks behind them are skipped."""
    return jnp.argsort(~mask.reshape(-1), stable=True)


def token_kl(
    params_p: Params,
    params_q: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    *,
    chunk: int = 256,
) -> Float[Array, "batch time-1"]:
    """KL(p || q) in nats between two models' predictions of tokens 1, 2, ... of every row.

    Args:
        params_p: the model that takes the expectation (the original).
        params_q: the model compared with it (its quantized or pruned version), of the same configuration.
        cfg: static.
        tokens: int32, at least two a row.
        chunk: positions, over all rows, whose scores exist at the same time; at least 1.

    Returns:
        Entry [b, t] is the divergence of the predictions for tokens[b, t + 1].

    Raises:
        InputError: see `forward`; a row of one token, or a chunk below 1.
    """
    _check(tokens, cfg, chunk, None)
    return _token_kl(params_p, params_q, cfg, jnp.asarray(tokens), chunk)


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _token_logprobs(params: Params, cfg: ModelConfig, tokens: Array, mask: Array | None, chunk: int) -> Array:
    hidden = forward(params, cfg, tokens).hidden[:, :-1]
    kept = None if mask is None else jnp.asarray(mask, bool)[:, 1:]
    return hidden_logprobs(params, cfg, hidden, tokens[:, 1:], kept, chunk=chunk)


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _token_kl(params_p: Params, params_q: Params, cfg: ModelConfig, tokens: Array, chunk: int) -> Array:
    hidden = [forward(params, cfg, tokens).hidden[:, :-1] for params in (params_p, params_q)]

    def divergence(rows_p: Array, rows_q: Array) -> Array:
        log_p = jax.nn.log_softmax(logits(params_p, cfg, rows_p).astype(jnp.float32))
        log_q = jax.nn.log_softmax(logits(params_q, cfg, rows_q).astype(jnp.float32))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    flat = tuple(rows.reshape(-1, rows.shape[-1]) for rows in hidden)
    return _map_chunks(divergence, flat, chunk).reshape(tokens.shape[0], -1)


def _map_chunks(function: Any, rows: tuple[Array, ...], chunk: int) -> Float[Array, " rows"]:
    """Apply `function` to chunks of the rows, again in the backward pass."""
    size = rows[0].shape[0]
    chunk = min(chunk, size)
    chunks = -(-size // chunk)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, chunks * chunk - size)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, chunk, *x.shape[1:])

    run = jax.checkpoint(lambda parts: function(*parts))
    return lax.map(run, jax.tree.map(split, rows)).reshape(-1)[:size]


def _check(tokens: Array, cfg: ModelConfig, chunk: int, mask: Array | None) -> None:
    check_tokens(tokens, cfg, mask=mask)
    check_causal(cfg, "log-probabilities")
    if tokens.shape[1] < 2:
        raise InputError(f"tokens has shape {tokens.shape}; a row needs two tokens for one to be predicted")
    _check_chunk(chunk)


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")
