"""Kronecker factors against explicit gradients of every token, in all forms of `accumulate`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import INPUT_SITES, LINEARS, embed, forward, logits, register_linear, token_logprobs
from jaxlab.models.fast_products import with_fast_products
from jaxlab.models.linear import linear
from jaxlab.models.transformer import SITE_OF, run_layers
from jaxlab.pruning.factors import accumulate, curvature, init_factors, means, token_taps

TOKENS = toy_tokens(windows=2, context=10)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "shift"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Moved:
    """A matrix whose outputs are moved by an array of their own shape, to differentiate with respect to."""

    weight: Any
    shift: Any


register_linear(Moved, lambda x, leaf: linear(x, leaf.weight) + leaf.shift, lambda leaf: leaf.weight)


def explicit_gradients(params, cfg, tokens, labels=None):
    """{matrix: [L, batch, time, rows]}: of each sequence's mean loss, by plain `jax.grad`."""
    labels = tokens[:, 1:] if labels is None else labels

    def loss(shifts):
        moved = {name: Moved(params["layers"][name], shifts[name]) for name in LINEARS}
        hidden = forward({**params, "layers": params["layers"] | moved}, cfg, tokens).hidden
        log_p = jax.nn.log_softmax(logits(params, cfg, hidden[:, :-1]))
        return -jnp.take_along_axis(log_p, labels[..., None], axis=-1).mean(axis=(1, 2)).sum()

    shapes = {name: params["layers"][name].shape[:2] for name in LINEARS}
    zeros = {name: jnp.zeros((layers, *tokens.shape, rows)) for name, (layers, rows) in shapes.items()}
    return jax.grad(loss)(zeros)


def explicit_inputs(params, cfg, tokens):
    """{site: [L, batch, time, columns]}, a constant 1 behind the inputs of biased matrices."""
    _, _, taps = run_layers(params, cfg, embed(params, cfg, tokens), collect=lambda taps: taps)
    biased = {site: f"{names[0]}_bias" in params["layers"] for site, names in INPUT_SITES.items()}
    return {
        site: jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1) if biased[site] else x
        for site, x in taps.items()
    }


def explicit_means(params, cfg, tokens):
    a, g = explicit_inputs(params, cfg, tokens), explicit_gradients(params, cfg, tokens)
    A = {name: jnp.einsum("lbti,lbtj->lij", a[SITE_OF[name]], a[SITE_OF[name]]) for name in LINEARS}
    G = {name: jnp.einsum("lbti,lbtj->lij", g[name], g[name]) for name in LINEARS}
    return tuple({name: total / tokens.size for name, total in one.items()} for one in (A, G))


def assert_close(found, expected, tolerance):
    for name in LINEARS:
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_equal_sums_over_explicit_gradients_of_every_token(family):
    params, cfg = toy(family)
    factors = init_factors(params)
    for row in TOKENS:  # two batches of one sequence
        factors = accumulate(params, cfg, row[None], factors)
    A, G = means(factors)
    expected_A, expected_G = explicit_means(params, cfg, jnp.asarray(TOKENS))
    assert_close(A, expected_A, 1e-5)
    assert_close(G, expected_G, 1e-5)
    assert float(factors.token_count) == TOKENS.size


def test_the_loss_is_that_of_the_model_to_the_bit():
    params, cfg = toy()
    taps = token_taps(params, cfg, TOKENS)
    np.testing.assert_array_equal(taps.losses, -token_logprobs(params, cfg, jnp.asarray(TOKENS)))
    factors = accumulate(params, cfg, TOKENS, init_factors(params))
    exact = -np.asarray(token_logprobs(params, cfg, jnp.asarray(TOKENS)), np.float64)
    assert (
        abs(float(factors.loss) - exact.sum()) < 1e-6 * exact.sum()
        and float(factors.predictions) == exact.size
    )
    fast = params | {"layers": with_fast_products(params["layers"])}
    taps = token_taps(params, cfg, TOKENS, products="bfloat16")
    _, _, plain = run_layers(fast, cfg, embed(params, cfg, jnp.asarray(TOKENS)), collect=lambda taps: taps)
    for site, x in plain.items():
        flat = x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2).astype(jnp.bfloat16)
        np.testing.assert_array_equal(taps.inputs[site], flat)


def test_products_in_bfloat16_are_close():
    params, cfg = toy()
    expected_A, expected_G = explicit_means(params, cfg, jnp.asarray(TOKENS))
    A, G = means(curvature(params, cfg, TOKENS, products="bfloat16"))
    assert_close(A, expected_A, 0.02)
    assert_close(G, expected_G, 0.1)


def test_padding_counts_for_nothing():
    params, cfg = toy()
    padded = np.concatenate([TOKENS, np.zeros((2, 3), np.int32)], axis=1)
    mask = np.concatenate([np.ones((2, 10), bool), np.zeros((2, 3), bool)], axis=1)
    plain = accumulate(params, cfg, TOKENS, init_factors(params))
    masked = accumulate(params, cfg, padded, init_factors(params), mask=jnp.asarray(mask))
    for found, expected in zip(means(masked), means(plain), strict=True):
        assert_close(found, expected, 1e-5)
    np.testing.assert_allclose(masked[2:], plain[2:], rtol=1e-6)


def test_sampled_labels_have_a_backward_pass_each_and_average_to_the_fisher_information():
    params, cfg = toy()
    tokens = jnp.asarray(TOKENS[:1, :4])
    hidden = forward(params, cfg, tokens).hidden[:, :-1]
    p = np.asarray(jax.nn.softmax(logits(params, cfg, hidden)))[0]
    # Labels of different positions are independent, with gradients of mean zero: the exact expectation is a sum over
    # the positions' labels one at a time.
    exact = dict.fromkeys(LINEARS, 0.0)

    gradients_at = jax.jit(jax.vmap(lambda labels: explicit_gradients(params, cfg, tokens, labels)))
    draws, together, total = 400, 8, dict.fromkeys(LINEARS, 0.0)
    for start in range(0, draws, together):
        factors = accumulate(
            params,
            cfg,
            tokens,
            init_factors(params),
            fisher="mc",
            draws=together,
            key=jax.random.fold_in(jax.random.key(0), start),
        )
        for name in LINEARS:
            total[name] = total[name] + np.asarray(factors.G[name]) * together / draws
    for position in range(3):
        labels = np.zeros((cfg.vocab_size, 1, 3), np.int32)
        others = gradients_at(labels[:1])
        labels[:, 0, position] = np.arange(cfg.vocab_size)
        gradients = gradients_at(labels)
        for name in LINEARS:
            g = np.asarray(gradients[name] - others[name])
            centred = g - np.einsum("v,vlbtr->lbtr", p[position], g)
            exact[name] = exact[name] + np.einsum("v,vlbtr,vlbts->lrs", p[position], centred, centred)
    for name in LINEARS:
        error = np.linalg.norm(total[name] - exact[name]) / np.linalg.norm(exact[name])
        assert error < 0.2, (name, error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fisher": "exact"}, "fisher is 'exact'"),
        ({"fisher": "mc"}, "needs at least one draw and a key"),
        ({"draws": 0}, "draws is 0"),
        ({"products": "float16"}, "products is 'float16'"),
        ({"mask": jnp.ones((2, 9), bool)}, "mask has shape"),
    ],
)
def test_bad_input_is_refused(change, message):
    params, cfg = toy()
    with pytest.raises(InputError, match=message):
        accumulate(params, cfg, TOKENS, init_factors(params), **change)


def test_no_windows_and_no_tokens_are_refused():
    params, cfg = toy()
    with pytest.raises(InputError, match="at least one"):
        curvature(params, cfg, TOKENS[:0])
    with pytest.raises(InputError, match="no tokens were accumulated"):
        means(init_factors(params))
    with pytest.raises(InputError, match="needs two"):
        accumulate(params, cfg, TOKENS[:, :1], init_factors(params))
