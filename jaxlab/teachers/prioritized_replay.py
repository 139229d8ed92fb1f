"""Prioritised level replay, plain and robust: levels come back in proportion to the student's regret on them.

Each task is, with some probability, a level from the buffer, else a new one. Robust PLR differs in the student alone:
it learns only from replayed levels, see `student_learns`. Reference: Jiang et al., "Prioritized Level Replay",
arXiv:2010.03934, algorithm 1, and "Replay-Guided Adversarial Environment Design", arXiv:2110.02439, algorithm 1; code:
github.com/DramaCow/jaxued, whose loop decides between replay and new levels once for a whole batch of students. This
teacher decides for each task, as the paper does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.kernel_density import kernel_log_density
from jaxlab.teachers.level_buffer import (
    LevelBuffer,
    Prioritization,
    empty_buffer,
    record_level,
    replay_level,
    replay_weights,
    same_level,
)
from jaxlab.teachers.protocol import SCORE_NOT_FINITE, Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskSpace, uniform_log_density, uniform_task

_DENSITY_STD = 0.01
"""Replayed levels are points; the density shows each as a Gaussian of this share of the extent."""

NewLevel = Callable[[jax.Array, TaskSpace], Array]
"""(key, space) -> level."""


def _uniform_level(key: jax.Array, space: TaskSpace) -> Float[Array, " dim"]:
    return uniform_task(space, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PLRConfig:
    """Options of prioritised level replay, by default those of jaxued's maze; `KINETIX_PLR` has kinetix's."""

    capacity: int = 4000
    """Levels that are kept."""
    replay_probability: float = 0.8
    """Share of replayed levels once the buffer is full enough."""
    min_fill: float = 0.5
    """Share of the capacity that must be in use before anything is replayed."""
    staleness: float = 0.3
    """Share of the replay weights that goes by staleness rather than by score."""
    prioritization: Prioritization = "rank"
    """See `score_weights`."""
    temperature: float = 0.3
    """See `score_weights`."""
    no_duplicates: bool = True
    """Keep no level twice."""
    robust: bool = False
    """The student learns only from replayed levels; see `student_learns`."""
    score: Callable[[Episode], Float[Array, ""]] | None = None
    """Score of an episode for students that report returns alone; None takes `Episode.score`."""
    new_level: NewLevel = _uniform_level
    """Draws a level that has not been played."""

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InputError(f"capacity is {self.capacity}; it must be >= 1")
        for name in ("replay_probability", "min_fill", "staleness"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be > 0")
        if self.prioritization not in get_args(Prioritization):
            raise InputError(
                f"prioritization is {self.prioritization!r}; it must be 'rank' or 'proportional'"
            )

    @property
    def weighting(self) -> dict[str, Any]:
        """Options of `replay_weights`."""
        return {
            "prioritization": self.prioritization,
            "temperature": self.temperature,
            "staleness": self.staleness,
        }


KINETIX_PLR = PLRConfig(replay_probability=0.5, temperature=1.0)


class PLRState(NamedTuple):
    """The levels that may be replayed."""

    space: TaskSpace
    buffer: LevelBuffer
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


class ReplayState(Protocol):
    """What the states of teachers that replay levels have in common."""

    @property
    def space(self) -> TaskSpace:
        """Of the levels."""

    @property
    def buffer(self) -> LevelBuffer:
        """Levels that may be replayed."""

    @property
    def episodes(self) -> Int[Array, ""]:
        """Episodes seen."""


def plr_teacher(config: PLRConfig | None = None) -> Teacher:
    """The teacher PLR; see `PLRConfig`. `Episode.score` is the regret score of the episode; see `regret_scores`."""
    options = config or PLRConfig()

    def init(key: jax.Array, space: TaskSpace) -> PLRState:
        del key
        return PLRState(space, empty_buffer(options.capacity, space.dimensions), jnp.int32(0), jnp.int32(0))

    def sample(state: PLRState, key: jax.Array) -> tuple[Float[Array, " dim"], PLRState]:
        level, buffer = draw_level(state, key, options)
        return level, state._replace(buffer=buffer)

    def learn(state: PLRState, episode: Episode) -> PLRState:
        buffer, fault = learnt_level(state.buffer, episode, options)
        return state._replace(buffer=buffer, episodes=state.episodes + 1, faults=state.faults | fault)

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=lambda state, tasks: replay_log_density(state, tasks, options),
        metrics=lambda state: replay_metrics(state, options),
    )


def student_learns(config: PLRConfig, state: ReplayState, tasks: Float[Array, "n dim"]) -> Bool[Array, " n"]:
    """Whether the student should learn from episodes on these tasks: asked before the teacher's update.

    Always, unless `config.robust`: then only where the task is a replayed level, whose episode is awaited.
    """
    if not config.robust:
        return jnp.ones(tasks.shape[:1], bool)
    buffer = state.buffer
    return jax.vmap(lambda task: jnp.any(same_level(buffer, task) & (buffer.replaying > 0)))(tasks)


def best_return(state: ReplayState, task: Float[Array, " dim"]) -> Float[Array, ""]:
    """The highest return so far on a level, -inf if it is not in the buffer; for `max_monte_carlo`."""
    return jnp.max(jnp.where(same_level(state.buffer, task), state.buffer.best_returns, -jnp.inf))


def replay_share(state: ReplayState, options: PLRConfig) -> Float[Array, ""]:
    """Probability that the next level is a replayed one."""
    filled = state.buffer.size >= jnp.maximum(options.min_fill * options.capacity, 1)
    return jnp.where(filled, options.replay_probability, 0.0)


def draw_level(
    state: ReplayState, key: jax.Array, options: PLRConfig
) -> tuple[Float[Array, " dim"], LevelBuffer]:
    """The next level, and the buffer that knows of it."""
    choice_key, replay_key, new_key = jax.random.split(key, 3)
    replay = jax.random.uniform(choice_key) < replay_share(state, options)

    def again() -> tuple[Float[Array, " dim"], LevelBuffer]:
        return replay_level(state.buffer, replay_key, replay_weights(state.buffer, **options.weighting))

    return jax.lax.cond(replay, again, lambda: (options.new_level(new_key, state.space), state.buffer))


def learnt_level(
    buffer: LevelBuffer, episode: Episode, options: PLRConfig
) -> tuple[LevelBuffer, Int[Array, ""]]:
    """The buffer after an episode, and a bit for `faults`."""
    score = episode.score if options.score is None else options.score(episode)
    buffer = record_level(
        buffer,
        episode.task,
        score,
        episode.ret,
        no_duplicates=options.no_duplicates,
        **options.weighting,
    )
    return buffer, SCORE_NOT_FINITE * (~jnp.isfinite(score)).astype(jnp.int32)


def replay_log_density(
    state: ReplayState, tasks: Float[Array, "m dim"], options: PLRConfig
) -> Float[Array, " m"]:
    """Log-density of the next level, new levels taken as uniform and each stored level as a narrow Gaussian."""
    share = replay_share(state, options)
    weights = replay_weights(state.buffer, **options.weighting)
    again = kernel_log_density(tasks, state.buffer.levels, weights, _DENSITY_STD * state.space.extent)
    return jnp.logaddexp(jnp.log1p(-share) + uniform_log_density(state.space, tasks), jnp.log(share) + again)


def replay_metrics(state: ReplayState, options: PLRConfig) -> dict[str, Array]:
    """Figures of the buffer."""
    buffer = state.buffer
    there = jnp.arange(options.capacity) < buffer.size
    mean = jnp.sum(jnp.where(there, buffer.scores, 0)) / jnp.maximum(buffer.size, 1)
    return {
        "episodes": state.episodes,
        "levels": buffer.size,
        "mean_score": mean,
        "replay_share": replay_share(state, options),
    }
