"""The exact search against brute force over the whole pyramid."""

import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantization.exact_search import search_exact


def pyramid(n, k):
    """All non-negative integer vectors of length n and sum k."""
    if n == 1:
        return [(k,)]
    return [(first, *rest) for first in range(k + 1) for rest in pyramid(n - 1, k - first)]


def best_cosine(x, k):
    points = np.array(pyramid(x.shape[-1], k))
    return (np.abs(x) @ (points / np.linalg.norm(points, axis=-1, keepdims=True)).T).max(-1)


def cosine(x, y):
    return (x * y).sum(-1) / np.linalg.norm(y.astype(float), axis=-1)


@pytest.mark.parametrize(("n", "k"), [(1, 4), (2, 9), (4, 4), (5, 5), (8, 4), (8, 6), (6, 10), (10, 5)])
@pytest.mark.parametrize("law", ["gaussian", "laplacian", "integers"])
def test_equals_brute_force(n, k, law):
    rng = np.random.default_rng(n * k)
    draw = {
        "gaussian": lambda size: rng.standard_normal(size),
        "laplacian": lambda size: rng.laplace(size=size),
        "integers": lambda size: rng.integers(-3, 4, size).astype(float),
    }[law]
    x = draw((500, n))
    y = search_exact(x, k)
    assert y.dtype == np.int8
    assert (np.abs(y.astype(int)).sum(-1) == k).all()
    np.testing.assert_allclose(cosine(x, y), best_cosine(x, k), rtol=1e-12, atol=1e-12)


def test_published_vectors():
    assert search_exact(np.array([-1.28, 0.63, 0.58, 1.29]), 5).tolist() == [-2, 1, 0, 2]
    x = np.array([3, -1, 0.5, 0.25, 0.1, 0.05, 0.6, -0.7])
    assert search_exact(x, 8).tolist() == [4, -1, 1, 0, 0, 0, 1, -1]


def test_scale_does_not_matter_and_zeros_have_a_codeword():
    x = np.random.default_rng(0).standard_normal((3, 4, 8))
    y = search_exact(x, 9)
    assert y.shape == x.shape
    for scale in (1e-200, 1e200):
        np.testing.assert_array_equal(search_exact(scale * x, 9), y)
    assert search_exact(np.zeros((2, 4)), 7).tolist() == [[7, 0, 0, 0]] * 2


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="NaN or an infinity"):
        search_exact(np.array([1.0, np.nan]), 3)
    with pytest.raises(InputError, match="k = 128"):
        search_exact(np.ones(3), 128)
    with pytest.raises(InputError, match="at least 1 weight"):
        search_exact(np.float64(1), 3)
