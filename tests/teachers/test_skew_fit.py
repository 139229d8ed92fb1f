"""Skew-Fit: weights against a float64 kernel density, what it does to a skewed history, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from seed_checks import check_seeds, random_feedback
from teacher_checks import check_batches, check_samples, feedback

from jaxlab.errors import InputError
from jaxlab.teachers import SkewFitConfig, reached_states, skew_fit_teacher, skewed_weights, task_space

SPACE = task_space([(0, 1), (-2, 2)])
SMALL = SkewFitConfig(fit_every=20, capacity=32, success_return=0.5, power=-0.5)


def test_weights_are_the_density_to_a_power(double_precision):
    rng = np.random.default_rng(0)
    p, there = rng.random(9), rng.random(9) < 0.7
    expected = np.where(there, p**-0.7, 0)
    ours = jax.jit(lambda p, there: skewed_weights(jnp.log(p), there, power=-0.7))(p, there)
    np.testing.assert_allclose(ours, expected / expected.sum(), rtol=1e-10)
    assert np.all(skewed_weights(jnp.log(p), jnp.zeros(9, bool), power=-0.7) == 0)


def test_a_fit_weighs_reached_states_by_kernels_about_all_of_them():
    rng = np.random.default_rng(1)
    teacher = skew_fit_teacher(SMALL)
    tasks, wins = SPACE.low + SPACE.extent * rng.random((20, 2)), rng.random(20) < 0.6
    told = feedback(tasks, wins, success_return=0.5)
    state = jax.jit(teacher.update_batch)(teacher.init(jax.random.key(0), SPACE), jax.random.key(0), told)
    states = np.asarray(told.task, float)[wins]
    size = len(states)
    assert int(state.seen) == size
    np.testing.assert_array_equal(state.fitted[:size], np.float32(states))
    p = np.mean([multivariate_normal(s, np.diag([0.05**2, 0.2**2])).pdf(states) for s in states], axis=0)
    np.testing.assert_allclose(state.weights[:size], p**-0.5 / np.sum(p**-0.5), rtol=1e-3)
    assert np.all(state.weights[size:] == 0)
    drawn = check_samples(teacher, state, SPACE, n=3000)
    mean = np.asarray(state.weights[:size]) @ states
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.06)
    log = jax.jit(teacher.density)(state, drawn[:3])
    mixed = sum(
        w * multivariate_normal(s, np.diag([0.05**2, 0.2**2])).pdf(drawn[:3])
        for w, s in zip(np.asarray(state.weights[:size], float), states, strict=True)
    )
    np.testing.assert_allclose(log, np.log(mixed), atol=2e-3)


def test_goals_of_a_known_skewed_density_become_uniform():
    """States with density 2 t on [0, 1], weighted by its inverse: the drawn ones have mean 1/2, not 2/3."""
    line = task_space([(0, 1)])
    teacher = skew_fit_teacher(
        SkewFitConfig(capacity=2000, fit_every=1, smooth=False, log_density=lambda s: jnp.log(2 * s[:, 0]))
    )
    states = np.sqrt((np.arange(2000) + 0.5) / 2000)[:, None].astype(np.float32)
    state = reached_states(teacher.init(jax.random.key(0), line), jnp.asarray(states))
    state = jax.jit(teacher.refit)(state)
    drawn = np.asarray(jax.jit(teacher.sample_batch, static_argnums=2)(state, jax.random.key(1), 3000)[0])
    assert states.mean() == pytest.approx(2 / 3, abs=1e-3)
    assert drawn.mean() == pytest.approx(0.5, abs=0.02) and drawn.std() == pytest.approx(12**-0.5, abs=0.02)
    assert np.all(np.isin(drawn, states))


def test_before_anything_is_reached_goals_are_uniform():
    teacher = skew_fit_teacher(SMALL)
    state = teacher.init(jax.random.key(0), SPACE)
    tasks = check_samples(teacher, state, SPACE, n=2000)
    np.testing.assert_allclose(tasks.mean(0), [0.5, 0], atol=0.06)
    np.testing.assert_allclose(np.exp(jax.jit(teacher.density)(state, tasks[:3])[:2]), 0.25, rtol=1e-5)


def test_the_ring_forgets_the_oldest_and_passes_over_states_under_no_mask():
    teacher = skew_fit_teacher(SkewFitConfig(capacity=4, fit_every=2))
    state = teacher.init(jax.random.key(0), task_space([(0, 1)]))
    states = jnp.array([[0.1], [0.2], [0.3]])
    state = reached_states(state, states)
    state = reached_states(state, states + 0.5, jnp.array([True, False, True]))
    np.testing.assert_allclose(state.reached[:, 0], [0.8, 0.2, 0.3, 0.6])
    with pytest.raises(InputError, match="states has 5 rows; it must have at most 4"):
        reached_states(state, jnp.zeros((5, 1)))


@pytest.mark.slow
def test_batches_are_single_updates_and_seeds_side_by_side_single_runs():
    teacher = skew_fit_teacher(SMALL)
    check_batches(teacher, SPACE, sizes=(20, 20), success_return=0.5)
    start = teacher.init(jax.random.key(0), SPACE)
    states = check_seeds(teacher, start, random_feedback(feedback, SPACE, 20, success_return=0.5), draws=20)
    assert all(float(state.weights.sum()) == pytest.approx(1) for state in states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, "power is 0.0"),
        ({"power": -1.5}, "power is -1.5"),
        ({"fit_every": 0}, "fit_every is 0"),
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": 50}, "capacity is 50; it must be >= fit_every = 100"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SkewFitConfig(**options)
