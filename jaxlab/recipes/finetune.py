"""Trains a language model further on a text, whole or by low-rank adapters, and saves it for others to load.

The text's last part is held out. Perplexity is measured there and on another text, before and after, so that what was
learnt and what was forgotten stand side by side; adapters are folded in, and the model is saved as a directory that
`jaxlab.models.load` and `transformers` open.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.models import (
    LINEARS,
    Gathered,
    Model,
    adapters_of,
    evaluate,
    forward,
    init_lora,
    load,
    logits,
    merge_lora,
    save_hf,
    windows,
    with_adapters,
)
from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import fast_head, with_fast_products
from jaxlab.models.placement import place
from jaxlab.models.saving import layout_note
from jaxlab.models.training import (
    ADAPTERS,
    ALL,
    OptimizerConfig,
    TrainState,
    combine,
    init,
    learning_rate,
    make_optimizer,
    partition,
    train_step,
)
from jaxlab.parallel import initialize, joined, make_mesh, parse_mesh, to_host, wait_for_all
from jaxlab.progress import Progress
from jaxlab.recipes import finetune_report
from jaxlab.recipes.finetune_report import table
from jaxlab.recipes.options import require_at_least
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]

_ADAPTERS_RATE, _FULL_RATE = 2e-3, 5e-5


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the finetune recipe."""

    model: str = "pkg:smollm2"
    """Model to train: pkg:NAME, hf:ORG/NAME, a Hugging Face directory, a .gguf file, or a folder saved by jaxlab."""
    text: str = "moby"
    """Text to train on: a corpus name (moby, sotu:calib, ...) or a path."""
    other: str = "sotu:valid"
    """Another text, on which forgetting is measured."""
    holdout: float = 0.1
    """Share of the text, at its end, that is kept back to measure perplexity on, in (0, 1)."""
    lora: bool = False
    """Train low-rank adapters beside the matrices, which stay as they are, in place of all parameters."""
    rank: int = 16
    """Of the adapters."""
    alpha: float = 32.0
    """Adapters are multiplied by alpha / rank."""
    targets: str = ",".join(LINEARS)
    """Matrices that get adapters, with commas between them."""
    steps: int = 150
    """Updates of the parameters."""
    batch: int = 2
    """Rows of a step that are computed together."""
    accumulate: int = 1
    """Parts of a step, each of so many rows, computed one after the other: more rows in the same memory."""
    length: int = 256
    """Tokens of a row."""
    learning_rate: float | None = None
    """Highest; rises linearly and falls by a cosine to a tenth. None is 2e-3 for adapters, 5e-5 for all parameters."""
    warmup: int = 10
    """Steps of the rise."""
    weight_decay: float = 0.0
    """Of AdamW, on matrices."""
    clip: float = 1.0
    """Norm above which gradients are scaled down."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Factors of products with matrices that stay as they are (`--lora`); bfloat16 is faster on accelerators and on
    processors with AMX. Perplexities are measured in float32 all the same."""
    remat: bool = False
    """Compute each block again in the backward pass, in place of keeping all that it computed."""
    windows: int = 8
    """Windows of each text on which perplexity is measured; 0 takes all."""
    context: int = 512
    """Tokens of such a window."""
    checkpoint_every: int = 20
    """Steps after which a killed run can go on."""
    layout: Literal["auto", "masked", "uniform", "compact"] = "auto"
    """How the model is saved (see surgeon); auto is compact for a model whose layers differ, else masked."""
    mesh: str = ""
    """Devices to share the work out to, such as data=4,model=2: rows over data, matrices over model. Empty is one.
    Several processes (see `jaxlab.parallel.initialize`), all started with the same options, share one run folder."""
    seed: int = 0
    """Seed of adapters and of the order of rows."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, rank=1, batch=1, accumulate=1, length=2, windows=0, context=2)
        require_at_least(self, checkpoint_every=1)
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout is {self.holdout}; it must lie between 0 and 1")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha is {self.alpha}; it must be > 0 and finite")
        self.optimizer()  # checks the rest
        axes = parse_mesh(self.mesh) if self.mesh else {}
        if set(axes) - {"data", "model"} or min(axes.values(), default=1) < 1:
            raise InputError(
                f"mesh is {self.mesh!r}; it must give sizes of at least 1 to data and model, such as data=4,model=2"
            )
        if self.batch % axes.get("data", 1):
            raise InputError(
                f"batch is {self.batch} and mesh {self.mesh!r}: rows must be shared out evenly over data"
            )

    def optimizer(self) -> OptimizerConfig:
        """The options of `jaxlab.models.training`."""
        shared = {name: getattr(self, name) for name in ("steps", "warmup", "weight_decay", "clip")}
        usual = _ADAPTERS_RATE if self.lora else _FULL_RATE
        return OptimizerConfig(
            learning_rate=usual if self.learning_rate is None else self.learning_rate, **shared
        )


PRESETS = {
    "smoke": Config(lora=True, rank=4, steps=3, batch=1, length=64, warmup=1, windows=1, context=128),
    "cpu": Config(),
    "gpu": Config(
        rank=64,
        alpha=64.0,
        steps=1000,
        batch=32,
        length=1024,
        warmup=50,
        products="bfloat16",
        windows=0,
        context=1024,
        checkpoint_every=200,
    ),
}

_LAST = 10  # steps over which the reported loss at the end is a mean


class _Texts(NamedTuple):
    """Tokens of a run."""

    train: np.ndarray
    """In a row."""
    held_out: np.ndarray
    """In windows, as the other text is."""
    other: np.ndarray


class _Work(NamedTuple):
    """What all stages of a run look at."""

    config: Config
    folder: RunFolder
    progress: Progress
    model: Model
    texts: _Texts
    mesh: Mesh | None


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last checkpoint, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/finetune-TIMESTAMP`. The model is in its folder `model`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: perplexities before and after on both texts, losses, parameters trained, tokens, seconds.

    Raises:
      InputError: an option, the model or a text cannot be used.
      ResourceError: a package, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    # Before anything is computed; without a mesh each process works alone.
    if config.mesh and initialize().process > 0:
        progress = Progress(quiet=True)
    with RunFolder(out, config, resume, system="finetune") as folder:
        if folder.summary is not None:
            return folder.summary
        mesh = make_mesh(parse_mesh(config.mesh)) if config.mesh else None
        with progress.stage(f"load {config.model}"):
            model = load(config.model, mesh=mesh)
            texts = _texts(config, model)
        work = _Work(config, folder, progress, model, texts, mesh)
        trained, count = _train(work)
        after = _perplexities(work, "after", trained)
        difference = _save(work, trained)
        rows = [row for row in folder.metrics() if row["step"]]
        before = next(row for row in folder.metrics() if not row["step"])
        finetune_report.figures(folder, config.text, rows, before, after)
        tokens = config.steps * config.accumulate * config.batch * config.length
        return folder.finish(
            {
                "model": config.model,
                "text": config.text,
                "other": config.other,
                **{f"{name}_before": before[name] for name in after},
                **{f"{name}_after": value for name, value in after.items()},
                "ppl_reduction": 1 - after["ppl"] / before["ppl"],
                "loss_first": rows[0]["loss"],
                "loss_last": float(np.mean([row["loss"] for row in rows[-_LAST:]])),
                "trained_parameters": count,
                "trained_tokens": tokens,
                "training_seconds": rows[-1]["seconds"] - before["seconds"],
                "reload_max_logit_difference": difference,
            }
        )


def _texts(config: Config, model: Model) -> _Texts:
    bos = _bos(model)
    ids = data.token_ids(config.text, model.tokenizer)
    kept = round(len(ids) * (1 - config.holdout))
    if kept < config.length:
        raise InputError(f"{config.text} leaves {kept} tokens to train on, fewer than length {config.length}")
    found = []
    for name, part in (
        (f"the held-out part of {config.text}", ids[kept:]),
        (config.other, data.token_ids(config.other, model.tokenizer)),
    ):
        cut = windows(part, config.context, bos_id=bos)
        if config.windows > len(cut):
            raise InputError(
                f"windows is {config.windows}, but {name} holds {len(cut)} of {config.context} tokens"
            )
        found.append(cut[: config.windows or None])
    return _Texts(ids[:kept], *found)


def _bos(model: Model) -> int | None:
    return model.cfg.bos_id if model.cfg.add_bos else None


def _train(work: _Work) -> tuple[dict[str, Any], int]:
    """The trained model, adapters folded in, and how many parameters were trained."""
    config, folder, model = work.config, work.folder, work.model
    params, cfg = _to_train(work)
    trainable, frozen = partition(params, ADAPTERS if config.lora else ALL)
    options = config.optimizer()
    optimizer = make_optimizer(trainable, options)
    state = init(trainable, optimizer)
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    del params, trainable
    state = _restored_or_started(work, state)
    with work.progress.stage("train", config.steps, unit="steps") as stage:
        stage.skip(int(state.step))
        for step in range(int(state.step), config.steps):
            tokens = _rows(work, step)
            state, metrics = train_step(state, frozen, cfg, tokens, optimizer=optimizer, remat=config.remat)
            loss = float(metrics.loss)
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss of step {step + 1} is {loss}: lower learning_rate ({options.learning_rate})"
                )
            folder.log(
                step=step + 1,
                loss=loss,
                gradient_norm=float(metrics.gradient_norm),
                learning_rate=float(learning_rate(options, step)),
            )
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                folder.checkpoint_leaves(step + 1, state)
            stage.advance(1, loss=loss)
    trained = combine(state.trainable, frozen)
    if config.lora:
        trained = merge_lora(with_adapters(_with_lora(config, model.params, model.cfg), adapters_of(trained)))
    return trained, count


def _to_train(work: _Work) -> tuple[dict[str, Any], ModelConfig]:
    config, (params, cfg, _) = work.config, work.model
    if not config.lora:
        return params, cfg
    if config.products == "bfloat16":
        layers = params["layers"]
        quick = (
            tuple(map(with_fast_products, layers))
            if isinstance(layers, tuple)
            else with_fast_products(layers)
        )
        # Where embedding and head are one, the head becomes a matrix of its own, and so fast.
        params = {**params, "layers": quick, "head": fast_head(params)}
        cfg = dataclasses.replace(cfg, tie_embeddings=False)
    adapted = _with_lora(config, params, cfg)
    return (adapted if work.mesh is None else place(adapted, cfg, work.mesh)), cfg


def _with_lora(config: Config, params: dict[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    return init_lora(
        jax.random.key(config.seed),
        params,
        rank=config.rank,
        targets=config.targets.split(","),
        scale=config.alpha / config.rank,
        std=cfg.hidden_size**-0.5,
    )


def _restored_or_started(work: _Work, state: TrainState) -> TrainState:
    """The state of the last checkpoint, or the first one, behind a measurement of the model as it is."""
    restored = work.folder.restore_leaves(state)
    if restored is not None:
        # What was not put anywhere, such as the counters, stays free to go where the rest is.
        return jax.tree.map(
            lambda new, old: jax.device_put(new, old.sharding) if old.committed else jnp.asarray(new),
            restored.tree,
            state,
        )
    work.folder.log(step=0, **_perplexities(work, "before", work.model.params))
    work.folder.checkpoint_leaves(0, state)
    return state


def _rows(work: _Work, step: int) -> jax.Array:
    """Tokens [parts, batch, time] of a step, the same whenever it is computed.

    Every pass over the text cuts it into rows from another start, and takes them in another order.
    """
    config, ids, bos = work.config, work.texts.train, _bos(work.model)
    span = config.length - (bos is not None)
    count = max(1, len(ids) // span - 1)
    wanted = config.accumulate * config.batch
    rows = []
    for number in range(step * wanted, (step + 1) * wanted):
        draws = np.random.default_rng((config.seed, number // count))
        start = draws.integers(0, min(span, len(ids) - count * span), endpoint=True)
        start += span * draws.permutation(count)[number % count]
        rows.append(ids[start : start + span])
    tokens = np.stack(rows)
    if bos is not None:
        tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=bos)
    tokens = tokens.reshape(config.accumulate, config.batch, config.length)
    if work.mesh is None or "data" not in work.mesh.shape:
        return jnp.asarray(tokens)
    return jax.device_put(tokens, NamedSharding(work.mesh, PartitionSpec(None, "data")))


def _perplexities(work: _Work, when: str, params: dict[str, Any]) -> dict[str, float]:
    texts = {
        "ppl": (work.config.text, work.texts.held_out),
        "ppl_other": (work.config.other, work.texts.other),
    }
    return {name: _perplexity(work, f"{when}: {text}", params, cut) for name, (text, cut) in texts.items()}


def _perplexity(work: _Work, what: str, params: dict[str, Any], cut: np.ndarray) -> float:
    with work.progress.stage(f"perplexity {what}", cut.size, unit="tokens") as stage:
        return evaluate(
            params,
            work.model.cfg,
            cut,
            progress=lambda done, total, ppl: stage.advance(cut.shape[1], ppl=ppl),
        ).ppl


def _save(work: _Work, params: dict[str, Any]) -> float:
    """Saves the model; returns how far logits of what is loaded again are off."""
    config, model = work.config, work.model
    layout = config.layout
    if layout == "auto":
        leaves = jax.tree.leaves(params["layers"], is_leaf=lambda leaf: isinstance(leaf, Gathered))
        differ = model.cfg.layer_widths is not None or any(isinstance(leaf, Gathered) for leaf in leaves)
        layout = "compact" if differ else "masked"
    directory = work.folder.artefact("model")
    with work.progress.stage("save and load again"):
        process, processes = joined()
        whole = params if processes == 1 else to_host(params)
        if process == 0:
            save_hf(whole, model.cfg, model.tokenizer, directory, layout=layout)
        del whole
        wait_for_all("the model is saved")
        again = load(directory, mesh=work.mesh)
        tokens = jnp.asarray(work.texts.held_out[:1, :64])
        one, other = (
            to_host(logits(p, cfg, forward(p, cfg, tokens).hidden))
            for p, cfg in ((params, model.cfg), (again.params, again.cfg))
        )
    if layout != "masked":
        work.progress.note(layout_note(layout))
    return float(np.max(np.abs(one - other)))
