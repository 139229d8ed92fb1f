"""LARS with the clipped rate that the published baselines were trained by.

`optax.lars` is the original: it takes the decay into the norm, does not clip, and keeps momentum of steps instead of
gradients. Reference: arXiv:1708.03888, algorithm 1; clipping and exclusions as in solo-learn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxlab.errors import InputError
from jaxlab.selfsupervised.checks import require_number


class LarsState(NamedTuple):
    """Steps done, and momentum of the scaled gradients."""

    step: Int[Array, ""]
    momentum: optax.Updates


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    eta: float = 0.02,
    eps: float = 1e-8,
    clip: bool = True,
) -> optax.GradientTransformation:
    """Each matrix p with gradient g moves at the rate eta |p| / (|g| + weight_decay |p| + eps) times the learning rate.

    Vectors and scalars (biases, scales of norms) take the plain step without decay. So does a leaf whose parameters or
    gradient are all zero.

    Args:
      learning_rate: > 0, or a schedule of the step.
      weight_decay: >= 0, added to the gradient before it is scaled.
      momentum: 0 to below 1.
      eta: trust coefficient, > 0.
      eps: added to the denominator, >= 0.
      clip: let no layer move faster than plain gradient descent would, rate / learning rate <= 1 ("LARC").

    Raises:
      InputError: a number out of range, or `update` without parameters.
    """
    if not callable(learning_rate):
        require_number("learning_rate", float(learning_rate), above=0)
    require_number("weight_decay", weight_decay, at_least=0)
    require_number("momentum", momentum, at_least=0, below=1)
    require_number("eta", eta, above=0)
    require_number("eps", eps, at_least=0)

    def init(params: optax.Params) -> LarsState:
        return LarsState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: LarsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LarsState]:
        if params is None:
            raise InputError("params is None; lars needs the parameters: update(updates, state, params)")
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate

        def scaled(gradient: Array, param: Array) -> Array:
            if param.ndim < 2:
                return gradient
            param_norm, gradient_norm = jnp.linalg.norm(param.ravel()), jnp.linalg.norm(gradient.ravel())
            trust = eta * param_norm / (gradient_norm + weight_decay * param_norm + eps)
            if clip:
                trust = jnp.minimum(trust / rate, 1)
            moves = (param_norm > 0) & (gradient_norm > 0)
            return jnp.where(moves, trust * (gradient + weight_decay * param), gradient)

        gradients = jax.tree.map(scaled, updates, params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, state.momentum, gradients)
        steps = jax.tree.map(lambda v: (-rate * v).astype(v.dtype), velocity)
        return steps, LarsState(state.step + 1, velocity)

    return optax.GradientTransformation(init, update)
