"""Evidence in function space: determinants of I + K, K = sum_l G_l / (delta_l sigma^2), from cached Gram matrices.

Reference: arXiv:2306.03968; MacKay's fixed point, "Bayesian interpolation", 1992.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlab.evidence.checks import require_number
from jaxlab.evidence.priors import LOG_LIMIT, for_leaves, within_prior


class Evidence(NamedTuple):
    """Terms of the evidence, and what they say about the prior."""

    loglik: Float[Array, ""]
    """Log-likelihood of all data."""
    quad: Float[Array, ""]
    """theta^T P0 theta."""
    logdet: Float[Array, ""]
    """log |H + P0| - log |P0|, or what bounds it or stands for it."""
    value: Float[Array, ""]
    """loglik - quad / 2 - logdet / 2, nats."""
    gamma: PyTree
    """Effective number of parameters behind each number of log delta."""


def log_evidence(
    grams: PyTree,
    log_delta: PyTree,
    loglik: Float[Array, ""],
    square_sums: PyTree,
    *,
    log_sigma: float | Float[Array, ""] = 0.0,
    scale: float | Float[Array, ""] = 1.0,
) -> Evidence:
    """log p(D | theta) - theta^T P0 theta / 2 - sum_b log |I + K_b| / 2, differentiable in all that is real.

    With one joint block of all data this is the linearised Laplace evidence; with more it is a lower bound (Fischer's
    inequality). Eigenvalues of I + K are at least 1.

    Args:
      grams: of `gram_leaves` or `block_grams`, [blocks, rows, rows] a leaf.
      log_delta: prefix of the parameters, one number for what stands below it.
      loglik: log-likelihood of the data.
      square_sums: |theta_l|^2, see `square_sums`.
      log_sigma: log of the observation noise of a Gaussian likelihood (its factor has unit noise); 0 for others.
      scale: > 0, factor of the log-determinants: N / M for a block of M of N examples, times the rows where one of them
        stands for all.

    Raises:
      InputError: `log_delta` is no prefix, or holds more than numbers.
    """
    spread = for_leaves(log_delta, grams, scalars=True)
    leaves, treedef = jax.tree.flatten(grams)
    weights = [jnp.exp(-one - 2 * log_sigma).astype(leaves[0].dtype) for one in spread]
    kernel = sum((w * G for w, G in zip(weights[1:], leaves[1:], strict=True)), weights[0] * leaves[0])
    eye = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    lower = jnp.linalg.cholesky(eye + kernel, symmetrize_input=False)
    logdet = 2 * scale * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)))
    inverse = _inverse(lower, eye)
    gamma = [scale * w * jnp.sum(inverse * G) for w, G in zip(weights, leaves, strict=True)]
    return _evidence(loglik, logdet, jax.tree.unflatten(treedef, gamma), log_delta, spread, square_sums)


def spectral_evidence(
    spectra: PyTree,
    log_delta: PyTree,
    loglik: Float[Array, ""],
    square_sums: PyTree,
    *,
    log_sigma: float | Float[Array, ""] = 0.0,
    scale: float | Float[Array, ""] = 1.0,
) -> Evidence:
    """As `log_evidence`, from eigenvalues of the leaves' blocks of the curvature in place of Gram matrices.

    Args:
      spectra: of `curvature_spectra`.
      log_delta: see `log_evidence`.
      loglik: see `log_evidence`.
      square_sums: see `log_evidence`.
      log_sigma: see `log_evidence`.
      scale: see `log_evidence`.

    Raises:
      InputError: as `log_evidence`.

    Reference: arXiv:2306.03968, theorems 1 and 3.
    """
    spread = for_leaves(log_delta, spectra, scalars=True)
    leaves, treedef = jax.tree.flatten(spectra)
    scaled = [
        jnp.exp(-one - 2 * log_sigma).astype(v.dtype) * v for one, v in zip(spread, leaves, strict=True)
    ]
    logdet = scale * jnp.sum(jnp.stack([jnp.sum(jnp.log1p(v)) for v in scaled]))
    gamma = [scale * jnp.sum(v / (1 + v)) for v in scaled]
    return _evidence(loglik, logdet, jax.tree.unflatten(treedef, gamma), log_delta, spread, square_sums)


def prior_gradient(log_delta: PyTree, square_sums: PyTree, gamma: PyTree) -> PyTree:
    """Gradient of the evidence in log delta: (gamma_l - delta_l |theta_l|^2) / 2.

    Args:
      log_delta: as in `log_evidence`.
      square_sums: as in `log_evidence`.
      gamma: of `Evidence`, at this `log_delta`.

    Reference: arXiv:2306.03968.
    """
    pooled = within_prior(log_delta, square_sums)
    return jax.tree.map(lambda d, s, g: (g - jnp.exp(d) * s) / 2, log_delta, pooled, gamma)


def mackay_update(log_delta: PyTree, square_sums: PyTree, gamma: PyTree, *, damping: float = 0.5) -> PyTree:
    """delta_l <- gamma_l / |theta_l|^2, averaged in log space with delta_l; precisions stay in exp(-12)..exp(12).

    The evidence's stationary points are its fixed points. Undamped it may oscillate, above all at biases.

    Args:
      log_delta: as in `log_evidence`.
      square_sums: as in `log_evidence`.
      gamma: of `Evidence`, at this `log_delta`.
      damping: share of the old value, 0 to below 1.

    Raises:
      InputError: damping out of range.
    """
    require_number("damping", damping, at_least=0, below=1)

    def moved(old: Array, squares: Array, effective: Array) -> Array:
        tiny = jnp.finfo(squares.dtype).tiny
        new = jnp.log(jnp.maximum(effective, tiny)) - jnp.log(jnp.maximum(squares, tiny))
        return jnp.clip(damping * old + (1 - damping) * new, -LOG_LIMIT, LOG_LIMIT)

    return jax.tree.map(moved, log_delta, within_prior(log_delta, square_sums), gamma)


def _evidence(
    loglik: Array, logdet: Array, gamma: PyTree, log_delta: PyTree, spread: list[Array], square_sums: PyTree
) -> Evidence:
    sums = [jnp.exp(d) * s for d, s in zip(spread, jax.tree.leaves(square_sums), strict=True)]
    quad = jnp.sum(jnp.stack(sums))
    value = loglik - quad / 2 - logdet / 2
    return Evidence(loglik, quad, logdet, value, within_prior(log_delta, gamma))


def _inverse(lower: Array, eye: Array) -> Any:
    """(L L^T)^-1."""
    half = jax.lax.linalg.triangular_solve(
        lower, jnp.broadcast_to(eye, lower.shape), left_side=True, lower=True
    )
    return jnp.einsum("...ki,...kj->...ij", half, half, precision="highest")
