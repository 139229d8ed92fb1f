"""Packed forms to run from stand for the same matrices as the tensors that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear
from jaxlab.models.packed import PackedMatrix
from jaxlab.quantization.pvq import dequantize, quantize
from jaxlab.quantization.run_formats import Rotated, run_format
from jaxlab.quantization.scalar import ScalarSpec, dequantize_scalar, quantize_scalar
from jaxlab.quantization.spec import PVQSpec


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agree(leaf, matrix):
    """As a matrix and in products, to the rounding of float32."""
    matrix = np.asarray(matrix, np.float64)
    largest = np.abs(matrix).max()
    np.testing.assert_allclose(dense(leaf), matrix, rtol=0, atol=1e-6 * largest)
    x = normal(2, matrix.shape[1], seed=1)
    exact = x.astype(np.float64) @ matrix.T
    np.testing.assert_allclose(linear(jnp.asarray(x), leaf), exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (ScalarSpec(4, 32), 4),
        (ScalarSpec(8, 64), 8),
        (ScalarSpec(3, 16, "midrise"), 4),
        (ScalarSpec(4, 64, "midtread"), 4),
        (ScalarSpec(8, 64, "midtread"), 8),
    ],
)
def test_scalar_codes(spec, bits):
    tensor = quantize_scalar(jnp.asarray(normal(5, 64)), spec=spec)
    leaf = run_format(tensor)
    assert isinstance(leaf, PackedMatrix) and leaf.bits == bits
    assert (leaf.minimum is None) == (spec == ScalarSpec(8, 64, "midtread"))
    agree(leaf, dequantize_scalar(tensor))


@pytest.mark.parametrize(("k", "bits"), [(6, 4), (40, 8)])
def test_pyramid_codes_and_their_rotation(k, bits):
    tensor = quantize(jnp.asarray(normal(6, 32)), PVQSpec(n=8, k=k, gain_bits=3), jax.random.key(0))
    leaf = run_format(tensor)
    assert isinstance(leaf, Rotated) and leaf.matrix.bits == bits
    agree(leaf, dequantize(tensor))
    stack = jax.tree.map(lambda *arrays: jnp.stack(arrays), leaf, leaf)
    np.testing.assert_array_equal(dense(stack)[1], dense(leaf))


def test_bad_tensors_are_named():
    with pytest.raises(InputError, match="tensor is a ndarray"):
        run_format(np.ones((2, 2)))
    tensor = quantize_scalar(jnp.asarray(normal(5, 64)), spec=ScalarSpec(4, 32))
    with pytest.raises(InputError, match=r"shape \(2, 5, 64\); it must be one matrix"):
        run_format(jax.tree.map(lambda array: jnp.stack([array, array]), tensor))
    with pytest.raises(InputError, match="groups of 33"):
        run_format(quantize_scalar(jnp.asarray(normal(2, 66)), spec=ScalarSpec(4, 33)))
    padded = quantize(jnp.asarray(normal(2, 20)), PVQSpec(n=8, k=6, gain_bits=3), jax.random.key(0), pad=True)
    with pytest.raises(InputError, match="20 columns in groups of 8"):
        run_format(padded)
