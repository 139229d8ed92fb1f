"""The buffer of levels against a transcription of jaxued's level sampler in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.teachers.level_buffer import empty_buffer, record_level, replay_level, replay_weights

OPTIONS = {"prioritization": "rank", "temperature": 0.3, "staleness": 0.3}
_record = jax.jit(lambda b, x, s: record_level(b, x, s, s, no_duplicates=True, **OPTIONS))


class Transcription:
    """A level buffer in plain Python: lists for rows, float64."""

    def __init__(self, capacity, prioritization="rank", temperature=0.3, staleness=0.3, no_duplicates=True):
        self.capacity, self.prioritization = capacity, prioritization
        self.temperature, self.staleness, self.no_duplicates = temperature, staleness, no_duplicates
        self.levels, self.scores, self.stamps, self.clock = [], [], [], 0

    def weights(self):
        n, scores = len(self.levels), np.array(self.scores, float)
        if self.prioritization == "rank":
            order = sorted(range(n), key=lambda i: -scores[i])
            by_score = np.zeros(n)
            for rank, i in enumerate(order):
                by_score[i] = (1 / (rank + 1)) ** (1 / self.temperature)
        else:
            by_score = np.maximum(scores, 0) ** (1 / self.temperature)
        stale = np.array([self.clock - stamp for stamp in self.stamps], float)
        parts = [x / x.sum() if x.sum() > 0 else np.full(n, 1 / n) for x in (by_score, stale)]
        mixed = (1 - self.staleness) * parts[0] + self.staleness * parts[1]
        return np.concatenate([mixed, np.zeros(self.capacity - n)])

    def replay(self, row):
        self.clock += 1
        self.stamps[row] = self.clock

    def insert(self, level, score):
        self.clock += 1
        if self.no_duplicates and level in self.levels:
            row = self.levels.index(level)
            self.scores[row], self.stamps[row] = score, self.clock
        elif len(self.levels) < self.capacity:
            self.levels.append(level)
            self.scores.append(score)
            self.stamps.append(self.clock)
        else:
            self.clock -= 1
            row = int(np.argmin(self.weights()))
            self.clock += 1
            if self.scores[row] < score:
                self.levels[row], self.scores[row], self.stamps[row] = level, score, self.clock


@pytest.fixture(scope="module", params=["rank", "proportional"])
def buffer_programs(request):
    options = {**OPTIONS, "prioritization": request.param}
    weights = jax.jit(lambda buffer: replay_weights(buffer, **options))
    record = {
        dedup: jax.jit(lambda b, x, s, d=dedup: record_level(b, x, s, s, no_duplicates=d, **options))
        for dedup in (True, False)
    }
    return request.param, weights, record, jax.jit(lambda b, k: replay_level(b, k, weights(b)))


@pytest.mark.parametrize("dedup", [True, False])
def test_weights_and_rows_are_the_transcriptions_through_insertions_and_replays(buffer_programs, dedup):
    prioritization, weights, record, replay = buffer_programs
    rng = np.random.default_rng(1)
    buffer, plain = empty_buffer(6, 1), Transcription(6, prioritization, no_duplicates=dedup)
    for step in range(60):
        if plain.levels and rng.random() < 0.4:
            level, buffer = replay(buffer, jax.random.key(step))
            row = int(np.flatnonzero(np.asarray(buffer.replaying))[0])
            assert float(level[0]) == plain.levels[row]
            plain.replay(row)
            plain.scores[row] = float(np.float32(rng.normal()))
            buffer = record[dedup](buffer, level, jnp.float32(plain.scores[row]))
        else:
            level, score = float(rng.integers(30)), float(np.float32(rng.normal()))
            plain.insert(level, score)
            buffer = record[dedup](buffer, jnp.float32([level]), jnp.float32(score))
        size = int(buffer.size)
        assert size == len(plain.levels) and int(buffer.clock) == plain.clock
        np.testing.assert_array_equal(buffer.levels[:size, 0], plain.levels)
        np.testing.assert_array_equal(buffer.scores[:size], np.float32(plain.scores))
        np.testing.assert_array_equal(buffer.stamps[:size], plain.stamps)
        np.testing.assert_allclose(weights(buffer), plain.weights(), atol=2e-6)
        assert not np.any(buffer.replaying)
    assert size == 6


def test_replays_are_drawn_by_their_weights(buffer_programs):
    _, weights, record, replay = buffer_programs
    buffer = empty_buffer(6, 1)
    for level, score in enumerate([0.3, 0.9, 0.1, 0.5]):
        buffer = record[True](buffer, jnp.float32([level]), jnp.float32(score))
    levels, _ = jax.jit(jax.vmap(lambda k: replay(buffer, k)))(jax.random.split(jax.random.key(0), 4000))
    shares = np.bincount(np.asarray(levels[:, 0], int), minlength=6) / 4000
    np.testing.assert_allclose(shares, weights(buffer), atol=0.03)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=12))
def test_a_buffer_without_duplicates_holds_none(played):
    buffer = empty_buffer(3, 1)
    for level, score in played:
        buffer = _record(buffer, jnp.float32([level]), jnp.float32(score))
    held = np.asarray(buffer.levels[: int(buffer.size), 0])
    assert len(set(held)) == len(held)
    assert len(held) == min(3, len({level for level, _ in played}))
    assert set(held) <= {level for level, _ in played}
