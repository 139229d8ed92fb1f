"""TSCL: the four algorithms against a transcription of the paper's, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_checks import check_batches, check_samples, feedback, updated

from jaxlab.errors import InputError
from jaxlab.teachers import TSCLConfig, discrete_space, task_id, tscl_teacher
from jaxlab.teachers.student_teacher import epsilon_greedy, sampled_changes

N, WINDOW = 4, 5
SPACE = discrete_space(N)
TEACHERS = {
    name: tscl_teacher(TSCLConfig(tasks=N, algorithm=name, window=WINDOW))
    for name in ("online", "naive", "window", "sampling")
}


def episodes(number, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.repeat(rng.integers(0, N, number // WINDOW), WINDOW)
    return ids[:, None].astype(np.float32), rng.random(number).astype(np.float32)


def transcription(algorithm, tasks, scores):
    """Values after these episodes; with "sampling" the changes that are drawn from."""
    values, last = np.zeros(N), np.zeros(N)
    kept = [[] for _ in range(N)]
    for t, (task, score) in enumerate(zip(tasks[:, 0].astype(int), scores.astype(float), strict=True)):
        slope = None
        if algorithm in ("online", "sampling"):
            change = score - last[task]
            last[task] = score
            if algorithm == "online":
                slope = change
            else:
                kept[task] = [*kept[task], change][-WINDOW:]
        else:
            kept[task] = [*kept[task], (t, score)][-WINDOW:]
            if algorithm == "window" and len(kept[task]) > 1:
                slope = np.polyfit(*zip(*kept[task], strict=True), 1)[0]
            if algorithm == "naive" and len(kept[task]) == WINDOW:
                slope = np.polyfit(range(WINDOW), [s for _, s in kept[task]], 1)[0]
                kept[task] = []
        if slope is not None:
            values[task] = 0.1 * slope + 0.9 * values[task]
    return kept if algorithm == "sampling" else values


@pytest.mark.parametrize("algorithm", list(TEACHERS))
def test_values_of_seeds_side_by_side_are_the_papers(algorithm):
    """Of the finished episodes alone."""
    teacher = TEACHERS[algorithm]
    start = teacher.init(jax.random.key(0), SPACE)
    runs = [episodes(80, seed) for seed in (1, 2)]
    mask = np.random.default_rng(3).random(80) < 0.8
    told = [feedback(t, np.where(mask, s, np.nan), mask) for t, s in runs]
    both = jax.jit(jax.vmap(lambda told: teacher.update_batch(start, jax.random.key(0), told)))(
        jax.tree.map(lambda *x: jnp.stack(x), *told)
    )
    for run, (tasks, scores) in enumerate(runs):
        state = jax.tree.map(lambda x, run=run: x[run], both)
        expected = transcription(algorithm, tasks[mask], scores[mask])
        if algorithm == "sampling":
            for i, changes in enumerate(expected):
                assert len(changes) == int(state.sizes[i])
                np.testing.assert_allclose(state.scores[i, WINDOW - len(changes) :], changes, atol=1e-6)
        else:
            np.testing.assert_allclose(state.values, expected, atol=1e-5)
            assert np.abs(expected).max() > 0.01


def test_tasks_that_are_no_ids_are_rounded():
    check_batches(TEACHERS["window"], SPACE, sizes=(40,))


def test_tasks_are_drawn_as_their_density_says():
    tasks, scores = episodes(60)
    grid = jnp.arange(N, dtype=jnp.float32)[:, None]
    for algorithm in ("window", "sampling"):
        teacher = TEACHERS[algorithm]
        state = updated(teacher, teacher.init(jax.random.key(0), SPACE), tasks, scores)
        drawn = check_samples(teacher, state, SPACE, n=3000)
        assert np.all((drawn >= 0) & (drawn <= N - 1)) and np.all(drawn == np.round(drawn))
        shares = np.bincount(np.asarray(task_id(drawn)), minlength=N) / 3000
        chance = np.exp(jax.jit(teacher.density)(state, grid))
        assert chance.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(shares, chance, atol=0.06 if algorithm == "sampling" else 0.03)
        assert chance.max() - chance.min() > 0.1


def test_naive_plays_a_task_as_often_as_its_window():
    teacher = TEACHERS["naive"]
    drawn, _ = jax.jit(teacher.sample_batch, static_argnums=2)(
        teacher.init(jax.random.key(0), SPACE), jax.random.key(2), 40
    )
    rows = np.asarray(drawn).reshape(8, WINDOW)
    assert np.all(rows == rows[:, :1]) and len(np.unique(rows)) > 1


def test_choices_are_greedy_with_ties_shared_or_boltzmanns():
    np.testing.assert_allclose(epsilon_greedy(jnp.float32([1, 3, 3, 0]), 0.2), [0.05, 0.45, 0.45, 0.05])
    teacher = tscl_teacher(
        TSCLConfig(tasks=3, algorithm="online", choice="boltzmann", temperature=0.5, absolute=False)
    )
    state = teacher.init(jax.random.key(0), discrete_space(3))._replace(values=jnp.float32([-1, 0, 0.5]))
    log = jax.jit(teacher.density)(state, jnp.float32([[0], [1], [2]]))
    weights = np.exp(np.array([-2, 0, 1.0]))
    np.testing.assert_allclose(np.exp(log), weights / weights.sum(), rtol=1e-5)


def test_a_task_without_a_score_counts_one_and_others_a_random_change():
    changes = jnp.float32([[0, 0, 0.3], [0.1, 0.2, 0.3], [0, 0, 0]])
    draw = jax.jit(jax.vmap(lambda key: sampled_changes(key, changes, jnp.array([1, 3, 0]))))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 600)))
    assert np.all(drawn[:, 0] == np.float32(0.3)) and np.all(drawn[:, 2] == 1)
    values, counts = np.unique(drawn[:, 1], return_counts=True)
    np.testing.assert_allclose(values, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(counts / 600, 1 / 3, atol=0.07)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 1}, "tasks is 1"),
        ({"algorithm": "thompson"}, "algorithm is 'thompson'"),
        ({"choice": "greedy", "algorithm": "online"}, "choice is 'greedy'"),
        ({"choice": "boltzmann"}, "choice is 'boltzmann'; it must be 'epsilon-greedy' where"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"window": 1}, "window is 1"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TSCLConfig(**{"tasks": 4, **options})


def test_another_space_is_refused():
    with pytest.raises(InputError, match="it must be discrete_space"):
        TEACHERS["online"].init(jax.random.key(0), discrete_space(5))
