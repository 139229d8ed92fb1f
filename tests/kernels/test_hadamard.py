"""The Hadamard transform against its explicit matrix in float64; the factors against what defines them."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.kernels.hadamard import LARGEST_FACTOR, factors, hadamard_transform

KNOWN = (12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 100, 108, 124, 132, 140, 148, 156, 164, 172, 180)
LENGTHS = (1, 2, 3, 7, 12, 36, 40, 64, 96, 260, 576, 640, 1536, 2048)


def matrix(n):
    """The transform's matrix, column by column."""
    return np.asarray(hadamard_transform(jnp.eye(n))).T


def outlier_spread(n):
    return float(np.abs(matrix(n)).max() * np.sqrt(n))


@pytest.mark.parametrize("n", LENGTHS)
def test_is_orthonormal_and_inverts(n):
    q = matrix(n).astype(np.float64)
    np.testing.assert_allclose(q @ q.T, np.eye(n), atol=2e-6)
    x = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    there = hadamard_transform(jnp.asarray(x))
    np.testing.assert_allclose(there, x.astype(np.float64) @ q.T, atol=1e-5)
    np.testing.assert_allclose(hadamard_transform(there, inverse=True), x, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(there, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("m", KNOWN)
def test_classical_orders_have_entries_of_equal_size(m):
    assert factors(m) == (m, 0)
    q = matrix(m).astype(np.float64) * np.sqrt(m)
    np.testing.assert_allclose(np.abs(q), 1, atol=1e-5)
    np.testing.assert_allclose(np.round(q) @ np.round(q).T, m * np.eye(m), atol=0)


def test_is_the_kronecker_product_of_its_factors():
    for n in (24, 160, 576, 9 * 8, 11 * 2):
        m, p = factors(n)
        expected = np.kron(matrix(m).astype(np.float64), scipy.linalg.hadamard(2**p) / 2 ** (p / 2))
        np.testing.assert_allclose(matrix(n), expected, atol=1e-6)


def test_powers_of_two_are_sylvesters():
    np.testing.assert_allclose(matrix(128), scipy.linalg.hadamard(128) / np.sqrt(128), atol=1e-6)


def test_factors_of_model_widths():
    widths = {576: (36, 4), 1536: (12, 7), 640: (20, 5), 2048: (1, 11), 14336: (28, 9), 11008: (172, 6)}
    assert {n: factors(n) for n in widths} == widths
    assert factors(9) == (9, 0)
    assert factors(18) == (9, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4096))
def test_factors_multiply_to_n(n):
    odd = n // (n & -n)
    if odd <= LARGEST_FACTOR:
        m, p = factors(n)
        assert m << p == n
        assert m % odd == 0
    else:
        with pytest.raises(ValueError, match="odd part"):
            factors(n)


@pytest.mark.parametrize("n", [9, 35, 92, 577])
def test_without_a_hadamard_matrix_entries_stay_below_sqrt_two(n):
    assert outlier_spread(n) <= np.sqrt(2) + 1e-4


def test_gradient_is_the_transpose():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 36)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 36)), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(weight * hadamard_transform(x)))(x)
    np.testing.assert_allclose(gradient, hadamard_transform(weight, inverse=True), atol=1e-5)
    _, tangent = jax.jvp(hadamard_transform, (x,), (weight,))
    np.testing.assert_allclose(tangent, hadamard_transform(weight), atol=1e-6)


def test_jit_vmap_and_eager_agree():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 40)), jnp.float32)
    y = hadamard_transform(x)
    np.testing.assert_allclose(jax.jit(hadamard_transform)(x), y, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(hadamard_transform)(x), y, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(hadamard_transform, in_axes=1, out_axes=1)(x), y, atol=1e-6)


def test_keeps_the_dtype():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 48)), jnp.bfloat16)
    y = hadamard_transform(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(y, np.float64), np.asarray(x, np.float64) @ matrix(48).astype(np.float64).T, atol=0.03
    )
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((3, 48))
        back = hadamard_transform(hadamard_transform(jnp.asarray(x)), inverse=True)
        assert back.dtype == jnp.float64
        np.testing.assert_allclose(back, x, atol=1e-14)


@pytest.mark.parametrize("n", [576, 2048])
def test_lowers_for_all_platforms(n):
    x = jax.ShapeDtypeStruct((8, n), jnp.float32)
    for inverse in (False, True):
        function = jax.jit(lambda x, inverse=inverse: hadamard_transform(x, inverse=inverse))
        jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(x)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="last axis of at least 1"):
        hadamard_transform(jnp.float32(3))
    with pytest.raises(ValueError, match="needs floating point"):
        hadamard_transform(jnp.ones(8, jnp.int32))
    with pytest.raises(ValueError, match=r"odd part 2053, above 2048; pad n"):
        hadamard_transform(jnp.ones(2053))
    with pytest.raises(ValueError, match="n is 0"):
        factors(0)
