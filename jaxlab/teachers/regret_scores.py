"""Scores of a level from a student's rollout on it, as stand-ins for its regret there.

All functions are written for the T steps of one student on one level, in which episodes end and start again; `vmap`
them over students. Reference: Jiang et al., "Prioritized Level Replay", arXiv:2010.03934, and
"Replay-Guided Adversarial Environment Design", arXiv:2110.02439; code: github.com/DramaCow/jaxued.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalized_advantages(
    rewards: Float[Array, " T"],
    values: Float[Array, " T"],
    dones: Bool[Array, " T"],
    last_value: Float[Array, ""],
    *,
    discount: float,
    trace: float,
) -> Float[Array, " T"]:
    """Generalised advantage estimates. Reference: arXiv:1506.02438, equation 16.

    Args:
      rewards: of each step.
      values: V of the state before each step.
      dones: whether the episode ended with the step.
      last_value: V of the state after the last step.
      discount: gamma, in [0, 1].
      trace: lambda, in [0, 1].
    """
    following = jnp.append(values[1:], last_value)
    goes_on = 1 - dones
    errors = rewards + discount * goes_on * following - values

    def back(later: Float[Array, ""], step: tuple[Array, Array]) -> tuple[Array, Array]:
        error, on = step
        advantage = error + discount * trace * on * later
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(last_value), (errors, goes_on), reverse=True)[1]


def positive_value_loss(advantages: Float[Array, " T"], dones: Bool[Array, " T"]) -> Float[Array, ""]:
    """Mean over finished episodes of the mean over their steps of max(advantage, 0); -inf if none has finished.

    Reference: arXiv:2110.02439.

    Args:
      advantages: see `generalized_advantages`.
      dones: whether the episode ended with the step.
    """
    return _mean_of_episodes(jnp.maximum(advantages, 0), dones)


def max_monte_carlo(
    best_return: Float[Array, ""], values: Float[Array, " T"], dones: Bool[Array, " T"]
) -> Float[Array, ""]:
    """Mean over finished episodes of the mean over their steps of best return - V; -inf if none has finished.

    Reference: arXiv:2110.02439, MaxMC.

    Args:
      best_return: the highest return ever seen on the level; see `greatest_return`.
      values: V of the state before each step.
      dones: whether the episode ended with the step.
    """
    return _mean_of_episodes(best_return - values, dones)


def greatest_return(
    rewards: Float[Array, " T"], dones: Bool[Array, " T"], before: Float[Array, ""]
) -> Float[Array, ""]:
    """The highest sum of rewards of a finished episode, or `before` if that is higher.

    jaxued starts from 0, so that a level on which every return is negative keeps 0; this starts from `before`.

    Args:
      rewards: of each step.
      dones: whether the episode ended with the step.
      before: the highest return seen earlier, -inf if none.
    """
    number = _episode_number(dones)
    returns = jax.ops.segment_sum(rewards, number, num_segments=dones.shape[0])
    finished = jnp.arange(dones.shape[0]) < dones.sum()
    return jnp.maximum(before, jnp.max(jnp.where(finished, returns, -jnp.inf)))


def _mean_of_episodes(figures: Float[Array, " T"], dones: Bool[Array, " T"]) -> Float[Array, ""]:
    """Mean over finished episodes of the mean over their steps; -inf if none has finished."""
    number, episodes = _episode_number(dones), dones.sum()
    steps = jax.ops.segment_sum(jnp.ones_like(figures), number, num_segments=dones.shape[0])
    total = jnp.sum(jnp.where(number < episodes, figures / steps[number], 0))
    return jnp.where(episodes > 0, total / jnp.maximum(episodes, 1), -jnp.inf)


def _episode_number(dones: Bool[Array, " T"]) -> Array:
    """To which episode each step belongs, from 0."""
    return jnp.cumsum(dones) - dones
