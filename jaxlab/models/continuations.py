"""How probable given continuations of a prompt are: the prompt runs once, packed into one row with all of them.

Reference for the packing: Carta et al., "Grounding large language models in interactive environments",
arXiv:2302.02662, section 3 scores every action of an agent; a row of prompt and actions is a tree of depth one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.attention import attend_tree
from jaxlab.models.buckets import length_bucket
from jaxlab.models.config import ModelConfig
from jaxlab.models.logprobs import hidden_logprobs
from jaxlab.models.t5 import T5Config, check_t5_params, decode, encode, encoder_context
from jaxlab.models.transformer import Params, embed, final_hidden, logits, run_layers
from jaxlab.models.validation import check_causal, check_params, check_tokens, concrete


class ContinuationScores(NamedTuple):
    """Of every continuation of every prompt."""

    total: Float[Array, "batch number"]
    """Natural logarithm of the continuation's probability: the sum over its tokens."""
    token_logprobs: Float[Array, "batch number length"]
    """Of every token; 0 in the padding."""
    prompt_hidden: Float[Array, "batch hidden"]
    """State after the final norm at the prompt's last token, which no continuation has a part in (for a value head)."""
    last_hidden: Float[Array, "batch number hidden"]
    """At each continuation's last token; where it has none, the prompt's (for values of actions)."""


def score_continuations(
    params: Params,
    cfg: ModelConfig,
    prompt: Int[Array, "batch time"],
    prompt_len: Int[Array, " batch"],
    continuations: Int[Array, "batch number length"],
    continuation_len: Int[Array, "batch number"],
    *,
    chunk: int = 256,
) -> ContinuationScores:
    """Log-probabilities of continuations, each as if it alone followed upon the prompt.

    Costs time + number * length tokens in place of number * (time + length), and no keys are repeated. Differentiable
    in the parameters. Widths are rounded up to `length_bucket`, so that prompts of similar length share a program.

    Args:
        params: the model.
        cfg: static.
        prompt: int32, right-padded.
        prompt_len: tokens of each prompt, 1 to time.
        continuations: int32, right-padded.
        continuation_len: tokens of each continuation, 0 to length; one of none has total 0.
        chunk: positions, over all rows, whose scores over the vocabulary exist at the same time; at least 1.

    Raises:
        InputError: the model is an encoder, shapes that do not fit each other, a length out of range, or prompt and
            continuation together longer than cfg.max_positions.
    """
    check_params(params, cfg)
    check_causal(cfg, "score_continuations")
    prompt, prompt_len = jnp.asarray(prompt), jnp.asarray(prompt_len, jnp.int32)
    continuations, lengths = jnp.asarray(continuations), jnp.asarray(continuation_len, jnp.int32)
    _check(prompt, prompt_len, continuations, lengths, cfg)
    time, length = prompt.shape[1], continuations.shape[2]
    if time + length > cfg.max_positions:
        raise InputError(
            f"prompt of width {time} and continuations of width {length} exceed the model's {cfg.max_positions} "
            "positions"
        )
    room = min(length_bucket(time), cfg.max_positions)
    wider = jnp.pad(prompt, ((0, 0), (0, room - time)))
    longer = length_bucket(length, smallest=1)
    padded = jnp.pad(continuations, ((0, 0), (0, 0), (0, longer - length)))
    scores = _score(params, cfg, wider, prompt_len, padded, lengths, chunk)
    return scores._replace(token_logprobs=scores.token_logprobs[..., :length])


def score_targets(
    params: Params,
    cfg: T5Config,
    source: Int[Array, "batch time"],
    source_len: Int[Array, " batch"],
    targets: Int[Array, "batch number length"],
    target_len: Int[Array, "batch number"],
    *,
    chunk: int = 256,
) -> ContinuationScores:
    """`score_continuations` for T5: targets of each source, which the encoder reads once.

    Args:
        params: the model.
        cfg: static.
        source: int32, right-padded.
        source_len: tokens of each source, 1 to time.
        targets: int32, right-padded, without the token that starts them.
        target_len: tokens of each target, 0 to length.
        chunk: see `score_continuations`.

    Returns:
        `prompt_hidden` is the decoder's state at the token that starts every target; states are as the head reads them.

    Raises:
        InputError: shapes that do not fit each other, or a length out of range.
    """
    check_t5_params(params, cfg)
    source, source_len = jnp.asarray(source), jnp.asarray(source_len, jnp.int32)
    targets, lengths = jnp.asarray(targets), jnp.asarray(target_len, jnp.int32)
    _check(source, source_len, targets, lengths, cfg.decoder, ("source", "target"))
    wider = jnp.pad(source, ((0, 0), (0, length_bucket(source.shape[1]) - source.shape[1])))
    length = targets.shape[2]
    longer = jnp.pad(targets, ((0, 0), (0, 0), (0, length_bucket(length, smallest=1) - length)))
    scores = _score_targets(params, cfg, wider, source_len, longer, lengths, chunk)
    return scores._replace(token_logprobs=scores.token_logprobs[..., :length])


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _score(
    params: Params,
    cfg: ModelConfig,
    prompt: Array,
    prompt_len: Array,
    continuations: Array,
    lengths: Array,
    chunk: int,
) -> ContinuationScores:
    (batch, time), (_, number, length) = prompt.shape, continuations.shape
    tokens = jnp.concatenate([prompt, continuations.reshape(batch, -1)], axis=1)
    behind = prompt_len[:, None] + jnp.tile(jnp.arange(length), number)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(time), prompt.shape), behind], axis=1)
    # Only padding of a branch can lie beyond the last position.
    positions = jnp.minimum(positions, cfg.max_positions - 1)
    attention = partial(attend_tree, prompt_len=prompt_len, branches=(number, length))
    hidden = embed(params, cfg, tokens, positions=positions)
    hidden, _, _ = run_layers(params, cfg, hidden, positions=positions, attention=attention)
    hidden = final_hidden(params, cfg, hidden)

    last = jnp.take_along_axis(hidden, (prompt_len - 1)[:, None, None], axis=1)[:, 0]
    states = hidden[:, time:].reshape(batch, number, length, -1)
    return _scores(params, cfg, last, states, continuations, lengths, chunk)


@partial(jax.jit, static_argnames=("cfg", "chunk"))
def _score_targets(
    params: Params,
    cfg: T5Config,
    source: Array,
    source_len: Array,
    targets: Array,
    lengths: Array,
    chunk: int,
) -> ContinuationScores:
    mask = jnp.arange(source.shape[1]) < source_len[:, None]
    context = encoder_context(params, cfg, encode(params, cfg, source, mask), mask)
    read = jnp.pad(targets, ((0, 0), (0, 0), (1, 0)), constant_values=cfg.start_id)
    # What does not depend on the target, keys and values of the source above all, is not repeated by vmap.
    hidden = jax.vmap(lambda tokens: decode(params, cfg, tokens, context).hidden, 1, 1)(read)
    if cfg.scale_outputs:
        hidden = hidden * cfg.hidden_size**-0.5
    return _scores(params, cfg.decoder, hidden[:, 0, 0], hidden[:, :, 1:], targets, lengths, chunk)


def _scores(
    params: Params,
    cfg: ModelConfig,
    last: Float[Array, "batch hidden"],
    states: Float[Array, "batch number length hidden"],
    continuations: Int[Array, "batch number length"],
    lengths: Int[Array, "batch number"],
    chunk: int,
) -> ContinuationScores:
    """From the states at the prompt's last token, one for the first tokens of all continuations, and at their own."""
    batch, number, length = continuations.shape
    first = jax.nn.log_softmax(logits(params, cfg, last).astype(jnp.promote_types(last.dtype, jnp.float32)))
    logprobs = jnp.take_along_axis(first, continuations[:, :, 0], axis=1)[:, :, None]
    if length > 1:
        later = hidden_logprobs(
            params,
            cfg,
            states[:, :, :-1].reshape(batch * number, length - 1, -1),
            continuations[:, :, 1:].reshape(batch * number, -1),
            (jnp.arange(1, length) < lengths[:, :, None]).reshape(batch * number, -1),
            chunk=chunk,
        )
        logprobs = jnp.concatenate([logprobs, later.reshape(batch, number, -1)], axis=-1)
    logprobs = jnp.where(jnp.arange(length) < lengths[:, :, None], logprobs, 0)
    ends = jnp.take_along_axis(states, jnp.maximum(lengths - 1, 0)[:, :, None, None], axis=2)[:, :, 0]
    ends = jnp.where(lengths[:, :, None] > 0, ends, last[:, None])
    return ContinuationScores(logprobs.sum(-1), logprobs, last, ends)


def _check(
    prompt: Array,
    prompt_len: Array,
    continuations: Array,
    lengths: Array,
    cfg: ModelConfig,
    names: tuple[str, str] = ("prompt", "continuation"),
) -> None:
    check_tokens(prompt, cfg)
    if continuations.ndim != 3 or len(continuations) != len(prompt) or 0 in continuations.shape:
        raise InputError(
            f"{names[1]}s has shape {continuations.shape}; it must be [{len(prompt)}, number, length], "
            "none of them 0"
        )
    check_tokens(continuations.reshape(-1, continuations.shape[2]), cfg)
    for name, found, expected, least, most in (
        (f"{names[0]}_len", prompt_len, prompt.shape[:1], 1, prompt.shape[1]),
        (f"{names[1]}_len", lengths, continuations.shape[:2], 0, continuations.shape[2]),
    ):
        if found.shape != expected:
            raise InputError(f"{name} has shape {found.shape}; it must be {expected}")
        known = concrete(found)
        if known is not None and not (least <= known.min() and known.max() <= most):
            raise InputError(f"{name} is {known.tolist()}; each must be {least} to {most}")
