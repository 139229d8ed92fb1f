"""Self-supervised learning of images with T-REGS, beside the objectives that it is added to or compared with.

An encoder is trained on two views of every image, probed while it trains and at the end, and written out. Reference:
Mordacq et al., "T-REGS: Minimum Spanning Tree Regularization for Self-Supervised Learning", arXiv:2510.23484.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlab.data import Images, fashion_mnist
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file
from jaxlab.progress import Progress
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.recipes.t_regs_report import figures, table
from jaxlab.runs import RunFolder
from jaxlab.selfsupervised import (
    ConvNet,
    Method,
    Networks,
    Perceptron,
    ResNet18,
    TrainState,
    TregsConfig,
    Views,
    encode_images,
    init_training,
    knn_accuracy,
    lars,
    linear_probe,
    spread,
    train_step,
)

__all__ = ["PRESETS", "Config", "run", "table"]

Objective = Literal[
    "mse", "mse+tregs", "simclr", "simclr+tregs", "vicreg", "vicreg+tregs", "barlow", "barlow+tregs", "byol",
    "byol+tregs",
]  # fmt: skip
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the t-regs recipe; names follow solo-learn where it has the same option."""

    method: Objective = "mse+tregs"
    """Objective, alone or with T-REGS; "mse+tregs" is the method on its own."""
    data: str = "fashion-mnist"
    """"fashion-mnist", or a folder with the four IDX files of a data set like it."""
    backbone: Literal["cnn", "resnet18"] = "cnn"
    """Four convolutions, or ResNet-18 with the stem for small images."""
    proj_hidden_dim: int = 512
    """Width of the projector's two hidden layers (2048 in the paper)."""
    proj_output_dim: int = 1024
    """Width of the embeddings, as in the paper; with fewer, lower beta alike: the objective is a mean over entries."""
    beta: float = 10.0
    """Weight of the objective beside T-REGS."""
    gamma: float = 0.2
    """Weight of the trees' length."""
    lam: float = 8e-4
    """Weight of the distance from the sphere."""
    crop_min_scale: float = 0.5
    """Smallest share of its image that a view shows, above 0 to 1 (0.2 in the paper, which costs garments accuracy)."""
    solarization_prob: float = 0.0
    """Probability of inverting a view's values above 1/2 (0.1 in the paper)."""
    optimizer: Literal["adam", "lars"] = "adam"
    """Adam suits short runs; the published runs use LARS."""
    lr: float = 3e-3
    """Learning rate for a batch of 256, proportional to the batch (0.4 with lars in the paper)."""
    weight_decay: float = 1e-4
    """Of matrices and convolutions."""
    batch_size: int = 256
    """Images of a step."""
    max_epochs: int = 10
    """Passes over the training images."""
    warmup_epochs: float = 0.5
    """Passes in which the learning rate rises, before it falls along a cosine."""
    probe_every: int = 1
    """Epochs between probes and checkpoints."""
    probe_images: int = 10_000
    """Training images that the probe by nearest neighbours sees while training runs."""
    linear_epochs: int = 20
    """Passes of the linear probe at the end."""
    images: int = 0
    """Use so many training images only, drawn at random, and a sixth as many test images; 0 takes all."""
    seed: int = 0
    """Of weights, views, batches and probes."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(
            self,
            proj_hidden_dim=1,
            proj_output_dim=2,
            batch_size=2,
            max_epochs=1,
            probe_every=1,
            probe_images=20,
            linear_epochs=1,
            images=0,
        )
        require_positive(self, "lr")
        if not 0 < self.crop_min_scale <= 1:
            raise InputError(f"crop_min_scale is {self.crop_min_scale}; it must be above 0 and at most 1")
        if not 0 <= self.solarization_prob <= 1:
            raise InputError(f"solarization_prob is {self.solarization_prob}; it must lie between 0 and 1")
        for name in ("weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.warmup_epochs >= self.max_epochs:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs}; it must be below max_epochs = {self.max_epochs}"
            )
        if self.max_epochs % self.probe_every:
            raise InputError(
                f"probe_every is {self.probe_every}; it must divide max_epochs, which is {self.max_epochs}"
            )
        if self.images and self.images < self.batch_size:
            raise InputError(f"images is {self.images}; it must be at least batch_size = {self.batch_size}")


PRESETS = {
    "smoke": Config(
        proj_hidden_dim=64,
        proj_output_dim=32,
        batch_size=128,
        max_epochs=2,
        images=1536,
        probe_images=500,
        linear_epochs=5,
    ),
    "cpu": Config(),
    "gpu": Config(
        backbone="resnet18",
        proj_hidden_dim=2048,
        proj_output_dim=1024,
        optimizer="lars",
        lr=0.4,
        max_epochs=20,
        warmup_epochs=2.0,
        probe_every=2,
    ),
}


class Dataset(NamedTuple):
    """Training and test images [count, height, width, 1] with values 0 to 1, and their classes."""

    train: np.ndarray
    train_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray


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
      out: run folder; None is `runs/t-regs-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: accuracy of the probes and of raw pixels, measures of collapse, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: the images, a package or the disk failed, or the loss is not finite.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="t-regs") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage("load"):
            data = load_images(config)
        trained = _train(config, folder, progress, data)
        with progress.stage("probe"):
            found, embeddings = _probe_at_the_end(config, data, *trained)
        _save_backbone(folder, config, trained[1])
        figures(folder, embeddings, data.test_classes)
        return folder.finish(found)


def load_images(config: Config) -> Dataset:
    """The images that a run sees.

    Raises:
      InputError: the folder lacks files or holds fewer images than asked for.
      ResourceError: the images cannot be fetched.
    """
    train, test = fashion_mnist(None if config.data == "fashion-mnist" else config.data)
    if config.images > len(train.pixels):
        raise InputError(f"images is {config.images}, but there are {len(train.pixels)}")
    if config.images:
        rng = np.random.default_rng(config.seed)
        train, test = (
            Images(part.pixels[own], part.classes[own])
            for part, own in (
                (train, rng.permutation(len(train.pixels))[: config.images]),
                (test, rng.permutation(len(test.pixels))[: -(-config.images // 6)]),
            )
        )
    if config.batch_size > len(train.pixels):
        raise InputError(
            f"batch_size is {config.batch_size}, but there are {len(train.pixels)} training images"
        )
    pixels = [(part.pixels[..., None] / 255).astype(np.float32) for part in (train, test)]
    return Dataset(pixels[0], train.classes, pixels[1], test.classes)


def networks_of(config: Config) -> Networks:
    """Networks with their first weights."""
    rngs = nnx.Rngs(config.seed)
    encoder: ConvNet | ResNet18 = (
        ConvNet(rngs=rngs) if config.backbone == "cnn" else ResNet18(channels=1, rngs=rngs)
    )
    hidden, width = config.proj_hidden_dim, config.proj_output_dim
    projector = Perceptron((encoder.features, hidden, hidden, width), rngs=rngs)
    byol = config.method.startswith("byol")
    predictor = Perceptron((width, hidden, width), last_bias=True, rngs=rngs) if byol else None
    return Networks(encoder, projector, predictor)


def method_of(config: Config) -> Method:
    """What is minimised."""
    host, _, added = config.method.partition("+")
    tregs = TregsConfig(beta=config.beta, gamma=config.gamma, lam=config.lam) if added else None
    return Method(host, tregs)


def views_of(config: Config) -> Views:
    """How views are made."""
    return Views(crop_area=(config.crop_min_scale, 1.0), solarise=config.solarization_prob)


def optimizer_of(config: Config, steps: int) -> optax.GradientTransformation:
    """With its schedule over `steps` steps: linear warm-up, then a cosine to 0."""
    peak = config.lr * config.batch_size / 256
    warmup = round(config.warmup_epochs * steps / config.max_epochs)
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps)
    if config.optimizer == "lars":
        return lars(schedule, weight_decay=config.weight_decay)
    return optax.adamw(
        schedule,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )


def _train(
    config: Config, folder: RunFolder, progress: Progress, data: Dataset
) -> tuple[Any, TrainState, float]:
    """The networks' graph, their state at the end, and median seconds of a step."""
    per_epoch = len(data.train) // config.batch_size
    steps = per_epoch * config.max_epochs
    method, optimizer = method_of(config), optimizer_of(config, steps)
    graph, state = init_training(networks_of(config), optimizer, method)
    update = jax.jit(train_step(graph, optimizer, method, views_of(config), steps=steps), donate_argnums=0)
    key = jax.random.key(config.seed)
    done = 0
    restored = folder.restore_leaves(like=state)
    if restored is not None:
        done, state = restored
        state = jax.tree.map(jnp.asarray, state)
    seconds = []
    with progress.stage("train", steps, unit="steps") as stage:
        stage.skip(done)
        for epoch in range(done // per_epoch, config.max_epochs):
            order = np.random.default_rng((config.seed, epoch)).permutation(len(data.train))
            metrics = None
            for number in range(per_epoch):
                rows = order[number * config.batch_size : (number + 1) * config.batch_size]
                began = time.perf_counter()
                state, metrics = update(state, data.train[rows], jax.random.fold_in(key, done))
                loss = float(metrics.loss)
                seconds.append(time.perf_counter() - began)
                done += 1
                if not math.isfinite(loss):
                    raise ResourceError(
                        f"step {done}: the loss is {loss}; lower lr ({config.lr}) or gamma ({config.gamma})"
                    )
                stage.advance(loss=loss)
            if (epoch + 1) % config.probe_every == 0:
                shown = {name: float(value) for name, value in metrics._asdict().items()} if metrics else {}
                accuracy = _neighbours(config, data, graph, state)
                folder.log(
                    step=done,
                    epoch=epoch + 1,
                    **{name: value for name, value in shown.items() if math.isfinite(value)},
                    knn_accuracy=accuracy,
                    step_seconds=float(np.median(seconds[-per_epoch:])),
                )
                folder.checkpoint_leaves(done, state)
    return graph, state, float(np.median(seconds)) if seconds else math.nan


@functools.partial(jax.jit, static_argnames=("graph", "projected"))
def _encode(graph: Any, state: TrainState, images: jax.Array, projected: bool) -> jax.Array:
    return encode_images(graph, state, images, projected=projected)


def _features(graph: Any, state: TrainState, images: np.ndarray, *, projected: bool = False) -> np.ndarray:
    """Of all images, some at a time; the last ones are padded so that one program serves all."""
    short = -len(images) % _CHUNK
    padded = np.concatenate([images, np.zeros((short, *images.shape[1:]), images.dtype)])
    parts = [
        np.asarray(_encode(graph, state, padded[start : start + _CHUNK], projected))
        for start in range(0, len(padded), _CHUNK)
    ]
    return np.concatenate(parts)[: len(images)]


def _neighbours(config: Config, data: Dataset, graph: Any, state: TrainState) -> float:
    """Accuracy of nearest neighbours among the first training images."""
    known = data.train[: config.probe_images]
    return float(
        knn_accuracy(
            _features(graph, state, known),
            data.train_classes[: len(known)],
            _features(graph, state, data.test),
            data.test_classes,
        )
    )


def _probe_at_the_end(
    config: Config, data: Dataset, graph: Any, state: TrainState, step_seconds: float
) -> tuple[dict[str, Any], np.ndarray]:
    train, test = (_features(graph, state, images) for images in (data.train, data.test))
    embeddings = _features(graph, state, data.test, projected=True)
    pixels = [images.reshape(len(images), -1) for images in (data.train, data.test)]
    lie = spread(jnp.asarray(embeddings))
    known, asked = data.train_classes, data.test_classes
    key = jax.random.key(config.seed)
    return {
        "method": config.method,
        "images": len(data.train),
        "linear_accuracy": float(linear_probe(train, known, test, asked, key, epochs=config.linear_epochs)),
        "knn_accuracy": float(knn_accuracy(train, known, test, asked)),
        "pixels_linear_accuracy": float(
            linear_probe(pixels[0], known, pixels[1], asked, key, epochs=config.linear_epochs)
        ),
        "pixels_knn_accuracy": float(knn_accuracy(pixels[0], known, pixels[1], asked)),
        "mean_cosine": float(lie.mean_cosine),
        "effective_rank": float(lie.effective_rank),
        "deviation": float(lie.deviation),
        "radius": float(np.linalg.norm(embeddings, axis=1).mean()),
        "step_seconds": step_seconds,
    }, embeddings


def _save_backbone(folder: RunFolder, config: Config, state: TrainState) -> None:
    """Weights and statistics of the encoder as safetensors, whose metadata say how to make it again."""
    from safetensors.numpy import save_file

    tensors = {}
    for kind, tree in (("params", state.params), ("stats", state.stats)):
        for path, leaf in jax.tree.leaves_with_path(tree["encoder"]):
            name = "/".join(str(getattr(part, "key", part)) for part in path)
            tensors[f"{kind}/{name}"] = np.asarray(leaf)
    with atomic_file(folder.artefact("backbone.safetensors")) as temporary:
        save_file(tensors, temporary, {"backbone": config.backbone, "method": config.method, "channels": "1"})
