"""Networks of the literature, by their numbers of parameters, flax's own layers, and as functions of parameters."""

import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxlab.errors import InputError
from jaxlab.evidence import (
    Bound,
    Hyper,
    MultilayerPerceptron,
    functional,
    gram_leaves,
    le_net,
    mini_net,
    partition_evidence,
)

IMAGES = np.random.default_rng(0).random((3, 28, 28, 1)).astype(np.float32)


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_numbers_of_parameters_are_those_of_the_literature():
    assert parameters(mini_net(rngs=nnx.Rngs(0))) == 14538
    assert parameters(le_net(rngs=nnx.Rngs(0))) == 44426
    assert parameters(MultilayerPerceptron((784, 1000, 10), rngs=nnx.Rngs(0))) == 795010


@pytest.mark.parametrize("make", [mini_net, le_net])
def test_outputs_are_those_of_layers_of_flax(make):
    model = make(rngs=nnx.Rngs(1))
    hidden = jnp.asarray(IMAGES)
    for number, layer in enumerate(model.convolutions):
        hidden = jax.nn.relu(layer(hidden))
        if number < 2:
            hidden = nnx.max_pool(hidden, (2, 2), (2, 2))
    hidden = hidden.reshape(3, -1)
    for layer in model.head.layers[:-1]:
        hidden = jax.nn.relu(layer(hidden))
    wanted = model.head.layers[-1](hidden)
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(IMAGES), wanted, atol=1e-5)


def test_structured_grams_of_a_convolutional_network_are_those_of_its_jacobian():
    apply, params = functional(mini_net(rngs=nnx.Rngs(2)))
    factors = jnp.asarray(np.random.default_rng(1).normal(size=(3, 10, 2)), jnp.float32)
    found, wanted = (
        jax.jit(lambda p, method=method: gram_leaves(apply, p, IMAGES, factors, method=method))(params)
        for method in ("structured", "leaf_jacobian")
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(12)(x))
        return linen.Dense(10)(hidden)


def test_linen_nnx_and_plain_functions_have_one_evidence():
    x, y = jnp.asarray(digits_net.X[:20], jnp.float32), jnp.asarray(digits_net.Y[:20])
    weights = jax.tree.map(jnp.float32, digits_net.PARAMS)
    first = {"kernel": weights["W1"].T, "bias": weights["b1"]}
    last = {"kernel": weights["W2"].T, "bias": weights["b2"]}
    by_nnx, _ = functional(MultilayerPerceptron((64, 12, 10), rngs=nnx.Rngs(0)))
    models = {
        "plain": (digits_net.apply, weights),
        "linen": (_Linen().apply, {"params": {"Dense_0": first, "Dense_1": last}}),
        "nnx": (by_nnx, {"layers": {0: first, 1: last}}),
    }
    partition = jnp.arange(20).reshape(2, 10)
    values = {}
    for name, (apply, params) in models.items():
        run = jax.jit(
            lambda p, apply=apply: (
                partition_evidence(
                    jax.random.key(0),
                    apply,
                    p,
                    x,
                    y,
                    Hyper(jnp.zeros(()), jnp.zeros(())),
                    partition,
                    config=Bound(),
                ).value
            )
        )
        values[name] = float(run(params))
    assert values["linen"] == pytest.approx(values["plain"], rel=1e-5)
    assert values["nnx"] == pytest.approx(values["plain"], rel=1e-5)


def test_networks_that_cannot_be_are_named():
    with pytest.raises(InputError, match="side is 8; images of 8 x 8 are too small"):
        mini_net(side=8, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"sizes is \(3,\); it must hold at least two widths"):
        MultilayerPerceptron((3,), rngs=nnx.Rngs(0))

    class Normalised(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(2, rngs=rngs)

    with pytest.raises(InputError, match="model holds BatchStat beside its parameters"):
        functional(Normalised(nnx.Rngs(0)))
