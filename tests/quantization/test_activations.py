"""Inputs of a block's matrices, and their moments, against those of the whole forward pass in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import toy, toy_tokens

from jaxlab.models import INPUT_SITES, LINEARS, embed
from jaxlab.models.fast_products import with_fast_products
from jaxlab.models.rope import layer_geometry
from jaxlab.models.transformer import SITE_OF, run_layers
from jaxlab.quantization.activations import BRANCHES, after_branch, block_inputs, second_moment, site_inputs

PARAMS, CFG = toy("qwen3")
TOKENS = toy_tokens(windows=6, context=16)


@pytest.fixture(scope="module")
def expected():
    """Residual stream after the first block, and the inputs [tokens, size] at each site."""
    first = {name: leaf[:1] for name, leaf in PARAMS["layers"].items()}
    hidden = embed(PARAMS, CFG, jnp.asarray(TOKENS))
    tuple_of_one = {**PARAMS, "layers": (jax.tree.map(lambda leaf: leaf[0], first),)}
    after, _, taps = run_layers(tuple_of_one, CFG, hidden, collect=lambda taps: taps)
    return after, {site: np.asarray(x, np.float64).reshape(TOKENS.size, -1) for site, x in taps[0].items()}


def found(**options):
    layer = jax.tree.map(lambda leaf: leaf[0], PARAMS["layers"])
    place = jax.tree.map(lambda leaf: leaf[0], layer_geometry(CFG))
    return block_inputs(layer, CFG, embed(PARAMS, CFG, jnp.asarray(TOKENS)), *place, **options)


@pytest.mark.parametrize("at_once, batches", [(16, 6), (40, 3), (2048, 1)])
def test_tokens_of_all_windows_come_in_order_whatever_the_batches(monkeypatch, expected, at_once, batches):
    monkeypatch.setattr("jaxlab.quantization.activations._TOKENS_AT_ONCE", at_once)
    block_inputs.clear_cache()
    after, inputs = found()
    np.testing.assert_allclose(after, expected[0], rtol=1e-4, atol=1e-4)
    assert sorted(inputs) == sorted(INPUT_SITES) == sorted(set(SITE_OF.values()))
    assert sorted(SITE_OF) == sorted(LINEARS)
    for site, x in inputs.items():
        assert x.shape[0] == batches and x.dtype == jnp.bfloat16
        in_order = np.asarray(x, np.float64).transpose(0, 2, 1).reshape(TOKENS.size, -1)
        np.testing.assert_allclose(in_order, expected[1][site], rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_weighted_means_of_outer_products(expected, weighted):
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=TOKENS.shape).astype(np.float32) if weighted else None
    x = found()[1]["mlp_hidden"]
    other = (x + jnp.asarray(rng.normal(size=x.shape), x.dtype)).astype(x.dtype)
    moment, cross = second_moment(x, other, None if weights is None else jnp.asarray(weights))
    share = np.ones((TOKENS.size, 1)) if weights is None else weights.reshape(-1, 1).astype(np.float64)
    one, two = (np.asarray(y, np.float64).transpose(0, 2, 1).reshape(TOKENS.size, -1) for y in (x, other))
    for result, left in ((moment, one), (cross, two)):
        exact = left.T @ (one * share) / share.sum()
        assert np.linalg.norm(result - exact) < 0.003 * np.linalg.norm(exact)
    np.testing.assert_array_equal(moment, moment.T)
    alone, none = second_moment(x, None, None if weights is None else jnp.asarray(weights))
    assert none is None
    np.testing.assert_allclose(alone, moment, rtol=1e-5, atol=1e-5)


def test_site_by_site_the_block_is_the_same():
    """With fast products, which round what o and down read in both ways of going through the block."""
    layer = with_fast_products(jax.tree.map(lambda leaf: leaf[0], PARAMS["layers"]))
    place = jax.tree.map(lambda leaf: leaf[0], layer_geometry(CFG))
    hidden = embed(PARAMS, CFG, jnp.asarray(TOKENS))
    after, inputs = block_inputs(layer, CFG, hidden, *place)
    for site in INPUT_SITES:
        x, rows = site_inputs(layer, CFG, hidden, *place, site=site)
        assert x.dtype == jnp.bfloat16 and (rows is None) == (site not in BRANCHES)
        np.testing.assert_allclose(
            x.astype(jnp.float32), inputs[site].astype(jnp.float32), rtol=2**-6, atol=1e-3
        )
        if rows is not None:
            hidden = after_branch(layer, CFG, hidden, rows, site=site)
    np.testing.assert_allclose(hidden, after, rtol=1e-3, atol=2e-3)
