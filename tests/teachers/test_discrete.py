"""Discrete tasks: ids, densities and slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.teachers import discrete_space, task_id, task_of_id, task_space
from jaxlab.teachers.discrete import check_discrete, id_log_density, push_score, regression_slope


def test_ids_survive_the_way_to_tasks_and_back():
    ids = jnp.arange(7)
    np.testing.assert_array_equal(task_id(task_of_id(ids)), ids)
    space = discrete_space(7)
    assert (float(space.low[0]), float(space.high[0])) == (0, 6) and space.blocks == (("task_id", 1),)
    np.testing.assert_array_equal(task_id(jnp.float32([[2.4], [2.6]])), [2, 3])


def test_log_density_is_the_log_probability_of_the_id():
    log = id_log_density(jnp.float32([[0.0], [2.0], [3.0], [-1.0]]), jnp.float32([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(np.exp(log), [0.2, 0.5, 0, 0], rtol=1e-6)


def test_slopes_are_polyfits_of_the_newest_scores(double_precision):
    rng = np.random.default_rng(0)
    scores, times = jnp.zeros((3, 5)), jnp.zeros((3, 5))
    sizes, kept = np.zeros(3, int), [[], [], []]
    for t in range(14):
        i = int(rng.integers(2))
        score = rng.normal()
        scores, times = push_score(scores, i, score), push_score(times, i, t)
        kept[i].append((t, score))
        sizes[i] = min(sizes[i] + 1, 5)
        slopes = np.asarray(regression_slope(times, scores, jnp.asarray(sizes)))
        for j in range(3):
            last = kept[j][-5:]
            expected = np.polyfit(*zip(*last, strict=True), 1)[0] if len(last) > 1 else 0
            assert slopes[j] == pytest.approx(expected, abs=1e-12)


def test_other_spaces_are_refused():
    check_discrete(discrete_space(3), 3)
    jax.jit(lambda space: check_discrete(space, 3))(discrete_space(3))
    for space in (discrete_space(4), task_space([(0, 2), (0, 2)]), task_space([(1, 2)])):
        with pytest.raises(InputError, match=r"it must be discrete_space\(3\)"):
            check_discrete(space, 3)
    with pytest.raises(InputError, match="tasks is 1"):
        discrete_space(1)
