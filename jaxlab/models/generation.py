"""Text generation under one jit: prefill of the prompts, then a while loop that decodes a token a row a step.

Shapes are sizes rounded up to powers of two, so that prompts of similar length share a compiled program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.errors import InputError
from jaxlab.models.cache import Cache, VectorCode, init_cache
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import dense
from jaxlab.models.transformer import Params, forward, logits
from jaxlab.models.validation import check_causal, check_params, check_tokens, concrete

SMALLEST_CACHE = 128
SMALLEST_PROMPT = 32


class Generation(NamedTuple):
    """New tokens of every row.

    Row b holds `lengths[b]` tokens, the stop token that ended it included; the rest is padding. `logprobs`
    are those of the model itself, before temperature and filters: zero in the padding; None if not asked for.
    """

    tokens: Int[Array, "batch max_new"]
    lengths: Int[Array, " batch"]
    logprobs: Float[Array, "batch max_new"] | None


class Sampling(NamedTuple):
    """Values that may change without a new program."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


class _State(NamedTuple):
    """Of the decoding loop; the newest tokens, `tokens[:, step - 1]`, are not in the cache yet."""

    step: Int[Array, ""]
    cache: Any
    finished: Bool[Array, " batch"]
    written: Generation


def generate(
    params: Params,
    cfg: ModelConfig,
    prompt: Int[Array, "batch time"],
    prompt_len: Int[Array, " batch"],
    key: Key[Array, ""] | Key[Array, " batch"],
    *,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: tuple[int, ...] = (),
    logprobs: bool = False,
    cache_code: VectorCode | None = None,
    key_offset: Float[Array, "layers kv_heads head_dim"] | None = None,
) -> Generation:
    """Continue every prompt by up to `max_new` tokens.

    Filters act in the order top_k, top_p, min_p, after the temperature, as in transformers.

    Args:
        params: the model.
        cfg: static.
        prompt: int32, right-padded.
        prompt_len: tokens of each prompt, 1 to time.
        key: one key, folded with the row's number, or a key a row. A row's tokens depend on its own key and
            prompt alone, not on what else is in the batch.
        max_new: tokens to make, at least 1.
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 is all.
        top_p: keep the likeliest tokens until their probabilities reach top_p, in (0, 1].
        min_p: keep tokens at least min_p times as probable as the likeliest, in [0, 1].
        stop_ids: tokens that end a row (`cfg.eos_ids` for the model's own); none by default.
        logprobs: return the log-probabilities of the new tokens too.
        cache_code: static; keep keys and values of all tokens in this code (`jaxlab.quantization.CacheCode`): a
            fraction of the memory, for the time to decode them at every token. None keeps them as they are.
        key_offset: with a code, see `init_cache`.

    Raises:
        InputError: an option out of range, prompts of a wrong shape, a code that does not fit the heads, or prompt
            and new tokens together longer than cfg.max_positions.
    """
    check_params(params, cfg)
    check_causal(cfg, "generate")
    check_tokens(prompt, cfg)
    prompt, prompt_len = jnp.asarray(prompt), jnp.asarray(prompt_len)
    batch, time = prompt.shape
    check_prompt(prompt, prompt_len, max_new)
    if time + max_new > cfg.max_positions:
        raise InputError(
            f"prompt of width {time} and max_new {max_new} exceed the model's {cfg.max_positions} positions"
        )
    sampling, choice = checked_sampling(temperature, top_k, top_p, min_p)
    padded = min(power_of_two(time, SMALLEST_PROMPT), cfg.max_positions)
    prompt = jnp.pad(prompt, ((0, 0), (0, padded - time)))
    return _generate(
        params,
        cfg,
        prompt,
        prompt_len.astype(jnp.int32),
        row_keys(key, batch),
        sampling,
        max_new=max_new,
        slots=power_of_two(max(padded, time + max_new), SMALLEST_CACHE),
        choice=choice,
        stop_ids=tuple(int(token) for token in stop_ids),
        with_logprobs=logprobs,
        cache_code=cache_code,
        key_offset=key_offset,
    )


@partial(
    jax.jit,
    static_argnames=("cfg", "max_new", "slots", "choice", "stop_ids", "with_logprobs", "cache_code"),
)
def _generate(
    params: Params,
    cfg: ModelConfig,
    prompt: Array,
    prompt_len: Array,
    keys: Array,
    sampling: Sampling,
    *,
    max_new: int,
    slots: int,
    choice: str,
    stop_ids: tuple[int, ...],
    with_logprobs: bool,
    cache_code: VectorCode | None,
    key_offset: Array | None,
) -> Generation:
    def score(hidden: Array) -> Array:
        return logits(params, cfg, hidden)

    def advance(cache: Cache, newest: Array) -> tuple[Array, Cache]:
        hidden, cache_after = forward(params, cfg, newest, cache=cache)
        assert cache_after is not None
        return hidden[:, 0], cache_after

    dtype = jax.eval_shape(dense, params["embed"]).dtype
    empty = init_cache(cfg, prompt.shape[0], slots, dtype=dtype, code=cache_code, key_offset=key_offset)
    hidden, cache = forward(params, cfg, prompt, cache=empty)
    assert cache is not None
    last = jnp.take_along_axis(hidden, (prompt_len - 1)[:, None, None], axis=1)[:, 0]
    return decode_loop(
        last,
        cache._replace(length=prompt_len),
        score,
        advance,
        keys,
        sampling,
        max_new=max_new,
        choice=choice,
        padding=0 if cfg.pad_id is None else cfg.pad_id,
        stop_ids=stop_ids,
        with_logprobs=with_logprobs,
    )


def decode_loop(
    hidden: Float[Array, "batch hidden"],
    cache: Any,
    score: Callable[[Array], Array],
    advance: Callable[[Any, Array], tuple[Array, Any]],
    keys: Key[Array, " batch"],
    sampling: Sampling,
    *,
    max_new: int,
    choice: str,
    padding: int,
    stop_ids: tuple[int, ...],
    with_logprobs: bool,
) -> Generation:
    """Token after token; to be called under jit.

    Args:
        hidden: states that predict the first new token.
        cache: what the model remembers of the tokens before it.
        score: hidden states -> scores over the vocabulary.
        advance: (cache, newest tokens [batch, 1]) -> (hidden states that predict the next ones, cache).
        keys: one a row.
        sampling: values for `choice`.
        max_new: see `generate`.
        choice: what `checked_sampling` says.
        padding: token that follows upon the end of a row.
        stop_ids: see `generate`.
        with_logprobs: see `generate`.
    """
    batch = keys.shape[0]
    stops = jnp.asarray(stop_ids, jnp.int32)

    def choose(scores: Array, step: Array) -> Array:
        if choice == "likeliest":
            return jnp.argmax(scores, axis=-1)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        sample = _sample_filtered if choice == "filtered" else _sample
        return jax.vmap(sample, (0, 0, None))(step_keys, scores, sampling)

    def append(state: _State, hidden: Array) -> _State:
        scores = score(hidden).astype(jnp.float32)
        alive, written = ~state.finished, state.written
        token = jnp.where(alive, choose(scores, state.step), padding).astype(jnp.int32)
        logprobs = written.logprobs
        if logprobs is not None:
            chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), token[:, None], axis=-1)[:, 0]
            logprobs = logprobs.at[:, state.step].set(jnp.where(alive, chosen, 0.0))
        tokens = written.tokens.at[:, state.step].set(token)
        finished = state.finished | (token[:, None] == stops).any(axis=-1)
        return _State(
            state.step + 1, state.cache, finished, Generation(tokens, written.lengths + alive, logprobs)
        )

    def decode(state: _State) -> _State:
        newest = lax.dynamic_slice_in_dim(state.written.tokens, state.step - 1, 1, axis=1)
        hidden, cache = advance(state.cache, newest)
        return append(state._replace(cache=cache), hidden)

    empty = Generation(
        jnp.full((batch, max_new), padding, jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros((batch, max_new), jnp.float32) if with_logprobs else None,
    )
    state = append(_State(jnp.int32(0), cache, jnp.zeros(batch, bool), empty), hidden)
    more = lambda state: (state.step < max_new) & ~state.finished.all()  # noqa: E731
    return lax.while_loop(more, decode, state).written


def _sample(key: Array, scores: Float[Array, " vocabulary"], sampling: Sampling) -> Int[Array, ""]:
    return jax.random.categorical(key, scores / sampling.temperature)


def _sample_filtered(key: Array, scores: Float[Array, " vocabulary"], sampling: Sampling) -> Int[Array, ""]:
    order = jnp.argsort(-scores)
    ranked = scores[order] / sampling.temperature
    rank = jnp.arange(len(ranked))
    keep = (rank < sampling.top_k) | (sampling.top_k == 0)
    probability = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf))
    keep &= jnp.cumsum(probability) - probability < sampling.top_p
    keep &= probability >= sampling.min_p * probability[0]
    # Rounding must not filter the likeliest token away.
    keep |= rank == 0
    return order[jax.random.categorical(key, jnp.where(keep, ranked, -jnp.inf))]


def row_keys(key: Array, batch: int) -> Key[Array, " batch"]:
    """One typed key a row.

    Raises:
        InputError: neither one key nor as many as rows.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise InputError(f"key has shape {key.shape}; it must be one key or one for each of {batch} rows")
    return key


def power_of_two(size: int, smallest: int) -> int:
    """The smallest power of two that is at least `size` and at least `smallest`."""
    return max(smallest, 1 << (size - 1).bit_length())


def check_prompt(prompt: Array, prompt_len: Array, max_new: int) -> None:
    """Check right-padded prompts, their lengths, and how many tokens are to follow.

    Raises:
        InputError: one of them is out of range or of a wrong shape.
    """
    batch, time = prompt.shape
    if prompt_len.shape != (batch,) or not jnp.issubdtype(prompt_len.dtype, jnp.integer):
        raise InputError(
            f"prompt_len has shape {prompt_len.shape} and dtype {prompt_len.dtype}; "
            f"it must be int32 [{batch}]"
        )
    lengths = concrete(prompt_len)
    if lengths is not None and not (1 <= lengths.min() and lengths.max() <= time):
        raise InputError(f"prompt_len is {lengths.tolist()}; each must be 1 to {time}, the width of prompt")
    if max_new < 1:
        raise InputError(f"max_new is {max_new}; it must be at least 1")


def checked_sampling(temperature: float, top_k: int, top_p: float, min_p: float) -> tuple[Sampling, str]:
    """The options of `generate` as arrays, and how they choose a token: "likeliest", "filtered" or "free".

    Raises:
        InputError: one is out of range.
    """
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    ranges = {
        "temperature": ("at least 0", temperature >= 0),
        "top_k": ("0 (off) or more", top_k >= 0),
        "top_p": ("in (0, 1]", 0 < top_p <= 1),
        "min_p": ("in [0, 1]", 0 <= min_p <= 1),
    }
    for name, (right, holds) in ranges.items():
        if not holds:
            raise InputError(f"{name} is {values[name]}; it must be {right}")
    filtered = top_k > 0 or top_p < 1.0 or min_p > 0.0
    choice = "likeliest" if temperature == 0.0 else "filtered" if filtered else "free"
    return Sampling(**{name: jnp.asarray(value) for name, value in values.items()}), choice
