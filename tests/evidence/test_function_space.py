import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_diabetes

from jaxlab.errors import InputError
from jaxlab.evidence import (
    gram_leaves,
    log_evidence,
    log_likelihood,
    log_precisions,
    mackay_update,
    output_factor,
    prior_gradient,
    square_sums,
)

LAYERWISE = {"W1": 0.5, "b1": 1.0, "W2": 2.0, "b2": 4.0}


@pytest.fixture(scope="module")
def digits():
    """Cached Gram matrices, the log-likelihood, and |theta|^2 of the digits network, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, digits_net.PARAMS)

        @jax.jit
        def cached(params, x):
            outputs = digits_net.apply(params, x)
            factor = output_factor(outputs, likelihood="softmax")
            loglik = log_likelihood(outputs, digits_net.Y, likelihood="softmax").sum()
            return gram_leaves(digits_net.apply, params, x, factor), loglik, square_sums(params)

        yield cached(params, jnp.asarray(digits_net.X))


def at(digits, log_delta):
    return log_evidence(digits[0], log_delta, digits[1], digits[2])


def logs(values):
    return {name: jnp.log(jnp.asarray(value, jnp.float64)) for name, value in values.items()}


def test_value_is_the_printed_one_and_that_of_parameter_space(digits):
    found = at(digits, jnp.log(0.7))
    assert float(found.loglik) == pytest.approx(-174.36338783, abs=1e-8)
    assert float(found.logdet) == pytest.approx(171.81151287, abs=1e-8)
    assert float(found.value) == pytest.approx(-282.14036644, abs=1e-8)
    J = np.concatenate([digits_net.jacobians()[name] for name in digits_net.NAMES], axis=2)
    H = np.einsum("ncp,ncd,ndq->pq", J, digits_net.hessians(), J, optimize=True)
    brute = np.linalg.slogdet(np.eye(len(H)) + H / 0.7)[1]
    assert float(found.logdet) == pytest.approx(brute, abs=1e-9)


def test_layerwise_value_and_both_gradients_are_the_printed_ones(digits):
    log_delta = logs(LAYERWISE)
    value, slope = jax.jit(jax.value_and_grad(lambda d: at(digits, d).value))(log_delta)
    assert float(value) == pytest.approx(-303.86916377, abs=1e-8)
    wanted = {"W1": 45.80461958, "b1": 0.23465291, "W2": -16.64482438, "b2": 0.35007648}
    closed = prior_gradient(log_delta, digits[2], at(digits, log_delta).gamma)
    for name, printed in wanted.items():
        assert float(slope[name]) / LAYERWISE[name] == pytest.approx(printed, abs=1e-8)
        assert float(closed[name]) == pytest.approx(float(slope[name]), abs=1e-10)


def test_effective_parameters_and_squares_are_the_printed_ones(digits):
    gamma = at(digits, logs(dict.fromkeys(LAYERWISE, 0.7))).gamma
    printed = {"W1": 51.777158, "b1": 0.820566, "W2": 13.617603, "b2": 5.554986}
    squares = {"W1": 23.971344, "b1": 0.055116, "W2": 38.417225, "b2": 0.045520}
    for name in printed:
        assert float(gamma[name]) == pytest.approx(printed[name], abs=1e-6)
        assert float(digits[2][name]) == pytest.approx(squares[name], abs=1e-6)
    # One number for all: the sum.
    assert float(at(digits, jnp.log(0.7)).gamma) == pytest.approx(sum(printed.values()), abs=1e-5)


def test_mackay_iteration_climbs_through_the_printed_values(digits):
    log_delta = logs(dict.fromkeys(LAYERWISE, 0.7))
    step = jax.jit(
        lambda d: (at(digits, d).value, mackay_update(d, digits[2], at(digits, d).gamma, damping=0.0))
    )
    values = []
    for _ in range(11):
        value, log_delta = step(log_delta)
        values.append(float(value))
    printed = {0: -282.1404, 1: -271.4146, 2: -269.5139, 5: -268.378, 10: -268.001}
    for iteration, value in printed.items():
        assert values[iteration] == pytest.approx(value, abs=1e-3)


def test_damped_update_averages_in_log_space_and_stays_in_range():
    found = mackay_update(jnp.log(2.0), {"w": jnp.array(4.0)}, jnp.array(32.0), damping=0.25)
    assert float(found) == pytest.approx(0.25 * np.log(2) + 0.75 * np.log(8), rel=1e-6)
    squares = {"w": jnp.array(0.0), "b": jnp.array(5.0)}
    zeros = dict.fromkeys(squares, jnp.array(0.0))
    found = mackay_update(zeros, squares, {"w": jnp.array(1.0), "b": jnp.array(0.0)}, damping=0.0)
    assert {name: float(value) for name, value in found.items()} == {"w": 12.0, "b": -12.0}


def diabetes(delta, sigma2):
    """Evidence of the linear model at its MAP, and the log marginal likelihood of the Gaussian process it is."""
    data = load_diabetes()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    weights = np.linalg.solve(x.T @ x / sigma2 + delta * np.eye(10), x.T @ y / sigma2)
    params = {"w": jnp.asarray(weights)}
    outputs = linear_model(params, jnp.asarray(x))
    log_sigma = jnp.log(sigma2) / 2
    grams = gram_leaves(linear_model, params, jnp.asarray(x), output_factor(outputs, likelihood="gaussian"))
    loglik = log_likelihood(
        outputs, jnp.asarray(y)[:, None], likelihood="gaussian", log_sigma=log_sigma
    ).sum()
    found = log_evidence(grams, jnp.log(delta), loglik, square_sums(params), log_sigma=log_sigma)
    exact = multivariate_normal(np.zeros(442), x @ x.T / delta + sigma2 * np.eye(442)).logpdf(y)
    return found, exact


def linear_model(params, x):
    return x @ params["w"][:, None]


def test_linear_model_has_the_evidence_of_its_gaussian_process(double_precision):
    found, exact = diabetes(2.0, 0.5)
    assert float(found.value) == pytest.approx(exact, abs=1e-8)
    assert float(found.value) == pytest.approx(-493.4967171431, abs=1e-9)
    assert float(found.logdet) == pytest.approx(53.4493069702, abs=1e-9)
    best, exact = diabetes(30.04, 0.4945)
    assert float(best.value) == pytest.approx(-485.776330, abs=1e-5)
    assert float(best.value) == pytest.approx(exact, abs=1e-8)


def random_grams(rows=6, leaves=3):
    rng = np.random.default_rng(1)
    A = [rng.normal(size=(rows, 4)) for _ in range(leaves)]
    return {str(i): jnp.asarray((a @ a.T)[None]) for i, a in enumerate(A)}, rng.uniform(1, 2, leaves)


def test_gradients_agree_with_finite_differences_and_map_over_priors(double_precision):
    grams, squares = random_grams()
    squares = {str(i): jnp.asarray(s) for i, s in enumerate(squares)}
    start = {str(i): jnp.asarray(0.3 * i) for i in range(3)}

    @jax.jit
    def value(log_delta, log_sigma):
        return log_evidence(
            grams, log_delta, jnp.asarray(-3.0), squares, log_sigma=log_sigma, scale=2.5
        ).value

    slopes = jax.grad(value, argnums=(0, 1))(start, 0.2)
    closed = prior_gradient(
        start, squares, log_evidence(grams, start, jnp.asarray(0.0), squares, log_sigma=0.2, scale=2.5).gamma
    )
    eps = 1e-5
    for name in start:
        up, down = start | {name: start[name] + eps}, start | {name: start[name] - eps}
        wanted = float(value(up, 0.2) - value(down, 0.2)) / (2 * eps)
        assert float(slopes[0][name]) == pytest.approx(wanted, rel=1e-6)
        assert float(closed[name]) == pytest.approx(wanted, rel=1e-6)
    wanted = float(value(start, 0.2 + eps) - value(start, 0.2 - eps)) / (2 * eps)
    assert float(slopes[1]) == pytest.approx(wanted, rel=1e-6)
    many = jax.vmap(lambda d: value(dict.fromkeys(start, d), 0.2))(jnp.array([-1.0, 0.5]))
    one = value(dict.fromkeys(start, jnp.asarray(0.5)), 0.2)
    assert float(many[1]) == pytest.approx(float(one), rel=1e-12)


def test_rotated_parameters_and_the_order_of_the_data_change_nothing(digits):
    Q = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0])
    order = np.random.default_rng(3).permutation(60)
    params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
    rotated = params | {"W1": Q.T @ params["W1"]}

    def apply(p, x):
        return digits_net.apply(p | {"W1": Q @ p["W1"]}, x)

    @jax.jit
    def value(params, x, y):
        outputs = apply(params, x)
        grams = gram_leaves(apply, params, x, output_factor(outputs, likelihood="softmax"))
        loglik = log_likelihood(outputs, y, likelihood="softmax").sum()
        return log_evidence(grams, jnp.log(0.7), loglik, square_sums(params)).value

    found = value(rotated, jnp.asarray(digits_net.X[order]), jnp.asarray(digits_net.Y[order]))
    assert float(found) == pytest.approx(-282.14036644, abs=1e-8)


def test_wrong_input_is_named():
    grams, squares = {"w": jnp.eye(2)[None]}, {"w": jnp.array(1.0)}
    with pytest.raises(InputError, match="log_delta is no prefix"):
        log_evidence(grams, {"v": jnp.array(0.0)}, jnp.array(0.0), squares)
    with pytest.raises(InputError, match=r"log_delta has shape \(3,\)"):
        log_evidence(grams, {"w": jnp.zeros(3)}, jnp.array(0.0), squares)
    with pytest.raises(InputError, match="damping is 1"):
        mackay_update(jnp.array(0.0), squares, jnp.array(1.0), damping=1.0)
    with pytest.raises(InputError, match="init is 0"):
        log_precisions(squares, init=0.0)
