"""What a recipe offers so that it can be swept."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Train = Callable[[Mapping[str, jax.Array], jax.Array], Mapping[str, jax.Array]]
"""From traced options (scalars) and a PRNG key to results: numbers, or curves of one common length.

Large arrays that all runs share belong into a `jax.tree_util.Partial`."""


class Sweepable(NamedTuple):
    """A recipe's training as a pure function: `SWEEP = Sweepable(...)` in its module."""

    train: Callable[[Any], Train]
    """From a `Config` to the function; it reads traced options from its argument, all others from the config."""
    traced: tuple[str, ...] = ()
    """Options (int or float) that may differ between the runs of one program; of all others each value is a program."""
    steps: Callable[[Any], Any] | None = None
    """From a `Config` to the steps that curves were taken at, increasing; None: results are numbers alone."""
    step_name: str = "step"
    """What a step is: the name of its column."""
    lanes: int = 16
    """Runs side by side on a device, under `vmap`; 1 runs them one after the other, where each may stop by itself."""
    double: Callable[[Any], bool] = lambda config: False
    """Whether a `Config` asks for double precision."""
    extras: tuple[str, ...] = ()
    """Optional packages that training needs, beyond those of the recipe."""
    shown: tuple[str, ...] = ()
    """Results that the figures show; () means all."""
