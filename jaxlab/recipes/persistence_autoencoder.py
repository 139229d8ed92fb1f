"""Autoencoders of images whose codes keep the topology of the inputs: not at all, by one parameter, by two.

The loss is the reconstruction's error plus `weight` times a distance of each batch from its codes: of the edges of
their minimum spanning trees, or of their signed measures by scale and codensity. Weights are chosen on validation data;
seeds are paired, and the differences tested. Reference: arXiv:2406.07224, section 5 (the protocol is ours); Moor et
al., "Topological autoencoders", 2020.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlab.data import fashion_mnist
from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.persistence.autoencoders import (
    codensity_rips_cycle_distance,
    codensity_rips_distance,
    tree_edge_distance,
)
from jaxlab.persistence.points import codensity, pairwise_distance
from jaxlab.persistence.sliced_wasserstein import random_directions
from jaxlab.progress import Progress
from jaxlab.recipes.lanes import LaneState, descend, draw, over_lanes
from jaxlab.recipes.options import optional_module, require_at_least, require_positive
from jaxlab.recipes.persistence_autoencoder_metrics import METRICS, measure
from jaxlab.recipes.persistence_autoencoder_report import figures, table
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]

METHODS = ("plain", "one_parameter", "two_parameters")
_FASHION = 10_000


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the persistence-autoencoder recipe."""

    data: Literal["digits", "fashion-mnist"] = "digits"
    """Images: 1,797 of 8 x 8 pixels, or the first 10,000 training images of 28 x 28."""
    weights: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Of the topological term, to choose from by the density divergence on validation data."""
    bandwidth: float = 0.2
    """Of the density, where the largest distance in a batch is 1."""
    degrees: tuple[int, ...] = (0,)
    """Of homology, for two parameters: 0, or 0 and 1; 1 takes three times as long."""
    slices: int = 8
    """Lines of the codensity; in degree 0 the scale is exact."""
    lines: int = 32
    """Of the scale, in degree 1."""
    columns: int = 64
    """Room for cycles of a slice, in degree 1; a run stops where it is too small."""
    directions: int = 10
    """Of the sliced Wasserstein distance."""
    widths: tuple[int, ...] = (256, 64)
    """Of the encoder's hidden layers; the decoder has them the other way round."""
    batch: int = 128
    """Images of a batch."""
    epochs: int = 100
    """Passes over the training images."""
    every: int = 10
    """Epochs from one checkpoint and picture to the next."""
    rate: float = 0.001
    """Learning rate of Adam."""
    seeds: int = 5
    """Runs, each with its own split of the images, weights of the network and batches."""
    images: int = 0
    """Use so many images only, drawn at random; 0 takes all."""
    seed: int = 0
    """The first seed."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(
            self, slices=2, lines=2, columns=1, directions=1, batch=2, epochs=1, every=1, seeds=2, images=0
        )
        require_positive(self, "bandwidth", "rate")
        if self.data not in ("digits", "fashion-mnist"):
            raise InputError(f"data is {self.data!r}; it must be 'digits' or 'fashion-mnist'")
        if self.degrees not in ((0,), (1,), (0, 1)):
            raise InputError(f"degrees is {self.degrees}; it must be 0, 1, or 0 and 1")
        if not self.weights or not min(self.weights) > 0:
            raise InputError(f"weights is {self.weights}; name at least one, all > 0")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths is {self.widths}; name at least one, all at least 1")
        if self.epochs % self.every:
            raise InputError(f"every is {self.every}; it must divide epochs, which is {self.epochs}")


PRESETS = {
    "smoke": Config(
        weights=(1.0,),
        slices=4,
        directions=4,
        widths=(64,),
        batch=64,
        epochs=10,
        every=5,
        seeds=2,
        images=500,
    ),
    "cpu": Config(),
    "gpu": Config(degrees=(0, 1), slices=32, directions=50, epochs=500, every=50, seeds=20),
}


class Dataset(NamedTuple):
    """Images with pixels in [0, 1], and places of the training, validation and test images of every seed."""

    images: np.ndarray
    classes: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Lane(NamedTuple):
    """One training: its weight of the topological term, and its seed's place."""

    weight: float
    seed: int


class Autoencoder(nnx.Module):
    """Dense layers with rectifiers between them; codes have two coordinates, and a learned unit of length."""

    def __init__(self, pixels: int, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        """Args:
        pixels: of an image.
        widths: of the encoder's hidden layers.
        rngs: by the key of `params`.
        """
        sizes = (pixels, *widths, 2)
        self.encoder = _dense(sizes, rngs)
        self.decoder = _dense(sizes[::-1], rngs)
        self.log_unit = nnx.Param(jnp.zeros(()))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Codes [images, 2], and the images [images, pixels] made from them."""
        codes = self.encoder(images)
        return codes, self.decoder(codes)


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
      out: run folder; None is `runs/persistence-autoencoder-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: of each method the metrics on test images, their spread over seeds, p values, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="persistence-autoencoder") as folder:
        if folder.summary is not None:
            return folder.summary
        loaded = load_dataset(config)
        codes, errors = _trained(config, folder, progress, loaded)
        with progress.stage("measure"):
            found = _measured(config, loaded, {name: own[-1] for name, own in codes.items()}, errors)
        chosen = choose(found["validation"])
        tested = {
            name: {metric: values[chosen[name], np.arange(config.seeds)] for metric, values in own.items()}
            for name, own in found["test"].items()
        }
        _save(folder, loaded, codes, found)
        shown = loaded.test[0]
        tracks = {name: codes[name][:, chosen[name][0] * config.seeds][:, shown] for name in METHODS}
        figures(folder, tracks, loaded.classes[shown], tested, config.every)
        return folder.finish(_summary(config, loaded, tested, chosen))


def load_dataset(config: Config) -> Dataset:
    """The images, 3/5 of them for training, 1/5 each for validation and test, alike in classes.

    Raises:
      InputError: more images than there are, or fewer than a batch to train on.
      ResourceError: scikit-learn is missing, or the images cannot be fetched.
    """
    datasets = optional_module("sklearn.datasets", extra="persistence")
    selection = optional_module("sklearn.model_selection", extra="persistence")
    if config.data == "digits":
        digits = datasets.load_digits()
        images, classes = (digits.data / 16).astype(np.float32), digits.target
    else:
        training, _ = fashion_mnist()
        pixels, classes = training.pixels[:_FASHION], training.classes[:_FASHION]
        images = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    if config.images:
        if config.images > len(images):
            raise InputError(f"images is {config.images}, but {config.data} has {len(images)}")
        drawn = np.random.default_rng(config.seed).permutation(len(images))[: config.images]
        images, classes = images[drawn], classes[drawn]
    parts: list[list[np.ndarray]] = [[], [], []]
    for seed in range(config.seed, config.seed + config.seeds):
        whole = np.arange(len(images))
        rest, test = selection.train_test_split(whole, test_size=0.2, stratify=classes, random_state=seed)
        train, validation = selection.train_test_split(
            rest, test_size=0.25, stratify=classes[rest], random_state=seed
        )
        for part, own in zip(parts, (train, validation, test), strict=True):
            part.append(own)
    if len(parts[0][0]) < config.batch:
        raise InputError(f"batch is {config.batch}, but there are {len(parts[0][0])} training images")
    return Dataset(images, classes, *map(np.stack, parts))


def choose(validation: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of each method and seed the place of the weight with the least density divergence on validation images.

    Args:
      validation: by method and metric, [weights, seeds].
    """
    return {name: np.argmin(own["density_kl"], axis=0) for name, own in validation.items()}


def _lanes(config: Config, method: str) -> list[Lane]:
    """All trainings of a method, seed after seed for each weight."""
    weights = (0.0,) if method == "plain" else config.weights
    return [Lane(weight, seed) for weight in weights for seed in range(config.seeds)]


def _trained(
    config: Config, folder: RunFolder, progress: Progress, loaded: Dataset
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of each method the codes of all images, [1 + blocks, lanes, images, 2], and squared errors [lanes, images]."""
    blocks = config.epochs // config.every
    lanes = {name: _lanes(config, name) for name in METHODS}
    program = _Program(config, loaded)
    states = {name: program.init(own) for name, own in lanes.items()}
    shape = {name: (len(own), len(loaded.images)) for name, own in lanes.items()}
    codes = {name: np.zeros((1 + blocks, *own, 2), np.float32) for name, own in shape.items()}
    errors = {name: np.zeros(own, np.float32) for name, own in shape.items()}
    done = 0
    restored = folder.restore_leaves(like=(states, codes, errors))
    if restored is not None:
        done, (states, codes, errors) = restored
        codes, errors = jax.tree.map(np.array, (codes, errors))
    with progress.stage("train", len(METHODS) * blocks, unit="blocks") as stage:
        stage.skip(done)
        while done < len(METHODS) * blocks:
            which, block = divmod(done, blocks)
            name = METHODS[which]
            if block == 0:
                codes[name][0], _ = program.seen(states[name].params)
            weights = np.array([lane.weight for lane in lanes[name]], np.float32)
            batches = np.stack([_batches(config, loaded, lane.seed, block) for lane in lanes[name]])
            states[name], losses = program.block(states[name], weights, batches, method=name)
            codes[name][block + 1], errors[name] = map(np.asarray, program.seen(states[name].params))
            reconstruction, topology, overflow = np.mean(losses, (0, 1)).tolist()
            if overflow:
                raise InputError(f"columns is {config.columns}, too few for the cycles of a batch; take more")
            done += 1
            found = {"reconstruction": reconstruction, "topology": topology}
            folder.log(step=done, method=name, epoch=(block + 1) * config.every, **found)
            folder.checkpoint_leaves(done, (states, codes, errors))
            stage.advance(1, method=name, **found)
    return codes, errors


def _batches(config: Config, loaded: Dataset, seed: int, block: int) -> np.ndarray:
    """Places of the images of all batches of a block, [steps, batch]; the same for all methods and weights."""
    steps = loaded.train.shape[1] // config.batch
    rng = np.random.default_rng((config.seed + seed, block))
    epochs = [rng.permutation(loaded.train[seed])[: steps * config.batch] for _ in range(config.every)]
    return np.concatenate(epochs).reshape(-1, config.batch)


class _Program:
    """Training of all lanes of a method together."""

    def __init__(self, config: Config, loaded: Dataset):
        images = jnp.asarray(loaded.images)
        optimizer = optax.adam(config.rate)
        self._config = config
        self._create = functools.partial(Autoencoder, images.shape[1], config.widths)
        graph = nnx.graphdef(nnx.eval_shape(lambda: self._create(rngs=nnx.Rngs(params=0))))
        self._optimizer = optimizer
        terms = topological_terms(config)

        def loss(
            params: Any, weight: jax.Array, batch: jax.Array, method: str
        ) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graph, params)
            codes, made = model(batch)
            reconstruction, topology, overflow = jnp.mean((made - batch) ** 2), jnp.zeros(()), jnp.zeros(())
            if method in terms:
                inputs = pairwise_distance(batch)
                inputs /= jnp.max(inputs)
                distances = pairwise_distance(codes) / jnp.exp(model.log_unit[...])
                topology, overflow = terms[method](inputs, distances)
            return reconstruction + weight * topology, jnp.stack([reconstruction, topology, overflow])

        def step(
            state: LaneState, weight: jax.Array, places: jax.Array, method: str
        ) -> tuple[LaneState, jax.Array]:
            gradient, terms = jax.grad(loss, has_aux=True)(state.params, weight, images[places], method)
            return descend(optimizer, state, gradient), terms

        @functools.partial(jax.jit, static_argnames="method")
        def block(
            states: LaneState, weights: jax.Array, batches: jax.Array, *, method: str
        ) -> tuple[LaneState, jax.Array]:
            def lane(state: LaneState, weight: jax.Array, batches: jax.Array) -> tuple[LaneState, jax.Array]:
                return jax.lax.scan(lambda state, places: step(state, weight, places, method), state, batches)

            return over_lanes(lane, states, weights, batches)

        @jax.jit
        def seen(params: Any) -> tuple[jax.Array, jax.Array]:
            def one(params: Any) -> tuple[jax.Array, jax.Array]:
                codes, made = nnx.merge(graph, params)(images)
                return codes, jnp.mean((made - images) ** 2, axis=1)

            return jax.lax.map(one, params)

        self.block = block
        self.seen = seen

    def init(self, lanes: list[Lane]) -> LaneState:
        """Weights of all lanes; those of one seed begin alike."""
        keys = jax.vmap(jax.random.key)(jnp.arange(self._config.seeds) + self._config.seed)
        drawn = draw(lambda key: self._create(rngs=nnx.Rngs(params=key)), self._optimizer, keys)
        seeds = np.array([lane.seed for lane in lanes])
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[seeds]), drawn)


_Term = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def topological_terms(config: Config) -> dict[str, _Term]:
    """By method, of the distances of a batch and of its codes: how far they are from each other, per image.

    The second number is 1 where `columns` was too small, else 0.
    """
    along = random_directions(jax.random.key(config.seed), 2, count=config.directions)

    def with_codensity(distances: jax.Array) -> tuple[jax.Array, jax.Array]:
        # It is at most the logarithm of the number of points: both parameters lie between 0 and about 1.
        return distances, codensity(distances, bandwidth=config.bandwidth) / np.log(len(distances))

    def one_parameter(inputs: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tree_edge_distance(inputs, codes) / len(inputs), jnp.zeros(())

    def two_parameters(inputs: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        clouds = with_codensity(inputs), with_codensity(codes)
        total, overflow = jnp.zeros(()), jnp.zeros(())
        if 0 in config.degrees:
            total += codensity_rips_distance(*clouds, along, slices=config.slices)
        if 1 in config.degrees:
            cycles, short = codensity_rips_cycle_distance(
                *clouds, along, lines=config.lines, slices=config.slices, max_cols=config.columns
            )
            total, overflow = total + cycles, short.astype(total.dtype)
        return total / len(inputs), overflow

    return {"one_parameter": one_parameter, "two_parameters": two_parameters}


def _dense(sizes: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Sequential:
    layers: list[Any] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nnx.Linear(size, following, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers[:-1])


def _measured(
    config: Config, loaded: Dataset, codes: dict[str, np.ndarray], errors: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """By part of the images, method and metric: [weights, seeds]."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for part in ("validation", "test"):
        found[part] = {}
        for name in METHODS:
            rows = []
            for lane, own, squares in zip(_lanes(config, name), codes[name], errors[name], strict=True):
                train, places = loaded.train[lane.seed], getattr(loaded, part)[lane.seed]
                figures_of_lane = measure(
                    loaded.images[places],
                    own[places],
                    loaded.classes[places],
                    own[train],
                    loaded.classes[train],
                )
                rows.append(figures_of_lane | {"mse": float(squares[places].mean(dtype=np.float64))})
            found[part][name] = {
                metric: np.array([row[metric] for row in rows]).reshape(-1, config.seeds)
                for metric in METRICS
            }
    return found


def _save(folder: RunFolder, loaded: Dataset, codes: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """The last codes of all lanes, the splits, and every metric of every lane."""
    arrays: dict[str, Any] = {f"codes.{name}": own[-1] for name, own in codes.items()}
    arrays |= {"classes": loaded.classes}
    arrays |= {part: getattr(loaded, part) for part in ("train", "validation", "test")}
    for part, methods in found.items():
        for name, metrics in methods.items():
            arrays |= {f"{part}.{name}.{metric}": values for metric, values in metrics.items()}
    with atomic_file(folder.artefact("results.npz")) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, **arrays)


def _summary(
    config: Config, loaded: Dataset, tested: dict[str, dict[str, np.ndarray]], chosen: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Means and spreads over seeds; p values of paired t tests of two parameters against one and none, two-sided."""
    summary: dict[str, Any] = {
        "data": config.data,
        "images": len(loaded.images),
        "seeds": config.seeds,
        "epochs": config.epochs,
        "degrees": list(config.degrees),
    }
    for name, own in tested.items():
        for metric, values in own.items():
            summary[f"{name}_{metric}"] = float(values.mean())
            summary[f"{name}_{metric}_std"] = float(values.std(ddof=1))
    for name in METHODS[1:]:
        summary[f"{name}_weight"] = float(np.median(np.array(config.weights)[chosen[name]]))
    stats = optional_module("scipy.stats", extra="persistence")
    for metric, better in METRICS.items():
        for other, key in (("one_parameter", "p"), ("plain", "p_plain")):
            two, values = tested["two_parameters"][metric], tested[other][metric]
            # Nothing can be said where all differences are one.
            alike = np.ptp(two - values) <= 1e-6 * np.abs(two).max()
            p = None if alike else float(stats.ttest_rel(two, values).pvalue)
            summary[f"{key}_{metric}"] = p
        gain = better * (tested["two_parameters"][metric] - tested["one_parameter"][metric])
        summary[f"two_parameters_wins_{metric}"] = int((gain > 0).sum())
    return summary
