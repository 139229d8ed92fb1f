"""A buffer of levels with scores: what prioritised replay and its descendants draw from.

A level is a task of a `TaskSpace`; a seed is a task of one dimension. The clock advances with each replay and each new
level, and a level grows stale from the tick at which it was last drawn or inserted. Reference: Jiang et al.,
"Prioritized Level Replay", arXiv:2010.03934, section 3; the bookkeeping is that of `LevelSampler` in
github.com/DramaCow/jaxued.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Prioritization = Literal["rank", "proportional"]


class LevelBuffer(NamedTuple):
    """Levels in the first `size` rows."""

    levels: Float[Array, "capacity dim"]
    scores: Float[Array, " capacity"]
    """-inf in free rows."""
    ranks: Int[Array, " capacity"]
    """1 for the highest score; kept with every new score, since sorting all of them for every draw costs far more."""
    best_returns: Float[Array, " capacity"]
    """The highest return of an episode there, for the score MaxMC."""
    stamps: Int[Array, " capacity"]
    """When each level was last drawn or inserted."""
    replaying: Int[Array, " capacity"]
    """Replays that were drawn and whose episode is still to come."""
    size: Int[Array, ""]
    clock: Int[Array, ""]


def empty_buffer(capacity: int, dimensions: int) -> LevelBuffer:
    """A buffer without levels."""
    return LevelBuffer(
        levels=jnp.zeros((capacity, dimensions)),
        scores=jnp.full(capacity, -jnp.inf),
        ranks=jnp.zeros(capacity, jnp.int32),
        best_returns=jnp.full(capacity, -jnp.inf),
        stamps=jnp.zeros(capacity, jnp.int32),
        replaying=jnp.zeros(capacity, jnp.int32),
        size=jnp.int32(0),
        clock=jnp.int32(0),
    )


def stored(buffer: LevelBuffer) -> Bool[Array, " capacity"]:
    """Which rows hold a level."""
    return jnp.arange(buffer.scores.shape[0]) < buffer.size


def same_level(buffer: LevelBuffer, level: Float[Array, " dim"]) -> Bool[Array, " capacity"]:
    """Which rows hold exactly this level."""
    return stored(buffer) & jnp.all(buffer.levels == level, axis=1)


def score_weights(
    buffer: LevelBuffer, *, prioritization: Prioritization, temperature: float
) -> Float[Array, " capacity"]:
    """Probabilities from the scores alone. Reference: arXiv:2010.03934, section 3.

    "rank": (1 / rank)^(1 / temperature), where the highest score has rank 1 and the first of equal rows wins.
    "proportional": max(score, 0)^(1 / temperature), uniform where all are 0.

    Args:
      buffer: with at least one level, else all weights are 0.
      prioritization: see above.
      temperature: > 0.
    """
    there = stored(buffer)
    if prioritization == "rank":
        ranks = jnp.where(there, buffer.ranks, 1).astype(jnp.float32)
        # The best rank is 1, so that the sum cannot vanish.
        return _normalised(jnp.where(there, (1 / ranks) ** (1 / temperature), 0), there)
    positive = jnp.where(there, jnp.maximum(buffer.scores, 0), 0)
    # Divided by the greatest first: small scores to a high power would all become 0.
    greatest = jnp.max(positive)
    return _normalised((positive / jnp.where(greatest > 0, greatest, 1)) ** (1 / temperature), there)


def staleness_weights(buffer: LevelBuffer) -> Float[Array, " capacity"]:
    """Probabilities in proportion to the ticks since a level was drawn. Reference: arXiv:2010.03934, section 3."""
    there = stored(buffer)
    return _normalised(jnp.where(there, buffer.clock - buffer.stamps, 0).astype(jnp.float32), there)


def replay_weights(
    buffer: LevelBuffer, *, prioritization: Prioritization, temperature: float, staleness: float
) -> Float[Array, " capacity"]:
    """(1 - staleness) score weights + staleness staleness weights. Reference: arXiv:2010.03934, section 3.

    Args:
      buffer: with at least one level, else all weights are 0.
      prioritization: see `score_weights`.
      temperature: > 0.
      staleness: in [0, 1].
    """
    by_score = score_weights(buffer, prioritization=prioritization, temperature=temperature)
    return (1 - staleness) * by_score + staleness * staleness_weights(buffer)


def replay_level(
    buffer: LevelBuffer, key: jax.Array, weights: Float[Array, " capacity"]
) -> tuple[Float[Array, " dim"], LevelBuffer]:
    """A level drawn with these weights, and the buffer that knows of the replay.

    Args:
      buffer: with at least one level.
      key: PRNG key.
      weights: see `replay_weights`.
    """
    row = jax.random.choice(key, weights.shape[0], p=weights)
    drawn = buffer._replace(
        stamps=buffer.stamps.at[row].set(buffer.clock + 1),
        replaying=buffer.replaying.at[row].add(1),
        clock=buffer.clock + 1,
    )
    return buffer.levels[row], drawn


def record_level(
    buffer: LevelBuffer,
    level: Float[Array, " dim"],
    score: Float[Array, ""],
    ret: Float[Array, ""],
    *,
    prioritization: Prioritization,
    temperature: float,
    staleness: float,
    no_duplicates: bool,
) -> LevelBuffer:
    """The buffer after an episode on a level.

    A level whose replay is awaited gets the new score. Another is inserted while there is room; then it replaces the
    level of the least replay weight if its score is higher. With `no_duplicates` a level that is there already gets
    the new score and a fresh stamp instead.

    With students side by side a level may be replaced while its replay runs; it then counts as new when that ends.

    Args:
      buffer: before.
      level: what was played.
      score: of the episode; one that is not finite is passed over.
      ret: return of the episode.
      prioritization: see `score_weights`.
      temperature: see `score_weights`.
      staleness: see `replay_weights`.
      no_duplicates: see above.
    """
    capacity = buffer.scores.shape[0]
    same = same_level(buffer, level)
    awaited = same & (buffer.replaying > 0)
    replayed = jnp.any(awaited)
    known = replayed | jnp.any(same) if no_duplicates else replayed

    def least_weight() -> Int[Array, ""]:
        weights = replay_weights(
            buffer, prioritization=prioritization, temperature=temperature, staleness=staleness
        )
        return jnp.argmin(weights).astype(jnp.int32)

    free = jax.lax.cond(buffer.size < capacity, lambda: buffer.size, least_weight)
    row = jnp.where(known, jnp.argmax(jnp.where(replayed, awaited, same)), free)
    scored = jnp.isfinite(score) & (known | (buffer.scores[free] < score))
    inserted = scored & ~known
    written = jnp.where(scored, row, capacity)
    best = jnp.where(inserted, ret, jnp.maximum(buffer.best_returns[row], ret))
    stamped = jnp.where(scored & ~replayed, row, capacity)
    replaying = buffer.replaying.at[jnp.where(replayed, row, capacity)].add(-1, mode="drop")
    return LevelBuffer(
        levels=buffer.levels.at[written].set(level, mode="drop"),
        scores=buffer.scores.at[written].set(score, mode="drop"),
        ranks=jnp.where(scored, ranks_with(buffer, row, score), buffer.ranks),
        best_returns=buffer.best_returns.at[written].set(best, mode="drop"),
        stamps=buffer.stamps.at[stamped].set(buffer.clock + 1, mode="drop"),
        replaying=replaying.at[jnp.where(inserted, row, capacity)].set(0, mode="drop"),
        size=jnp.minimum(buffer.size + inserted, capacity),
        clock=buffer.clock + ~replayed,
    )


def ranks_with(buffer: LevelBuffer, row: Int[Array, ""], score: Float[Array, ""]) -> Int[Array, " capacity"]:
    """Ranks of all rows after one of them gets a new score, by comparing it with every other."""
    rows = jnp.arange(buffer.scores.shape[0])
    others = stored(buffer) & (rows != row)
    old = buffer.scores[row]
    was_behind = (buffer.scores < old) | ((buffer.scores == old) & (rows > row))
    is_behind = (buffer.scores < score) | ((buffer.scores == score) & (rows > row))
    moved = buffer.ranks - was_behind.astype(jnp.int32) + is_behind.astype(jnp.int32)
    ahead = jnp.sum(others & ~is_behind, dtype=jnp.int32)
    return jnp.where(rows == row, 1 + ahead, jnp.where(others, moved, buffer.ranks))


def _normalised(
    weights: Float[Array, " capacity"], there: Bool[Array, " capacity"]
) -> Float[Array, " capacity"]:
    """Weights that sum to 1; where all are 0 the levels that are there share it."""
    total = weights.sum()
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), there / jnp.maximum(there.sum(), 1))
