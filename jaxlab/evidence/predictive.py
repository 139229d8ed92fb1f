"""Predictions of the linearised model under the posterior, from the Gram matrices that the evidence is made of.

f(x) ~ N(f*, J* Sigma J*^T) with Sigma = (H + P0)^-1, in function space J* P0^-1 J*^T - K*n (I + K)^-1 Kn*.
Reference: Immer et al., "Improving predictions of Bayesian neural nets via local linearization", arXiv:2008.08400;
MacKay, "The evidence framework applied to classification networks", 1992.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlab.evidence.captures import Apply
from jaxlab.evidence.checks import require_choice
from jaxlab.evidence.gram import Method, gram_leaves
from jaxlab.evidence.likelihoods import Likelihood, output_factor
from jaxlab.evidence.priors import for_leaves
from jaxlab.evidence.stochastic import Hyper


class Predictive(NamedTuple):
    """Of q queries."""

    outputs: Float[Array, "q C"]
    """Those of the network: means of the linearised model."""
    covariance: Float[Array, "q C C"]
    """Of each query's outputs under the posterior, without observation noise."""
    probabilities: Float[Array, "q C"]
    """With "softmax" those of the classes, by the probit approximation softmax(f / sqrt(1 + pi / 8 var f)); with
    "gaussian" variances of the observations, posterior and noise."""


def linearised_predictive(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    queries: PyTree,
    hyper: Hyper,
    *,
    likelihood: Likelihood,
    method: Method = "structured",
) -> Predictive:
    """What the posterior, given a block of data, says about other inputs.

    A block in place of all data leaves the posterior wider than it is. Memory is (n + q)^2 C^2 numbers a leaf.

    Args:
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: n examples that the posterior has seen.
      queries: q inputs to predict.
      hyper: prior and noise.
      likelihood: "softmax" or "gaussian".
      method: see `gram_leaves`.

    Raises:
      InputError: another likelihood, or as `gram_leaves`.

    Reference: arXiv:2008.08400, sections 3 and 4; MacKay, 1992, for the probit approximation.
    """
    require_choice("likelihood", likelihood, ("softmax", "gaussian"))
    outputs = apply(params, queries)
    seen = output_factor(apply(params, inputs), likelihood=likelihood, rotation="closed")
    (n, C, _), q = seen.shape, len(outputs)
    sigma: Any = jnp.exp(hyper.log_sigma) if likelihood == "gaussian" else 1.0
    eye = jnp.broadcast_to(jnp.eye(C, dtype=seen.dtype), (q, C, C))
    both = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a), jnp.asarray(b)]), inputs, queries)
    grams = gram_leaves(apply, params, both, jnp.concatenate([seen / sigma, eye]), method=method)
    spread = for_leaves(hyper.log_delta, grams, scalars=True)
    weighted = [jnp.exp(-one) * G[0] for one, G in zip(spread, jax.tree.leaves(grams), strict=True)]
    kernel = sum(weighted[1:], weighted[0])
    ours, cross, prior = kernel[: n * C, : n * C], kernel[: n * C, n * C :], kernel[n * C :, n * C :]
    lower = jnp.linalg.cholesky(jnp.eye(n * C, dtype=kernel.dtype) + ours)
    half = jax.scipy.linalg.solve_triangular(lower, cross, lower=True).reshape(n * C, q, C)
    own = jnp.moveaxis(jnp.diagonal(prior.reshape(q, C, q, C), axis1=0, axis2=2), -1, 0)
    covariance = own - jnp.einsum("kqc,kqd->qcd", half, half, precision="highest")
    variances = jnp.maximum(jnp.diagonal(covariance, axis1=1, axis2=2), 0)
    if likelihood == "gaussian":
        return Predictive(outputs, covariance, variances + sigma**2)
    return Predictive(outputs, covariance, jax.nn.softmax(outputs / jnp.sqrt(1 + math.pi / 8 * variances)))
