"""Gaussian priors N(0, 1 / delta): a pytree of log delta that is a prefix of the parameters.

A leaf of log delta is one number for all that stands below it (a scalar for the whole model, or for a layer, or for a
tensor), or has the shape of the one tensor it stands for. Reference: arXiv:2306.03968.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxlab.errors import InputError

LOG_LIMIT = 12.0
"""Precisions are kept in exp(-12)..exp(12)."""


def log_precisions(
    params: PyTree, *, init: float = 1.0, layout: str = "tensor", dtype: Any = jnp.float32
) -> PyTree:
    """log delta to begin with.

    Args:
      params: the model's parameters.
      init: delta, > 0.
      layout: "scalar" for one number, "tensor" for one a leaf, "element" for one a parameter.
      dtype: floating point.

    Raises:
      InputError: `init` is not positive, the layout is unknown, or there are no parameters.
    """
    if not (init > 0 and math.isfinite(init)):
        raise InputError(f"init is {init}; a prior precision must be a positive number")
    if not jax.tree.leaves(params):
        raise InputError("params has no leaves; it must hold the parameters of a model")
    start = jnp.asarray(math.log(init), dtype)
    if layout == "scalar":
        return start
    if layout == "tensor":
        return jax.tree.map(lambda leaf: start, params)
    if layout == "element":
        return jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), start), params)
    raise InputError(f"layout is {layout!r}; it must be 'scalar', 'tensor' or 'element'")


def for_leaves(log_delta: PyTree, params: PyTree, *, scalars: bool = False) -> list[Array]:
    """log delta of every leaf of the parameters, in their order: a scalar, or an array of the leaf's shape.

    Args:
      log_delta: prefix of `params`.
      params: the model's parameters.
      scalars: refuse arrays of a leaf's shape.

    Raises:
      InputError: not a prefix, or a shape fits neither way.
    """
    try:
        spread = jax.tree.leaves(
            jax.tree.map(lambda d, below: jax.tree.map(lambda _: d, below), log_delta, params)
        )
    except ValueError as error:
        raise InputError(f"log_delta is no prefix of params: {error}") from error
    spread = [jnp.asarray(one) for one in spread]
    for (path, leaf), one in zip(jax.tree.leaves_with_path(params), spread, strict=True):
        if one.ndim and (scalars or one.shape != jnp.shape(leaf)):
            raise InputError(
                f"log_delta has shape {one.shape} for params{jax.tree_util.keystr(path)}; it must be a number"
                + ("" if scalars else f", or have the shape {jnp.shape(leaf)}")
            )
    return spread


def square_sums(params: PyTree) -> PyTree:
    """|theta_l|^2 of every leaf, in the structure of the parameters."""
    return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), params)


def within_prior(log_delta: PyTree, leaves: PyTree) -> PyTree:
    """Sums of one number a leaf over what each number of log delta stands for.

    Args:
      log_delta: prefix of the parameters, numbers alone.
      leaves: a number for each leaf, in the structure of the parameters.
    """
    return jax.tree.map(lambda _, below: jnp.sum(jnp.stack(jax.tree.leaves(below))), log_delta, leaves)


def weight_decay(log_delta: PyTree, params: PyTree, *, examples: int) -> PyTree:
    """delta / N for every leaf: the factor of theta in the gradient of the mean loss over N examples.

    Args:
      log_delta: prefix of `params`.
      params: the model's parameters.
      examples: N >= 1.

    Raises:
      InputError: `examples` below 1, or as `for_leaves`.
    """
    if examples < 1:
        raise InputError(f"examples is {examples}; it must be at least 1")
    decay = [jnp.exp(one) / examples for one in for_leaves(log_delta, params)]
    return jax.tree.unflatten(jax.tree.structure(params), decay)


def add_weight_decay(log_delta: PyTree, *, examples: int) -> optax.GradientTransformation:
    """`weight_decay` as a link of an optax chain: adds delta_l / N times theta_l to the update of every leaf.

    Before a rule like Adam it is the prior in the loss; between the rule and the learning rate it is AdamW's decay.

    Args:
      log_delta: prefix of the parameters.
      examples: N >= 1.

    Raises:
      InputError: as `weight_decay`, at the first update.
    """

    def update(updates: PyTree, params: PyTree | None = None) -> PyTree:
        if params is None:
            raise InputError("params is None; weight decay needs them, call update(updates, state, params)")
        decay = weight_decay(log_delta, params, examples=examples)
        return jax.tree.map(lambda u, d, leaf: u + d.astype(u.dtype) * leaf, updates, decay, params)

    return optax.stateless(update)


def whitened(
    apply: Callable[[PyTree, PyTree], Array], params: PyTree, log_delta: PyTree
) -> tuple[Callable[[PyTree, PyTree], Array], PyTree]:
    """The same model in parameters phi = sqrt(delta) theta, whose prior has unit precision.

    So precisions of single entries, which no cached Gram matrix can serve, reach function space: `gram_leaves` and
    `square_sums` of what this returns, with log delta = 0, give the evidence, differentiable in `log_delta`.

    Args:
      apply: the model.
      params: its parameters theta.
      log_delta: prefix of `params`; numbers, or arrays of a leaf's shape.

    Returns:
      The model of phi, and phi.

    Raises:
      InputError: as `for_leaves`.
    """
    roots = jax.tree.unflatten(
        jax.tree.structure(params), [jnp.exp(one / 2) for one in for_leaves(log_delta, params)]
    )

    def of_phi(phi: PyTree, inputs: PyTree) -> Array:
        return apply(jax.tree.map(jnp.divide, phi, roots), inputs)

    return of_phi, jax.tree.map(jnp.multiply, params, roots)


def prior_quadratic(log_delta: PyTree, params: PyTree) -> Float[Array, ""]:
    """theta^T P0 theta."""
    spread = for_leaves(log_delta, params)
    terms = [
        jnp.sum(jnp.exp(one) * jnp.square(leaf))
        for one, leaf in zip(spread, jax.tree.leaves(params), strict=True)
    ]
    return jnp.sum(jnp.stack(terms))
