"""Quantizes a real language model by Pyramid Vector Quantization and measures it beside round-to-nearest and GPTQ.

Calibrates on real text, quantizes every matrix of every block at a budget of real bits a weight, saves a folder that
`jaxlab.models.load` opens, loads it again, and compares perplexity and divergence with the unquantized model. Of a
pruned model only what is left is coded, and the model before pruning stands in the comparison too.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.models import Model, forward, load, logits, stack_padded
from jaxlab.models.comparison import compare
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.models.loading import pruned_from
from jaxlab.models.validation import layer_shapes
from jaxlab.progress import Progress
from jaxlab.quantization.expansion import expand_params
from jaxlab.quantization.format import read_tensors, save_quantized, write_tensors
from jaxlab.quantization.model import (
    QuantizedLayer,
    QuantizedTensor,
    Scheme,
    Spec,
    dequantize_part,
    layer_of,
    quantize_layers,
)
from jaxlab.quantization.parts import Parts, as_leaf, find_parts, part_of
from jaxlab.quantization.planner import nearest_scalar_codes, plan
from jaxlab.quantization.pvq import PVQTensor
from jaxlab.quantization.scalar import ScalarGrid, ScalarSpec, quantize_scalar
from jaxlab.quantization.sensitivity import Sensitivity, matrix_costs, sensitivity, token_weights
from jaxlab.quantization.tuning import tune, tuned_norm, tuned_tensor
from jaxlab.recipes import pvq_report, pvq_sweep
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.recipes.pvq_report import METHODS, table
from jaxlab.recipes.pvq_windows import calibration_tuning_test
from jaxlab.runs import RunFolder
from jaxlab.sweeps.protocol import Sweepable

__all__ = ["METHODS", "PRESETS", "SWEEP", "Config", "run", "table"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the pvq recipe."""

    model: str = "pkg:smollm2"
    """Model to quantize: pkg:NAME, hf:ORG/NAME, a Hugging Face directory, a .gguf file, or a folder saved by jaxlab
    (such as the `pruned` one of a run of surgeon)."""
    bits: float = 3.25
    """Budget of real bits per weight over all matrices of the blocks: codes, scales, levels, signs and padding."""
    group: int = 16
    """Weights per lattice group; must divide the width of every matrix (a pruned one is filled up)."""
    calib: str = "sotu:calib"
    """Calibration text: a corpus name (sotu:calib, moby, ...) or a path."""
    calib_windows: int = 64
    """Calibration windows."""
    calib_context: int = 256
    """Tokens per calibration window."""
    damping: float = 0.01
    """Share of the Hessian's mean diagonal added to it before it is inverted."""
    correction: float = 0.5
    """Share of the error of earlier layers that each PVQ matrix is asked to undo, 0 to 1."""
    sweeps: int = 1
    """Passes of coordinate descent over the PVQ groups after the error feedback."""
    two_sided: bool = True
    """PVQ passes errors on between output rows too, by the second moment of the gradients there."""
    allocation: Literal["fisher", "heads"] = "fisher"
    """Which PVQ matrices get more bits: by the divergence that their errors are predicted to cause (needs at least
    as many calibration tokens as the widest matrix has columns, better ten times as many), or only keys and values,
    by how many heads read them."""
    tuning_windows: int = 64
    """Further windows of the calibration text on which row scales and norms are tuned in the end; 0 leaves them."""
    learning_rate: float = 2e-3
    """Of that tuning: relative change a step."""
    text: str = "sotu:test"
    """Text on which perplexity is measured: a corpus name or a path."""
    windows: int = 16
    """Test windows; 0 takes all that the text holds."""
    context: int = 1024
    """Tokens per test window."""
    seed: int = 0
    """Seed of calibration offsets, rotations and sampled labels."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, group=1, calib_windows=1, calib_context=2, context=2)
        require_at_least(self, windows=0, sweeps=0, tuning_windows=0)
        require_positive(self, "damping", "learning_rate")
        if not 1 <= self.bits <= 8:
            raise InputError(f"bits is {self.bits}; it must lie between 1 and 8")
        if not 0 <= self.correction <= 1:
            raise InputError(f"correction is {self.correction}; it must lie between 0 and 1")


PRESETS = {
    "smoke": Config(
        calib_windows=8,
        correction=0.0,
        sweeps=0,
        two_sided=False,
        allocation="heads",
        tuning_windows=0,
        windows=2,
        context=512,
    ),
    "cpu": Config(),
    "gpu": Config(calib_windows=512, calib_context=1024, tuning_windows=256, windows=0),
}

SWEEP = Sweepable(pvq_sweep.train, traced=("damping",), lanes=1)

_EMBEDDING = ScalarSpec(bits=8, group=32, grid="midtread")
_PARTIAL = "partial"
_ZEROS_WORTH_A_WORD = 0.2
_WIDTHS = 32  # of pruned matrices are multiples of this: each one is a program to compile
_TOKENS_A_COLUMN = 8  # of the widest matrix, for the predicted costs; more hardly change them


class _Work(NamedTuple):
    """What all stages of a run look at."""

    config: Config
    folder: RunFolder
    progress: Progress
    model: Model
    """With stacked layers of equal widths."""
    calibration: jax.Array
    tuning: np.ndarray
    test: np.ndarray
    parts: Parts | None
    """Of a pruned model what is left of each matrix."""
    cfg: ModelConfig
    """Of the quantized model."""

    def partial(self, *parts: str) -> Path:
        """A file that an interrupted run leaves for the one that resumes it."""
        return self.folder.artefact("/".join((_PARTIAL, *parts)))

    def key(self, purpose: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), purpose)

    def shapes(self) -> dict[tuple[int, str], tuple[int, int]]:
        """Rows and columns that are coded, by layer and matrix."""
        found = {}
        for layer in range(self.cfg.num_layers):
            for name in LINEARS:
                one = part_of(self.parts, layer, name)
                whole = self.model.params["layers"][name].shape[1:]
                found[layer, name] = whole if one is None else (len(one.rows), len(one.columns))
        return found


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/pvq-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: perplexities, divergences, real bits a weight, bytes, seconds.

    Raises:
      InputError: an option, the model or a text cannot be used.
      ResourceError: a package, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="pvq") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"load {config.model}"):
            loaded = load(config.model)
            model = Model(*stack_padded(loaded.params, loaded.cfg), loaded.tokenizer)
            cfg, parts = find_parts(model.params, loaded.cfg, multiple=math.lcm(config.group, _WIDTHS))
            del loaded
            calibration, tuning, test = calibration_tuning_test(config, model)
        work = _Work(config, folder, progress, model, jnp.asarray(calibration), tuning, test, parts, cfg)
        _warn_of_zeros(work)
        fisher = _fisher(work)
        schemes = _schemes(work, _costs(work, fisher))
        layers = {method: _quantize(work, method, scheme, fisher) for method, scheme in schemes.items()}
        params, layers["pvq"] = _tune(work, layers["pvq"])
        with progress.stage("save and load again"):
            models = {
                method: _with_layers(work, params if method == "pvq" else model.params, layers[method])
                for method in METHODS
            }
            directory = folder.artefact("quantized")
            origin = pruned_from(config.model)
            notes = {"pruned_from": origin} if origin else None
            save_quantized(models["pvq"], cfg, model.tokenizer, directory, notes=notes)
            dense = {method: expand_params(models[method]) for method in METHODS}
            difference = _reload_difference(directory, dense["pvq"], cfg, test)
            dense = {method: stack_padded(one, cfg)[0] for method, one in dense.items()}
        nll, kl = _compare(work, dense)
        summary = pvq_report.summary(config.model, layers, directory, nll, kl) | {
            "reload_max_logit_difference": difference
        }
        summary |= pvq_report.original(config.model, test, work.shapes(), progress)
        pvq_report.figures(folder, config.model, layers, nll)
        shutil.rmtree(folder.artefact(_PARTIAL), ignore_errors=True)
        return folder.finish(summary)


def _warn_of_zeros(work: _Work) -> None:
    """Single zeros, as of pruning by elements or n:m, are weights like any other here."""
    matrices = [work.model.params["layers"][name] for name in LINEARS]
    coded = sum(map(math.prod, work.shapes().values()))
    left_out = sum(one.size for one in matrices) - coded
    share = (sum(int(jnp.sum(one == 0)) for one in matrices) - left_out) / coded
    if share > _ZEROS_WORTH_A_WORD:
        work.progress.note(
            f"warning: {share:.0%} of the weights that are coded are zero, and will not stay zero: bits are spared "
            "where whole rows and columns, hidden units or heads are pruned (rowcol, mlp_units, kv_groups, units)"
        )


def _fisher(work: _Work) -> Sensitivity:
    """Sensitivity of every matrix, from the file of an interrupted run if there is one."""
    file = work.partial("sensitivity.npz")
    windows = work.calibration
    if not file.exists():
        with work.progress.stage("sensitivity", len(windows), unit="windows") as stage:
            found = sensitivity(
                work.model.params,
                work.model.cfg,
                windows,
                work.key(0),
                progress=lambda done: stage.advance(done - stage.done),
            )
        # Half the bytes: as many digits of the gradients' moments as the gradients themselves were kept with.
        halves = {name: x.astype(jnp.bfloat16).view(jnp.uint16) for name, x in found.outputs.items()}
        _save_arrays(file, tokens=found.tokens, outputs=halves)
        del found, halves
    with np.load(file) as stored:
        tokens = {name: jnp.asarray(stored[f"tokens_{name}"]) for name in LINEARS}
        outputs = {name: jnp.asarray(stored[f"outputs_{name}"]).view(jnp.bfloat16) for name in LINEARS}
    return Sensitivity(tokens, outputs)


def _costs(work: _Work, fisher: Sensitivity) -> dict[str, np.ndarray]:
    """How much each matrix's distortion matters, of every layer: [layers]."""
    config, model = work.config, work.model
    if config.allocation == "heads":
        # A key or value head is read by several query heads, so that its error counts as often.
        readers = model.cfg.num_heads // model.cfg.num_kv_heads
        sizes = {which: math.prod(shape) for which, shape in work.shapes().items()}
        return {
            name: np.array(
                [
                    sizes[layer, name] * (readers if name in ("k", "v") else 1)
                    for layer in range(model.cfg.num_layers)
                ],
                np.float64,
            )
            for name in LINEARS
        }
    file = work.partial("costs.npz")
    widest = max(model.params["layers"][name].shape[2] for name in LINEARS)
    windows = -(-_TOKENS_A_COLUMN * widest // config.calib_context)
    if not file.exists():
        with work.progress.stage("rates", model.cfg.num_layers, unit="layers") as stage:
            found = matrix_costs(
                model.params,
                model.cfg,
                work.calibration[:windows],
                fisher,
                work.key(1),
                damping=config.damping,
                progress=lambda done: stage.advance(done - stage.done),
            )
        _save_arrays(file, costs=found)
    with np.load(file) as stored:
        return {name: stored[f"costs_{name}"].astype(np.float64) for name in LINEARS}


def _save_arrays(file: Path, **kinds: dict[str, jax.Array]) -> None:
    """An npz file, whole or not there, of arrays named KIND_NAME."""
    named: dict[str, Any] = {f"{kind}_{n}": v for kind, arrays in kinds.items() for n, v in arrays.items()}
    with atomic_file(file) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, **named)


def _schemes(work: _Work, costs: dict[str, np.ndarray]) -> dict[str, Scheme]:
    """PVQ at the budget, and the scalar codes at their nearest real rate that is not below it."""
    config, shapes = work.config, work.shapes()
    cost = {(layer, name): float(costs[name][layer]) for layer, name in shapes}
    pvq = plan(shapes, config.bits, n=config.group, costs=cost)

    def scalar(grid: ScalarGrid) -> list[dict[str, Spec]]:
        codes = nearest_scalar_codes(shapes.values(), config.bits, grid)
        return by_layer({which: codes[columns] for which, (_, columns) in shapes.items()})

    def by_layer(specs: Mapping[tuple[int, str], Spec]) -> list[dict[str, Spec]]:
        return [{name: specs[layer, name] for name in LINEARS} for layer in range(work.cfg.num_layers)]

    return {
        "rtn": Scheme(scalar("minmax"), rotated=False, feedback=False),
        "gptq": Scheme(scalar("midrise"), damping=config.damping),
        "pvq": Scheme(
            by_layer(pvq), correction=config.correction, damping=config.damping, sweeps=config.sweeps
        ),
    }


def _quantize(work: _Work, method: str, scheme: Scheme, fisher: Sensitivity) -> list[QuantizedLayer]:
    """All layers by one method; each is on disk before the next is begun."""
    cfg = work.model.cfg
    logged = {(row["method"], row["layer"]) for row in work.folder.metrics() if "layer" in row}
    layers: list[QuantizedLayer] = []

    def record(layer: QuantizedLayer) -> None:
        layers.append(layer)
        if (method, layer.layer) not in logged:
            decibels = {f"output_sqnr_{name}": value for name, value in layer.output_sqnr.items()}
            decibels |= {f"weight_sqnr_{name}": value for name, value in layer.weight_sqnr.items()}
            work.folder.log(method=method, layer=layer.layer, **decibels)

    for index in range(cfg.num_layers):
        file = work.partial(method, f"layer-{index:03}.safetensors")
        if not file.exists():
            break
        tensors, notes = read_tensors(file)
        record(
            QuantizedLayer(
                index, {name: tensors[f"{name}.weight"] for name in LINEARS}, **json.loads(notes["sqnr"])
            )
        )
    with work.progress.stage(f"quantize: {method}", cfg.num_layers, unit="layers") as stage:
        stage.skip(len(layers))
        remaining = quantize_layers(
            work.model.params,
            cfg,
            scheme,
            work.key(2),
            tokens=work.calibration if scheme.feedback else None,
            token_weights=token_weights(fisher) if method == "pvq" else None,
            output_moments=fisher.outputs if method == "pvq" and work.config.two_sided else None,
            done=[layer.tensors for layer in layers],
            parts=work.parts,
        )
        for layer in remaining:
            sqnr = json.dumps({"weight_sqnr": layer.weight_sqnr, "output_sqnr": layer.output_sqnr})
            with atomic_file(work.partial(method, f"layer-{layer.layer:03}.safetensors")) as temporary:
                named = {f"{name}.weight": tensor for name, tensor in layer.tensors.items()}
                write_tensors(temporary, named, notes={"sqnr": sqnr})
            record(layer)
            decibels = layer.output_sqnr or layer.weight_sqnr
            stage.advance(1, dB=sum(decibels.values()) / len(decibels))
    return layers


def _tune(work: _Work, layers: list[QuantizedLayer]) -> tuple[dict[str, Any], list[QuantizedLayer]]:
    """The model with tuned norms, and the quantized layers with tuned row scales."""
    params, cfg = work.model.params, work.model.cfg
    if not len(work.tuning):
        return params, layers
    file = work.partial("tuning.npz")
    if not file.exists():
        quantized = {}
        for name in LINEARS:
            shape = params["layers"][name].shape[1:]
            rows = [
                dequantize_part(layer.tensors[name], part_of(work.parts, layer.layer, name), shape)
                for layer in layers
            ]
            quantized[name] = jnp.stack(rows)
        del rows
        with work.progress.stage("tune", len(work.tuning), unit="windows") as stage:
            found = tune(
                params,
                quantized,
                cfg,
                jnp.asarray(work.tuning),
                learning_rate=work.config.learning_rate,
                progress=lambda done, kl: stage.advance(done - stage.done, KL=kl),
            )
        _save_arrays(file, rows=found.rows, norms=found.norms, top={"final_norm": found.final_norm})
    with np.load(file) as stored:
        changes = {name: jnp.asarray(stored[f"rows_{name}"]) for name in LINEARS}
        norms = {
            name: tuned_norm(leaf, jnp.asarray(stored[f"norms_{name}"]), cfg)
            for name, leaf in params["layers"].items()
            if f"norms_{name}" in stored
        }
        final = tuned_norm(params["final_norm"], jnp.asarray(stored["top_final_norm"]), cfg)

    def tuned_layer(layer: QuantizedLayer) -> QuantizedLayer:
        tensors: dict[str, QuantizedTensor] = {}
        for name, tensor in layer.tensors.items():
            assert isinstance(tensor, PVQTensor)
            one, change = part_of(work.parts, layer.layer, name), changes[name][layer.layer]
            tensors[name] = tuned_tensor(tensor, change if one is None else change[one.rows])
        return layer._replace(tensors=tensors)

    tuned = [tuned_layer(layer) for layer in layers]
    return {**params, "layers": {**params["layers"], **norms}, "final_norm": final}, tuned


def _with_layers(work: _Work, params: dict[str, Any], layers: list[QuantizedLayer]) -> dict[str, Any]:
    """The model with quantized matrices, and its embedding and head in eight bits."""
    tops = {name: leaf for name, leaf in params.items() if name != "layers"}
    tops |= {
        name: quantize_scalar(params[name], spec=_EMBEDDING) for name in ("embed", "head") if name in params
    }

    def quantized(layer: QuantizedLayer) -> dict[str, Any]:
        shapes = layer_shapes(work.cfg, layer.layer)
        leaves = {
            name: leaf[: shapes[name][0]]
            for name, leaf in layer_of(params, layer.layer).items()
            if name not in LINEARS
        }
        return leaves | {
            name: as_leaf(tensor, part_of(work.parts, layer.layer, name))
            for name, tensor in layer.tensors.items()
        }

    return tops | {"layers": tuple(map(quantized, layers))}


def _reload_difference(directory: Path, params: dict[str, Any], cfg: ModelConfig, test: np.ndarray) -> float:
    """Largest difference of logits between the saved folder and the model in memory, on the start of the test text."""
    again = load(directory)
    tokens = jnp.asarray(test[:1, :64])
    one, other = (logits(p, cfg, forward(p, cfg, tokens).hidden) for p in (params, again.params))
    return float(jnp.max(jnp.abs(one - other)))


def _compare(work: _Work, dense: dict[str, dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihoods and divergences [windows, models, tokens], the unquantized model first."""
    file = work.partial("comparison.npz")
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    if file.exists():
        with np.load(file) as stored:
            scored = list(zip(stored["nll"], stored["kl"], strict=True))
    models = (work.model.params, *(dense[method] for method in METHODS))
    with work.progress.stage("perplexity", work.test.size, unit="tokens") as stage:
        stage.skip(len(scored) * work.test.shape[1])
        for window in work.test[len(scored) :]:
            result = compare(models, work.model.cfg, jnp.asarray(window[None]))
            scored.append((-np.asarray(result.logprobs[:, 0]), np.asarray(result.kl[:, 0])))
            nll = np.stack([one for one, _ in scored])
            with atomic_file(file) as temporary, open(temporary, "wb") as opened:
                np.savez(opened, nll=nll, kl=np.stack([one for _, one in scored]))
            ppl = np.exp(nll.mean(axis=(0, 2), dtype=np.float64))
            stage.advance(window.size, base=ppl[0], pvq=ppl[-1])
    return np.stack([one for one, _ in scored]), np.stack([one for _, one in scored])
