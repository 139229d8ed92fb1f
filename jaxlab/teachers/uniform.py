"""Random: tasks drawn uniformly, whatever the student does. Domain randomisation."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskSpace, uniform_log_density, uniform_task


class UniformState(NamedTuple):
    """Nothing but a count."""

    space: TaskSpace
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def uniform_teacher() -> Teacher:
    """The teacher Random."""

    def learn(state: UniformState, episode: Episode) -> UniformState:
        del episode
        return state._replace(episodes=state.episodes + 1)

    return every_episode_teacher(
        init=lambda key, space: UniformState(space, jnp.int32(0), jnp.int32(0)),
        sample=lambda state, key: (uniform_task(state.space, key), state),
        learn=learn,
        density=lambda state, tasks: uniform_log_density(state.space, tasks),
        metrics=lambda state: {"episodes": state.episodes},
    )
