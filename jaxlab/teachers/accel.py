"""ACCEL: prioritised level replay whose new levels are also small changes of those just replayed.

After the episode of each replayed level a changed copy of it is played, scored and inserted like any new level.
Reference: Parker-Holder et al., "Evolving Curricula with Regret-Based Environment Design", arXiv:2203.01302,
algorithm 1; github.com/DramaCow/jaxued, which likewise changes every replayed level. The student learns from replayed
levels alone by default.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.level_buffer import LevelBuffer, empty_buffer, same_level
from jaxlab.teachers.prioritized_replay import (
    PLRConfig,
    draw_level,
    learnt_level,
    replay_log_density,
    replay_metrics,
)
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskSpace, clip_task

Mutate = Callable[[jax.Array, Array, TaskSpace], Array]
"""(key, level, space) -> changed level."""


def gaussian_mutation(
    key: jax.Array, level: Float[Array, " dim"], space: TaskSpace, *, share: float = 0.05
) -> Float[Array, " dim"]:
    """The level plus Gaussian noise of a share of the extent in each dimension, clipped to the space."""
    return clip_task(space, level + share * space.extent * jax.random.normal(key, level.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACCELConfig(PLRConfig):
    """Options of ACCEL beside those of PLR, whose defaults it shares but for `robust`."""

    robust: bool = True
    mutate: Mutate = gaussian_mutation
    """Changes a replayed level; its result must lie in the space."""
    parents: int = 256
    """Replayed levels that wait to be changed; a further one replaces the oldest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parents < 1:
            raise InputError(f"parents is {self.parents}; it must be >= 1")


class ACCELState(NamedTuple):
    """The levels that may be replayed, and a queue of those replayed since."""

    space: TaskSpace
    buffer: LevelBuffer
    parents: Float[Array, "parents dim"]
    queued: Int[Array, ""]
    """Parents that ever joined the queue; the newest stands in slot (queued - 1) % parents."""
    waiting: Int[Array, ""]
    """Parents in the queue."""
    mutations: Int[Array, ""]
    """Changed levels drawn so far."""
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def accel_teacher(config: ACCELConfig | None = None) -> Teacher:
    """The teacher ACCEL; see `ACCELConfig`. Scores are as for `plr_teacher`."""
    options = config or ACCELConfig()

    def init(key: jax.Array, space: TaskSpace) -> ACCELState:
        del key
        d = space.dimensions
        zero = jnp.int32(0)
        return ACCELState(
            space,
            empty_buffer(options.capacity, d),
            jnp.zeros((options.parents, d)),
            zero,
            zero,
            zero,
            zero,
            zero,
        )

    def sample(state: ACCELState, key: jax.Array) -> tuple[Float[Array, " dim"], ACCELState]:
        mutate_key, draw_key = jax.random.split(key)

        def child() -> tuple[Float[Array, " dim"], ACCELState]:
            parent = state.parents[(state.queued - state.waiting) % options.parents]
            level = options.mutate(mutate_key, parent, state.space)
            return level, state._replace(waiting=state.waiting - 1, mutations=state.mutations + 1)

        def other() -> tuple[Float[Array, " dim"], ACCELState]:
            level, buffer = draw_level(state, draw_key, options)
            return level, state._replace(buffer=buffer)

        return jax.lax.cond(state.waiting > 0, child, other)

    def learn(state: ACCELState, episode: Episode) -> ACCELState:
        replayed = jnp.any(same_level(state.buffer, episode.task) & (state.buffer.replaying > 0))
        buffer, fault = learnt_level(state.buffer, episode, options)
        slot = jnp.where(replayed, state.queued % options.parents, options.parents)
        return state._replace(
            buffer=buffer,
            parents=state.parents.at[slot].set(episode.task, mode="drop"),
            queued=state.queued + replayed,
            waiting=jnp.minimum(state.waiting + replayed, options.parents),
            episodes=state.episodes + 1,
            faults=state.faults | fault,
        )

    def metrics(state: ACCELState) -> dict[str, Array]:
        return {**replay_metrics(state, options), "mutations": state.mutations}

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=lambda state, tasks: replay_log_density(state, tasks, options),
        metrics=metrics,
    )
