"""Nearest Kronecker products against the singular value decomposition of the rearranged Fisher information."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import LINEARS
from jaxlab.models.transformer import SITE_OF
from jaxlab.pruning.factors import TokenTaps, curvature, mean_factors, means, token_taps
from jaxlab.pruning.nearest_kronecker import KroneckerSum, nearest_factors, nearest_kronecker

TOKENS = toy_tokens(windows=4, context=10)


def random_taps(seed, tokens=50, columns=4, rows=3, names=("down",), layers=2):
    """One sequence whose inputs and gradients depend on each other; gradients are of a sum over its predictions."""
    rng = np.random.default_rng(seed)
    inputs, gradients = {}, {}
    for name in names:
        a = rng.standard_normal((layers, columns, tokens)) * rng.gamma(0.5, size=(layers, 1, tokens))
        mixing = rng.standard_normal((layers, rows, columns))
        inputs[SITE_OF[name]] = a
        gradients[name] = np.abs(mixing @ a) * rng.standard_normal((layers, rows, tokens))
    return TokenTaps(inputs, gradients, np.zeros((1, tokens - 1)))


def rearranged(taps, name):
    """R [L, rows^2, columns^2] and the gradients of the mean loss that it is made of."""
    a, g = np.float64(taps.inputs[SITE_OF[name]]), np.float64(taps.gradients[name]) / taps.losses.shape[1]
    aa = np.einsum("lit,ljt->ltij", a, a).reshape(len(a), a.shape[-1], -1)
    gg = np.einsum("lit,ljt->ltij", g, g).reshape(len(g), g.shape[-1], -1)
    return np.einsum("ltg,lta->lga", gg, aa) / a.shape[-1]


def residuals(R, found, name):
    """|R - sum of the terms|, layer by layer."""
    layers, left = len(R), np.array(R)
    for A, G in zip(np.asarray(found.A[name]), np.asarray(found.G[name]), strict=True):
        left -= np.einsum("lg,la->lga", G.reshape(layers, -1), A.reshape(layers, -1))
    return np.linalg.norm(left, axis=(1, 2))


def truncated(R, terms):
    """The residual of the best sum."""
    singular = np.linalg.svd(R, compute_uv=False)
    return np.sqrt((singular[:, terms:] ** 2).sum(axis=1))


def independent(taps, name):
    """IAD: E[a a^T] and E[g g^T]."""
    a, g = taps.inputs[SITE_OF[name]], taps.gradients[name] / taps.losses.shape[1]
    A, G = (np.einsum("lit,ljt->lij", x, x)[None] / x.shape[-1] for x in (a, g))
    return KroneckerSum({name: A}, {name: G})


def nearest(taps, **options):
    with jax.enable_x64(True):
        return jax.device_get(nearest_kronecker(lambda: [jax.tree.map(jnp.asarray, taps)], **options))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("terms", [1, 2])
def test_residual_is_that_of_the_truncated_singular_value_decomposition(seed, terms):
    taps = random_taps(seed, names=("down", "o"))
    found = nearest(taps, terms=terms, half_steps=120)
    for name in ("down", "o"):
        R = rearranged(taps, name)
        np.testing.assert_allclose(residuals(R, found, name), truncated(R, terms), rtol=1e-9)
        for A, G in zip(found.A[name], found.G[name], strict=True):
            np.testing.assert_allclose(*(np.linalg.norm(x, axis=(1, 2)) for x in (A, G)), rtol=1e-9)
            assert not ((A[:, 0, 0] < 0) & (G[:, 0, 0] < 0)).any()
        for factor in (found.A[name][0], found.G[name][0]):
            assert (np.linalg.eigvalsh(factor) > -1e-12 * np.linalg.norm(factor)).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 9999), half_steps=st.sampled_from([2, 4, 6]), tokens=st.sampled_from([2, 5, 50]))
def test_never_above_independent_factors_and_better_with_every_step_and_term(seed, half_steps, tokens):
    taps = random_taps(seed, tokens=tokens)
    R = rearranged(taps, "down")
    one = nearest(taps, half_steps=half_steps)
    slack = 1e-12 * np.linalg.norm(R, axis=(1, 2))
    residual = residuals(R, one, "down")
    assert (residual <= residuals(R, independent(taps, "down"), "down") + slack).all()
    assert (residual >= truncated(R, 1) - slack).all()
    assert (residuals(R, nearest(taps, half_steps=half_steps + 2), "down") <= residual + slack).all()
    assert (residuals(R, nearest(taps, half_steps=half_steps, terms=2), "down") <= residual + slack).all()
    again = nearest(taps, half_steps=2, start=one)
    assert (residuals(R, again, "down") <= residual + slack).all()


def test_a_warm_start_goes_on_where_the_earlier_run_stopped():
    taps = random_taps(5)
    for terms in (1, 2):
        whole = nearest(taps, half_steps=40, terms=terms)
        resumed = nearest(taps, half_steps=20, terms=terms, start=nearest(taps, half_steps=40, terms=terms))
        R = rearranged(taps, "down")
        assert (residuals(R, resumed, "down") <= residuals(R, whole, "down") * (1 + 1e-12)).all()
    second_from_one = nearest(taps, half_steps=120, terms=2, start=nearest(taps, half_steps=40))
    np.testing.assert_allclose(residuals(R, second_from_one, "down"), truncated(R, 2), rtol=1e-9)


def test_batches_and_jit_change_nothing():
    taps = random_taps(2, tokens=60, names=("gate", "up", "v"))
    with jax.enable_x64(True):
        taps = jax.tree.map(jnp.asarray, taps)

        def part(x, half):
            return x[..., :30] if half == 0 else x[..., 30:]

        # Two sequences of 30 tokens, as one batch and as two.
        both = taps._replace(losses=jnp.zeros((2, 29)))
        halves = [
            TokenTaps(*jax.tree.map(lambda x, i=i: part(x, i), taps[:2]), jnp.zeros((1, 29)))
            for i in range(2)
        ]
        whole = nearest_kronecker(lambda: [both], terms=2)
        split = nearest_kronecker(lambda: iter(halves), terms=2)
        jitted = jax.jit(lambda taps: nearest_kronecker(lambda: [taps], terms=2))(both)
    for other in (split, jitted):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12 * np.abs(y).max()),
            other,
            whole,
        )


def test_on_a_model_it_is_nearer_than_independent_factors():
    params, cfg = toy("qwen2", num_kv_heads=2)

    def taps():
        for row in TOKENS:
            yield token_taps(params, cfg, row[None])

    found = nearest_kronecker(taps, half_steps=4)
    once = token_taps(params, cfg, TOKENS)
    A, G = means(curvature(params, cfg, TOKENS))
    iad = KroneckerSum({name: A[name][None] for name in LINEARS}, {name: G[name][None] for name in LINEARS})
    for name in ("k", "v"):
        R = rearranged(once, name)
        assert found.A[name].shape == iad.A[name].shape
        ours, theirs, best = (residuals(R, found, name), residuals(R, iad, name), truncated(R, 1))
        assert (ours < theirs).all()
        np.testing.assert_allclose(ours, best, rtol=0.02)
    assert set(found.A) == set(found.G) == set(LINEARS)


def test_bfloat16_tokens_are_summed_in_float32():
    taps = random_taps(1)
    rounded = TokenTaps(*jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), taps[:2]), jnp.zeros((1, 49)))
    found = nearest_kronecker(lambda: [rounded])
    R = rearranged(rounded, "down")
    assert found.A["down"].dtype == jnp.float32
    one = nearest(TokenTaps(*jax.tree.map(np.float64, rounded[:2]), taps.losses))
    np.testing.assert_allclose(residuals(R, found, "down"), residuals(R, one, "down"), rtol=1e-5)


def test_a_layer_without_gradients_gets_zeros_and_recovers_from_them():
    taps = random_taps(3)
    gradients = {"down": taps.gradients["down"].copy()}
    gradients["down"][1] = 0
    zeros = nearest(taps._replace(gradients=gradients))
    for factor in (zeros.A["down"], zeros.G["down"]):
        assert (np.asarray(factor[0, 1]) == 0).all() and np.abs(factor[0, 0]).max() > 0
    warm, cold = nearest(taps, start=zeros), nearest(taps)
    np.testing.assert_allclose(warm.A["down"][0, 1], cold.A["down"][0, 1], rtol=1e-12)


def test_tiny_gradients_do_not_underflow():
    taps = random_taps(4)
    tiny = taps._replace(gradients={"down": taps.gradients["down"] * 1e-12})
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tiny)
    found, expected = nearest_kronecker(lambda: [single]), nearest(taps)
    product = [np.einsum("klij,klab->klijab", x.G["down"], x.A["down"]) for x in (found, expected)]
    np.testing.assert_allclose(
        np.float64(product[0]) * 1e24, product[1], rtol=1e-3, atol=1e-4 * product[1].max()
    )


def test_bad_input_is_refused():
    taps = random_taps(0)
    for half_steps in (0, 1, 3):
        with pytest.raises(InputError, match="even and at least 2.*IAD"):
            nearest(taps, half_steps=half_steps)
    with pytest.raises(InputError, match="terms is 3"):
        nearest(taps, terms=3)
    with pytest.raises(InputError, match="no tokens"):
        nearest_kronecker(list)
    with pytest.raises(InputError, match="start has nothing for the inputs of down"):
        nearest(taps, start=nearest(random_taps(0, names=("o",))))
    with pytest.raises(InputError, match=r"start has \(2, 5, 5\) for"):
        nearest(taps, start=nearest(random_taps(0, columns=5)))
    used = iter([taps])  # a generator that is empty the second time
    with pytest.raises(InputError, match="every call must give all"):
        nearest_kronecker(lambda: used)


def test_factors_of_windows_are_those_of_all_their_tokens():
    params, cfg = toy("qwen2")
    factors = nearest_factors(params, cfg, jnp.asarray(TOKENS), half_steps=4)
    found = nearest_kronecker(lambda: [token_taps(params, cfg, jnp.asarray(TOKENS))], half_steps=4)
    for name in LINEARS:
        A, G = mean_factors(factors, name)
        np.testing.assert_allclose(A, found.A[name][0], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(G, found.G[name][0], rtol=1e-5, atol=1e-9)
    independent = curvature(params, cfg, jnp.asarray(TOKENS))
    assert float(factors.predictions) == float(independent.predictions)
    np.testing.assert_allclose(factors.loss, independent.loss, rtol=1e-6)
