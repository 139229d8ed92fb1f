"""PVQ of one matrix: stored codes, distortion, feedback, extreme weights, products, and what is refused."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import CODE

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear
from jaxlab.quantization import (
    PVQSpec,
    block_feedback,
    dequantize,
    gain_levels,
    matmul,
    quantize,
    rotate,
)
from jaxlab.quantization.pvq import decode, feedback_factor, levels_for, mean_cosine, quantize_prepared
from jaxlab.quantization.rotation import random_signs

KEY = jax.random.key(0)


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def inputs_moment(columns, seed=1):
    """A second moment with a condition number of a few hundred."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, columns)) * np.geomspace(0.2, 3, columns)
    x = x @ np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return (x.T @ x / len(x)).astype(np.float32)


def sqnr(w, approximate):
    w, approximate = np.asarray(w, np.float64), np.asarray(approximate, np.float64)
    return 10 * np.log10((w**2).sum() / ((w - approximate) ** 2).sum())


def weighted_error(w, approximate, h):
    error = np.asarray(w, np.float64) - np.asarray(approximate, np.float64)
    return np.einsum("rc,cd,rd->", error, h.astype(np.float64), error)


def volume(n, k):
    if k == 0:
        return 1
    return sum(2**s * math.comb(n, s) * math.comb(k - 1, s - 1) for s in range(1, min(n, k) + 1))


def unrank_exact(index, n, k):
    """Codeword of an index by the definition of the order, in Python integers."""
    y = []
    for position in range(n):
        for value in itertools.chain([0], *((m, -m) for m in range(1, k + 1))):
            left = n - 1 - position
            size = volume(left, k - abs(value)) if left or k == abs(value) else 0
            if index < size:
                break
            index -= size
        y.append(value)
        k -= abs(value)
    return y


def read_back(t):
    """Dequantized in the rotated basis from the bytes alone, with Python integers and float64."""
    spec, rows = t.spec, []
    for words, scale in zip(np.asarray(t.words), np.asarray(t.scale, np.float64), strict=True):
        bits = int.from_bytes(words.astype("<u4").tobytes(), "little")
        row = []
        for group in range(-(-t.columns // spec.n)):
            code = (bits >> (group * spec.group_bits)) & ((1 << spec.group_bits) - 1)
            y = np.array(unrank_exact(code & ((1 << spec.index_bits) - 1), spec.n, spec.k), np.float64)
            row.append(scale * float(t.levels[code >> spec.index_bits]) * y / np.linalg.norm(y))
        rows.append(np.concatenate(row)[: t.columns])
    return np.array(rows)


CODES = [PVQSpec(8, 6, 2), CODE, PVQSpec(32, 40, 0), PVQSpec(32, 56, 3)]  # indices of 1 to 4 limbs


@pytest.mark.parametrize("spec", CODES, ids=lambda spec: f"{spec.n}-{spec.k}-{spec.gain_bits}")
def test_stored_words_read_with_python_integers_give_the_matrix(spec):
    w = gaussian(8, 64)
    t = quantize(w, spec, KEY)
    expected = read_back(t)
    np.testing.assert_allclose(rotate(dequantize(t), t.signs), expected, atol=1e-5)
    assert sqnr(rotate(w, t.signs), expected) > 6.02 * spec.rate - 4


def test_matrix_that_is_not_rotated_is_stored_as_it_is():
    t = quantize(gaussian(8, 64), CODE, KEY, rotated=False)
    assert t.signs is None
    np.testing.assert_allclose(dequantize(t), read_back(t), atol=1e-5)
    assert sqnr(gaussian(8, 64), dequantize(t)) > 15


def test_directions_and_gains_survive_the_words():
    w, h = gaussian(8, 64), inputs_moment(64)
    t = quantize(w, CODE, KEY, hessian=h)
    unit = float(t.levels[0] / levels_for(CODE, 64)[0])
    u = feedback_factor(jnp.asarray(h), t.signs, damping=0.01)
    y, gains = block_feedback(rotate(jnp.asarray(w) / unit, t.signs), u, CODE)
    stored_y, stored_gains = decode(t)
    np.testing.assert_array_equal(stored_y.reshape(8, 64), y)
    np.testing.assert_array_equal(stored_gains, gains)
    np.testing.assert_array_equal(np.abs(np.asarray(y, int)).reshape(8, 4, 16).sum(-1), 28)


def test_bytes_are_those_of_words_scales_levels_and_signs():
    t = quantize(gaussian(8, 64), CODE, KEY)
    words = math.ceil(4 * 52 / 32)
    assert t.words.shape == (8, words)
    assert t.nbytes == 8 * (4 * words + 2) + 4 * 8 + 64 // 8
    assert (
        t.nbytes
        == sum(np.asarray(x).nbytes for x in (t.words, t.scale, t.levels)) + np.packbits(t.signs).nbytes
    )
    assert dataclasses.replace(t, signs=None).nbytes == t.nbytes - 8
    assert 8 * (t.words.nbytes + t.scale.nbytes) / 512 == CODE.stored_bits(64)


def test_distortion_on_gaussian_weights_is_that_of_the_table():
    w = gaussian(64, 4096, seed=2)
    error = np.mean((w - np.asarray(dequantize(quantize(w, CODE, KEY)))) ** 2) / np.mean(w**2)
    assert abs(10 * np.log10(error / 0.01867)) < 0.1


def test_every_gain_is_the_level_nearest_to_the_projection():
    t = quantize(gaussian(8, 64), CODE, KEY)
    y, gains = (np.asarray(x, np.float64) for x in decode(t))
    rotated = np.asarray(rotate(gaussian(8, 64), t.signs), np.float64).reshape(8, 4, 16)
    projection = (rotated * y).sum(-1) / np.linalg.norm(y, axis=-1)
    values = np.asarray(t.scale, np.float64)[:, None] * np.asarray(t.levels, np.float64)
    nearest = np.abs(projection[..., None] - values[:, None]).argmin(-1)
    np.testing.assert_array_equal(gains, nearest)


def test_levels_carry_the_mean_cosine_of_the_code():
    """Against E[cos] = E[<x, y> / ||x|| ||y||] = sqrt(1 - D), D of the direction alone, (16, 16): 0.04955."""
    assert mean_cosine(16, 16) == pytest.approx(np.sqrt(1 - 0.04955), abs=1e-3)
    np.testing.assert_allclose(levels_for(CODE, 64), mean_cosine(16, 28) * gain_levels(16, 64, 3), rtol=1e-6)


# Extreme weights


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e30])
def test_size_of_the_weights_does_not_matter(size):
    w = gaussian(8, 64)
    expected = sqnr(w, dequantize(quantize(w, CODE, KEY)))
    scaled = w * np.float32(size)
    assert sqnr(
        scaled / np.float64(size), dequantize(quantize(scaled, CODE, KEY)) / np.float64(size)
    ) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("exponent", [-60, -3, 5, 90])
def test_a_power_of_two_changes_only_the_levels(exponent):
    w, h = gaussian(8, 64), inputs_moment(64)
    one, other = (quantize(w * np.float32(2.0**e), CODE, KEY, hessian=h, refit=True) for e in (0, exponent))
    np.testing.assert_array_equal(one.words, other.words)
    np.testing.assert_array_equal(one.scale, other.scale)
    np.testing.assert_array_equal(other.levels, one.levels * np.float32(2.0**exponent))


def test_rows_of_very_different_size_are_met_equally_well():
    w = gaussian(8, 64)
    w[3] *= 1e6
    w[5] *= 1e-2
    approximate = np.asarray(dequantize(quantize(w, CODE, KEY)))
    assert [sqnr(w[i], approximate[i]) > 15 for i in range(8)] == [True] * 8


@pytest.mark.parametrize("hessian", [False, True])
def test_rows_of_zeros_come_back_as_zeros(hessian):
    w = gaussian(8, 64)
    w[2] = 0
    h = inputs_moment(64) if hessian else None
    approximate = np.asarray(dequantize(quantize(w, CODE, KEY, hessian=h)))
    np.testing.assert_array_equal(approximate[2], 0)
    assert sqnr(w[3], approximate[3]) > 12
    np.testing.assert_array_equal(dequantize(quantize(np.zeros((8, 64)), CODE, KEY, hessian=h)), 0)


def test_one_row_that_is_a_single_spike_survives_the_rotation():
    w = np.zeros((8, 64), np.float32)
    w[3, 7] = 1e3
    assert sqnr(w, dequantize(quantize(w, CODE, KEY))) > 12


def test_integer_and_half_precision_weights_are_taken_as_their_values():
    w = np.round(4 * gaussian(8, 64))
    expected = quantize(w, CODE, KEY)
    for dtype in (jnp.int8, jnp.bfloat16, jnp.float16):
        t = quantize(jnp.asarray(w).astype(dtype), CODE, KEY)
        jax.tree.map(np.testing.assert_array_equal, t, expected)


# Padding


def test_padding_makes_any_width_fit():
    w = gaussian(8, 60)
    t = quantize(w, CODE, KEY, pad=True, hessian=inputs_moment(60))
    assert t.shape == (8, 60) and t.words.shape == (8, math.ceil(4 * 52 / 32))
    approximate = np.asarray(dequantize(t))
    assert approximate.shape == (8, 60) and sqnr(w, approximate) > 13
    np.testing.assert_allclose(rotate(approximate, t.signs), read_back(t), atol=1e-5)


def test_padding_a_width_that_fits_changes_nothing():
    one, other = (quantize(gaussian(8, 64), CODE, KEY, pad=pad) for pad in (False, True))
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Hessian


def test_identity_hessian_is_no_hessian():
    w = gaussian(8, 64)
    expected = quantize(w, CODE, KEY)
    found = quantize(w, CODE, KEY, hessian=3 * np.eye(64))
    np.testing.assert_array_equal(found.words, expected.words)


def test_feedback_lowers_the_weighted_error_and_refit_and_sweeps_do_not_raise_it():
    w, h = gaussian(8, 64), inputs_moment(64)
    variants = [{}, {"hessian": h}, {"hessian": h, "refit": True}, {"hessian": h, "sweeps": 2}]
    plain, feedback, refit, swept = (
        weighted_error(w, dequantize(quantize(w, CODE, KEY, damping=1e-3, **options)), h)
        for options in variants
    )
    assert feedback < 0.75 * plain
    assert refit < 1.02 * feedback
    assert swept < feedback


def test_refit_finds_the_best_gains_for_the_directions():
    """With 2^6 levels rounding hardly matters, and the error is that of the least-squares gains."""
    w, h = gaussian(8, 64), inputs_moment(64)
    spec = PVQSpec(16, 28, 6, "companded")
    t = quantize(w, spec, KEY, hessian=h, damping=1e-3, refit=True)
    y = np.asarray(decode(t)[0], np.float64)
    np.testing.assert_array_equal(decode(quantize(w, spec, KEY, hessian=h, damping=1e-3))[0], y)
    damped = h.astype(np.float64) + 1e-3 * np.mean(np.diag(h)) * np.eye(64)
    q = np.asarray(rotate(jnp.eye(64), t.signs), np.float64).T
    rotated, best = q @ damped @ q.T, 0.0
    for row, directions in zip(w @ q.T, y, strict=True):
        basis = np.zeros((64, 4))
        for group, direction in enumerate(directions):
            basis[16 * group : 16 * group + 16, group] = direction / np.linalg.norm(direction)
        gains = np.linalg.solve(basis.T @ rotated @ basis, basis.T @ rotated @ row)
        error = row - basis @ gains
        best += error @ rotated @ error
    assert best <= weighted_error(w, dequantize(t), damped) < 1.05 * best


def test_feedback_factor_is_that_of_the_rotated_damped_inverse():
    h, signs = inputs_moment(64), random_signs(KEY, 64)
    u = np.asarray(feedback_factor(jnp.asarray(h), signs, damping=0.05), np.float64)
    q = np.asarray(rotate(jnp.eye(64), signs), np.float64).T
    damped = q @ h @ q.T + 0.05 * np.mean(np.diag(h)) * np.eye(64)
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(64), atol=2e-4)


# Products, stacks and transformations


def test_matmul_and_linear_are_products_with_the_dequantized_matrix():
    t = quantize(gaussian(8, 64), CODE, KEY)
    x = gaussian(5, 64, seed=3).reshape(5, 1, 64)
    expected = x.astype(np.float64) @ np.asarray(dequantize(t), np.float64).T
    np.testing.assert_allclose(matmul(x, t), expected, atol=1e-4)
    np.testing.assert_allclose(linear(jnp.asarray(x), t), expected, atol=1e-4)
    np.testing.assert_array_equal(dense(t), dequantize(t))
    assert matmul(jnp.asarray(x, jnp.bfloat16), t).dtype == jnp.bfloat16


def test_stacked_tensors_are_dequantized_layer_by_layer():
    matrices = gaussian(24, 64).reshape(3, 8, 64)
    parts = [quantize(w, CODE, jax.random.key(i)) for i, w in enumerate(matrices)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    assert stacked.shape == (3, 8, 64) and stacked.nbytes == sum(part.nbytes for part in parts)
    np.testing.assert_allclose(dequantize(stacked), np.stack([dequantize(part) for part in parts]), atol=1e-6)


def test_dtype_of_the_dequantized_matrix_is_the_one_asked_for():
    t = quantize(gaussian(8, 64), CODE, KEY)
    half = dequantize(t, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, dequantize(t).astype(jnp.bfloat16))


def test_jit_and_vmap_agree_with_one_matrix_at_a_time():
    matrices = jnp.asarray(gaussian(16, 64).reshape(2, 8, 64))
    signs = random_signs(KEY, 64)
    together = jax.jit(jax.vmap(lambda w: quantize_prepared(w, signs, None, spec=CODE)))(matrices)
    for i, w in enumerate(matrices):
        alone = quantize(w, CODE, KEY)
        np.testing.assert_allclose(
            dequantize(jax.tree.map(lambda x, i=i: x[i], together)), dequantize(alone), atol=1e-5
        )


def test_the_same_key_gives_the_same_bytes_and_another_key_others():
    first, again, other = (quantize(gaussian(8, 64), CODE, jax.random.key(i)) for i in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.words != other.words)


# Bad input


def refused(words, w, spec=CODE, **options):
    with pytest.raises(InputError, match=words):
        quantize(w, spec, KEY, **options)


def test_width_that_does_not_fit_is_refused():
    refused("in_features 60 is not divisible by the group size 16", gaussian(2, 60))


def test_weights_that_are_not_finite_are_refused():
    w = gaussian(2, 64)
    w[0, 3], w[1, 2] = np.nan, np.inf
    refused("w has 2 non-finite weights of 128", w)


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64), (2, 0)])
def test_what_is_not_a_matrix_is_refused(shape):
    refused("a matrix .rows, columns. with at least one weight", np.zeros(shape, np.float32))


def test_hessian_of_another_size_is_refused():
    refused(r"hessian has shape \(32, 32\), expected \(64, 64\)", gaussian(2, 64), hessian=np.eye(32))


def test_hessian_that_is_not_positive_definite_is_refused():
    h = np.eye(64, dtype=np.float32)
    h[3, 3] = -5
    refused("Hessian not positive definite after damping 0.01: raise", gaussian(2, 64), hessian=h)
    refused("not positive definite", gaussian(2, 64), hessian=np.full((64, 64), np.nan))


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(damping):
    refused("damping is .*; it must be > 0", gaussian(2, 64), hessian=np.eye(64), damping=damping)
