"""Oracle and Random: where tasks come from, and when the window moves."""

import jax
import numpy as np
import pytest
from scipy.stats import kstest
from teacher_checks import check_batches, check_samples, updated

from jaxlab.errors import InputError
from jaxlab.teachers import OracleConfig, oracle_teacher, task_space, uniform_teacher

SPACE = task_space({"height": (0, 3), "spacing": (0, 6)})
STUMPS = OracleConfig(step=(0.1, -0.2))


def test_the_window_starts_at_the_easy_end_of_each_dimension():
    teacher = oracle_teacher(STUMPS)
    state = teacher.init(jax.random.key(0), SPACE)
    np.testing.assert_allclose(state.corner, [0, 5])
    tasks = check_samples(teacher, state, SPACE, n=500)
    for column, low, width in zip(tasks.T, (0, 5), (0.5, 1.0), strict=True):
        assert kstest((column - low) / width, "uniform").pvalue > 0.01


def test_it_moves_after_fifty_good_episodes_and_stops_at_the_end():
    teacher = oracle_teacher(STUMPS)
    state = teacher.init(jax.random.key(0), SPACE)
    tasks = np.tile([0.2, 5.5], (50, 1))
    np.testing.assert_allclose(updated(teacher, state, tasks[:49], np.full(49, 300.0)).corner, [0, 5])
    np.testing.assert_allclose(updated(teacher, state, tasks, np.full(50, 230.0)).corner, [0, 5])
    np.testing.assert_allclose(
        updated(teacher, state, tasks, np.full(50, 231.0)).corner, [0.1, 4.8], atol=1e-6
    )
    # Each fifty count by themselves.
    mixed = np.concatenate([np.full(50, 200.0), np.full(50, 240.0)])
    np.testing.assert_allclose(
        updated(teacher, state, np.tile(tasks, (2, 1)), mixed).corner, [0.1, 4.8], atol=1e-6
    )
    far = updated(teacher, state, np.tile(tasks, (30, 1)), np.full(1500, 300.0))
    np.testing.assert_allclose(far.corner, [2.5, 0], atol=1e-5)


def test_batches_are_single_updates():
    check_batches(oracle_teacher(STUMPS), SPACE)
    check_batches(uniform_teacher(), SPACE)


def test_random_is_uniform():
    teacher = uniform_teacher()
    tasks = check_samples(teacher, teacher.init(jax.random.key(0), SPACE), SPACE, n=1000)
    for column, width in zip(tasks.T, (3, 6), strict=True):
        assert kstest(column / width, "uniform").pvalue > 0.01


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="step has 1 dimensions; it must have 2"):
        oracle_teacher(OracleConfig(step=(0.1,))).init(jax.random.key(0), SPACE)
    with pytest.raises(InputError, match="window is 0; it must lie in"):
        OracleConfig(step=(0.1,), window=0)
