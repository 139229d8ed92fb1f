"""A teacher for functional environments in gymnax's style: B in parallel, each episode with parameters of its own.

A task becomes the environment's `params`, so that nothing of the environment changes. Both functions work under jit
and vmap; all environments share the teacher, which is told and asked in the order of the environments. (Seeds beside
each other by `lax.map` or `shard_map`: under `vmap` a periodic teacher fits whenever an episode of any seed ends.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.teachers.conditions import seldom
from jaxlab.teachers.episode_tasks import EpisodeTasks, first_tasks, next_tasks, rows_where
from jaxlab.teachers.protocol import Feedback, Teacher
from jaxlab.teachers.spaces import TaskSpace

Observation = Any
EnvState = Any
Params = Any


class FunctionalEnv(NamedTuple):
    """One environment that does not reset itself: gymnax's `env.reset_env` and `env.step_env`."""

    reset: Callable[[jax.Array, Params], tuple[Observation, EnvState]]
    """(key, params) -> (observation, state)."""
    step: Callable[[jax.Array, EnvState, Array, Params], tuple[Observation, EnvState, Array, Array, dict]]
    """(key, state, action, params) -> (observation, state, reward, done, info)."""


class TaughtState(NamedTuple):
    """B environments, their tasks, and what their episodes have come to."""

    env: EnvState
    tasks: EpisodeTasks
    ret: Float[Array, " B"]
    """Return of the episode so far."""
    length: Int[Array, " B"]
    """Its steps."""


class TaughtEnvs(NamedTuple):
    """B environments that share a teacher."""

    reset: Callable[[jax.Array, TaskSpace], tuple[Observation, TaughtState]]
    """(key, space) -> (observations, state): starts the teacher too."""
    step: Callable[
        [jax.Array, TaughtState, Array],
        tuple[Observation, TaughtState, Float[Array, " B"], Bool[Array, " B"], dict],
    ]
    """(key, state, actions) -> (observations, state, rewards, done, infos). Where an episode is done, the observation
    is the first one of the next episode, with a new task."""


def functional_with_teacher(
    env: FunctionalEnv,
    teacher: Teacher,
    *,
    params_of: Callable[[Float[Array, " dim"]], Params],
    environments: int,
    success_return: float | None = None,
) -> TaughtEnvs:
    """Parallel environments of which each episode plays a task of the teacher.

    Args:
      env: one of them.
      teacher: as pure functions.
      params_of: task -> parameters of the environment.
      environments: B; `reset` raises `InputError` unless >= 1.
      success_return: an episode with a return above this is a success; None: nothing is.
    """
    limit = jnp.inf if success_return is None else success_return

    def reset_all(key: jax.Array, task: Float[Array, "B dim"]) -> tuple[Observation, EnvState]:
        keys = jax.random.split(key, environments)
        return jax.vmap(lambda key, task: env.reset(key, params_of(task)))(keys, task)

    def reset(key: jax.Array, space: TaskSpace) -> tuple[Observation, TaughtState]:
        teacher_key, key = jax.random.split(key)
        tasks = first_tasks(teacher, teacher_key, space, environments=environments)
        observation, state = reset_all(key, tasks.task)
        zeros = jnp.zeros(environments)
        return observation, TaughtState(state, tasks, zeros, zeros.astype(jnp.int32))

    def step(
        key: jax.Array, state: TaughtState, action: Array
    ) -> tuple[Observation, TaughtState, Float[Array, " B"], Bool[Array, " B"], dict]:
        step_key, teacher_key, reset_key = jax.random.split(key, 3)
        keys = jax.random.split(step_key, environments)
        observation, own, reward, done, info = jax.vmap(
            lambda key, own, action, task: env.step(key, own, action, params_of(task))
        )(keys, state.env, action, state.tasks.task)
        finished = done.astype(bool)
        ret, length = state.ret + reward, state.length + 1
        state = TaughtState(own, state.tasks, ret.astype(state.ret.dtype), length)

        def renew(carry: tuple[Observation, TaughtState]) -> tuple[Observation, TaughtState]:
            observation, old = carry
            success = old.ret > limit
            told = Feedback(old.tasks.task, old.ret, success, old.length, finished, jnp.zeros_like(old.ret))
            tasks = next_tasks(teacher, old.tasks, teacher_key, told)
            first, fresh = reset_all(reset_key, tasks.task)
            return rows_where(finished, first, observation), TaughtState(
                rows_where(finished, fresh, old.env),
                tasks,
                jnp.where(finished, 0, old.ret),
                jnp.where(finished, 0, old.length),
            )

        observation, state = seldom(jnp.any(finished), renew, (observation, state))
        return observation, state, reward, finished, info

    return TaughtEnvs(reset, step)
