"""Regret scores against loops over episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.teachers import generalized_advantages, greatest_return, max_monte_carlo, positive_value_loss

RNG = np.random.default_rng(0)
STEPS, LEVELS = 23, 4
REWARDS, VALUES = RNG.normal(size=(LEVELS, STEPS)), RNG.normal(size=(LEVELS, STEPS))
DONES = RNG.random((LEVELS, STEPS)) < 0.2
DONES[1] = False
DONES[2, -1] = True
LAST = RNG.normal(size=LEVELS)


def episodes(dones):
    """The steps of each finished episode."""
    ends = np.flatnonzero(dones)
    starts = [0, *(ends[:-1] + 1)]
    return [range(a, b + 1) for a, b in zip(starts, ends, strict=False)]


def episode_mean(figures, dones):
    means = [np.mean([figures[t] for t in steps]) for steps in episodes(dones)]
    return np.mean(means) if means else -np.inf


@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.8), (1.0, 0.0), (0.95, 1.0)])
def test_advantages_are_sums_of_discounted_errors_within_an_episode(double_precision, discount, trace):
    ours = jax.jit(jax.vmap(lambda *a: generalized_advantages(*a, discount=discount, trace=trace)))(
        REWARDS, VALUES, DONES, LAST
    )
    for i in range(LEVELS):
        following = [*VALUES[i, 1:], LAST[i]]
        for t in range(STEPS):
            total, weight = 0.0, 1.0
            for s in range(t, STEPS):
                bootstrap = 0.0 if DONES[i, s] else discount * following[s]
                total += weight * (REWARDS[i, s] + bootstrap - VALUES[i, s])
                weight *= discount * trace
                if DONES[i, s]:
                    break
            assert float(ours[i, t]) == pytest.approx(total, abs=1e-12)


def test_scores_are_means_over_finished_episodes(double_precision):
    gains = RNG.normal(size=(LEVELS, STEPS))
    best = RNG.normal(size=LEVELS)
    loss = jax.jit(jax.vmap(positive_value_loss))(jnp.asarray(gains), DONES)
    gap = jax.jit(jax.vmap(max_monte_carlo))(jnp.asarray(best), jnp.asarray(VALUES), DONES)
    for i in range(LEVELS):
        assert float(loss[i]) == pytest.approx(episode_mean(np.maximum(gains[i], 0), DONES[i]))
        assert float(gap[i]) == pytest.approx(episode_mean(best[i] - VALUES[i], DONES[i]))
    assert float(loss[1]) == -np.inf


def test_greatest_return_is_of_finished_episodes_and_of_those_before(double_precision):
    ours = jax.jit(jax.vmap(greatest_return))(
        jnp.asarray(REWARDS), DONES, jnp.array([-np.inf, -np.inf, 50.0, -3.0])
    )
    assert float(ours[1]) == -np.inf and float(ours[2]) == 50
    for i, before in ((0, -np.inf), (3, -3.0)):
        returns = [sum(REWARDS[i, t] for t in steps) for steps in episodes(DONES[i])]
        assert float(ours[i]) == pytest.approx(max([before, *returns]))
