"""The toy world against the spec's case and an independent transcription that keeps cells as tuples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.environments import HypercubeConfig, hypercube_world
from jaxlab.errors import InputError

KEY = jax.random.key(0)


def play(config, tasks):
    world = hypercube_world(config)

    @jax.jit
    def run(tasks):
        return jax.lax.scan(lambda state, task: world.episode(state, KEY, task), world.init(KEY), tasks)

    state, returns = run(jnp.asarray(tasks, jnp.float32))
    return state, np.asarray(returns), float(world.score(state))


class PlainWorld:
    """The rules of the reference, said with dictionaries and exact rationals for the borders."""

    def __init__(self, dimensions, cells):
        self.dimensions, self.cells = dimensions, cells
        self.competence = dict.fromkeys(itertools.product(range(cells), repeat=dimensions), 0)

    def episode(self, task):
        cell = tuple(
            max(i for i in range(self.cells) if np.float32(p) * np.float32(self.cells) >= i)
            for p in task[: self.dimensions]
        )
        ways = itertools.product(*[{i, max(0, i - 1)} for i in cell])
        if cell == (0,) * self.dimensions or any(self.competence[j] >= 75 for j in ways if j != cell):
            self.competence[cell] = min(self.competence[cell] + 1, 100)
        return self.competence[cell] / 100

    def score(self):
        return 100 * np.mean([c > 75 for c in self.competence.values()])


def test_scripted_visits_give_the_references_returns():
    tasks = [(0.1, 0.1)] * 75 + [
        (0.3, 0.1),
        (0.3, 0.3),
        (0.1, 0.3),
        (0.9, 0.9),
        (0.25, 0.1),
        (1, 1),
        (0.24999, 0.1),
    ]
    state, returns, score = play(HypercubeConfig(cells=4), tasks)
    np.testing.assert_allclose(returns[74:], [0.75, 0.01, 0.01, 0.01, 0, 0.02, 0, 0.76], atol=1e-7)
    competence = np.asarray(state.competence).reshape(4, 4)
    expected = np.zeros((4, 4), int)
    expected[:2, :2] = [[76, 1], [2, 1]]
    assert np.array_equal(competence, expected)
    assert score == 6.25


@pytest.mark.parametrize(("dimensions", "cells", "distractors"), [(1, 9, 2), (2, 6, 0), (2, 9, 1), (3, 3, 0)])
def test_random_visits_are_those_of_a_plain_transcription(dimensions, cells, distractors):
    """Visits near the frontier, so that cells get mastered and capped."""
    rng = np.random.default_rng(dimensions)
    tasks = rng.random((6000, dimensions + distractors)).astype(np.float32) ** 3
    plain = PlainWorld(dimensions, cells)
    expected = [plain.episode(task) for task in tasks]
    state, returns, score = play(HypercubeConfig(dimensions, cells, distractors), tasks)
    np.testing.assert_allclose(returns, expected, atol=1e-7)
    assert np.array_equal(state.competence, [plain.competence[c] for c in sorted(plain.competence)])
    assert score == pytest.approx(plain.score(), abs=1e-4)
    assert max(plain.competence.values()) == 100 and plain.score() > 0
    assert not state.out_of_range


@pytest.mark.parametrize("cells", [6, 9, 10, 30])
def test_every_cell_has_its_own_bin_borders_included(cells):
    """In float32 0.1, 0.3 and 0.7 of ten cells begin cells 1, 3 and 7, and 1 lies in the last."""
    world = hypercube_world(HypercubeConfig(dimensions=1, cells=cells))
    borders = np.float32(np.arange(cells + 1)) / np.float32(cells)
    inside = (np.arange(cells) + 0.5) / cells
    everything = world.init(KEY)._replace(competence=jnp.full(cells, 75))

    @jax.jit
    @jax.vmap
    def visited(p):
        state, _ = world.episode(everything, KEY, p[None])
        return jnp.argmax(state.competence)

    assert np.array_equal(visited(jnp.asarray(inside, jnp.float32)), np.arange(cells))
    assert np.array_equal(visited(jnp.asarray(borders)), np.minimum(np.arange(cells + 1), cells - 1))


def test_mastery_is_above_75_and_unlocking_from_75():
    world = hypercube_world(HypercubeConfig(dimensions=1, cells=2))
    state = world.init(KEY)._replace(competence=jnp.array([75, 0]))
    assert float(world.score(state)) == 0
    _, locked = world.episode(state._replace(competence=jnp.array([74, 0])), KEY, jnp.array([0.9]))
    state, opened = world.episode(state, KEY, jnp.array([0.9]))
    assert (float(locked), float(opened)) == (0, pytest.approx(0.01))
    state, _ = world.episode(state, KEY, jnp.array([0.1]))
    assert float(world.score(state)) == 50


def test_bad_tasks_and_sizes_are_refused():
    world = hypercube_world(HypercubeConfig())
    state = world.init(KEY)
    with pytest.raises(InputError, match=r"task is \[0.5, 1.5\]"):
        world.episode(state, KEY, jnp.array([0.5, 1.5]))
    with pytest.raises(InputError, match=r"task has shape \(3,\)"):
        world.episode(state, KEY, jnp.zeros(3))
    with pytest.raises(InputError, match="cells is 0"):
        HypercubeConfig(cells=0)
    state, _ = jax.jit(world.episode)(state, KEY, jnp.array([0.5, 1.5]))
    assert state.out_of_range
