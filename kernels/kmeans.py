"""K-means for several numbers of clusters at once: greedy k-means++ seeds, then Lloyd's iterations.

The semantics are scikit-learn's (`KMeans(n_init=1)`), on another random stream. There, runs from one random
state differ between numbers of clusters only where the number of trials does, so that the seeds of 3 clusters are the
first of those of 7; here too.
Reference: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007; Lloyd, 1982.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kernels.lanes import lane_sum


def seeds(key: jax.Array, points: jax.Array, count: int, *, clusters: Sequence[int]) -> jax.Array:
    """Greedy k-means++ seeds: of 2 + floor(ln k) candidates drawn by squared distance, the one that helps most.

    Args:
      key: PRNG key.
      points: [D, n], the first `count` of them points, the rest padding (`pad_to_lanes`).
      count: number of points.
      clusters: numbers of clusters k, each in 1..count.

    Returns:
      [sum of k, D]: the seeds of the first k, then those of the second, and so on.
    """
    trials = sorted({_trials(k) for k in clusters})
    most = [max(k for k in clusters if _trials(k) == t) for t in trials]
    valid = (jnp.arange(points.shape[1]) < count).astype(points.dtype)
    first_key, key = jax.random.split(key)
    first = points[:, jax.random.randint(first_key, (), 0, count)]
    uniform = jax.random.uniform(key, (max(most) - 1, len(trials), max(trials), 1), points.dtype)
    offered = jnp.arange(max(trials)) < jnp.asarray(trials)[:, None]

    def add(closest: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        cumulative = jnp.cumsum(closest, axis=-1)[:, None]
        drawn = jnp.sum(cumulative < u * cumulative[..., -1:], axis=-1)
        candidates = points[:, jnp.minimum(drawn, count - 1)]
        distance = sum((points[i] - candidates[i][..., None]) ** 2 for i in range(len(points))) * valid
        nearer = jnp.minimum(closest[:, None], distance)
        best = jnp.argmin(jnp.where(offered, lane_sum(nearer), jnp.inf), axis=1)
        run = jnp.arange(len(trials))
        return nearer[run, best], candidates[:, run, best]

    start = sum((points[i] - first[i]) ** 2 for i in range(len(points))) * valid
    _, more = jax.lax.scan(add, jnp.broadcast_to(start, (len(trials), start.shape[0])), uniform)
    chosen = jnp.concatenate([jnp.broadcast_to(first[:, None], (1, len(points), len(trials))), more])
    return jnp.concatenate([chosen[:k, :, trials.index(_trials(k))] for k in clusters])


def _trials(clusters: int) -> int:
    return 2 + int(math.log(clusters))


class _Lloyd(NamedTuple):
    centres: jax.Array
    labels: jax.Array
    active: jax.Array
    iteration: jax.Array


def lloyd(
    points: jax.Array, count: int, centres: jax.Array, *, clusters: Sequence[int], max_iterations: int = 300
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's iterations for several numbers of clusters, each until its own labels or centres stand still.

    Centres stand still when the sum of their squared steps is at most 1e-4 times the mean variance of a dimension.
    A cluster that loses all its points keeps its centre (scikit-learn moves it to the farthest point).

    Args:
      points: [D, n], the first `count` of them points, the rest padding.
      count: number of points.
      centres: [sum of k, D], as `seeds` gives them.
      clusters: numbers of clusters k.
      max_iterations: at most so many.

    Returns:
      centres, [sum of k, D], and labels, int32[len(clusters), n], within each number of clusters from 0; those of
      padding are -1.
    """
    valid = jnp.arange(points.shape[1]) < count
    mean = lane_sum(points * valid) / count
    tolerance = 1e-4 * jnp.mean(lane_sum((points - mean[:, None]) ** 2 * valid) / count)
    member = jnp.repeat(jnp.arange(len(clusters)), jnp.asarray(clusters), total_repeat_length=sum(clusters))

    def step(state: _Lloyd) -> _Lloyd:
        assigned = one_hot(state.labels, clusters, points.dtype)
        size = lane_sum(assigned)[:, None]
        sums = jnp.stack([lane_sum(assigned * points[i]) for i in range(len(points))], axis=1)
        # Before the first step no point has a label, and the centres are the seeds.
        moved = jnp.where(size > 0, sums / jnp.maximum(size, 1), state.centres)
        moved = jnp.where(state.active[member][:, None], moved, state.centres)
        distance = jnp.asarray(sum((points[i] - moved[:, i, None]) ** 2 for i in range(len(points))))
        labels = jnp.stack([jnp.where(valid, _argmin(part), -1) for part in split(distance, clusters)])
        shift = jnp.stack([part.sum() for part in split((moved - state.centres) ** 2, clusters)])
        moving = jnp.any(labels != state.labels, axis=1) & (shift > tolerance)
        return _Lloyd(moved, labels, state.active & (moving | (state.iteration == 0)), state.iteration + 1)

    start = _Lloyd(
        centres,
        jnp.full((len(clusters), points.shape[1]), -1, jnp.int32),
        jnp.ones(len(clusters), bool),
        jnp.int32(0),
    )
    last = jax.lax.while_loop(lambda s: jnp.any(s.active) & (s.iteration <= max_iterations), step, start)
    return last.centres, last.labels


def one_hot(labels: jax.Array, clusters: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """[sum of k, n]: 1 where a point carries the label of the row."""
    rows = [jnp.arange(k)[:, None] == labels[i] for i, k in enumerate(clusters)]
    return jnp.concatenate(rows).astype(dtype)


def split(rows: jax.Array, clusters: Sequence[int]) -> list[jax.Array]:
    """The rows of each number of clusters."""
    ends = [sum(clusters[: i + 1]) for i in range(len(clusters))]
    return [rows[end - k : end] for k, end in zip(clusters, ends, strict=True)]


def _argmin(distance: jax.Array) -> jax.Array:
    """First row of the minimum, int32[n], by two minima that vectorise (a joint one does not, on CPUs)."""
    row = jnp.arange(len(distance), dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(distance == distance.min(0), row, len(distance)), axis=0)
