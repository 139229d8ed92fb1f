"""Trains a network whose prior precisions, noise and invariances are learned from the training data alone.

Between epochs a few steps go up a stochastic lower bound of the linearised-Laplace evidence; no example is held out. If
asked, ordinary runs with weight decay (PyTorch's habit, or tuned on a validation set) stand beside it. Reference: Immer
et al., "Stochastic Marginal Likelihood Gradients using Neural Tangent Kernels", arXiv:2306.03968.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlab.errors import InputError
from jaxlab.evidence import (
    AugmentConfig,
    Bound,
    FitConfig,
    FitMetrics,
    FitState,
    MarglikConfig,
    MultilayerPerceptron,
    affine_views,
    averaged,
    functional,
    init_fit,
    le_net,
    log_likelihood,
    marglik_fit,
    mini_net,
)
from jaxlab.progress import Progress
from jaxlab.recipes.ntk_marglik_data import Dataset, Transform, load_data, validation_split
from jaxlab.recipes.ntk_marglik_report import epoch_line, figures, leaf_names, save_model, slack_grid, table
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "Scores", "evaluate", "fit", "run", "table"]

GRID = tuple(float(decay) for decay in np.geomspace(1e-6, 1e-2, 7))
"""Weight decays of the tuned run: factors of theta in the gradient of the mean loss."""
_VALIDATION = 0.1
_CHUNK = 250
_ROWS = {"all": "joint", "1": "single", "each": "single_iid", "classes": "classes"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the ntk-marglik recipe."""

    data: str = "fashion-mnist"
    """"fashion-mnist", "digits" or "diabetes" (scikit-learn's), or a folder with the four IDX files of MNIST's kind."""
    transform: Transform = "none"
    """Every image turned by up to 90 or 180 degrees either way, or shifted by up to 8 pixels."""
    model: Literal["mlp", "cnn", "lenet"] = "cnn"
    """One hidden layer with tanh; the small network of three convolutions of the paper; LeNet."""
    width: int = 1000
    """Of the hidden layer of mlp."""
    prior: Literal["scalar", "layerwise"] = "layerwise"
    """One precision, or one for each weight and each bias."""
    estimator: Literal["ntk", "kron", "diag"] = "ntk"
    """Determinants in function space, or of the block's curvature in Kronecker factors or its diagonal."""
    block: int = 150
    """Examples of a block of the bound; 0 takes all."""
    rows: Literal["1", "each", "classes", "all"] = "1"
    """Outputs of a block with ntk: one drawn for the block, one for each example, each on its own, or all jointly."""
    partition: Literal["random", "label", "cluster"] = "random"
    """How blocks are made: at random, of alike labels, or of alike outputs."""
    augment: Literal["none", "affine"] = "none"
    """Learn ranges of shifts, rotation, scales and shear, over which outputs are averaged."""
    samples: int = 20
    """Views an image, with affine."""
    augment_steps: int = 4
    """Steps of the ranges for every block."""
    augment_lr: float = 0.05
    """Of Adam, for the ranges."""
    rule: Literal["mackay", "adam"] = "mackay"
    """Fixed-point steps, or gradient ascent, for precisions and noise."""
    hyper_steps: int = 5
    """Steps for every block; the network is run for the first alone."""
    hyper_lr: float = 0.1
    """Of Adam, for precisions and noise."""
    precision: float = 1.0
    """Of the prior to begin with."""
    sigma: float = 1.0
    """Of the noise to begin with, in standard deviations of the targets; diabetes alone has it."""
    burn_in: int = 5
    """Epochs before the first update of hyperparameters."""
    frequency: int = 1
    """Epochs from one update to the next."""
    draws: int = 4
    """Blocks of an update."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with momentum 0.9."""
    lr: float = 1e-3
    """Learning rate to begin with; it falls along a cosine to lr / 1000."""
    batch_size: int = 128
    """Examples of a step."""
    epochs: int = 30
    """Passes over the training data."""
    compare: Literal["none", "map", "grid"] = "none"
    """Stand beside it a run with weight decay as given, and with grid also the best of seven on a tenth held out."""
    weight_decay: float = 5e-4
    """Of the run beside it: factor of theta in the gradient of the mean loss."""
    grid_images: int = 100
    """Training examples whose bounds by block size are drawn at the end; 0 leaves that figure out."""
    images: int = 0
    """Use so many training examples only, drawn at random, and at most as many test images; 0 takes all."""
    seed: int = 0
    """Of data, weights, batches and blocks."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(
            self,
            width=1,
            block=0,
            samples=1,
            augment_steps=1,
            hyper_steps=1,
            burn_in=0,
            frequency=1,
            draws=1,
            batch_size=1,
            epochs=1,
            grid_images=0,
            images=0,
        )
        require_positive(
            self,
            "augment_lr",
            "hyper_lr",
            "precision",
            "sigma",
            "lr",
            *["weight_decay"] * (self.compare != "none"),
        )
        if self.data == "diabetes" and (self.model != "mlp" or self.augment != "none"):
            raise InputError(
                f"data is 'diabetes', a table, with model {self.model!r} and augment {self.augment!r}; they must be "
                "'mlp' and 'none'"
            )
        if self.data == "diabetes" and self.partition == "label":
            raise InputError(
                "partition is 'label', but diabetes has no labels; it must be 'random' or 'cluster'"
            )
        if self.data == "digits" and self.model != "mlp":
            raise InputError(
                f"model is {self.model!r}; images of 8 x 8 are too small for it, it must be 'mlp'"
            )
        if self.augment == "affine" and not self.block:
            raise InputError("block is 0 with augment 'affine'; views of all images need too much memory")


PRESETS = {
    "smoke": Config(
        images=600, epochs=6, burn_in=2, block=50, draws=2, batch_size=50, grid_images=6, compare="map"
    ),
    "cpu": Config(compare="map"),
    "gpu": Config(model="lenet", augment="affine", transform="r180", epochs=100, burn_in=10, compare="grid"),
}


class Scores(NamedTuple):
    """Of test examples."""

    accuracy: float
    """Share of right classes; of values the root mean squared error, in their unit."""
    nll: float
    """Mean negative log-likelihood, nats an example."""


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
      out: run folder; None is `runs/ntk-marglik-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: test scores, the bound with the size of its determinants, learned hyperparameters, those of the runs
      beside it, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: the images, a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="ntk-marglik") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage("load"):
            data = load_data(config.data, config.transform, images=config.images, seed=config.seed)
        state, seconds = _train(config, folder, progress, data)
        found = _summary(config, data, state, seconds) | _compared(config, folder, progress, data)
        grid: list[dict[str, Any]] = []
        if config.grid_images:
            with progress.stage("bounds"):
                grid = _grid(config, data, state)
        save_model(folder, state, examples=len(data.train))
        figures(folder, grid)
        return folder.finish(found)


def fit(
    config: Config,
    data: Dataset,
    *,
    decay: float | None = None,
    state: FitState | None = None,
    report: Callable[[FitState, FitMetrics], None] = lambda state, metrics: None,
) -> FitState:
    """The whole training on a data set.

    Args:
      config: the options.
      data: what to train on.
      decay: of an ordinary run with fixed weight decay and no augmentation; None learns the hyperparameters.
      state: of an earlier, interrupted call; None begins.
      report: called after each epoch.

    Raises:
      InputError: a batch or block is larger than the data, or the evidence is not finite.
    """
    apply, params = network_of(config, data)
    optimizer = _optimizer(config, len(data.train))
    settings = fit_config(config, data)
    if decay is not None:
        settings = dataclasses.replace(settings, burn_in=None, augment=None)
    if state is None:
        state = start(config, data, decay=decay)
    left = config.epochs - int(state.epoch)
    if not left:
        return state
    return marglik_fit(
        apply, optimizer, state, data.train, data.train_targets, epochs=left, config=settings, report=report
    )


def start(config: Config, data: Dataset, *, decay: float | None = None) -> FitState:
    """The state before the first epoch; see `fit`."""
    _, params = network_of(config, data)
    augmented = None if decay is not None else fit_config(config, data).augment
    return init_fit(
        jax.random.key(config.seed),
        params,
        _optimizer(config, len(data.train)),
        config=dataclasses.replace(fit_config(config, data), augment=augmented),
        precision=config.precision if decay is None else decay * len(data.train),
        layout="scalar" if decay is not None or config.prior == "scalar" else "tensor",
        sigma=config.sigma,
    )


def fit_config(config: Config, data: Dataset) -> FitConfig:
    """The options as the package takes them."""
    bound = Bound(
        likelihood="softmax" if data.train_targets.ndim == 1 else "gaussian",
        rows=cast(Any, _ROWS[config.rows]) if config.estimator == "ntk" else "joint",
        space=config.estimator,
        batch=None if config.estimator == "ntk" else _CHUNK,
    )
    augment = AugmentConfig(
        samples=config.samples, steps=config.augment_steps, learning_rate=config.augment_lr
    )
    return FitConfig(
        MarglikConfig(bound, config.rule, config.hyper_steps, learning_rate=config.hyper_lr),
        batch=config.batch_size,
        block=config.block or len(data.train),
        kind=config.partition,
        burn_in=config.burn_in,
        frequency=config.frequency,
        draws=config.draws,
        augment=augment if config.augment == "affine" else None,
    )


def network_of(config: Config, data: Dataset) -> tuple[Callable[[Any, Any], jax.Array], Any]:
    """The network as a function, the same object for the same options, and its first weights."""
    classes = data.train_targets.ndim == 1
    outputs = int(data.train_targets.max()) + 1 if classes else data.train_targets.shape[1]
    return _network(config.model, config.width, data.train.shape[1:], outputs, config.seed)


@functools.cache  # one object, so that runs of one kind share a compiled program
def _network(
    model: str, width: int, item: tuple[int, ...], outputs: int, seed: int
) -> tuple[Callable[[Any, Any], jax.Array], Any]:
    rngs = nnx.Rngs(params=seed)
    if model == "mlp":
        return functional(MultilayerPerceptron((math.prod(item), width, outputs), rngs=rngs))
    make = mini_net if model == "cnn" else le_net
    return functional(make(outputs=outputs, channels=item[-1], side=item[0], rngs=rngs))


def _optimizer(config: Config, examples: int) -> optax.GradientTransformation:
    return _descent(config.optimizer, config.lr, max(examples // config.batch_size, 1) * config.epochs)


@functools.cache
def _descent(name: str, lr: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(lr, steps, alpha=1e-3)
    return optax.adam(schedule) if name == "adam" else optax.sgd(schedule, momentum=0.9)


def evaluate(config: Config, data: Dataset, state: FitState, *, learned: bool = True) -> Scores:
    """Scores of the test examples at the state's parameters; outputs are averaged over views where ranges are learned.

    Args:
      config: the options.
      data: its test examples are scored.
      state: of `fit`.
      learned: False for runs with weight decay, whose noise is the training examples' root mean squared error.
    """
    outputs = _outputs(config, data, state, data.test)
    if data.train_targets.ndim == 1:
        each = log_likelihood(outputs, data.test_targets, likelihood="softmax")
        return Scores(float(np.mean(np.argmax(outputs, axis=1) == data.test_targets)), -float(jnp.mean(each)))
    log_sigma = state.marglik.hyper.log_sigma
    if not learned:
        errors = _outputs(config, data, state, data.train) - data.train_targets
        log_sigma = jnp.log(jnp.mean(jnp.square(errors))) / 2
    each = log_likelihood(outputs, data.test_targets, likelihood="gaussian", log_sigma=log_sigma)
    error = math.sqrt(np.mean(np.square(outputs - data.test_targets)))
    return Scores(data.unit * error, -float(jnp.mean(each)) + math.log(data.unit))


def _outputs(config: Config, data: Dataset, state: FitState, inputs: np.ndarray) -> np.ndarray:
    apply, _ = network_of(config, data)
    eta = None if state.ranges is None else state.ranges.eta
    samples = config.samples if eta is not None else 0
    parts = [
        np.asarray(_some_outputs(apply, samples, state.params, eta, inputs[at : at + _CHUNK], at))
        for at in range(0, len(inputs), _CHUNK)
    ]
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _some_outputs(
    apply: Any, samples: int, params: Any, eta: Any, inputs: jax.Array, seed: jax.Array
) -> jax.Array:
    if not samples:
        return apply(params, inputs)
    return averaged(apply)(params, affine_views(jax.random.key(seed), inputs, eta, samples=samples))


def _train(config: Config, folder: RunFolder, progress: Progress, data: Dataset) -> tuple[FitState, float]:
    """The state at the end, and seconds of all epochs."""
    state = start(config, data)
    names = leaf_names(state.params)
    restored = folder.restore_leaves(like=_storable(state))
    if restored is not None:
        stored = jax.tree.map(jnp.asarray, restored.tree)
        state = stored._replace(key=jax.random.wrap_key_data(stored.key))
    indices = _indices(config, data)
    began = time.perf_counter()
    with progress.stage("train", config.epochs, unit="epochs") as stage:
        stage.skip(int(state.epoch))

        def report(state: FitState, metrics: FitMetrics) -> None:
            nonlocal began
            now = time.perf_counter()
            epoch, hyper = int(state.epoch), state.marglik.hyper
            row: dict[str, Any] = {"loss": float(metrics.loss)}
            if np.isfinite(metrics.evidence):
                row |= {"bound": float(metrics.evidence), "indices": indices}
            spread = jax.tree.leaves(hyper.log_delta)
            shown = names if len(spread) > 1 else ["all"]
            row |= {f"delta {name}": float(jnp.exp(one)) for name, one in zip(shown, spread, strict=True)}
            if data.train_targets.ndim > 1:
                row["sigma"] = float(jnp.exp(hyper.log_sigma))
            if state.ranges is not None:
                row["eta"] = np.asarray(state.ranges.eta).tolist()
            progress.note(epoch_line(epoch, row))
            folder.log(step=epoch, epoch_seconds=now - began, **row)
            folder.checkpoint_leaves(epoch, _storable(state))
            stage.advance(loss=row["loss"], **({"bound": row["bound"]} if "bound" in row else {}))
            began = time.perf_counter()

        state = fit(config, data, state=state, report=report)
    return state, sum(row["epoch_seconds"] for row in folder.metrics() if "epoch_seconds" in row)


def _storable(state: FitState) -> FitState:
    """With the key as plain numbers."""
    return state._replace(key=jax.random.key_data(state.key))


def _indices(config: Config, data: Dataset) -> int:
    """Rows of one determinant: bounds compare at equal ones alone. In parameter space the examples' outputs."""
    settings = fit_config(config, data)
    if settings.marglik.bound.rows != "joint":
        return settings.block
    outputs = int(data.train_targets.max()) + 1 if data.train_targets.ndim == 1 else 1
    return settings.block * outputs


def _summary(config: Config, data: Dataset, state: FitState, seconds: float) -> dict[str, Any]:
    scores = evaluate(config, data, state)
    hyper = state.marglik.hyper
    found: dict[str, Any] = {
        "data": config.data,
        "transform": config.transform,
        "model": config.model,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "values": data.train_targets.ndim > 1,
        "accuracy": scores.accuracy,
        "nll": scores.nll,
        "indices": _indices(config, data),
        "estimator": config.estimator,
        "train_seconds": seconds,
        "deltas": [float(jnp.exp(one)) for one in jax.tree.leaves(hyper.log_delta)],
    }
    if data.train_targets.ndim > 1:
        found["sigma"] = float(jnp.exp(hyper.log_sigma)) * data.unit
    if state.ranges is not None:
        found["eta"] = np.asarray(state.ranges.eta).tolist()
        found["rotation"] = min(abs(float(state.ranges.eta[2])), math.pi)
    return found


def _compared(config: Config, folder: RunFolder, progress: Progress, data: Dataset) -> dict[str, Any]:
    """Scores of runs with weight decay; each finished one is a line of the log, that a resumed run does not repeat."""
    if config.compare == "none":
        return {}
    done = {row["run"]: row for row in folder.metrics() if "run" in row}

    def scored(name: str, data: Dataset, decay: float) -> dict[str, Any]:
        if name not in done:
            began = time.perf_counter()
            plain = dataclasses.replace(config, augment="none")
            scores = evaluate(plain, data, fit(plain, data, decay=decay), learned=False)
            row = {
                "run": name,
                "decay": decay,
                **scores._asdict(),
                "run_seconds": time.perf_counter() - began,
            }
            folder.log(step=config.epochs, **row)
            done[name] = row
        return done[name]

    runs = 1 + (config.compare == "grid") * (len(GRID) + 1)
    with progress.stage("compare", runs, unit="runs") as stage:
        row = scored("map", data, config.weight_decay)
        stage.advance()
        found = {"map_accuracy": row["accuracy"], "map_nll": row["nll"], "map_seconds": row["run_seconds"]}
        if config.compare == "grid":
            split = validation_split(data, share=_VALIDATION, seed=config.seed)
            tried = []
            for decay in GRID:
                tried.append(scored(f"validation {decay:.3g}", split, decay))
                stage.advance()
            best = min(tried, key=lambda row: row["nll"])
            row = scored("tuned", data, best["decay"])
            stage.advance()
            found |= {"tuned_accuracy": row["accuracy"], "tuned_nll": row["nll"], "tuned_decay": row["decay"]}
            found["tuned_seconds"] = row["run_seconds"] + sum(own["run_seconds"] for own in tried)
    return found


def _grid(config: Config, data: Dataset, state: FitState) -> list[dict[str, Any]]:
    """Bounds of a few training examples by block size, at the parameters and hyperparameters learned."""
    apply, _ = network_of(config, data)
    inputs, targets = (part[: config.grid_images] for part in (data.train, data.train_targets))
    if state.ranges is not None:
        apply = averaged(apply)
        inputs = np.asarray(
            affine_views(jax.random.key(config.seed), jnp.asarray(inputs), state.ranges.eta, samples=4)
        )
    likelihood = fit_config(config, data).marglik.bound.likelihood
    return slack_grid(apply, state.params, inputs, targets, state.marglik.hyper, likelihood=likelihood)
