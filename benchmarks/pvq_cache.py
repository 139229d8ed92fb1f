"""Keys and values of SmolLM2's cache in pyramid codes: perplexity within 3 % at 4.25 bits, integers of the same beside.

Every key and value that attention reads, a token's own included, went through the code: the text runs through
`forward` with a coded cache. Bits are counted on the cache's arrays: indices, gains, scales, padding to words. Integers
take one scale (minmax: and a minimum) a head and token. `rotated` is signs and a Hadamard transform over a head;
`keys` says whether keys are coded as they are, or less their mean over windows of other speeches (`mean_keys`).
`weight bits` and `input bits` are those of `pvq_activations`: the last rows have all three in pyramid codes.
Differences of mean log-likelihood are paired over the same windows, with their standard error.
"""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.pvq_activations import INPUTS, MODEL, WEIGHTS, row_of
from jaxlab import data
from jaxlab.models import Evaluation, hidden_logprobs, init_cache, load
from jaxlab.models.transformer import forward
from jaxlab.quantization import CacheCode, PVQSpec, ScalarSpec, mean_keys, with_coded_inputs

_HEAD = 64  # of SmolLM2
CODES = {
    "pyramid (4, 127), gain 6": CacheCode(PVQSpec(4, 127, 6)),
    "int8": CacheCode(ScalarSpec(8, _HEAD, "midtread"), rotated=False),
    "pyramid (16, 48), gain 4": CacheCode(PVQSpec(16, 48, 4)),
    "int4 minmax": CacheCode(ScalarSpec(4, _HEAD), rotated=False),
    "int4 minmax, rotated": CacheCode(ScalarSpec(4, _HEAD)),
    "int4": CacheCode(ScalarSpec(4, _HEAD, "midtread"), rotated=False),
    "int4, rotated": CacheCode(ScalarSpec(4, _HEAD, "midtread")),
    "pyramid (16, 23), gain 3": CacheCode(PVQSpec(16, 23, 3)),
    "int3 minmax, rotated": CacheCode(ScalarSpec(3, _HEAD)),
    "int3, clipped, rotated": CacheCode(ScalarSpec(3, _HEAD, "midtread", clip=True)),
    "pyramid (16, 11), gain 1": CacheCode(PVQSpec(16, 11, 1)),
    "int2, clipped, rotated": CacheCode(ScalarSpec(2, _HEAD, "midrise", clip=True)),
}
TOGETHER = (("8", "pyramid (4, 127), gain 6"), ("4", "pyramid (16, 48), gain 4"))
QUICK = ("pyramid (16, 23), gain 3", "int4 minmax")
_WINDOWS_OF_MEANS = 8


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a code of the cache, and rows of weights, inputs and cache together."""
    model = load(MODEL)
    context, count = (96, 1) if quick else (512, 16)
    ids = data.token_ids("sotu:test", model.tokenizer)
    tokens = np.asarray(ids[: context * count], np.int32).reshape(count, context)
    others = np.asarray(
        data.token_ids("sotu:calib", model.tokenizer)[: context * _WINDOWS_OF_MEANS], np.int32
    )
    others = others.reshape(-1, context)[: 1 if quick else None]
    means = mean_keys(model.params, model.cfg, others)
    settings: list[tuple[str, str, str | None, Any, Any]] = [("16", "16", None, None, model.params)]
    for name in QUICK if quick else CODES:
        settings.append(("16", "16", name, None, model.params))
        if CODES[name].rotated:
            settings.append(("16", "16", name, means, model.params))
    for inputs, name in () if quick else TOGETHER:
        coded = with_coded_inputs(model.params, model.cfg, INPUTS[inputs], jax.random.key(0), weights=WEIGHTS)
        settings.append(("4", inputs, None, None, coded))
        settings.append(("4", inputs, name, mean_keys(coded, model.cfg, others), coded))
    base, rows = None, []
    for weights, inputs, name, offset, params in settings:
        code = None if name is None else CODES[name]
        found, bits = _evaluate(params, model.cfg, tokens, code, offset)
        base = found if base is None else base
        rows.append(
            {
                "cache": name or "float32",
                "keys": "as they are" if offset is None else "less their mean",
                "cache bits": bits,
            }
            | row_of(weights, inputs, found, base)
        )
    return rows


def _evaluate(
    params: Any, cfg: Any, tokens: np.ndarray, code: CacheCode | None, offset: Any
) -> tuple[Evaluation, float]:
    """Negative log-likelihoods of windows, and bits a cached number."""
    cache = init_cache(cfg, 1, tokens.shape[1], code=code, key_offset=offset)
    numbers = 2 * np.prod(cache.keys.shape)
    nll = [-np.asarray(_logprobs(params, cfg, window[None], cache)) for window in tokens]
    return Evaluation(np.concatenate(nll)), float(8 * (cache.keys.nbytes + cache.values.nbytes) / numbers)


@functools.partial(jax.jit, static_argnames="cfg")
def _logprobs(params: Any, cfg: Any, tokens: jax.Array, cache: Any) -> jax.Array:
    hidden = forward(params, cfg, tokens, cache=cache).hidden
    return hidden_logprobs(params, cfg, hidden[:, :-1], tokens[:, 1:])
