import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxlab.errors import InputError
from jaxlab.evidence import FitConfig, MarglikConfig, fit_epoch, init_fit, marglik_fit

DIGITS = load_digits()
X, Y = (DIGITS.data[:120] / 16).astype(np.float32), DIGITS.target[:120].astype(np.int32)
OPTIMIZER = optax.adam(1e-2)
CONFIG = FitConfig(MarglikConfig(steps=3), batch=40, block=20, burn_in=2, frequency=2)


def apply(params, x):
    return jnp.tanh(x @ params["W"] + params["b"]) @ params["V"]


def start(config=CONFIG):
    rng = np.random.default_rng(0)
    params = {
        "W": jnp.asarray(rng.normal(size=(64, 16)) / 8, jnp.float32),
        "b": jnp.zeros(16),
        "V": jnp.asarray(rng.normal(size=(16, 10)) / 4, jnp.float32),
    }
    return init_fit(jax.random.key(1), params, OPTIMIZER, config=config)


@pytest.fixture(scope="module")
def run():
    """The states and metrics of seven epochs."""
    seen = []
    marglik_fit(
        apply, OPTIMIZER, start(), X, Y, epochs=7, config=CONFIG, report=lambda *both: seen.append(both)
    )
    return seen


def test_hyperparameters_move_in_the_epochs_they_are_due(run):
    precisions = [0.0, *[float(state.marglik.hyper.log_delta["W"]) for state, _ in run]]
    moved = [epoch for epoch in range(7) if precisions[epoch + 1] != precisions[epoch]]
    assert moved == [2, 4, 6]
    updated = [epoch for epoch, (_, metrics) in enumerate(run) if np.isfinite(metrics.evidence)]
    assert updated == [2, 4, 6]


def test_loss_is_the_mean_of_the_log_joint_and_falls(run):
    losses = [float(metrics.loss) for _, metrics in run]
    assert losses[1] < losses[0] and all(np.isfinite(losses))
    config = dataclasses.replace(CONFIG, batch=120)
    state, metrics = jax.jit(lambda s: fit_epoch(apply, OPTIMIZER, s, X, Y, config=config))(start())
    params = start().params
    logits = np.asarray(apply(params, X), np.float64)
    logits -= logits.max(1, keepdims=True)
    each = logits[np.arange(120), Y] - np.log(np.exp(logits).sum(1))
    quad = sum(float(jnp.sum(leaf**2)) for leaf in params.values())
    assert float(metrics.loss) == pytest.approx(-each.mean() + quad / 240, rel=1e-5)
    # The step is that of the optimiser at the gradient of this loss.
    gradient = jax.grad(
        lambda p: (
            optax.losses.softmax_cross_entropy_with_integer_labels(apply(p, X), Y).mean()
            + sum(jnp.sum(leaf**2) for leaf in p.values()) / 240
        )
    )(params)
    updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)
    np.testing.assert_allclose(state.params["V"], params["V"] + updates["V"], atol=1e-5)


def test_a_run_goes_on_where_it_stopped(run):
    state = run[3][0]
    last = marglik_fit(apply, OPTIMIZER, state, X, Y, epochs=3, config=CONFIG)
    for one, other in zip(jax.tree.leaves(last.params), jax.tree.leaves(run[-1][0].params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "cluster"])
def test_blocks_of_other_kinds_give_finite_evidence(kind):
    config = dataclasses.replace(CONFIG, kind=kind, burn_in=0, block=50)
    _, metrics = jax.jit(lambda s: fit_epoch(apply, OPTIMIZER, s, X, Y, config=config))(start(config))
    assert -10 < float(metrics.evidence) < 0


@pytest.mark.slow
def test_training_maps_over_keys():
    state = start()
    keys = jax.random.split(jax.random.key(2), 2)
    config = dataclasses.replace(CONFIG, burn_in=0)

    def run(key):
        return fit_epoch(apply, OPTIMIZER, state._replace(key=key), X, Y, config=config)[1]

    many, one = jax.jit(jax.vmap(run))(keys), jax.jit(run)(keys[1])
    assert float(many.evidence[1]) == pytest.approx(float(one.evidence), rel=1e-4)
    assert float(many.loss[1]) == pytest.approx(float(one.loss), rel=1e-4)


def coupled(params, x):
    outputs = apply(params, x)
    return outputs - outputs.mean(0)


def test_wrong_runs_are_named():
    def fit(function=apply, config=CONFIG, params=None, epochs=1):
        state = start()
        if params is not None:
            state = state._replace(params=state.params | params)
        return marglik_fit(function, OPTIMIZER, state, X, Y, epochs=epochs, config=config)

    with pytest.raises(InputError, match="epochs is 0"):
        fit(epochs=0)
    with pytest.raises(InputError, match="apply gives an example other outputs beside others"):
        fit(coupled)
    with pytest.raises(InputError, match="block is 121; it must be at least 1 and at most 120"):
        fit(config=dataclasses.replace(CONFIG, block=121))
    with pytest.raises(InputError, match="batch is 121"):
        fit(config=dataclasses.replace(CONFIG, batch=121))


def test_jacobians_that_are_not_finite_are_named_by_their_leaf():
    def infinite(params, x):
        return apply(params, x) + 0 * jnp.sqrt(params["b"][0] - params["b"][0])

    config = dataclasses.replace(CONFIG, burn_in=0)
    still = optax.set_to_zero()
    state = start()._replace(opt_state=still.init(start().params))
    with pytest.raises(InputError, match=r"the Jacobian is not finite at params\['b'\]; "):
        marglik_fit(infinite, still, state, X, Y, epochs=1, config=config)


@pytest.mark.parametrize("name", ["batch", "block", "frequency", "draws"])
def test_counts_below_one_are_named(name):
    with pytest.raises(InputError, match=f"{name} is 0"):
        dataclasses.replace(CONFIG, **{name: 0})
    with pytest.raises(InputError, match="burn_in is -1"):
        FitConfig(burn_in=-1)
    with pytest.raises(InputError, match="kind is 'sorted'"):
        FitConfig(kind="sorted")
