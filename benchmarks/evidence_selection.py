"""Weight decay learned without a validation set matches one tuned on it, for 1.3 times one run; rotations are found.

The ntk-marglik recipe on Fashion-MNIST: the small convolutional network with usual weight decay (5e-4), with the best
of seven decays on a tenth held out, and with precisions learned: in function space from blocks of 150 with one output
drawn, or of 100 of alike labels with all outputs, and with Kronecker factors of blocks of 5000; test accuracy, nats an
example, and the seconds as a multiple of one ordinary run, compilation included in all. Then affine augmentations
learned on some of the images, untouched, turned by up to 90 and by up to 180 degrees: the learned range of rotation.
Each finished run is kept in `results/evidence_runs` (delete it when the code changes), so that a stopped one goes on.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import kept
from jaxlab.recipes import ntk_marglik
from jaxlab.recipes.ntk_marglik import Config

_COST, _POINTS = 1.3, -0.3
_ROTATIONS = {"none": None, "r90": (1.2, 2.0), "r180": (2.5, 3.1416)}
_PLAIN = Config(epochs=20, burn_in=4, grid_images=0)
_WAYS: dict[str, dict[str, Any]] = {
    "ntk, one output": {"rows": "1", "block": 150, "partition": "random", "draws": 4},
    "ntk, all outputs, alike labels": {"rows": "all", "block": 100, "partition": "label", "draws": 1},
    "kron": {"estimator": "kron", "block": 5000, "draws": 1, "frequency": 2},
}
_TURNED = Config(
    augment="affine",
    images=5000,
    samples=10,
    epochs=25,
    burn_in=2,
    block=100,
    draws=4,
    augment_steps=4,
    grid_images=0,
)
_QUICK = {"images": 600, "epochs": 3, "burn_in": 1, "batch_size": 50, "block": 30, "frequency": 1}


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a way to choose the weight decay, and one a transform."""
    sizes: dict[str, Any] = _QUICK if quick else {}
    ways = {name: dataclasses.replace(_PLAIN, **{**options, **sizes}) for name, options in _WAYS.items()}
    first = "ntk, one output"
    ways[first] = dataclasses.replace(ways[first], compare="map" if quick else "grid")
    found = {name: _kept(name, config, quick) for name, config in ways.items()}
    beside = found[first]
    ordinary = [_row("usual weight decay", beside, "map_")]
    if "tuned_nll" in beside:
        ordinary.append(_row("tuned weight decay, grid of 7", beside, "tuned_"))
    best = ordinary[-1]
    learned = [_row(name, summary, "") | {"rows": summary["indices"]} for name, summary in found.items()]
    for row in learned:
        row["points_over_tuned"] = round(row["accuracy_percent"] - best["accuracy_percent"], 2)
        row["nats_under_tuned"] = round(best["nats"] - row["nats"], 4)
    rows = [*ordinary, *learned]
    for row in rows:
        row["runs"] = round(row["seconds"] / beside["map_seconds"], 2)
    for row in learned:
        row["met"] = (
            row["points_over_tuned"] >= _POINTS and row["nats_under_tuned"] > 0 and row["runs"] <= _COST
        )
    for transform, wanted in _ROTATIONS.items():
        config = dataclasses.replace(
            _TURNED, transform=transform, **({**sizes, "samples": 3} if quick else {})
        )
        summary = _kept(f"affine {transform}", config, quick)
        row = _row(f"affine, {transform}", summary, "") | {"rotation": round(summary["rotation"], 3)}
        if wanted is not None:
            row |= {"wanted": wanted, "met": wanted[0] <= summary["rotation"] <= wanted[1]}
        rows.append(row)
    return rows


def _row(name: str, summary: dict[str, Any], start: str) -> dict[str, Any]:
    return {
        "run": name,
        "accuracy_percent": round(100 * summary[f"{start}accuracy"], 2),
        "nats": round(summary[f"{start}nll"], 4),
        "seconds": round(summary[f"{start}seconds" if start else "train_seconds"], 1),
    }


def _kept(name: str, config: Config, quick: bool) -> dict[str, Any]:
    """The summary; quick ones are not kept."""

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return ntk_marglik.run(config, out=Path(folder) / "run")

    if quick:
        return measure()
    file = f"evidence_runs/{name.replace(', ', '-').replace(' ', '-')}"
    return kept(file, dataclasses.asdict(config), measure)
