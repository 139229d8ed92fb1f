"""The Fubini-Study metric of a parametrized state: how far the state moves when parameters do.

g_ij = Re <d_i psi | d_j psi> - Re(<d_i psi | psi> <psi | d_j psi>), a quarter of the quantum Fisher information.
Reference: Stokes, Izaac, Killoran and Carleo, Quantum 4 (2020) 269.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float, Int

from jaxlab.errors import InputError

Approximation = Literal["block-diag", "diag"] | None
StateFunction = Callable[[Any], Complex[Array, " 2^n"]]
"""From parameters (pytree of real arrays) to a state; forward differentiable: `simulate(..., diff="backprop")`."""


def metric_tensor(
    state_fn: StateFunction, params: Any, *, approx: Approximation = None, layers: Sequence[int] | None = None
) -> Float[Array, "P P"]:
    """The metric at the raveled parameters, from as many directional derivatives as there are parameters.

    Args:
      state_fn: see `StateFunction`.
      params: pytree of real arrays, P entries.
      approx: None for all entries; "block-diag" keeps those between parameters of one layer, "diag" the diagonal.
      layers: for "block-diag" the layer of each raveled parameter; None takes the leading axis of each array as its
        layers.

    Raises:
      InputError: an unknown `approx`, or `layers` has another length than P.
    """
    if approx not in (None, "block-diag", "diag"):
        raise InputError(f"approx is {approx!r}; it must be None, 'block-diag' or 'diag'")
    flat, unravel = ravel_pytree(params)
    psi, push = jax.linearize(lambda x: state_fn(unravel(x)), flat)
    slopes = jax.vmap(push)(jnp.eye(flat.shape[0], dtype=flat.dtype))
    overlaps = jnp.matmul(slopes, psi.conj(), precision="highest")
    if approx == "diag":
        return jnp.diag(jnp.sum(jnp.abs(slopes) ** 2, axis=1) - jnp.abs(overlaps) ** 2)
    full = jnp.matmul(slopes.conj(), slopes.T, precision="highest") - jnp.outer(overlaps.conj(), overlaps)
    metric = jnp.real(full)
    if approx is None:
        return metric
    of = np.asarray(layers_of(params) if layers is None else layers)
    if of.shape != flat.shape:
        raise InputError(f"layers has shape {of.shape}; there are {flat.shape[0]} parameters")
    return jnp.where(of[:, None] == of[None, :], metric, 0)


def layers_of(params: Any) -> Int[np.ndarray, " P"]:
    """Of each raveled parameter a number for its array and its place along that array's leading axis."""
    found, start = [], 0
    for leaf in jax.tree.leaves(params):
        shape = jnp.shape(leaf)
        count = shape[0] if shape else 1
        found.append(np.repeat(start + np.arange(count), int(np.prod(shape[1:], dtype=int))))
        start += count
    return np.concatenate(found)


def metric_vector_product(state_fn: StateFunction, params: Any, vector: Any) -> Any:
    """g v without g, by one forward and one reverse derivative; for conjugate gradients with many parameters.

    Args:
      state_fn: see `StateFunction`.
      params: pytree of real arrays.
      vector: pytree like `params`.
    """

    def planes(x: Any) -> tuple[Array, Array]:
        psi = state_fn(x)
        return psi.real, psi.imag

    (re, im), (slope_re, slope_im) = jax.jvp(planes, (params,), (vector,))
    psi, slope = jax.lax.complex(re, im), jax.lax.complex(slope_re, slope_im)
    across = slope - psi * jnp.vdot(psi, slope)
    _, pull = jax.vjp(planes, params)
    return pull((across.real, across.imag))[0]


def quantum_fisher(state_fn: StateFunction, params: Any) -> Float[Array, "P P"]:
    """The quantum Fisher information of a pure state: four times the metric."""
    return 4 * metric_tensor(state_fn, params)


def classical_fisher(probs_fn: Callable[[Any], Float[Array, " K"]], params: Any) -> Float[Array, "P P"]:
    """sum_k d_i p_k d_j p_k / p_k of measured probabilities; outcomes of probability 0 are left out.

    Args:
      probs_fn: from parameters to probabilities.
      params: pytree of real arrays, P entries.
    """
    flat, unravel = ravel_pytree(params)
    p = probs_fn(params)
    slopes = jax.jacrev(lambda x: probs_fn(unravel(x)))(flat)
    weights = jnp.where(p > 0, 1 / jnp.where(p > 0, p, 1), 0)
    return jnp.matmul(slopes.T * weights, slopes, precision="highest")
