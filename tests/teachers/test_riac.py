"""RIAC against plain transcriptions of its learning progress, its rings and its splits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from teacher_checks import check_batches, check_samples, updated

from jaxlab.errors import InputError
from jaxlab.teachers import RIACConfig, riac_teacher, task_space
from jaxlab.teachers.riac_split import Episodes, find_split, progress_of_list

SPACE = task_space([(0, 1), (0, 2)])
SMALL = RIACConfig(max_region_size=20, alp_window=12, split_attempts=10, max_nodes=16, max_path=8)


def plain_progress(returns, window):
    """What the reference computes of a list."""
    if len(returns) <= 2:
        return 0.0
    last = np.asarray(returns, float)[-min(len(returns), window) :]
    half = len(last) // 2
    return abs(last[len(last) - half :].mean() - last[: len(last) - half].mean())


@pytest.mark.parametrize(
    ("returns", "window", "expected"),
    [
        ([0, 0, 0.1, 0.2, 0.5, 0.6, 0.9], 200, 0.5916667),
        ([0.3, 0.9], 200, 0.0),
        ([i / 300 for i in range(300)], 200, 1 / 3),
    ],
)
def test_learning_progress_has_the_references_values(returns, window, expected):
    found = progress_of_list(jnp.asarray(returns), jnp.ones(len(returns), bool), window)
    assert float(found) == pytest.approx(expected, abs=1e-5)
    assert plain_progress(returns, window) == pytest.approx(expected, abs=1e-6)


def test_learning_progress_of_members_is_that_of_their_list():
    rng = np.random.default_rng(0)
    run = jax.jit(progress_of_list, static_argnums=2)
    for _ in range(30):
        returns, members = rng.random(25).astype(np.float32), rng.random(25) < rng.random()
        assert float(run(returns, members, 9)) == pytest.approx(plain_progress(returns[members], 9), abs=1e-6)


def episodes_of(rng, count=18):
    tasks = (rng.random((21, 2)) * [1, 2]).astype(np.float32)
    valid = np.arange(21) < count
    return Episodes(jnp.asarray(tasks), jnp.asarray(rng.random(21), jnp.float32), jnp.asarray(valid))


@pytest.mark.parametrize("score", ["paper", "reference"])
def test_the_split_is_the_best_of_its_attempts(score):
    """All draws of `find_split` repeated, and rated by loops."""
    options = dataclasses.replace(SMALL, split_score=score, split_attempts=6, redraws=3)
    low, high = jnp.zeros(2), jnp.asarray([1.0, 2.0])
    run = jax.jit(lambda key, own: find_split(key, own, low, high, SPACE, options))
    found_valid = 0
    for seed in range(25):
        own, key = episodes_of(np.random.default_rng(seed)), jax.random.key(seed)
        dimension_key, threshold_key = jax.random.split(key)
        dimensions = np.asarray(jax.random.randint(dimension_key, (6, 3), 0, 2))
        thresholds = np.asarray(jax.random.uniform(threshold_key, (6, 3))) * np.array([1.0, 2.0])[dimensions]
        tasks, returns = np.asarray(own.tasks)[:18], np.asarray(own.returns)[:18]
        best = None
        for attempt in range(6):
            for d, threshold in zip(dimensions[attempt], thresholds[attempt], strict=True):
                left = tasks[:, d] <= np.float32(threshold)
                if min(left.sum(), (~left).sum()) < 1:
                    continue
                width = [1.0, 2.0][d]
                if min(threshold, width - threshold) / width >= 1 / 15:
                    gap = abs(plain_progress(returns[left], 12) - plain_progress(returns[~left], 12))
                    rating = gap * (4 if score == "reference" else left.sum() * (~left).sum())
                    if best is None or rating >= best[0] - 1e-6:
                        best = (rating, d, threshold)
                break
        split = run(key, own)
        assert bool(split.valid) == (best is not None)
        if best is not None:
            found_valid += 1
            assert (int(split.dimension), float(split.threshold)) == pytest.approx(best[1:], abs=1e-6)
    assert found_valid > 15


@pytest.fixture(scope="module")
def learnt():
    """A teacher after 90 episodes whose returns grow at low tasks."""
    rng = np.random.default_rng(3)
    tasks = (rng.random((90, 2)) * [1, 2]).astype(np.float32)
    returns = np.where(tasks[:, 0] < 0.4, np.arange(90) / 90, 0.1).astype(np.float32)
    teacher = riac_teacher(SMALL)
    start = teacher.init(jax.random.key(0), SPACE)
    return teacher, start, updated(teacher, start, tasks, returns), tasks, returns


def test_regions_are_halves_of_their_parents_and_hold_their_own_last_episodes(learnt):
    _, _, state, tasks, returns = learnt
    nodes = int(state.nodes)
    assert nodes > 1 and nodes % 2 == 1 and int(state.leaf.sum()) == (nodes + 1) // 2
    low, high = np.asarray(state.low)[:nodes], np.asarray(state.high)[:nodes]
    volume = np.prod(high - low, axis=1)
    assert volume[np.asarray(state.leaf)[:nodes]].sum() == pytest.approx(2.0, rel=1e-5)
    for first in range(1, nodes, 2):
        union = np.minimum(low[first], low[first + 1]), np.maximum(high[first], high[first + 1])
        assert any(np.array_equal(union, (low[p], high[p])) for p in range(first))
    # The root keeps the last 21 episodes; progress is that of each region's own list.
    order = (np.asarray(state.oldest)[:, None] + np.arange(21)) % 21
    for node in range(nodes):
        count = int(state.counts[node])
        kept = np.asarray(state.returns)[node][order[node]][:count]
        inside = np.all((tasks >= low[node]) & (tasks <= high[node]), axis=1)
        np.testing.assert_array_equal(kept, returns[inside][len(returns[inside]) - count :])
        assert float(state.alp[node]) == pytest.approx(plain_progress(kept, 12), abs=1e-5)
    assert int(state.counts[0]) == 21


def test_regions_are_drawn_by_progress(learnt):
    teacher, _, state, _, _ = learnt
    tasks = check_samples(teacher, state, SPACE, n=4000)
    nodes = int(state.nodes)
    low, high, alp = (np.asarray(own)[:nodes] for own in (state.low, state.high, state.alp))
    edges = np.linspace(0, 1, 6)
    share = np.zeros(5)
    for node in range(nodes):
        covered = np.clip(
            np.minimum(edges[1:], high[node, 0]) - np.maximum(edges[:-1], low[node, 0]), 0, None
        )
        share += 0.7 * alp[node] / alp.sum() * covered / (high[node, 0] - low[node, 0])
    share += 0.2 / 5
    counts = np.histogram(tasks[:, 0], edges)[0]
    # A tenth is mutated from the worst task, wherever that is: the rest must be there.
    assert (counts >= 4000 * share - 4 * np.sqrt(4000 * share)).all()
    assert chisquare(counts, 4000 * np.full(5, 0.2)).pvalue < 1e-3


def test_without_a_valid_split_a_quarter_is_forgotten():
    teacher = riac_teacher(SMALL)
    state = updated(
        teacher, teacher.init(jax.random.key(0), SPACE), np.full((21, 2), 0.5), np.arange(21) / 21
    )
    assert int(state.nodes) == 1 and int(state.counts[0]) == 16
    assert float(state.alp[0]) == pytest.approx(plain_progress(np.arange(5, 21) / 21, 12), abs=1e-6)


def test_a_full_tree_says_so():
    small = riac_teacher(dataclasses.replace(SMALL, max_nodes=3))
    rng = np.random.default_rng(0)
    tasks = rng.random((120, 2)) * [1, 2]
    state = updated(small, small.init(jax.random.key(0), SPACE), tasks, rng.random(120))
    assert int(state.nodes) == 3 and bool(small.metrics(state)["overflow"])


def test_batches_are_single_updates_also_across_splits():
    state = check_batches(riac_teacher(SMALL), SPACE)
    assert int(state.nodes) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_region_size": 0}, "max_region_size is 0"),
        ({"min_extent_ratio": 1.0}, "min_extent_ratio is 1.0"),
        ({"discard_ratio": 0.001}, "discard_ratio is 0.001"),
        ({"split_score": "best"}, "split_score is 'best'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RIACConfig(**options)
