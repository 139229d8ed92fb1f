"""Setter-Solver: tasks from a flow that is asked for a feasibility, and a judge that learns to tell it.

Reference: Racaniere et al., "Automated curricula through setter-solver interactions", arXiv:1909.12892, section 3; the
options are those of TeachMyAgent, arXiv:2103.09815.

The sampler changes every so many episodes, but the setter's losses need the feasibility that was asked of each task
played. So tasks wait in the state with it, and the teacher learns with every episode, not in blocks. The episode of a
training is the same for all seeds.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.conditions import seldom
from jaxlab.teachers.dense_layers import Dense, fan_in_kernel, init_layers, perceptron
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.real_nvp import Flow, flow_forward, flow_inverse, init_flow
from jaxlab.teachers.spaces import TaskSpace, clip_task
from jaxlab.teachers.waiting_tasks import oldest_waiting

_LEAST_FEASIBILITY = 1e-8
_GOAL_MARGIN = 1e-4
"""Goals that are looked for in the setter keep so far from 0 and 1."""
_DENSITY_CONDITIONS = 64


@dataclasses.dataclass(frozen=True)
class SetterSolverConfig:
    """Options of Setter-Solver, by default TeachMyAgent's."""

    update_every: int = 100
    """Episodes between gradient steps, which see as many."""
    goal_noise: float = 0.05
    """Uniform noise up to this is added to the goals, in [0, 1], of the validity loss."""
    setter_hidden: int = 128
    blocks: int = 3
    layers: int = 3
    """See `init_flow`."""
    judge_hidden: tuple[int, ...] = (64, 64)
    """The reference asks for three, of which its code drops the first."""
    learning_rate: float = 3e-4
    """Of Adam, for both networks."""
    pending: int = 256
    """Drawn tasks that wait for their episode; a further one replaces the oldest."""
    success_return: float | None = 230.0
    """To `update`, an episode with a return above this is a success."""

    def __post_init__(self) -> None:
        for name in ("update_every", "setter_hidden", "blocks", "layers", "pending"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if not self.goal_noise >= 0:
            raise InputError(f"goal_noise is {self.goal_noise}; it must be >= 0")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be > 0")


class PlayedGoals(NamedTuple):
    """Episodes since the last gradient step."""

    logits: Float[Array, "n dim"]
    """Of the goals in (0, 1)^dim."""
    feasibility: Float[Array, " n"]
    """Asked of the setter."""
    ours: Bool[Array, " n"]
    """Whether the setter drew the goal; others teach the judge alone."""
    success: Bool[Array, " n"]


class SetterSolverState(NamedTuple):
    """The networks, tasks that wait for their episode, and those played."""

    space: TaskSpace
    setter: Flow
    judge: tuple[Dense, ...]
    setter_moments: optax.OptState
    judge_moments: optax.OptState
    waiting: Float[Array, "pending dim"]
    waiting_logits: Float[Array, "pending dim"]
    waiting_feasibility: Float[Array, " pending"]
    ticket: Int[Array, " pending"]
    """Order in which the waiting tasks were drawn, from 1; 0 marks a free row."""
    tickets: Int[Array, ""]
    played: PlayedGoals
    losses: Float[Array, "4"]
    """Of the judge, and the setter's validity, feasibility and coverage, at the last step."""
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    key: jax.Array
    faults: Int[Array, ""]


def setter_solver_teacher(config: SetterSolverConfig | None = None) -> Teacher:
    """The teacher Setter-Solver; see `SetterSolverConfig`. Its `init` refuses spaces of one dimension."""
    options = config or SetterSolverConfig()
    optimizer = optax.adam(options.learning_rate)

    def init(key: jax.Array, space: TaskSpace) -> SetterSolverState:
        d = space.dimensions
        setter_key, judge_key, key = jax.random.split(key, 3)
        setter = init_flow(
            setter_key, d, hidden=options.setter_hidden, blocks=options.blocks, layers=options.layers
        )
        judge = init_layers(judge_key, (d, *options.judge_hidden, 1), initializer=fan_in_kernel)
        n = options.update_every
        return SetterSolverState(
            space=space,
            setter=setter,
            judge=judge,
            setter_moments=optimizer.init(setter),
            judge_moments=optimizer.init(judge),
            waiting=jnp.zeros((options.pending, d)),
            waiting_logits=jnp.zeros((options.pending, d)),
            waiting_feasibility=jnp.zeros(options.pending),
            ticket=jnp.zeros(options.pending, jnp.int32),
            tickets=jnp.int32(0),
            played=PlayedGoals(jnp.zeros((n, d)), jnp.zeros(n), jnp.zeros(n, bool), jnp.zeros(n, bool)),
            losses=jnp.zeros(4),
            episodes=jnp.int32(0),
            key=key,
            faults=jnp.int32(0),
        )

    def sample(state: SetterSolverState, key: jax.Array) -> tuple[Float[Array, " dim"], SetterSolverState]:
        feasibility_key, latent_key = jax.random.split(key)
        space = state.space
        feasibility = jax.random.uniform(feasibility_key, (), minval=_LEAST_FEASIBILITY)
        latent = jax.random.normal(latent_key, space.low.shape)
        logits, _ = flow_forward(state.setter, latent, feasibility)
        task = clip_task(space, space.low + space.extent * jax.nn.sigmoid(logits))
        row = jnp.argmin(state.ticket)
        tickets = state.tickets + 1
        return task, state._replace(
            waiting=state.waiting.at[row].set(task),
            waiting_logits=state.waiting_logits.at[row].set(logits),
            waiting_feasibility=state.waiting_feasibility.at[row].set(feasibility),
            ticket=state.ticket.at[row].set(tickets),
            tickets=tickets,
        )

    def gradient_steps(state: SetterSolverState) -> SetterSolverState:
        key, noise_key = jax.random.split(state.key)
        played = state.played
        noise = options.goal_noise * jax.random.uniform(noise_key, played.logits.shape)
        judge_value, slope = jax.value_and_grad(judge_loss)(state.judge, played)
        change, judge_moments = optimizer.update(slope, state.judge_moments)
        judge = optax.apply_updates(state.judge, change)

        def total(setter: Flow) -> tuple[Float[Array, ""], Float[Array, "3"]]:
            losses = jnp.stack(setter_losses(setter, judge, state.setter, played, noise))
            return losses.sum(), losses

        (_, losses), slope = jax.value_and_grad(total, has_aux=True)(state.setter)
        change, setter_moments = optimizer.update(slope, state.setter_moments)
        return state._replace(
            setter=optax.apply_updates(state.setter, change),
            judge=judge,
            setter_moments=setter_moments,
            judge_moments=judge_moments,
            losses=jnp.concatenate([judge_value[None], losses]),
            key=key,
        )

    def learn(state: SetterSolverState, episode: Episode) -> SetterSolverState:
        space = state.space
        ours, row = oldest_waiting(space, state.waiting, state.ticket, episode.task)
        goal = jnp.clip((episode.task - space.low) / space.extent, _GOAL_MARGIN, 1 - _GOAL_MARGIN)
        logits = jnp.where(ours, state.waiting_logits[row], jax.scipy.special.logit(goal))
        feasibility = jnp.where(ours, state.waiting_feasibility[row], 0.5)
        new = PlayedGoals(logits, feasibility, ours, episode.success)
        slot = state.episodes % options.update_every
        state = state._replace(
            played=jax.tree.map(lambda old, value: old.at[slot].set(value), state.played, new),
            ticket=state.ticket.at[jnp.where(ours, row, options.pending)].set(0, mode="drop"),
            episodes=state.episodes + 1,
        )
        return seldom(state.episodes % options.update_every == 0, gradient_steps, state)

    def density(state: SetterSolverState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        """The mean over 64 evenly spaced feasibilities."""
        space = state.space
        goals = jnp.clip((tasks - space.low) / space.extent, _GOAL_MARGIN, 1 - _GOAL_MARGIN)
        logits = jax.scipy.special.logit(goals)
        conditions = (jnp.arange(_DENSITY_CONDITIONS) + 0.5) / _DENSITY_CONDITIONS

        def given(condition: Float[Array, ""]) -> Float[Array, " m"]:
            return flow_inverse(state.setter, logits, jnp.full(logits.shape[0], condition))[1]

        each = jax.lax.map(given, conditions)
        mean = jax.nn.logsumexp(each, axis=0) - jnp.log(_DENSITY_CONDITIONS)
        return mean - jnp.sum(jnp.log(space.extent))

    def metrics(state: SetterSolverState) -> dict[str, Array]:
        return {
            "episodes": state.episodes,
            "judge_loss": state.losses[0],
            "validity_loss": state.losses[1],
            "feasibility_loss": state.losses[2],
            "coverage_loss": state.losses[3],
            "success_share": state.played.success.mean(),
        }

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=density,
        metrics=metrics,
        success_return=options.success_return,
    )


def judge_logits(judge: tuple[Dense, ...], goals: Float[Array, "n dim"]) -> Float[Array, " n"]:
    """Log-odds that the student succeeds on goals in [0, 1]^dim."""
    return perceptron(judge, goals, activation=jax.nn.relu)[:, 0]


def judge_loss(judge: tuple[Dense, ...], played: PlayedGoals) -> Float[Array, ""]:
    """Mean binary cross-entropy of the successes. Reference: arXiv:1909.12892, section 3.2."""
    logits = judge_logits(judge, jax.nn.sigmoid(played.logits))
    return optax.sigmoid_binary_cross_entropy(logits, played.success.astype(logits.dtype)).mean()


def setter_losses(
    setter: Flow,
    judge: tuple[Dense, ...],
    before: Flow,
    played: PlayedGoals,
    noise: Float[Array, "n dim"],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Validity, feasibility and coverage of the setter. Reference: arXiv:1909.12892, section 3.2.

    Args:
      setter: in which they are differentiated.
      judge: fixed.
      before: the setter that gives the latents of the goals, fixed.
      played: only goals of the setter count; a mean over none is 0.
      noise: added to the succeeded goals.

    Returns:
      the mean of -log p(goal + noise | f) over succeeded goals, and the means of (judge(goal') - logit f)^2 and of
      log p(goal' | f), where goal' is the setter's goal of the latent of each goal.
    """
    goals = jnp.clip(jax.nn.sigmoid(played.logits) + noise, _GOAL_MARGIN, 1 - _GOAL_MARGIN)
    _, log_p = flow_inverse(setter, jax.scipy.special.logit(goals), played.feasibility)
    latents, _ = flow_inverse(before, played.logits, played.feasibility)
    made, made_log_p = flow_forward(setter, latents, played.feasibility)
    wanted = jax.scipy.special.logit(played.feasibility)
    miss = (judge_logits(judge, jax.nn.sigmoid(made)) - wanted) ** 2

    def mean(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(mask.sum(), 1)

    return -mean(log_p, played.ours & played.success), mean(miss, played.ours), mean(made_log_p, played.ours)
