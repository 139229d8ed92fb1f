"""PLR: when it replays and what a robust student learns from, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds, random_feedback
from teacher_checks import check_batches, check_samples, feedback

from jaxlab.environments import HypercubeConfig, hypercube_world
from jaxlab.errors import InputError
from jaxlab.teachers import (
    KINETIX_PLR,
    PLRConfig,
    best_return,
    plr_teacher,
    run_teacher_student,
    student_learns,
    task_space,
)

SPACE = task_space([(0, 1), (-2, 2)])


def from_return(episode):
    return episode.ret * (1 - episode.ret)


SMALL = PLRConfig(capacity=8, min_fill=0.5, score=from_return)


def test_nothing_is_replayed_before_the_buffer_is_full_enough_and_then_as_often_as_asked():
    teacher = plr_teacher(SMALL)
    state = teacher.init(jax.random.key(0), SPACE)
    draw = jax.jit(teacher.sample_batch, static_argnums=2)
    update = jax.jit(teacher.update)
    for i in range(4):
        assert float(teacher.metrics(state)["replay_share"]) == 0
        task = check_samples(teacher, state, SPACE, n=20)[i]
        state = update(state, task, jnp.float32(0.1 * (i + 1)))
    tasks, _ = draw(state, jax.random.key(3), 2000)
    held = np.asarray(state.buffer.levels[:4])
    old = np.any(np.all(np.asarray(tasks)[:, None] == held[None], axis=2), axis=1)
    assert old.mean() == pytest.approx(0.8, abs=0.03)
    fresh = np.asarray(tasks)[~old]
    np.testing.assert_allclose(fresh.mean(0), [0.5, 0.0], atol=0.2)


def test_a_robust_student_learns_from_awaited_replays_alone():
    config = PLRConfig(capacity=4, min_fill=0.25, replay_probability=1.0, robust=True, score=from_return)
    teacher = plr_teacher(config)
    sample, update = jax.jit(teacher.sample), jax.jit(teacher.update)
    state = teacher.init(jax.random.key(0), SPACE)
    first, state = sample(state, jax.random.key(1))
    learns = jax.jit(lambda state, tasks: student_learns(config, state, tasks))
    assert not bool(learns(state, first[None])[0])
    state = update(state, first, jnp.float32(0.3))
    assert not bool(learns(state, first[None])[0])
    assert float(best_return(state, first)) == pytest.approx(0.3)
    again, state = sample(state, jax.random.key(2))
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(learns(state, jnp.stack([first, first + 0.1])), [True, False])
    state = update(state, first, jnp.float32(0.2))
    assert not bool(learns(state, first[None])[0])
    assert float(best_return(state, first)) == pytest.approx(0.3)
    assert float(best_return(state, first + 0.1)) == -np.inf
    np.testing.assert_allclose(state.buffer.scores[0], 0.2 * 0.8, rtol=1e-6)
    assert np.all(student_learns(SMALL, state, jnp.stack([first, first + 0.1])))


def test_scores_told_by_the_student_are_used_and_those_not_finite_are_noted():
    teacher = plr_teacher(PLRConfig(capacity=4))
    state = teacher.init(jax.random.key(0), SPACE)
    told = feedback([[0.1, 0], [0.2, 0], [0.3, 0]], [1, 2, 3])._replace(score=jnp.float32([0.5, np.nan, 0.7]))
    state = jax.jit(teacher.update_batch)(state, jax.random.key(0), told)
    np.testing.assert_allclose(state.buffer.scores[:2], [0.5, 0.7])
    assert int(state.buffer.size) == 2 and int(teacher.metrics(state)["error"]) == 16


@pytest.mark.parametrize("prioritization", ["rank", "proportional"])
def test_batches_are_single_updates(prioritization):
    config = PLRConfig(capacity=8, prioritization=prioritization, score=from_return)
    state = check_batches(plr_teacher(config), SPACE, sizes=(40, 40))
    assert int(state.buffer.size) == 8


def test_seeds_side_by_side_are_single_runs():
    teacher = plr_teacher(PLRConfig(capacity=8, score=from_return))
    start = teacher.init(jax.random.key(0), SPACE)
    states = check_seeds(teacher, start, random_feedback(feedback, SPACE, 40), draws=20)
    assert float(teacher.metrics(states[0])["replay_share"]) == pytest.approx(0.8)


@pytest.mark.slow
def test_replay_masters_far_more_of_the_hypercube_than_random_tasks_do():
    """Of 10 x 10 cells the reference's Random masters none in 8,000 episodes, and this one about 1 at 10,000."""
    world, space = hypercube_world(HypercubeConfig(cells=10)), task_space([(0, 1), (0, 1)])
    teacher = plr_teacher(PLRConfig(capacity=512, score=from_return))
    play = jax.jit(lambda key: run_teacher_student(key, teacher, world, space, blocks=32)[2].score[-1])
    assert float(play(jax.random.key(0))) > 20


def test_density_of_the_sampler_integrates_to_one():
    teacher = plr_teacher(PLRConfig(capacity=3, score=from_return))
    line = task_space([(0, 1)])
    state = teacher.init(jax.random.key(0), line)
    grid = jnp.linspace(0, 1, 2001)[:, None]
    density = jax.jit(lambda state: jnp.exp(teacher.density(state, grid)).mean())
    assert float(density(state)) == pytest.approx(1, abs=1e-3)
    update = jax.jit(teacher.update)
    for x in (0.3, 0.6):
        state = update(state, jnp.float32([x]), jnp.float32(x))
    assert float(density(state)) == pytest.approx(1, abs=1e-2)
    log = jax.jit(teacher.density)(state, jnp.float32([[0.3], [0.45]]))
    assert float(log[0]) > float(log[1]) == pytest.approx(np.log(0.2), abs=1e-3)


def test_kinetix_replays_less_and_more_evenly():
    assert (KINETIX_PLR.replay_probability, KINETIX_PLR.staleness, KINETIX_PLR.temperature) == (0.5, 0.3, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"replay_probability": 1.5}, "replay_probability is 1.5"),
        ({"min_fill": -0.1}, "min_fill is -0.1"),
        ({"staleness": 2.0}, "staleness is 2.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"prioritization": "best"}, "prioritization is 'best'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PLRConfig(**options)
