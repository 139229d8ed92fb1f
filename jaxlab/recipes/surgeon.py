"""Prunes a real language model with the LLM Surgeon in several shots, and saves it smaller than it was.

Every shot estimates the curvature of the loss on real text at the current weights, removes what costs least, moves what
stays to make up for it, and trains a low-rank correction. What can then go without changing an output goes
too, the rest is saved in a folder that `jaxlab.models.load` and `transformers` open, and perplexity, bytes and speed
are compared with the original.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.models import Model, evaluate, forward, load, logits, save_hf, stack_padded, windows
from jaxlab.models.linear import LINEARS
from jaxlab.models.loading import pruned_from
from jaxlab.models.saving import layout_note
from jaxlab.parallel import make_mesh
from jaxlab.progress import Progress
from jaxlab.pruning.closure import close, gather_model
from jaxlab.pruning.config import UNITS, SurgeonConfig
from jaxlab.pruning.coupled import remove_units, units_of
from jaxlab.pruning.low_rank import LowRank
from jaxlab.pruning.masks import Lines, check_pruned, removed_parameters
from jaxlab.pruning.surgeon import ShotReport, SurgeonState, init, prune
from jaxlab.recipes import surgeon_report
from jaxlab.recipes.options import require_at_least
from jaxlab.recipes.surgeon_report import Exported, table
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the surgeon recipe."""

    model: str = "pkg:smollm2"
    """Model to prune: pkg:NAME, hf:ORG/NAME, a Hugging Face directory, a .gguf file, or a folder saved by jaxlab."""
    structure: str = "rowcol"
    """What is removed: rowcol, rows, cols, element, n:m (such as 2:4), mlp_units, kv_groups or units (both)."""
    sparsity: float = 0.2
    """Share of the parameters of the blocks' matrices to remove, in [0, 1)."""
    shots: int = 8
    """Steps, each with its own curvature."""
    method: Literal["surgeon", "k-obd", "l-obd", "magnitude", "sparsegpt", "wanda"] = "surgeon"
    """How costs and updates are made; sparsegpt and wanda are for element and n:m."""
    calib: str = "sotu:calib"
    """Calibration text: a corpus name (sotu:calib, moby, ...) or a path."""
    calib_windows: int = 16
    """Calibration windows of each shot."""
    calib_context: int = 512
    """Tokens per calibration window."""
    fresh: bool = True
    """New calibration windows for every shot."""
    damp_a: float = 0.03
    """Share of the mean diagonal added to the input factors before they are inverted. Measured on SmolLM2 without 10 %,
    held-out text: 0.1 is best with 2,000 tokens of curvature a shot, 0.01 to 0.03 with 8,000 and 33,000."""
    damp_g: float = 0.03
    """The same for the factors of the gradients at the outputs."""
    damp_auto: bool = False
    """Try a third, once and three times both in every shot, and keep what is best on four more windows of the
    calibration text."""
    joint: Literal["exact", "sum"] = "exact"
    """Rows and columns together: the optimum, or the sum of two updates as in the authors' code."""
    max_correlate: int = 0
    """Rows (and columns) that are updated together; 0 is all."""
    max_chunk: int = 1
    """Single weights that are updated together, at least those of a row."""
    fisher: Literal["empirical", "mc"] = "empirical"
    """Labels of the curvature: the text's own, or drawn from the model."""
    draws: int = 1
    """With fisher mc, labels drawn for every token."""
    half_steps: int = 0
    """0 takes inputs and gradients as independent; 2, 4, 6 ... find the nearest Kronecker product of every matrix's
    Fisher information by so many passes over a shot's text."""
    rank: int = 8
    """Of the low-rank correction after every shot; 0 leaves it out."""
    rank_share: float = 0.125
    """Share of a shot's windows that the correction is trained on."""
    rank_rate: float = 1e-4
    """Learning rate of the correction."""
    rank_epochs: int = 5
    """Passes of the correction over the windows of the last shot."""
    layout: Literal["auto", "masked", "uniform", "compact"] = "auto"
    """How the model is saved: masked (zeros, loads everywhere), uniform (equal widths), compact (every matrix as
    small as it is), or auto: compact where it can be, else masked."""
    text: str = "sotu:test"
    """Text on which perplexity is measured: a corpus name or a path."""
    windows: int = 16
    """Test windows; 0 takes all that the text holds."""
    context: int = 512
    """Tokens per test window."""
    valid: str = "sotu:valid"
    """Text on which perplexity is followed from shot to shot."""
    valid_windows: int = 4
    """Its windows; 0 leaves that out."""
    seed: int = 0
    """Seed of calibration offsets, sampled labels and adapters."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(
            self, calib_windows=1, calib_context=2, context=2, windows=0, valid_windows=0, rank=0
        )
        self.pruning()  # checks the rest

    def pruning(self) -> SurgeonConfig:
        """The options of `jaxlab.pruning.surgeon`."""
        low_rank = (
            LowRank(self.rank, self.rank_rate, self.rank_share, self.rank_epochs) if self.rank else None
        )
        shared = {field.name for field in dataclasses.fields(SurgeonConfig)}
        shared &= {field.name for field in dataclasses.fields(Config)}
        factors = _DAMP_FACTORS if self.damp_auto else (1.0,)
        options = {name: getattr(self, name) for name in shared}
        return SurgeonConfig(low_rank=low_rank, damp_factors=factors, **options)


PRESETS = {
    "smoke": Config(
        sparsity=0.05,
        shots=1,
        calib_windows=4,
        damp_a=0.1,
        damp_g=0.1,
        rank_epochs=1,
        windows=2,
        valid_windows=0,
    ),
    "cpu": Config(),
    "gpu": Config(
        sparsity=0.5,
        shots=40,
        calib_windows=128,
        calib_context=2048,
        rank_share=0.025,
        fresh=False,
        windows=0,
    ),
}


_TIMED_TOKENS = 512
_DAMP_FACTORS, _HELD_OUT = (1 / 3, 1.0, 3.0), 4


class _Work(NamedTuple):
    """What all stages of a run look at."""

    config: Config
    folder: RunFolder
    progress: Progress
    model: Model
    calibration: np.ndarray
    held_out: np.ndarray
    """Further windows of the calibration text, with `damp_auto`."""
    valid: np.ndarray
    test: np.ndarray


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last whole shot, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/surgeon-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: perplexities, sparsity, parameters, bytes, speed, seconds.

    Raises:
      InputError: an option, the model or a text cannot be used.
      ResourceError: a package, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="surgeon") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"load {config.model}"):
            loaded = load(config.model)
            model = Model(*stack_padded(loaded.params, loaded.cfg), loaded.tokenizer)
            calibration, held_out, valid, test = _texts(config, model)
        work = _Work(config, folder, progress, model, calibration, held_out, valid, test)
        _warn_of_few_tokens(work)
        state, reports = _shots(work)
        exported = _export(work, state)
        summary = surgeon_report.summary(config, model, state, exported, test, progress)
        surgeon_report.figures(folder, config, model, reports, summary["sparsity"])
        return folder.finish(summary)


def _texts(config: Config, model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Calibration, held-out, validation and test windows, each with the beginning-of-text token where the model wants
    one.
    """
    bos = model.cfg.bos_id if model.cfg.add_bos else None
    pruned_on = config.calib_windows * (config.shots if config.fresh else 1)
    calibration = data.calibration_windows(
        data.token_ids(config.calib, model.tokenizer),
        context=config.calib_context,
        count=pruned_on + (_HELD_OUT if config.damp_auto else 0),
        seed=config.seed,
        bos_id=bos,
    )
    found = []
    for name, text, count in (
        ("valid_windows", config.valid, config.valid_windows),
        ("windows", config.text, config.windows),
    ):
        if name == "valid_windows" and not count:
            found.append(np.zeros((0, config.context), np.int32))
            continue
        cut = windows(data.token_ids(text, model.tokenizer), config.context, bos_id=bos)
        if count > len(cut):
            raise InputError(f"{name} is {count}, but {text} holds {len(cut)} of {config.context} tokens")
        found.append(cut[: count or None])
    return calibration[:pruned_on], calibration[pruned_on:], found[0], found[1]


def _warn_of_few_tokens(work: _Work) -> None:
    """Factors of fewer tokens than four times their size are close to rank-deficient: damping decides then."""
    widest = max(max(work.model.params["layers"][name].shape[1:]) for name in LINEARS)
    tokens = work.config.calib_windows * work.config.calib_context
    if work.config.method != "magnitude" and tokens < 4 * widest:
        work.progress.note(
            f"warning: {tokens} calibration tokens a shot are fewer than 4 times the widest layer ({widest}): the "
            "factors are rank-deficient; raise calib_windows, or keep the damping at 0.1 or above"
        )


def _shots(work: _Work) -> tuple[SurgeonState, list[dict[str, Any]]]:
    """All shots, each with a checkpoint behind it."""
    config, folder, model = work.config, work.folder, work.model
    pruning = config.pruning()
    key = jax.random.key(config.seed)
    state = init(model.params, model.cfg, pruning, key)
    restored = folder.restore(like=_storable(state))
    if restored is not None:
        state = _restored(restored.tree)
    with work.progress.stage("prune", config.shots, unit="shots") as stage:
        stage.skip(int(state.shot))
        started = time.monotonic()

        def done(state: SurgeonState, report: ShotReport) -> None:
            nonlocal started
            figures: dict[str, Any] = {
                "sparsity": report.sparsity,
                "threshold": report.threshold,
                "calib_loss": report.loss,
            }
            if len(work.valid):
                figures["ppl_valid"] = evaluate(state.params, model.cfg, work.valid).ppl
            if report.low_rank_losses:
                figures["correction_loss_first"] = report.low_rank_losses[0]
                figures["correction_loss_last"] = report.low_rank_losses[-1]
            for name, by_layer in report.removed.items():
                figures[f"removed_{name}"] = by_layer
                figures[f"damping_{name}"] = report.damping.get(name)
            if report.held_out_losses:
                figures["held_out_losses"] = {
                    f"{factor:.3g}": loss for factor, loss in report.held_out_losses.items()
                }
            seconds = time.monotonic() - started
            folder.log(step=report.shot, shot_seconds=round(seconds, 2), **figures)
            folder.checkpoint(report.shot, _storable(state))
            shown = {"sparsity": report.sparsity}
            if "ppl_valid" in figures:
                shown["ppl"] = figures["ppl_valid"]
            stage.advance(1, **shown, tokens=work.config.calib_windows * work.config.calib_context)
            started = time.monotonic()

        if int(state.shot) < config.shots:
            state = prune(
                model.params,
                model.cfg,
                work.calibration,
                pruning,
                key,
                state=state,
                callback=done,
                progress=lambda what, done, total: stage.show(**{what: f"{done}/{total}"}),
                held_out=work.held_out,
                mesh=make_mesh({"data": -1}) if jax.device_count() > 1 else None,
            )
    return state, [row for row in folder.metrics() if "step" in row]


def _storable(state: SurgeonState) -> dict[str, Any]:
    """The state as a checkpoint holds it: keys as plain numbers, no named tuples."""
    masks = {
        name: dict(mask._asdict()) if isinstance(mask, Lines) else mask for name, mask in state.masks.items()
    }
    return {
        "params": state.params,
        "masks": masks,
        "shot": state.shot,
        "key": jax.random.key_data(state.key),
    }


def _restored(tree: dict[str, Any]) -> SurgeonState:
    tree = jax.tree.map(jnp.asarray, tree)
    masks = {name: Lines(**mask) if isinstance(mask, dict) else mask for name, mask in tree["masks"].items()}
    return SurgeonState(tree["params"], masks, tree["shot"], jax.random.wrap_key_data(tree["key"]))


def _export(work: _Work, state: SurgeonState) -> Exported:
    config, model = work.config, work.model
    masks, params, cfg, gained = state.masks, state.params, model.cfg, 0
    by_lines = not config.pruning().elementwise
    layout = config.layout
    check_pruned(params, masks)
    notes = {"pruned_from": _absolute(config.model)}
    with work.progress.stage("save and load again"):
        if by_lines:
            before = sum(int(count.sum()) for count in removed_parameters(params, masks).values())
            masks = close(masks, cfg)
            gained = sum(int(count.sum()) for count in removed_parameters(params, masks).values()) - before
            if config.structure in UNITS:
                params, cfg = remove_units(params, cfg, *units_of(masks, cfg))
                layout = "compact" if layout == "auto" else layout
            elif layout in ("auto", "compact"):
                params, layout = gather_model(params, cfg, masks), "compact"
        layout = "masked" if layout == "auto" else layout
        directory = work.folder.artefact("pruned")
        try:
            save_hf(params, cfg, model.tokenizer, directory, layout=layout, notes=notes)
        except InputError:
            if config.layout != "auto" or layout == "masked":
                raise
            layout = "masked"  # a family without a compact form
            save_hf(state.params, model.cfg, model.tokenizer, directory, layout=layout, notes=notes)
        reloaded = load(directory)
        tokens = jnp.asarray(work.test[:1])
        one = logits(state.params, model.cfg, forward(state.params, model.cfg, tokens).hidden)
        other = logits(reloaded.params, reloaded.cfg, forward(reloaded.params, reloaded.cfg, tokens).hidden)
        difference = float(jnp.max(jnp.abs(one - other)))
        timed = np.resize(work.test, (1, min(_TIMED_TOKENS, model.cfg.max_positions)))
        speedup = _speedup(model, reloaded, jnp.asarray(timed))
        surgeon_report.report(work.folder, config, masks)
    note = layout_note(layout)
    if note:
        work.progress.note(note)
    return Exported(layout, directory, gained, difference, speedup)


def _absolute(source: str) -> str:
    """The same model from wherever it is asked for, and the original's original."""
    earlier = pruned_from(source)
    if earlier is not None:
        return earlier
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _speedup(model: Model, pruned: Model, tokens: jax.Array) -> float:
    """How many times faster the saved model scores one row of tokens: medians of calls in turns, compiled before."""

    def score(one: Model) -> jax.Array:
        return logits(one.params, one.cfg, forward(one.params, one.cfg, tokens).hidden)

    seconds: dict[int, list[float]] = {0: [], 1: []}
    for repetition in range(8):
        for which, one in enumerate((model, pruned)):
            start = time.perf_counter()
            jax.block_until_ready(score(one))
            if repetition:
                seconds[which].append(time.perf_counter() - start)
    return float(np.median(seconds[0]) / np.median(seconds[1]))
