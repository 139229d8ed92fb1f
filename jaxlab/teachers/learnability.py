"""SFL, sampling for learnability: levels that the student solves about half of the time.

A round has two phases. First the student plays every candidate level a few times, without learning. Those with the
highest p (1 - p), p the share of successes, form the buffer. Then it trains, on the buffer for a share of the tasks
and on new levels for the rest, until the next round. Reference: Rutherford et al., "No Regrets: Investigating and
Improving Regret Approximations for Curriculum Discovery", arXiv:2408.15099; code:
github.com/amacrutherford/sampling-for-learnability. The sizes are those of kinetix.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.conditions import seldom
from jaxlab.teachers.kernel_density import kernel_log_density
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskSpace, uniform_log_density, uniform_task

_DENSITY_STD = 0.01
"""Levels of the buffer are points; the density shows each as a Gaussian of this share of the extent."""


def learnability(
    successes: Float[Array, "*levels"], trials: Float[Array, "*levels"]
) -> Float[Array, "*levels"]:
    """p (1 - p) with p = successes / trials; 0 where there was no trial. Reference: arXiv:2408.15099."""
    p = successes / jnp.maximum(trials, 1)
    return p * (1 - p)


def most_learnable(
    levels: Float[Array, "n dim"], scores: Float[Array, " n"], *, keep: int
) -> tuple[Float[Array, "keep dim"], Float[Array, " keep"]]:
    """The levels of the highest scores and those scores, falling; the earlier of equals first.

    Args:
      levels: candidates.
      scores: see `learnability`.
      keep: how many, at most n.
    """
    best, rows = jax.lax.top_k(scores, keep)
    return levels[rows], best


@dataclasses.dataclass(frozen=True)
class SFLConfig:
    """Options of SFL, by default kinetix's."""

    candidates: int = 3 * 4096
    """Uniform levels of a round."""
    rollouts: int = 2
    """Episodes on each candidate, >= 2: after one, p (1 - p) is always 0."""
    keep: int = 1024
    """Levels of the buffer."""
    refresh_every: int = 65_536
    """Episodes of training between rounds. The reference counts updates of the student instead, 128 in kinetix."""
    buffer_share: float = 0.5
    """Share of training tasks from the buffer."""
    success_return: float | None = 230.0
    """To `update`, an episode with a return above this is a success."""

    def __post_init__(self) -> None:
        for name, least in (("candidates", 1), ("rollouts", 2), ("keep", 1), ("refresh_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= {least}")
        if self.keep > self.candidates:
            raise InputError(f"keep is {self.keep}; it must be <= candidates = {self.candidates}")
        if not 0 <= self.buffer_share <= 1:
            raise InputError(f"buffer_share is {self.buffer_share}; it must lie in [0, 1]")


class SFLState(NamedTuple):
    """Candidates of the round, and the buffer of the last one."""

    space: TaskSpace
    candidates: Float[Array, "candidates dim"]
    trials: Int[Array, " candidates"]
    successes: Int[Array, " candidates"]
    drawn: Int[Array, ""]
    """Candidate episodes handed out in this round."""
    levels: Float[Array, "keep dim"]
    scores: Float[Array, " keep"]
    """Learnability of the levels when they were chosen."""
    left: Int[Array, ""]
    """Episodes of training to the next round; 0 while candidates are played."""
    rounds: Int[Array, ""]
    """Buffers made."""
    episodes: Int[Array, ""]
    key: jax.Array
    faults: Int[Array, ""]


def sfl_teacher(config: SFLConfig | None = None) -> Teacher:
    """The teacher SFL; see `SFLConfig`. It learns from `success`."""
    options = config or SFLConfig()
    n = options.candidates

    def new_candidates(key: jax.Array, space: TaskSpace) -> Float[Array, "candidates dim"]:
        return jax.vmap(lambda key: uniform_task(space, key))(jax.random.split(key, n))

    def init(key: jax.Array, space: TaskSpace) -> SFLState:
        candidate_key, key = jax.random.split(key)
        return SFLState(
            space=space,
            candidates=new_candidates(candidate_key, space),
            trials=jnp.zeros(n, jnp.int32),
            successes=jnp.zeros(n, jnp.int32),
            drawn=jnp.int32(0),
            levels=jnp.zeros((options.keep, space.dimensions)),
            scores=jnp.zeros(options.keep),
            left=jnp.int32(0),
            rounds=jnp.int32(0),
            episodes=jnp.int32(0),
            key=key,
            faults=jnp.int32(0),
        )

    def sample(state: SFLState, key: jax.Array) -> tuple[Float[Array, " dim"], SFLState]:
        share_key, row_key, new_key = jax.random.split(key, 3)
        level = state.levels[jax.random.randint(row_key, (), 0, options.keep)]
        stored = jax.random.uniform(share_key) < options.buffer_share
        training = jnp.where(stored, level, uniform_task(state.space, new_key))
        searching = ~student_trains(state)
        task = jnp.where(searching, state.candidates[state.drawn % n], training)
        return task, state._replace(drawn=state.drawn + searching)

    def learn(state: SFLState, episode: Episode) -> SFLState:
        training = student_trains(state)
        played = ~training & jnp.all(state.candidates == episode.task, axis=1)
        state = state._replace(
            trials=state.trials + played,
            successes=state.successes + (played & episode.success),
            left=state.left - training,
            episodes=state.episodes + 1,
        )
        state = seldom(training & (state.left == 0), new_round, state)
        return seldom(~training & jnp.all(state.trials >= options.rollouts), chosen, state)

    def chosen(state: SFLState) -> SFLState:
        scores = learnability(state.successes.astype(jnp.float32), state.trials.astype(jnp.float32))
        levels, scores = most_learnable(state.candidates, scores, keep=options.keep)
        return state._replace(
            levels=levels,
            scores=scores,
            left=jnp.full_like(state.left, options.refresh_every),
            rounds=state.rounds + 1,
        )

    def new_round(state: SFLState) -> SFLState:
        candidate_key, key = jax.random.split(state.key)
        return state._replace(
            candidates=new_candidates(candidate_key, state.space),
            trials=jnp.zeros_like(state.trials),
            successes=jnp.zeros_like(state.successes),
            drawn=jnp.zeros_like(state.drawn),
            key=key,
        )

    def density(state: SFLState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        weights = jnp.ones(options.keep)
        stored = kernel_log_density(tasks, state.levels, weights, _DENSITY_STD * state.space.extent)
        share = jnp.where(student_trains(state), options.buffer_share, 0)
        return jnp.logaddexp(
            jnp.log1p(-share) + uniform_log_density(state.space, tasks), jnp.log(share) + stored
        )

    def metrics(state: SFLState) -> dict[str, Array]:
        return {
            "episodes": state.episodes,
            "rounds": state.rounds,
            "searching": ~student_trains(state),
            "mean_learnability": state.scores.mean(),
        }

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=density,
        metrics=metrics,
        success_return=options.success_return,
    )


def student_trains(state: SFLState) -> Bool[Array, ""]:
    """Whether the student should learn from the episodes that run; not while it plays candidates."""
    return state.left > 0
