"""Mastering rate: discrete tasks by what is learnable next in a graph of prerequisites.

A task gets attention where its ancestors are mastered, its successors are not, and it is being learnt or not mastered
itself; some of it is passed on to its neighbours in the graph. Reference: Willems, Lahlou and Bengio, "Mastering Rate
based Curriculum Learning", arXiv:2008.06456; the defaults are those of
github.com/lcswillems/automatic-curriculum.
"""

import dataclasses
import graphlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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

_LEAST_ATTENTION = 1e-8
"""Added to every attention, so that a task of none can be drawn where all have none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MasteringRateConfig:
    """Options of the mastering-rate algorithm."""

    tasks: int
    """How many; the space is `discrete_space(tasks)`."""
    edges: tuple[tuple[int, int], ...] = ()
    """(a, b): a is to be mastered before b. Without a cycle."""
    least_return: tuple[float, ...] | float = 0.0
    """Guess of the lowest mean return of each task, or of all; lower ones that are seen replace it."""
    greatest_return: tuple[float, ...] | float = 1.0
    """Guess of the highest mean return; higher ones that are seen replace it."""
    window: int = 10
    """Returns of a task that its mean and its slope look at."""
    power: float = 6.0
    """Of the mastering rate of the ancestors."""
    potential: float = 0.5
    """Weight of what is not mastered against learning progress."""
    to_predecessors: float = 0.2
    """Share of its attention that a task passes on to its predecessors."""
    to_successors: float = 0.05
    """Share of the rest that it passes on to its successors."""
    uniform_share: float = 0.1
    """Share of uniform tasks, as in the reference's "GreedyProp"; its default "Prop" has none."""

    def __post_init__(self) -> None:
        if self.tasks < 2:
            raise InputError(f"tasks is {self.tasks}; it must be >= 2")
        for edge in self.edges:
            if not all(0 <= end < self.tasks for end in edge) or edge[0] == edge[1]:
                raise InputError(
                    f"edges holds {edge}; its ends must be two of the tasks 0 to {self.tasks - 1}"
                )
        try:
            _order(self.tasks, self.edges)
        except graphlib.CycleError as error:
            raise InputError(f"edges is {self.edges}; it must have no cycle") from error
        for name in ("least_return", "greatest_return"):
            given = getattr(self, name)
            if isinstance(given, tuple) and len(given) != self.tasks:
                raise InputError(
                    f"{name} has {len(given)} entries; it must have {self.tasks}, one for each task"
                )
        low, high = (np.broadcast_to(x, self.tasks) for x in (self.least_return, self.greatest_return))
        if not np.all(low < high):
            raise InputError(
                f"least_return is {self.least_return}; it must be below greatest_return = {self.greatest_return}"
            )
        if self.window < 2:
            raise InputError(f"window is {self.window}; it must be >= 2")
        if not self.power >= 0:
            raise InputError(f"power is {self.power}; it must be >= 0")
        for name in ("potential", "to_predecessors", "to_successors", "uniform_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")


class MasteringRateState(NamedTuple):
    """The last returns of each task, and the range of their means."""

    space: TaskSpace
    returns: Float[Array, "tasks window"]
    """The newest last."""
    times: Float[Array, "tasks window"]
    """Episode at which each came."""
    sizes: Int[Array, " tasks"]
    """Returns in use of each task."""
    least: Float[Array, " tasks"]
    greatest: Float[Array, " tasks"]
    """Lowest and highest mean of a full window."""
    mean: Float[Array, " tasks"]
    """Of the window, between these."""
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def mastering_rate_teacher(config: MasteringRateConfig) -> Teacher:
    """The mastering-rate algorithm; see `MasteringRateConfig`."""
    n, window = config.tasks, config.window

    def init(key: jax.Array, space: TaskSpace) -> MasteringRateState:
        del key
        check_discrete(space, n)
        least = jnp.broadcast_to(jnp.asarray(config.least_return, jnp.float32), n)
        table = jnp.zeros((n, window))
        zero = jnp.int32(0)
        return MasteringRateState(
            space=space,
            returns=table,
            times=table,
            sizes=jnp.zeros(n, jnp.int32),
            least=least,
            greatest=jnp.broadcast_to(jnp.asarray(config.greatest_return, jnp.float32), n),
            mean=least,
            episodes=zero,
            faults=zero,
        )

    def attention_of(state: MasteringRateState) -> Float[Array, " tasks"]:
        progress = jnp.abs(regression_slope(state.times, state.returns, state.sizes))
        return attention(mastering_rates(state), progress, config)

    def probabilities(state: MasteringRateState) -> Float[Array, " tasks"]:
        weights = attention_of(state) + _LEAST_ATTENTION
        return (1 - config.uniform_share) * weights / weights.sum() + config.uniform_share / n

    def sample(state: MasteringRateState, key: jax.Array) -> tuple[Float[Array, " 1"], MasteringRateState]:
        return task_of_id(jax.random.choice(key, n, p=probabilities(state))), state

    def learn(state: MasteringRateState, episode: Episode) -> MasteringRateState:
        number = task_id(episode.task)
        size = jnp.minimum(state.sizes[number] + 1, window)
        returns = push_score(state.returns, number, episode.ret)
        mean = jnp.sum(jnp.where(jnp.arange(window) >= window - size, returns[number], 0)) / size
        full = size == window
        least = jnp.where(full, jnp.minimum(state.least[number], mean), state.least[number])
        greatest = jnp.where(full, jnp.maximum(state.greatest[number], mean), state.greatest[number])
        return state._replace(
            returns=returns,
            times=push_score(state.times, number, state.episodes.astype(jnp.float32)),
            sizes=state.sizes.at[number].set(size),
            least=state.least.at[number].set(least),
            greatest=state.greatest.at[number].set(greatest),
            mean=state.mean.at[number].set(jnp.clip(mean, least, greatest)),
            episodes=state.episodes + 1,
        )

    def metrics(state: MasteringRateState) -> dict[str, Array]:
        rates = mastering_rates(state)
        return {
            "episodes": state.episodes,
            "mean_mastering_rate": rates.mean(),
            "most_attended": attention_of(state).argmax(),
        }

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=lambda state, tasks: id_log_density(tasks, probabilities(state)),
        metrics=metrics,
    )


def mastering_rates(state: MasteringRateState) -> Float[Array, " tasks"]:
    """Where the mean return of each task stands between its lowest and its highest."""
    return (state.mean - state.least) / (state.greatest - state.least)


def attention(
    rates: Float[Array, " tasks"], progress: Float[Array, " tasks"], config: MasteringRateConfig
) -> Float[Array, " tasks"]:
    """Attention to each task after it was passed on in the graph. Reference: arXiv:2008.06456.

    Args:
      rates: mastering rates, in [0, 1].
      progress: absolute learning progress, >= 0.
      config: see `MasteringRateConfig`.
    """
    _, after, ancestors = _relations(config.tasks, config.edges)
    ancestors_mastered = jnp.min(jnp.where(ancestors, rates, 1), axis=1)
    has_successor = after.any(1)
    successors_mastered = jnp.where(has_successor, jnp.min(jnp.where(after, rates, 1), axis=1), 0)
    greatest = progress.max()
    relative = progress / jnp.where(greatest > 0, greatest, 1)
    learning = (1 - config.potential) * relative + config.potential * (1 - rates)
    given = ancestors_mastered**config.power * learning * (1 - successors_mastered)
    return jnp.asarray(_passed_on(config), given.dtype) @ given


def _passed_on(config: MasteringRateConfig) -> np.ndarray:
    """The matrix from attention before it is passed on in the graph to attention after."""
    before, after, _ = _relations(config.tasks, config.edges)
    given = np.eye(config.tasks)
    # A task passes on what it has got from its successors too, hence the order.
    for task in reversed(_order(config.tasks, config.edges)):
        for neighbours, share in (
            (before[task], config.to_predecessors),
            (after[task], config.to_successors),
        ):
            passed = share * given[task]
            given[task] -= passed
            given[neighbours] += passed / max(neighbours.sum(), 1)
    return given


def _order(tasks: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """All tasks, each after its predecessors."""
    predecessors: dict[int, list[int]] = {task: [] for task in range(tasks)}
    for first, then in edges:
        predecessors[then].append(first)
    return list(graphlib.TopologicalSorter(predecessors).static_order())


def _relations(tasks: int, edges: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boolean tables whose row is a task: its predecessors, its successors, its ancestors."""
    after = np.zeros((tasks, tasks), bool)
    for first, then in edges:
        after[first, then] = True
    ancestors = np.zeros_like(after)
    for task in _order(tasks, edges):
        direct = np.flatnonzero(after[:, task])
        ancestors[task, direct] = True
        ancestors[task] |= ancestors[direct].any(0)
    return after.T, after, ancestors
