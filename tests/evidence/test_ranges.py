import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxlab.errors import InputError
from jaxlab.evidence import (
    AugmentConfig,
    Bound,
    FitConfig,
    Hyper,
    MarglikConfig,
    affine_views,
    averaged,
    fit_epoch,
    init_fit,
    init_ranges,
    ranges_update,
    stochastic_evidence,
)

DIGITS = load_digits()
IMAGES = jnp.asarray(DIGITS.images[:24, :, :, None] / 16, jnp.float32)
LABELS = jnp.asarray(DIGITS.target[:24], jnp.int32)
AUGMENT = AugmentConfig(samples=3, steps=2, learning_rate=0.05)


def apply(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["W"]) @ params["V"]


def params():
    rng = np.random.default_rng(0)
    shapes = {"W": (64, 12), "V": (12, 10)}
    return {name: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for name, shape in shapes.items()}


def test_a_step_goes_up_the_gradient_of_the_bound_over_the_same_views():
    state = init_ranges(config=AUGMENT)
    state = state._replace(eta=jnp.array([0.1, 0.1, 0.5, 0.1, 0.1, 0.1]))
    hyper = Hyper(jnp.zeros(()), jnp.zeros(()))
    key = jax.random.key(3)

    @jax.jit
    def step(state):
        return ranges_update(
            key, apply, params(), IMAGES, LABELS, state, hyper, total=240, bound=Bound(), config=AUGMENT
        )

    def value(eta):
        view_key, row_key = jax.random.split(key)
        views = affine_views(view_key, IMAGES, eta, samples=3)
        return (
            stochastic_evidence(
                row_key, averaged(apply), params(), views, LABELS, hyper, total=240, config=Bound()
            )[0]
            / 240
        )

    moved, before = step(state)
    wanted, slope = jax.jit(jax.value_and_grad(value))(state.eta)
    assert float(before) == pytest.approx(float(wanted), rel=1e-5)
    np.testing.assert_allclose(moved.eta - state.eta, 0.05 * np.sign(slope), atol=1e-3)


def test_training_learns_ranges_when_they_are_due():
    optimizer = optax.adam(1e-2)
    config = FitConfig(MarglikConfig(steps=1), batch=12, block=8, burn_in=1, augment=AUGMENT)
    epoch = jax.jit(lambda state: fit_epoch(apply, optimizer, state, IMAGES, LABELS, config=config))
    first, metrics = epoch(init_fit(jax.random.key(0), params(), optimizer, config=config))
    assert not np.any(first.ranges.eta) and np.isnan(metrics.evidence) and np.isfinite(metrics.loss)
    second, metrics = epoch(first)
    assert np.isfinite(metrics.evidence)
    # Two steps of Adam from zero.
    assert 0 < np.abs(second.ranges.eta).max() <= 0.11
    third, _ = epoch(second)
    assert np.isfinite(third.ranges.eta).all() and (third.ranges.eta != second.ranges.eta).all()


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("steps", 0), ("learning_rate", 0.0)])
def test_wrong_options_are_named(name, value):
    with pytest.raises(InputError, match=f"{name} is 0"):
        dataclasses.replace(AUGMENT, **{name: value})
