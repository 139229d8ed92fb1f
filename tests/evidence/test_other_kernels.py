"""The empirical Fisher kernel and the heteroscedastic likelihood in the bound, against brute force in NumPy."""

import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.evidence import (
    Bound,
    FitConfig,
    Hyper,
    MarglikConfig,
    natural_parameters,
    parametric_evidence,
    stochastic_evidence,
)

KEY = jax.random.key(0)


def test_empirical_kernel_is_that_of_single_gradients(double_precision):
    params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
    x, y = jnp.asarray(digits_net.X[:20]), jnp.asarray(digits_net.Y[:20])
    hyper = Hyper(jnp.log(0.7), jnp.zeros(()))
    _, found = jax.jit(
        lambda p: stochastic_evidence(
            KEY, digits_net.apply, p, x, y, hyper, total=60, config=Bound(output_rows="empirical")
        )
    )(params)
    J = np.concatenate([digits_net.jacobians(digits_net.X[:20])[name] for name in digits_net.NAMES], axis=2)
    residual = np.eye(10)[digits_net.Y[:20]] - digits_net.probabilities(digits_net.X[:20])
    g = np.einsum("ncp,nc->np", J, residual)
    assert float(found.logdet) == pytest.approx(
        3 * np.linalg.slogdet(np.eye(20) + g @ g.T / 0.7)[1], abs=1e-8
    )


def test_noise_stands_in_both_gradients_of_the_empirical_kernel(double_precision):
    rng = np.random.default_rng(0)
    x, y, w, sigma = rng.normal(size=(7, 3)), rng.normal(size=(7, 1)), rng.normal(size=(3, 1)), 0.6
    config = Bound(likelihood="gaussian", output_rows="empirical")
    hyper = Hyper(jnp.log(jnp.asarray(2.0)), jnp.log(jnp.asarray(sigma)))
    _, found = stochastic_evidence(
        KEY, lambda p, x: x @ p["w"], {"w": jnp.asarray(w)}, jnp.asarray(x), jnp.asarray(y), hyper, total=7,
        config=config,
    )  # fmt: skip
    g = x * (y - x @ w) / sigma**2
    assert float(found.logdet) == pytest.approx(np.linalg.slogdet(np.eye(7) + g @ g.T / 2)[1], abs=1e-10)


@pytest.mark.parametrize("rows", ["joint", "classes"])
def test_heteroscedastic_evidence_is_that_of_parameter_space(rows, double_precision):
    rng = np.random.default_rng(1)
    params = {"W": jnp.asarray(rng.normal(size=(3, 4))), "V": jnp.asarray(rng.normal(size=(4, 2)))}
    x, y = jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=(9, 1)))

    def apply(p, x):
        return natural_parameters(jnp.tanh(x @ p["W"]) @ p["V"])

    log_delta = {"W": jnp.log(0.5), "V": jnp.log(2.0)}
    config = Bound(likelihood="heteroscedastic", rows=rows)

    @jax.jit
    def both(p):
        found = stochastic_evidence(
            KEY, apply, p, x, y, Hyper(log_delta, jnp.zeros(())), total=9, config=config
        )
        return found[0], parametric_evidence(apply, p, x, y, log_delta, likelihood="heteroscedastic").value

    found, wanted = (float(value) for value in both(params))
    if rows == "joint":
        assert found == pytest.approx(wanted, abs=1e-9)
    else:
        assert found < wanted  # outputs apart bound it


def test_options_that_do_not_go_together_are_named():
    with pytest.raises(InputError, match="rows is 'single' with space 'ntk' and output_rows 'empirical'"):
        Bound(rows="single", output_rows="empirical")
    with pytest.raises(InputError, match="rule is 'mackay' with 'empirical' rows"):
        MarglikConfig(Bound(likelihood="gaussian", output_rows="empirical"))
    with pytest.raises(InputError, match="burn_in is -1"):
        FitConfig(burn_in=-1)
