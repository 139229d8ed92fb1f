"""Steps of the ranges of affine augmentations on the evidence of one block of data.

Reference: LILA, arXiv:2202.10638; arXiv:2306.03968.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxlab.evidence.affine import affine_views, averaged
from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_count, require_number
from jaxlab.evidence.stochastic import Bound, Hyper, stochastic_evidence


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Views of images, and how their ranges step.

    Raises:
      InputError: a number is out of range.
    """

    samples: int = 20
    """Views an image, >= 1."""
    flip: bool = False
    """Mirror every other view, at random."""
    steps: int = 2
    """Steps of an update, >= 1, each on views of their own."""
    learning_rate: float = 0.05
    """Of Adam, > 0."""

    def __post_init__(self) -> None:
        require_count("samples", self.samples, at_least=1)
        require_count("steps", self.steps, at_least=1)
        require_number("learning_rate", self.learning_rate, above=0)


class RangesState(NamedTuple):
    """Ranges, and the state of what steps them."""

    eta: Float[Array, "6"]
    """See `affine_views`."""
    opt_state: optax.OptState


def init_ranges(*, config: AugmentConfig) -> RangesState:
    """No augmentation to begin with, eta = 0.

    Args:
      config: how the ranges will step.
    """
    eta = jnp.zeros(6)
    return RangesState(eta, optax.adam(config.learning_rate).init(eta))


def views_of(
    key: jax.Array, images: Float[Array, "n height width channels"], state: RangesState, config: AugmentConfig
) -> Float[Array, "n samples height width channels"]:
    """`affine_views` with the ranges and options at hand."""
    return affine_views(key, images, state.eta, samples=config.samples, flip=config.flip)


def ranges_update(
    key: jax.Array,
    apply: Apply,
    params: PyTree,
    images: Float[Array, "M height width channels"],
    targets: Array,
    state: RangesState,
    hyper: Hyper,
    *,
    total: int,
    bound: Bound,
    config: AugmentConfig,
    mask: Bool[Array, " M"] | None = None,
) -> tuple[RangesState, Float[Array, ""]]:
    """One step of Adam up the bound, in eta, through the likelihood and the log-determinant.

    Args:
      key: PRNG key.
      apply: the model of single images, see `gram_leaves`; it is averaged over views here.
      params: the model's parameters.
      images: M images.
      targets: labels or values.
      state: of `init_ranges`, or of the step before.
      hyper: prior and noise; constants here.
      total: N, examples in the data set.
      bound: static; which bound.
      config: static.
      mask: False for padding; None is all.

    Returns:
      The state after the step, and the estimate of the bound before it, nats an example.

    Raises:
      InputError: as `affine_views` and `stochastic_evidence`.
    """
    view_key, row_key = jax.random.split(key)

    def loss(eta: Float[Array, "6"]) -> Float[Array, ""]:
        views = views_of(view_key, images, state._replace(eta=eta), config)
        value, _ = stochastic_evidence(
            row_key, averaged(apply), params, views, targets, hyper, total=total, config=bound, mask=mask
        )
        return -value / total

    value, gradient = jax.value_and_grad(loss)(state.eta)
    updates, opt_state = optax.adam(config.learning_rate).update(gradient, state.opt_state)
    return RangesState(state.eta + jnp.asarray(updates), opt_state), -value
