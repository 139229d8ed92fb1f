"""A teacher, a student and its world in one compiled program, a block of episodes at a time."""

from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.teachers.protocol import Teacher, returns_feedback
from jaxlab.teachers.spaces import TaskSpace


class StudentWorld(Protocol):
    """A student in its world, such as `jaxlab.environments.hypercube_world`."""

    @property
    def init(self) -> Any:
        """Key -> state."""

    @property
    def episode(self) -> Any:
        """(state, key, task) -> (state, return)."""

    @property
    def score(self) -> Any:
        """State -> how well the student does, to be logged."""


class BlockLog(NamedTuple):
    """What happened in each block."""

    tasks: Float[Array, "blocks block dim"]
    returns: Float[Array, "blocks block"]
    score: Float[Array, " blocks"]
    """Of the student after the block."""
    metrics: dict[str, Array]
    """Of the teacher after the block."""


def run_teacher_student(
    key: jax.Array,
    teacher: Teacher,
    world: StudentWorld,
    space: TaskSpace,
    *,
    blocks: int,
    block: int | None = None,
) -> tuple[Any, Any, BlockLog]:
    """Plays `blocks` blocks of episodes, one student, one episode after the other.

    A teacher with a period has blocks of one period: its tasks are drawn at once, and its fit follows without a
    condition, so that under `vmap` over keys it does not turn into a fit at every episode.

    Args:
      key: PRNG key.
      teacher: chooses the tasks.
      world: plays them.
      space: of the tasks.
      blocks: how many, >= 1.
      block: episodes in a block, >= 1; only for teachers without a period, 250 by default.

    Returns:
      the states of teacher and world, and the log.

    Raises:
      InputError: `blocks` or `block` is out of range, or differs from the teacher's period.
    """
    if blocks < 1:
        raise InputError(f"blocks is {blocks}; it must be >= 1")
    if teacher.period and block not in (None, teacher.period):
        raise InputError(f"block is {block}; it must be {teacher.period}, the period of this teacher")
    length = teacher.period or (250 if block is None else block)
    if length < 1:
        raise InputError(f"block is {length}; it must be >= 1")
    teacher_key, world_key, key = jax.random.split(key, 3)
    play = _play_period if teacher.period else _play_each

    def one_block(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], BlockLog]:
        teacher_state, world_state, tasks, returns = play(teacher, world, *carry, key, length)
        log = BlockLog(tasks, returns, world.score(world_state), teacher.metrics(teacher_state))
        return (teacher_state, world_state), log

    start = (teacher.init(teacher_key, space), world.init(world_key))
    (teacher_state, world_state), log = jax.lax.scan(one_block, start, jax.random.split(key, blocks))
    return teacher_state, world_state, log


def _play_period(
    teacher: Teacher, world: StudentWorld, teacher_state: Any, world_state: Any, key: jax.Array, length: int
) -> tuple[Any, Any, Array, Array]:
    sample_key, play_key = jax.random.split(key)
    tasks, teacher_state = teacher.sample_batch(teacher_state, sample_key, length)

    def episode(state: Any, item: tuple[Array, jax.Array]) -> tuple[Any, Array]:
        task, key = item
        return world.episode(state, key, task)

    world_state, returns = jax.lax.scan(episode, world_state, (tasks, jax.random.split(play_key, length)))
    teacher_state = teacher.record(teacher_state, returns_feedback(tasks, returns))
    return teacher.refit(teacher_state), world_state, tasks, returns


def _play_each(
    teacher: Teacher, world: StudentWorld, teacher_state: Any, world_state: Any, key: jax.Array, length: int
) -> tuple[Any, Any, Array, Array]:
    def episode(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        teacher_state, world_state = carry
        sample_key, play_key = jax.random.split(key)
        task, teacher_state = teacher.sample(teacher_state, sample_key)
        world_state, ret = world.episode(world_state, play_key, task)
        return (teacher.update(teacher_state, task, ret), world_state), (task, ret)

    carry, (tasks, returns) = jax.lax.scan(
        episode, (teacher_state, world_state), jax.random.split(key, length)
    )
    return *carry, tasks, returns
