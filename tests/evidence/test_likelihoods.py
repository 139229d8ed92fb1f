import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.errors import InputError
from jaxlab.evidence import log_likelihood, natural_parameters, output_factor, output_hessian, score_factor

LOGITS = np.random.default_rng(0).normal(size=(5, 4)) * 2
LABELS = np.array([0, 3, 1, 1, 2])
ROTATIONS = ("symmetric", "eigenbasis", "cholesky", "closed")


def probabilities(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_log_likelihood_is_that_of_scipy(double_precision):
    found = log_likelihood(jnp.asarray(LOGITS), LABELS, likelihood="softmax")
    np.testing.assert_allclose(found, np.log(probabilities(LOGITS))[np.arange(5), LABELS], rtol=1e-12)
    targets = LOGITS[::-1].copy()
    found = log_likelihood(jnp.asarray(LOGITS), jnp.asarray(targets), likelihood="gaussian", log_sigma=-0.4)
    np.testing.assert_allclose(found, stats.norm.logpdf(targets, LOGITS, np.exp(-0.4)).sum(1), rtol=1e-12)


def test_output_hessian_is_minus_the_second_derivative(double_precision):
    for likelihood, targets in (("softmax", LABELS), ("gaussian", jnp.asarray(LOGITS) + 1)):

        def one(f, y, likelihood=likelihood):
            return -log_likelihood(f[None], y[None], likelihood=likelihood)[0]

        wanted = jax.vmap(jax.hessian(one))(jnp.asarray(LOGITS), jnp.asarray(targets))
        np.testing.assert_allclose(
            output_hessian(jnp.asarray(LOGITS), likelihood=likelihood), wanted, atol=1e-12
        )


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_factor_squares_to_the_hessian_to_first_order(rotation, double_precision):
    logits, direction = jnp.asarray(LOGITS), jnp.asarray(LOGITS[:, ::-1])

    def square(f):
        L = output_factor(f, likelihood="softmax", rotation=rotation)
        return L @ jnp.swapaxes(L, 1, 2)

    found, slope = jax.jit(lambda f, v: jax.jvp(square, (f,), (v,)))(logits, direction)
    hessian, wanted = jax.jvp(lambda f: output_hessian(f, likelihood="softmax"), (logits,), (direction,))
    np.testing.assert_allclose(found, hessian, atol=1e-12)
    np.testing.assert_allclose(slope, wanted, atol=1e-12)


def test_rotations_have_the_shapes_they_are_named_after(double_precision):
    factors = {
        r: np.asarray(output_factor(jnp.asarray(LOGITS), likelihood="softmax", rotation=r)) for r in ROTATIONS
    }
    symmetric = factors["symmetric"]
    np.testing.assert_allclose(symmetric, symmetric.swapaxes(1, 2), atol=1e-12)
    assert (np.linalg.eigvalsh(symmetric) > -1e-9).all()
    np.testing.assert_allclose(np.triu(factors["cholesky"], 1), 0, atol=1e-12)
    assert factors["eigenbasis"].shape == (5, 4, 3)
    crossed = factors["eigenbasis"].swapaxes(1, 2) @ factors["eigenbasis"]
    np.testing.assert_allclose(crossed * (1 - np.eye(3)), 0, atol=1e-12)


def test_diag_rule_is_the_root_of_p_minus_its_square(double_precision):
    p = probabilities(LOGITS)
    found = output_factor(jnp.asarray(LOGITS), likelihood="softmax", output_rows="diag")
    np.testing.assert_allclose(found, np.sqrt(p - p**2)[:, :, None] * np.eye(4), rtol=1e-10)


@pytest.mark.parametrize("output_rows", ["factor", "diag"])
def test_factors_and_their_gradients_are_finite_at_certain_outputs(output_rows):
    sure = jnp.array([[200.0, 0.0, -200.0]])

    def total(f):
        return jnp.sum(output_factor(f, likelihood="softmax", output_rows=output_rows))

    value, slope = jax.value_and_grad(total)(sure)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_gaussian_factor_is_the_identity():
    np.testing.assert_array_equal(
        output_factor(jnp.ones((2, 3)), likelihood="gaussian", rotation="eigenbasis"),
        np.stack([np.eye(3)] * 2),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: log_likelihood(f, LABELS, likelihood="poisson"), "likelihood is 'poisson'"),
        (lambda f: log_likelihood(f[0], LABELS, likelihood="softmax"), "outputs has shape"),
        (lambda f: log_likelihood(f, LABELS + 1, likelihood="softmax"), r"targets lie in 1..4"),
        (lambda f: log_likelihood(f, LABELS[:2], likelihood="softmax"), "targets has shape"),
        (lambda f: log_likelihood(f, LABELS * 1.0, likelihood="softmax"), "targets has shape"),
        (lambda f: log_likelihood(f, f[:2], likelihood="gaussian"), "targets has shape"),
        (lambda f: output_hessian(f, likelihood="poisson"), "likelihood is 'poisson'"),
        (lambda f: output_factor(f, likelihood="softmax", rotation="none"), "rotation is 'none'"),
        (lambda f: output_factor(f, likelihood="softmax", output_rows="all"), "output_rows is 'all'"),
        (lambda f: output_factor(f[0], likelihood="softmax"), "outputs has shape"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(jnp.asarray(LOGITS, jnp.float32))


NATURAL = np.array([[0.3, -0.5], [-2.0, -1.5], [4.0, -0.1]])
"""Natural parameters of Gaussians."""
VALUES = np.array([[0.1], [-1.0], [15.0]])


def test_heteroscedastic_likelihood_is_that_of_scipy(double_precision):
    found = log_likelihood(jnp.asarray(NATURAL), jnp.asarray(VALUES), likelihood="heteroscedastic")
    variance = -1 / (2 * NATURAL[:, 1])
    wanted = stats.norm.logpdf(VALUES[:, 0], NATURAL[:, 0] * variance, np.sqrt(variance))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    raw = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)) * 5)
    outputs = np.asarray(natural_parameters(raw))
    assert (outputs[:, 1] < 0).all() and np.array_equal(outputs[:, 0], raw[:, 0])
    one = np.asarray(natural_parameters(jnp.array([[0.0, np.log(np.e - 1)]])))
    assert -1 / (2 * one[0, 1]) == pytest.approx(1.0)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_heteroscedastic_factor_squares_to_the_second_derivative(rotation, double_precision):
    def one(f, y):
        return -log_likelihood(f[None], y[None], likelihood="heteroscedastic")[0]

    wanted = jax.vmap(jax.hessian(one))(jnp.asarray(NATURAL), jnp.asarray(VALUES))
    L = output_factor(jnp.asarray(NATURAL), likelihood="heteroscedastic", rotation=rotation)
    np.testing.assert_allclose(L @ jnp.swapaxes(L, 1, 2), wanted, atol=1e-10)
    np.testing.assert_allclose(
        output_hessian(jnp.asarray(NATURAL), likelihood="heteroscedastic"), wanted, atol=1e-10
    )
    # As printed: -1 / (2 eta2), eta1 / (2 eta2^2), 1 / (2 eta2^2) - eta1^2 / (2 eta2^3).
    eta1, eta2 = NATURAL.T
    np.testing.assert_allclose(wanted[:, 0, 0], -1 / (2 * eta2), rtol=1e-10)
    np.testing.assert_allclose(wanted[:, 0, 1], eta1 / (2 * eta2**2), rtol=1e-10)
    np.testing.assert_allclose(wanted[:, 1, 1], 1 / (2 * eta2**2) - eta1**2 / (2 * eta2**3), rtol=1e-10)
    diag = output_factor(jnp.asarray(NATURAL), likelihood="heteroscedastic", output_rows="diag")
    np.testing.assert_allclose(
        jnp.diagonal(diag, axis1=1, axis2=2) ** 2, jnp.diagonal(wanted, axis1=1, axis2=2)
    )


def test_scores_are_gradients_of_single_log_likelihoods(double_precision):
    f = jnp.asarray(LOGITS)
    np.testing.assert_allclose(
        score_factor(f, LABELS, likelihood="softmax")[:, :, 0], np.eye(4)[LABELS] - probabilities(LOGITS)
    )
    np.testing.assert_allclose(score_factor(f, f + 2.0, likelihood="gaussian")[:, :, 0], 2.0)
    # Means of y and y^2 under the model, taken from the data.
    found = score_factor(jnp.asarray(NATURAL), jnp.asarray(VALUES), likelihood="heteroscedastic")[:, :, 0]
    variance = -1 / (2 * NATURAL[:, 1])
    mean = NATURAL[:, 0] * variance
    y = VALUES[:, 0]
    np.testing.assert_allclose(found, np.stack([y - mean, y**2 - mean**2 - variance], 1), rtol=1e-9)


def test_outputs_that_are_no_natural_parameters_are_named():
    for outputs, message in (
        (jnp.array([[0.0, 0.5]]), "second natural parameters up to 0.5; they must be < 0"),
        (jnp.ones((1, 3)), "natural parameters must be"),
    ):
        with pytest.raises(InputError, match=message):
            log_likelihood(outputs, jnp.zeros((1, 1)), likelihood="heteroscedastic")
    with pytest.raises(
        InputError, match=r"targets has shape \(1, 2\); with 'heteroscedastic' it must be \(1, 1\)"
    ):
        log_likelihood(-jnp.ones((1, 2)), jnp.zeros((1, 2)), likelihood="heteroscedastic")
    with pytest.raises(InputError, match="raw has shape"):
        natural_parameters(jnp.ones((2, 3)))
