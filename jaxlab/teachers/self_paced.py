"""Self-paced teachers: a Gaussian over tasks that moves from easy ones to the target as fast as the student allows.

`self_paced_teacher` is SPDL (Klink et al., "Self-Paced Deep Reinforcement Learning", arXiv:2004.11812), which weighs
the divergence from the target by an alpha in proportion to performance. `spdl_v2_teacher` is its successor
(arXiv:2102.13176), which goes to the target as far as the expected performance stays above a threshold. Reference
code: github.com/psclklnk/spdl, and for SPDL its options in TeachMyAgent (arXiv:2103.09815).

Both look at the student's value V(s0) of first states, which `on_step` gives when an episode starts; the reference asks
the critic again at each update. A student without a value function needs `values="returns"`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.conditions import seldom
from jaxlab.teachers.gaussian_trust_region import (
    Weights,
    constrained_step,
    gaussian_weights,
    kl_divergence,
    log_density,
    mean_and_factor,
    natural_gradient_step,
)
from jaxlab.teachers.protocol import (
    NO_STUDENT_VALUES,
    VALUE_NOT_FINITE,
    Episode,
    StepFeedback,
    Teacher,
    every_episode_teacher,
)
from jaxlab.teachers.spaces import TaskGaussian, TaskSpace, clip_task, uniform_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfPacedOptions:
    """What both self-paced teachers can be told."""

    update_every: int = 100_000
    """Environment steps between updates, of all students together."""
    update_from: int = 200_000
    """Environment steps before the first update."""
    max_kl: float = 0.8
    """Bound of KL(old || new) of an update."""
    std_floor: tuple[float, ...] | None = None
    """Least diagonal of the Cholesky factor, one for each dimension, in units of the task; needs `floor_above_kl`."""
    floor_above_kl: float | None = None
    """The floor holds while the KL divergence from the target is above this."""
    values: Literal["critic", "returns"] = "critic"
    """Where V(s0) comes from: `on_step`, or the return of the episode, whose length then counts the steps."""
    buffer: int = 1000
    """Episodes since the last update that are looked at; older ones are dropped."""
    initial: TaskGaussian | None = None
    """Where it starts (expert knowledge "high"); else a random mean, and a tenth of the extent as std."""
    target: TaskGaussian | None = None
    """Where it goes; else the centre of the space, and a quarter of the extent as std."""
    return_range: tuple[float, float] | None = None
    """See `scaled_return`."""

    def __post_init__(self) -> None:
        for name, least in (("update_every", 1), ("update_from", 0), ("buffer", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= {least}")
        if not self.max_kl > 0:
            raise InputError(f"max_kl is {self.max_kl}; it must be > 0")
        if (self.std_floor is None) != (self.floor_above_kl is None):
            raise InputError(
                f"std_floor is {self.std_floor}, floor_above_kl is {self.floor_above_kl}; give both or none"
            )
        if self.std_floor is not None and not all(std > 0 for std in self.std_floor):
            raise InputError(f"std_floor is {self.std_floor}; its entries must be > 0")
        if self.values not in ("critic", "returns"):
            raise InputError(f"values is {self.values!r}; it must be 'critic' or 'returns'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfPacedConfig(SelfPacedOptions):
    """Options of SPDL, by default TeachMyAgent's."""

    zeta: float = 0.05
    """Share of the performance that the divergence from the target may cost."""
    alpha_offset: int = 0
    """Updates at the start in which the target does not count."""
    performance: Literal["values", "returns"] = "values"
    """What alpha is in proportion to: the mean value, or the mean return since the last update."""
    strict: bool = False
    """Accept a step only within the trust region and without loss; the reference asks for one of the two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zeta >= 0:
            raise InputError(f"zeta is {self.zeta}; it must be >= 0")
        if self.alpha_offset < 0:
            raise InputError(f"alpha_offset is {self.alpha_offset}; it must be >= 0")
        if self.performance not in ("values", "returns"):
            raise InputError(f"performance is {self.performance!r}; it must be 'values' or 'returns'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPDLV2Config(SelfPacedOptions):
    """Options of the successor of SPDL."""

    performance_threshold: float
    """Expected value that a move towards the target must keep."""
    max_kl: float = 0.1


class SelfPacedState(NamedTuple):
    """The Gaussian, and what was seen since its last update."""

    space: TaskSpace
    weights: Float[Array, " weights"]
    """See `gaussian_trust_region`."""
    target: Float[Array, " weights"]
    contexts: Float[Array, "buffer dim"]
    values: Float[Array, " buffer"]
    recorded: Int[Array, ""]
    """Episodes since the last update, also those that the buffer has dropped."""
    return_total: Float[Array, ""]
    return_episodes: Int[Array, ""]
    """Sum and number of returns since the last update."""
    steps: Int[Array, ""]
    """Environment steps seen; the same for all seeds under vmap."""
    updates: Int[Array, ""]
    accepted: Bool[Array, ""]
    """Whether the last update moved the Gaussian."""
    alpha: Float[Array, ""]
    """Weight of the divergence from the target in the last update of SPDL."""
    reached: Bool[Array, ""]
    """Whether the performance threshold was ever reached."""
    episodes: Int[Array, ""]
    faults: Int[Array, ""]


def self_paced_teacher(config: SelfPacedConfig | None = None) -> Teacher:
    """The teacher SPDL; see `SelfPacedConfig`. Reference: arXiv:2004.11812, section 4, algorithm 1."""
    options = config or SelfPacedConfig()

    def update(state: SelfPacedState) -> SelfPacedState:
        expected = expected_value(state)
        if options.performance == "values":
            performance = expected(state.weights)
        else:
            performance = state.return_total / jnp.maximum(state.return_episodes, 1)
        gap = jnp.maximum(kl_divergence(state.weights, state.target), 1e-10)
        alpha = jnp.minimum(options.zeta * jnp.maximum(performance, 0) / gap, 1e5)
        alpha = jnp.where(state.updates < options.alpha_offset, 0, alpha)

        def objective(weights: Weights) -> Float[Array, ""]:
            return expected(weights) - alpha * kl_divergence(weights, state.target)

        weights, accepted = natural_gradient_step(
            objective, state.weights, max_kl=options.max_kl, strict=options.strict
        )
        floor = _floor(options, weights, state.target)
        return state._replace(weights=jnp.maximum(weights, floor), accepted=accepted, alpha=alpha)

    return _teacher(options, update, needs_returns=options.performance == "returns")


def spdl_v2_teacher(config: SPDLV2Config) -> Teacher:
    """The successor of SPDL; see `SPDLV2Config`.

    Where the expected value of the student is at least the threshold, an update minimises KL(new || target) with that
    value kept and KL(old || new) <= max_kl. Until it is for the first time, an update raises it within the trust
    region; where it has fallen below again, nothing moves.
    Reference: arXiv:2102.13176; `self_paced_teacher_v2.py` of github.com/psclklnk/spdl.
    """

    def update(state: SelfPacedState) -> SelfPacedState:
        expected = expected_value(state)
        floor = _floor(config, state.weights, state.target)
        start = jnp.maximum(state.weights, floor)
        enough = expected(start) >= config.performance_threshold

        def objective(weights: Weights) -> Float[Array, ""]:
            return jnp.where(enough, kl_divergence(weights, state.target), -expected(weights))

        def margin(weights: Weights) -> Float[Array, ""]:
            return jnp.where(enough, expected(weights) - config.performance_threshold, 1.0)

        found, better = constrained_step(objective, margin, start, max_kl=config.max_kl, floor=floor)
        accepted = better & (enough | ~state.reached)
        return state._replace(
            weights=jnp.where(accepted, found, state.weights),
            accepted=accepted,
            reached=state.reached | enough,
        )

    return _teacher(config, update, needs_returns=False)


def expected_value(state: SelfPacedState) -> Callable[[Weights], Float[Array, ""]]:
    """The student's value of tasks of another Gaussian, by importance sampling of those in the buffer.

    Reference: arXiv:2004.11812, section 4: the mean of p_new(c) / p_old(c) V(c).
    """
    capacity = state.values.shape[0]
    size = jnp.minimum(state.recorded, capacity)
    there = jnp.arange(capacity) < size
    old = log_density(state.weights, state.contexts)
    values = jnp.where(there, state.values, 0)

    def expected(weights: Weights) -> Float[Array, ""]:
        ratio = jnp.exp(jnp.where(there, log_density(weights, state.contexts) - old, 0))
        return jnp.sum(ratio * values) / jnp.maximum(size, 1)

    return expected


def _floor(options: SelfPacedOptions, weights: Weights, target: Weights) -> Weights:
    """Lower bounds of the weights: those of the standard deviations, while the target is far."""
    low = jnp.full(weights.shape, -jnp.inf)
    if options.std_floor is None or options.floor_above_kl is None:
        return low
    d = len(options.std_floor)
    far = kl_divergence(weights, target) > options.floor_above_kl
    return low.at[d : 2 * d].set(jnp.where(far, jnp.log(jnp.asarray(options.std_floor)), -jnp.inf))


def _teacher(
    options: SelfPacedOptions,
    update: Callable[[SelfPacedState], SelfPacedState],
    *,
    needs_returns: bool,
) -> Teacher:
    """Collects contexts and values, and calls `update` when it is due and something was seen."""

    def init(key: jax.Array, space: TaskSpace) -> SelfPacedState:
        d = space.dimensions
        if options.std_floor is not None and len(options.std_floor) != d:
            raise InputError(
                f"std_floor has {len(options.std_floor)} entries; it must have {d}, as the space"
            )
        centre = (space.low + space.high) / 2
        start = _weights("initial", options.initial, space, uniform_task(space, key), 0.1)
        target = _weights("target", options.target, space, centre, 0.25)
        return SelfPacedState(
            space=space,
            weights=start,
            target=target,
            contexts=jnp.zeros((options.buffer, d)),
            values=jnp.zeros(options.buffer),
            recorded=jnp.int32(0),
            return_total=jnp.float32(0),
            return_episodes=jnp.int32(0),
            steps=jnp.int32(0),
            updates=jnp.int32(0),
            accepted=jnp.asarray(False),
            alpha=jnp.float32(0),
            reached=jnp.asarray(False),
            episodes=jnp.int32(0),
            faults=jnp.int32(0),
        )

    def sample(state: SelfPacedState, key: jax.Array) -> tuple[Float[Array, " dim"], SelfPacedState]:
        mean, lower = mean_and_factor(state.weights)
        noise = jax.random.normal(key, mean.shape)
        return clip_task(state.space, mean + jnp.sum(lower * noise, axis=1)), state

    def record(
        state: SelfPacedState,
        contexts: Float[Array, "B dim"],
        values: Float[Array, " B"],
        mask: Bool[Array, " B"],
    ) -> SelfPacedState:
        slot = (state.recorded + jnp.cumsum(mask) - 1) % options.buffer
        slot = jnp.where(mask, slot, options.buffer)
        return state._replace(
            contexts=state.contexts.at[slot].set(contexts, mode="drop"),
            values=state.values.at[slot].set(values, mode="drop"),
            recorded=state.recorded + jnp.sum(mask, dtype=jnp.int32),
        )

    def updated(state: SelfPacedState) -> SelfPacedState:
        seen = state.recorded > 0
        if needs_returns:
            seen &= state.return_episodes > 0
        new = update(state)._replace(
            updates=state.updates + 1,
            recorded=jnp.int32(0),
            return_total=jnp.float32(0),
            return_episodes=jnp.int32(0),
        )
        return jax.tree.map(lambda a, b: jnp.where(seen, a, b), new, state)

    def advance(state: SelfPacedState, steps: Int[Array, ""] | int) -> SelfPacedState:
        total = state.steps + steps
        period = options.update_every
        due = (total >= options.update_from) & (total // period > state.steps // period)
        return seldom(due, updated, state._replace(steps=total))

    def on_step(state: SelfPacedState, key: jax.Array, step: StepFeedback) -> SelfPacedState:
        del key
        students = step.start.shape[0]
        expected = (students, state.space.dimensions)
        if step.context.shape != expected or step.value.shape != expected[:1]:
            raise InputError(
                f"context has shape {step.context.shape}, value {step.value.shape}; "
                f"they must be {expected} and {expected[:1]}"
            )
        if students > options.buffer:
            raise InputError(f"buffer is {options.buffer}; it must be >= {students}, the students")
        if options.values == "returns":
            return state
        bad = jnp.any(step.start & ~jnp.isfinite(step.value))
        if not isinstance(bad, jax.core.Tracer) and bool(bad):
            raise InputError(f"value is {step.value}; the values of first states must be finite")
        state = state._replace(faults=state.faults | jnp.where(bad, VALUE_NOT_FINITE, 0))
        return advance(record(state, step.context, step.value, step.start), students)

    def learn(state: SelfPacedState, episode: Episode) -> SelfPacedState:
        state = state._replace(
            return_total=state.return_total + episode.ret,
            return_episodes=state.return_episodes + 1,
            episodes=state.episodes + 1,
        )
        if options.values == "returns":
            one = jnp.ones(1, bool)
            return advance(record(state, episode.task[None], episode.ret[None], one), episode.length)
        missing = state.steps == 0
        if not isinstance(missing, jax.core.Tracer) and bool(missing):
            raise InputError(
                "values is 'critic', and on_step was never called: a self-paced teacher needs the student's value of "
                "first states; call on_step at every step, or choose values='returns'"
            )
        return state._replace(faults=state.faults | jnp.where(missing, NO_STUDENT_VALUES, 0))

    def metrics(state: SelfPacedState) -> dict[str, Array]:
        mean, lower = mean_and_factor(state.weights)
        return {
            "episodes": state.episodes,
            "updates": state.updates,
            "kl_to_target": kl_divergence(state.weights, state.target),
            "alpha": state.alpha,
            "accepted": state.accepted,
            "mean_std": jnp.sqrt(jnp.sum(lower**2, axis=1)).mean(),
        }

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=lambda state, tasks: log_density(state.weights, tasks),
        metrics=metrics,
        return_range=options.return_range,
        on_step=on_step,
    )


def _weights(
    name: str, gaussian: TaskGaussian | None, space: TaskSpace, mean: Float[Array, " dim"], share: float
) -> Weights:
    """Those of the Gaussian, or of one with this mean and a share of the extent as std."""
    if gaussian is None:
        return gaussian_weights(mean, share * space.extent)
    if len(gaussian.mean) != space.dimensions or not all(std > 0 for std in gaussian.std):
        raise InputError(
            f"{name} is {gaussian}; it must have {space.dimensions} dimensions, each with std > 0"
        )
    return gaussian_weights(jnp.asarray(gaussian.mean, jnp.float32), jnp.asarray(gaussian.std, jnp.float32))
