"""Likelihoods, the Hessian Lambda of -log p with respect to the outputs, and factors L with L L^T = Lambda.

L is free up to a rotation of its columns. Joint determinants do not see it; bounds that part the columns do.
Reference: arXiv:2306.03968.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.evidence.checks import require_choice, require_labels, require_outputs

Likelihood = Literal["softmax", "gaussian"]
Rotation = Literal["symmetric", "eigenbasis", "cholesky", "closed"]
OutputRows = Literal["factor", "diag"]


def log_likelihood(
    outputs: Float[Array, "n C"],
    targets: Int[Array, " n"] | Float[Array, "n C"],
    *,
    likelihood: Likelihood,
    log_sigma: float | Float[Array, ""] = 0.0,
) -> Float[Array, " n"]:
    """log p(y | f) of every example.

    Args:
      outputs: logits, or means.
      targets: labels in 0..C-1 with "softmax" (checked where they are concrete), values with "gaussian".
      likelihood: "softmax" or "gaussian".
      log_sigma: log of the standard deviation of the observation noise; "softmax" has none.

    Raises:
      InputError: a shape, a label or the likelihood is wrong.
    """
    require_choice("likelihood", likelihood, get_args(Likelihood))
    require_outputs("outputs", outputs)
    if likelihood == "softmax":
        require_labels(targets, outputs)
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), jnp.asarray(targets)[:, None], axis=1)[:, 0]
    if jnp.shape(targets) != jnp.shape(outputs):
        raise InputError(
            f"targets has shape {jnp.shape(targets)}; it must be that of outputs, {outputs.shape}"
        )
    squares = jnp.sum(jnp.square(targets - outputs), axis=1)
    normaliser = outputs.shape[1] * (math.log(2 * math.pi) / 2 + log_sigma)
    return -squares * jnp.exp(-2 * jnp.asarray(log_sigma, outputs.dtype)) / 2 - normaliser


def output_hessian(outputs: Float[Array, "n C"], *, likelihood: Likelihood) -> Float[Array, "n C C"]:
    """Lambda: diag(p) - p p^T with "softmax", the identity with "gaussian".

    The Gaussian one is that of unit noise: what is made of it is divided by sigma^2 later, so that it outlives a change
    of sigma.

    Raises:
      InputError: a shape or the likelihood is wrong.
    """
    require_choice("likelihood", likelihood, get_args(Likelihood))
    require_outputs("outputs", outputs)
    n, classes = outputs.shape
    eye = jnp.eye(classes, dtype=outputs.dtype)
    if likelihood == "gaussian":
        return jnp.broadcast_to(eye, (n, classes, classes))
    p = jax.nn.softmax(outputs)
    return p[:, :, None] * (eye - p[:, None, :])


def output_factor(
    outputs: Float[Array, "n C"],
    *,
    likelihood: Likelihood,
    output_rows: OutputRows = "factor",
    rotation: Rotation = "symmetric",
) -> Float[Array, "n C R"]:
    """L with L L^T = Lambda of `output_hessian`, a column for each row of the Jacobian that counts.

    With "softmax" and p the probabilities, L = (diag(sqrt p) - p sqrt(p)^T) V. V is orthogonal and held constant under
    differentiation, so that L L^T = Lambda holds to all orders and a gradient is that of a valid bound.

    Args:
      outputs: logits, or means.
      likelihood: "softmax" or "gaussian"; with the latter L is the identity under all options.
      output_rows: "factor", or the published code's rule "diag", L = diag(sqrt(p - p^2)). L L^T is then the diagonal
        of Lambda, and determinants of single classes are not bounds.
      rotation: picks V. "symmetric" makes L the symmetric root, "eigenbasis" orthogonal columns (R = C - 1, the one
        that is zero is left out), "cholesky" a lower triangle, "closed" takes V = 1.

    Raises:
      InputError: a shape or an option is wrong.
    """
    require_choice("output_rows", output_rows, get_args(OutputRows))
    require_choice("rotation", rotation, get_args(Rotation))
    if likelihood != "softmax":
        return output_hessian(outputs, likelihood=likelihood)
    require_outputs("outputs", outputs)
    log_p = jax.nn.log_softmax(outputs)
    eye = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    if output_rows == "diag":
        # log (1 - p) from the other classes: no cancellation, and no infinite derivative, at p near 1.
        log_others = jax.nn.logsumexp(jnp.where(eye > 0, -jnp.inf, log_p[:, None, :]), axis=2)
        return jnp.exp((log_p + log_others) / 2)[:, :, None] * eye
    p, root = jnp.exp(log_p), jnp.exp(log_p / 2)
    closed = root[:, :, None] * eye - p[:, :, None] * root[:, None, :]
    if rotation == "closed":
        return closed
    constant = jax.lax.stop_gradient(closed)
    if rotation == "cholesky":
        return closed @ jnp.linalg.qr(jnp.swapaxes(constant, 1, 2))[0]
    left, _, right = jnp.linalg.svd(constant)  # singular values descend
    if rotation == "symmetric":
        return closed @ jnp.swapaxes(left @ right, 1, 2)
    return closed @ jnp.swapaxes(right[:, :-1], 1, 2)
