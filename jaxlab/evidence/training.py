"""Training with hyperparameters learned from the training data: a few steps on the evidence between epochs.

Parameters are trained on the log-joint with the prior held still, the prior and the noise on a stochastic bound of the
evidence with the parameters held still. Reference: arXiv:2306.03968; arXiv:2104.04975.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.affine import averaged
from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_choice, require_count, require_finite, require_independent
from jaxlab.evidence.likelihoods import log_likelihood
from jaxlab.evidence.partitions import Kind, make_partition, random_block
from jaxlab.evidence.priors import prior_quadratic
from jaxlab.evidence.ranges import AugmentConfig, RangesState, init_ranges, ranges_update, views_of
from jaxlab.evidence.stochastic import cache_block
from jaxlab.evidence.updates import MarglikConfig, MarglikState, init_marglik, marglik_update


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """A whole training.

    Raises:
      InputError: an option is unknown, or a number out of range.
    """

    marglik: MarglikConfig = MarglikConfig()
    """How hyperparameters step."""
    batch: int = 128
    """Examples of a step of the parameters, >= 1."""
    block: int = 150
    """Examples of a block of the bound, >= 1."""
    kind: Kind = "random"
    """How blocks are made, see `make_partition`."""
    burn_in: int | None = 10
    """Epochs before the first update of hyperparameters, >= 0: before convergence the evidence says little. None leaves
    them as they are: training with fixed weight decay."""
    frequency: int = 1
    """Epochs from one update to the next, >= 1."""
    draws: int = 1
    """Blocks of an update, >= 1, each with `marglik.steps` steps."""
    augment: AugmentConfig | None = None
    """Learned affine augmentations; inputs are then images. None trains on the inputs as they are."""

    def __post_init__(self) -> None:
        for name in ("batch", "block", "frequency", "draws"):
            require_count(name, getattr(self, name), at_least=1)
        require_count("burn_in", self.burn_in or 0, at_least=0)
        require_choice("kind", self.kind, get_args(Kind))


class FitState(NamedTuple):
    """All that a training goes on from."""

    params: PyTree
    opt_state: optax.OptState
    marglik: MarglikState
    ranges: RangesState | None
    """Of the augmentations, where there are any."""
    key: jax.Array
    epoch: Int[Array, ""]


class FitMetrics(NamedTuple):
    """Of one epoch."""

    loss: Float[Array, ""]
    """Mean of the mini-batches' losses, nats an example, the prior in it."""
    evidence: Float[Array, ""]
    """Estimate of the bound, nats an example, before the last block's steps; NaN where there was no update."""


def init_fit(
    key: jax.Array,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    config: FitConfig,
    precision: float = 1.0,
    layout: str = "tensor",
    sigma: float = 1.0,
) -> FitState:
    """The state before the first epoch.

    Args:
      key: PRNG key.
      params: the model's parameters.
      optimizer: of the parameters; without weight decay, which is the prior's task.
      config: see `FitConfig`.
      precision: see `init_marglik`.
      layout: see `init_marglik`.
      sigma: see `init_marglik`.

    Raises:
      InputError: as `init_marglik`.
    """
    marglik = init_marglik(params, config=config.marglik, precision=precision, layout=layout, sigma=sigma)
    ranges = init_ranges(config=config.augment) if config.augment else None
    return FitState(params, optimizer.init(params), marglik, ranges, key, jnp.zeros((), jnp.int32))


def fit_epoch(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    state: FitState,
    inputs: PyTree,
    targets: Array,
    *,
    config: FitConfig,
) -> tuple[FitState, FitMetrics]:
    """One epoch of the parameters, and where it is due one update of the hyperparameters.

    Examples that fill no mini-batch wait for another epoch. Jit it with `apply`, `optimizer` and `config` static.

    Args:
      apply: see `gram_leaves`.
      optimizer: that of `init_fit`.
      state: of `init_fit`, or of the epoch before.
      inputs: N examples.
      targets: labels or values.
      config: static.

    Raises:
      InputError: a batch or a block is larger than N, or a shape or a label is wrong.
    """
    examples = len(targets)
    require_count("batch", config.batch, at_least=1, at_most=examples)
    require_count("block", config.block, at_least=1, at_most=examples)
    key, order_key, view_key, hyper_key = jax.random.split(state.key, 4)
    inputs, targets = jax.tree.map(jnp.asarray, (inputs, targets))
    steps = examples // config.batch
    order = jax.random.permutation(order_key, examples)[: steps * config.batch].reshape(steps, -1)
    bound, hyper = config.marglik.bound, state.marglik.hyper
    noise = hyper.log_sigma if bound.likelihood == "gaussian" else 0.0
    model = averaged(apply) if config.augment else apply

    def step(
        carry: tuple[PyTree, optax.OptState], part: tuple[Int[Array, " batch"], jax.Array]
    ) -> tuple[tuple[PyTree, optax.OptState], Float[Array, ""]]:
        params, opt_state = carry
        chosen, key = part

        def loss(params: PyTree) -> Float[Array, ""]:
            outputs = model(params, _seen(key, inputs, chosen, state.ranges, config))
            each = log_likelihood(outputs, targets[chosen], likelihood=bound.likelihood, log_sigma=noise)
            return prior_quadratic(hyper.log_delta, params) / (2 * examples) - jnp.mean(each)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    keys = jax.random.split(view_key, steps)
    (params, opt_state), losses = lax.scan(step, (state.params, state.opt_state), (order, keys))
    loss = jnp.mean(losses)

    def update(learned: _Learned) -> tuple[_Learned, Float[Array, ""]]:
        # Single views are near enough to the mean of them to tell clusters.
        outputs = apply(params, inputs) if config.kind == "cluster" else None

        def draw(learned: _Learned, key: jax.Array) -> tuple[_Learned, Float[Array, ""]]:
            block_key, key = jax.random.split(key)
            block = _drawn_block(block_key, examples, targets, outputs, config)
            learned, value = _learn(key, apply, params, inputs, targets, block, learned, config)
            return learned, value.astype(loss.dtype)

        learned, values = lax.scan(draw, learned, jax.random.split(hyper_key, config.draws))
        return learned, values[-1]

    learned, evidence = _Learned(state.marglik, state.ranges), jnp.full_like(loss, jnp.nan)
    if config.burn_in is not None:
        since = state.epoch - config.burn_in
        due = (since >= 0) & (since % config.frequency == 0)
        learned, evidence = lax.cond(due, update, lambda same: (same, evidence), learned)
    new = FitState(params, opt_state, learned.marglik, learned.ranges, key, state.epoch + 1)
    return new, FitMetrics(loss, evidence)


class _Learned(NamedTuple):
    marglik: MarglikState
    ranges: RangesState | None


def _seen(
    key: jax.Array, inputs: PyTree, chosen: Int[Array, " some"], ranges: RangesState | None, config: FitConfig
) -> PyTree:
    """What the model reads of the chosen examples."""
    here = jax.tree.map(lambda x: x[chosen], inputs)
    if config.augment is None or ranges is None:
        return here
    return views_of(key, here, ranges, config.augment)


def _learn(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    block: Int[Array, " block"],
    learned: _Learned,
    config: FitConfig,
) -> tuple[_Learned, Float[Array, ""]]:
    """Steps of everything that is learned from a block, and the estimate before them, nats an example."""
    row_key, view_key, ranges_key = jax.random.split(key, 3)
    total, ranges = len(targets), learned.ranges
    marglik, evidence = marglik_update(
        row_key,
        averaged(apply) if config.augment else apply,
        params,
        _seen(view_key, inputs, block, ranges, config),
        targets[block],
        learned.marglik,
        total=total,
        config=config.marglik,
        mask=block >= 0,
    )
    value = evidence.value / total
    augment = config.augment
    if augment is None or ranges is None:
        return _Learned(marglik, ranges), value

    def turn(state: RangesState, key: jax.Array) -> tuple[RangesState, Float[Array, ""]]:
        return ranges_update(
            key,
            apply,
            params,
            inputs[block],
            targets[block],
            state,
            marglik.hyper,
            total=total,
            bound=config.marglik.bound,
            config=augment,
            mask=block >= 0,
        )

    turned, _ = lax.scan(turn, ranges, jax.random.split(ranges_key, augment.steps))
    return _Learned(marglik, turned), value


def _drawn_block(
    key: jax.Array, examples: int, targets: Array, outputs: Array | None, config: FitConfig
) -> Int[Array, " block"]:
    """One block of a random partition, with probability proportional to its size."""
    if config.kind == "random":
        return random_block(key, examples, block=config.block)
    labels = targets if config.kind == "label" else None
    partition_key, key = jax.random.split(key)
    partition = make_partition(
        partition_key, examples, block=config.block, kind=config.kind, labels=labels, outputs=outputs
    )
    # The block of a random example.
    return partition[jax.random.randint(key, (), 0, examples) // config.block]


_jitted_epoch = jax.jit(fit_epoch, static_argnums=(0, 1), static_argnames="config")


def marglik_fit(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    state: FitState,
    inputs: PyTree,
    targets: Array,
    *,
    epochs: int,
    config: FitConfig,
    report: Callable[[FitState, FitMetrics], None] = lambda state, metrics: None,
) -> FitState:
    """Epochs of `fit_epoch`, compiled once.

    Args:
      apply: see `gram_leaves`; checked for words between examples.
      optimizer: that of `init_fit`.
      state: of `init_fit`, or one that an earlier run ended with: the epochs follow each other as in a single run.
      inputs: N examples.
      targets: labels or values.
      epochs: >= 1.
      config: see `FitConfig`.
      report: called after each epoch, for logs and checkpoints.

    Raises:
      InputError: as `fit_epoch`; examples are coupled; or the evidence is not finite, with the leaves at fault.
    """
    require_count("epochs", epochs, at_least=1)
    require_independent(apply, state.params, inputs)
    for _ in range(epochs):
        due = -1 if config.burn_in is None else int(state.epoch) - config.burn_in
        state, metrics = _jitted_epoch(apply, optimizer, state, inputs, targets, config=config)
        if due >= 0 and due % config.frequency == 0 and not jnp.isfinite(metrics.evidence):
            _explain(apply, state, inputs, targets, config)
        report(state, metrics)
    return state


def _explain(apply: Apply, state: FitState, inputs: PyTree, targets: Array, config: FitConfig) -> None:
    few = jax.tree.map(lambda x: jnp.asarray(x)[: config.block], inputs)
    block = cache_block(
        state.key,
        apply,
        state.params,
        few,
        jnp.asarray(targets)[: config.block],
        total=len(targets),
        config=config.marglik.bound,
    )
    require_finite(block.grams)
    raise InputError(
        f"the evidence after epoch {int(state.epoch)} is not finite though the Jacobians are; outputs and "
        "targets must be finite, and the parameters must not diverge"
    )
