"""Learns filtrations of graphs for their classification, by one and by several parameters, beside fixed ones.

A small graph network gives each vertex p numbers, the graph is filtered by them, and its signed measures in H_0 and H_1
are seen through learned Gaussians by a linear classifier; everything is trained together. Fixed functions (heat kernel
signature, degree, closeness) go through the same classifier. Epochs and functions are chosen by cross-validation within
each training set. Reference: arXiv:2406.07224, section 5.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.persistence.complexes import Complex, simplicial_complex, stack_complexes
from jaxlab.persistence.graphs import adjacency_matrix, local_degree_profile
from jaxlab.persistence.layers import LowerStarFiltration, SignedMeasureConv, graph_atoms, lower_star_measures
from jaxlab.persistence.measures import SparseMeasure
from jaxlab.persistence.sources import GraphFunctions
from jaxlab.progress import Progress
from jaxlab.recipes.lanes import LaneState, descend, draw, over_lanes
from jaxlab.recipes.options import optional_module, require_at_least, require_positive
from jaxlab.recipes.persistence_graphs_report import figures, table
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the persistence-graphs recipe."""

    data: str = "MUTAG"
    """MUTAG or Cuneiform, or a folder of graphs in TU format."""
    parameters: tuple[int, ...] = (1, 2)
    """Numbers of functions to learn: one run of the whole comparison for each."""
    functions: tuple[str, ...] = ("hks:10+degree", "hks:10+closeness", "hks:1+closeness")
    """Fixed functions to choose from, joined by +."""
    resolution: int = 0
    """Lines of a grid of quantiles where three or more parameters are learned; up to two the grid is exact."""
    width: int = 16
    """Of the graph network's hidden layers."""
    depth: int = 2
    """Graph convolutions."""
    channels: int = 4
    """Precision matrices learned in each degree of homology."""
    samples: int = 8
    """Points learned for each of them."""
    epochs: int = 100
    """Full-batch steps of Adam."""
    every: int = 10
    """Epochs from one checkpoint to the next; the number of epochs is chosen among its multiples."""
    rate: float = 0.01
    """Learning rate."""
    folds: int = 10
    """Of the test."""
    inner_folds: int = 3
    """Of the choice within a training set."""
    graphs: int = 0
    """Use so many graphs only, drawn at random; 0 takes all."""
    seed: int = 0
    """Seed of folds, weights and graphs."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, width=1, depth=1, channels=1, samples=1, epochs=1, every=1, graphs=0)
        require_at_least(self, folds=2, inner_folds=2)
        require_positive(self, "rate")
        for name in ("parameters", "functions"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; name at least one")
        if min(self.parameters) < 1 or len(set(self.parameters)) < len(self.parameters):
            raise InputError(f"parameters is {self.parameters}; all must be at least 1, and different")
        if self.resolution < 2 and max(self.parameters) > 2:
            raise InputError(f"resolution is {self.resolution}; it must be at least 2 for three parameters")
        if self.epochs % self.every:
            raise InputError(f"every is {self.every}; it must divide epochs, which is {self.epochs}")


PRESETS = {
    "smoke": Config(
        parameters=(2,),
        functions=("hks:10+degree",),
        width=8,
        channels=2,
        epochs=20,
        every=10,
        folds=3,
        inner_folds=2,
        graphs=60,
    ),
    "cpu": Config(),
    "gpu": Config(parameters=(1, 2, 3), resolution=12, inner_folds=5),
}


class Dataset(NamedTuple):
    """Graphs with classes 0, 1, ..., padded to one size."""

    samples: list[Any]
    complexes: Complex
    features: jax.Array
    classes: np.ndarray


class Method(NamedTuple):
    """One way to filter: `group` is what it is counted under, `parameters` how many functions it has."""

    name: str
    group: str
    parameters: int
    inputs: Any
    """Of all graphs, along leading axes."""
    ends: np.ndarray
    """Smallest and largest value of each given function on each graph, [2, graphs, parameters]; 0 and 1 if learned."""


class GraphClassifier(nnx.Module):
    """Measures in H_0 and H_1, learned or given, through Gaussians to scores of classes."""

    def __init__(self, config: Config, method: Method, features: int, classes: int, *, rngs: nnx.Rngs):
        """Args:
        config: sizes.
        method: its measures are learned unless they are its inputs.
        features: of the vertices.
        classes: how many.
        rngs: by the key of `params`.
        """
        p = method.parameters
        learned = method.group != "fixed"
        resolution = config.resolution if p > 2 else None
        self.filtration = (
            LowerStarFiltration(
                features, p, width=config.width, depth=config.depth, resolution=resolution, rngs=rngs
            )
            if learned
            else None
        )
        self.gaussians = nnx.List(
            [
                SignedMeasureConv(p, channels=config.channels, samples=config.samples, rngs=rngs)
                for _ in ("H0", "H1")
            ]
        )
        self.head = nnx.Linear(2 * config.channels * config.samples, classes, rngs=rngs)

    def __call__(self, inputs: Any, scale: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Scores of one graph; given measures are first moved to the unit cube: low end and extent `scale`."""
        measures = self.measures(*inputs) if self.filtration is not None else inputs
        moved = [one._replace(points=(one.points - scale[0]) / scale[1]) for one in measures]
        seen = [gaussian(one) for gaussian, one in zip(self.gaussians, moved, strict=True)]
        return self.head(jnp.concatenate(seen))

    def measures(self, features: jax.Array, complex: Complex) -> tuple[SparseMeasure, SparseMeasure]:
        """The atoms of one graph in H_0 and H_1."""
        assert self.filtration is not None
        return graph_atoms(complex, self.filtration(features, complex))


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
      out: run folder; None is `runs/persistence-graphs-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: accuracy of each way to filter, with its spread over folds, p values of their differences, seconds.

    Raises:
      InputError: an option or the data cannot be used.
      ResourceError: a package, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="persistence-graphs") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"load {config.data}"):
            loaded = load_dataset(config)
            masks = splits(config, loaded.classes)
            methods = methods_of(config, loaded)
        states, predicted = _trained(config, folder, progress, loaded, methods, masks)
        tested, chosen = choose(methods, masks, predicted, loaded.classes)
        _save(folder, methods, states, predicted, masks, loaded.classes)
        summary = _summary(config, loaded, masks, methods, predicted, tested, chosen)
        figures(
            folder,
            {group: [float(hits[~mask].mean()) for mask in masks[:, 0]] for group, hits in tested.items()},
            dict(
                zip([m.name for m in methods], _inner(masks, predicted, loaded.classes).mean(-1), strict=True)
            ),
            config.every * np.arange(1, predicted.shape[1] + 1),
            summary["largest_class"],
            _examples(config, loaded, methods, states),
        )
        return folder.finish(summary)


def load_dataset(config: Config) -> Dataset:
    """Graphs and what is known of their vertices: a constant and the local degree profile.

    Raises:
      InputError: unknown data, or fewer graphs than asked for.
      ResourceError: the data cannot be fetched.
    """
    samples = data.tu_graphs(config.data)
    if config.graphs > len(samples):
        raise InputError(f"graphs is {config.graphs}, but {config.data} holds {len(samples)}")
    if config.graphs:
        chosen = np.random.default_rng(config.seed).permutation(len(samples))[: config.graphs]
        samples = [samples[i] for i in np.sort(chosen)]
    complexes = stack_complexes([simplicial_complex(graph.vertices, graph.edges) for graph in samples])
    room = complexes.masks[0].shape[1]
    adjacency = jnp.asarray(np.stack([adjacency_matrix(room, graph.edges) for graph in samples]))
    profile = jax.vmap(local_degree_profile)(adjacency)
    features = jnp.concatenate([jnp.ones_like(profile[..., :1]), jnp.log1p(profile)], axis=-1)
    classes = np.unique([graph.label for graph in samples], return_inverse=True)[1]
    return Dataset(samples, complexes, features, classes)


def splits(config: Config, classes: np.ndarray) -> np.ndarray:
    """Which graphs are trained on: bool[folds, 1 + inner_folds, graphs].

    The first row of a fold is its whole training set, the others leave a part of that out to choose by.

    Raises:
      InputError: a class is too small for the folds.
    """
    selection = optional_module("sklearn.model_selection", extra="persistence")
    smallest = int(np.bincount(classes).min())
    if smallest < config.folds:
        raise InputError(
            f"folds is {config.folds}, but the smallest class has {smallest} graphs; use fewer folds"
        )
    outer = selection.StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    inner = selection.StratifiedKFold(config.inner_folds, shuffle=True, random_state=config.seed)
    masks = np.zeros((config.folds, 1 + config.inner_folds, len(classes)), bool)
    for fold, (train, _) in enumerate(outer.split(classes, classes)):
        masks[fold, 0, train] = True
        for i, (kept, _) in enumerate(inner.split(train, classes[train]), start=1):
            masks[fold, i, train[kept]] = True
    return masks


def methods_of(config: Config, loaded: Dataset) -> list[Method]:
    """The ways to filter: learned by each number of parameters, and fixed by each pair of functions."""
    learned = (loaded.features, loaded.complexes)
    unit = np.array([0, 1], np.float32)[:, None, None]
    methods = [
        Method(f"learned {p}", f"learned_{p}", p, learned, np.tile(unit, (1, len(loaded.classes), p)))
        for p in config.parameters
    ]
    there = np.asarray(loaded.complexes.masks[0])

    @jax.jit
    @jax.vmap
    def counted(complex: Complex, values: jax.Array) -> tuple[SparseMeasure, SparseMeasure]:
        return graph_atoms(complex, lower_star_measures(complex, values))

    for name in config.functions:
        functions = tuple(name.split("+"))
        values = np.zeros((*there.shape, len(functions)), np.float32)
        values[there] = np.stack(GraphFunctions(functions).read(loaded.samples).values, -1)
        lowest = np.where(there[..., None], values, np.inf).min(1)
        highest = np.where(there[..., None], values, -np.inf).max(1)
        methods.append(
            Method(
                name, "fixed", len(functions), counted(loaded.complexes, values), np.stack([lowest, highest])
            )
        )
    return methods


def choose(
    methods: list[Method], masks: np.ndarray, predicted: np.ndarray, classes: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, list[tuple[int, int]]]]:
    """Of each group and fold the method and number of blocks with the best inner accuracy, and what it gets right.

    Args:
      methods: in the order of `predicted`.
      masks: from `splits`.
      predicted: classes int[methods, blocks, folds, 1 + inner_folds, graphs].
      classes: the true ones.

    Returns:
      By group: whether each graph is classified rightly by the fold that tests it, bool[graphs]; and the pairs (method,
      block) of all folds, the earliest of equals.
    """
    right, inner = predicted == classes, _inner(masks, predicted, classes)
    tested, chosen = {}, {}
    for group in dict.fromkeys(method.group for method in methods):
        own = [i for i, method in enumerate(methods) if method.group == group]
        hits, pairs = np.zeros(len(classes), bool), []
        for fold in range(len(masks)):
            scores = inner[own, :, fold]
            where, block = np.unravel_index(int(np.argmax(scores)), scores.shape)
            pairs.append((own[where], int(block)))
            out = ~masks[fold, 0]
            hits[out] = right[own[where], block, fold, 0, out]
        tested[group], chosen[group] = hits, pairs
    return tested, chosen


def _inner(masks: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Share of each fold's training graphs that are classified rightly where they are left out, [..., folds]."""
    left_out = masks[:, :1] & ~masks[:, 1:]
    # Each is left out once.
    return ((predicted == classes)[..., 1:, :] & left_out).sum((-2, -1)) / masks[:, 0].sum(-1)


def _trained(
    config: Config,
    folder: RunFolder,
    progress: Progress,
    loaded: Dataset,
    methods: list[Method],
    masks: np.ndarray,
) -> tuple[list[LaneState], np.ndarray]:
    """Weights of all methods and lanes in the end, and predicted classes after each block of epochs."""
    lanes = masks.reshape(-1, masks.shape[-1])
    blocks = config.epochs // config.every
    programs = [_Program(config, loaded, method) for method in methods]
    states = [program.init(config.seed, len(lanes)) for program in programs]
    predicted = np.zeros((len(methods), blocks, *masks.shape), np.int16)
    done = 0
    restored = folder.restore_leaves(like=(states, predicted))
    if restored is not None:
        done, (states, predicted) = restored
        predicted = np.array(predicted)
    with progress.stage("train", len(methods) * blocks, unit="blocks") as stage:
        stage.skip(done)
        while done < len(methods) * blocks:
            which, block = divmod(done, blocks)
            scale = _scales(methods[which], lanes)
            states[which], losses, found = programs[which].block(
                states[which], methods[which].inputs, lanes, scale
            )
            predicted[which, block] = np.asarray(found).reshape(masks.shape)
            done += 1
            loss = float(np.mean(losses))
            folder.log(step=done, method=methods[which].name, epoch=(block + 1) * config.every, loss=loss)
            folder.checkpoint_leaves(done, (states, predicted))
            stage.advance(1, method=methods[which].name, loss=loss)
    return states, predicted


class _Program:
    """Training of one method in all lanes: each lane has its own training set and weights."""

    def __init__(self, config: Config, loaded: Dataset, method: Method):
        shape = loaded.features.shape[-1], len(np.unique(loaded.classes))
        self._optimizer = optax.adam(config.rate)

        def create(key: jax.Array) -> GraphClassifier:
            return GraphClassifier(config, method, *shape, rngs=nnx.Rngs(params=key))

        self._create = create
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: create(jax.random.key(0))))
        classes = jnp.asarray(loaded.classes)

        def scores(params: Any, inputs: Any, scale: Any) -> jax.Array:
            return jax.vmap(self.model(params), in_axes=(0, None))(inputs, scale)

        def loss(params: Any, inputs: Any, mask: jax.Array, scale: Any) -> jax.Array:
            each = optax.softmax_cross_entropy_with_integer_labels(scores(params, inputs, scale), classes)
            return jnp.sum(jnp.where(mask, each, 0)) / jnp.sum(mask)

        def lane(
            inputs: Any, state: LaneState, mask: jax.Array, scale: Any
        ) -> tuple[LaneState, jax.Array, jax.Array]:
            def step(state: LaneState, _: None) -> tuple[LaneState, jax.Array]:
                value, gradient = jax.value_and_grad(loss)(state.params, inputs, mask, scale)
                return descend(self._optimizer, state, gradient), value

            state, losses = jax.lax.scan(step, state, None, length=config.every)
            return state, losses, jnp.argmax(scores(state.params, inputs, scale), -1).astype(jnp.int16)

        @jax.jit
        def block(
            states: LaneState, inputs: Any, masks: jax.Array, scales: Any
        ) -> tuple[LaneState, jax.Array, jax.Array]:
            return over_lanes(functools.partial(lane, inputs), states, masks, scales)

        self.block = block

    def model(self, params: Any) -> GraphClassifier:
        """The network with these weights."""
        return nnx.merge(self._graph, params)

    def init(self, seed: int, lanes: int) -> LaneState:
        """One set of weights a lane."""
        return draw(self._create, self._optimizer, jax.random.split(jax.random.key(seed), lanes))


def _scales(method: Method, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low end and extent of each function on each lane's training graphs, [lanes, parameters] each."""
    low = np.stack([method.ends[0][mask].min(0) for mask in lanes])
    extent = np.stack([method.ends[1][mask].max(0) for mask in lanes]) - low
    return low, np.where(extent > 0, extent, 1)


def _examples(
    config: Config, loaded: Dataset, methods: list[Method], states: list[LaneState]
) -> dict[str, Any]:
    """Atoms of the first graph of each of two classes, as the first fold filters it by two learned functions."""
    learned = [i for i, method in enumerate(methods) if method.group == "learned_2"]
    if not learned:
        return {}
    method, state = methods[learned[0]], states[learned[0]]
    program = _Program(config, loaded, method)
    model = program.model(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), state.params))
    found: dict[str, Any] = {}
    for label in np.unique(loaded.classes)[:2]:
        first = int(np.flatnonzero(loaded.classes == label)[0])
        measures = jax.jit(model.measures)(*jax.tree.map(lambda leaf, i=first: leaf[i], method.inputs))
        found[f"class {label}"] = [
            (
                np.asarray(one.points),
                np.asarray(one.weights),
                np.asarray(gaussians.points[...]).reshape(-1, 2),
            )
            for one, gaussians in zip(measures, model.gaussians, strict=True)
        ]
    return found


def _save(
    folder: RunFolder,
    methods: list[Method],
    states: list[LaneState],
    predicted: np.ndarray,
    masks: np.ndarray,
    classes: np.ndarray,
) -> None:
    """Predictions of all lanes, and the weights that each fold ends with."""
    arrays: dict[str, Any] = {"predicted": predicted, "trained_on": masks, "classes": classes}
    for method, state in zip(methods, states, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            whole = np.asarray(leaf).reshape(*masks.shape[:2], *np.shape(leaf)[1:])
            arrays[f"{method.name}.{name}"] = whole[:, 0]
    with atomic_file(folder.artefact("results.npz")) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, **arrays)


def _summary(
    config: Config,
    loaded: Dataset,
    masks: np.ndarray,
    methods: list[Method],
    predicted: np.ndarray,
    tested: dict[str, np.ndarray],
    chosen: dict[str, list[tuple[int, int]]],
) -> dict[str, Any]:
    """Accuracies with their spread over folds; p values of McNemar's exact test, two-sided."""
    counts = np.bincount(loaded.classes)
    summary: dict[str, Any] = {
        "data": config.data,
        "graphs": len(loaded.classes),
        "classes": len(counts),
        "largest_class": float(counts.max() / counts.sum()),
        "folds": config.folds,
    }
    for group, hits in tested.items():
        by_fold = [hits[~mask].mean() for mask in masks[:, 0]]
        names = [methods[which].name for which, _ in chosen[group]]
        ends = [(block + 1) * config.every for _, block in chosen[group]]
        summary |= {
            f"accuracy_{group}": float(hits.mean()),
            f"accuracy_{group}_std": float(np.std(by_fold, ddof=1)),
            f"epochs_{group}": float(np.median(ends)),
            f"method_{group}": max(set(names), key=names.count),
        }
    last, _ = choose(methods, masks, predicted[:, -1:], loaded.classes)
    summary |= {f"accuracy_{group}_all_epochs": float(hits.mean()) for group, hits in last.items()}
    stats = optional_module("scipy.stats", extra="persistence")
    groups = list(tested)
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            alone = int((tested[first] & ~tested[second]).sum()), int((tested[second] & ~tested[first]).sum())
            p = stats.binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
            summary[f"p_{first}_{second}"] = float(p)
    return summary
