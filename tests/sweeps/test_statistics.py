"""Statistics over seeds against scipy."""

import numpy as np
import pytest
import scipy.stats

from jaxlab.errors import InputError
from jaxlab.sweeps import (
    interquartile_mean,
    interval_estimate,
    performance_profile,
    probability_of_improvement,
)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 7, 64])
def test_interquartile_mean_is_scipys_trimmed_mean(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, 3))
    np.testing.assert_allclose(
        interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=0), rtol=1e-12
    )


def test_intervals_are_those_of_scipys_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, size=(40, 2))
    found = interval_estimate(values, resamples=20_000)
    expected = scipy.stats.bootstrap(
        (values,),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    np.testing.assert_allclose(found.value, scipy.stats.trim_mean(values, 0.25, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.low, expected.confidence_interval.low, rtol=0.02)
    np.testing.assert_allclose(found.high, expected.confidence_interval.high, rtol=0.02)


def test_large_samples_are_resampled_in_batches_to_the_same_interval(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 4))
    whole = interval_estimate(values, resamples=400)
    monkeypatch.setattr("jaxlab.sweeps.statistics._MOST_NUMBERS", 7 * values.size)
    parts = interval_estimate(values, resamples=400)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, 23), rng.integers(1, 7, 31)
    expected = scipy.stats.mannwhitneyu(first, second).statistic / (23 * 31)
    assert probability_of_improvement(first, second) == pytest.approx(float(expected))


def test_profile_is_the_share_of_runs_above():
    np.testing.assert_allclose(
        performance_profile([0.1, 0.4, 0.4, 0.9], [0.0, 0.4, 0.5, 1.0]), [1, 0.25, 0.25, 0]
    )


@pytest.mark.parametrize("function", [interquartile_mean, lambda x: performance_profile(x, [0.0])])
def test_no_seed_is_an_input_error(function):
    with pytest.raises(InputError, match="at least one seed"):
        function([])


def test_options_out_of_range_are_input_errors():
    with pytest.raises(InputError, match="confidence is 1"):
        interval_estimate(np.ones(3), confidence=1.0)
