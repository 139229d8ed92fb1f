"""SFL: rounds of search and training against a transcription, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds
from teacher_checks import assert_same_state, check_batches, check_samples, feedback, updated

from jaxlab.errors import InputError
from jaxlab.teachers import (
    SFLConfig,
    most_learnable,
    sfl_teacher,
    student_trains,
    task_space,
)
from jaxlab.teachers.learnability import learnability

SPACE = task_space([(0, 1), (-2, 2)])
SMALL = SFLConfig(candidates=12, rollouts=3, keep=4, refresh_every=10, success_return=0.5)


@pytest.fixture(scope="module")
def started():
    teacher = sfl_teacher(SMALL)
    state = teacher.init(jax.random.key(0), SPACE)
    return teacher, state, jax.jit(teacher.sample), jax.jit(teacher.update)


def test_a_round_keeps_the_most_learnable_candidates_then_trains_then_starts_anew(started):
    teacher, state, sample, update = started
    rng = np.random.default_rng(0)
    first = np.asarray(state.candidates)
    chance, wins = rng.random(12), np.zeros(12)
    for e in range(36):
        assert not bool(student_trains(state))
        task, state = sample(state, jax.random.key(e))
        np.testing.assert_array_equal(task, first[e % 12])
        won = rng.random() < chance[e % 12]
        wins[e % 12] += won
        state = update(state, task, jnp.float32(won))
    p = wins / 3
    expected = np.argsort(-p * (1 - p), kind="stable")[:4]
    assert bool(student_trains(state)) and int(state.rounds) == 1
    np.testing.assert_array_equal(state.levels, first[expected])
    np.testing.assert_allclose(state.scores, (p * (1 - p))[expected], rtol=1e-6)
    tasks = check_samples(teacher, state, SPACE, n=1000)
    stored = np.any(np.all(tasks[:, None] == first[expected][None], axis=2), axis=1)
    assert stored.mean() == pytest.approx(0.5, abs=0.05)
    for e in range(10):
        assert bool(student_trains(state))
        state = update(state, tasks[e], jnp.float32(0))
    assert not bool(student_trains(state)) and int(state.drawn) == 0 and int(state.trials.sum()) == 0
    assert not np.any(np.asarray(state.candidates) == first)
    np.testing.assert_array_equal(state.levels, first[expected])


def test_a_search_waits_for_every_candidate_and_passes_over_others(started):
    _, state, sample, update = started
    for e in range(36):
        task, state = sample(state, jax.random.key(e))
        if e != 5:
            state = update(state, task, jnp.float32(1))
    state = update(state, jnp.float32([0.123, 0.456]), jnp.float32(1))
    assert not bool(student_trains(state)) and int(state.trials.sum()) == 35
    for e in range(6):  # the order starts again; the sixth is the one that is missing
        task, state = sample(state, jax.random.key(e))
    state = update(state, task, jnp.float32(1))
    assert bool(student_trains(state)) and float(state.scores.max()) == 0


def test_learnability_is_the_variance_of_success_and_ties_keep_their_order():
    np.testing.assert_allclose(
        learnability(jnp.float32([0, 1, 2, 3, 0]), jnp.float32([4, 4, 4, 3, 0])), [0, 3 / 16, 1 / 4, 0, 0]
    )
    levels = jnp.arange(5.0)[:, None]
    kept, scores = most_learnable(levels, jnp.float32([0.1, 0.25, 0.0, 0.25, 0.2]), keep=3)
    np.testing.assert_array_equal(kept[:, 0], [1, 3, 4])
    np.testing.assert_allclose(scores, [0.25, 0.25, 0.2])


def test_batches_and_seeds_side_by_side_are_single_updates(started):
    """With tasks that are no candidates, and with the candidates over more than a round."""
    teacher, state, _, _ = started
    check_batches(teacher, SPACE, sizes=(50, 50), success_return=0.5)
    rng = np.random.default_rng(1)
    tasks = np.concatenate([np.tile(state.candidates, (3, 1)), rng.random((14, 2))])
    wins = rng.random((2, 50)) < 0.5
    told = [feedback(tasks, wins[0], success_return=0.5), feedback(tasks[::-1], wins[1], success_return=0.5)]
    batched = check_seeds(teacher, state, told, draws=20)
    assert_same_state(batched[0], updated(teacher, state, tasks, wins[0]))
    # The one is through with training and searches again, the other trains.
    assert [int(s.rounds) for s in batched] == [1, 1]
    assert [bool(student_trains(s)) for s in batched] == [False, True]


def test_density_integrates_to_one_in_both_phases():
    teacher = sfl_teacher(SFLConfig(candidates=3, rollouts=2, keep=2, refresh_every=5))
    state = teacher.init(jax.random.key(0), task_space([(0, 1)]))
    grid = jnp.linspace(0, 1, 2001)[:, None]
    density = jax.jit(lambda state: jnp.exp(teacher.density(state, grid)).mean())
    assert float(density(state)) == pytest.approx(1, abs=1e-3)
    training = state._replace(left=jnp.int32(3), levels=jnp.float32([[0.3], [0.7]]))
    assert float(density(training)) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates is 0"),
        ({"rollouts": 1}, "rollouts is 1"),
        ({"keep": 0}, "keep is 0"),
        ({"keep": 9, "candidates": 8}, "keep is 9; it must be <= candidates = 8"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"buffer_share": 1.1}, "buffer_share is 1.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SFLConfig(**options)
