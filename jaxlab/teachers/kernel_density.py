"""Gaussian kernels about weighted tasks, as a density."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kernel_log_density(
    tasks: Float[Array, "m dim"],
    centres: Float[Array, "n dim"],
    weights: Float[Array, " n"],
    std: Float[Array, " dim"],
) -> Float[Array, " m"]:
    """log sum_i w_i N(task; centre_i, diag(std^2)) / sum_i w_i; -inf where every weight is 0.

    Args:
      tasks: where it is asked.
      centres: of the kernels.
      weights: of the kernels, >= 0; they need not sum to 1.
      std: of every kernel, > 0.
    """
    total = jnp.sum(weights)

    def one(task: Float[Array, " dim"]) -> Float[Array, ""]:
        squared = jnp.sum(((task - centres) / std) ** 2, axis=1)
        return jax.nn.logsumexp(-0.5 * squared, b=weights)

    constant = tasks.shape[1] / 2 * math.log(2 * math.pi) + jnp.sum(jnp.log(std))
    mixture = jax.lax.map(one, tasks) - jnp.log(jnp.where(total > 0, total, 1)) - constant
    return jnp.where(total > 0, mixture, -jnp.inf)
