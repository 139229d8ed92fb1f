"""Fashion-MNIST by the t-regs recipe: MSE with T-REGS 10 points above MSE alone, 1.5 below VICReg at most.

Each method with the same network, views, epochs and optimizer, three seeds; linear probe and 20 nearest neighbours on
the 10,000 test images, beside raw pixels; cosine, rank and radius of the embeddings. Whole runs of
`jaxlab run t-regs`, one after the other.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.recipes import t_regs

_METHODS = ("mse", "mse+tregs", "vicreg", "barlow", "barlow+tregs", "simclr", "byol", "byol+tregs")
_SEEDS = 3
_OVER_MSE = 10.0
_UNDER_VICREG = 1.5


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a method: means and standard deviations over seeds."""
    base = t_regs.PRESETS["smoke" if quick else "cpu"]
    rows = []
    for method in _METHODS[:3] if quick else _METHODS:
        found = []
        for seed in range(1 if quick else _SEEDS):
            with tempfile.TemporaryDirectory() as folder:
                config = dataclasses.replace(base, method=method, seed=seed)
                found.append(t_regs.run(config, out=Path(folder) / "run"))
        row: dict[str, Any] = {"method": method, "seeds": len(found), "images": found[0]["images"]}
        for name in ("linear_accuracy", "knn_accuracy", "pixels_knn_accuracy"):
            values = [100 * own[name] for own in found]
            row[f"{name}_percent"] = round(float(np.mean(values)), 2)
            row[f"{name}_std"] = round(float(np.std(values)), 2)
        for name in ("mean_cosine", "effective_rank", "radius", "step_seconds", "seconds"):
            row[name] = round(float(np.mean([own[name] for own in found])), 4)
        rows.append(row)
    by_method = {row["method"]: row["linear_accuracy_percent"] for row in rows}
    ours = by_method["mse+tregs"]
    for row in rows:
        if row["method"] == "mse":
            row["points_to_mse_tregs"], row["target_points"] = round(ours - by_method["mse"], 2), _OVER_MSE
        elif row["method"] == "vicreg":
            row["points_to_mse_tregs"], row["target_points"] = (
                round(ours - by_method["vicreg"], 2),
                -_UNDER_VICREG,
            )
    return rows
