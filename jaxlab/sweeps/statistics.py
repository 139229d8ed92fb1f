"""Statistics over seeds as Agarwal et al. ask for them: interquartile means with bootstrap intervals, profiles.

Reference: "Deep reinforcement learning at the edge of the statistical precipice", arXiv:2108.13264.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxlab.errors import InputError

_MOST_NUMBERS = 1 << 24
"""Of resampled values held at a time."""


class Estimate(NamedTuple):
    """A statistic and its confidence interval, each [*steps]."""

    value: Float[np.ndarray, "*steps"]
    low: Float[np.ndarray, "*steps"]
    high: Float[np.ndarray, "*steps"]


def interquartile_mean(
    values: Float[np.ndarray, "seeds *steps"], axis: int = 0
) -> Float[np.ndarray, "*steps"]:
    """Mean of the values without the lowest and the highest quarter (each floor(seeds / 4) values).

    Raises:
      InputError: no values.
    """
    values = np.asarray(values, np.float64)
    count = values.shape[axis] if values.ndim else 0
    if not count:
        raise InputError("values is empty; at least one seed is needed")
    cut = count // 4
    middle = np.sort(values, axis=axis)
    return middle.take(np.arange(cut, count - cut), axis=axis).mean(axis=axis)


def interval_estimate(
    values: Float[np.ndarray, "seeds *steps"],
    statistic: Callable[..., Float[np.ndarray, "..."]] = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic over seeds with the percentile interval of its bootstrap.

    All steps of a seed are resampled together.

    Args:
      values: of every seed, at every step.
      statistic: of (values, axis=...).
      confidence: between 0 and 1.
      resamples: of the bootstrap, at least 1.
      seed: of the resampling.

    Raises:
      InputError: no values, or an option out of range.
    """
    values = np.asarray(values, np.float64)
    if not 0 < confidence < 1 or resamples < 1:
        raise InputError(
            f"confidence is {confidence} and resamples {resamples}; they must lie in (0, 1) and be at least 1"
        )
    value = statistic(values, axis=0)
    rng = np.random.default_rng(seed)
    batch = max(1, _MOST_NUMBERS // max(values.size, 1))
    found = []
    for start in range(0, resamples, batch):
        drawn = rng.integers(0, len(values), (min(batch, resamples - start), len(values)))
        found.append(statistic(values[drawn], axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail], axis=0)
    return Estimate(np.asarray(value), low, high)


def performance_profile(
    values: Float[np.ndarray, " seeds"], thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, " thresholds"]:
    """Share of seeds above each threshold."""
    values = np.sort(np.asarray(values, np.float64))
    if not len(values):
        raise InputError("values is empty; at least one seed is needed")
    return 1 - np.searchsorted(values, thresholds, side="right") / len(values)


def probability_of_improvement(
    first: Float[np.ndarray, " seeds"], second: Float[np.ndarray, " others"]
) -> float:
    """Chance that a run of the first is above one of the second, ties counted half (Mann-Whitney's U, normalised).

    Raises:
      InputError: one of them is empty.
    """
    first, second = np.asarray(first, np.float64), np.sort(np.asarray(second, np.float64))
    if not len(first) or not len(second):
        raise InputError("both samples need at least one seed")
    below = np.searchsorted(second, first, side="left") + np.searchsorted(second, first, side="right")
    return float(below.mean() / (2 * len(second)))
