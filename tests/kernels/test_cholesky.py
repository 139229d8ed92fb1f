"""The recursive inverse against NumPy in float64, under all transformations, and its lowering."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.kernels.cholesky import cholesky_inverse


def positive_definite(n, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, n + 5))
    return x @ x.T / n + 0.1 * np.eye(n)


def error(found, exact):
    """Relative, so that an answer of zeros is off by 1."""
    return np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)


@given(n=st.integers(1, 12), seed=st.integers(0, 99))
def test_small_matrices_equal_numpy_in_float64(n, seed):
    a = positive_definite(n, seed)
    with jax.enable_x64(True):
        found = cholesky_inverse(jnp.asarray(a))
    assert error(found, np.linalg.inv(a)) < 1e-11


@pytest.mark.parametrize("n", [193, 400, 830])
def test_matrices_that_are_halved_equal_numpy(n):
    a = positive_definite(n)
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(cholesky_inverse)(jnp.asarray(a)))
    assert error(found, np.linalg.inv(a)) < 1e-11
    assert error(found, found.T) < 1e-13
    single = np.asarray(cholesky_inverse(jnp.asarray(a, jnp.float32)))
    assert error(single, np.linalg.inv(a)) < 2e-5
    assert single.dtype == np.float32


def test_only_the_lower_triangle_is_read():
    a = positive_definite(250)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            cholesky_inverse(jnp.asarray(np.tril(a))), cholesky_inverse(jnp.asarray(a))
        )


def test_a_matrix_that_is_not_positive_definite_gives_nan():
    a = positive_definite(250, 1)
    a[200, 200] = -1.0
    assert np.isnan(cholesky_inverse(jnp.asarray(a, jnp.float32))).any()


def test_under_vmap_and_grad():
    stack = jnp.asarray(np.stack([positive_definite(210, seed) for seed in range(2)]), jnp.float32)
    each = jnp.stack([cholesky_inverse(one) for one in stack])
    assert error(jax.vmap(cholesky_inverse)(stack), each) < 2e-5
    with jax.enable_x64(True):
        a, weights = jnp.asarray(positive_definite(200)), jnp.asarray(positive_definite(200, 3))
        found = jax.grad(lambda a: jnp.sum(weights * cholesky_inverse((a + a.T) / 2)))(a)
        inverse = np.linalg.inv(a)
        assert error(found, -inverse @ weights @ inverse) < 1e-10


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_everywhere(platform):
    jax.export.export(jax.jit(cholesky_inverse), platforms=[platform])(
        jax.ShapeDtypeStruct((576, 576), jnp.float32)
    )


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="must be square"):
        cholesky_inverse(jnp.zeros((2, 3)))
