"""A teacher for gymnasium: every reset of the environment plays a new task, every finished episode is told."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlab.errors import ResourceError
from jaxlab.teachers.stateful import StatefulTeacher

SetTask = Callable[[Any, Float[np.ndarray, " dim"]], None]
"""(environment, task) -> None, before the environment is reset."""


def gymnasium_with_teacher(
    env: Any,
    teacher: StatefulTeacher,
    *,
    set_task: SetTask | None = None,
    success: Callable[[dict[str, Any], float], bool] | None = None,
) -> Any:
    """A `gymnasium.Wrapper` whose every reset asks the teacher for a task, and which tells it the episode's return.

    Several environments may share a teacher: wrap each and put them into a `gymnasium.vector.SyncVectorEnv`, with any
    mode of autoreset. They are served in the order in which they finish, and within a step in the order of the
    environments. (In an `AsyncVectorEnv` each process would teach on its own.)

    The task of the episode is in the infos of `reset` and `step` under "task". A reset in the middle of an episode
    drops it: the teacher hears nothing. A task in the options of `reset` is played instead of a new one.

    Args:
      env: a `gymnasium.Env`.
      teacher: that chooses.
      set_task: sets the task of an environment; `env.unwrapped` is what it gets. None: the environment is reset with
        the task in its options, `reset(options={"task": task})`.
      success: (last info, return of the episode) -> whether it succeeded. None: it follows from the return, by the
        teacher's own threshold.

    Raises:
      ResourceError: gymnasium is not installed.
    """
    return _wrapper()(env, teacher, set_task, success)


@functools.cache
def _wrapper() -> Any:
    """The class, made when gymnasium is first needed."""
    try:
        import gymnasium
    except ImportError as error:
        raise ResourceError(f"this needs gymnasium: pip install 'jaxlab[environments]' ({error})") from error

    class TeacherTasks(gymnasium.Wrapper):
        """See `gymnasium_with_teacher`."""

        def __init__(self, env: Any, teacher: StatefulTeacher, set_task: Any, success: Any) -> None:
            super().__init__(env)
            self.teacher, self.set_task, self.success = teacher, set_task, success
            self.task: Any = None
            self.playing, self.total, self.length = False, 0.0, 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            """Resets the environment to a new task."""
            given = dict(options or {})
            chosen = given.pop("task", None)
            self.task = self.teacher.sample() if chosen is None else np.asarray(chosen, np.float32)
            if self.set_task is None:
                given["task"] = self.task.copy()
            else:
                self.set_task(self.env.unwrapped, self.task.copy())
            self.playing, self.total, self.length = True, 0.0, 0
            observation, info = self.env.reset(seed=seed, options=given or None)
            return observation, {**info, "task": self.task.copy()}

        def step(self, action: Any) -> Any:
            """Steps the environment; the end of an episode is told."""
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.total += float(reward)
            self.length += 1
            if self.playing and (terminated or truncated):
                self.playing = False
                self._tell(info)
            return observation, reward, terminated, truncated, {**info, "task": np.array(self.task)}

        def _tell(self, info: dict[str, Any]) -> None:
            if self.success is None:
                self.teacher.update(self.task, self.total)
                return
            won = bool(self.success(info, self.total))
            self.teacher.update(self.task, self.total, success=won, length=self.length)

    return TeacherTasks
