"""Fashion-MNIST by the t-regs recipe: MSE with T-REGS 10 points above MSE alone, 1.5 below VICReg at most.

Also above raw pixels. Each method with the same network, views, epochs and optimizer, three seeds; linear probe and 20
nearest neighbours on the 10,000 test images, beside both on raw pixels; cosine, rank and radius of the embeddings.
Whole runs of `jaxlab run t-regs`, one after the other; each finished one is kept in `results/t_regs_runs` (delete it
when the code changes): an interrupted benchmark goes on, also on another machine. About four minutes a run.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import kept
from jaxlab.recipes import t_regs

_METHODS: tuple[t_regs.Objective, ...] = ("mse", "mse+tregs", "vicreg")
_SEEDS = 3
_OVER_MSE = 10.0
_UNDER_VICREG = -1.5
_ACCURACIES = ("linear_accuracy", "knn_accuracy")


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a method and one of raw pixels: means and deviations over seeds, points of MSE + T-REGS over each."""
    runs = runs_of(_METHODS, 1 if quick else _SEEDS, quick)
    rows = [row_of(method, found) for method, found in runs.items()]
    pixels = {name: [100 * own[f"pixels_{name}"] for own in runs["mse"]] for name in _ACCURACIES}
    rows.append(
        {"method": "raw pixels"}
        | {f"{name}_percent": round(float(np.mean(pixels[name])), 2) for name in pixels}
    )
    ours = rows[_METHODS.index("mse+tregs")]["linear_accuracy_percent"]
    for row, least in zip(rows, (_OVER_MSE, None, _UNDER_VICREG, 0.0), strict=True):
        if least is not None:
            points = round(ours - row["linear_accuracy_percent"], 2)
            row |= {"points_of_mse_tregs": points, "least_points": least, "met": points >= least}
    return rows


def runs_of(methods: Sequence[t_regs.Objective], seeds: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Summaries of the preset `cpu` by method, a seed of all methods before the next; `quick`: `smoke`, not kept."""
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for seed in range(seeds):
        for method in methods:
            preset = t_regs.PRESETS["smoke" if quick else "cpu"]
            config = dataclasses.replace(preset, method=method, seed=seed, probe_every=preset.max_epochs)
            measure = functools.partial(_summary, config)
            name = f"t_regs_runs/{method}-{seed}"
            found[method].append(measure() if quick else kept(name, dataclasses.asdict(config), measure))
    return found


def row_of(method: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Table row of one method's runs."""
    row: dict[str, Any] = {"method": method, "seeds": len(found), "images": found[0]["images"]}
    for name in _ACCURACIES:
        values = [100 * own[name] for own in found]
        row[f"{name}_percent"] = round(float(np.mean(values)), 2)
        row[f"{name}_std"] = round(float(np.std(values)), 2)
    for name in ("mean_cosine", "effective_rank", "radius", "step_seconds", "seconds"):
        row[name] = round(float(np.mean([own[name] for own in found])), 4)
    return row


def _summary(config: t_regs.Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return t_regs.run(config, out=Path(folder) / "run")
