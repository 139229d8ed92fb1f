"""The symmetric rank-k update against NumPy in float64, in all forms, and its lowering for accelerators."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowering import holds_kernel

from jaxlab.kernels.syrk import syrk_accumulate, tokens_last


def draw(n, tokens, seed=0):
    rng = np.random.default_rng(seed)
    total = rng.standard_normal((n, n))
    return rng.standard_normal((n, tokens)), total + total.T


@given(n=st.integers(1, 40), tokens=st.integers(1, 40), seed=st.integers(0, 99))
def test_equals_numpy_in_float64(n, tokens, seed):
    x, total = draw(n, tokens, seed)
    with jax.enable_x64(True):
        out = syrk_accumulate(jnp.asarray(total), jnp.asarray(x))
    assert np.linalg.norm(out - (total + x @ x.T)) < 1e-14 * np.linalg.norm(total + x @ x.T)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("n", "tokens"), [(7, 5), (130, 70), (1100, 33)])
def test_both_implementations_equal_numpy_and_are_symmetric(n, tokens, dtype, implementation):
    x, total = draw(n, tokens)
    x = jnp.asarray(x, dtype)
    out = np.asarray(syrk_accumulate(jnp.asarray(total, jnp.float32), x, implementation=implementation))
    exact = total + np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
    assert np.linalg.norm(out - exact) < 2e-6 * np.linalg.norm(exact)
    np.testing.assert_array_equal(
        out - np.asarray(total, np.float32), (out - np.asarray(total, np.float32)).T
    )
    assert out.dtype == np.float32


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_under_jit_vmap_and_grad(implementation):
    x, _ = draw(6, 9)
    x = jnp.asarray(np.stack([x, 2 * x]), jnp.float32)

    def function(x):
        return syrk_accumulate(None, x, implementation=implementation)

    each = jnp.stack([function(one) for one in x])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(x), each, rtol=1e-6)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((6, 6)), jnp.float32)
    found = jax.grad(lambda x: jnp.sum(weights * function(x)))(x[0])
    np.testing.assert_allclose(found, (weights + weights.T) @ x[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("implementation", "platform"), [("xla", "cpu"), ("xla", "cuda"), ("xla", "tpu")])
def test_the_plain_version_lowers_everywhere(implementation, platform):
    function = jax.jit(lambda x: syrk_accumulate(None, x, implementation=implementation))
    jax.export.export(function, platforms=[platform])(jax.ShapeDtypeStruct((600, 1024), jnp.float32))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_lowers_for_accelerators(dtype, platform):
    x = jax.ShapeDtypeStruct((576, 1024), dtype)
    assert holds_kernel(lambda x: syrk_accumulate(None, x, implementation="pallas"), x, platform=platform)


@pytest.mark.parametrize(
    ("total", "x", "options", "message"),
    [
        (None, jnp.zeros(3), {}, "x has shape"),
        (None, jnp.zeros((3, 2), jnp.int32), {}, "x has shape"),
        (jnp.zeros((2, 2)), jnp.zeros((3, 2)), {}, "total has shape"),
        (None, jnp.zeros((3, 2)), {"implementation": "cuda"}, "implementation"),
    ],
)
def test_bad_input_is_refused(total, x, options, message):
    with pytest.raises(ValueError, match=message):
        syrk_accumulate(total, x, **options)


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (6, 7), (1, 4), (16, 193)])
def test_tokens_last_is_the_transpose(shape):
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    for dtype in (jnp.float32, jnp.bfloat16):
        for one in (tokens_last, jax.jit(tokens_last)):
            found = one(x.astype(dtype))
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, x.astype(dtype).T)
    several = jnp.stack([x, 2 * x])
    np.testing.assert_array_equal(jax.vmap(tokens_last)(several), several.swapaxes(1, 2))
    gradient = jax.jacobian(tokens_last)(x)
    np.testing.assert_array_equal(gradient, jax.jacobian(jnp.transpose)(x))
