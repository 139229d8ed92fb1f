"""HER: where goals come from, told by achieved goals that name their episode and state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.teachers import GoalEpisodes, relabel, sample_hindsight
from jaxlab.teachers.hindsight import hindsight_states

B, T = 3, 6


def episodes(lengths):
    """The goal that state s of episode b achieves is (b, s); what was meant is (b, 100)."""
    achieved = np.stack(np.meshgrid(np.arange(B), np.arange(T + 1), indexing="ij"), axis=-1)
    meant = np.stack([np.arange(B), np.full(B, 100)], axis=-1)
    return GoalEpisodes(jnp.float32(achieved), jnp.float32(meant), jnp.asarray(lengths))


def reward(achieved, goal):
    return jnp.where(jnp.all(achieved == goal), 0.0, -1.0)


relabelled = {
    name: jax.jit(lambda key, episodes, n=name: relabel(key, episodes, reward, strategy=n))
    for name in ("future", "final", "episode")
}


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, T), min_size=B, max_size=B))
def test_goals_come_from_the_same_episodes_future_and_rewards_are_theirs(seed, lengths):
    told = episodes(lengths)
    for name, program in relabelled.items():
        goals, rewards, mask = (np.asarray(x) for x in program(jax.random.key(seed), told))
        assert goals.shape == (B, T, 2 if name == "final" else 5, 2)
        for b in range(B):
            np.testing.assert_array_equal(mask[b], np.arange(T) < lengths[b])
            for t in range(lengths[b]):
                np.testing.assert_array_equal(goals[b, t, 0], [b, 100])
                assert np.all(goals[b, t, 1:, 0] == b)
                state = goals[b, t, 1:, 1]
                first = {"future": t + 1, "final": lengths[b], "episode": 1}[name]
                assert np.all((state >= first) & (state <= lengths[b]))
                np.testing.assert_array_equal(rewards[b, t], np.where(goals[b, t, :, 1] == t + 1, 0, -1))


@pytest.mark.parametrize(("strategy", "first"), [("future", 3), ("episode", 1)])
def test_states_are_uniform_over_the_allowed_ones(strategy, first):
    draw = jax.jit(lambda key: hindsight_states(key, jnp.full(4000, 2), jnp.int32(5), strategy=strategy))
    states, counts = np.unique(np.asarray(draw(jax.random.key(0))), return_counts=True)
    np.testing.assert_array_equal(states, np.arange(first, 6))
    np.testing.assert_allclose(counts / 4000, 1 / (6 - first), atol=0.03)


def test_drawn_transitions_are_relabelled_in_their_share_and_uniform_over_steps():
    lengths = np.array([1, 4, 6])
    draw = jax.jit(lambda key: sample_hindsight(key, episodes(lengths), reward, n=6000, k=4))
    batch = jax.tree.map(np.asarray, draw(jax.random.key(1)))
    assert batch.relabelled.mean() == pytest.approx(0.8, abs=0.02)
    assert np.all(batch.step < lengths[batch.episode])
    np.testing.assert_allclose(np.bincount(batch.episode) / 6000, 1 / 3, atol=0.03)
    steps = np.bincount(batch.step[batch.episode == 2], minlength=6)
    np.testing.assert_allclose(steps / steps.sum(), 1 / 6, atol=0.03)
    assert np.all(batch.goals[:, 0] == batch.episode)
    state = batch.goals[:, 1]
    new = batch.relabelled
    assert np.all(state[~new] == 100)
    assert np.all((state > batch.step)[new] & (state <= lengths[batch.episode])[new])
    np.testing.assert_array_equal(batch.rewards, np.where(state == batch.step + 1, 0, -1))


def test_without_hindsight_every_goal_is_the_one_meant():
    draw = jax.jit(lambda key: sample_hindsight(key, episodes([2, 3, 4]), reward, n=50, k=0))
    batch = draw(jax.random.key(0))
    assert not np.any(batch.relabelled) and np.all(batch.goals[:, 1] == 100)


GOOD = episodes([1, 2, 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: relabel(key, GOOD, reward, strategy="random"), "strategy is 'random'"),
        (lambda key: relabel(key, GOOD, reward, k=0), "k is 0"),
        (lambda key: relabel(key, GOOD, reward, strategy="final", k=4), "k is 4; .* 'final'"),
        (lambda key: relabel(key, GOOD._replace(achieved=GOOD.achieved[0]), reward), "achieved has shape"),
        (
            lambda key: relabel(key, GOOD._replace(achieved=GOOD.achieved[:, :1]), reward),
            "achieved has shape",
        ),
        (lambda key: relabel(key, GOOD._replace(goal=GOOD.goal[:2]), reward), "goal has shape"),
        (lambda key: relabel(key, GOOD._replace(length=GOOD.length[:2]), reward), "goal has shape"),
        (lambda key: sample_hindsight(key, GOOD, reward, n=0), "n is 0"),
        (lambda key: sample_hindsight(key, GOOD, reward, n=3, k=-1), "k is -1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(jax.random.key(0))
