"""Steps of hyperparameters on the evidence of one block of data: what drops into any training loop.

Reference: arXiv:2306.03968; MacKay, "Bayesian interpolation", 1992.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_choice, require_count, require_number
from jaxlab.evidence.function_space import Evidence, mackay_update
from jaxlab.evidence.priors import LOG_LIMIT, log_precisions
from jaxlab.evidence.stochastic import Bound, CachedBlock, Hyper, cache_block, cached_evidence

Rule = Literal["mackay", "adam"]


@dataclasses.dataclass(frozen=True)
class MarglikConfig:
    """How hyperparameters step.

    Raises:
      InputError: an option is unknown, or a number out of range.
    """

    bound: Bound = Bound()
    """Which bound of the evidence; its likelihood is that of the training."""
    rule: Rule = "mackay"
    """"mackay" for damped fixed-point steps, "adam" for gradient ascent in log delta and log sigma."""
    steps: int = 5
    """Steps on each block, >= 1; the model is run for the first alone."""
    damping: float = 0.5
    """With "mackay", see `mackay_update`."""
    learning_rate: float = 0.1
    """With "adam", > 0."""

    def __post_init__(self) -> None:
        require_choice("rule", self.rule, get_args(Rule))
        require_count("steps", self.steps, at_least=1)
        require_number("damping", self.damping, at_least=0, below=1)
        require_number("learning_rate", self.learning_rate, above=0)
        if (self.rule, self.bound.likelihood, self.bound.output_rows) == ("mackay", "gaussian", "empirical"):
            raise InputError(
                "rule is 'mackay' with 'empirical' rows and a Gaussian likelihood; it must be 'adam': sigma has no "
                "fixed point there"
            )


class MarglikState(NamedTuple):
    """Hyperparameters, and the state of what steps them."""

    hyper: Hyper
    opt_state: optax.OptState


def init_marglik(
    params: PyTree,
    *,
    config: MarglikConfig,
    precision: float = 1.0,
    layout: str = "tensor",
    sigma: float = 1.0,
) -> MarglikState:
    """Hyperparameters to begin with.

    Args:
      params: the model's parameters.
      config: how they will step.
      precision: delta of the prior, > 0.
      layout: "tensor" for a precision of each leaf, "scalar" for one.
      sigma: standard deviation of the observation noise, > 0; without effect with "softmax".

    Raises:
      InputError: a number is not positive, or the layout has no single numbers.
    """
    require_choice("layout", layout, ("tensor", "scalar"))
    require_number("sigma", sigma, above=0)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    log_delta = log_precisions(params, init=precision, layout=layout, dtype=dtype)
    hyper = Hyper(log_delta, jnp.log(jnp.asarray(sigma, dtype)))
    return MarglikState(hyper, _adam(config).init(hyper) if config.rule == "adam" else optax.EmptyState())


def marglik_update(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    state: MarglikState,
    *,
    total: int,
    config: MarglikConfig,
    mask: Bool[Array, " M"] | None = None,
) -> tuple[MarglikState, Evidence]:
    """Steps of the hyperparameters on one block of data, for any training loop; the parameters stay as they are.

    The model is run once. Each step beyond that costs a Cholesky factorisation of the cached Gram matrices.

    Args:
      key: PRNG key; used where rows are sampled.
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: M examples, see `stochastic_evidence`.
      targets: labels or values.
      state: of `init_marglik`, or of the update before.
      total: N, examples in the data set.
      config: static.
      mask: False for padding; None is all.

    Returns:
      The state after the steps, and the estimate of the bound before them.

    Raises:
      InputError: as `stochastic_evidence`.

    Reference: arXiv:2306.03968; MacKay, "Bayesian interpolation", 1992.
    """
    block = cache_block(key, apply, params, inputs, targets, total=total, config=config.bound, mask=mask)
    step = _adam_step if config.rule == "adam" else _mackay_step

    before = cached_evidence(block, state.hyper, config=config.bound)
    return lax.fori_loop(0, config.steps, lambda _, state: step(block, state, config), state), before


def _adam(config: MarglikConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def _adam_step(block: CachedBlock, state: MarglikState, config: MarglikConfig) -> MarglikState:
    def loss(hyper: Hyper) -> Array:
        # Per example, as published rates are.
        total = block.scale * jnp.sum(block.counted)
        return -cached_evidence(block, hyper, config=config.bound).value / total

    updates, opt_state = _adam(config).update(jax.grad(loss)(state.hyper), state.opt_state)
    hyper = jax.tree.map(lambda old, change: _kept(old + change), state.hyper, updates)
    return MarglikState(hyper, opt_state)


def _mackay_step(block: CachedBlock, state: MarglikState, config: MarglikConfig) -> MarglikState:
    evidence = cached_evidence(block, state.hyper, config=config.bound)
    log_delta = mackay_update(
        state.hyper.log_delta, block.square_sums, evidence.gamma, damping=config.damping
    )
    log_sigma = state.hyper.log_sigma
    if config.bound.likelihood == "gaussian":
        # sigma^2 = squared errors / (observations - effective parameters)
        squares = jnp.where(block.counted[:, None], jnp.square(block.targets - block.outputs), 0)
        observations = block.scale * jnp.sum(block.counted) * block.outputs.shape[1]
        effective = sum(jax.tree.leaves(evidence.gamma))
        left = jnp.maximum(observations - effective, 1e-3 * observations)
        new = jnp.log(block.scale * jnp.sum(squares) / left) / 2
        log_sigma = _kept(config.damping * log_sigma + (1 - config.damping) * new)
    return MarglikState(Hyper(log_delta, log_sigma), state.opt_state)


def _kept(value: Array) -> Array:
    return jnp.clip(value, -LOG_LIMIT, LOG_LIMIT)
