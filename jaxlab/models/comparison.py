"""Several versions of one model on the same text: log-probabilities of each, and divergences from the first."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import Params, forward, logits
from jaxlab.models.validation import check_causal, check_tokens


class Comparison(NamedTuple):
    """Scores of `M` models for tokens 1, 2, ... of every row; entry [m, b, t] belongs to tokens[b, t + 1]."""

    logprobs: Float[Array, "models batch time-1"]
    """Natural logarithm of the token's probability."""
    kl: Float[Array, "models batch time-1"]
    """KL(first model || model m) of the predictions, nats; zero for the first."""


def compare(
    models: tuple[Params, ...], cfg: ModelConfig, tokens: Int[Array, "batch time"], *, chunk: int = 128
) -> Comparison:
    """Runs every model once over the tokens, with the heads applied to chunks of positions.

    Args:
        models: versions of one model, the original first.
        cfg: static.
        tokens: int32, at least two a row.
        chunk: positions, over all rows, whose scores exist at the same time; at least 1.

    Raises:
        InputError: no model, a row of one token, or a chunk below 1; see also `forward`.
    """
    if not models or chunk < 1:
        raise InputError(f"{len(models)} models and chunk {chunk}: both must be at least 1")
    check_tokens(tokens, cfg)
    check_causal(cfg, "compare")
    if tokens.shape[1] < 2:
        raise InputError(f"tokens has shape {tokens.shape}; scoring needs rows of at least 2 tokens")
    targets = jnp.asarray(tokens)[:, 1:]
    hidden = tuple(
        forward(params, cfg, tokens).hidden[:, :-1].reshape(-1, cfg.embed_size or cfg.hidden_size)
        for params in models
    )
    heads = tuple({name: params[name] for name in _HEAD if name in params} for params in models)
    scores, kl = _score(heads, cfg, hidden, targets.reshape(-1), chunk)
    return Comparison(scores.reshape(len(models), *targets.shape), kl.reshape(len(models), *targets.shape))


_HEAD = ("embed", "head", "head_bias")  # what `logits` reads


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _score(
    heads: tuple[Params, ...], cfg: ModelConfig, hidden: tuple[Array, ...], targets: Array, chunk: int
) -> tuple[Array, Array]:
    def score(position: tuple[Array, ...]) -> tuple[Array, Array]:
        target, *rows = position
        # Of every model the scores over the vocabulary are gone before the next one's are made.
        first = logits(heads[0], cfg, rows[0]).astype(jnp.float32)
        log_sum = jax.nn.logsumexp(first)
        p = jnp.exp(first - log_sum)
        found = [(first[target] - log_sum, jnp.zeros(()))]
        for head, row in zip(heads[1:], rows[1:], strict=True):
            other = logits(head, cfg, row).astype(jnp.float32)
            other_sum = jax.nn.logsumexp(other)
            kl = jnp.sum(p * ((first - log_sum) - (other - other_sum)))
            found.append((other[target] - other_sum, kl))
        return jnp.stack([score for score, _ in found]), jnp.stack([kl for _, kl in found])

    scores, kl = jax.lax.map(score, (targets, *hidden), batch_size=chunk)
    return scores.T, kl.T
