"""The split of a region of RIAC: many random thresholds at once, the one between unlike learning progress wins."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.teachers.spaces import TaskSpace


class Episodes(NamedTuple):
    """Episodes of a region in the order in which they came."""

    tasks: Float[Array, "*rows slots dim"]
    returns: Float[Array, "*rows slots"]
    valid: Bool[Array, "*rows slots"]


class Split(NamedTuple):
    """Where a region is cut."""

    valid: Bool[Array, ""]
    """Whether any attempt gave two regions that are large enough."""
    dimension: Int[Array, ""]
    threshold: Float[Array, ""]
    left: Bool[Array, " slots"]
    """Episodes at or below the threshold."""


class SplitOptions(Protocol):
    """What `RIACConfig` says about splits."""

    @property
    def split_attempts(self) -> int:
        """Thresholds tried."""

    @property
    def redraws(self) -> int:
        """Draws of a threshold in an attempt."""

    @property
    def min_region_size(self) -> float:
        """Episodes that each side must hold."""

    @property
    def min_extent_ratio(self) -> float:
        """Smallest side, as a share of the space."""

    @property
    def alp_window(self) -> int:
        """Episodes that learning progress looks at."""

    @property
    def split_score(self) -> str:
        """Either "paper" or "reference"."""


def progress_of_list(
    returns: Float[Array, " slots"], members: Bool[Array, " slots"], window: int
) -> Float[Array, ""]:
    """|mean of the later half - mean of the earlier half| of the last returns; 0 for two or fewer.

    Of the last c = min(members, window) returns the later half are the last floor(c / 2), the earlier half all others.

    Args:
      returns: in the order in which they came.
      members: which of them count.
      window: how many of the last ones.
    """
    count = jnp.sum(members)
    considered = jnp.minimum(count, window)
    half = considered // 2
    from_end = count - jnp.cumsum(members)
    later = members & (from_end < half)
    earlier = members & (from_end >= half) & (from_end < considered)
    late = jnp.sum(jnp.where(later, returns, 0)) / jnp.maximum(half, 1)
    early = jnp.sum(jnp.where(earlier, returns, 0)) / jnp.maximum(considered - half, 1)
    return jnp.where(count > 2, jnp.abs(early - late), 0)


def find_split(
    key: jax.Array,
    episodes: Episodes,
    low: Float[Array, " dim"],
    high: Float[Array, " dim"],
    space: TaskSpace,
    options: SplitOptions,
) -> Split:
    """The best of `split_attempts` thresholds, the last of equals.

    Each attempt draws a dimension and a threshold until both sides hold `min_region_size` episodes, `redraws` times at
    most (the reference goes on for ever where all tasks coincide), and counts if both regions are wide enough.

    Args:
      key: PRNG key.
      episodes: of the region.
      low: of the region.
      high: of the region.
      space: all tasks.
      options: see `RIACConfig`.
    """
    dimension_key, threshold_key = jax.random.split(key)
    shape = (options.split_attempts, options.redraws)
    dimension = jax.random.randint(dimension_key, shape, 0, space.dimensions)
    uniform = jax.random.uniform(threshold_key, shape)
    threshold = low[dimension] + (high - low)[dimension] * uniform
    left = (episodes.tasks.T[dimension] <= threshold[..., None]) & episodes.valid
    lefts = left.sum(-1)
    rights = episodes.valid.sum() - lefts
    enough = jnp.minimum(lefts, rights) >= options.min_region_size
    taken = jnp.argmax(enough, axis=1)
    attempt = jnp.arange(options.split_attempts)
    dimension, threshold, left = (part[attempt, taken] for part in (dimension, threshold, left))
    sizes = jnp.stack([lefts[attempt, taken], rights[attempt, taken]])
    narrow = jnp.minimum(threshold - low[dimension], high[dimension] - threshold)
    untouched = jnp.where(
        jnp.arange(space.dimensions) == dimension[:, None], jnp.inf, (high - low) / space.extent
    ).min(1)
    wide = jnp.minimum(narrow / space.extent[dimension], untouched) >= options.min_extent_ratio
    valid = enough.any(axis=1) & wide

    def progress(members: Bool[Array, " slots"]) -> Float[Array, ""]:
        return progress_of_list(episodes.returns, members, options.alp_window)

    difference = jnp.abs(jax.vmap(progress)(left) - jax.vmap(progress)(episodes.valid & ~left))
    factor = 4 if options.split_score == "reference" else sizes[0] * sizes[1]
    score = jnp.where(valid, factor * difference, -1)
    best = options.split_attempts - 1 - jnp.argmax(score[::-1])
    return Split(valid[best], dimension[best], threshold[best], left[best])
