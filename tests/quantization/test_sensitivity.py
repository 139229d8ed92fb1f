"""Fisher information at the matrices' outputs against explicit gradients, and against the divergence it predicts."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import toy, toy_tokens

from jaxlab.models import INPUT_SITES, LINEARS, embed, forward, logits, register_linear
from jaxlab.models.draws import draw
from jaxlab.models.fast_products import fast_head, with_fast_products
from jaxlab.models.linear import linear
from jaxlab.models.transformer import run_layers
from jaxlab.quantization.rotation import random_signs, rotate
from jaxlab.quantization.sensitivity import Sensitivity, matrix_costs, sensitivity, token_weights

PARAMS, CFG = toy()
TOKENS = toy_tokens(windows=2, context=10)
KEY = jax.random.key(3)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "shift"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Shifted:
    """A matrix whose outputs are shifted by an array of their own shape."""

    weight: Any
    shift: jax.Array


register_linear(Shifted, lambda x, leaf: linear(x, leaf.weight) + leaf.shift, lambda leaf: leaf.weight)


def scores(params, windows):
    return logits(params, CFG, forward(params, CFG, windows).hidden)


@pytest.fixture(scope="module")
def gradients():
    """{name: [L, W, T, rows]}: the gradient of the log-likelihood of drawn labels at every output, explicitly."""
    fast = with_fast_products(PARAMS["layers"])

    def log_p(layers):
        hidden = forward({**PARAMS, "layers": layers}, CFG, TOKENS).hidden
        return jax.nn.log_softmax(linear(hidden, fast_head(PARAMS)))

    drawn = draw(jax.random.fold_in(KEY, 0), jnp.exp(log_p(fast)))

    def log_likelihood(shifts):
        layers = fast | {name: Shifted(fast[name], shifts[name]) for name in LINEARS}
        return jnp.take_along_axis(log_p(layers), drawn[..., None], axis=-1).sum()

    zeros = {name: jnp.zeros((2, *TOKENS.shape, PARAMS["layers"][name].shape[1])) for name in LINEARS}
    return jax.grad(log_likelihood)(zeros)


@pytest.fixture(scope="module")
def fisher():
    return sensitivity(PARAMS, CFG, TOKENS, KEY)


def test_moments_of_gradients_are_those_of_explicit_ones(gradients, fisher):
    """Of the model with bfloat16 products, within the 2^-8 to which the gradients are rounded."""
    for name in LINEARS:
        g = np.asarray(gradients[name], np.float64)
        square = (g**2).sum(-1)
        np.testing.assert_allclose(fisher.tokens[name], square, rtol=0.02, atol=1e-4 * square.max())
        unit = g / np.maximum(np.sqrt(square), 1e-30)[..., None]
        expected = np.einsum("lwtr,lwts->lrs", g, unit) / TOKENS.size
        error = np.linalg.norm(fisher.outputs[name] - expected) / np.linalg.norm(expected)
        assert error < 0.02, (name, error)


def test_half_the_weighted_power_of_an_error_is_the_divergence_it_causes():
    """E KL = 1/2 sum_t F_t |dW x_t|^2 / rows for isotropic errors dW, over labels and errors drawn many times."""
    name, layer, draws = "up", 1, 24
    window = jnp.asarray(TOKENS[:1])
    drawn = [sensitivity(PARAMS, CFG, window, jax.random.key(i)).tokens[name][layer, 0] for i in range(draws)]
    hidden = embed(PARAMS, CFG, window)
    x = run_layers(PARAMS, CFG, hidden, collect=lambda taps: taps["mlp_input"])[2][layer, 0]
    w = PARAMS["layers"][name]
    sigma = 0.01
    predicted = 0.5 * sigma**2 * float(jnp.sum(jnp.mean(jnp.stack(drawn), 0) * jnp.sum(x * x, -1)))

    @jax.jit
    def divergence(key):
        noise = sigma * jax.random.normal(key, w.shape[1:])
        other = {**PARAMS, "layers": PARAMS["layers"] | {name: w.at[layer].add(noise)}}
        p, q = (jax.nn.log_softmax(scores(params, window)) for params in (PARAMS, other))
        return jnp.sum(jnp.exp(p) * (p - q))

    measured = np.mean([divergence(jax.random.key(100 + i)) for i in range(draws)])
    assert measured == pytest.approx(predicted, rel=0.35)


def test_batches_are_joined_and_counted_to_progress(monkeypatch):
    seen = []
    monkeypatch.setattr("jaxlab.quantization.sensitivity._TOKENS_AT_ONCE", TOKENS.shape[1])
    both = sensitivity(PARAMS, CFG, TOKENS, KEY, progress=seen.append)
    first = sensitivity(PARAMS, CFG, TOKENS[:1], KEY)
    assert seen == [1, 2]
    for name in LINEARS:
        assert both.tokens[name].shape == (2, *TOKENS.shape)
        np.testing.assert_array_equal(both.tokens[name][:, :1], first.tokens[name])
        length = jnp.sqrt(both.tokens[name]).mean((1, 2))
        np.testing.assert_allclose(jnp.trace(both.outputs[name], axis1=1, axis2=2), length, rtol=0.01)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_token_weights_are_powers_of_weights_of_mean_one(fisher, power):
    weights = token_weights(fisher, power=power)
    for name in LINEARS:
        tokens = np.asarray(fisher.tokens[name], np.float64)
        for layer in range(2):
            expected = (tokens[layer] / tokens[layer].mean()) ** power
            np.testing.assert_allclose(weights[name][layer], expected, rtol=1e-4)


def test_tokens_weigh_the_same_where_no_prediction_minds(fisher):
    dead = Sensitivity(fisher.tokens | {"v": jnp.zeros_like(fisher.tokens["v"])}, fisher.outputs)
    np.testing.assert_array_equal(token_weights(dead)["v"], 1)


def unexplained(h):
    """The variance of each coordinate given those behind it."""
    parts = []
    for c in range(len(h)):
        later = slice(c + 1, None)
        parts.append(h[c, c] - h[c, later] @ np.linalg.solve(h[later, later], h[later, c]))
    return np.array(parts)


def damped(h, share):
    return h + share * np.mean(np.diag(h)) * np.eye(len(h))


def test_costs_are_what_later_inputs_and_outputs_leave_unexplained(fisher):
    costs = matrix_costs(PARAMS, CFG, TOKENS, fisher, KEY, damping=0.03, output_damping=0.2)
    taps = run_layers(PARAMS, CFG, embed(PARAMS, CFG, jnp.asarray(TOKENS)), collect=lambda taps: taps)[2]
    for site, names in INPUT_SITES.items():
        for name in names:
            x = np.asarray(rotate(taps[site], random_signs(KEY, taps[site].shape[-1])), np.float64)
            for layer in range(2):
                inputs = x[layer].reshape(TOKENS.size, -1)
                square = np.asarray(fisher.tokens[name][layer], np.float64).reshape(-1, 1)
                a = inputs.T @ (inputs * np.sqrt(square)) / TOKENS.size
                b = np.asarray(fisher.outputs[name][layer], np.float64)
                trace = np.mean(square * (inputs**2).sum(1, keepdims=True))
                ratio = trace / np.trace(a) / np.trace(b)
                variance = (np.asarray(PARAMS["layers"][name][layer], np.float64) ** 2).mean(1)
                rows = (variance * unexplained(damped(b, 0.2))).sum()
                expected = 0.5 * ratio * rows * unexplained(damped(a, 0.03)).sum()
                assert float(costs[name][layer]) == pytest.approx(expected, rel=0.05), name


def test_costs_are_positive_and_follow_the_fisher_information(fisher):
    costs = matrix_costs(PARAMS, CFG, TOKENS, fisher, KEY)
    doubled = fisher._replace(tokens={name: 2 * tokens for name, tokens in fisher.tokens.items()})
    twice = matrix_costs(PARAMS, CFG, TOKENS, doubled, KEY)
    for name in LINEARS:
        assert costs[name].shape == (2,)
        assert np.all(np.isfinite(costs[name])) and np.all(np.asarray(costs[name]) > 0)
        np.testing.assert_allclose(twice[name], 2 * costs[name], rtol=5e-3)
