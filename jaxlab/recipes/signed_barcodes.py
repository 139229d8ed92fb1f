"""Classifies graphs, time series or images by their signed barcodes, with everything chosen on training data.

Each sample is filtered by two functions, its Hilbert signed measures are counted on a grid, and a classifier sees their
convolution or their sliced Wasserstein distances. Functions, widths and the classifier are chosen by cross-validation
within each training set, so that the accuracy is that of a method and not of a lucky setting.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import data
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file
from jaxlab.persistence.features import SignedMeasureFeatures
from jaxlab.persistence.images import edge_distance
from jaxlab.persistence.sliced_wasserstein import sw_kernel, sw_matrix
from jaxlab.persistence.sources import CodensityRips, GraphFunctions, ImageChannels, Source, delay_embedding
from jaxlab.progress import Progress
from jaxlab.recipes.options import require_at_least
from jaxlab.recipes.signed_barcodes_report import figures, table
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the signed-barcodes recipe."""

    data: str = "MUTAG"
    """MUTAG or Cuneiform (graphs), GunPoint, ItalyPowerDemand, ArrowHead, OSULeaf or ACSF1 (time series, in the
    archive's split), digits or fashion-mnist (images, the latter in the archive's split), or a folder of graphs in TU
    format."""
    vectorize: Literal["convolution", "sliced-wasserstein", "hilbert"] = "convolution"
    """What the classifier sees; hilbert is the Hilbert function itself, for comparison."""
    functions: tuple[str, ...] = ("hks:10+degree", "hks:10+closeness", "hks:1+closeness")
    """For graphs: pairs of functions to choose from, joined by +."""
    densities: tuple[float, ...] = (-0.1,)
    """For time series: bandwidths of the density to choose from; if < 0, shares of the largest distance."""
    bandwidths: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Of the convolution, in units of the filtration's range, to choose from."""
    resolution: int = 15
    """Lines of the grid in each parameter."""
    rounding: Literal["up", "nearest"] = "up"
    """Of values to lines: up as the paper does, or to the nearest one as multipers does."""
    directions: int = 50
    """Of the sliced Wasserstein distance."""
    folds: int = 10
    """Of the test, where the data have no split of their own."""
    inner_folds: int = 5
    """Of the choice within a training set."""
    samples: int = 0
    """Use so many samples only, drawn at random; 0 takes all."""
    seed: int = 0
    """Seed of folds, directions, samples and forests."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, resolution=2, directions=1, folds=2, inner_folds=2, samples=0)
        for name in ("functions", "densities", "bandwidths"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; name at least one")
        if not all(width > 0 for width in self.bandwidths):
            raise InputError(f"bandwidths is {self.bandwidths}; all must be > 0")
        if not all(self.densities):
            raise InputError(f"densities is {self.densities}; none may be 0")


PRESETS = {
    "smoke": Config(
        functions=("hks:10+degree",), bandwidths=(0.1,), resolution=8, folds=3, inner_folds=2, samples=90
    ),
    "cpu": Config(),
    "gpu": Config(resolution=50, directions=200),
}
_SERIES = data.UCR
_C = (1.0, 10.0, 100.0, 1000.0)
_SIGMAS = (0.1, 0.3, 1.0, 3.0)


class Dataset(NamedTuple):
    """Samples with classes; `split` is the number of training samples that come first, if the data have a split."""

    samples: Any
    classes: np.ndarray
    sources: dict[str, Source]
    split: int | None


class Choice(NamedTuple):
    """One way to do it, and how well it did within the training set."""

    source: str
    bandwidth: float | None
    classifier: str
    score: float


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last fold, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/signed-barcodes-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: accuracy with its spread over folds, share of the largest class, what was chosen, seconds.

    Raises:
      InputError: an option or the data cannot be used.
      ResourceError: a package, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="signed-barcodes") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"load {config.data}"):
            loaded = load_dataset(config)
        parts = list(splits(config, loaded))
        done = [row for row in folder.metrics() if "step" in row]
        with progress.stage("folds", len(parts), unit="folds") as stage:
            stage.skip(len(done))
            for number, (train, test) in enumerate(parts, start=1):
                if number <= len(done):
                    continue
                choice, accuracy = fold(config, loaded, train, test)
                folder.log(step=number, accuracy=accuracy, tested=len(test), **choice._asdict())
                stage.advance(1, accuracy=accuracy)
        rows = [row for row in folder.metrics() if "step" in row]
        example = _example(config, loaded, rows[-1], folder)
        figures(folder, config.data, rows, example)
        return folder.finish(_summary(config, loaded, rows))


def load_dataset(config: Config) -> Dataset:
    """Samples, classes and the sources to choose from.

    Raises:
      InputError: unknown data.
      ResourceError: a package is missing or cannot be fetched.
    """
    sources: dict[str, Source]
    if config.data in _SERIES:
        parts = data.ucr(config.data)
        samples: Any = delay_embedding(np.concatenate([part.series for part in parts])).astype(np.float32)
        classes = np.concatenate([part.classes for part in parts])
        sources = {f"density {width:g}": CodensityRips(width) for width in config.densities}
        split: int | None = len(parts[0].classes)
    elif config.data == "digits":
        loaded = _sklearn("datasets").load_digits()
        pixels = loaded.images.astype(np.float32) / 16
        # Dark strokes first, and the middle before the rim.
        place = np.stack(np.meshgrid(*(np.linspace(-1, 1, 8),) * 2, indexing="ij"), -1).astype(np.float32)
        rim = np.broadcast_to(np.linalg.norm(place, axis=-1), pixels.shape)
        samples, classes, split = np.stack([1 - pixels, rim], -1), loaded.target, None
        sources = {"intensity+distance from the middle": ImageChannels()}
    elif config.data == "fashion-mnist":
        given = data.fashion_mnist()
        pixels = np.concatenate([part.pixels for part in given]).astype(np.float32) / 255
        far = np.asarray(jax.jit(functools.partial(jax.lax.map, edge_distance))(pixels))
        samples, classes = np.stack([1 - pixels, far], -1), np.concatenate([part.classes for part in given])
        split, sources = len(given[0].classes), {"intensity+distance to the edges": ImageChannels()}
    else:
        graphs = data.tu_graphs(config.data)
        samples, classes, split = graphs, np.array([graph.label for graph in graphs]), None
        sources = {pair: GraphFunctions(tuple(pair.split("+"))) for pair in config.functions}
    found = Dataset(samples, classes, sources, split)
    return found if not config.samples else _fewer(config, found)


def _fewer(config: Config, loaded: Dataset) -> Dataset:
    if config.samples >= len(loaded.classes):
        raise InputError(f"samples is {config.samples}, but {config.data} holds {len(loaded.classes)}")
    chosen = np.random.default_rng(config.seed).permutation(len(loaded.classes))[: config.samples]
    return loaded._replace(
        samples=take(loaded.samples, np.sort(chosen)), classes=loaded.classes[np.sort(chosen)], split=None
    )


def take(samples: Any, places: np.ndarray) -> Any:
    """Samples at some places, of a list or of an array."""
    return samples[places] if isinstance(samples, np.ndarray) else [samples[i] for i in places]


def splits(config: Config, loaded: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test samples of each fold, or of the data's own split.

    Raises:
      InputError: a class has fewer samples than there are folds.
    """
    total = len(loaded.classes)
    if loaded.split is not None:
        yield np.arange(loaded.split), np.arange(loaded.split, total)
        return
    smallest = int(np.bincount(loaded.classes)[np.unique(loaded.classes)].min())
    if smallest < config.folds:
        raise InputError(
            f"folds is {config.folds}, but the smallest class has {smallest} samples; use fewer folds"
        )
    selection = _sklearn("model_selection")
    folds = selection.StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    yield from folds.split(np.zeros(total), loaded.classes)


def fold(config: Config, loaded: Dataset, train: np.ndarray, test: np.ndarray) -> tuple[Choice, float]:
    """The choice made on the training samples alone, and its accuracy on the others."""
    selection = _sklearn("model_selection")
    classes = loaded.classes
    inner = selection.StratifiedKFold(config.inner_folds, shuffle=True, random_state=config.seed)
    best: tuple[Choice, Any] | None = None
    for name, source in loaded.sources.items():
        features = _features(config, source).fit(take(loaded.samples, train))
        measures = [features.measures(take(loaded.samples, part)) for part in (train, test)]
        for bandwidth in config.bandwidths if config.vectorize == "convolution" else (None,):
            if bandwidth is not None:
                features.set_params(bandwidth=bandwidth)
            vectors = [features.vectors(one) for one in measures]
            for kind, classifier, (x, test_x) in _classifiers(config, vectors, len(features.degrees)):
                scores = selection.cross_val_score(classifier, x, classes[train], cv=inner)
                if best is None or scores.mean() > best[0].score:
                    choice = Choice(name, bandwidth, kind, float(scores.mean()))
                    fitted = classifier.fit(x, classes[train])
                    best = choice, float(fitted.score(test_x, classes[test]))
    assert best is not None
    return best


def _features(config: Config, source: Source) -> SignedMeasureFeatures:
    return SignedMeasureFeatures(
        source,
        resolution=config.resolution,
        rounding=config.rounding,
        out_resolution=config.resolution,
        vectorize=config.vectorize,
        directions=config.directions,
        seed=config.seed,
    )


def _classifiers(
    config: Config, vectors: Sequence[np.ndarray], degrees: int
) -> Iterator[tuple[str, Any, tuple[np.ndarray, np.ndarray]]]:
    """Name, classifier, and what it takes for training and test samples."""
    svm, ensemble = _sklearn("svm"), _sklearn("ensemble")
    train, test = vectors
    if config.vectorize == "sliced-wasserstein":
        parts = [[jnp.asarray(half) for half in np.split(one, degrees, axis=1)] for one in vectors]
        distances = [[sw_matrix(x, y) for x, y in zip(part, parts[0], strict=True)] for part in parts]
        for sigma in _SIGMAS:
            own, other = (
                np.asarray(sum(sw_kernel(one, sigma=sigma) for one in part)) / degrees for part in distances
            )
            for c in _C:
                yield f"svm, sigma {sigma:g}, C {c:g}", svm.SVC(kernel="precomputed", C=c), (own, other)
        return
    for c in _C[:3]:
        yield f"svm, C {c:g}", svm.SVC(C=c), (train, test)
    forest = ensemble.RandomForestClassifier(300, random_state=config.seed)
    yield "forest of 300", forest, (train, test)


def _sklearn(module: str) -> Any:
    try:
        return __import__(f"sklearn.{module}", fromlist=[module])
    except ImportError as error:
        raise ResourceError(
            f"classifiers need scikit-learn: pip install 'jaxlab[persistence]' ({error})"
        ) from error


def _example(config: Config, loaded: Dataset, row: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Measures of all samples by the last choice, saved; those of one sample of each of two classes come back."""
    features = _features(config, loaded.sources[row["source"]]).fit(loaded.samples)
    if row["bandwidth"] is not None:
        features.set_params(bandwidth=row["bandwidth"])
    measures = features.measures(loaded.samples)
    arrays: dict[str, Any] = {
        f"weights_{degree}": one for degree, one in zip(features.degrees, measures, strict=True)
    }
    arrays |= {f"lines_{i}": np.asarray(lines) for i, lines in enumerate(features.grid_.coords)}
    with atomic_file(folder.artefact("features.npz")) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, features=features.vectors(measures), classes=loaded.classes, **arrays)
    first = [int(np.flatnonzero(loaded.classes == one)[0]) for one in np.unique(loaded.classes)[:2]]
    return {
        "lines": [np.asarray(lines) for lines in features.grid_.coords],
        "samples": {f"class {loaded.classes[i]}": [one[i] for one in measures] for i in first},
        "degrees": list(features.degrees),
    }


def _summary(config: Config, loaded: Dataset, rows: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = np.array([row["accuracy"] for row in rows])
    tested = np.array([row["tested"] for row in rows])
    chosen = [row["source"] for row in rows]
    counts = np.unique(loaded.classes, return_counts=True)[1]
    return {
        "data": config.data,
        "samples": len(loaded.classes),
        "classes": len(counts),
        "vectorize": config.vectorize,
        "folds": len(rows),
        "accuracy": float(accuracies @ tested / tested.sum()),
        "accuracy_std": float(accuracies.std(ddof=1)) if len(rows) > 1 else None,
        "accuracy_inner": float(np.mean([row["score"] for row in rows])),
        "largest_class": float(counts.max() / counts.sum()),
        "source": max(set(chosen), key=chosen.count),
        "candidates": len(list(itertools.product(loaded.sources, config.bandwidths))),
    }
