"""TSCL, teacher-student curriculum learning: discrete tasks by the slope of the student's scores on them.

Reference: Matiisen et al., "Teacher-Student Curriculum Learning", arXiv:1707.00183, algorithms 1 to 4; the options are
those of github.com/tambetm/TSCL. Where its code differs from the paper (it plays many tasks in a step, and its windows
have no moving average), this follows the paper.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.discrete import (
    check_discrete,
    id_log_density,
    push_score,
    regression_slope,
    task_id,
    task_of_id,
)
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskSpace

Algorithm = Literal["online", "naive", "window", "sampling"]
Choice = Literal["epsilon-greedy", "boltzmann"]

_DENSITY_DRAWS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class TSCLConfig:
    """Options of teacher-student curriculum learning."""

    tasks: int
    """How many; the space is `discrete_space(tasks)`."""
    algorithm: Algorithm = "sampling"
    """"online": change since the last score. "naive": slope over `window` scores of a task played as often in a row.
    "window": slope over the last `window` scores. "sampling": a random one of the last `window` changes."""
    choice: Choice = "epsilon-greedy"
    """How a task follows from the values; "sampling" is always greedy."""
    learning_rate: float = 0.1
    """Of the moving average of slopes; not used by "sampling"."""
    window: int = 10
    """See `algorithm`."""
    epsilon: float = 0.1
    """Share of uniform tasks with "epsilon-greedy"; the paper's sampling algorithm has none."""
    temperature: float = 0.0004
    """Of "boltzmann", in units of the slope."""
    absolute: bool = True
    """Falling scores count as much as rising ones, as in the paper."""

    def __post_init__(self) -> None:
        if self.tasks < 2:
            raise InputError(f"tasks is {self.tasks}; it must be >= 2")
        if self.algorithm not in get_args(Algorithm):
            raise InputError(f"algorithm is {self.algorithm!r}; it must be one of {get_args(Algorithm)}")
        if self.choice not in get_args(Choice):
            raise InputError(f"choice is {self.choice!r}; it must be 'epsilon-greedy' or 'boltzmann'")
        if self.algorithm == "sampling" and self.choice != "epsilon-greedy":
            raise InputError(
                "choice is 'boltzmann'; it must be 'epsilon-greedy' where algorithm is 'sampling'"
            )
        if not 0 < self.learning_rate <= 1:
            raise InputError(f"learning_rate is {self.learning_rate}; it must lie in (0, 1]")
        if self.window < 2:
            raise InputError(f"window is {self.window}; it must be >= 2")
        if not 0 <= self.epsilon <= 1:
            raise InputError(f"epsilon is {self.epsilon}; it must lie in [0, 1]")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be > 0")


class TSCLState(NamedTuple):
    """Values of the tasks, and their last scores."""

    space: TaskSpace
    values: Float[Array, " tasks"]
    """Moving averages of slopes; not used by "sampling"."""
    scores: Float[Array, "tasks window"]
    """The newest last; with "sampling" these are changes of scores."""
    times: Float[Array, "tasks window"]
    """Episode at which each score came."""
    sizes: Int[Array, " tasks"]
    """Scores in use of each task."""
    last: Float[Array, " tasks"]
    """Last score of each task, 0 at first."""
    current: Int[Array, ""]
    """Task that "naive" plays in a row."""
    repeats: Int[Array, ""]
    """How often it is still to be drawn."""
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def tscl_teacher(config: TSCLConfig) -> Teacher:
    """Teacher-student curriculum learning; see `TSCLConfig`. The score is the return of the episode."""
    n, window = config.tasks, config.window
    naive = config.algorithm == "naive"

    def init(key: jax.Array, space: TaskSpace) -> TSCLState:
        del key
        check_discrete(space, n)
        zero = jnp.int32(0)
        table = jnp.zeros((n, window))
        return TSCLState(
            space=space,
            values=jnp.zeros(n),
            scores=table,
            times=table,
            sizes=jnp.zeros(n, jnp.int32),
            last=jnp.zeros(n),
            current=zero,
            repeats=zero,
            episodes=zero,
            faults=zero,
        )

    def probabilities(state: TSCLState, key: jax.Array) -> Float[Array, " tasks"]:
        values = (
            sampled_changes(key, state.scores, state.sizes)
            if config.algorithm == "sampling"
            else state.values
        )
        values = jnp.abs(values) if config.absolute else values
        if config.choice == "boltzmann":
            return jax.nn.softmax(values / config.temperature)
        return epsilon_greedy(values, config.epsilon)

    def sample(state: TSCLState, key: jax.Array) -> tuple[Float[Array, " 1"], TSCLState]:
        value_key, choice_key = jax.random.split(key)
        drawn = jax.random.choice(choice_key, n, p=probabilities(state, value_key)).astype(jnp.int32)
        if not naive:
            return task_of_id(drawn), state
        again = state.repeats > 0
        drawn = jnp.where(again, state.current, drawn)
        repeats = jnp.where(again, state.repeats, window) - 1
        return task_of_id(drawn), state._replace(current=drawn, repeats=repeats)

    def learn(state: TSCLState, episode: Episode) -> TSCLState:
        number, score = task_id(episode.task), episode.ret
        change = score - state.last[number]
        noted = change if config.algorithm == "sampling" else score
        sizes = state.sizes.at[number].set(jnp.minimum(state.sizes[number] + 1, window))
        scores = push_score(state.scores, number, noted)
        times = push_score(state.times, number, state.episodes.astype(jnp.float32))
        learnt = jnp.bool_(True)
        if config.algorithm == "online":
            slope = change
        elif naive:
            learnt = sizes[number] == window
            slope = regression_slope(jnp.arange(window, dtype=jnp.float32), scores[number], sizes[number])
            sizes = sizes.at[number].set(jnp.where(learnt, 0, sizes[number]))
        elif config.algorithm == "window":
            learnt = sizes[number] >= 2
            slope = regression_slope(times[number], scores[number], sizes[number])
        else:
            learnt, slope = jnp.bool_(False), change
        rate = config.learning_rate
        value = jnp.where(learnt, rate * slope + (1 - rate) * state.values[number], state.values[number])
        return state._replace(
            values=state.values.at[number].set(value),
            scores=scores,
            times=times,
            sizes=sizes,
            last=state.last.at[number].set(score),
            episodes=state.episodes + 1,
        )

    def density(state: TSCLState, tasks: Float[Array, "m 1"]) -> Float[Array, " m"]:
        draws = _DENSITY_DRAWS if config.algorithm == "sampling" else 1
        each = jax.vmap(lambda key: probabilities(state, key))(jax.random.split(jax.random.key(0), draws))
        return id_log_density(tasks, each.mean(0))

    def metrics(state: TSCLState) -> dict[str, Array]:
        values = state.values
        if config.algorithm == "sampling":
            there = jnp.arange(window) >= window - state.sizes[:, None]
            values = jnp.sum(jnp.where(there, state.scores, 0), axis=1) / jnp.maximum(state.sizes, 1)
        return {
            "episodes": state.episodes,
            "mean_progress": jnp.abs(values).mean(),
            "best_task": jnp.abs(values).argmax(),
        }

    return every_episode_teacher(init=init, sample=sample, learn=learn, density=density, metrics=metrics)


def epsilon_greedy(values: Float[Array, " tasks"], epsilon: float) -> Float[Array, " tasks"]:
    """Probabilities: 1 - epsilon shared by the tasks of the highest value, and epsilon by all."""
    best = values == values.max()
    return (1 - epsilon) * best / best.sum() + epsilon / values.shape[0]


def sampled_changes(
    key: jax.Array, changes: Float[Array, "tasks window"], sizes: Int[Array, " tasks"]
) -> Float[Array, " tasks"]:
    """One of the last `sizes` changes of each task; 1 where there is none. Reference: arXiv:1707.00183, algorithm 4."""
    tasks, window = changes.shape
    slot = window - 1 - jax.random.randint(key, (tasks,), 0, jnp.maximum(sizes, 1))
    return jnp.where(sizes > 0, changes[jnp.arange(tasks), slot], 1.0)
