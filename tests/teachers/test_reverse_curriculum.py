"""Reverse curriculum: pools by hand, a student whose reach grows, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds
from teacher_checks import check_batches, check_samples, feedback

from jaxlab.errors import InputError
from jaxlab.teachers import ReverseCurriculumConfig, brownian_start, reverse_curriculum_teacher, task_space
from jaxlab.teachers.reverse_curriculum import good_starts

SPACE = task_space([(0, 1), (-2, 2)])
GOAL = (0.25, 0.0)


def shifted(key, start, space):
    del key, space
    return start + jnp.array([0.125, 0.0])


SMALL = ReverseCurriculumConfig(
    goal=GOAL, new_starts=6, old_starts=4, episodes=30, archive=16, nearby=shifted, success_return=0.5
)


@pytest.fixture(scope="module")
def started():
    teacher = reverse_curriculum_teacher(SMALL)
    return teacher, jax.jit(teacher.init)(jax.random.key(0), SPACE), jax.jit(teacher.update_batch)


def told(tasks, wins):
    return feedback(tasks, wins, success_return=0.5)


def test_the_first_pool_is_near_the_goal_and_the_goal_itself(started):
    teacher, state, _ = started
    np.testing.assert_allclose(state.pool[:6], [[0.375, 0]] * 6)
    np.testing.assert_allclose(state.pool[6:], [GOAL] * 4)
    tasks = check_samples(teacher, state, SPACE, n=1000)
    assert (tasks[:, 0] == 0.375).mean() == pytest.approx(0.6, abs=0.06)


def test_good_starts_grow_the_next_pool_and_are_archived(started):
    """The near start wins 5 of 20, the goal itself always: only the first is good, its copies too."""
    _, state, update = started
    tasks = np.array([[0.375, 0.0]] * 20 + [GOAL] * 10)
    wins = np.array([1] * 5 + [0] * 15 + [1] * 10)
    state = update(state, jax.random.key(0), told(tasks, wins))
    assert int(state.good) == 6 and int(state.archived) == 7
    np.testing.assert_allclose(state.pool[:6], [[0.5, 0]] * 6)
    np.testing.assert_allclose(state.archive[:8], [GOAL, *[[0.375, 0]] * 6, [0, 0]])
    assert {float(x) for x in state.pool[6:, 0]} <= {0.25, 0.375}
    assert not np.any(state.trials)


def test_without_a_good_start_the_archive_is_gone_back_to(started):
    _, state, update = started
    lost = told(np.array([[0.375, 0.0]] * 30), np.zeros(30))
    state = update(state, jax.random.key(0), lost)
    assert int(state.good) == 0 and int(state.archived) == 1
    np.testing.assert_allclose(state.pool[:6], [[0.375, 0]] * 6)


def test_good_starts_are_played_and_lie_between_both_bounds():
    trials = jnp.array([0, 10, 10, 10, 10, 3])
    successes = jnp.array([0, 0, 1, 9, 10, 1])
    good = good_starts(trials, successes, least=0.1, greatest=0.9)
    np.testing.assert_array_equal(good, [False, False, True, True, False, True])


def test_random_walks_have_their_variance_and_stay_inside():
    walk = jax.jit(jax.vmap(lambda key: brownian_start(key, jnp.float32([0.5, 0.0]), SPACE)))
    ends = np.asarray(walk(jax.random.split(jax.random.key(0), 8000)))
    # Variance of a step times the mean number of steps, (1 + 50) / 2.
    np.testing.assert_allclose(ends.var(0), np.array([0.01, 0.04]) ** 2 * 25.5, rtol=0.06)
    far = jax.jit(jax.vmap(lambda key: brownian_start(key, jnp.float32([1.0, 2.0]), SPACE, share=1.0)))
    ends = np.asarray(far(jax.random.split(jax.random.key(1), 100)))
    assert np.all((ends >= SPACE.low) & (ends <= SPACE.high))


@pytest.mark.slow
def test_starts_spread_from_the_goal_as_the_student_gets_better():
    """It wins from as far as 0.1 on the line, half of the time up to 0.05 farther, and learns by winning."""
    line = task_space([(0, 1)])
    teacher = reverse_curriculum_teacher(
        ReverseCurriculumConfig(goal=(0.0,), new_starts=40, old_starts=20, episodes=600, archive=512)
    )

    @jax.jit
    def play(key):
        def period(carry, key):
            state, reach = carry
            task_key, win_key = jax.random.split(key)
            tasks, _ = teacher.sample_batch(state, task_key, 600)
            coin = jax.random.bernoulli(win_key, shape=(600,))
            away = tasks[:, 0]
            edge = (away > reach) & (away < reach + 0.05)
            wins = (away <= reach) | (edge & coin)
            reach = reach + 0.001 * jnp.sum(wins & edge)
            state = teacher.refit(teacher.record(state, feedback(tasks, away)._replace(success=wins)))
            return (state, reach), teacher.metrics(state)["mean_way"]

        start = (teacher.init(jax.random.key(0), line), jnp.float32(0.1))
        return jax.lax.scan(period, start, jax.random.split(key, 15))

    (state, reach), way = play(jax.random.key(1))
    assert float(reach) > 0.4 and float(way[-1]) > 3 * float(way[0])
    assert int(state.archived) > 60


@pytest.mark.slow
def test_batches_are_single_updates_and_seeds_side_by_side_single_runs(started):
    teacher, start, _ = started
    check_batches(teacher, SPACE, sizes=(30, 30), success_return=0.5)
    rng = np.random.default_rng(2)
    pool = np.asarray(start.pool)
    feedbacks = [told(pool[rng.integers(0, 10, 30)], rng.integers(0, 2, 30)) for _ in range(2)]
    assert all(int(state.good) > 0 for state in check_seeds(teacher, start, feedbacks))


def test_density_integrates_to_one():
    line = task_space([(0, 1)])
    teacher = reverse_curriculum_teacher(ReverseCurriculumConfig(goal=(0.5,), new_starts=5, old_starts=2))
    grid = jnp.linspace(0, 1, 1001)[:, None]
    state = jax.jit(teacher.init)(jax.random.key(0), line)
    assert float(jnp.exp(jax.jit(teacher.density)(state, grid)).mean()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_starts": 0}, "new_starts is 0"),
        ({"old_starts": -1}, "old_starts is -1"),
        ({"episodes": 0}, "episodes is 0"),
        ({"least_success": 0.95}, "least_success is 0.95, greatest_success is 0.9"),
        ({"archive": 299}, "archive is 299"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ReverseCurriculumConfig(goal=GOAL, **options)


@pytest.mark.parametrize(("goal", "message"), [((0.1,), "goal has 1 dimensions"), ((2.0, 0.0), "goal is")])
def test_goals_outside_the_space_are_refused(goal, message):
    with pytest.raises(InputError, match=message):
        reverse_curriculum_teacher(ReverseCurriculumConfig(goal=goal)).init(jax.random.key(0), SPACE)
