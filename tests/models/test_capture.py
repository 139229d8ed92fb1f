import jax
import numpy as np
import pytest
from torch_twins import random_tokens, twin

from jaxlab.errors import InputError
from jaxlab.models.capture import second_moments
from jaxlab.models.stacking import unstack_layers
from jaxlab.models.transformer import INPUT_SITES, embed, run_layers


def explicit(params, cfg, tokens, mask):
    """x^T x in float64 from the taps themselves."""
    run = jax.jit(lambda hidden: run_layers(params, cfg, hidden, collect=lambda taps: taps)[2])
    taps = run(embed(params, cfg, tokens))
    sums = {}
    for site, x in taps.items():
        x = np.asarray(x, np.float64)[:, mask]
        sums[site] = np.einsum("lni,lnj->lij", x, x)
    return sums


@pytest.mark.parametrize("masked", [False, True])
def test_second_moments_equal_explicit_products(masked):
    _, params, cfg = twin("gemma3")
    tokens = random_tokens((2, 20))
    mask = np.arange(20) < np.array([[20], [13]]) if masked else np.ones((2, 20), bool)
    found = second_moments(params, cfg, tokens, mask=mask if masked else None)
    assert found.token_count == mask.sum()
    assert found.sums.keys() == INPUT_SITES.keys()
    for site, theirs in explicit(params, cfg, tokens, mask).items():
        np.testing.assert_allclose(found.sums[site], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_a_tuple_of_layers_gives_the_same_moments_layer_by_layer():
    _, params, cfg = twin("qwen2")
    tokens = random_tokens((2, 20))
    stacked = second_moments(params, cfg, tokens)
    for site, moments in second_moments(unstack_layers(params), cfg, tokens).sums.items():
        for one, other in zip(moments, stacked.sums[site], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_moments_of_two_batches_add_up():
    _, params, cfg = twin("qwen2")
    tokens = random_tokens((4, 20))
    halves = [second_moments(params, cfg, half) for half in (tokens[:2], tokens[2:])]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    whole = second_moments(params, cfg, tokens)
    assert added.token_count == whole.token_count
    for site in INPUT_SITES:
        np.testing.assert_allclose(added.sums[site], whole.sums[site], rtol=1e-4, atol=1e-3)


def test_a_mask_of_another_shape_is_named():
    _, params, cfg = twin("qwen2")
    with pytest.raises(InputError, match="mask has shape"):
        second_moments(params, cfg, random_tokens((2, 20)), mask=np.ones((2, 19), bool))
