"""Oracle: a window that an expert moves over the space of tasks, from easy to hard.

Reference: arXiv:1910.07224, section 5; github.com/flowersteam/teachDeepRL, `oracle_teacher.py`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.protocol import Feedback, Teacher, periodic_teacher
from jaxlab.teachers.spaces import TaskSpace, clip_task, uniform_log_density


@dataclasses.dataclass(frozen=True)
class OracleConfig:
    """Options of Oracle. Returns are not scaled.

    The reference moves by (0.1, -0.2) on stumps (height, spacing) and by 0.1 in each of 12 dimensions on hexagons.
    """

    step: tuple[float, ...]
    """By which the window moves; where it is positive the window starts at the lower bound, else at the upper."""
    threshold: float = 230.0
    """Mean return above which the window moves."""
    period: int = 50
    """Episodes whose mean return counts."""
    window: float = 1 / 6
    """Share of each dimension that the window covers."""

    def __post_init__(self) -> None:
        if self.period < 1:
            raise InputError(f"period is {self.period}; it must be >= 1")
        if not 0 < self.window <= 1:
            raise InputError(f"window is {self.window}; it must lie in (0, 1]")


class OracleState(NamedTuple):
    """Where the window stands, and what was earned since it last could move."""

    space: TaskSpace
    corner: Float[Array, " dim"]
    """Lowest task of the window."""
    total: Float[Array, ""]
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def oracle_teacher(config: OracleConfig) -> Teacher:
    """The teacher Oracle; see `OracleConfig`."""
    step = jnp.asarray(config.step, jnp.float32)

    def start(space: TaskSpace) -> Float[Array, " dim"]:
        return jnp.where(step > 0, space.low, space.high - config.window * space.extent)

    def init(key: jax.Array, space: TaskSpace) -> OracleState:
        del key
        if len(config.step) != space.dimensions:
            raise InputError(
                f"step has {len(config.step)} dimensions; it must have {space.dimensions}, as the space of tasks"
            )
        return OracleState(space, start(space), jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def sample(state: OracleState, key: jax.Array) -> Float[Array, " dim"]:
        inside = config.window * state.space.extent * jax.random.uniform(key, state.corner.shape)
        return clip_task(state.space, state.corner + inside)

    def record(state: OracleState, feedback: Feedback) -> OracleState:
        return state._replace(
            total=state.total + jnp.sum(jnp.where(feedback.mask, feedback.ret, 0)),
            episodes=state.episodes + jnp.sum(feedback.mask, dtype=jnp.int32),
        )

    def refit(state: OracleState) -> OracleState:
        last = state.space.high - config.window * state.space.extent
        moved = jnp.clip(state.corner + step, state.space.low, last)
        mastered = state.total / config.period > config.threshold
        return state._replace(corner=jnp.where(mastered, moved, state.corner), total=jnp.float32(0))

    def density(state: OracleState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        high = state.corner + config.window * state.space.extent
        return uniform_log_density(TaskSpace(state.corner, high, state.space.blocks), tasks)

    def metrics(state: OracleState) -> dict[str, Array]:
        way = jnp.abs(state.corner - start(state.space)) / state.space.extent
        return {"episodes": state.episodes, "mean_way": way.mean()}

    return periodic_teacher(
        period=config.period,
        init=init,
        sample=sample,
        record=record,
        refit=refit,
        density=density,
        metrics=metrics,
    )
