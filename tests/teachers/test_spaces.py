"""Spaces of tasks: blocks, bounds, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxlab.errors import InputError
from jaxlab.teachers import TaskGaussian, clip_task, contains_task, split_task, task_space
from jaxlab.teachers.spaces import check_gaussian, gaussian_task, uniform_log_density, uniform_task


def test_named_blocks_are_laid_end_to_end():
    space = task_space({"height": (0, 3), "shape": (-1, 1, 2)})
    assert space.low.tolist() == [0, -1, -1] and space.high.tolist() == [3, 1, 1]
    parts = split_task(space, jnp.array([[1.0, 2, 3], [4, 5, 6]]))
    assert parts["height"].tolist() == [[1], [4]] and parts["shape"].tolist() == [[2, 3], [5, 6]]
    assert task_space([(0, 1), (2, 3)]).blocks == (("task", 2),)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"height": (3, 0)}, "bounds of height are low = 3, high = 0; low must be below high"),
        ([(0, 1), (2, 2)], r"bounds of task\[1\] are low = 2, high = 2"),
        ([(0, float("nan"))], "low = 0, high = nan"),
        ({"height": (0, 1, 0)}, "dimensions of height is 0; it must be an integer >= 1"),
        ([(0,)], r"they must be \(low, high\)"),
        ([], "at least one dimension"),
    ],
)
def test_bad_bounds_are_refused(bounds, message):
    with pytest.raises(InputError, match=message):
        task_space(bounds)


def test_containment_has_a_tolerance_and_refuses_nan():
    space = task_space([(0, 1), (0, 6)])
    tasks = jnp.array([[0, 6], [-5e-7, 6], [-2e-6, 6], [0.5, jnp.nan]])
    assert contains_task(space, tasks).tolist() == [True, True, False, False]
    assert clip_task(space, jnp.array([-1.0, 7])).tolist() == [0, 6]


def test_draws_have_their_distribution():
    space = task_space([(-1, 3), (0, 6)])
    keys = jax.random.split(jax.random.key(0), 4000)
    tasks = np.asarray(jax.vmap(lambda key: uniform_task(space, key))(keys))
    for i, (low, high) in enumerate(((-1, 3), (0, 6))):
        assert kstest(tasks[:, i], "uniform", (low, high - low)).pvalue > 0.01
    np.testing.assert_allclose(
        jnp.exp(uniform_log_density(space, jnp.array([[0.0, 1], [4, 1]]))), [1 / 24, 0]
    )
    easy = TaskGaussian((1.0, 6.0), (0.2, 0.5))
    drawn = np.asarray(jax.vmap(lambda key: gaussian_task(space, easy, key))(keys))
    assert kstest(drawn[:, 0], "norm", (1, 0.2)).pvalue > 0.01
    assert abs(np.mean(drawn[:, 1] == 6) - 0.5) < 0.03  # half of the draws are clipped


def test_gaussians_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"std is \(-1.0,\)"):
        TaskGaussian((0.0,), (-1.0,))
    with pytest.raises(InputError, match="initial has 1 dimensions; it must have 2"):
        check_gaussian(task_space([(0, 1), (0, 1)]), TaskGaussian((0.0,), (1.0,)))
