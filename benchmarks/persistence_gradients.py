"""Value and gradient of signed measures on two cores against multipers and torch, and optimisation of points beside it.

Function-Rips H_0 8 times, the graphs of MUTAG 15, images 5, H_1 of Rips 0.7, 100 steps of experiment B once. Both sides
compute in float64, from points, pixels or vertex values to the integral of exp(-|x - c|^2) against all measures and its
gradient with respect to them; multipers 2.3.2 and torch live in an environment of their own. Values and gradients must
agree, or there is no row. Vertices of equal value share one line of a grid, whose gradient each side gives to any of
them, so for graphs the sums over equal values are compared. multipers collapses edges before H_1.

Experiments A (cycles on modes) and B (density-preserving circle) run beside it from the same points by Adam, each side
on its own Delaunay triangulation of its own points: losses of the first 10 steps must agree to 1e-8, the loss after 100
steps is reported. The first step, which compiles, is not in the seconds.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab import data, persistence
from jaxlab.errors import ResourceError
from jaxlab.persistence import DenseMeasure, Grid, mobius
from jaxlab.persistence.optimisation import padded_delaunay, start
from jaxlab.recipes import persistence_optimisation as experiments

_CENTRE = (0.5, 1.0)
_BANDWIDTH = 0.3
_RATE = 0.01
_TOLERANCE = 1e-10
_FIRST = 10
"""Steps whose losses must agree."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all sizes."""
    with jax.enable_x64(True):
        rows = [_rips(1, n, 0, 8.0, quick) for n in ((50,) if quick else (50, 100, 200))]
        rows.append(_graphs(quick))
        rows.append(_images(4 if quick else 64, quick))
        rows.append(_rips(2 if quick else 32, 64, 1, 0.7, quick))
        rows += [_experiment(name, quick) for name in (("circle",) if quick else ("modes", "circle"))]
    return rows


def noisy_circles(clouds: int, n: int) -> np.ndarray:
    """Points about the unit circle, [clouds, n, 2]; the first cloud is that of `persistence_forward`."""
    found = []
    for seed in range(clouds):
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi, n)
        found.append(np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(size=(n, 2)) * 0.1)
    return np.stack(found)


def _phi(points: Array) -> Array:
    return jnp.exp(-jnp.sum(jnp.square(points - jnp.array(_CENTRE)), -1))


def _rips(clouds: int, n: int, degree: int, target: float, quick: bool) -> dict[str, Any]:
    lines = 64

    def value(points: Array) -> Array:
        distances = persistence.pairwise_distance(points)
        functions = persistence.codensity(distances, bandwidth=_BANDWIDTH)[:, None]
        nothing = distances[:, :0]
        scale = persistence.rips_grid(distances, nothing, strategy="regular_closest", resolution=lines)
        grid = Grid(scale.coords + persistence.make_grid(functions).coords)
        if degree == 0:
            counted = persistence.hilbert_h0_dense(distances, functions, grid)
        else:
            counted = persistence.hilbert_rips_h1(distances, functions, grid)[0]
        return persistence.integrate_phi(DenseMeasure(mobius(counted), grid), _phi)

    points = noisy_circles(clouds, n)
    given = {"task": "rips", "points": points, "degree": degree, "lines": lines, "bandwidth": _BANDWIDTH}
    batch = "" if clouds == 1 else f" x {clouds} clouds"
    what = f"H{degree} of function-Rips, n={n}{batch}, grid ({lines}, {n})"
    return _row(what, lambda x: jnp.sum(jax.lax.map(value, x)), points, given, target, quick)


def _graphs(quick: bool) -> dict[str, Any]:
    """Heat kernel signature and closeness on all graphs of MUTAG."""
    graphs = data.tu_graphs("MUTAG")[: 20 if quick else None]
    complexes = [persistence.simplicial_complex(graph.vertices, graph.edges) for graph in graphs]
    values = []
    for graph in graphs:
        adjacency = jnp.asarray(persistence.adjacency_matrix(graph.vertices, graph.edges), jnp.float64)
        heat = persistence.heat_kernel_signature(adjacency, time=10.0)
        values.append(np.stack([heat, persistence.closeness(adjacency)], -1))
    nodes = np.array([graph.vertices for graph in graphs])
    stacked = persistence.stack_complexes(complexes)
    there = np.arange(nodes.max()) < nodes[:, None]
    padded = np.zeros((*there.shape, 2))
    padded[there] = np.concatenate(values)

    def value(complex: persistence.Complex, own: Array) -> Array:
        measures = persistence.graph_measures(persistence.lower_star(complex, own))
        return sum((persistence.integrate_phi(one, _phi) for one in measures), jnp.zeros(()))

    def all_graphs(values: Array) -> Array:
        return jnp.sum(jax.vmap(value)(stacked, values))

    def over_equals(gradient: np.ndarray) -> np.ndarray:
        """Sums over equal values of one function on one graph."""
        found = []
        for own, slopes in zip(values, np.split(gradient, np.cumsum(nodes)[:-1]), strict=True):
            for column, slope in zip(own.T, slopes.T, strict=True):
                found.append(np.bincount(np.unique(column, return_inverse=True)[1], slope))
        return np.concatenate(found)

    given = {
        "task": "graphs",
        "values": np.concatenate(values),
        "nodes": nodes,
        "edges": np.concatenate([graph.edges for graph in graphs]),
        "edge_counts": np.array([len(graph.edges) for graph in graphs]),
    }
    what = f"H0 and H1, {len(graphs)} graphs of MUTAG, exact grids"
    return _row(what, all_graphs, padded, given, 15.0, quick, where=there, compared=over_equals)


def _images(count: int, quick: bool) -> dict[str, Any]:
    lines = 20

    def value(image: Array) -> Array:
        grid = persistence.make_grid(image.reshape(-1, 2), strategy="regular_closest", resolution=lines)
        counted = persistence.hilbert_planar(persistence.image_filtration(image), grid)
        measures = [DenseMeasure(mobius(one), grid) for one in counted]
        return sum((persistence.integrate_phi(one, _phi) for one in measures), jnp.zeros(()))

    images = np.random.default_rng(0).random((count, 28, 28, 2))
    given = {"task": "images", "images": images, "lines": lines}
    what = f"H0 and H1, {count} random images 28x28, grids ({lines}, {lines})"
    return _row(what, lambda x: jnp.sum(jax.lax.map(value, x)), images, given, 5.0, quick)


def _row(
    what: str,
    loss: Callable[[Array], Array],
    argument: np.ndarray,
    given: Mapping[str, Any],
    target: float,
    quick: bool,
    *,
    where: np.ndarray | slice = slice(None),
    compared: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, Any]:
    """Times both sides. The peer's gradient is compared with ours at `where`, both after `compared`."""
    peer = _peer(dict(given) | {"repetitions": 1 if quick else 5})
    ours = jax.jit(jax.value_and_grad(loss))
    call = functools.partial(ours, jnp.asarray(argument))
    timing = harness.compare({"ours": call}, 5, minimum_s=0.05 if quick else 0.5)["ours"]
    value, gradient = call()
    theirs = compared(peer["gradient"])
    size = float(np.abs(theirs).max())
    error = float(np.abs(compared(np.asarray(gradient)[where]) - theirs).max()) / size
    value_error = abs(float(value) / float(peer["value"]) - 1)
    if not max(error, value_error) <= _TOLERANCE:
        raise ResourceError(
            f"{what}: value {value_error:.2g} and gradient {error:.2g} away from multipers, more than {_TOLERANCE:g}: "
            "nothing to compare"
        )
    seconds = float(np.median(peer["seconds"]))
    return {
        "what": what,
        "value_error": float(f"{value_error:.1e}"),
        "gradient_error": float(f"{error:.1e}"),
        "ours_ms": round(1e3 * timing.median, 3),
        "peer_ms": round(1e3 * seconds, 2),
        "ours_is_x_faster": round(seconds / timing.median, 1),
        "compile_s": round(timing.compilation, 2),
        "target": target,
        "met": seconds / timing.median >= target,
    }


def _experiment(name: str, quick: bool) -> dict[str, Any]:
    """Losses and seconds of an optimisation on both sides."""
    steps = _FIRST + 1 if quick else 101
    config = experiments.Config(experiment=name, points=500 if name == "modes" else 400, rate=_RATE)
    points = experiments.cloud(config).astype(np.float64)
    peer = _peer(
        {
            "task": "optimise",
            "experiment": name,
            "points": points,
            "rate": _RATE,
            "steps": steps,
            "centres": experiments.CENTRES,
            "bandwidth": config.bandwidth,
        }
    )
    optimizer = optax.adam(_RATE)
    step = persistence.point_step(experiments.losses_of(config)["two parameters"], optimizer)
    state = start(jnp.asarray(points), optimizer)
    losses, seconds, host = [], [], []
    for _ in range(steps):
        begin = time.perf_counter()
        padded_delaunay(state.points)
        host.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        state, shown = step(state)
        seconds.append(time.perf_counter() - begin)
        losses.append(shown["loss"])
    difference = np.abs(np.array(losses) - peer["losses"])
    if not difference[:_FIRST].max() <= 1e-8:
        raise ResourceError(
            f"experiment {name}: losses of the first {_FIRST} steps differ by {difference[:_FIRST].max():.2g}"
        )
    own, theirs = sum(seconds[1:]), float(peer["seconds"][1:].sum())
    row = {
        "what": f"{steps - 1} steps of experiment {'A (modes)' if name == 'modes' else 'B (circle)'}, "
        f"{config.points} points",
        "first_10_losses_differ_by": float(f"{difference[:_FIRST].max():.1e}"),
        "agree_to_1e-8_for_steps": int(np.argmax(np.append(difference > 1e-8, True))),
        "loss_first": round(losses[0], 6),
        "loss_last": round(losses[-1], 6),
        "peer_loss_last": round(float(peer["losses"][-1]), 6),
        "last_differs_by_percent": round(100 * abs(losses[-1] / float(peer["losses"][-1]) - 1), 4),
        "ours_ms": round(1e3 * own, 1),
        "ours_triangulation_ms": round(1e3 * sum(host[1:]), 1),
        "peer_ms": round(1e3 * theirs, 1),
        "peer_triangulation_ms": round(1e3 * float(peer["triangulation_seconds"][1:].sum()), 1),
        "ours_is_x_faster": round(theirs / own, 1),
        "compile_s": round(seconds[0] - float(np.median(seconds[1:])), 2),
    }
    return row | ({"target": 1.0, "met": theirs >= own} if name == "circle" else {})


def _peer(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    inputs = {"centre": _CENTRE} | dict(given)
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return run_peer("multipers", arrays, script="multipers_gradients.py")
