"""HER, hindsight experience replay: transitions told again as if another goal had been meant.

Not a `Teacher`: it modifies transitions, not tasks, so that these are pure functions over a batch of episodes.
Reference: Andrychowicz et al., "Hindsight Experience Replay", arXiv:1707.01495, algorithm 1 and section 4.5; the
sampler is that of github.com/openai/baselines, `her_sampler.py`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError

Strategy = Literal["future", "final", "episode"]
"""Where the goal of a transition comes from: a later state of its episode, the last one, or any after the first."""

GoalReward = Callable[[Array, Array], Array]
"""(achieved goal after the step, goal) -> reward."""


class GoalEpisodes(NamedTuple):
    """Episodes of at most T steps, padded at the end."""

    achieved: Float[Array, "B states goal"]
    """Goal that each state achieves, from the first state to the one after the last step: states = T + 1."""
    goal: Float[Array, "B goal"]
    """Meant in the episode."""
    length: Int[Array, " B"]
    """Steps, 1 to T."""


class RelabelledEpisodes(NamedTuple):
    """Each transition with its own goal first, and then the goals of hindsight."""

    goals: Float[Array, "B T goals goal"]
    rewards: Float[Array, "B T goals"]
    mask: Bool[Array, "B T"]
    """Whether there is such a step."""


class HindsightBatch(NamedTuple):
    """Transitions drawn from a batch of episodes."""

    episode: Int[Array, " n"]
    step: Int[Array, " n"]
    goals: Float[Array, "n goal"]
    rewards: Float[Array, " n"]
    relabelled: Bool[Array, " n"]


def hindsight_states(
    key: jax.Array, step: Int[Array, "*steps"], length: Int[Array, ""], *, strategy: Strategy
) -> Int[Array, "*steps"]:
    """The state of an episode whose achieved goal becomes that of each step.

    Args:
      key: PRNG key.
      step: numbers of steps, 0 to length - 1; larger ones get a state of the episode too.
      length: steps of the episode.
      strategy: see `Strategy`.

    Returns:
      "future": uniform from step + 1 to length. "episode": uniform from 1 to length. "final": length.
    """
    if strategy == "final":
        return jnp.broadcast_to(length, step.shape)
    first = jnp.minimum(step + 1, length) if strategy == "future" else jnp.ones_like(step)
    return jax.random.randint(key, step.shape, first, length + 1)


def relabel(
    key: jax.Array,
    episodes: GoalEpisodes,
    reward: GoalReward,
    *,
    strategy: Strategy = "future",
    k: int | None = None,
) -> RelabelledEpisodes:
    """All transitions with their own goal and with k goals of hindsight.

    Args:
      key: PRNG key.
      episodes: padded episodes.
      reward: of one achieved goal and one goal.
      strategy: see `Strategy`.
      k: goals of hindsight for each transition, >= 1; 4 by default, and 1 with "final", which knows only one.

    Raises:
      InputError: unknown strategy, `k` out of range, or shapes that do not fit.
    """
    _check(episodes, strategy)
    if k is None:
        k = 1 if strategy == "final" else 4
    if k < 1 or (strategy == "final" and k != 1):
        raise InputError(f"k is {k}; it must be >= 1, and 1 with the strategy 'final'")
    steps = episodes.achieved.shape[1] - 1

    def one(
        key: jax.Array,
        achieved: Float[Array, "states goal"],
        goal: Float[Array, " goal"],
        length: Int[Array, ""],
    ) -> RelabelledEpisodes:
        step = jnp.arange(steps)
        states = hindsight_states(key, jnp.tile(step[:, None], (1, k)), length, strategy=strategy)
        meant = jnp.broadcast_to(goal, (steps, 1, goal.shape[0]))
        goals = jnp.concatenate([meant, achieved[states]], axis=1)
        rewards = jax.vmap(jax.vmap(reward, in_axes=(None, 0)))(achieved[1:], goals)
        return RelabelledEpisodes(goals, rewards, step < length)

    return jax.vmap(one)(jax.random.split(key, episodes.length.shape[0]), *episodes)


def sample_hindsight(
    key: jax.Array,
    episodes: GoalEpisodes,
    reward: GoalReward,
    *,
    n: int,
    strategy: Strategy = "future",
    k: float = 4.0,
) -> HindsightBatch:
    """Transitions of random episodes, of which a share k / (1 + k) is relabelled.

    Episodes are drawn uniformly, then steps uniformly within one, as in the reference.

    Args:
      key: PRNG key.
      episodes: padded episodes.
      reward: of one achieved goal and one goal.
      n: transitions, >= 1.
      strategy: see `Strategy`.
      k: relabelled transitions to each other one, >= 0.

    Raises:
      InputError: unknown strategy, `n` or `k` out of range, or shapes that do not fit.
    """
    _check(episodes, strategy)
    if n < 1:
        raise InputError(f"n is {n}; it must be >= 1")
    if not k >= 0:
        raise InputError(f"k is {k}; it must be >= 0")
    episode_key, step_key, state_key, choice_key = jax.random.split(key, 4)
    episode = jax.random.randint(episode_key, (n,), 0, episodes.length.shape[0])
    length = episodes.length[episode]
    step = jax.random.randint(step_key, (n,), 0, length)
    state = jax.vmap(lambda key, step, length: hindsight_states(key, step, length, strategy=strategy))(
        jax.random.split(state_key, n), step, length
    )
    relabelled = jax.random.uniform(choice_key, (n,)) < k / (1 + k)
    goals = jnp.where(relabelled[:, None], episodes.achieved[episode, state], episodes.goal[episode])
    rewards = jax.vmap(reward)(episodes.achieved[episode, step + 1], goals)
    return HindsightBatch(episode, step, goals, rewards, relabelled)


def _check(episodes: GoalEpisodes, strategy: Strategy) -> None:
    if strategy not in get_args(Strategy):
        raise InputError(f"strategy is {strategy!r}; it must be one of {get_args(Strategy)}")
    achieved, goal = episodes.achieved.shape, episodes.goal.shape
    if len(achieved) != 3 or achieved[1] < 2:
        raise InputError(f"achieved has shape {achieved}; it must be (episodes, steps + 1, goal), steps >= 1")
    if goal != (achieved[0], achieved[2]) or episodes.length.shape != achieved[:1]:
        raise InputError(
            f"goal has shape {goal}, length {episodes.length.shape}; they must be {(achieved[0], achieved[2])} "
            f"and {achieved[:1]}, as achieved has"
        )
