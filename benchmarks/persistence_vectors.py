"""Vectors of the measures of MUTAG on two cores against multipers: sliced Wasserstein 10 times, convolution 100.

H_0 measures of all 188 graphs by heat kernel signature and closeness on a grid of quantiles, rescaled to a unit square.
Sliced Wasserstein: the matrix of all pairs by the same 50 directions, masses balanced beforehand at (1.1, 1.1).
Convolution: 50x50 samples, bandwidth 0.1; multipers divides by the number of atoms and by 2 pi b^2 (our
normalization="kde"), and calls KeOps, whose compilation is in `peer_first_s` alone; later runs find it in its cache.
Ours goes from dense weights to the matrix or the images, in float32 as it is used and in float64 as multipers computes;
values must agree, or there is no row. Ours compiles in `compile_s`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab import data, persistence
from jaxlab.errors import ResourceError
from jaxlab.persistence import DenseMeasure, Grid

_DIRECTIONS = 50
_SAMPLES = 50
_BANDWIDTH = 0.1
_CORNER = 1.1
_TOLERANCES = {"float32": 2e-5, "float64": 1e-12}


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of both, in both precisions."""
    weights, grid = mutag_measures(40 if quick else None)
    rows = []
    for make in (_sliced_wasserstein, _convolution):
        rows += make(weights, grid, quick)
    return rows


def mutag_measures(count: int | None) -> tuple[np.ndarray, Grid]:
    """Weights of H_0 measures, [graphs, 20, 20], and their lines in the unit square."""
    source = persistence.GraphFunctions(("hks:10", "closeness"))
    features = persistence.SignedMeasureFeatures(source, degrees=(0,), resolution=20)
    graphs = data.tu_graphs("MUTAG")[:count]
    return features.fit(graphs).measures(graphs)[0], features.unit_grid()


def _balanced(weights: Array, grid: Grid) -> DenseMeasure:
    found = persistence.balance_mass(DenseMeasure(weights, grid), jnp.full(2, _CORNER, grid.coords[0].dtype))
    assert isinstance(found, DenseMeasure)
    return found


def _sliced_wasserstein(weights: np.ndarray, grid: Grid, quick: bool) -> list[dict[str, Any]]:
    # The directions that multipers draws.
    vectors = np.random.RandomState(42).normal(0, 1, (_DIRECTIONS, 2))
    directions = (vectors / np.linalg.norm(vectors, axis=1)[:, None]).T
    balanced = jax.vmap(lambda own: _balanced(own, grid).weights)(jnp.asarray(weights))
    given = {"task": "sliced-wasserstein", "directions": _DIRECTIONS}
    lines = _balanced(jnp.asarray(weights[0]), grid).grid

    def ours(weights: Array, coords: tuple[Array, Array], directions: Array) -> Array:
        points = jnp.stack([one.reshape(-1) for one in jnp.meshgrid(*coords, indexing="ij")], -1)
        vectors = persistence.sw_embedding(points, weights.reshape(len(weights), -1), directions)
        return persistence.sw_matrix(vectors, vectors)

    what = f"sliced Wasserstein matrix, {len(weights)} measures of MUTAG, {_DIRECTIONS} directions"
    return _rows(what, ours, np.asarray(balanced), lines, (directions,), given, 10.0, quick)


def _convolution(weights: np.ndarray, grid: Grid, quick: bool) -> list[dict[str, Any]]:
    samples = np.linspace(0, 1, _SAMPLES)
    given = {"task": "convolution", "lines0": samples, "lines1": samples, "bandwidth": _BANDWIDTH}

    def ours(weights: Array, coords: tuple[Array, Array], samples: Array) -> Array:
        def image(own: Array) -> Array:
            measure = DenseMeasure(own, Grid(coords))
            return persistence.convolve(
                measure, Grid((samples, samples)), bandwidth=_BANDWIDTH, normalization="kde"
            )

        return jax.vmap(image)(weights)

    what = f"convolution, {len(weights)} measures of MUTAG on {_SAMPLES}x{_SAMPLES}"
    return _rows(what, ours, weights, grid, (samples,), given, 100.0, quick)


def _rows(
    what: str,
    ours: Callable[..., Array],
    weights: np.ndarray,
    grid: Grid,
    further: tuple[np.ndarray, ...],
    given: Mapping[str, Any],
    target: float,
    quick: bool,
) -> list[dict[str, Any]]:
    """Times multipers once, ours in both precisions, on the same measures."""
    lines = [np.asarray(one, np.float64) for one in grid.coords]
    own, *place = np.nonzero(weights)
    inputs = {
        "points": np.stack([one[i] for one, i in zip(lines, place, strict=True)], -1),
        "weights": weights[np.nonzero(weights)],
        "counts": np.bincount(own, minlength=len(weights)),
        "repetitions": 1 if quick else 3,
    }
    arrays = {name: np.asarray(value) for name, value in (dict(given) | inputs).items()}
    peer = run_peer("multipers", arrays, script="multipers_vectors.py")
    theirs = peer["values"].reshape(len(weights), -1)
    seconds = float(np.median(peer["seconds"]))
    rows = []
    for dtype, tolerance in _TOLERANCES.items():
        with jax.enable_x64(dtype == "float64"):
            coords = tuple(jnp.asarray(one, dtype) for one in lines)
            rest = [jnp.asarray(one, dtype) for one in further]
            call = functools.partial(jax.jit(ours), jnp.asarray(weights), coords, *rest)
            timing = harness.compare({"ours": call}, 5, minimum_s=0.05 if quick else 1.0)["ours"]
            found = np.asarray(call(), np.float64).reshape(len(weights), -1)
        error = float(np.abs(found - theirs).max() / np.abs(theirs).max())
        if not error <= tolerance:
            raise ResourceError(
                f"{what}: {error:.2g} away from multipers in {dtype}, more than {tolerance:g}: nothing to compare"
            )
        rows.append(
            {
                "what": what,
                "ours_in": dtype,
                "error": float(f"{error:.1e}"),
                "ours_ms": round(1e3 * timing.median, 3),
                "peer_ms": round(1e3 * seconds, 1),
                "ours_is_x_faster": round(seconds / timing.median, 1),
                "compile_s": round(timing.compilation, 2),
                "peer_first_s": round(float(peer["first"]), 2),
                "target": target,
                "met": seconds / timing.median >= target,
            }
        )
    return rows
