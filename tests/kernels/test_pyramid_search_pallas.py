"""The search as a Pallas kernel (interpreted here) finds what the plain version finds, and lowers for accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import holds_kernel

from jaxlab.kernels.pyramid_search import search


def cosine(x, y):
    y = np.asarray(y, np.float64)
    return (np.asarray(x, np.float64) * y).sum(-1) / np.linalg.norm(y, axis=-1)


@pytest.mark.parametrize(("n", "k"), [(5, 7), (16, 28)])
def test_finds_what_the_plain_version_finds(n, k):
    x = (
        np.random.default_rng(n).standard_normal((1100, n)).astype(np.float32)
    )  # more than one tile, not a multiple
    x[:7] = np.round(x[:7])
    x[7], x[8, 0], x[9] = 0, np.nan, 1e30 * x[9]
    plain = np.asarray(search(jnp.asarray(x), k=k))
    y = np.asarray(search(jnp.asarray(x), k=k, implementation="pallas"))
    assert (np.abs(y.astype(int)).sum(-1) == k).all()
    assert (y == plain).all(-1).mean() > 0.999
    np.testing.assert_allclose(cosine(x[10:], y[10:]), cosine(x[10:], plain[10:]), rtol=1e-3)


def test_under_jit_and_vmap():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    y = search(x, k=3)
    function = jax.jit(lambda x: search(x, k=3, implementation="pallas"))
    np.testing.assert_array_equal(function(x), y)
    np.testing.assert_array_equal(jax.vmap(function)(x), y)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("n", "k"), [(8, 6), (16, 28)])
def test_lowers_for_accelerators(n, k, platform):
    x = jax.ShapeDtypeStruct((3000, n), jnp.float32)
    assert holds_kernel(lambda x: search(x, k=k, implementation="pallas"), x, platform=platform)
