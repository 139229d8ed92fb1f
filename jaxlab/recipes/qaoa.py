"""Cuts a graph in two by QAOA: angles from many starts at once, then samples of the best circuit.

All starts run in one compiled program, and so does every stretch of optimisation steps. The largest cut is found by
going through all of them, so that ratios are exact.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.progress import Progress
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.ansatze import Ansatz, qaoa
from jaxlab.quantum.graphs import Graph, cut_hamiltonian, cut_values, graph
from jaxlab.quantum.measurements import sample
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.runs import RunFolder
from jaxlab.sweeps.protocol import Sweepable, Train


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the qaoa recipe."""

    graph: str = "florentine"
    """petersen, florentine, heawood, frucht, dodecahedral, krackhardt, regular:DEGREE,NODES, or a file of lines
    `NODE NODE [WEIGHT]`."""
    p: int = 4
    """Layers."""
    starts: int = 8
    """Starting points that are optimised side by side; the first is a linear ramp, the others are random."""
    steps: int = 150
    """Steps of Adam."""
    rate: float = 0.02
    """Learning rate, radians."""
    shots: int = 1000
    """Cuts drawn from the best circuit."""
    stretch: int = 25
    """Steps between checkpoints and lines of metrics."""
    precision: int = 64
    """Bits of real numbers, 32 or 64."""
    seed: int = 0
    """Seed of a random graph, the starting points and the samples."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, p=1, starts=1, steps=1, shots=1, stretch=1)
        require_positive(self, "rate")
        if self.precision not in (32, 64):
            raise InputError(f"precision is {self.precision}; it must be 32 or 64")


PRESETS = {
    "smoke": Config(graph="petersen", p=1, starts=4, steps=60, rate=0.05, shots=200, stretch=20),
    "cpu": Config(),
    "gpu": Config(graph="regular:3,22", p=8, starts=32, steps=400, precision=32),
}


class _State(NamedTuple):
    params: jax.Array
    """[starts, p, 2], gamma and beta."""
    optimizer: Any


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
      out: run folder; None is `runs/qaoa-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: expectation, largest cut, ratio, the best cut drawn, seconds.

    Raises:
      InputError: an option or the graph cannot be used.
      ResourceError: a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="qaoa") as folder, jax.enable_x64(config.precision == 64):
        if folder.summary is not None:
            return folder.summary
        chosen = graph(config.graph, seed=config.seed)
        with progress.stage("all cuts"):
            values = cut_values(chosen)
        ansatz = qaoa(cut_hamiltonian(chosen), config.p)
        state = _optimised(config, folder, progress, chosen, ansatz)
        summary = _summary(config, folder, chosen, ansatz, values, state)
        _figures(folder, chosen, values, summary)
        return folder.finish({name: value for name, value in summary.items() if name != "drawn"})


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    return [
        {
            "graph": f"{summary['graph']}, {summary['nodes']} nodes, {summary['edges']} edges",
            "p": summary["p"],
            "<C>": f"{summary['expectation']:.6f}",
            "largest cut": f"{summary['max_cut']:g}",
            "ratio": f"{summary['ratio']:.4f}",
            "best drawn": f"{summary['best_drawn']:g}",
            "drawn as large": f"{summary['share_of_largest']:.1%}",
        }
    ]


def _optimised(
    config: Config, folder: RunFolder, progress: Progress, chosen: Graph, ansatz: Ansatz
) -> jax.Array:
    """The best angles [p, 2] after all steps."""
    dtype = _dtype(config)
    expectation = _expectation(chosen, ansatz, dtype)
    optimizer = optax.adam(config.rate)

    @functools.partial(jax.jit, static_argnames="steps")
    def stretch(state: _State, steps: int) -> tuple[_State, jax.Array, jax.Array]:
        step = functools.partial(_step, expectation, optimizer)
        state, (values, norms) = jax.lax.scan(lambda state, _: step(state), state, None, length=steps)
        return state, values[-1], norms[-1]

    params = _starting_points(config, jax.random.key(config.seed), dtype)
    state = _State(params, optimizer.init(params))
    restored = folder.restore_leaves(like=state)
    done = 0
    if restored is not None:
        done, state = restored
    with progress.stage("optimise", config.steps, unit="steps") as stage:
        stage.skip(done)
        while done < config.steps:
            count = min(config.stretch, config.steps - done)
            state, values, norms = stretch(state, count)
            done += count
            best = int(jnp.argmax(values))
            folder.log(step=done, expectation=values[best], gradient_norm=norms[best], all=values)
            folder.checkpoint_leaves(done, state)
            stage.advance(count, C=float(values[best]), gradient=float(norms[best]))
    return state.params[jnp.argmax(jax.jit(lambda all: jax.lax.map(expectation, all))(state.params))]


def _dtype(config: Config) -> Any:
    return jnp.complex128 if config.precision == 64 else jnp.complex64


def _expectation(chosen: Graph, ansatz: Ansatz, dtype: Any) -> Callable[[jax.Array], jax.Array]:
    """<C> of angles [p, 2]."""
    cost = cut_hamiltonian(chosen)
    return lambda params: pauli_sums.expval(ansatz.state(params, dtype=dtype), cost)


def _step(
    expectation: Callable[[jax.Array], jax.Array], optimizer: optax.GradientTransformation, state: _State
) -> tuple[_State, tuple[jax.Array, jax.Array]]:
    """All starts uphill once; their expectations before, and gradient norms."""
    values, gradients = jax.lax.map(jax.value_and_grad(expectation), state.params)
    updates, inner = optimizer.update(-gradients, state.optimizer)
    new = _State(optax.apply_updates(state.params, updates), inner)
    return new, (values, jnp.sqrt(jnp.sum(jnp.square(gradients), axis=(1, 2))))


def _starting_points(config: Config, key: jax.Array, dtype: Any) -> jax.Array:
    """The ramp is that of slow annealing: the cost is switched on and the mixer off."""
    ramp = (jnp.arange(config.p) + 0.5) / config.p
    first = jnp.stack([0.7 * ramp, 0.7 * (1 - ramp)], axis=-1)
    shape = (config.starts - 1, config.p, 2)
    others = jax.random.uniform(key, shape) * jnp.asarray([jnp.pi / 2, jnp.pi / 4])
    return jnp.concatenate([first[None], others]).astype(jnp.finfo(dtype).dtype)


def _train(config: Config) -> Train:
    """For sweeps: the best expectation of all starts before each stretch of steps and after the last."""
    chosen = graph(config.graph, seed=config.seed)
    ansatz, dtype = qaoa(cut_hamiltonian(chosen), config.p), _dtype(config)
    expectation = _expectation(chosen, ansatz, dtype)
    largest = float(cut_values(chosen).max())

    def train(options: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        params = _starting_points(config, key, dtype)
        optimizer = optax.adam(options["rate"])
        step = functools.partial(_step, expectation, optimizer)
        state = _State(params, optimizer.init(params))
        state, (values, _) = jax.lax.scan(lambda state, _: step(state), state, None, length=config.steps)
        last = jax.lax.map(expectation, state.params)
        best = jnp.max(jnp.concatenate([values, last[None]]), axis=1)[_swept_steps(config)]
        return {"expectation": best, "ratio": best / largest}

    return train


def _swept_steps(config: Config) -> np.ndarray:
    return np.append(np.arange(0, config.steps, config.stretch), config.steps)


SWEEP = Sweepable(
    _train,
    traced=("rate",),
    steps=_swept_steps,
    lanes=1,
    double=lambda config: config.precision == 64,
)


def _summary(
    config: Config, folder: RunFolder, chosen: Graph, ansatz: Ansatz, values: np.ndarray, params: jax.Array
) -> dict[str, Any]:
    psi = jax.jit(ansatz.state)(params)
    drawn = np.asarray(sample(jax.random.key(config.seed + 1), psi, config.shots)).astype(np.int64)
    cuts = values[drawn @ (1 << np.arange(chosen.n)[::-1])]
    best = drawn[np.argmax(cuts)]
    expectation = float(np.dot(np.abs(np.asarray(psi)) ** 2, values))
    with atomic_file(folder.artefact("parameters.csv")) as temporary:
        lines = ["gamma,beta", *(f"{gamma!r},{beta!r}" for gamma, beta in np.asarray(params).tolist())]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "graph": config.graph,
        "nodes": chosen.n,
        "edges": len(chosen.edges),
        "p": config.p,
        "expectation": expectation,
        "max_cut": float(values.max()),
        "ratio": expectation / float(values.max()),
        "best_drawn": float(cuts.max()),
        "mean_drawn": float(cuts.mean()),
        "share_of_largest": float(np.mean(cuts == values.max())),
        "best_cut": "".join(map(str, best)),
        "nodes_of_best_cut": [node for node, side in zip(chosen.nodes, best, strict=True) if side],
        "drawn": cuts,
    }


def _figures(folder: RunFolder, chosen: Graph, values: np.ndarray, summary: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = folder.metrics()
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot([row["step"] for row in rows], [row["all"] for row in rows], color="0.7", linewidth=0.8)
    axes.plot([row["step"] for row in rows], [row["expectation"] for row in rows], label="best start")
    axes.axhline(values.max(), linestyle="--", color="k", label="largest cut")
    axes.set(xlabel="step", ylabel="<C>", title=f"QAOA on {summary['graph']}, p = {summary['p']}")
    axes.legend()
    folder.save_figure("history", figure)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(6, 4))
    bins = np.linspace(min(values.min(), 0), values.max() + 1, 31).tolist()
    for what, label in ((summary["drawn"], "drawn from the circuit"), (values, "all cuts")):
        axes.hist(what, bins=bins, weights=np.full(len(what), 1 / len(what)), alpha=0.6, label=label)
    axes.set(xlabel="weight of the cut", ylabel="share", title=f"{summary['graph']}")
    axes.legend()
    folder.save_figure("cuts", figure)
    plt.close(figure)

    import networkx

    drawing = networkx.Graph()
    drawing.add_nodes_from(range(chosen.n))
    drawing.add_edges_from(chosen.edges)
    place = networkx.spring_layout(drawing, seed=0)
    side = [int(bit) for bit in summary["best_cut"]]
    figure, axes = plt.subplots(figsize=(7, 6))
    for style, cut in (("-", True), (":", False)):
        edges = [edge for edge in chosen.edges if (side[edge[0]] != side[edge[1]]) is cut]
        networkx.draw_networkx_edges(drawing, place, edgelist=edges, style=style, ax=axes)
    networkx.draw_networkx_nodes(
        drawing, place, node_color=["tab:blue" if one else "tab:orange" for one in side], ax=axes
    )
    networkx.draw_networkx_labels(drawing, place, dict(enumerate(chosen.nodes)), font_size=8, ax=axes)
    axes.set_title(f"best cut drawn: {summary['best_drawn']:g} of at most {summary['max_cut']:g}")
    axes.axis("off")
    folder.save_figure("graph", figure)
    plt.close(figure)
