"""Covar-GMM against a plain transcription around the fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import check_batches, check_samples, updated

from jaxlab.kernels.gaussian_mixtures import fit_mixtures
from jaxlab.teachers import CovarGMMConfig, covar_gmm_teacher, task_space

SPACE = task_space([(0, 1), (0, 2)])


@pytest.mark.parametrize("absolute", [False, True])
def test_scores_are_covariances_of_time_and_return(absolute):
    rng = np.random.default_rng(0)
    tasks = (rng.random((60, 2)) * [1, 2]).astype(np.float32)
    slope = np.where(tasks[:, 0] < 0.5, 1.0, -1.0)
    returns = (0.5 + slope * (np.arange(60) % 30) / 60).astype(np.float32)
    config = CovarGMMConfig(fit_rate=30, components=(2, 3), absolute_lp=absolute, specialise_k=False)
    teacher = covar_gmm_teacher(config)
    start = teacher.init(jax.random.key(0), SPACE)
    state = updated(teacher, start, tasks, returns)
    rows = np.column_stack([tasks[30:], np.arange(30) / 30, returns[30:]])
    np.testing.assert_allclose(state.rows, rows, atol=1e-6)
    key, _ = jax.random.split(start.key)
    _, fit_key = jax.random.split(key)
    fit = jax.jit(lambda rows: fit_mixtures(fit_key, rows, components=(2, 3), specialise_k=False))(
        jnp.asarray(rows, jnp.float32)
    )
    k = int(fit.components)
    covariance = np.asarray(fit.mixture.covariances[:, 2, 3])
    assert covariance[:k].min() < 0 < covariance[:k].max()
    expected = np.abs(covariance) if absolute else np.maximum(covariance, 0)
    expected[k:] = 0
    np.testing.assert_allclose(state.mixture.scores, expected, atol=1e-5)
    np.testing.assert_allclose(state.mixture.means[:k], fit.mixture.means[:k, :2], atol=1e-4)
    assert int(teacher.metrics(state)["components"]) == k
    check_samples(teacher, state, SPACE)
    assert np.isfinite(teacher.density(state, jnp.asarray(tasks))).all()


def test_batches_are_single_updates_also_across_fits():
    config = CovarGMMConfig(fit_rate=30, components=(2, 3), specialise_k=False)
    check_batches(covar_gmm_teacher(config), SPACE, tolerance=1e-4)
