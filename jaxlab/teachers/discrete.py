"""Discrete tasks: a space of one dimension whose values 0, 1, ..., n - 1 are task ids.

Teachers of continuous spaces work on it too, if the world rounds; those of discrete tasks need it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.spaces import TaskSpace, task_space


def discrete_space(tasks: int) -> TaskSpace:
    """The space of the ids 0 to `tasks` - 1.

    Raises:
      InputError: fewer than two tasks.
    """
    if tasks < 2:
        raise InputError(f"tasks is {tasks}; it must be >= 2")
    return task_space({"task_id": (0, tasks - 1)})


def task_id(task: Float[Array, "*batch 1"]) -> Int[Array, "*batch"]:
    """The id of a task of a discrete space: its coordinate, rounded."""
    return jnp.round(task[..., 0]).astype(jnp.int32)


def task_of_id(number: Int[Array, "*batch"]) -> Float[Array, "*batch 1"]:
    """The task of an id."""
    return jnp.asarray(number, jnp.float32)[..., None]


def check_discrete(space: TaskSpace, tasks: int) -> None:
    """Raises `InputError` unless the space is `discrete_space(tasks)`; bounds are compared where they are concrete."""
    right = space.dimensions == 1
    if right and not isinstance(space.high, jax.core.Tracer):
        right = np.asarray(space.low).tolist() == [0] and np.asarray(space.high).tolist() == [tasks - 1]
    if not right:
        raise InputError(f"space has blocks {space.blocks}; it must be discrete_space({tasks})")


def id_log_density(tasks: Float[Array, "m 1"], probabilities: Float[Array, " tasks"]) -> Float[Array, " m"]:
    """Log-probability of the id of each task; -inf outside."""
    number = task_id(tasks)
    inside = (number >= 0) & (number < probabilities.shape[0])
    return jnp.where(
        inside, jnp.log(probabilities[jnp.clip(number, 0, probabilities.shape[0] - 1)]), -jnp.inf
    )


def push_score(
    scores: Float[Array, "tasks window"], number: Int[Array, ""], score: Float[Array, ""]
) -> Float[Array, "tasks window"]:
    """The last scores of each task, oldest first and at the end of its row, with one more for a task."""
    row = jnp.append(scores[number, 1:], score)
    return scores.at[number].set(row)


def regression_slope(
    times: Float[Array, "*tasks window"],
    scores: Float[Array, "*tasks window"],
    size: Int[Array, "*tasks"],
) -> Float[Array, "*tasks"]:
    """Least-squares slope of the last `size` scores over their times; 0 where there are fewer than two.

    Args:
      times: when each score came.
      scores: the newest last.
      size: how many count.
    """
    window = scores.shape[-1]
    there = jnp.arange(window) >= window - size[..., None]
    number = jnp.maximum(size, 1)[..., None]
    time = jnp.where(there, times - jnp.sum(jnp.where(there, times, 0), -1, keepdims=True) / number, 0)
    score = jnp.where(there, scores - jnp.sum(jnp.where(there, scores, 0), -1, keepdims=True) / number, 0)
    spread = jnp.sum(time**2, axis=-1)
    return jnp.where(size >= 2, jnp.sum(time * score, axis=-1) / jnp.where(spread > 0, spread, 1), 0)
