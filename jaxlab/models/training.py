"""Supervised training of a language model on text: all of its parameters, or adapters beside frozen ones.

    trainable, frozen = partition(params, ADAPTERS)
    optimizer = make_optimizer(trainable, OptimizerConfig(steps=200))
    state = init(trainable, optimizer)
    for tokens in batches:
        state, metrics = train_step(state, frozen, cfg, tokens, optimizer=optimizer)
    params = combine(state.trainable, frozen)

A step is AdamW (Loshchilov and Hutter, arXiv:1711.05101) on the mean loss of all of its rows, which may be worked
through in parts that fit the memory. Arrays that lie on several devices stay where they are.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.logprobs import hidden_loss
from jaxlab.models.transformer import Params, embed, final_hidden, run_layers
from jaxlab.models.validation import check_causal, check_tokens, concrete
from jaxlab.parallel.rules import path_name

ALL = ""
"""Pattern for `partition`: every floating point leaf."""
ADAPTERS = r"^layers/(\d+/)?\w+/(a|b)$"
"""Pattern for `partition`: what `init_lora` put there."""

_NOT_DECAYED = r"(norm|bias)$"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning rate that rises linearly and falls by a cosine.

    Raises:
        InputError: a value out of range.
    """

    steps: int
    """Of the whole training, >= 1; the cosine ends there."""
    learning_rate: float = 1e-3
    """Highest, > 0."""
    warmup: int = 0
    """Steps over which the rate rises from 0, in [0, steps)."""
    final_share: float = 0.1
    """Share of the highest rate that is left at the end, in [0, 1]."""
    weight_decay: float = 0.0
    """Of matrices and embeddings, not of norms and biases; >= 0."""
    clip: float = 1.0
    """Norm of all gradients together above which they are scaled down, > 0."""
    b1: float = 0.9
    """Decay of the mean of gradients, in [0, 1)."""
    b2: float = 0.99
    """Decay of the mean of their squares, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup < self.steps:
            raise InputError(
                f"steps is {self.steps} and warmup {self.warmup}; they must be at least 1 and in [0, steps)"
            )
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} is {value}; it must be > 0 and finite")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise InputError(f"weight_decay is {self.weight_decay}; it must be >= 0 and finite")
        if not 0 <= self.final_share <= 1:
            raise InputError(f"final_share is {self.final_share}; it must lie in [0, 1]")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise InputError(f"b1 is {self.b1} and b2 {self.b2}; they must lie in [0, 1)")


class TrainState(NamedTuple):
    """What a step changes."""

    trainable: Any
    """Parameters, None in the place of frozen ones."""
    optimizer: optax.OptState
    step: Int[Array, ""]
    """Steps done."""


class StepMetrics(NamedTuple):
    """Before the step's change."""

    loss: Float[Array, ""]
    """Mean over the scored tokens, nats."""
    gradient_norm: Float[Array, ""]
    """Of all gradients together, before clipping."""


def partition(params: Params, pattern: str) -> tuple[Any, Any]:
    """Parameters to train, and the others; each has None in the other's places. `combine` puts them together.

    Args:
        params: the model, of any leaves.
        pattern: regular expression, searched for in the paths of leaves (`layers/q`, `layers/3/q/a`): `ALL`,
            `ADAPTERS`, `"norm"`, ... Leaves that are not floating point are never trained.

    Raises:
        InputError: no leaf is trained.
    """

    def chosen(path: tuple[Any, ...], leaf: Any) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.inexact) and re.search(pattern, path_name(path)) is not None

    mask = jax.tree_util.tree_map_with_path(chosen, params)
    if not any(jax.tree.leaves(mask)):
        raise InputError(f"pattern is {pattern!r}, which no floating point leaf's path holds")
    trainable = jax.tree.map(lambda leaf, take: leaf if take else None, params, mask)
    return trainable, jax.tree.map(lambda leaf, take: None if take else leaf, params, mask)


def combine(trainable: Any, frozen: Any) -> Params:
    """The model of which `partition` made these."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def learning_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Of the step after `step` steps: `learning_rate` times (step + 1) / (warmup + 1) at first, then a cosine."""
    rise = (step + 1) / (config.warmup + 1)
    share = jnp.clip((step - config.warmup) / max(config.steps - config.warmup, 1), 0, 1)
    fall = config.final_share + (1 - config.final_share) * 0.5 * (1 + jnp.cos(math.pi * share))
    return config.learning_rate * jnp.minimum(rise, fall)


def make_optimizer(trainable: Any, config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam, and decay of what is neither a norm nor a bias, times `learning_rate`."""
    decayed = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(_NOT_DECAYED, path_name(path)) is None, trainable
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(functools.partial(learning_rate, config)),
    )


def init(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with a copy of the parameters, since `train_step` uses up what it is given."""
    trainable = jax.tree.map(jnp.copy, trainable)
    return TrainState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def summed_loss(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    chunk: int = 512,
    remat: bool = False,
) -> Float[Array, ""]:
    """Sum over the rows of -log p of each token but the first, given those before it.

    Args:
        params: the model.
        cfg: static.
        tokens: at least two a row; right-padded rows are fine.
        mask: which tokens to score; None is all.
        chunk: positions whose scores exist at the same time, see `token_logprobs`.
        remat: keep only what goes into each block, and compute the block again in the backward pass: memory of one
            block instead of all, for a third more time.
    """
    residual, _, _ = run_layers(params, cfg, embed(params, cfg, tokens), remat=remat)
    hidden = final_hidden(params, cfg, residual)
    scored = None if mask is None else mask[:, 1:]
    return hidden_loss(params, cfg, hidden[:, :-1], tokens[:, 1:], scored, chunk=chunk)


def train_step(
    state: TrainState,
    frozen: Any,
    cfg: ModelConfig,
    tokens: Int[Array, "parts batch time"],
    mask: Bool[Array, "parts batch time"] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    chunk: int = 512,
    remat: bool = False,
) -> tuple[TrainState, StepMetrics]:
    """One step on the mean loss over the scored tokens of all parts, worked through one part after the other.

    Args:
        state: see `init`; used up, its memory goes into the new one.
        frozen: the other half of `partition`.
        cfg: static.
        tokens: the rows of a step, in parts.
        mask: which tokens to score (the first of a row never is); None is all. One at least.
        optimizer: static; make it once, since another one is another program.
        chunk: see `summed_loss`.
        remat: see `summed_loss`.

    Raises:
        InputError: tokens of a wrong rank or range, or rows of one token; see also `forward`.
    """
    if tokens.ndim != 3 or tokens.shape[-1] < 2:
        raise InputError(f"tokens has shape {tokens.shape}; it must be [parts, batch, time], time at least 2")
    if mask is not None and mask.shape != tokens.shape:
        raise InputError(f"mask has shape {mask.shape}; it must be that of tokens, {tokens.shape}")
    check_causal(cfg, "training")
    values = concrete(tokens)
    if values is not None:
        check_tokens(jnp.asarray(values.reshape(-1, values.shape[-1])), cfg)
    return _train_step(state, frozen, cfg, tokens, mask, optimizer, chunk, remat)


@functools.partial(jax.jit, static_argnames=("cfg", "optimizer", "chunk", "remat"), donate_argnames="state")
def _train_step(
    state: TrainState,
    frozen: Any,
    cfg: ModelConfig,
    tokens: Array,
    mask: Array | None,
    optimizer: optax.GradientTransformation,
    chunk: int,
    remat: bool,
) -> tuple[TrainState, StepMetrics]:
    scored = tokens[..., 1:].size if mask is None else mask[..., 1:].sum()

    def loss(trainable: Any, tokens: Array, mask: Array | None) -> Array:
        params = combine(trainable, frozen)
        return summed_loss(params, cfg, tokens, mask, chunk=chunk, remat=remat) / scored

    def add(total: tuple[Array, Any], part: tuple[Array, Array | None]) -> tuple[tuple[Array, Any], None]:
        found = jax.value_and_grad(loss)(state.trainable, *part)
        return jax.tree.map(jnp.add, total, found), None

    if len(tokens) == 1:
        value, gradient = jax.value_and_grad(loss)(
            state.trainable, tokens[0], None if mask is None else mask[0]
        )
    else:
        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable)
        (value, gradient), _ = lax.scan(add, nothing, (tokens, mask))
    updates, inner = optimizer.update(gradient, state.optimizer, state.trainable)
    trained = optax.apply_updates(state.trainable, updates)
    return TrainState(trained, inner, state.step + 1), StepMetrics(value, optax.global_norm(gradient))
