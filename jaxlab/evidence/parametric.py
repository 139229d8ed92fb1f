"""Evidence in parameter space: determinants of H + P0, H = sum_n J_n^T Lambda_n J_n, and of parts of H.

Zeros in place of off-diagonal blocks make H + P0's determinant larger (Fischer's inequality), so that the values fall
from "full" to "layer" to "tensor" to "diag", each a lower bound of the one before. "kron" approximates "tensor".
Reference: arXiv:2306.03968, theorems 1 and 3; K-FAC, arXiv:1503.05671, over positions as in arXiv:2311.00636.
"""

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply, Use, find_uses
from jaxlab.evidence.checks import require_choice, require_number
from jaxlab.evidence.curvature import Structure, blocks_of, kron_eigenvalues, require_room, summed_curvatures
from jaxlab.evidence.likelihoods import Likelihood, log_likelihood, output_factor
from jaxlab.evidence.priors import for_leaves, prior_quadratic


class ParametricEvidence(NamedTuple):
    """Terms of the evidence."""

    loglik: Float[Array, ""]
    """Log-likelihood, times the scale."""
    quad: Float[Array, ""]
    """theta^T P0 theta."""
    logdet: Float[Array, ""]
    """log |H + P0| - log |P0| of the structure, times the scale."""
    value: Float[Array, ""]
    """loglik - quad / 2 - logdet / 2, nats."""


def parametric_evidence(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    log_delta: PyTree,
    *,
    likelihood: Likelihood,
    structure: Structure = "full",
    log_sigma: float | Float[Array, ""] = 0.0,
    scale: float = 1.0,
    batch: int | None = None,
) -> ParametricEvidence:
    """The evidence with the curvature of all examples given, or the bound with a structure in it.

    Args:
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: n examples.
      targets: labels or values, see `log_likelihood`.
      log_delta: prefix of `params`; numbers, or arrays of a leaf's shape (with "kron" only at leaves that are not the
        matrix of a single operation).
      likelihood: "softmax" or "gaussian".
      structure: "full"; "layer", a block for all leaves whose paths differ in the last name alone (a weight and its
        bias); "tensor", a block for each leaf; "kron", Kronecker factors for matrices, convolutions and tables, blocks
        for other leaves; "diag".
      log_sigma: log of the observation noise of a Gaussian likelihood.
      scale: N / n where the examples are a block of N, > 0 (theorem 3). Not used within the determinant.
      batch: examples whose Jacobians exist at the same time, 1 to n; None is all.

    Raises:
      InputError: a shape, a label or an option is wrong, or a block would not fit into memory.
    """
    require_choice("structure", structure, get_args(Structure))
    require_number("scale", scale, above=0)
    outputs = apply(params, inputs)
    noise = log_sigma if likelihood == "gaussian" else 0.0
    loglik = scale * jnp.sum(log_likelihood(outputs, targets, likelihood=likelihood, log_sigma=noise))
    factors = output_factor(outputs, likelihood=likelihood, rotation="closed")
    blocks = blocks_of(params, structure)
    uses: list[Use | None] = [None] * len(jax.tree.leaves(params))
    if structure == "kron":
        uses = find_uses(apply, params, inputs)
    require_room(params, blocks, uses, structure)
    sums = summed_curvatures(apply, params, inputs, factors, blocks, uses, structure, batch=batch)
    spread = for_leaves(log_delta, params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    logdet = jnp.zeros((), outputs.dtype)
    for block, curvature in zip(blocks, sums, strict=True):
        use = uses[block[0]]
        # 1 / (delta sigma^2) of every parameter, or of all of them.
        inverse = [jnp.exp(-spread[leaf] - 2 * noise) for leaf in block]
        if use is not None:
            if inverse[0].ndim:
                raise InputError(
                    "log_delta has a number for each entry of a matrix; 'kron' needs one for all of it"
                )
            logdet += jnp.sum(jnp.log1p(kron_eigenvalues(curvature) * inverse[0]))
            continue
        flat = [jnp.broadcast_to(v, shapes[leaf]).ravel() for v, leaf in zip(inverse, block, strict=True)]
        weights = jnp.concatenate(flat)
        if structure == "diag":
            logdet += jnp.sum(jnp.log1p(curvature * weights))
        else:
            root = jnp.sqrt(weights)
            lower = jnp.linalg.cholesky(
                jnp.eye(len(root), dtype=curvature.dtype) + root[:, None] * curvature * root
            )
            logdet += 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    logdet, quad = scale * logdet, prior_quadratic(log_delta, params)
    return ParametricEvidence(loglik, quad, logdet, loglik - quad / 2 - logdet / 2)
