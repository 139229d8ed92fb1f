"""Gain levels against scipy's distributions, and the Beta law on real weights."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from jaxlab.errors import InputError
from jaxlab.quantization import gain_levels, rotate
from jaxlab.quantization.rotation import random_signs

N, ROW = 16, 4096


def law(n, row_dim):
    """The law of r^2, a group's share of its row's squared norm."""
    return stats.beta(n / 2, (row_dim - n) / 2)


def norms(n, row_dim, count=1 << 18):
    """Equal-probability points of the norm in units of the row's root mean square."""
    return np.sqrt(row_dim * law(n, row_dim).ppf((np.arange(count) + 0.5) / count))


def distortion(levels, points):
    """Mean squared error a weight."""
    edges = (levels[1:] + levels[:-1]) / 2
    return np.mean((points - levels[np.searchsorted(edges, points)]) ** 2) / N


def test_mean_norm_is_that_of_the_beta_law():
    expected = np.sqrt(ROW) * np.exp(
        special.betaln(N / 2 + 0.5, (ROW - N) / 2) - special.betaln(N / 2, (ROW - N) / 2)
    )
    assert expected == pytest.approx(3.9383, abs=5e-5)
    assert gain_levels(N, ROW, 0)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n, row_dim, bits", [(16, 4096, 3), (8, 576, 5), (32, 1536, 1), (1, 64, 4)])
def test_quantile_levels_are_equally_probable(n, row_dim, bits):
    middle = (np.arange(2**bits) + 0.5) / 2**bits
    share = gain_levels(n, row_dim, bits, "quantile") ** 2 / row_dim
    np.testing.assert_allclose(law(n, row_dim).cdf(share), middle, atol=2e-6)


@pytest.mark.parametrize("n, row_dim, bits", [(16, 4096, 3), (8, 576, 5), (32, 1536, 1)])
def test_companded_levels_have_the_cube_root_of_the_density(n, row_dim, bits):
    """The point density in r is f(r)^(1/3), integrated numerically."""
    r = np.linspace(0, 1, 2_000_001)[1:-1]
    density = np.exp(((n - 1) * np.log(r) + ((row_dim - n) / 2 - 1) * np.log1p(-r * r)) / 3)
    cumulative = np.cumsum(density) / density.sum()
    expected = np.interp((np.arange(2**bits) + 0.5) / 2**bits, cumulative, r) * np.sqrt(row_dim)
    np.testing.assert_allclose(gain_levels(n, row_dim, bits, "companded"), expected, rtol=1e-4)


def test_companded_levels_tend_to_the_chi_square_formula_in_long_rows():
    middle = (np.arange(8) + 0.5) / 8
    expected = np.sqrt(3 * stats.chi2.ppf(middle, (N + 2) / 3))
    np.testing.assert_allclose(gain_levels(N, 10**7, 3, "companded"), expected, rtol=1e-5)


@pytest.mark.parametrize("n, row_dim, bits", [(16, 4096, 1), (16, 576, 3), (8, 1536, 4)])
def test_lloyd_levels_are_the_means_of_their_cells(n, row_dim, bits):
    levels = gain_levels(n, row_dim, bits).astype(np.float64)
    points = norms(n, row_dim)
    cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, points)
    means = np.bincount(cell, points) / np.bincount(cell)
    np.testing.assert_allclose(levels, means, rtol=3e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_lloyd_levels_beat_the_other_grids(bits):
    points = norms(N, ROW)
    lloyd, companded, quantile = (
        distortion(gain_levels(N, ROW, bits, grid), points) for grid in ("lloyd", "companded", "quantile")
    )
    assert lloyd < companded and lloyd < quantile


@pytest.mark.parametrize(
    "grid, expected",
    [
        ("quantile", (1.16e-2, 4.4e-3, 1.7e-3, 7.0e-4, 2.9e-4, 1.2e-4)),
        ("companded", (1.50e-2, 4.4e-3, 1.17e-3, 3.0e-4, 7.8e-5, 1.95e-5)),
        ("lloyd", (1.11e-2, 3.6e-3, 1.04e-3, 2.8e-4, 7.5e-5, 2.0e-5)),
    ],
)
def test_distortion_of_a_gain_is_the_measured_one(grid, expected):
    """The numbers of the specification, which has two or three digits of them."""
    points = norms(N, ROW)
    found = [distortion(gain_levels(N, ROW, bits, grid), points) for bits in range(1, 7)]
    np.testing.assert_allclose(found, expected, rtol=0.05)


@pytest.mark.parametrize("grid", ["lloyd", "companded", "quantile"])
def test_levels_increase_strictly(grid):
    for bits in range(1, 7):
        assert np.all(np.diff(gain_levels(8, 576, bits, grid)) > 0)


def test_a_group_that_is_the_whole_row_has_one_norm():
    np.testing.assert_array_equal(gain_levels(16, 16, 2), np.full(4, 4.0))


def test_a_caller_cannot_change_the_levels_of_others():
    gain_levels(16, 576, 2)[:] = 0
    assert gain_levels(16, 576, 2).min() > 1


def test_rotated_rows_of_a_real_model_follow_the_beta_law(smollm2):
    params, _, _ = smollm2
    for name, layer in (("o", 0), ("k", 0), ("down", 15)):
        w = params["layers"][name][layer][:96]
        rows = np.asarray(rotate(w, random_signs(jax.random.key(0), w.shape[1])), np.float64)
        share = (rows.reshape(96, -1, N) ** 2).sum(-1) / (rows**2).sum(-1, keepdims=True)
        statistic = stats.kstest(share.ravel(), law(N, w.shape[1]).cdf).statistic
        # A thousandth of the samples of this size from the law itself lie further away.
        assert statistic < 1.95 / np.sqrt(share.size), (name, statistic)


def test_rows_that_are_not_rotated_do_not_follow_it(smollm2):
    params, _, _ = smollm2
    rows = np.asarray(params["layers"]["o"][0][:96], np.float64)
    share = (rows.reshape(96, -1, N) ** 2).sum(-1) / (rows**2).sum(-1, keepdims=True)
    assert stats.kstest(share.ravel(), law(N, 576).cdf).statistic > 4 / np.sqrt(share.size)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((16, 8, 2), "group size n = 16 must lie between 1 and the row's length 8"),
        ((0, 8, 2), "group size n = 0"),
        ((4, 8, 9), "bits is 9; it must be 0 to 8"),
        ((4, 8, -1), "bits is -1"),
        ((4, 8, 2, "even"), "grid is 'even'; it must be one of lloyd, companded, quantile"),
    ],
)
def test_argument_out_of_range_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        gain_levels(*arguments)
