"""The two kernels of ALP-GMM: fits of 2 to 10 Gaussians to 250 x 3 rows in at most 4 ms each, 45 times scikit-learn.

The rows are tasks and learning progress of ALP-GMM on the hypercube, at several fits. scikit-learn's `GaussianMixture`
fits the same rows with the same options, one number of components after the other; both keep the lowest AIC, whose
mean is shown. Many fits lie in one program. Nearest neighbours: 250 tasks among all earlier ones, beside a query of
SciPy's `cKDTree`, and beside building the tree as well, which a history that grows must do from time to time; `grid`
is our sorted one, of up to 3 dimensions. The distances must be equal. All in turns in one process; wall and CPU time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxlab.environments import HypercubeConfig, hypercube_world
from jaxlab.kernels.gaussian_mixtures import fit_mixtures
from jaxlab.kernels.nearest_neighbor import nearest_neighbor
from jaxlab.kernels.neighbor_grid import grid_neighbor, neighbor_grid
from jaxlab.teachers import alp_gmm_teacher, learning_progress, run_teacher_student, task_space

_FIT_RATE = 250
_COMPONENTS = tuple(range(2, 11))
_FIT_TARGET_MS = 4.0
_FIT_TARGET_RATIO = 45.0


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of the fits, then of the neighbours."""
    rows = _practised(8 if quick else 24)
    sizes = (20_000,) if quick else (1000, 20_000, 100_000)
    repetitions = 3 if quick else 9
    return _fits(rows, repetitions, 8 if quick else 192) + [
        row for d in (2, 3, 6) for size in sizes for row in _neighbours(d, size, repetitions)
    ]


def _practised(blocks: int) -> np.ndarray:
    """What ALP-GMM fits to: [blocks - 1, 250, 3], without the uniform block at the start."""
    world, space = hypercube_world(HypercubeConfig()), task_space([(0, 1), (0, 1)])

    @jax.jit
    def rows(key: jax.Array) -> jax.Array:
        _, _, log = run_teacher_student(key, alp_gmm_teacher(), world, space, blocks=blocks)
        tasks, returns = log.tasks.reshape(-1, 2), log.returns.reshape(-1)

        def of_block(block: jax.Array) -> jax.Array:
            size = (block + 1) * _FIT_RATE
            alps = learning_progress(tasks, returns, size=size, count=_FIT_RATE, window=len(tasks))
            return jnp.concatenate([log.tasks[block], alps[:, None]], axis=1)

        return jax.lax.map(of_block, jnp.arange(1, blocks))

    return np.asarray(rows(jax.random.key(0)))


def _fits(rows: np.ndarray, repetitions: int, many: int) -> list[dict[str, Any]]:
    sets, keys = len(rows), jax.random.split(jax.random.key(1), len(rows))
    fit = jax.jit(lambda key, points: fit_mixtures(key, points, components=_COMPONENTS))
    best = {"ours": np.zeros(sets), "scikit-learn": np.zeros(sets)}

    def ours() -> None:
        for i in range(sets):
            best["ours"][i] = fit(keys[i], rows[i]).criteria.min()

    def peer() -> None:
        for i in range(sets):
            best["scikit-learn"][i] = _scikit_learn(rows[i], i)

    found = []
    timings = harness.compare({"ours": ours, "scikit-learn": peer}, repetitions)
    what = f"fit of k = 2..10 to {_FIT_RATE} x 3"
    for row in harness.cpu_rows(what, timings, _FIT_TARGET_RATIO):
        row |= _each(row, sets, _FIT_TARGET_MS) | {"mean_aic": round(float(best[row["who"]].mean()), 1)}
        found.append(row)
    several = jnp.asarray(np.resize(rows, (many, *rows.shape[1:])))
    several_keys = jax.random.split(jax.random.key(2), many)
    together = jax.jit(jax.vmap(lambda key, points: fit_mixtures(key, points, components=_COMPONENTS)))
    timings = harness.compare({"ours": lambda: together(several_keys, several)}, repetitions)
    for row in harness.cpu_rows(f"{many} such fits in one program", timings):
        found.append(row | _each(row, many, _FIT_TARGET_MS))
    return found


def _each(row: dict[str, Any], fits: int, target: float) -> dict[str, Any]:
    """The times of a fit."""
    return {
        "ms_a_fit": round(row["median_ms"] / fits, 3),
        "cpu_ms_a_fit": round(row["cpu_ms"] / fits, 3),
        "target_ms_a_fit": target,
    }


def _scikit_learn(points: np.ndarray, seed: int) -> float:
    """Lowest AIC."""
    from sklearn.mixture import GaussianMixture

    models = (GaussianMixture(k, random_state=seed).fit(points) for k in _COMPONENTS)
    return min(model.aic(points) for model in models)


def _neighbours(d: int, size: int, repetitions: int) -> list[dict[str, Any]]:
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(d)
    points, queries = (rng.random((n, d)).astype(np.float32) for n in (size, _FIT_RATE))
    search, tree = jax.jit(nearest_neighbor), cKDTree(points)
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: search(queries, points),
        "cKDTree, query": lambda: tree.query(queries),
        "cKDTree, build and query": lambda: cKDTree(points).query(queries),
    }
    found = [search(queries, points)[1]]
    if d <= 3:
        low, high = jnp.zeros(d), jnp.ones(d)
        build, by_grid = jax.jit(neighbor_grid), jax.jit(grid_neighbor)
        grid = build(points, low, high)
        contestants["grid, query"] = lambda: by_grid(grid, queries)
        contestants["grid, build and query"] = lambda: by_grid(build(points, low, high), queries)
        found.append(by_grid(grid, queries)[1])
    timings = harness.compare(contestants, repetitions, minimum_s=0.05)
    harness.require_equal(np.sqrt(found), [tree.query(queries)[0]] * len(found), 1e-6)
    return harness.cpu_rows(f"nearest of {size} points to {_FIT_RATE}, d = {d}", timings)
