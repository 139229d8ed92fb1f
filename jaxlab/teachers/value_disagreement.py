"""VDS: goals on which an ensemble of value functions disagrees most, neither mastered nor out of reach.

Reference: Zhang, Abbeel and Pinto, "Automatic Curriculum Learning through Value Disagreement", arXiv:2006.09641,
section 3 and algorithm 1; options of github.com/zzyunzhi/vds. There the ensemble learns Q from the student's
transitions. A teacher sees episodes alone, so that `return_ensemble`, the default here, learns the return of the goal
from those; a student with critics of its own gives a `ValueEnsemble` that calls them and puts their parameters into
the state, or calls `disagreement_weights` itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.dense_layers import Dense, init_layers, perceptron
from jaxlab.teachers.protocol import Feedback, Teacher, periodic_teacher
from jaxlab.teachers.spaces import TaskSpace, uniform_log_density, uniform_task

Disagreement = Literal["std", "var", "tanh", "exp"]


class ValueEnsemble(NamedTuple):
    """Several value functions of a goal, each scaled to [-1, 1] in every dimension."""

    init: Callable[[jax.Array, int], Any]
    """(key, dimensions) -> parameters."""
    values: Callable[[Any, Array], Array]
    """(parameters, goals (n, dim)) -> values (members, n)."""
    learn: Callable[[Any, jax.Array, Array, Array, Array], Any]
    """(parameters, key, goals, returns, size) -> parameters, from the first `size` rows. Where the student trains them:
    the parameters as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDSConfig:
    """Options of VDS."""

    candidates: int = 1000
    """Uniform goals among which those up to the next training are drawn."""
    disagreement: Disagreement = "std"
    """Of the members' values v: std(v), var(v), tanh(var(v)) or exp(std(v))."""
    train_every: int = 50
    """Episodes between trainings of the ensemble."""
    buffer: int = 10_000
    """Last episodes that it is trained on."""
    members: int = 3
    hidden: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 1e-3
    """Of Adam."""
    batch: int = 256
    """Episodes in a step, drawn for each member anew."""
    steps: int = 40
    """Steps of a training."""
    return_range: tuple[float, float] | None = None
    """See `scaled_return`."""

    def __post_init__(self) -> None:
        for name in ("candidates", "train_every", "batch", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if self.members < 2:
            raise InputError(f"members is {self.members}; it must be >= 2, or nothing disagrees")
        if self.buffer < self.train_every:
            raise InputError(f"buffer is {self.buffer}; it must be >= train_every = {self.train_every}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be > 0")
        if self.disagreement not in get_args(Disagreement):
            raise InputError(
                f"disagreement is {self.disagreement!r}; it must be one of {get_args(Disagreement)}"
            )


class VDSState(NamedTuple):
    """The ensemble, the candidates, and the last episodes."""

    space: TaskSpace
    ensemble: Any
    """Parameters."""
    candidates: Float[Array, "candidates dim"]
    disagreement: Float[Array, " candidates"]
    """Of the ensemble as it was when the candidates were drawn, >= 0."""
    values: Float[Array, " candidates"]
    """Its mean value of each."""
    goals: Float[Array, "buffer dim"]
    """Scaled to [-1, 1]."""
    returns: Float[Array, " buffer"]
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    key: jax.Array
    faults: Int[Array, ""]


def vds_teacher(config: VDSConfig | None = None, *, ensemble: ValueEnsemble | None = None) -> Teacher:
    """The teacher VDS; see `VDSConfig`.

    Args:
      config: options.
      ensemble: whose disagreement counts; `return_ensemble` by default.
    """
    options = config or VDSConfig()
    critics = ensemble or return_ensemble(options)

    def init(key: jax.Array, space: TaskSpace) -> VDSState:
        ensemble_key, candidate_key, key = jax.random.split(key, 3)
        params = critics.init(ensemble_key, space.dimensions)
        return VDSState(
            space,
            params,
            *judged(params, space, candidate_key),
            goals=jnp.zeros((options.buffer, space.dimensions)),
            returns=jnp.zeros(options.buffer),
            episodes=jnp.int32(0),
            key=key,
            faults=jnp.int32(0),
        )

    def judged(params: Any, space: TaskSpace, key: jax.Array) -> tuple[Array, Array, Array]:
        """New candidates, the ensemble's disagreement about each, and its mean value."""
        goals = jax.vmap(lambda key: uniform_task(space, key))(jax.random.split(key, options.candidates))
        values = critics.values(params, scaled(space, goals))
        return goals, spread(values, options.disagreement), values.mean(0)

    def sample(state: VDSState, key: jax.Array) -> Float[Array, " dim"]:
        weights = proportional(state.disagreement)
        return state.candidates[jax.random.choice(key, options.candidates, p=weights)]

    def record(state: VDSState, feedback: Feedback) -> VDSState:
        mask = feedback.mask
        place = (state.episodes + jnp.cumsum(mask) - 1) % options.buffer
        place = jnp.where(mask, place, options.buffer)
        goals = scaled(state.space, feedback.task)
        return state._replace(
            goals=state.goals.at[place].set(goals, mode="drop"),
            returns=state.returns.at[place].set(feedback.ret, mode="drop"),
            episodes=state.episodes + jnp.sum(mask, dtype=jnp.int32),
        )

    def refit(state: VDSState) -> VDSState:
        learn_key, candidate_key, key = jax.random.split(state.key, 3)
        size = jnp.minimum(state.episodes, options.buffer)
        learnt = critics.learn(state.ensemble, learn_key, state.goals, state.returns, size)
        goals, apart, values = judged(learnt, state.space, candidate_key)
        return state._replace(ensemble=learnt, candidates=goals, disagreement=apart, values=values, key=key)

    def density(state: VDSState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        values = critics.values(state.ensemble, scaled(state.space, tasks))
        mean = state.disagreement.mean()
        relative = spread(values, options.disagreement) / jnp.where(mean > 0, mean, 1)
        return uniform_log_density(state.space, tasks) + jnp.where(mean > 0, jnp.log(relative), 0)

    def metrics(state: VDSState) -> dict[str, Array]:
        return {
            "episodes": state.episodes,
            "mean_disagreement": state.disagreement.mean(),
            "mean_value": state.values.mean(),
        }

    return periodic_teacher(
        period=options.train_every,
        init=init,
        sample=sample,
        record=record,
        refit=refit,
        density=density,
        metrics=metrics,
        return_range=options.return_range,
    )


def scaled(space: TaskSpace, tasks: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
    """Tasks mapped linearly from the box to [-1, 1]."""
    return 2 * (tasks - space.low) / space.extent - 1


def spread(values: Float[Array, "members n"], disagreement: Disagreement) -> Float[Array, " n"]:
    """Disagreement of the members about each goal, >= 0; see `VDSConfig.disagreement`."""
    match disagreement:
        case "std":
            return values.std(0)
        case "var":
            return values.var(0)
        case "tanh":
            return jnp.tanh(values.var(0))
    return jnp.exp(values.std(0))


def disagreement_weights(
    values: Float[Array, "members n"], *, disagreement: Disagreement = "std"
) -> Float[Array, " n"]:
    """Probabilities of candidate goals in proportion to the disagreement; uniform where there is none.

    Reference: arXiv:2006.09641, section 3.

    Args:
      values: of each candidate, by each member.
      disagreement: see `VDSConfig`.
    """
    return proportional(spread(values, disagreement))


def proportional(apart: Float[Array, " n"]) -> Float[Array, " n"]:
    """Probabilities in proportion to figures >= 0; uniform where all are 0."""
    total = apart.sum()
    return jnp.where(total > 0, apart / jnp.where(total > 0, total, 1), 1 / apart.shape[0])


class ReturnEnsembleState(NamedTuple):
    """Networks of all members, stacked, and their optimisers."""

    layers: tuple[Dense, ...]
    moments: optax.OptState


def return_ensemble(config: VDSConfig) -> ValueEnsemble:
    """Members that learn the return of an episode from its goal, by least squares on batches of their own."""
    optimizer = optax.adam(config.learning_rate)

    def member_values(layers: tuple[Dense, ...], goals: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return perceptron(layers, goals, activation=jax.nn.relu)[:, 0]

    def init(key: jax.Array, dimensions: int) -> ReturnEnsembleState:
        sizes = (dimensions, *config.hidden, 1)
        glorot = jax.nn.initializers.glorot_uniform()
        layers = jax.vmap(lambda key: init_layers(key, sizes, initializer=glorot))(
            jax.random.split(key, config.members)
        )
        return ReturnEnsembleState(layers, jax.vmap(optimizer.init)(layers))

    def values(state: ReturnEnsembleState, goals: Float[Array, "n dim"]) -> Float[Array, "members n"]:
        return jax.vmap(member_values, in_axes=(0, None))(state.layers, goals)

    def learn(
        state: ReturnEnsembleState,
        key: jax.Array,
        goals: Float[Array, "slots dim"],
        returns: Float[Array, " slots"],
        size: Int[Array, ""],
    ) -> ReturnEnsembleState:
        def member(
            layers: tuple[Dense, ...], moments: optax.OptState, key: jax.Array
        ) -> tuple[tuple[Dense, ...], optax.OptState]:
            def step(
                i: Int[Array, ""], carry: tuple[tuple[Dense, ...], optax.OptState]
            ) -> tuple[tuple[Dense, ...], optax.OptState]:
                layers, moments = carry
                rows = jax.random.randint(jax.random.fold_in(key, i), (config.batch,), 0, size)

                def loss(layers: tuple[Dense, ...]) -> Float[Array, ""]:
                    return jnp.mean((member_values(layers, goals[rows]) - returns[rows]) ** 2)

                change, moments = optimizer.update(jax.grad(loss)(layers), moments)
                return optax.apply_updates(layers, change), moments

            return jax.lax.fori_loop(0, config.steps, step, (layers, moments))

        keys = jax.random.split(key, config.members)
        return ReturnEnsembleState(*jax.vmap(member)(state.layers, state.moments, keys))

    return ValueEnsemble(init, values, learn)
