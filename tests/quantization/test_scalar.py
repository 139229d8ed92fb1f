"""Round-to-nearest and GPTQ against plain NumPy, the published distortions, and a real Q8_0 embedding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear
from jaxlab.quantization import ScalarSpec, dequantize_scalar, quantize_scalar, rotate
from jaxlab.quantization.pvq import feedback_factor
from jaxlab.quantization.rotation import random_signs


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def round_group(group, spec):
    """(scale, minimum, levels of the codes) of one group, by the definition of its grid."""
    half = np.float16
    if spec.grid == "minmax":
        low = half(min(group.min(), 0))
        scale = half((max(group.max(), 0) - np.float32(low)) / (2**spec.bits - 1))
        return np.float32(scale), np.float32(low), np.arange(2**spec.bits)
    codes = np.arange(2**spec.bits) - 2 ** (spec.bits - 1)
    levels = codes + 0.5 if spec.grid == "midrise" else codes[1:]
    return np.float32(half(np.abs(group).max() / levels[-1])), 0.0, levels


def nearest(x, scale, minimum, levels):
    if scale == 0:
        return np.full_like(x, minimum)
    values = levels * scale + minimum
    return values[np.abs(x[..., None] - values).argmin(-1)]


def rtn_reference(w, spec):
    out = np.zeros(w.shape)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], spec.group):
            group = w[row, start : start + spec.group]
            out[row, start : start + spec.group] = nearest(group, *round_group(group, spec))
    return out


def gptq_reference(w, h, spec, damping):
    """Column by column with the rows of the inverse's Cholesky factor, in float64; a group's scale when reached."""
    size = len(h)
    u = np.linalg.cholesky(np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(size))).T
    w, out = w.astype(np.float64), np.zeros(w.shape)
    for row in range(w.shape[0]):
        for column in range(size):
            if column % spec.group == 0:
                chosen = round_group(w[row, column : column + spec.group], spec)
            out[row, column] = nearest(w[row, column : column + 1], *chosen)[0]
            error = (w[row, column] - out[row, column]) / u[column, column]
            w[row, column:] -= error * u[column, column:]
    return out


GRIDS = [ScalarSpec(3, 16), ScalarSpec(4, 8, "midrise"), ScalarSpec(2, 16, "midtread"), ScalarSpec(8, 32)]


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_round_to_nearest_takes_the_nearest_level_of_every_group(spec):
    w = gaussian(8, 64)
    found = dequantize_scalar(quantize_scalar(jnp.asarray(w), spec=spec))
    np.testing.assert_allclose(found, rtn_reference(w, spec), atol=2e-5)


@pytest.mark.parametrize("spec", GRIDS[:3], ids=str)
def test_gptq_equals_the_column_loop_in_float64(spec):
    w = gaussian(4, 32, seed=1)
    x = gaussian(200, 32, seed=2) @ gaussian(32, 32, seed=3)
    h = (x.T @ x / 200).astype(np.float64)
    u = feedback_factor(jnp.asarray(h), None, damping=0.05)
    found = np.asarray(dequantize_scalar(quantize_scalar(jnp.asarray(w), None, u, spec=spec)))
    expected = gptq_reference(w, h, spec, 0.05)
    # A weight within float32 rounding of the middle between two levels may fall to either side.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.02
    error, plain = w - found, w - rtn_reference(w, spec)
    assert np.einsum("rc,cd,rd->", error, h, error) < 0.8 * np.einsum("rc,cd,rd->", plain, h, plain)


def test_rotated_codes_are_those_of_the_rotated_weights():
    w, signs = jnp.asarray(gaussian(8, 64)), random_signs(jax.random.key(0), 64)
    spec = ScalarSpec(4, 16)
    t = quantize_scalar(w, signs, spec=spec)
    np.testing.assert_array_equal(t.words, quantize_scalar(rotate(w, signs), spec=spec).words)
    np.testing.assert_allclose(
        rotate(dequantize_scalar(t), signs), rtn_reference(np.asarray(rotate(w, signs)), spec), atol=1e-4
    )


@pytest.mark.parametrize(
    "spec, bits, distortion",
    [
        (ScalarSpec(2, 128), 2.25, 0.250),
        (ScalarSpec(3, 128), 3.25, 0.0457),
        (ScalarSpec(4, 128), 4.25, 0.0099),
        (ScalarSpec(2, 128, "midrise", clip=True), 2.125, 0.1160),
        (ScalarSpec(3, 128, "midrise", clip=True), 3.125, 0.0351),
        (ScalarSpec(4, 128, "midrise", clip=True), 4.125, 0.0099),
    ],
    ids=str,
)
def test_distortion_on_gaussian_weights_is_the_measured_one(spec, bits, distortion):
    w = gaussian(256, 4096)
    found = np.asarray(dequantize_scalar(quantize_scalar(jnp.asarray(w), spec=spec)))
    assert spec.stored_bits(4096) == bits
    assert np.mean((w - found) ** 2) == pytest.approx(distortion, rel=0.015)


def test_clipping_never_does_worse_than_the_full_range():
    w = gaussian(64, 256)
    errors = []
    for clip in (False, True):
        spec = ScalarSpec(3, 32, "midrise", clip=clip)
        found = np.asarray(dequantize_scalar(quantize_scalar(jnp.asarray(w), spec=spec)))
        errors.append(((w - found) ** 2).reshape(64, 8, 32).sum(-1))
    assert np.all(errors[1] <= errors[0] * (1 + 1e-5)) and errors[1].sum() < 0.9 * errors[0].sum()


def test_eight_bits_hold_a_real_q8_0_embedding_without_loss(smollm2):
    embed = smollm2[0]["embed"][:4096]
    t = quantize_scalar(embed, spec=ScalarSpec(8, 32, "midtread"))
    np.testing.assert_array_equal(dequantize_scalar(t), embed)
    assert 8 * t.nbytes / embed.size == 8.5


@pytest.mark.parametrize("spec", [*GRIDS, ScalarSpec(3, 8), ScalarSpec(5, 16, "midtread")], ids=str)
def test_bytes_are_those_of_codes_scales_minima_and_signs(spec):
    t = quantize_scalar(jnp.asarray(gaussian(8, 64)), random_signs(jax.random.key(0), 64), spec=spec)
    words = math.ceil(64 * spec.bits / 32)
    side = 2 * (64 // spec.group) * (2 if spec.grid == "minmax" else 1)
    assert t.words.shape == (8, words)
    assert t.nbytes == 8 * (4 * words + side) + 64 // 8
    assert spec.stored_bits(64) == 8 * (4 * words + side) / 64
    assert (t.minimum is None) == (spec.grid != "minmax")


def test_zeros_and_constant_groups_come_back():
    w = np.zeros((2, 32), np.float32)
    w[1, :16] = 0.75
    w[1, 16:] = -2.0
    for spec in (ScalarSpec(4, 16), ScalarSpec(4, 16, "midtread")):
        np.testing.assert_allclose(
            dequantize_scalar(quantize_scalar(jnp.asarray(w), spec=spec)), w, rtol=1e-3
        )


def test_products_stacks_and_dtypes_are_those_of_the_dense_matrix():
    matrices = [quantize_scalar(jnp.asarray(gaussian(8, 64, seed=i)), spec=GRIDS[0]) for i in range(2)]
    x = jnp.asarray(gaussian(3, 64, seed=9))
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize_scalar(matrices[0]), np.float64).T
    np.testing.assert_allclose(linear(x, matrices[0]), expected, atol=1e-4)
    np.testing.assert_array_equal(dense(matrices[0]), dequantize_scalar(matrices[0]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *matrices)
    assert stacked.shape == (2, 8, 64)
    np.testing.assert_allclose(dequantize_scalar(stacked), np.stack([dense(t) for t in matrices]), atol=1e-6)
    assert dequantize_scalar(stacked, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"bits": 0}, "bits is 0; it must be 1 to 8"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 1, "grid": "midtread"}, "bits is 1; .*2 to 8 for midtread"),
        ({"group": 0}, "group is 0; it must be at least 1"),
        ({"grid": "nf4"}, "grid is 'nf4'; it must be minmax, midrise or midtread"),
        ({"clip": True}, "clip=True needs a symmetric grid"),
    ],
)
def test_field_out_of_range_is_named(fields, words):
    with pytest.raises(InputError, match=words):
        ScalarSpec(**({"bits": 4, "group": 16} | fields))


def test_weights_that_cannot_be_quantized_are_refused():
    spec = ScalarSpec(4, 16)
    with pytest.raises(InputError, match="in_features 60 is not divisible by the group size 16"):
        quantize_scalar(jnp.zeros((2, 60)), spec=spec)
    with pytest.raises(InputError, match="a matrix .rows, columns. with at least one weight"):
        quantize_scalar(jnp.zeros(64), spec=spec)
    for value in (jnp.nan, jnp.inf, 1e6):
        with pytest.raises(InputError, match="fp16 scales need finite weights up to 16384"):
            quantize_scalar(jnp.zeros((2, 64)).at[0, 3].set(value), spec=spec)
