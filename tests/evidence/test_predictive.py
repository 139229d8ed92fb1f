"""Predictions in function space against parameter space in NumPy, and against a Gaussian process of scikit-learn."""

import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

from jaxlab.errors import InputError
from jaxlab.evidence import Hyper, linearised_predictive

DELTA = {"W1": 0.5, "b1": 1.0, "W2": 2.0, "b2": 4.0}


def test_probit_predictions_are_those_of_the_parameters_posterior(double_precision):
    x, queries = digits_net.X[:20], digits_net.X[20:25]
    hyper = Hyper({name: jnp.log(jnp.asarray(delta)) for name, delta in DELTA.items()}, jnp.zeros(()))
    params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
    found = jax.jit(
        lambda p, x, q: linearised_predictive(digits_net.apply, p, x, q, hyper, likelihood="softmax")
    )(params, jnp.asarray(x), jnp.asarray(queries))

    def flat(x):
        return np.concatenate([digits_net.jacobians(x)[name] for name in digits_net.NAMES], axis=2)

    prior = np.concatenate([np.full(digits_net.PARAMS[n].size, DELTA[n]) for n in digits_net.NAMES])
    J, Q = flat(x), flat(queries)
    H = np.einsum("ncp,ncd,ndq->pq", J, digits_net.hessians(x), J, optimize=True)
    wanted = np.einsum("ncp,pq,ndq->ncd", Q, np.linalg.inv(H + np.diag(prior)), Q, optimize=True)
    np.testing.assert_allclose(found.covariance, wanted, atol=1e-10)
    f = digits_net.logits(queries) / np.sqrt(1 + np.pi / 8 * np.einsum("ncc->nc", wanted))
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, p, atol=1e-10)


def test_variances_of_a_linear_model_are_those_of_a_gaussian_process(double_precision):
    rng = np.random.default_rng(0)
    x, queries, sigma, delta = rng.normal(size=(15, 3)), rng.normal(size=(4, 3)), 0.3, 2.0
    y = rng.normal(size=15)
    theirs = GaussianProcessRegressor(
        ConstantKernel(1 / delta) * DotProduct(0.0, sigma_0_bounds="fixed"), alpha=sigma**2, optimizer=None
    ).fit(x, y)
    means, deviations = theirs.predict(queries, return_std=True)
    # The posterior mean, which the linearised model's parameters have to be at.
    w = np.linalg.solve(x.T @ x / sigma**2 + delta * np.eye(3), x.T @ y / sigma**2)
    hyper = Hyper(jnp.log(jnp.asarray(delta)), jnp.log(jnp.asarray(sigma)))
    found = linearised_predictive(
        lambda p, x: x @ p["w"],
        {"w": jnp.asarray(w[:, None])},
        jnp.asarray(x),
        jnp.asarray(queries),
        hyper,
        likelihood="gaussian",
    )
    np.testing.assert_allclose(found.outputs[:, 0], means, atol=1e-10)
    np.testing.assert_allclose(found.covariance[:, 0, 0], deviations**2, atol=1e-10)
    np.testing.assert_allclose(found.probabilities[:, 0], deviations**2 + sigma**2, atol=1e-10)


def test_other_likelihoods_are_refused():
    with pytest.raises(InputError, match="likelihood is 'heteroscedastic'"):
        linearised_predictive(
            lambda p, x: x, {}, jnp.ones((1, 2)), jnp.ones((1, 2)), None, likelihood="heteroscedastic"
        )
