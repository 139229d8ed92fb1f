"""ACCEL: what is replayed comes back changed, and the rest is PLR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds, random_feedback
from teacher_checks import check_batches, check_samples, feedback

from jaxlab.errors import InputError
from jaxlab.teachers import (
    ACCELConfig,
    accel_teacher,
    gaussian_mutation,
    student_learns,
    task_space,
)

SPACE = task_space([(0, 1), (-2, 2)])


def from_return(episode):
    return episode.ret * (1 - episode.ret)


def halved(key, level, space):
    del key, space
    return level / 2


ALWAYS = ACCELConfig(
    capacity=8, min_fill=0.125, replay_probability=1.0, score=from_return, mutate=halved, parents=2
)


@pytest.fixture(scope="module")
def started():
    teacher = accel_teacher(ALWAYS)
    state = teacher.init(jax.random.key(0), SPACE)
    return teacher, state, jax.jit(teacher.sample), jax.jit(teacher.update)


def test_each_replay_is_followed_by_its_changed_copy_which_is_inserted(started):
    teacher, state, sample, update = started
    first, state = sample(state, jax.random.key(1))
    state = update(state, first, jnp.float32(0.4))
    again, state = sample(state, jax.random.key(2))
    np.testing.assert_array_equal(again, first)
    assert bool(student_learns(ALWAYS, state, again[None])[0])
    state = update(state, again, jnp.float32(0.5))
    child, state = sample(state, jax.random.key(3))
    np.testing.assert_allclose(child, first / 2)
    assert not bool(student_learns(ALWAYS, state, child[None])[0])
    state = update(state, child, jnp.float32(0.1))
    assert int(state.waiting) == 0 and int(teacher.metrics(state)["mutations"]) == 1
    np.testing.assert_array_equal(state.buffer.levels[:2], [first, child])
    np.testing.assert_allclose(state.buffer.scores[:2], [0.25, 0.09], rtol=1e-6)
    third, state = sample(state, jax.random.key(4))
    assert any(np.array_equal(third, x) for x in (first, child))


def test_the_queue_is_first_in_first_out_and_drops_the_oldest(started):
    _, state, sample, update = started
    levels = jnp.float32([[0.2, 1], [0.4, 1], [0.6, 1]])
    buffer = state.buffer._replace(
        levels=state.buffer.levels.at[:3].set(levels),
        scores=state.buffer.scores.at[:3].set(0.5),
        replaying=state.buffer.replaying.at[:3].set(1),
        size=jnp.int32(3),
    )
    state = state._replace(buffer=buffer)
    for level in levels:
        state = update(state, level, jnp.float32(0.5))
    assert int(state.waiting) == 2
    for parent in levels[1:]:
        child, state = sample(state, jax.random.key(0))
        np.testing.assert_allclose(child, parent / 2)
    assert int(state.waiting) == 0


def test_gaussian_mutations_have_five_percent_of_the_extent_and_stay_inside():
    keys = jax.random.split(jax.random.key(0), 4000)
    mutate = jax.jit(jax.vmap(lambda key, x: gaussian_mutation(key, x, SPACE), in_axes=(0, None)))
    moved = np.asarray(mutate(keys, jnp.float32([0.5, 0.0])))
    np.testing.assert_allclose(moved.std(0), [0.05, 0.2], rtol=0.05)
    np.testing.assert_allclose(moved.mean(0), [0.5, 0.0], atol=0.01)
    edge = np.asarray(mutate(keys, jnp.float32([1.0, -2.0])))
    assert edge[:, 0].max() == 1 and edge[:, 1].min() == -2
    assert (edge[:, 0] == 1).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_batches_and_seeds_side_by_side_are_single_updates_and_samples_lie_inside():
    teacher = accel_teacher(ACCELConfig(capacity=256, min_fill=0.1, score=from_return))
    state = check_batches(teacher, SPACE, sizes=(40, 40))
    drawn = check_samples(teacher, state, SPACE, n=20)
    start = teacher.init(jax.random.key(0), SPACE)
    check_seeds(teacher, start, random_feedback(feedback, SPACE, 40), draws=20)
    # Told of what it drew, it will change each of the replayed levels.
    told = feedback(drawn, np.full(20, 0.5))
    replayed = jax.jit(teacher.sample_batch, static_argnums=2)(state, jax.random.key(5), 20)[1]
    number = int(replayed.buffer.replaying.sum())
    after = jax.jit(teacher.update_batch)(replayed, jax.random.key(0), told)
    assert 10 < number < 20 and int(after.waiting) == number


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="parents is 0"):
        ACCELConfig(parents=0)
    with pytest.raises(InputError, match="capacity is 0"):
        ACCELConfig(capacity=0)
