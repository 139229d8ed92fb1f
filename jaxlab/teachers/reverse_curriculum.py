"""Reverse curriculum: start states that move away from the goal as the student learns to come back.

A pool of starts is played for a while. Those that succeed neither too seldom nor too often are good; the next pool are
states near the good ones, and some good ones of earlier pools. Reference: Florensa et al., "Reverse Curriculum
Generation for Reinforcement Learning", arXiv:1707.05300, algorithms 1 and 2.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.kernel_density import kernel_log_density
from jaxlab.teachers.protocol import Feedback, Teacher, periodic_teacher
from jaxlab.teachers.spaces import TaskSpace, clip_task

_DENSITY_STD = 0.01
"""Starts of the pool are points; the density shows each as a Gaussian of this share of the extent."""

NearbyStart = Callable[[jax.Array, Array, TaskSpace], Array]
"""(key, start, space) -> another start, from which the first is in reach."""


def brownian_start(
    key: jax.Array, start: Float[Array, " dim"], space: TaskSpace, *, share: float = 0.01, horizon: int = 50
) -> Float[Array, " dim"]:
    """Where a random walk from the start stands after 1 to `horizon` steps, clipped to the space.

    A world with dynamics should take random actions in it instead, so that every start is one that can be returned from
    (algorithm 2).

    Args:
      key: PRNG key.
      start: where the walk begins.
      space: of starts.
      share: std of a step, in shares of the extent.
      horizon: most steps.
    """
    step_key, noise_key = jax.random.split(key)
    steps = jax.random.randint(step_key, (), 1, horizon + 1)
    noise = jnp.sqrt(steps) * jax.random.normal(noise_key, start.shape)
    return clip_task(space, start + share * space.extent * noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseCurriculumConfig:
    """Options of the reverse curriculum; a task is a start."""

    goal: tuple[float, ...]
    """A start from which success is certain, from which the curriculum grows."""
    new_starts: int = 200
    """Starts of a pool near good ones."""
    old_starts: int = 100
    """Starts of a pool that were good in earlier ones."""
    least_success: float = 0.1
    greatest_success: float = 0.9
    """Share of successes of a good start."""
    episodes: int = 1000
    """Episodes that a pool is played for."""
    archive: int = 4096
    """Good starts that are kept; a further one replaces the oldest. The paper keeps all."""
    nearby: NearbyStart = brownian_start
    """Draws a start near another."""
    success_return: float | None = 230.0
    """To `update`, an episode with a return above this is a success."""

    def __post_init__(self) -> None:
        for name, least in (("new_starts", 1), ("old_starts", 0), ("episodes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= {least}")
        if not 0 <= self.least_success <= self.greatest_success <= 1:
            raise InputError(
                f"least_success is {self.least_success}, greatest_success is {self.greatest_success}; "
                "they must lie in [0, 1], least <= greatest"
            )
        if self.archive < self.new_starts + self.old_starts:
            raise InputError(f"archive is {self.archive}; it must be >= new_starts + old_starts")


class ReverseCurriculumState(NamedTuple):
    """The pool that is played, and the good starts so far."""

    space: TaskSpace
    pool: Float[Array, "pool dim"]
    trials: Int[Array, " pool"]
    successes: Int[Array, " pool"]
    archive: Float[Array, "archive dim"]
    archived: Int[Array, ""]
    """Starts ever archived, the goal first."""
    good: Int[Array, ""]
    """Good starts of the last pool."""
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    key: jax.Array
    faults: Int[Array, ""]


def reverse_curriculum_teacher(config: ReverseCurriculumConfig) -> Teacher:
    """The reverse curriculum; see `ReverseCurriculumConfig`. It learns from `success`."""
    size = config.new_starts + config.old_starts

    def init(key: jax.Array, space: TaskSpace) -> ReverseCurriculumState:
        _check_goal(space, config.goal)
        pool_key, key = jax.random.split(key)
        goal = jnp.asarray(config.goal, jnp.float32)
        archive = jnp.zeros((config.archive, space.dimensions)).at[0].set(goal)
        one, zero = jnp.int32(1), jnp.int32(0)
        count = jnp.zeros(size, jnp.int32)
        pool = next_pool(pool_key, space, jnp.tile(goal, (size, 1)), jnp.ones(size, bool), archive, one)
        return ReverseCurriculumState(space, pool, count, count, archive, one, one, zero, key, zero)

    def next_pool(
        key: jax.Array,
        space: TaskSpace,
        starts: Float[Array, "pool dim"],
        good: Bool[Array, " pool"],
        archive: Float[Array, "archive dim"],
        archived: Int[Array, ""],
    ) -> Float[Array, "pool dim"]:
        parent_key, near_key, old_key = jax.random.split(key, 3)
        row_key, spare_key = jax.random.split(parent_key)
        kept = jnp.minimum(archived, config.archive)
        # With no good start, those of the archive are as near as we come.
        p = good / jnp.maximum(good.sum(), 1)
        rows = jax.random.choice(row_key, size, (config.new_starts,), p=p)
        spare = archive[jax.random.randint(spare_key, (config.new_starts,), 0, kept)]
        parents = jnp.where(jnp.any(good), starts[rows], spare)
        near = jax.vmap(lambda key, start: config.nearby(key, start, space))(
            jax.random.split(near_key, config.new_starts), parents
        )
        old = archive[jax.random.randint(old_key, (config.old_starts,), 0, kept)]
        return jnp.concatenate([near, old])

    def sample(state: ReverseCurriculumState, key: jax.Array) -> Float[Array, " dim"]:
        return state.pool[jax.random.randint(key, (), 0, size)]

    def record(state: ReverseCurriculumState, feedback: Feedback) -> ReverseCurriculumState:
        # Copies of a start in the pool are one start: all of them count its episodes.
        played = jnp.all(feedback.task[:, None] == state.pool[None], axis=2) & feedback.mask[:, None]
        won = played & feedback.success[:, None]
        return state._replace(
            trials=state.trials + played.sum(0, dtype=jnp.int32),
            successes=state.successes + won.sum(0, dtype=jnp.int32),
            episodes=state.episodes + jnp.sum(feedback.mask, dtype=jnp.int32),
        )

    def refit(state: ReverseCurriculumState) -> ReverseCurriculumState:
        good = good_starts(
            state.trials, state.successes, least=config.least_success, greatest=config.greatest_success
        )
        slot = jnp.where(good, (state.archived + jnp.cumsum(good) - 1) % config.archive, config.archive)
        archive = state.archive.at[slot].set(state.pool, mode="drop")
        number = good.sum(dtype=jnp.int32)
        archived = state.archived + number
        pool_key, key = jax.random.split(state.key)
        return state._replace(
            pool=next_pool(pool_key, state.space, state.pool, good, archive, archived),
            trials=jnp.zeros_like(state.trials),
            successes=jnp.zeros_like(state.successes),
            archive=archive,
            archived=archived,
            good=number,
            key=key,
        )

    def density(state: ReverseCurriculumState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        return kernel_log_density(tasks, state.pool, jnp.ones(size), _DENSITY_STD * state.space.extent)

    def metrics(state: ReverseCurriculumState) -> dict[str, Array]:
        way = jnp.abs(state.pool - jnp.asarray(config.goal)) / state.space.extent
        return {
            "episodes": state.episodes,
            "archived": state.archived,
            "good_starts": state.good,
            "mean_way": way.mean(),
        }

    return periodic_teacher(
        period=config.episodes,
        init=init,
        sample=sample,
        record=record,
        refit=refit,
        density=density,
        metrics=metrics,
        success_return=config.success_return,
    )


def good_starts(
    trials: Int[Array, " n"], successes: Int[Array, " n"], *, least: float, greatest: float
) -> Bool[Array, " n"]:
    """Which starts were played and succeeded in a share between `least` and `greatest`, both included."""
    share = successes / jnp.maximum(trials, 1)
    return (trials > 0) & (share >= least) & (share <= greatest)


def _check_goal(space: TaskSpace, goal: tuple[float, ...]) -> None:
    if len(goal) != space.dimensions:
        raise InputError(
            f"goal has {len(goal)} dimensions; it must have {space.dimensions}, as the space of tasks"
        )
    if not isinstance(space.low, jax.core.Tracer):
        low, high = np.asarray(space.low), np.asarray(space.high)
        start = np.asarray(goal, np.float32)
        if not np.all((start >= low) & (start <= high)):
            raise InputError(f"goal is {goal}; it must lie between {low.tolist()} and {high.tolist()}")
