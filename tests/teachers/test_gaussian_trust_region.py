"""Divergences, Fisher products and steps against torch, dense algebra, SciPy and a plain transcription."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from jaxlab.teachers.gaussian_trust_region import (
    conjugate_gradient,
    constrained_step,
    fisher_product,
    gaussian_weights,
    kl_divergence,
    log_density,
    mean_and_factor,
    natural_gradient_step,
)

OLD = np.array([0.4, -0.2, np.log(0.5), np.log(0.3), 0.2])
TARGET = np.array([1.5, 0.5, np.log(1.0), np.log(0.8), 0.0])


def plain(weights):
    mean, lower = weights[:2], np.diag(np.exp(weights[2:4]))
    lower[1, 0] = weights[4]
    return mean, lower @ lower.T


def plain_kl(p, q):
    (a, s), (b, t) = plain(p), plain(q)
    inverse = np.linalg.inv(t)
    logs = np.linalg.slogdet(t)[1] - np.linalg.slogdet(s)[1]
    return 0.5 * (np.trace(inverse @ s) + (b - a) @ inverse @ (b - a) - 2 + logs)


def numeric_hessian(function, at, h=1e-4):
    eye = np.eye(len(at)) * h
    f = function
    return np.array(
        [
            [(f(at + a + b) - f(at + a - b) - f(at - a + b) + f(at - a - b)) / (4 * h * h) for a in eye]
            for b in eye
        ]
    )


def test_divergence_and_density_are_the_closed_form_and_torchs():
    torch = pytest.importorskip("torch")
    normal = torch.distributions.MultivariateNormal
    p, q = (jnp.asarray(w, jnp.float32) for w in (OLD, TARGET))
    there = [normal(*(torch.tensor(x) for x in plain(w))) for w in (OLD, TARGET)]
    value, nothing = jax.jit(lambda p, q: (kl_divergence(p, q), kl_divergence(p, p)))(p, q)
    value = float(value)
    assert value == pytest.approx(plain_kl(OLD, TARGET), rel=1e-5)
    assert value == pytest.approx(float(torch.distributions.kl_divergence(*there)), rel=1e-5)
    assert float(nothing) == pytest.approx(0, abs=1e-6)
    tasks = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = multivariate_normal(*plain(OLD)).logpdf(tasks)
    np.testing.assert_allclose(jax.jit(log_density)(p, tasks), expected, rtol=1e-4)


def test_weights_of_three_dimensions_give_their_factor():
    weights = gaussian_weights(jnp.arange(3.0), jnp.float32([1, 2, 3])).at[6:].set(jnp.float32([4, 5, 6]))
    mean, lower = mean_and_factor(weights)
    np.testing.assert_allclose(mean, [0, 1, 2])
    np.testing.assert_allclose(lower, [[1, 0, 0], [4, 2, 0], [5, 6, 3]], rtol=1e-6)


def test_conjugate_gradients_solve_the_dense_system(double_precision):
    weights = jnp.asarray(OLD)
    fisher = numeric_hessian(lambda w: plain_kl(OLD, w), OLD)
    dense = jax.jit(jax.vmap(lambda v: fisher_product(weights, v)))(jnp.eye(5))
    np.testing.assert_allclose(dense, fisher, atol=1e-5)
    b = jnp.asarray([1.0, -2, 0.5, 0.3, 1])
    x = jax.jit(lambda b: conjugate_gradient(lambda v: fisher_product(weights, v) + 0.01 * v, b))(b)
    np.testing.assert_allclose(x, np.linalg.solve(fisher + 0.01 * np.eye(5), b), rtol=1e-4)
    stopped = jax.jit(lambda b: conjugate_gradient(lambda v: fisher_product(weights, v), b, iterations=1))(b)
    np.testing.assert_allclose(stopped, (b @ b) / (b @ fisher @ b) * np.asarray(b), rtol=1e-5)


def problem(seed, alpha):
    rng = np.random.default_rng(seed)
    mean, covariance = plain(OLD)
    tasks = rng.multivariate_normal(mean, covariance, size=200)
    values = np.maximum(0, 1 - np.abs(tasks[:, 0] - 0.2)) + 0.2 * tasks[:, 1]
    old = multivariate_normal(mean, covariance).logpdf(tasks)

    def plain_value(w):
        return np.mean(np.exp(multivariate_normal(*plain(w)).logpdf(tasks) - old) * values)

    def value(w):
        return jnp.mean(jnp.exp(log_density(w, jnp.asarray(tasks)) - old) * values)

    return (
        lambda w: plain_value(w) - alpha * plain_kl(w, TARGET),
        lambda w: value(w) - alpha * kl_divergence(w, jnp.asarray(TARGET)),
    )


def plain_step(objective, max_kl, strict):
    """The natural-gradient step in NumPy: numeric gradient, dense Fisher, halvings one after the other."""
    h = 1e-5
    gradient = np.array([(objective(OLD + h * e) - objective(OLD - h * e)) / (2 * h) for e in np.eye(5)])
    fisher = numeric_hessian(lambda w: plain_kl(OLD, w), OLD) + 0.01 * np.eye(5)
    x = np.linalg.solve(fisher, gradient)
    x = x / np.sqrt(0.5 * x @ fisher @ x / max_kl)
    for i in range(10):
        new = OLD + x * 0.5**i
        near, gain = plain_kl(OLD, new) <= 1.5 * max_kl, objective(new) >= objective(OLD)
        if (near and gain) if strict else (near or gain):
            return new, i
    return OLD, None


def test_step_is_the_transcriptions_with_or_and_with_and(double_precision):
    """Over trust regions small and large, so that halvings and the two rules matter."""
    halvings = set()

    @functools.partial(jax.jit, static_argnames="strict")
    def step(old, max_kl, alpha, strict):
        return natural_gradient_step(problem(0, alpha)[1], old, max_kl=max_kl, strict=strict)

    for max_kl, alpha in ((0.05, 0.02), (0.8, 0.0), (0.8, 0.1), (4.0, 0.0), (40.0, 0.05)):
        plain_objective = problem(0, alpha)[0]
        for strict in (False, True):
            expected, i = plain_step(plain_objective, max_kl, strict)
            new, taken = step(jnp.asarray(OLD), max_kl, alpha, strict=strict)
            np.testing.assert_allclose(new, expected, rtol=1e-3, atol=1e-4)
            assert bool(taken) == (i is not None)
            halvings.add((strict, i))
            if strict:
                assert plain_kl(OLD, np.asarray(new)) <= 1.5 * max_kl
                assert plain_objective(np.asarray(new)) >= plain_objective(OLD) - 1e-12
    assert len(halvings) > 2


def test_no_gradient_and_no_number_leave_the_weights():
    old = jnp.asarray(OLD, jnp.float32)
    step = jax.jit(lambda w, slope: natural_gradient_step(lambda w: slope * w.sum(), w, max_kl=0.5))
    for slope in (0.0, np.nan):
        new, taken = step(old, slope)
        assert np.array_equal(new, old) and not bool(taken)


@pytest.mark.parametrize("threshold", [-10.0, 0.55])
def test_constrained_step_finds_scipys_minimum_within_its_bounds(threshold):
    """In single precision against SLSQP in double; the second threshold binds."""
    plain_value, value = problem(1, 0.0)
    bounds = [
        {"type": "ineq", "fun": lambda w: 0.5 - plain_kl(OLD, w)},
        {"type": "ineq", "fun": lambda w: plain_value(w) - threshold},
    ]
    assert plain_value(OLD) > threshold
    best = minimize(lambda w: plain_kl(w, TARGET), OLD, constraints=bounds, method="SLSQP")
    assert best.success
    step = jax.jit(
        lambda w: constrained_step(
            lambda w: kl_divergence(w, jnp.asarray(TARGET, jnp.float32)),
            lambda w: value(w).astype(jnp.float32) - threshold,
            w,
            max_kl=0.5,
        )
    )
    new, better = step(jnp.asarray(OLD, jnp.float32))
    new = np.asarray(new, float)
    assert bool(better)
    assert plain_kl(OLD, new) <= 0.5 + 1e-5 and plain_value(new) >= threshold - 1e-5
    assert plain_kl(new, TARGET) == pytest.approx(best.fun, rel=0.02)
    binds = plain_value(best.x) - threshold < 1e-4
    assert binds == (threshold > 0)


def test_constrained_step_keeps_the_floor():
    old = jnp.asarray(OLD, jnp.float32)
    narrow = old.at[2:4].set(-3)
    floor = jnp.float32([-jnp.inf, -jnp.inf, -0.8, -1.3, -jnp.inf])
    new, better = jax.jit(
        lambda w: constrained_step(
            lambda w: kl_divergence(w, narrow), lambda w: 1.0, w, max_kl=0.5, floor=floor
        )
    )(old)
    assert bool(better) and np.all(new >= floor)
    assert np.any(np.isclose(new[2:4], floor[2:4], atol=1e-3))
