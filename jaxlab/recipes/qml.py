"""Classifies images or tables by a network with a quantum circuit in the middle, beside the same network without it.

A classical encoder makes angles of the input, a circuit that loads them again in every layer makes <Z> of its wires,
and a linear head makes classes. The twin has a dense layer of as many outputs in the circuit's place; logistic
regression on the raw input is there as well, so that nobody takes what the classical parts do for the circuit's work.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file
from jaxlab.progress import Progress
from jaxlab.quantum.layers import QuantumLayer
from jaxlab.quantum.recording import Circuit
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.runs import RunFolder

KINDS = ("hybrid", "twin")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the qml recipe."""

    data: Literal["digits", "iris", "wine", "cancer"] = "digits"
    """Data set that scikit-learn ships: 1,797 images of digits, or tables of 150, 178 and 569 rows."""
    wires: int = 8
    """Wires of the circuit, 2 to 16."""
    layers: int = 2
    """Layers of the circuit, each with the input loaded and a ring of CNOTs."""
    channels: int = 8
    """Of the convolution in front of images; tables go straight to the angles."""
    epochs: int = 60
    """Passes over the training set."""
    batch: int = 64
    """Examples of a step of Adam."""
    rate: float = 0.02
    """Learning rate."""
    held_out: float = 0.25
    """Share of the examples to test on, drawn from every class alike."""
    seed: int = 0
    """Seed of the split, the weights and the order of examples."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, layers=1, channels=1, epochs=1, batch=1)
        require_positive(self, "rate")
        if not 2 <= self.wires <= 16:
            raise InputError(f"wires is {self.wires}; it must lie between 2 and 16")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; it must lie between 0 and 1")


PRESETS = {
    "smoke": Config(data="iris", wires=4, layers=2, epochs=20, batch=32, rate=0.05),
    "cpu": Config(),
    "gpu": Config(wires=12, layers=6, channels=16, epochs=60),
}


class _Data(NamedTuple):
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]


class _State(NamedTuple):
    params: Any
    optimizer: Any


class HybridClassifier(nnx.Module):
    """Encoder, circuit (or a dense layer in its place) and head."""

    def __init__(self, shape: tuple[int, ...], classes: int, config: Config, kind: str, *, rngs: nnx.Rngs):
        """Draws the weights.

        Args:
          shape: of one input: [height, width, 1] or [features].
          classes: how many.
          config: wires, layers, channels.
          kind: hybrid or twin.
          rngs: by the key of `params`.
        """
        self.is_image = len(shape) == 3
        features = int(np.prod(shape))
        if self.is_image:
            self.convolution = nnx.Conv(1, config.channels, (3, 3), rngs=rngs)
            features = shape[0] // 2 * (shape[1] // 2) * config.channels
        self.encoder = nnx.Linear(features, config.wires, rngs=rngs)
        if kind == "hybrid":
            angles = (config.layers, config.wires, 2)
            self.middle: Callable[..., jax.Array] = QuantumLayer(
                reuploading, config.wires, angles, rngs=rngs, scale=np.pi
            )
        else:
            self.middle = _Dense(config.wires, rngs=rngs)
        self.head = nnx.Linear(config.wires, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores [batch, classes] of inputs [batch, ...]."""
        if self.is_image:
            x = nnx.max_pool(nnx.relu(self.convolution(x)), (2, 2), (2, 2))
        angles = jnp.pi * jnp.tanh(self.encoder(x.reshape(len(x), -1)))
        return self.head(self.middle(angles))


class _Dense(nnx.Module):
    def __init__(self, wires: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(wires, wires, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(x))


def reuploading(c: Circuit, angles: jax.Array, x: jax.Array) -> None:
    """In every layer the input as RX, trained RY and RZ, and a ring of CNOTs.

    Reference: Perez-Salinas et al., Quantum 4 (2020) 226.

    Args:
      c: of n wires.
      angles: [layers, n, 2].
      x: [n], radians.
    """

    def layer(c: Circuit, own: jax.Array) -> None:
        c.rx(x, range(c.n))
        c.ry(own[:, 0], range(c.n))
        c.rz(own[:, 1], range(c.n))
        for wire in range(c.n if c.n > 2 else 1):
            c.cnot(wire, (wire + 1) % c.n)

    c.repeat(layer, angles)


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
      out: run folder; None is `runs/qml-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: accuracies of the hybrid network, of its twin and of logistic regression, parameters, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="qml") as folder:
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"load {config.data}"):
            loaded = _load(config)
        models = {kind: _split(config, loaded, kind) for kind in KINDS}
        states = _trained(config, folder, progress, loaded, models)
        summary: dict[str, Any] = {
            "data": config.data,
            "train_examples": len(loaded.train[1]),
            "test_examples": len(loaded.test[1]),
            "classes": len(loaded.classes),
            "wires": config.wires,
            "layers": config.layers,
        }
        for kind, (graph, _) in models.items():
            scores = _scores(graph)(states[kind].params, loaded.test[0])
            summary[f"accuracy_{kind}"] = float(np.mean(np.argmax(scores, -1) == loaded.test[1]))
            leaves = jax.tree.leaves(states[kind].params)
            summary[f"parameters_{kind}"] = int(sum(leaf.size for leaf in leaves))
        summary["accuracy_logistic"] = _logistic(loaded)
        _save(folder, states["hybrid"].params)
        _figures(
            folder, loaded, np.asarray(_scores(models["hybrid"][0])(states["hybrid"].params, loaded.test[0]))
        )
        return folder.finish(summary)


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    names = {
        "hybrid": f"{summary['wires']} wires, {summary['layers']} layers",
        "twin": "dense layer in the circuit's place",
        "logistic": "logistic regression on the raw input",
    }
    return [
        {
            "classifier": name,
            "accuracy": f"{summary[f'accuracy_{kind}']:.4f}",
            "parameters": summary.get(f"parameters_{kind}", ""),
        }
        for kind, name in names.items()
    ]


def _load(config: Config) -> _Data:
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ResourceError(
            f"data sets need scikit-learn: pip install 'jaxlab[quantum]' ({error})"
        ) from error
    names = {"cancer": "breast_cancer"}
    source = getattr(datasets, f"load_{names.get(config.data, config.data)}")()
    x, y = source.data.astype(np.float32), source.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=config.held_out, random_state=config.seed, stratify=y
    )
    if config.data == "digits":
        train_x, test_x = (part.reshape(-1, 8, 8, 1) / 16 for part in (train_x, test_x))
    else:
        mean, spread = train_x.mean(0), train_x.std(0)
        train_x, test_x = ((part - mean) / spread for part in (train_x, test_x))
    return _Data((train_x, train_y), (test_x, test_y), tuple(map(str, source.target_names)))


def _split(config: Config, loaded: _Data, kind: str) -> tuple[Any, Any]:
    rngs = nnx.Rngs(params=config.seed)
    shape = loaded.train[0].shape[1:]
    return nnx.split(HybridClassifier(shape, len(loaded.classes), config, kind, rngs=rngs))


def _scores(graph: Any) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(lambda params, x: nnx.merge(graph, params)(x))


def _trained(
    config: Config, folder: RunFolder, progress: Progress, loaded: _Data, models: dict[str, tuple[Any, Any]]
) -> dict[str, _State]:
    optimizer = optax.adam(config.rate)
    states = {kind: _State(params, optimizer.init(params)) for kind, (_, params) in models.items()}
    restored = folder.restore_leaves(like=states)
    done = 0
    if restored is not None:
        done, states = restored
    epochs = {kind: _epoch(graph, optimizer) for kind, (graph, _) in models.items()}
    x, y = loaded.train
    batch = min(config.batch, len(y))
    with progress.stage("train", config.epochs, unit="epochs") as stage:
        stage.skip(done)
        while done < config.epochs:
            order = np.random.default_rng((config.seed, done)).permutation(len(y))
            order = order[: len(y) // batch * batch].reshape(-1, batch)
            figures = {}
            for kind, epoch in epochs.items():
                states[kind], loss = epoch(states[kind], x[order], y[order])
                scores = _scores(models[kind][0])(states[kind].params, loaded.test[0])
                figures[f"loss_{kind}"] = float(loss)
                figures[f"accuracy_{kind}"] = float(np.mean(np.argmax(scores, -1) == loaded.test[1]))
            done += 1
            folder.log(step=done, **figures)
            folder.checkpoint_leaves(done, states)
            stage.advance(1, loss=figures["loss_hybrid"], accuracy=figures["accuracy_hybrid"])
    return states


def _epoch(graph: Any, optimizer: Any) -> Callable[..., tuple[_State, jax.Array]]:
    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        scores = nnx.merge(graph, params)(x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, y))

    def step(state: _State, batch: tuple[jax.Array, jax.Array]) -> tuple[_State, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, *batch)
        updates, inner = optimizer.update(gradient, state.optimizer)
        return _State(optax.apply_updates(state.params, updates), inner), value

    @jax.jit
    def epoch(state: _State, x: jax.Array, y: jax.Array) -> tuple[_State, jax.Array]:
        state, losses = jax.lax.scan(step, state, (x, y))
        return state, jnp.mean(losses)

    return epoch


def _logistic(loaded: _Data) -> float:
    from sklearn.linear_model import LogisticRegression

    (x, y), (test_x, test_y) = loaded.train, loaded.test
    fitted = LogisticRegression(max_iter=2000).fit(x.reshape(len(x), -1), y)
    return float(fitted.score(test_x.reshape(len(test_x), -1), test_y))


def _save(folder: RunFolder, params: Any) -> None:
    from safetensors.numpy import save_file

    paths = jax.tree_util.tree_leaves_with_path(params)
    tensors = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in paths
    }
    with atomic_file(folder.artefact("model.safetensors")) as temporary:
        save_file(tensors, temporary)


def _figures(folder: RunFolder, loaded: _Data, scores: np.ndarray) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = folder.metrics()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for kind in KINDS:
        steps = [row["step"] for row in rows]
        left.plot(steps, [row[f"loss_{kind}"] for row in rows], label=kind)
        right.plot(steps, [row[f"accuracy_{kind}"] for row in rows], label=kind)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="accuracy on held-out examples")
    right.legend()
    folder.save_figure("history", figure)
    plt.close(figure)

    count = len(loaded.classes)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (loaded.test[1], np.argmax(scores, -1)), 1)
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.imshow(confusion, cmap="Blues")
    for row, column in np.ndindex(count, count):
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center")
    axes.set(
        xlabel="predicted", ylabel="true", xticks=range(count), yticks=range(count),
        xticklabels=loaded.classes, yticklabels=loaded.classes,
    )  # fmt: skip
    folder.save_figure("confusion", figure)
    plt.close(figure)
