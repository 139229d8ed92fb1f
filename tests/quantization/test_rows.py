"""The row-wise arithmetic: gains, scales, encoding, and that no row knows of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.pyramid_index import count
from jaxlab.quantization import PVQSpec, ScalarSpec, quantize, quantize_scalar, rank, rank_tables
from jaxlab.quantization.pvq import dequantize, feedback_factor, levels_for, quantize_prepared
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


# Feedback between rows


def two_sided(rows=24, columns=32, *, outputs=None, sets=8, seed=0, sweeps=0):
    """A matrix quantized with feedback on both sides; the second moments A and B; the error."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    x = rng.standard_normal((4 * columns, columns)) @ rng.standard_normal((columns, columns))
    g = rng.standard_normal((4 * rows, rows)) @ rng.standard_normal((rows, rows))
    a, b = x.T @ x / len(x), g.T @ g / len(g)
    if outputs is not None:
        b = outputs
    signs = random_signs(jax.random.key(0), columns)
    factor = feedback_factor(jnp.asarray(a, jnp.float32), signs, damping=0.01)
    tensor = quantize_prepared(
        jnp.asarray(w),
        signs,
        factor,
        spec=PVQSpec(8, 10, 2),
        sweeps=sweeps,
        output_moment=None if sets == 0 else jnp.asarray(b, jnp.float32),
        row_sets=max(sets, 1),
    )
    error = w - np.asarray(dequantize(tensor), np.float64)
    return tensor, np.einsum("rs,rc,cd,sd->", b, error, a, error)


@pytest.mark.parametrize("sweeps", [0, 1])
@pytest.mark.parametrize("sets", [1, 5, 24])
def test_rows_of_independent_outputs_are_quantized_as_if_alone(sets, sweeps):
    alone, _ = two_sided(sets=0, sweeps=sweeps)
    together, _ = two_sided(outputs=np.diag(np.arange(1.0, 25.0)), sets=sets, sweeps=sweeps)
    # Another order of sums may turn a group to its neighbour, here and there.
    same = np.all(np.asarray(alone.words) == np.asarray(together.words), axis=1)
    assert same.mean() > 0.9
    np.testing.assert_array_equal(alone.scale, together.scale)


def test_feedback_between_rows_lowers_the_error_under_both_moments():
    gains = {
        sets: [two_sided(sets=0, seed=s)[1] / two_sided(sets=sets, seed=s)[1] for s in range(4)]
        for sets in (4, 24)
    }
    for gain in gains.values():
        assert np.mean(gain) > 1.3 and min(gain) > 1


def test_the_first_set_is_as_if_alone_and_the_next_aims_at_what_its_error_leaves():
    """Two sets of one row: the second row's target moves by B_22^-1 B_21 times the first row's error."""
    b = np.array([[2.0, 1.2], [1.2, 1.0]])
    together, _ = two_sided(rows=2, outputs=b, sets=2)
    alone, _ = two_sided(rows=2, sets=0)
    np.testing.assert_array_equal(together.words[0], alone.words[0])
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 32)).astype(np.float32)
    error = w[0] - np.asarray(dequantize(together))[0]
    moved = jnp.asarray(np.stack([w[0], w[1] + 1.2 / 1.0 * error]))
    x = rng.standard_normal((128, 32)) @ rng.standard_normal((32, 32))
    factor = feedback_factor(jnp.asarray(x.T @ x / 128, jnp.float32), together.signs, damping=0.01)
    expected = quantize_prepared(moved, together.signs, factor, spec=PVQSpec(8, 10, 2))
    # The scale is that of the row itself, not of its moved target.
    ratio = float(expected.scale[1]) / float(together.scale[1])
    assert ratio == pytest.approx(1, abs=0.5) and ratio != 1
    moved_error = np.asarray(moved)[1] - np.asarray(dequantize(together))[1]
    unmoved_error = np.asarray(moved)[1] - np.asarray(dequantize(alone))[1]
    a = x.T @ x
    assert moved_error @ a @ moved_error < unmoved_error @ a @ unmoved_error
