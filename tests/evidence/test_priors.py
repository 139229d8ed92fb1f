import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.errors import InputError
from jaxlab.evidence import (
    add_weight_decay,
    for_leaves,
    log_precisions,
    square_sums,
    weight_decay,
    within_prior,
)

PARAMS = {
    "a": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
    "b": {"kernel": jnp.full((3, 1), 2.0)},
}
LAYERS = {"a": jnp.log(2.0), "b": jnp.log(3.0)}


def test_a_prefix_is_spread_over_what_stands_below_it():
    np.testing.assert_allclose(np.stack(for_leaves(LAYERS, PARAMS)), np.log([2, 2, 3]), rtol=1e-6)
    np.testing.assert_allclose(np.stack(for_leaves(jnp.array(0.5), PARAMS)), 0.5)
    layouts = {
        layout: log_precisions(PARAMS, init=2.0, layout=layout) for layout in ("scalar", "tensor", "element")
    }
    assert [one.shape for one in for_leaves(layouts["element"], PARAMS)] == [(3,), (2, 3), (3, 1)]
    for layout in layouts.values():
        for one in for_leaves(layout, PARAMS):
            np.testing.assert_allclose(one, np.log(2), rtol=1e-6)


def test_sums_are_pooled_over_what_shares_a_precision():
    sums = within_prior(LAYERS, square_sums(PARAMS))
    assert {name: float(value) for name, value in sums.items()} == {"a": 55.0 + 3.0, "b": 12.0}
    assert float(within_prior(jnp.array(0.0), square_sums(PARAMS))) == 70.0


def test_weight_decay_gives_the_gradient_of_the_prior_in_the_mean_loss():
    decay = weight_decay(LAYERS, PARAMS, examples=10)

    def prior(params):
        terms = jax.tree.map(
            lambda d, below: jnp.exp(d) * sum(jnp.sum(w**2) for w in jax.tree.leaves(below)), LAYERS, params
        )
        return sum(terms.values()) / 20

    wanted = jax.grad(prior)(PARAMS)
    found = jax.tree.map(jnp.multiply, decay, PARAMS)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: for_leaves({"a": jnp.array(0.0)}, PARAMS), "log_delta is no prefix"),
        (
            lambda: for_leaves({"a": jnp.ones(2), "b": jnp.array(0.0)}, PARAMS),
            r"shape \(2,\) for params\['a'\]\['bias'\]",
        ),
        (
            lambda: for_leaves(log_precisions(PARAMS, layout="element"), PARAMS, scalars=True),
            "it must be a number$",
        ),
        (lambda: log_precisions(PARAMS, init=-1.0), "init is -1"),
        (lambda: log_precisions(PARAMS, layout="row"), "layout is 'row'"),
        (lambda: log_precisions({}), "params has no leaves"),
        (lambda: weight_decay(LAYERS, PARAMS, examples=0), "examples is 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_chain_with_the_decay_is_adamw_leaf_by_leaf():
    log_delta = jax.tree.map(lambda leaf: jnp.log(jnp.float32(3.0)), PARAMS)
    gradient = jax.tree.map(lambda leaf: jnp.cos(leaf) + 0.3, PARAMS)
    rule = optax.chain(optax.scale_by_adam(), add_weight_decay(log_delta, examples=50), optax.scale(-0.1))
    found, _ = rule.update(gradient, rule.init(PARAMS), PARAMS)
    theirs = optax.adamw(0.1, weight_decay=3.0 / 50)
    wanted, _ = theirs.update(gradient, theirs.init(PARAMS), PARAMS)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(InputError, match="params is None"):
        rule.update(gradient, rule.init(PARAMS))
