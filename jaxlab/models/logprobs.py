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
        Entry [b, t] belongs to tokens[b, t + 1]; float32 whatever the parameters are.

    Raises:
        InputError: see `forward`; a row of one token, a mask of another shape, or a chunk below 1.
    """
    _check(tokens, cfg, chunk, mask)
    return _token_logprobs(params, cfg, jnp.asarray(tokens), mask, chunk)


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
    targets = tokens[:, 1:]

    def score(rows: Array, wanted: Array) -> Array:
        scores = logits(params, cfg, rows).astype(jnp.float32)
        chosen = jnp.take_along_axis(scores, wanted[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(scores, axis=-1)

    flat = (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
    if mask is None:
        return _map_chunks(score, flat, chunk).reshape(targets.shape)
    keep = jnp.asarray(mask, bool)[:, 1:].reshape(-1)
    # Wanted positions first, so that they share chunks and the chunks behind them are skipped.
    order = jnp.argsort(~keep, stable=True)
    kept = _map_chunks(score, jax.tree.map(lambda x: x[order], flat), chunk, count=keep.sum())
    unordered = jnp.zeros_like(kept).at[order].set(kept, unique_indices=True)
    return jnp.where(keep, unordered, 0.0).reshape(targets.shape)


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _token_kl(params_p: Params, params_q: Params, cfg: ModelConfig, tokens: Array, chunk: int) -> Array:
    hidden = [forward(params, cfg, tokens).hidden[:, :-1] for params in (params_p, params_q)]

    def divergence(rows_p: Array, rows_q: Array) -> Array:
        log_p = jax.nn.log_softmax(logits(params_p, cfg, rows_p).astype(jnp.float32))
        log_q = jax.nn.log_softmax(logits(params_q, cfg, rows_q).astype(jnp.float32))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    flat = tuple(rows.reshape(-1, rows.shape[-1]) for rows in hidden)
    return _map_chunks(divergence, flat, chunk).reshape(tokens.shape[0], -1)


def _map_chunks(
    function: Any, rows: tuple[Array, ...], chunk: int, count: Int[Array, ""] | None = None
) -> Float[Array, " rows"]:
    """Apply `function` to chunks of the rows, again in the backward pass; zeros after the first `count`."""
    size = rows[0].shape[0]
    chunk = min(chunk, size)
    chunks = -(-size // chunk)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, chunks * chunk - size)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, chunk, *x.shape[1:])

    run = jax.checkpoint(lambda parts: function(*parts))

    def one(inputs: tuple[Array, tuple[Array, ...]]) -> Array:
        index, parts = inputs
        if count is None:
            return run(parts)
        return lax.cond(index * chunk < count, run, lambda parts: jnp.zeros(chunk, jnp.float32), parts)

    out = lax.map(one, (jnp.arange(chunks), jax.tree.map(split, rows)))
    return out.reshape(-1)[:size]


def _check(tokens: Array, cfg: ModelConfig, chunk: int, mask: Array | None) -> None:
    check_tokens(tokens, cfg, mask=mask)
    check_causal(cfg, "log-probabilities")
    if tokens.shape[1] < 2:
        raise InputError(f"tokens has shape {tokens.shape}; a row needs two tokens for one to be predicted")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")
