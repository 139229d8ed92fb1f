"""Skew-Fit: goals from the states reached so far, rare ones more often.

A reached state s gets the weight p(s)^alpha with alpha < 0, where p is a density fitted to all of them: goals drawn so
are more uniform over the states than the states were. Reference: Pong et al., "Skew-Fit: State-Covering Self-Supervised
Reinforcement Learning", arXiv:1903.03698, section 3 and algorithm 1. The paper's density is a variational auto-encoder
of images; here it is a Gaussian kernel density, or one that is given.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.kernel_density import kernel_log_density
from jaxlab.teachers.protocol import Feedback, Teacher, periodic_teacher
from jaxlab.teachers.spaces import TaskSpace, clip_task, uniform_log_density, uniform_task

LogDensity = Callable[[Array], Array]
"""States (m, dim) -> log-densities (m)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkewFitConfig:
    """Options of Skew-Fit."""

    power: float = -1.0
    """alpha, in [-1, 0): -1 makes goals uniform over what was reached, 0 would leave it as it was."""
    fit_every: int = 100
    """Episodes between fits; the first so many goals are uniform."""
    capacity: int = 2048
    """Last reached states that are kept."""
    bandwidth: float = 0.05
    """Standard deviation of a kernel, in shares of the extent."""
    smooth: bool = True
    """Add the kernel's noise to the state drawn, as a generative model fitted to the weighted states does."""
    log_density: LogDensity | None = None
    """Density of the states; None fits kernels."""
    success_return: float | None = 230.0
    """To `update`, an episode with a return above this has reached its goal."""

    def __post_init__(self) -> None:
        if not -1 <= self.power < 0:
            raise InputError(f"power is {self.power}; it must lie in [-1, 0)")
        for name in ("fit_every", "capacity"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if self.capacity < self.fit_every:
            raise InputError(f"capacity is {self.capacity}; it must be >= fit_every = {self.fit_every}")
        if not self.bandwidth > 0:
            raise InputError(f"bandwidth is {self.bandwidth}; it must be > 0")


class SkewFitState(NamedTuple):
    """Reached states, those of the last fit, and their weights."""

    space: TaskSpace
    reached: Float[Array, "capacity dim"]
    """A ring; the newest replaces the oldest."""
    seen: Int[Array, ""]
    """States that were ever reached."""
    fitted: Float[Array, "capacity dim"]
    """The ring as it was at the last fit."""
    weights: Float[Array, " capacity"]
    """Of `fitted`; they sum to 1, or are all 0 before anything was fitted."""
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    faults: Int[Array, ""]


def skew_fit_teacher(config: SkewFitConfig | None = None) -> Teacher:
    """The teacher Skew-Fit; see `SkewFitConfig`.

    The goal of an episode that succeeded counts as reached; `reached_states` tells of all other states, which is what
    the paper does.
    """
    options = config or SkewFitConfig()

    def init(key: jax.Array, space: TaskSpace) -> SkewFitState:
        del key
        ring = jnp.zeros((options.capacity, space.dimensions))
        zero = jnp.int32(0)
        return SkewFitState(space, ring, zero, ring, jnp.zeros(options.capacity), zero, zero)

    def sample(state: SkewFitState, key: jax.Array) -> Float[Array, " dim"]:
        row_key, noise_key, uniform_key = jax.random.split(key, 3)
        goal = state.fitted[jax.random.choice(row_key, options.capacity, p=state.weights)]
        if options.smooth:
            deviation = options.bandwidth * state.space.extent
            goal = clip_task(state.space, goal + deviation * jax.random.normal(noise_key, goal.shape))
        return jnp.where(state.weights.sum() > 0, goal, uniform_task(state.space, uniform_key))

    def record(state: SkewFitState, feedback: Feedback) -> SkewFitState:
        state = _pushed(state, feedback.task, feedback.mask & feedback.success)
        return state._replace(episodes=state.episodes + jnp.sum(feedback.mask, dtype=jnp.int32))

    def refit(state: SkewFitState) -> SkewFitState:
        there = jnp.arange(options.capacity) < state.seen
        if options.log_density is None:
            std = options.bandwidth * state.space.extent
            log_density = kernel_log_density(state.reached, state.reached, there.astype(jnp.float32), std)
        else:
            log_density = options.log_density(state.reached)
        weights = skewed_weights(log_density, there, power=options.power)
        return state._replace(fitted=state.reached, weights=weights)

    def density(state: SkewFitState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        std = options.bandwidth * state.space.extent
        skewed = kernel_log_density(tasks, state.fitted, state.weights, std)
        return jnp.where(state.weights.sum() > 0, skewed, uniform_log_density(state.space, tasks))

    def metrics(state: SkewFitState) -> dict[str, Array]:
        effective = 1 / jnp.maximum(jnp.sum(state.weights**2), 1 / options.capacity)
        return {"episodes": state.episodes, "reached": state.seen, "effective_states": effective}

    return periodic_teacher(
        period=options.fit_every,
        init=init,
        sample=sample,
        record=record,
        refit=refit,
        density=density,
        metrics=metrics,
        success_return=options.success_return,
    )


def reached_states(
    state: SkewFitState, states: Float[Array, "n dim"], mask: Bool[Array, " n"] | None = None
) -> SkewFitState:
    """The teacher's state after it was told of states that the student has reached; they count from the next fit on.

    Args:
      state: of the teacher.
      states: in the space of goals, at most `capacity` of them.
      mask: which count; all by default.
    """
    capacity = state.reached.shape[0]
    if states.shape[0] > capacity:
        raise InputError(f"states has {states.shape[0]} rows; it must have at most {capacity}, the capacity")
    return _pushed(state, states, jnp.ones(states.shape[0], bool) if mask is None else mask)


def _pushed(state: SkewFitState, states: Float[Array, "n dim"], there: Bool[Array, " n"]) -> SkewFitState:
    """The ring with those of the states that are there, no more than it has places."""
    capacity = state.reached.shape[0]
    place = jnp.where(there, (state.seen + jnp.cumsum(there) - 1) % capacity, capacity)
    return state._replace(
        reached=state.reached.at[place].set(states, mode="drop"),
        seen=state.seen + jnp.sum(there, dtype=jnp.int32),
    )


def skewed_weights(
    log_density: Float[Array, " n"], there: Bool[Array, " n"], *, power: float
) -> Float[Array, " n"]:
    """p(s)^power over the states that are there, normalised; all 0 if none is. Reference: arXiv:1903.03698, section 3.

    Args:
      log_density: log p of each state.
      there: which states exist.
      power: alpha.
    """
    logits = jnp.where(there, power * log_density, -jnp.inf)
    return jnp.where(there, jax.nn.softmax(jnp.where(jnp.any(there), logits, 0)), 0)
