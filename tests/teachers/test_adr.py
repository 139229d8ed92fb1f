"""ADR: the script of the specification, and a plain transcription on random episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import check_batches, check_samples, updated

from jaxlab.errors import InputError
from jaxlab.teachers import ADRConfig, TaskGaussian, adr_teacher, task_space

SPACE = task_space({"height": (0, 3), "spacing": (0, 6)})
EASY = ADRConfig(initial=TaskGaussian((1.0, 5.0), (0.0, 0.0)))


def box(state):
    return np.asarray(state.low), np.asarray(state.high)


@pytest.fixture(scope="module")
def wide():
    """A box of sides 0.4 and 2 about the easy task."""
    teacher = adr_teacher(EASY)
    state = teacher.init(jax.random.key(0), SPACE)
    return teacher, state._replace(low=jnp.float32([0.8, 4.0]), high=jnp.float32([1.2, 6.0]))


def test_ten_good_returns_widen_ten_bad_ones_narrow_and_nine_do_nothing(wide):
    teacher, state = wide
    on_high = np.tile([1.2, 5.0], (10, 1))
    np.testing.assert_allclose(box(updated(teacher, state, on_high[:9], np.full(9, 200)))[1], [1.2, 6.0])
    np.testing.assert_allclose(
        box(updated(teacher, state, on_high, np.full(10, 200)))[1], [1.3, 6.0], atol=1e-6
    )
    np.testing.assert_allclose(box(updated(teacher, state, on_high, np.zeros(10)))[1], [1.1, 6.0], atol=1e-6)
    np.testing.assert_allclose(box(updated(teacher, state, on_high, np.full(10, 90)))[1], [1.2, 6.0])
    on_low = np.tile([1.0, 4.0], (10, 1))
    np.testing.assert_allclose(
        box(updated(teacher, state, on_low, np.full(10, 180)))[0], [0.8, 3.9], atol=1e-6
    )


def test_sides_stop_at_the_space_and_at_each_other(wide):
    teacher, state = wide
    at_limit = np.tile([1.0, 6.0], (10, 1))
    np.testing.assert_allclose(box(updated(teacher, state, at_limit, np.full(10, 300)))[1], [1.2, 6.0])
    thin = state._replace(low=jnp.float32([1.15, 4.0]))
    on_low = np.tile([1.15, 5.0], (10, 1))
    np.testing.assert_allclose(box(updated(teacher, thin, on_low, np.zeros(10)))[0], [1.2, 4.0], atol=1e-6)


def transcription(tasks, returns, low, high):
    """The update in plain Python, in single precision as tasks are."""
    low, high, step = low.copy(), high.copy(), np.float32(0.1)
    queues = {(side, i): [] for side in (0, 1) for i in range(len(low))}
    for task, ret in zip(tasks, returns, strict=True):
        hits = [
            (side, i) for side, bound in ((0, low), (1, high)) for i in range(len(low)) if task[i] == bound[i]
        ]
        for side, i in hits:
            queues[side, i].append(ret)
            if len(queues[side, i]) == 10:
                mean = np.mean(queues.pop((side, i)))
                queues[side, i] = []
                sign = 1 if mean >= 180 else -1 if mean <= 0 else 0
                if side == 0:
                    low[i] = np.clip(low[i] - sign * step, 0, high[i])
                else:
                    high[i] = np.clip(high[i] + sign * step, low[i], [3, 6][i])
    return low, high


def test_random_episodes_move_the_box_as_a_transcription_does(wide):
    """Tasks on sides, each of which keeps its place until it has moved."""
    teacher, state = wide
    rng = np.random.default_rng(0)
    one = jax.jit(teacher.update)
    tasks, returns = [], []
    for _ in range(300):
        low, high = box(state)
        task = (low + (high - low) * rng.random(2)).astype(np.float32)
        i = rng.integers(2)
        task[i] = (low, high)[rng.integers(2)][i]
        tasks.append(task)
        returns.append(
            rng.choice([-50.0, 100.0, 400.0], p=[0.3, 0.2, 0.5])
            if task[0] < 1
            else rng.choice([-50.0, 250.0])
        )
        state = one(state, task, returns[-1])
    expected = transcription(tasks, returns, *box(wide[1]))
    np.testing.assert_allclose(box(state), expected, atol=1e-5)
    assert not np.allclose(expected[0], [0.8, 4.0]) and not np.allclose(expected[1], [1.2, 6.0])


def test_tasks_lie_on_sides_as_often_as_asked(wide):
    teacher, state = wide
    tasks = check_samples(teacher, state, SPACE, n=4000)
    low, high = box(state)
    on = np.concatenate([tasks == low, tasks == high], axis=1)
    assert on.any(1).mean() == pytest.approx(0.7, abs=0.03)
    np.testing.assert_allclose(on.mean(0), 0.7 / 4, atol=0.03)
    inside = tasks[~on.any(1)]
    np.testing.assert_allclose(inside.mean(0), [1.0, 5.0], atol=0.1)


def test_it_starts_at_the_easy_task_or_anywhere():
    teacher = adr_teacher(EASY)
    np.testing.assert_allclose(box(teacher.init(jax.random.key(0), SPACE)), [[1, 5], [1, 5]])
    anywhere = adr_teacher().init(jax.random.key(0), SPACE)
    np.testing.assert_array_equal(*box(anywhere))
    assert not np.allclose(box(anywhere)[0], [1, 5])


def test_batches_are_single_updates(wide):
    check_batches(adr_teacher(EASY), SPACE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step is 0.0"),
        ({"narrow_below": 200.0}, "narrow_below is 200.0; it must be below widen_above"),
        ({"boundary_probability": 1.5}, "boundary_probability is 1.5"),
        ({"queue_length": 0}, "queue_length is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ADRConfig(**options)
