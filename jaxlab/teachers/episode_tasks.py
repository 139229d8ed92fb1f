"""Tasks of B parallel environments that share one teacher: each finished episode is told, each gets a new task.

What the adapters to brax and to functional environments have in common.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.teachers.protocol import Feedback, State, Teacher
from jaxlab.teachers.spaces import TaskSpace


class EpisodeTasks(NamedTuple):
    """The teacher, and the task that each environment plays."""

    teacher: State
    task: Float[Array, "B dim"]


def first_tasks(teacher: Teacher, key: jax.Array, space: TaskSpace, *, environments: int) -> EpisodeTasks:
    """A new teacher and its first tasks.

    Args:
      teacher: to start.
      key: PRNG key.
      space: of the tasks.
      environments: B >= 1.

    Raises:
      InputError: B is out of range, or the teacher cannot work on the space.
    """
    if environments < 1:
        raise InputError(f"environments is {environments}; it must be >= 1")
    init_key, key = jax.random.split(key)
    task, state = teacher.sample_batch(teacher.init(init_key, space), key, environments)
    return EpisodeTasks(state, task)


def next_tasks(teacher: Teacher, tasks: EpisodeTasks, key: jax.Array, feedback: Feedback) -> EpisodeTasks:
    """Tells the teacher the episodes under the mask, in order, then draws new tasks for these environments alone.

    Args:
      teacher: whose state is in `tasks`.
      tasks: before.
      key: PRNG key.
      feedback: of the episodes; its tasks are those of `tasks`.
    """
    update_key, sample_key = jax.random.split(key)
    state = teacher.update_batch(tasks.teacher, update_key, feedback)
    new, state = _draw(teacher, state, sample_key, feedback.mask)
    return EpisodeTasks(state, jnp.where(feedback.mask[:, None], new, tasks.task))


def rows_where(finished: Bool[Array, " B"], new: Any, old: Any) -> Any:
    """Rows of the new tree where an episode has finished, in the types of the old one."""

    def choose(a: Array, b: Array) -> Array:
        chosen = jnp.where(finished.reshape(-1, *[1] * (b.ndim - 1)), a, b)
        return chosen if jnp.issubdtype(b.dtype, jax.dtypes.prng_key) else chosen.astype(b.dtype)

    return jax.tree.map(choose, new, old)


def _draw(
    teacher: Teacher, state: State, key: jax.Array, mask: Bool[Array, " B"]
) -> tuple[Float[Array, "B dim"], State]:
    """Tasks of which those outside the mask have not been drawn, as far as the state is concerned."""
    if teacher.period:  # Drawing leaves the state as it is.
        return teacher.sample_batch(state, key, mask.shape[0])

    def one(state: State, item: tuple[jax.Array, Bool[Array, ""]]) -> tuple[State, Float[Array, " dim"]]:
        own, wanted = item
        task, drawn = teacher.sample(state, own)
        return jax.tree.map(lambda a, b: jnp.where(wanted, a, b), drawn, state), task

    state, new = jax.lax.scan(one, state, (jax.random.split(key, mask.shape[0]), mask))
    return new, state
