"""The pyramid search against brute force, published vectors and the exact search; its invariants."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.kernels.pyramid_search import greedy_search, projection_search, search
from jaxlab.quantization.exact_search import search_exact

SIZES = ((8, 4), (8, 16), (16, 16), (16, 28))


def cosine(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (x * y).sum(-1) / np.maximum(np.linalg.norm(x, axis=-1), 1e-300) / np.linalg.norm(y, axis=-1)


def distortion_loss(x, y, best):
    """How much more of x's energy y misses than `best` does, in dB, each with its best gain."""
    energy = (x.astype(np.float64) ** 2).sum(-1)
    missed = [np.mean(energy * (1 - cosine(x, code) ** 2)) for code in (y, best)]
    return 10 * np.log10(missed[0] / missed[1])


def gaussian(groups, n, seed=0):
    return np.random.default_rng(seed).standard_normal((groups, n)).astype(np.float32)


def pyramid(n, k):
    """All non-negative integer vectors of length n and sum k."""
    if n == 1:
        return [(k,)]
    return [(first, *rest) for first in range(k + 1) for rest in pyramid(n - 1, k - first)]


def brute_force_cosine(x, k):
    points = np.array(pyramid(x.shape[-1], k))
    return (np.abs(x).astype(np.float64) @ (points / np.linalg.norm(points, axis=-1, keepdims=True)).T).max(
        -1
    )


@pytest.mark.parametrize(("n", "k"), [(1, 3), (2, 7), (3, 1), (4, 4), (5, 5), (6, 6), (8, 4)])
def test_meets_brute_force(n, k):
    smooth = gaussian(1000, n)
    tied = np.round(1.5 * smooth)  # full of ties and zeros
    tied[np.abs(tied).sum(-1) == 0] = 1
    for x, least in ((smooth, 0.999), (tied, 0.99)):
        y = np.asarray(search(jnp.asarray(x), k=k))
        short = brute_force_cosine(x, k) / np.linalg.norm(x.astype(np.float64), axis=-1) - cosine(x, y)
        assert -1e-6 < short.min()
        assert (short < 1e-6).mean() >= least


def test_published_vectors():
    x = jnp.asarray([-1.28, 0.63, 0.58, 1.29])
    assert search(x, k=5).tolist() == [-2, 1, 0, 2]
    assert cosine(x, search(x, k=5)) == pytest.approx(0.957392, abs=1e-6)
    for other in (projection_search, greedy_search):
        assert other(x, k=5).tolist() == [-1, 1, 1, 2]
        assert cosine(x, other(x, k=5)) == pytest.approx(0.953881, abs=1e-6)
    x = jnp.asarray([3, -1, 0.5, 0.25, 0.1, 0.05, 0.6, -0.7])
    assert search(x, k=8).tolist() == [4, -1, 1, 0, 0, 0, 1, -1]
    assert cosine(x, search(x, k=8)) == pytest.approx(0.989972, abs=1e-6)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_loses_less_than_a_hundredth_of_a_decibel(n, k):
    x = gaussian(6000, n)
    best = search_exact(x, k)
    assert -1e-9 < distortion_loss(x, np.asarray(search(jnp.asarray(x), k=k)), best) < 0.003
    assert distortion_loss(x, np.asarray(search(jnp.asarray(x), k=k, candidates=3)), best) < 0.01


def test_other_searches_lose_what_was_measured():
    x = gaussian(6000, 16)
    best = search_exact(x, 16)
    assert distortion_loss(x, np.asarray(projection_search(jnp.asarray(x), k=16)), best) == pytest.approx(
        0.209, abs=0.02
    )
    assert distortion_loss(x, np.asarray(greedy_search(jnp.asarray(x), k=16)), best) == pytest.approx(
        0.051, abs=0.015
    )
    x = gaussian(6000, 8)
    best = search_exact(x, 4)
    assert distortion_loss(x, np.asarray(projection_search(jnp.asarray(x), k=4)), best) == pytest.approx(
        0.326, abs=0.03
    )
    assert distortion_loss(x, np.asarray(greedy_search(jnp.asarray(x), k=4)), best) == pytest.approx(
        0.004, abs=0.004
    )


@pytest.mark.parametrize("law", ["gaussian", "heavy tails", "four-bit grid"])
def test_the_sum_is_k_on_a_million_weights(law):
    x = gaussian(65536, 16)
    if law == "heavy tails":
        x = x**5
    elif law == "four-bit grid":
        x = np.round(3 * x)
    y = np.asarray(search(jnp.asarray(x), k=28), np.int64)
    assert (np.abs(y).sum(-1) == 28).all()


GROUPS = st.lists(
    st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.5]), min_size=6, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.sampled_from([1, 4, 9, 40]), st.sampled_from([1, 8]))
def test_signs_order_and_sum(x, k, candidates):
    x = np.asarray(x, np.float32)
    y = np.asarray(search(jnp.asarray(x), k=k, candidates=candidates), np.int64)
    assert np.abs(y).sum() == k
    if np.abs(x).max() >= np.finfo(np.float32).tiny:
        assert ((y == 0) | (np.sign(y) == np.sign(x))).all()
        larger = np.abs(x)[:, None] > np.abs(x)[None, :]
        assert (np.abs(y)[:, None] >= np.abs(y)[None, :])[larger].all()
    else:
        assert y.tolist() == [k, 0, 0, 0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(8, 6), (16, 28)]), st.integers(-60, 60))
def test_equivariant_under_permutations_signs_and_scales(seed, size, exponent):
    n, k = size
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16, n)).astype(np.float32)
    y = np.asarray(search(jnp.asarray(x), k=k))
    order, signs = rng.permutation(n), rng.choice([-1, 1], n)
    moved = np.asarray(search(jnp.asarray((x * signs)[:, order]), k=k))
    scaled = np.asarray(search(jnp.asarray(np.float32(2.0) ** exponent * x), k=k))
    # Sums in another order round differently, so that among nearly equal codewords another may win. The search is not
    # exact: a group whose cosine differed by 2.2e-4 has been seen at (16, 28).
    np.testing.assert_allclose(cosine(x, scaled), cosine(x, y), rtol=1e-6)
    np.testing.assert_allclose(cosine((x * signs)[:, order], moved), cosine(x, y), rtol=1e-3)
    assert (moved == (y * signs)[:, order]).all(-1).mean() > 0.85


def test_extreme_and_degenerate_groups():
    x = np.array(
        [
            [0, 0, 0, 0],
            [np.nan, 1, 2, 3],
            [1, -np.inf, 1, 1],
            [1e-42, 0, 0, 0],
            [1e38, 3e38, -1e38, 0],
            [1e-37, -3e-37, 0, 1e-37],
            [1, -1, 1, 1],
            [0, 0, -7, 0],
        ],
        np.float32,
    )
    y = np.asarray(search(jnp.asarray(x), k=5))
    assert y[:4].tolist() == [[5, 0, 0, 0]] * 4
    assert y[4:].tolist() == [[1, 3, -1, 0], [1, -3, 0, 1], [2, -1, 1, 1], [0, 0, -5, 0]]
    np.testing.assert_array_equal(search(jnp.asarray(x), k=127)[6], [32, -32, 32, 31])


def test_a_group_is_coded_the_same_whatever_stands_beside_it():
    x = gaussian(3001, 16)
    y = np.asarray(search(jnp.asarray(x), k=28))
    np.testing.assert_array_equal(search(jnp.asarray(x[7:1500]), k=28), y[7:1500])
    x[0] = 0
    x[1] *= np.float32(1e30)
    np.testing.assert_array_equal(search(jnp.asarray(x), k=28)[2:], y[2:])


@pytest.mark.parametrize("function", [search, greedy_search, projection_search])
def test_jit_vmap_and_eager_agree(function):
    x = jnp.asarray(gaussian(60, 4)).reshape(3, 4, 5, 4)
    y = function(x, k=3)
    assert y.dtype == jnp.int8
    assert y.shape == x.shape
    np.testing.assert_array_equal(jax.jit(lambda x: function(x, k=3))(x), y)
    np.testing.assert_array_equal(jax.vmap(lambda x: function(x, k=3))(x), y)
    np.testing.assert_array_equal(jax.vmap(lambda x: function(x, k=3), 1, 1)(x), y)
    np.testing.assert_array_equal(function(x[0, 0, 0], k=3), y[0, 0, 0])
    assert function(x[:0], k=3).shape == (0, 4, 5, 4)


def test_half_precision_is_searched_in_single():
    x = jnp.asarray(gaussian(60, 4), jnp.bfloat16)
    np.testing.assert_array_equal(search(x, k=3), search(x.astype(jnp.float32), k=3))


@pytest.mark.parametrize("function", [search, greedy_search, projection_search])
def test_lowers_for_all_platforms(function):
    x = jax.ShapeDtypeStruct((24, 16), jnp.float32)
    jax.export.export(jax.jit(lambda x: function(x, k=28)), platforms=["cpu", "cuda", "tpu"])(x)


def test_bad_arguments_are_named():
    x = jnp.ones((3, 8))
    for function in (search, greedy_search, projection_search):
        with pytest.raises(ValueError, match="k = 0: pulses must lie between 1 and 127"):
            function(x, k=0)
        with pytest.raises(ValueError, match="k = 128"):
            function(x, k=128)
        with pytest.raises(ValueError, match="must be floating point"):
            function(x.astype(jnp.int32), k=4)
        with pytest.raises(ValueError, match="at least 1 weight"):
            function(jnp.float32(1), k=4)
    with pytest.raises(ValueError, match="candidates = 17; it must lie between 1 and 16"):
        search(x, k=4, candidates=17)
    with pytest.raises(ValueError, match="implementation = 'cuda'"):
        search(x, k=4, implementation="cuda")
