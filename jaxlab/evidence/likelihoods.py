"""Likelihoods, the Hessian Lambda of -log p with respect to the outputs, and factors L with L L^T = Lambda.

L is free up to a rotation of its columns. Joint determinants do not see it; bounds that part the columns do.
"heteroscedastic" is the Gaussian whose noise the model gives too, outputs (eta1, eta2) its natural parameters: mean
-eta1 / (2 eta2), variance -1 / (2 eta2). Reference: arXiv:2306.03968; Immer et al., "Effective Bayesian
heteroscedastic regression with deep neural networks", 2023.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.evidence.checks import require_choice, require_labels, require_natural, require_outputs

Likelihood = Literal["softmax", "gaussian", "heteroscedastic"]
Rotation = Literal["symmetric", "eigenbasis", "cholesky", "closed"]
OutputRows = Literal["factor", "diag", "empirical"]


def log_likelihood(
    outputs: Float[Array, "n C"],
    targets: Int[Array, " n"] | Float[Array, "n C"],
    *,
    likelihood: Likelihood,
    log_sigma: float | Float[Array, ""] = 0.0,
) -> Float[Array, " n"]:
    """log p(y | f) of every example.

    Args:
      outputs: logits, means, or natural parameters [n, 2] with eta2 < 0 (see `natural_parameters`).
      targets: labels in 0..C-1 with "softmax" (checked where they are concrete), values of the outputs' shape with
        "gaussian", values [n, 1] with "heteroscedastic".
      likelihood: "softmax", "gaussian" or "heteroscedastic".
      log_sigma: log of the standard deviation of the observation noise; "gaussian" alone has it.

    Raises:
      InputError: a shape, a label or the likelihood is wrong.
    """
    require_choice("likelihood", likelihood, get_args(Likelihood))
    require_outputs("outputs", outputs)
    if likelihood == "softmax":
        require_labels(targets, outputs)
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), jnp.asarray(targets)[:, None], axis=1)[:, 0]
    wanted = (len(outputs), 1) if likelihood == "heteroscedastic" else outputs.shape
    if jnp.shape(targets) != wanted:
        raise InputError(f"targets has shape {jnp.shape(targets)}; with {likelihood!r} it must be {wanted}")
    if likelihood == "heteroscedastic":
        require_natural(outputs)
        eta1, eta2, y = outputs[:, 0], outputs[:, 1], jnp.asarray(targets)[:, 0]
        # The squared distance from the mean: eta1 y + eta2 y^2 + eta1^2 / (4 eta2) would cancel.
        return eta2 * jnp.square(y + eta1 / (2 * eta2)) + jnp.log(-eta2 / math.pi) / 2
    squares = jnp.sum(jnp.square(targets - outputs), axis=1)
    normaliser = outputs.shape[1] * (math.log(2 * math.pi) / 2 + log_sigma)
    return -squares * jnp.exp(-2 * jnp.asarray(log_sigma, outputs.dtype)) / 2 - normaliser


def output_hessian(outputs: Float[Array, "n C"], *, likelihood: Likelihood) -> Float[Array, "n C C"]:
    """Lambda: diag(p) - p p^T with "softmax", the identity with "gaussian", the log-normaliser's otherwise.

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
    if likelihood == "heteroscedastic":
        factor = _heteroscedastic_factor(outputs)
        return factor @ jnp.swapaxes(factor, 1, 2)
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
      outputs: see `log_likelihood`.
      likelihood: see `log_likelihood`; with "gaussian" L is the identity under all options.
      output_rows: "factor", or the published code's rule "diag", L = diag(sqrt(Lambda_cc)). L L^T is then the diagonal
        of Lambda, and determinants of single classes are not bounds. For "empirical" see `score_factor`.
      rotation: picks V. "symmetric" makes L the symmetric root, "eigenbasis" orthogonal columns (R = C - 1, the one
        that is zero is left out), "cholesky" a lower triangle, "closed" takes V = 1.

    Raises:
      InputError: a shape or an option is wrong.
    """
    require_choice("output_rows", output_rows, ("factor", "diag"))
    require_choice("rotation", rotation, get_args(Rotation))
    if likelihood == "gaussian":
        return output_hessian(outputs, likelihood=likelihood)
    require_choice("likelihood", likelihood, get_args(Likelihood))
    require_outputs("outputs", outputs)
    if likelihood == "heteroscedastic":
        closed = _heteroscedastic_factor(outputs)
        if output_rows == "diag":
            return jnp.linalg.norm(closed, axis=2)[:, :, None] * jnp.eye(2, dtype=outputs.dtype)
        return _rotated(closed, rotation, rank=2)
    log_p = jax.nn.log_softmax(outputs)
    eye = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    if output_rows == "diag":
        # log (1 - p) from the other classes: no cancellation, and no infinite derivative, at p near 1.
        log_others = jax.nn.logsumexp(jnp.where(eye > 0, -jnp.inf, log_p[:, None, :]), axis=2)
        return jnp.exp((log_p + log_others) / 2)[:, :, None] * eye
    p, root = jnp.exp(log_p), jnp.exp(log_p / 2)
    closed = root[:, :, None] * eye - p[:, :, None] * root[:, None, :]
    return _rotated(closed, rotation, rank=outputs.shape[1] - 1)


def score_factor(
    outputs: Float[Array, "n C"],
    targets: Int[Array, " n"] | Float[Array, "n K"],
    *,
    likelihood: Likelihood,
) -> Float[Array, "n C 1"]:
    """d log p(y | f) / df, the one column that gives the empirical Fisher matrix in place of H.

    K_nm = g_n^T P0^-1 g_m with g the gradients of single log-likelihoods: one backward pass, whatever C. It is no GGN,
    vanishes where the data are fitted, and gives no bound of the evidence.

    Args:
      outputs: see `log_likelihood`.
      targets: see `log_likelihood`.
      likelihood: see `log_likelihood`; the Gaussian one at unit noise, so that g is 1 / sigma^2 times this.

    Raises:
      InputError: as `log_likelihood`.

    Reference: arXiv:2306.03968; Kunstner et al., arXiv:1905.12558, on how the two differ.
    """

    def total(outputs: Array) -> Array:
        return jnp.sum(log_likelihood(outputs, targets, likelihood=likelihood))

    return jax.grad(total)(outputs)[:, :, None]


def natural_parameters(raw: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """Outputs for "heteroscedastic" from ones without limits: eta1 as it is, eta2 = -softplus / 2, below 0.

    Args:
      raw: of a network; (0, 0.54) is a mean of 0 and a variance of 1.

    Raises:
      InputError: not two outputs.
    """
    if jnp.ndim(raw) != 2 or raw.shape[1] != 2:
        raise InputError(f"raw has shape {jnp.shape(raw)}; it must be [examples, 2]")
    return jnp.stack([raw[:, 0], -jax.nn.softplus(raw[:, 1]) / 2], axis=1)


def _heteroscedastic_factor(outputs: Float[Array, "n 2"]) -> Float[Array, "n 2 2"]:
    """Cholesky factor of [[-1 / (2 eta2), eta1 / (2 eta2^2)], [., 1 / (2 eta2^2) - eta1^2 / (2 eta2^3)]]."""
    require_natural(outputs)
    mean, variance = -outputs[:, 0] / (2 * outputs[:, 1]), -1 / (2 * outputs[:, 1])
    deviation = jnp.sqrt(variance)
    zero = jnp.zeros_like(mean)
    rows = [jnp.stack([deviation, zero], 1), jnp.stack([2 * mean * deviation, math.sqrt(2) * variance], 1)]
    return jnp.stack(rows, axis=1)


def _rotated(closed: Float[Array, "n C C"], rotation: Rotation, *, rank: int) -> Float[Array, "n C R"]:
    if rotation == "closed":
        return closed
    constant = jax.lax.stop_gradient(closed)
    if rotation == "cholesky":
        return closed @ jnp.linalg.qr(jnp.swapaxes(constant, 1, 2))[0]
    left, _, right = jnp.linalg.svd(constant)  # singular values descend
    if rotation == "symmetric":
        return closed @ jnp.swapaxes(left @ right, 1, 2)
    return closed @ jnp.swapaxes(right[:, :rank], 1, 2)
