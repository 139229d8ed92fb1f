"""The planner: its prediction against measured error, its budget against stored bytes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantization import PVQSpec, candidates, dequantize, plan, quantize, search_exact
from jaxlab.quantization.planner import nearest_scalar_codes, predicted_distortion
from jaxlab.quantization.spec import MAX_INDEX_BITS, index_bits

SHAPES = {"a": (40, 576), "b": (24, 1536), "c": (64, 576)}


def stored_bits(spec, shape):
    """Bits on disk of the rows of a matrix: codes packed into 32-bit words row by row, and fp16 scales."""
    codewords = sum(
        2**s * math.comb(spec.n, s) * math.comb(spec.k - 1, s - 1) for s in range(1, min(spec.n, spec.k) + 1)
    )
    group = (codewords - 1).bit_length() + spec.gain_bits
    return shape[0] * (32 * math.ceil(shape[1] // spec.n * group / 32) + 16)


@pytest.mark.parametrize(
    ("n", "k", "groups"),
    [
        (4, 3, 12000),
        (4, 10, 12000),
        (8, 6, 8000),
        (8, 20, 8000),
        (16, 11, 3000),
        (16, 28, 3000),
        (24, 20, 1000),
    ],
)
def test_predicted_direction_error_is_that_of_the_exact_search(n, k, groups):
    """Without gain error: 1 - E[cos^2] of the nearest codewords, within 0.1 dB and the sample's error."""
    x = np.random.default_rng(n * k).standard_normal((groups, n))
    y = search_exact(x, k).astype(np.float64)
    sine = 1 - (x * y).sum(-1) ** 2 / ((x * x).sum(-1) * (y * y).sum(-1))
    # Rows of one group have no gain to quantize.
    predicted = predicted_distortion(PVQSpec(n, k, 0), n)
    sampling = 3 * 4.35 * sine.std() / sine.mean() / math.sqrt(groups)
    assert abs(10 * math.log10(predicted / sine.mean())) < 0.1 + sampling


@pytest.mark.parametrize("spec", [PVQSpec(16, 11, 1), PVQSpec(16, 48, 4), PVQSpec(8, 14, 3)])
def test_predicted_error_is_that_of_gaussian_weights_through_the_packed_format(spec):
    w = np.random.default_rng(spec.k).standard_normal((64, 2048)).astype(np.float32)
    tensor = quantize(jnp.asarray(w), spec, jax.random.key(1))
    assert 32 * tensor.words.size + 16 * tensor.scale.size == stored_bits(spec, w.shape)
    measured = float(np.mean((w - np.asarray(dequantize(tensor))) ** 2) / np.mean(w**2))
    assert abs(10 * math.log10(predicted_distortion(spec, 2048) / measured)) < 0.1


def test_prediction_falls_with_every_pulse_and_every_gain_bit():
    for n in (2, 3, 5, 8, 13, 16, 32, 48, 64):
        direction = [
            predicted_distortion(PVQSpec(n, k, 0), n)
            for k in range(1, 128)
            if index_bits(n, k) <= MAX_INDEX_BITS
        ]
        assert all(there < here < 1 for here, there in itertools.pairwise(direction))
    gains = [predicted_distortion(PVQSpec(16, 28, b), 4096) for b in range(6)]
    assert all(there < here for here, there in itertools.pairwise(gains))


@pytest.mark.parametrize("bits", [1.0, 2.0, 2.71, 3.25, 4.0])
def test_plan_stays_within_the_budget_of_stored_bits_and_nearly_spends_it(bits):
    specs = plan(SHAPES, bits)
    weights = sum(math.prod(shape) for shape in SHAPES.values())
    stored = sum(stored_bits(specs[name], shape) for name, shape in SHAPES.items()) / weights
    assert bits - 0.15 < stored <= bits


def test_more_budget_never_predicts_worse():
    weights = {name: math.prod(shape) for name, shape in SHAPES.items()}

    def total(bits):
        specs = plan(SHAPES, bits)
        return sum(weights[name] * predicted_distortion(specs[name], SHAPES[name][1]) for name in SHAPES)

    totals = [total(bits) for bits in np.arange(0.9, 4.6, 0.05)]
    assert all(there <= here for here, there in itertools.pairwise(totals))
    assert totals[-1] < totals[0] / 50


def test_costs_shift_bits_to_the_costly_matrix():
    shapes = {"cheap": (64, 576), "dear": (64, 576)}
    even = plan(shapes, 3.25)
    uneven = plan(shapes, 3.25, costs={"cheap": 1.0, "dear": 16.0})
    assert uneven["dear"].rate > even["dear"].rate >= even["cheap"].rate > uneven["cheap"].rate
    # At high rate the error is about 2^(-2 R), so 16 times the cost is worth two bits between the two.
    assert uneven["dear"].rate - uneven["cheap"].rate == pytest.approx(2, abs=0.35)
    assert plan(shapes, 3.25, costs={"cheap": 5.0, "dear": 80.0}) == uneven


def test_candidates_are_sorted_by_predicted_error_and_fit():
    found = candidates(3.25, 4096)
    assert len(found) == 6 and len({candidate.spec.gain_bits for candidate in found}) == 6
    assert all(here.distortion <= there.distortion for here, there in itertools.pairwise(found))
    for candidate in found:
        spec = candidate.spec
        assert candidate.bits == spec.stored_bits(4096) <= 3.25
        assert PVQSpec(spec.n, spec.k + 1, spec.gain_bits).stored_bits(4096) > 3.25
        assert candidate.sqnr == pytest.approx(-10 * math.log10(predicted_distortion(spec, 4096)))


def test_impossible_plans_are_refused_with_the_numbers():
    with pytest.raises(InputError, match="shapes is empty"):
        plan({}, 3.0)
    with pytest.raises(InputError, match=r"bits = 0\.2 is too few: 0\.\d+ is the least for groups of 16"):
        plan(SHAPES, 0.2)
    with pytest.raises(InputError, match=r"bits = 0\.1 is too few .* at least 0\.\d+ are needed"):
        candidates(0.1, 4096)
    with pytest.raises(InputError, match="in_features 577 is not divisible by the group size 16"):
        plan({"odd": (4, 577)}, 3.0)


def test_scalar_codes_share_a_group_where_one_divides_every_width():
    codes = nearest_scalar_codes([(576, 576), (1536, 576), (576, 1536)], 3.25, "midrise")
    assert {code.bits for code in codes.values()} == {3}
    assert len({code.group for code in codes.values()}) == 1
    rate = codes[576].stored_bits(576)
    assert 3.25 <= rate < 3.26


def test_scalar_codes_of_awkward_widths_take_the_nearest_divisors():
    shapes = [(100, 16 * 17), (50, 16 * 3), (576, 16 * 29)]
    codes = nearest_scalar_codes(shapes, 3.3, "midrise")
    assert all(columns % code.group == 0 for columns, code in codes.items())
    weights = sum(rows * columns for rows, columns in shapes)
    rate = sum(rows * columns * codes[columns].stored_bits(columns) for rows, columns in shapes) / weights
    assert 3.3 <= rate < 3.4
    with pytest.raises(InputError, match="9 bits"):
        nearest_scalar_codes(shapes, 9, "midrise")
