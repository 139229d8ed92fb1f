"""A teacher for brax: parallel environments whose every episode plays a new task.

brax's `AutoResetWrapper` puts a finished environment back into its first state, task included. Here it is reset anew,
to a task of the teacher that all environments share: it is told the episodes that end in a step in the order of the
environments, and asked in that order. All of it is part of the compiled step.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError, ResourceError
from jaxlab.teachers.conditions import seldom
from jaxlab.teachers.episode_tasks import EpisodeTasks, first_tasks, next_tasks, rows_where
from jaxlab.teachers.protocol import Feedback, Teacher
from jaxlab.teachers.spaces import TaskSpace

WithTask = Callable[[Any, Float[Array, " dim"]], Any]
"""(environment, task) -> an environment that plays this task; the given one stays as it is. It is traced."""

_OF_THE_EPISODE = ("steps", "truncation", "episode_done", "episode_metrics")
"""Infos of brax's `EpisodeWrapper` about the episode that has just ended: kept until the next step."""


def changed_system(change: Callable[[Any, Float[Array, " dim"]], Any]) -> WithTask:
    """Tasks that change the physics of a brax `PipelineEnv`: (system, task) -> system.

    For example `lambda system, task: system.replace(gravity=task[0] * system.gravity)`. (The backend "mjx" reads
    `system.opt.gravity` instead.)
    """

    def with_task(env: Any, task: Float[Array, " dim"]) -> Any:
        if env.unwrapped is not env:
            raise InputError(f"env is a wrapper, {type(env).__name__}; it must be a PipelineEnv itself")
        changed = copy.copy(env)
        changed.sys = change(env.sys, task)
        return changed

    return with_task


def brax_with_teacher(
    env: Any,
    teacher: Teacher,
    space: TaskSpace,
    *,
    with_task: WithTask,
    environments: int,
    episode_length: int = 1000,
    action_repeat: int = 1,
    success_return: float | None = None,
) -> Any:
    """A brax `Env` of B environments in parallel, with brax's infos of episodes, that asks a teacher at every reset.

    `reset(key)` starts the teacher too. The state carries all: `info["task"]` are the tasks being played, [B, dim],
    `info["teacher"]` is the teacher's state. As with brax's own wrappers, the state that ends an episode has its reward
    and `done`, but the first observation of the next.

    Args:
      env: without brax's training wrappers.
      teacher: as pure functions.
      space: of the tasks.
      with_task: gives an environment its task; see `changed_system`.
      environments: B >= 1.
      episode_length: steps of an episode at most, >= 1.
      action_repeat: an action is done so often, >= 1.
      success_return: an episode with a return above this is a success; None: nothing is.

    Raises:
      InputError: a number is out of range.
      ResourceError: brax is not installed.
    """
    for name, value in (
        ("environments", environments),
        ("episode_length", episode_length),
        ("action_repeat", action_repeat),
    ):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be >= 1")
    wrapper, episodes = _classes()

    def of_task(task: Float[Array, " dim"]) -> Any:
        return episodes(with_task(env, task), episode_length, action_repeat)

    return wrapper(env, teacher, space, of_task, environments, success_return)


@functools.cache
def _classes() -> tuple[Any, Any]:
    """Our wrapper, made when brax is first needed, and brax's of episodes."""
    try:
        from brax.envs.base import Wrapper
        from brax.envs.wrappers.training import EpisodeWrapper
    except ImportError as error:
        raise ResourceError(f"this needs brax: pip install 'jaxlab[environments]' ({error})") from error

    class TeacherTasks(Wrapper):
        """See `brax_with_teacher`."""

        def __init__(
            self,
            env: Any,
            teacher: Teacher,
            space: TaskSpace,
            of_task: Callable[[Array], Any],
            environments: int,
            success_return: float | None,
        ) -> None:
            super().__init__(env)
            self.teacher, self.space, self.of_task = teacher, space, of_task
            self.environments, self.success_return = environments, success_return

        def reset(self, rng: jax.Array) -> Any:
            """Starts the teacher and all environments."""
            teacher_key, reset_key, key = jax.random.split(rng, 3)
            tasks = first_tasks(self.teacher, teacher_key, self.space, environments=self.environments)
            state = self._reset(reset_key, tasks.task)
            return state.replace(info=_infos(state.info, tasks, key))

        def step(self, state: Any, action: jax.Array) -> Any:
            """Steps all environments; those whose episode ends go on with a new task."""
            info = dict(state.info)
            tasks, key = EpisodeTasks(info.pop("teacher"), info.pop("task")), info.pop("teacher_key")
            info["steps"] = jnp.where(state.done, 0, info["steps"])
            state = state.replace(info=info, done=jnp.zeros_like(state.done))
            state = jax.vmap(lambda task, own, act: self.of_task(task).step(own, act))(
                tasks.task, state, action
            )
            state, tasks, key = seldom(jnp.any(state.done > 0), self._renew, (state, tasks, key))
            return state.replace(info=_infos(state.info, tasks, key))

        def _reset(self, key: jax.Array, task: Float[Array, "B dim"]) -> Any:
            keys = jax.random.split(key, self.environments)
            return jax.vmap(lambda own, task: self.of_task(task).reset(own))(keys, task)

        def _renew(self, carry: tuple[Any, EpisodeTasks, jax.Array]) -> tuple[Any, EpisodeTasks, jax.Array]:
            state, tasks, key = carry
            teacher_key, reset_key, key = jax.random.split(key, 3)
            finished = state.done > 0
            tasks = next_tasks(self.teacher, tasks, teacher_key, self._feedback(state, tasks, finished))
            fresh = self._reset(reset_key, tasks.task)
            kept = {name: state.info[name] for name in _OF_THE_EPISODE}
            state = state.replace(
                pipeline_state=rows_where(finished, fresh.pipeline_state, state.pipeline_state),
                obs=rows_where(finished, fresh.obs, state.obs),
                info={**rows_where(finished, fresh.info, state.info), **kept},
            )
            return state, tasks, key

        def _feedback(self, state: Any, tasks: EpisodeTasks, finished: Bool[Array, " B"]) -> Feedback:
            episode = state.info["episode_metrics"]
            ret = episode["sum_reward"]
            limit = jnp.inf if self.success_return is None else self.success_return
            length = episode["length"].astype(jnp.int32)
            return Feedback(tasks.task, ret, ret > limit, length, finished, jnp.zeros_like(ret))

    return TeacherTasks, EpisodeWrapper


def _infos(info: dict[str, Any], tasks: EpisodeTasks, key: jax.Array) -> dict[str, Any]:
    return {**info, "task": tasks.task, "teacher": tasks.teacher, "teacher_key": key}
