"""Mastering rate: attention against a transcription with sets of nodes, and the shared checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seed_checks import check_seeds, random_feedback
from teacher_checks import check_batches, check_samples, feedback, updated

from jaxlab.errors import InputError
from jaxlab.teachers import MasteringRateConfig, discrete_space, mastering_rate_teacher, task_id
from jaxlab.teachers.mastering_rate import attention

# Listed so that the order of the ids is not that of the graph.
EDGES = ((4, 1), (1, 0), (1, 3), (2, 3), (3, 5))
N, WINDOW = 6, 4
CONFIG = MasteringRateConfig(tasks=N, edges=EDGES, window=WINDOW)
TEACHER = mastering_rate_teacher(CONFIG)
SPACE = discrete_space(N)


def plain_attention(rates, progress):
    """With sets and recursion rather than tables."""
    after = {i: {b for a, b in EDGES if a == i} for i in range(N)}
    before = {i: {a for a, b in EDGES if b == i} for i in range(N)}

    def ancestors(i):
        return before[i] | {k for j in before[i] for k in ancestors(j)}

    relative = progress / progress.max() if progress.max() > 0 else progress
    given = []
    for i in range(N):
        mastered = min((rates[j] for j in ancestors(i)), default=1.0)
        unlocked = min((rates[j] for j in after[i]), default=0.0)
        given.append(mastered**6 * (0.5 * relative[i] + 0.5 * (1 - rates[i])) * (1 - unlocked))
    left = set(range(N))
    while left:
        i = next(j for j in left if not after[j] & left)
        left.remove(i)
        for neighbours, share in ((before[i], 0.2), (after[i], 0.05)):
            passed = share * given[i]
            given[i] -= passed
            for j in neighbours:
                given[j] += passed / len(neighbours)
    return np.array(given)


def test_attention_is_the_transcriptions(double_precision):
    rng = np.random.default_rng(0)
    ours = jax.jit(lambda rates, progress: attention(rates, progress, CONFIG))
    for scale in (1.0, 0.5, 0.0):
        rates, progress = rng.random(N), scale * rng.random(N)
        expected = plain_attention(rates, progress)
        np.testing.assert_allclose(ours(jnp.asarray(rates), jnp.asarray(progress)), expected, atol=1e-12)
    assert expected.max() > 0.01


def episodes(number, seed):
    rng = np.random.default_rng(seed)
    returns = rng.uniform(-0.5, 1.6, number).astype(np.float32)
    return rng.integers(0, N - 1, (number, 1)).astype(np.float32), returns


def test_draws_follow_windows_ranges_slopes_and_graph():
    tasks, returns = episodes(60, 1)
    state = updated(TEACHER, TEACHER.init(jax.random.key(0), SPACE), tasks, returns)
    low, high, mean, kept = np.zeros(N), np.ones(N), np.zeros(N), [[] for _ in range(N)]
    for t, (task, ret) in enumerate(zip(tasks[:, 0].astype(int), returns.astype(float), strict=True)):
        kept[task] = [*kept[task], (t, ret)][-WINDOW:]
        average = np.mean([r for _, r in kept[task]])
        if len(kept[task]) == WINDOW:
            low[task], high[task] = min(low[task], average), max(high[task], average)
        mean[task] = np.clip(average, low[task], high[task])
    slopes = np.array([np.polyfit(*zip(*k, strict=True), 1)[0] if len(k) > 1 else 0 for k in kept])
    weights = plain_attention((mean - low) / (high - low), np.abs(slopes)) + 1e-8
    expected = 0.9 * weights / weights.sum() + 0.1 / N
    grid = jnp.arange(N, dtype=jnp.float32)[:, None]
    np.testing.assert_allclose(np.exp(jax.jit(TEACHER.density)(state, grid)), expected, atol=1e-5)
    drawn = check_samples(TEACHER, state, SPACE, n=4000)
    assert np.all((drawn >= 0) & (drawn <= N - 1))
    shares = np.bincount(np.asarray(task_id(drawn)), minlength=N) / 4000
    np.testing.assert_allclose(shares, expected, atol=0.03)
    assert int(TEACHER.metrics(state)["most_attended"]) == int(weights.argmax())


def test_at_first_only_tasks_without_prerequisites_and_their_givers_are_drawn():
    state = TEACHER.init(jax.random.key(0), SPACE)
    grid = jnp.arange(N, dtype=jnp.float32)[:, None]
    chance = np.exp(jax.jit(TEACHER.density)(state, grid))
    assert min(chance[4], chance[2]) > 0.3 and max(chance[0], chance[5]) < 0.03


def test_batches_and_seeds_side_by_side_are_single_updates_of_rounded_tasks():
    check_batches(TEACHER, SPACE, sizes=(40,))
    start = TEACHER.init(jax.random.key(0), SPACE)
    check_seeds(TEACHER, start, random_feedback(feedback, SPACE, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 1}, "tasks is 1"),
        ({"edges": ((0, 3),)}, r"edges holds \(0, 3\)"),
        ({"edges": ((1, 1),)}, r"edges holds \(1, 1\)"),
        ({"edges": ((0, 1), (1, 2), (2, 0))}, "it must have no cycle"),
        ({"least_return": (0.0, 0.0)}, "least_return has 2 entries; it must have 3"),
        ({"greatest_return": 0.0}, "least_return is 0.0; it must be below"),
        ({"window": 1}, "window is 1"),
        ({"power": -1.0}, "power is -1.0"),
        ({"potential": 2.0}, "potential is 2.0"),
        ({"to_predecessors": 2.0}, "to_predecessors is 2.0"),
        ({"to_successors": -1.0}, "to_successors is -1.0"),
        ({"uniform_share": 2.0}, "uniform_share is 2.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MasteringRateConfig(**{"tasks": 3, **options})


def test_another_space_is_refused():
    with pytest.raises(InputError, match="it must be discrete_space"):
        TEACHER.init(jax.random.key(0), discrete_space(5))
