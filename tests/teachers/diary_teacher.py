"""A teacher whose n-th task is n, and which writes down what it is told."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.teachers import TaskSpace, every_episode_teacher, task_space

SPACE = task_space({"number": (0, 10_000)})
_PAGES = 400


class Diary(NamedTuple):
    space: TaskSpace
    drawn: jax.Array
    told: jax.Array
    """[pages, 4]: task, return, success, length."""
    episodes: jax.Array
    faults: jax.Array


def _learn(state, episode):
    row = jnp.stack([episode.task[0], episode.ret, episode.success * 1.0, episode.length * 1.0])
    return state._replace(told=state.told.at[state.episodes].set(row), episodes=state.episodes + 1)


DIARY = every_episode_teacher(
    init=lambda key, space: Diary(space, jnp.int32(0), jnp.zeros((_PAGES, 4)), jnp.int32(0), jnp.int32(0)),
    sample=lambda state, key: (
        jnp.array([state.drawn], jnp.float32),
        state._replace(drawn=state.drawn + 1),
    ),
    learn=_learn,
    density=lambda state, tasks: jnp.zeros(len(tasks)),
    metrics=lambda state: {"drawn": state.drawn},
)


def steps_of(number):
    """How long an episode of a task is."""
    return 1 + number % 4


def play_by_hand(actions, success_return, longest=10):
    """What B environments should do: tasks at each step [steps, B], done [steps, B], and the diary.

    An action a pays (number + 1) * a; an episode takes `steps_of` its number, `longest` at most.
    """
    batch = actions.shape[1]
    numbers, drawn = np.arange(batch), batch
    total, length = np.zeros(batch), np.zeros(batch, int)
    played, done, diary = [], [], []
    for action in actions:
        played.append(numbers.copy())
        total += (numbers + 1) * action
        length += 1
        over = length >= np.minimum(steps_of(numbers), longest)
        for i in np.flatnonzero(over):
            diary.append((numbers[i], total[i], total[i] > success_return, length[i]))
        for i in np.flatnonzero(over):
            numbers[i], total[i], length[i] = drawn, 0, 0
            drawn += 1
        done.append(over)
    return np.stack(played), np.stack(done), np.array(diary, float), drawn
