"""One step of joint-embedding training: two views of each image, an objective, and T-REGS added to it if wanted.

The step is a pure function of a state, images and a key; under `jax.shard_map` it averages over a mesh axis. Reference:
arXiv:2510.23484, section 4.3; BYOL's averaged network: arXiv:2006.07733, section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxlab.errors import InputError
from jaxlab.selfsupervised.augmentations import Views, random_view
from jaxlab.selfsupervised.checks import require_number
from jaxlab.selfsupervised.networks import Perceptron
from jaxlab.selfsupervised.objectives import (
    barlow_loss,
    byol_loss,
    mse_invariance,
    simclr_loss,
    vicreg_loss,
)
from jaxlab.selfsupervised.probes import mean_cosine
from jaxlab.selfsupervised.regularizer import TregsConfig, treg

Host = Literal["mse", "simclr", "vicreg", "barlow", "byol"]
Scope = Literal["global", "local"]


@dataclasses.dataclass(frozen=True)
class Method:
    """What is minimised.

    Raises:
      InputError: an unknown host or scope, or a momentum out of range.
    """

    host: Host = "mse"
    """Joint-embedding objective."""
    tregs: TregsConfig | None = TregsConfig()
    """Coefficients of T-REGS; None: the objective alone, with weight 1."""
    scope: Scope = "global"
    """On several devices: trees and objectives over the whole batch, or over each device's part of it."""
    target_momentum: float = 0.99
    """Of BYOL's averaged network at the first step; rises to 1 along a cosine."""

    def __post_init__(self) -> None:
        for name, known in (("host", Host), ("scope", Scope)):
            if getattr(self, name) not in get_args(known):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(known))}"
                )
        require_number("target_momentum", self.target_momentum, at_least=0, below=1)


class Networks(nnx.Module):
    """An encoder, a projector on it and, for BYOL, a predictor on that."""

    def __init__(
        self, encoder: nnx.Module, projector: Perceptron, predictor: Perceptron | None = None
    ) -> None:
        """Put the parts together."""
        self.encoder, self.projector, self.predictor = encoder, projector, predictor


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Any
    stats: Any
    """Running means and variances of batch normalisation."""
    target: Any
    """Parameters and statistics of BYOL's averaged network; None for other hosts."""
    optimiser: Any
    step: Int[Array, ""]


class Metrics(NamedTuple):
    """Of one step."""

    loss: Float[Array, ""]
    invariance: Float[Array, ""]
    """Mean squared difference of the two views' embeddings."""
    length: Float[Array, ""]
    """E / n, mean of both views' trees; NaN without T-REGS, where no tree is made."""
    sphere: Float[Array, ""]
    """Mean of (|z| - 1)^2 over both views."""
    radius: Float[Array, ""]
    """Mean of |z| over both views."""
    mean_cosine: Float[Array, ""]
    """Over pairs of different images of the first view."""


Step = Callable[
    [TrainState, Float[Array, "n height width channels"], Key[Array, ""]], tuple[TrainState, Metrics]
]


def init_training(
    networks: Networks, optimiser: optax.GradientTransformation, method: Method
) -> tuple[Any, TrainState]:
    """The networks' graph, which is static, and the state before the first step.

    Raises:
      InputError: BYOL without a predictor.
    """
    if method.host == "byol" and networks.predictor is None:
        raise InputError("networks has no predictor; byol needs one")
    graph, *parts = nnx.split(networks, nnx.Param, ...)
    params, stats = map(nnx.as_pure, parts)
    target = (params, stats) if method.host == "byol" else None
    return graph, TrainState(params, stats, target, optimiser.init(params), jnp.int32(0))


def train_step(
    graph: Any,
    optimiser: optax.GradientTransformation,
    method: Method,
    views: Views,
    *,
    steps: int,
    axis_name: str | None = None,
) -> Step:
    """The step function, to be jitted.

    Args:
      graph: what `init_training` returns.
      optimiser: of all parameters; schedules count its own steps.
      method: what is minimised.
      views: how views are made.
      steps: of the whole training, >= 1, for BYOL's schedule.
      axis_name: mesh axis, inside `shard_map` over images: gradients and metrics are averaged over it. Give the
        networks' batch normalisation the same name.

    Raises:
      InputError: steps below 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1")

    def gathered(embeddings: Array) -> Array:
        if axis_name is None or method.scope == "local":
            return embeddings
        return jax.lax.all_gather(embeddings, axis_name, tiled=True)

    def averaged(values: Any) -> Any:
        return values if axis_name is None else jax.lax.pmean(values, axis_name)

    def loss_of(params: Any, state: TrainState, first: Array, second: Array) -> tuple[Array, tuple]:
        networks = nnx.merge(graph, params, state.stats)
        networks.train()
        z = tuple(gathered(networks.projector(networks.encoder(view))) for view in (first, second))
        target_stats = None
        if method.host == "byol":
            targets, target_stats = _targets(graph, state.target, first, second)
            aims = tuple(gathered(aim) for aim in targets)
            guesses = tuple(networks.predictor(own) for own in z)
            objective = byol_loss(guesses[0], aims[1]) + byol_loss(guesses[1], aims[0])
        else:
            objective = _OBJECTIVES[method.host](*z)
        invariance = mse_invariance(*z)
        norms = jnp.linalg.norm(jnp.stack(z), axis=-1)
        length = jnp.float32(jnp.nan)
        if method.tregs is not None:
            weights = {name: getattr(method.tregs, name) for name in ("gamma", "lam", "alpha")}
            regular, terms = jax.vmap(lambda own: treg(own, **weights))(jnp.stack(z))
            objective = method.tregs.beta * objective + regular.sum()
            length = terms.length.mean()
        metrics = Metrics(
            objective,
            invariance,
            length,
            jnp.square(norms - 1).mean(),
            norms.mean(),
            mean_cosine(z[0]),
        )
        stats = nnx.as_pure(nnx.state(networks, nnx.Not(nnx.Param)))
        return objective, (metrics, stats, target_stats)

    def step(state: TrainState, images: Array, key: Array) -> tuple[TrainState, Metrics]:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        keys = jax.random.split(key, (2, len(images)))
        first, second = (jax.vmap(lambda k, x: random_view(k, x, views))(own, images) for own in keys)
        gradient, (metrics, stats, target_stats) = jax.grad(loss_of, has_aux=True)(
            state.params, state, first, second
        )
        updates, moved = optimiser.update(averaged(gradient), state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        target = state.target
        if target is not None:
            done = state.step / steps
            rate = 1 - (1 - method.target_momentum) * (jnp.cos(jnp.pi * done) + 1) / 2
            mean = jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, target[0], params)
            target = (mean, target_stats)
        stats, target, metrics = averaged((stats, target, metrics))
        return TrainState(params, stats, target, moved, state.step + 1), metrics

    return step


def encode_images(
    graph: Any,
    state: TrainState,
    images: Float[Array, "n height width channels"],
    *,
    projected: bool = False,
) -> Float[Array, "n features"]:
    """Features of images with the running statistics; of the projector where `projected`."""
    networks = nnx.merge(graph, state.params, state.stats)
    networks.eval()
    features = networks.encoder(images)
    return networks.projector(features) if projected else features


def _targets(graph: Any, target: Any, first: Array, second: Array) -> tuple[tuple[Array, Array], Any]:
    """BYOL's averaged network on both views, and its statistics after them."""
    networks = nnx.merge(graph, *target)
    networks.train()
    aims = tuple(
        jax.lax.stop_gradient(networks.projector(networks.encoder(view))) for view in (first, second)
    )
    return (aims[0], aims[1]), nnx.as_pure(nnx.state(networks, nnx.Not(nnx.Param)))


_OBJECTIVES: dict[str, Callable[[Array, Array], Array]] = {
    "mse": mse_invariance,
    "simclr": simclr_loss,
    "vicreg": vicreg_loss,
    "barlow": barlow_loss,
}
