"""The row-wise arithmetic: gains, scales, encoding, and that no row knows of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.pyramid_index import count
from jaxlab.quantization import PVQSpec, ScalarSpec, quantize, quantize_scalar, rank, rank_tables
from jaxlab.quantization.pvq import levels_for, quantize_prepared
from jaxlab.quantization.rotation import random_signs
from jaxlab.quantization.rows import (
    code_of,
    encode,
    gain_value,
    nearest_level,
    row_scale,
    shared_tables,
    unit_direction,
)

CODE = PVQSpec(16, 28, 3)


def integer(limbs):
    return sum(int(limb) << (32 * i) for i, limb in enumerate(np.asarray(limbs)))


@pytest.mark.parametrize("n, k", [(8, 3), (8, 14), (16, 12), (16, 28), (32, 40)])
def test_shared_tables_serve_every_k_of_two_limbs_or_of_four(n, k):
    tables = shared_tables(n, k)
    most, bits = tables.shape[1] - 1, 32 * tables.shape[3]
    assert count(n, k) <= count(n, most) < 2**bits
    assert most == 127 or count(n, most + 1) >= 2 ** (64 if bits <= 64 else 128)
    y = np.zeros((1, n), np.int8)
    y[0, :3] = 1, -1, k - 2
    assert integer(rank(jnp.asarray(y), tables, pulses=k)[0]) == integer(
        rank(jnp.asarray(y), rank_tables(n, k))[0]
    )


def test_code_holds_the_sizes_and_never_offers_a_level_that_is_not_there():
    levels = levels_for(CODE, 64)
    code = code_of(CODE, jnp.asarray(levels))
    assert [int(x) for x in code[:3]] == [28, 49, 52]
    np.testing.assert_array_equal(code.levels[:8], levels)
    far = jnp.asarray([1e6, -1e6, float(levels[-1])])
    np.testing.assert_array_equal(nearest_level(far, jnp.float16(1), code.levels), [7, 0, 7])


def test_nearest_level_takes_the_lowest_of_equals():
    levels = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        nearest_level(jnp.asarray([0.0, 1.5, 2.6]), jnp.float16(1), levels), [0, 0, 2]
    )
    np.testing.assert_array_equal(nearest_level(jnp.asarray([0.0, 5.0]), jnp.float16(2), levels), [0, 1])


def test_gain_value_is_the_level_times_the_row_scale():
    values = gain_value(
        jnp.asarray([[0, 1], [1, 0]]), jnp.asarray([[2.0], [3.0]], jnp.float16), jnp.asarray([0.5, 4])
    )
    np.testing.assert_array_equal(values, [[1, 8], [12, 1.5]])


def test_row_scale_is_the_root_mean_square_in_half_precision():
    w = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    w[2] = 0
    scale = row_scale(jnp.asarray(w))
    assert scale.dtype == jnp.float16
    np.testing.assert_allclose(scale, np.sqrt((w.astype(np.float64) ** 2).mean(1)), rtol=5e-4)


def test_unit_direction_has_length_one():
    y = np.random.default_rng(1).integers(-127, 128, (4, 16)).astype(np.int8)
    expected = y / np.linalg.norm(y.astype(float), axis=1, keepdims=True)
    np.testing.assert_allclose(unit_direction(jnp.asarray(y), jnp.float32), expected, rtol=1e-6)


def test_encoded_rows_are_the_codes_as_one_little_endian_integer():
    rng = np.random.default_rng(2)
    y = np.zeros((3, 4, 16), np.int8)
    for group in y.reshape(-1, 16):
        np.add.at(group, rng.integers(0, 16, 28), 1)
        group *= rng.choice([-1, 1], 16).astype(np.int8)
    gains = rng.integers(0, 8, (3, 4)).astype(np.uint8)
    tables = shared_tables(16, 28)
    code = code_of(CODE, jnp.ones(8))
    words = encode(jnp.asarray(y.reshape(3, 64)), jnp.asarray(gains), code, tables, words=7)
    limbs = np.asarray(rank(jnp.asarray(y), rank_tables(16, 28)))
    for row in range(3):
        whole = 0
        for group in range(4):
            whole |= (integer(limbs[row, group]) | int(gains[row, group]) << 49) << (52 * group)
        assert integer(words[row]) == whole


def test_rows_are_quantized_independently_of_each_other():
    """Every row's bytes stay when the rows are put in another order."""
    w = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    order = np.random.default_rng(4).permutation(8)
    straight, shuffled = (quantize(x, CODE, jax.random.key(0)) for x in (w, w[order]))
    np.testing.assert_array_equal(shuffled.words, straight.words[order])
    np.testing.assert_array_equal(shuffled.scale, straight.scale[order])
    scalar, scalar_shuffled = (quantize_scalar(jnp.asarray(x), spec=ScalarSpec(3, 16)) for x in (w, w[order]))
    np.testing.assert_array_equal(scalar_shuffled.words, scalar.words[order])


def test_row_maps_are_given_the_same_function_for_the_same_code():
    w, seen = jnp.ones((8, 64)), []

    def row_map(function):
        seen.append(function)
        return function

    for _ in range(2):
        quantize_scalar(w, spec=ScalarSpec(3, 16), row_map=row_map)
        for code in (CODE, PVQSpec(16, 20, 1)):
            quantize_prepared(w, random_signs(jax.random.key(0), 64), None, spec=code, row_map=row_map)
    assert seen[0] is seen[3] and seen[1] is seen[2] is seen[4] is seen[5]
