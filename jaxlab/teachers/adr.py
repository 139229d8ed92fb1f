"""ADR, automatic domain randomisation: a box of tasks whose sides move with the returns found on them.

Reference: OpenAI, arXiv:1910.07113, section 5 and algorithm 1; the options are TeachMyAgent's, arXiv:2103.09815.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import (
    TaskGaussian,
    TaskSpace,
    check_gaussian,
    clip_task,
    uniform_log_density,
    uniform_task,
)


@dataclasses.dataclass(frozen=True)
class ADRConfig:
    """Options of ADR. Returns are not scaled: the thresholds are in the student's own."""

    step: float = 0.1
    """By which a side moves, in units of the task."""
    widen_above: float = 180.0
    """Mean return on a side from which the box grows there."""
    narrow_below: float = 0.0
    """Mean return on a side up to which the box shrinks there."""
    boundary_probability: float = 0.7
    """Share of tasks on a side."""
    queue_length: int = 10
    """Returns on a side that decide about it."""
    initial: TaskGaussian | None = None
    """The box starts at its mean (expert knowledge "high"); at a random point without."""

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise InputError(f"step is {self.step}; it must be > 0")
        if not self.narrow_below < self.widen_above:
            raise InputError(
                f"narrow_below is {self.narrow_below}; it must be below widen_above = {self.widen_above}"
            )
        if not 0 <= self.boundary_probability <= 1:
            raise InputError(f"boundary_probability is {self.boundary_probability}; it must lie in [0, 1]")
        if self.queue_length < 1:
            raise InputError(f"queue_length is {self.queue_length}; it must be >= 1")


class ADRState(NamedTuple):
    """The box, and what was earned on its sides since each last moved."""

    space: TaskSpace
    low: Float[Array, " dim"]
    high: Float[Array, " dim"]
    totals: Float[Array, "2 dim"]
    """Sums of returns on the lower and the upper sides."""
    counts: Int[Array, "2 dim"]
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def adr_teacher(config: ADRConfig | None = None) -> Teacher:
    """The teacher ADR; see `ADRConfig`."""
    options = config or ADRConfig()

    def init(key: jax.Array, space: TaskSpace) -> ADRState:
        check_gaussian(space, options.initial)
        if options.initial is None:
            start = uniform_task(space, key)
        else:
            start = clip_task(space, jnp.asarray(options.initial.mean, jnp.float32))
        d = space.dimensions
        return ADRState(
            space,
            start,
            start,
            jnp.zeros((2, d)),
            jnp.zeros((2, d), jnp.int32),
            jnp.int32(0),
            jnp.int32(0),
        )

    def sample(state: ADRState, key: jax.Array) -> tuple[Float[Array, " dim"], ADRState]:
        inside_key, boundary_key, dimension_key, side_key = jax.random.split(key, 4)
        d = state.space.dimensions
        inside = state.low + (state.high - state.low) * jax.random.uniform(inside_key, (d,))
        chosen = jnp.arange(d) == jax.random.randint(dimension_key, (), 0, d)
        side = jnp.where(jax.random.bernoulli(side_key), state.low, state.high)
        full = (state.low == state.space.low) & (state.high == state.space.high)
        boundary = jax.random.uniform(boundary_key) < options.boundary_probability
        task = jnp.where(boundary & chosen & ~full, side, inside)
        return jnp.clip(task, state.low, state.high), state

    def learn(state: ADRState, episode: Episode) -> ADRState:
        # Equality on purpose: a task lies on a side when it was put there.
        hit = jnp.stack([episode.task == state.low, episode.task == state.high])
        totals = state.totals + jnp.where(hit, episode.ret, 0)
        counts = state.counts + hit
        full = counts == options.queue_length
        mean = totals / options.queue_length
        move = options.step * jnp.where(mean >= options.widen_above, 1.0, 0.0)
        move = jnp.where(full, move - options.step * (mean <= options.narrow_below), 0)
        low = jnp.clip(state.low - move[0], state.space.low, state.high)
        high = jnp.clip(state.high + move[1], low, state.space.high)
        return state._replace(
            low=low,
            high=high,
            totals=jnp.where(full, 0, totals),
            counts=jnp.where(full, 0, counts),
            episodes=state.episodes + 1,
        )

    def density(state: ADRState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        box = TaskSpace(state.low, state.high, state.space.blocks)
        return uniform_log_density(box, tasks)

    def metrics(state: ADRState) -> dict[str, Array]:
        share = (state.high - state.low) / state.space.extent
        return {"episodes": state.episodes, "mean_width": share.mean(), "volume": share.prod()}

    return every_episode_teacher(init=init, sample=sample, learn=learn, density=density, metrics=metrics)
