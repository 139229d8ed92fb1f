"""Signed measures on two cores against multipers: Euler of Rips 50 times, H_0 of function-Rips 10, images 5, MUTAG 20.

H_1 of Rips at least 0.7 times. Ours and multipers 2.3.2 (in an environment of its own) get the same numbers and grid;
all measures must be equal integer for integer, or there is no row. multipers rounds to the nearest line of a grid, we
round up as the paper does, so it gets the rounded values. `peer_ms` is multipers from distances, pixels or edges to the
measure, with its edge collapse for H_1; `peer_measure_ms` is its last call alone, on a complex that is there already.
Ours goes from distances, pixels or node values to weights on the grid, compiled; `compile_s` is apart. For MUTAG the
claim is about the peer's last call alone, for everything else about the whole.

200 random complexes by 2 and by 3 parameters are compared as well, without a clock.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab import persistence
from jaxlab.errors import ResourceError
from jaxlab.persistence import Filtration, Grid, hilbert_h0_dense, hilbert_rips_h1, mobius

_PEER = "multipers"


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all sizes."""
    rows: list[dict[str, Any]] = []
    for n in (50,) if quick else (50, 100, 200):
        rows += _rips(n, quick)
    for size in (28,) if quick else (28, 64, 128):
        rows += _image(f"random image {size}x{size}", _random_image(size), quick)
    rows += _image("digit 8x8, intensity and distance to the edge", _digit(), quick)
    graphs = run_peer(_PEER, {"task": np.array("mutag")})
    for lines in (None,) if quick else (None, 50):
        rows += _graphs(graphs, lines, quick)
    rows += [_random_complexes(p, 20 if quick else 100) for p in (2, 3)]
    return rows


def noisy_circle(n: int) -> tuple[jax.Array, jax.Array]:
    """Distances of points about the unit circle, and their codensity."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, n)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(size=(n, 2)) * 0.1
    distances = persistence.pairwise_distance(jnp.asarray(points, jnp.float32))
    return distances, persistence.codensity(distances, bandwidth=0.3)[:, None]


def _rips(n: int, quick: bool) -> list[dict[str, Any]]:
    distances, values = noisy_circle(n)
    grid = persistence.rips_grid(distances, values, strategy="regular_closest", resolution=(50, min(50, n)))
    ours = {
        "euler": lambda d, v: persistence.euler_rips_measure(d, v, grid).weights,
        "h0": lambda d, v: mobius(hilbert_h0_dense(d, v, grid)),
        "h1": lambda d, v: mobius(hilbert_rips_h1(d, v, grid)[0]),
    }
    kinds = {"euler": ("Euler of the Rips 2-skeleton", 50.0), "h0": ("H0 of function-Rips", 10.0)}
    kinds["h1"] = ("H1 of function-Rips", 0.7)
    rounded = _round_up(values, Grid(grid.coords[1:]))[:, 0]
    scale = _round_up(distances[..., None], Grid(grid.coords[:1]))[..., 0]
    given = {"task": "rips", "distances": scale, "values": rounded}
    peer = _peer(given, grid, 3 if quick or n > 100 else 9)
    rows = []
    for key, (what, target) in kinds.items():
        mine = jax.jit(lambda d, v, key=key: {key: ours[key](d, v)})
        call = functools.partial(mine, distances, values)
        rows.append(_row(f"{what}, n={n}, grid {grid.shape}", call, {key: peer[key]}, grid, target, quick))
    return rows


def _image(what: str, image: np.ndarray, quick: bool) -> list[dict[str, Any]]:
    lines = jnp.linspace(0, 1, 20)
    grid = Grid((lines, lines))
    filtration = persistence.image_filtration(jnp.asarray(image))

    @jax.jit
    def ours(pixels: jax.Array) -> dict[str, jax.Array]:
        lower = persistence.lower_star(filtration.complex, pixels)
        return {f"h{d}": mobius(h) for d, h in enumerate(persistence.hilbert_planar(lower, grid))}

    pixels = jnp.asarray(image.reshape(-1, 2))
    peer = _peer({"task": "image", "image": _round_up(image, grid)}, grid, 3 if quick else 7)
    target = 5.0 if "random" in what else None
    call = functools.partial(ours, pixels)
    return [_row(f"H0 and H1, {what}, grid {grid.shape}", call, peer, grid, target, quick)]


def _graphs(graphs: Mapping[str, np.ndarray], lines: int | None, quick: bool) -> list[dict[str, Any]]:
    """Heat kernel signature and inverse degree on all graphs of MUTAG, one program for all."""
    nodes, counts = graphs["nodes"], graphs["edge_counts"]
    edges = np.split(graphs["edges"], np.cumsum(counts)[:-1])
    complex = persistence.stack_complexes(
        [persistence.simplicial_complex(n, e) for n, e in zip(nodes, edges, strict=True)]
    )
    adjacency = jnp.stack(
        [
            jnp.asarray(persistence.adjacency_matrix(int(nodes.max()), e))
            for n, e in zip(nodes, edges, strict=True)
        ]
    )
    heat = jax.vmap(lambda a: persistence.heat_kernel_signature(a, time=10.0))(adjacency)
    values = np.asarray(jnp.stack([heat, jax.vmap(persistence.inverse_degree)(adjacency)], -1))
    real = np.concatenate([own[:n] for own, n in zip(values, nodes, strict=True)])
    first = persistence.make_grid([real[:, 0]], strategy="quantile", resolution=50).coords[0]
    if lines is None:
        second = persistence.distinct_lines(persistence.make_grid([real[:, 1]])).coords[0]
    else:
        second = jnp.linspace(real[:, 1].min(), real[:, 1].max(), lines)
    grid = Grid((first, second))

    @jax.jit
    def ours(complex: persistence.Complex, values: jax.Array) -> dict[str, jax.Array]:
        def one(own: persistence.Complex, f: jax.Array) -> dict[str, jax.Array]:
            lower = persistence.lower_star(own, f)
            h0, h1 = persistence.hilbert_planar(lower, grid)
            euler = persistence.euler_measure(lower, grid).weights
            return {"h0": mobius(h0), "h1": mobius(h1), "euler": euler}

        return jax.vmap(one)(complex, values)

    given = {
        "task": "graphs",
        "nodes": nodes,
        "values": _round_up(real, grid),
        "edges": graphs["edges"],
        "edge_counts": counts,
    }
    peer = _peer(given, grid, 3 if quick else 7)
    what = f"H0, H1 and Euler, {len(nodes)} graphs of MUTAG, grid {grid.shape}"
    target = 20.0 if lines is None else None
    call = functools.partial(ours, complex, jnp.asarray(values))
    return [_row(what, call, peer, grid, target, quick, batch=len(nodes), on="measure")]


def _random_complexes(parameters: int, count: int) -> dict[str, Any]:
    """No clock: equality on random complexes of dimension 2 with many equal grades."""
    rng = np.random.default_rng(parameters)
    i, j, k = (a.reshape(-1) for a in np.indices((6, 6, 6)))
    pairs = np.argwhere(np.triu(np.ones((6, 6)), 1))
    triples = np.stack([i, j, k], 1)[(i < j) & (j < k)]
    filtrations = []
    corners: list[list[np.ndarray]] = [[], [], []]
    for _ in range(count):
        edges = pairs[rng.random(len(pairs)) < 0.7]
        there = {tuple(edge) for edge in edges.tolist()}
        closed = [{(a, b), (a, c), (b, c)} <= there for a, b, c in triples.tolist()]
        faces = triples[np.array(closed) & (rng.random(len(triples)) < 0.7)]
        complex = persistence.simplicial_complex(6, edges, faces)
        grades = [jnp.asarray(rng.integers(0, 4, (size, parameters)), jnp.float32) for size in complex.sizes]
        filtrations.append(persistence.raise_to_faces(complex, grades))
        for own, cells in zip(corners, (np.arange(6)[:, None], edges, faces), strict=True):
            own.append(cells)
    grid = Grid((jnp.arange(4.0),) * parameters)
    given: dict[str, Any] = {
        "task": "complexes",
        "cells": np.array([[len(c) for c in own] for own in zip(*corners, strict=True)]),
    }
    for dimension, own in enumerate(corners):
        given[f"corners_{dimension}"] = np.concatenate(own)
        grades = [f.grades[dimension] for f in filtrations if dimension < len(f.grades)]
        given[f"grades_{dimension}"] = np.concatenate(grades)
    peer = _peer(given, grid, 1)
    complex = persistence.stack_complexes([f.complex for f in filtrations], sizes=(6, 15, 20))
    stacked = []
    for dimension, size in enumerate(complex.sizes):
        own = [
            f.grades[dimension] if dimension < len(f.grades) else jnp.zeros((0, parameters))
            for f in filtrations
        ]
        stacked.append(
            jnp.stack([jnp.pad(g, ((0, size - len(g)), (0, 0)), constant_values=jnp.inf) for g in own])
        )

    @jax.jit
    @jax.vmap
    def ours(filtration: Filtration) -> dict[str, jax.Array]:
        found = {
            f"h{d}": persistence.signed_measure(filtration, grid, degree=d, backend="generic").weights
            for d in (0, 1)
        }
        return found | {"euler": persistence.euler_measure(filtration, grid).weights}

    found = ours(Filtration(complex, tuple(stacked)))
    _require_equal(f"random complexes by {parameters} parameters", peer, found, grid, count)
    return {"what": f"{count} random complexes by {parameters} parameters: H0, H1 and Euler", "equal": True}


def _round_up(values: Any, grid: Grid) -> np.ndarray:
    """Every value moved to the first line at or above it; +inf where there is none."""
    ranks = np.asarray(persistence.grid_ranks(jnp.asarray(values), grid))
    lines = [np.append(np.asarray(c), np.inf) for c in grid.coords]
    return np.stack([own[ranks[..., i]] for i, own in enumerate(lines)], -1)


def _peer(given: Mapping[str, Any], grid: Grid, repetitions: int) -> dict[str, Any]:
    """The peer's measures as weights on the grid by name, each with its seconds."""
    lines = {f"lines{i}": np.asarray(c, np.float64) for i, c in enumerate(grid.coords)}
    arrays = {name: np.asarray(value) for name, value in (given | lines).items()}
    arrays = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in arrays.items()}
    found = run_peer(_PEER, arrays | {"repetitions": np.array(repetitions)})
    return {
        name.removesuffix("_points"): {
            "points": points,
            "weights": found[name.replace("_points", "_weights")],
            **{
                kind: found[f"{name.removesuffix('_points') if single else 'h'}_{kind}"]
                for kind in ("whole", "measure")
                for single in [f"{name.removesuffix('_points')}_{kind}" in found]
            },
        }
        for name, points in found.items()
        if name.endswith("_points")
    }


def _dense(atoms: Mapping[str, np.ndarray], grid: Grid, batch: int | None) -> np.ndarray:
    points = atoms["points"]
    first = [points[:, 0].astype(int)] if batch else []
    rest = points[:, 1:] if batch else points
    index = [np.searchsorted(np.asarray(c, np.float64), x) for c, x in zip(grid.coords, rest.T, strict=True)]
    weights = np.zeros(([batch] if batch else []) + [*grid.shape], np.int64)
    np.add.at(weights, (*first, *index), atoms["weights"])
    return weights


def _require_equal(
    what: str, peer: Mapping[str, Any], ours: Mapping[str, Any], grid: Grid, batch: int | None
) -> None:
    for name, weights in ours.items():
        theirs = _dense(peer[name], grid, batch)
        if not np.array_equal(np.asarray(weights), theirs):
            wrong = int((np.asarray(weights) != theirs).sum())
            raise ResourceError(
                f"{what}: {name} differs from multipers in {wrong} weights: nothing to compare"
            )


def _row(
    what: str,
    call: Callable[[], Mapping[str, Any]],
    peer: Mapping[str, Any],
    grid: Grid,
    target: float | None,
    quick: bool,
    *,
    batch: int | None = None,
    on: str = "whole",
) -> dict[str, Any]:
    timing = harness.compare({"ours": call}, 5, minimum_s=0.05 if quick else 0.5)["ours"]
    _require_equal(what, peer, call(), grid, batch)
    # Results that come from one call of the peer share its seconds.
    series = {id(own["whole"]): own for own in peer.values()}.values()
    seconds = {kind: sum(float(np.median(own[kind])) for own in series) for kind in ("whole", "measure")}
    row = {
        "what": what,
        "equal": True,
        "ours_ms": round(1e3 * timing.median, 3),
        "peer_ms": round(1e3 * seconds["whole"], 2),
        "peer_measure_ms": round(1e3 * seconds["measure"], 2),
        "ours_is_x_faster": round(seconds[on] / timing.median, 1),
        "compile_s": round(timing.compilation, 2),
    }
    return row | ({"target": target, "met": seconds[on] / timing.median >= target} if target else {})


def _random_image(size: int) -> np.ndarray:
    return np.random.default_rng(0).random((size, size, 2), np.float32)


def _digit() -> np.ndarray:
    """A handwritten digit: darkness, and distance to the nearest strong edge, both within [0, 1]."""
    from sklearn.datasets import load_digits

    digit = (load_digits().images[8] / 16).astype(np.float32)
    return np.stack([1 - digit, np.asarray(persistence.edge_distance(jnp.asarray(digit)))], -1)
