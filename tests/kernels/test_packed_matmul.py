"""Products with packed matrices against NumPy in float64 and int64, and their lowering for accelerators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import holds_kernel

from jaxlab.kernels.packed_matmul import (
    TILE,
    chunk_size,
    dequantize_packed,
    integer_products,
    pack_codes,
    pack_scales,
    packed_integer_matmul,
    packed_matmul,
    packed_rows,
    quantize_activations,
)

RANGE = {4: (0, 16), 8: (-128, 128)}


def draw(bits, rows, columns, group, *, stack=(), minimum=True, seed=0):
    """Codes, scales and minima in NumPy, packed, and the matrix in float64."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(*RANGE[bits], (*stack, rows, columns)).astype(np.int32)
    side = [
        rng.standard_normal((*stack, rows, columns // group)).astype(np.float16) for _ in range(1 + minimum)
    ]
    wide = [np.repeat(array.astype(np.float64), group, axis=-1) for array in side]
    matrix = codes * wide[0] + (wide[1] if minimum else 0)
    packed = (
        pack_codes(jnp.asarray(codes), bits=bits, chunk=chunk_size(columns, group)),
        *(pack_scales(jnp.asarray(array)) for array in side),
    )
    return packed, matrix


def relative(found, exact):
    return np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("vectors", "rows", "columns", "group", "minimum"), [(1, 70, 96, 32, True), (9, 64, 128, 64, False)]
)
def test_product_equals_the_one_in_float64(implementation, bits, vectors, rows, columns, group, minimum):
    packed, matrix = draw(bits, rows, columns, group, minimum=minimum)
    x = np.random.default_rng(1).standard_normal((vectors, columns)).astype(np.float32)
    found = packed_matmul(jnp.asarray(x), *packed, rows=rows, implementation=implementation)
    assert found.dtype == jnp.float32 and found.shape == (vectors, rows)
    assert relative(found, x @ matrix.T) < 1e-6


@pytest.mark.parametrize("columns", [8, 48])
@given(bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
@settings(max_examples=4)
def test_narrow_chunks_and_a_scale_a_row_in_double_precision(columns, bits, seed):
    with jax.enable_x64(True):
        packed, matrix = draw(bits, 5, columns, columns, seed=seed)
        x = np.random.default_rng(seed).standard_normal((2, columns))
        assert relative(packed_matmul(jnp.asarray(x), *packed, rows=5), x @ matrix.T) < 1e-13


@pytest.mark.parametrize("bits", [4, 8])
def test_integer_sums_are_exact_even_at_the_ends_of_the_range(bits):
    rng = np.random.default_rng(0)
    low, high = RANGE[bits]
    codes = np.concatenate(
        [rng.integers(low, high, (62, 64)), np.full((1, 64), low), np.full((1, 64), high - 1)]
    )
    steps = np.concatenate([rng.integers(-127, 128, (2, 64)), np.full((1, 64), 127), np.full((1, 64), -127)])
    packed = pack_codes(jnp.asarray(codes), bits=bits, chunk=32)
    found = integer_products(jnp.asarray(steps.reshape(4, 2, 32), jnp.int8), packed)
    exact = np.einsum("rgc,vgc->gvr", codes.reshape(64, 2, 32).astype(np.int64), steps.reshape(4, 2, 32))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found[0], exact)


@pytest.mark.parametrize("vectors", [1, 5])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_vectors_are_multiplied_as_their_float64_values(bits, vectors):
    packed, matrix = draw(bits, 64, 96, 32)
    x = np.random.default_rng(2).standard_normal((vectors, 96)).astype(np.float32)
    steps, scale = quantize_activations(jnp.asarray(x), 32)
    rounded = (np.asarray(steps, np.float64) * np.asarray(scale, np.float64)[..., None]).reshape(x.shape)
    assert np.abs(rounded - x).max() <= np.asarray(scale).max() / 2 * (1 + 1e-6)
    found = packed_matmul(jnp.asarray(x), *packed, rows=64, integer=True)
    assert relative(found, rounded @ matrix.T) < 1e-6 < relative(found, x @ matrix.T)


def test_integers_times_sizes_are_multiplied_exactly_within_chunks():
    packed, matrix = draw(8, 64, 96, 96, minimum=False)
    rng = np.random.default_rng(6)
    steps, size = rng.integers(-127, 128, (2, 3, 3, 32)), rng.standard_normal((2, 3, 3)).astype(np.float32)
    found = packed_integer_matmul(jnp.asarray(steps, jnp.int8), jnp.asarray(size), *packed, rows=64)
    exact = (steps * size[..., None].astype(np.float64)).reshape(2, 3, 96) @ matrix.T
    assert found.shape == (2, 3, 64) and relative(found, exact) < 1e-6
    with pytest.raises(ValueError, match=r"steps has shape .* dtype int32"):
        packed_integer_matmul(jnp.asarray(steps, jnp.int32), jnp.asarray(size), *packed, rows=64)
    with pytest.raises(ValueError, match="chunks must be those of codes"):
        packed_integer_matmul(jnp.zeros((1, 6, 16), jnp.int8), jnp.zeros((1, 6)), *packed, rows=64)


def test_sums_over_many_chunks():
    packed, matrix = draw(4, 5, 2560, 64)
    x = np.random.default_rng(7).standard_normal((1, 2560)).astype(np.float32)
    assert relative(packed_matmul(jnp.asarray(x), *packed, rows=5), x @ matrix.T) < 1e-6


def test_many_vectors_and_many_tiles_are_multiplied_in_pieces():
    packed, matrix = draw(8, 64 * 65, 32, 32)
    x = np.random.default_rng(8).standard_normal((3, 32)).astype(np.float32)
    assert relative(packed_matmul(jnp.asarray(x), *packed, rows=64 * 65), x @ matrix.T) < 1e-6


def test_zeros_are_rounded_to_zeros():
    steps, scale = quantize_activations(jnp.zeros((1, 32)), 32)
    assert not steps.any() and not scale.any()


@pytest.mark.parametrize("bits", [4, 8])
def test_dense_matrix_and_rows_are_the_codes_times_scales(bits):
    packed, matrix = draw(bits, 70, 64, 32)
    dense = dequantize_packed(*packed, rows=70)
    # Two operations in float32, which XLA may fuse into one.
    np.testing.assert_allclose(dense, matrix, rtol=0, atol=1e-7 * np.abs(matrix).max() * 2)
    indices = jnp.asarray([[3, 69], [0, 64]])
    np.testing.assert_array_equal(packed_rows(indices, *packed), dense[indices])


@pytest.mark.parametrize("vectors", [1, 4])
def test_a_layer_of_a_stack_equals_the_layer_alone(vectors):
    stacked, matrices = draw(4, 64, 64, 32, stack=(3,))
    x = jnp.asarray(np.random.default_rng(3).standard_normal((vectors, 64)), jnp.float32)

    def step(carry, layer):
        return carry, packed_matmul(x, *stacked, rows=64, layer=layer)

    found = jax.lax.scan(step, 0, jnp.arange(3))[1]
    for layer in range(3):
        assert relative(found[layer], np.asarray(x) @ matrices[layer].T) < 1e-6


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_under_jit_vmap_and_grad(implementation):
    packed, matrix = draw(4, 64, 64, 32)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((3, 2, 64)), jnp.float32)
    product = functools.partial(packed_matmul, rows=64, implementation=implementation)
    found = jax.jit(jax.vmap(lambda x: product(x, *packed)))(x)
    np.testing.assert_allclose(found, np.asarray(x) @ matrix.T, rtol=1e-4, atol=1e-4)
    weights = jnp.asarray(np.random.default_rng(5).standard_normal((2, 64)), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(weights * product(x, *packed)))(x[0])
    np.testing.assert_allclose(gradient, np.asarray(weights) @ matrix, rtol=1e-4, atol=1e-4)


def test_codes_stay_packed_within_a_loop():
    """XLA would convert the codes once before the loop, and read four or eight times the bytes in it."""
    packed, _ = draw(8, 64, 64, 32)

    def decode(x, packed):
        return jax.lax.fori_loop(0, 5, lambda _, x: packed_matmul(x, *packed, rows=64) / 50, x)

    text = jax.jit(decode).lower(jnp.ones((1, 64)), packed).compile().as_text()
    loop = next(line for line in text.splitlines() if " while(" in line)
    assert "s8[1,2,32,64]" in loop and "s16[1,2" not in loop and "f32[1,2,1" not in loop


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("bits", [4, 8])
def test_kernel_lowers_for_accelerators(platform, bits):
    packed, _ = draw(bits, 128, 128, 32)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (jnp.ones((1, 128)), *packed)]
    assert holds_kernel(
        functools.partial(packed_matmul, rows=128, implementation="pallas"), *shapes, platform=platform
    )


def test_bad_arguments_are_named():
    packed, _ = draw(4, 64, 64, 32)
    codes, scale, minimum = packed
    x = jnp.ones((1, 64))
    for arguments, options, message in (
        ((jnp.ones((1, 63)), *packed), {}, r"x has shape \(1, 63\)"),
        ((jnp.ones((1, 64), jnp.int32), *packed), {}, "x has shape .* dtype int32"),
        ((jnp.ones((0, 64)), *packed), {}, "at least one vector"),
        ((x, codes.astype(jnp.int32), scale), {}, "codes has shape .* dtype int32"),
        ((x, codes[..., : TILE // 2], scale), {}, "codes has shape"),
        ((x, codes, scale[:, :0]), {}, "scale has shape"),
        ((x, codes, scale, minimum[0]), {}, "minimum has shape"),
        ((x, *packed), {"rows": 65}, "rows is 65"),
        ((x, *packed), {"implementation": "triton"}, "implementation = 'triton'"),
        ((x, *packed), {"layer": 0}, r"codes has shape .* \[layers, tiles"),
    ):
        with pytest.raises(ValueError, match=message):
            packed_matmul(*arguments, **{"rows": 64} | options)
    with jax.enable_x64(True), pytest.raises(ValueError, match="not float64"):
        packed_matmul(jnp.ones((1, 64), jnp.float64), *packed, rows=64, implementation="pallas")
    narrow, _ = draw(4, 64, 16, 16)
    with pytest.raises(ValueError, match="takes chunks of 32"):
        packed_matmul(jnp.ones((1, 16)), *narrow, rows=64, implementation="pallas")
    with pytest.raises(ValueError, match="bits = 3"):
        pack_codes(jnp.zeros((4, 32), jnp.int32), bits=3, chunk=32)
    with pytest.raises(ValueError, match="groups of 33"):
        chunk_size(66, 33)
