"""Kernel densities against scipy's Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_normal

from jaxlab.teachers.kernel_density import kernel_log_density


def test_log_densities_are_scipys_and_there_is_none_without_weight(double_precision):
    rng = np.random.default_rng(2)
    centres, weights, std = rng.random((5, 2)), rng.random(5), np.array([0.1, 0.3])
    tasks = rng.random((7, 2))
    expected = sum(
        w * multivariate_normal(c, np.diag(std**2)).pdf(tasks) for c, w in zip(centres, weights, strict=True)
    )
    ours = jax.jit(kernel_log_density)(*(jnp.asarray(x) for x in (tasks, centres, weights, std)))
    np.testing.assert_allclose(ours, np.log(expected / weights.sum()), rtol=1e-10)
    assert np.all(
        kernel_log_density(*(jnp.asarray(x) for x in (tasks, centres, 0 * weights, std))) == -np.inf
    )
