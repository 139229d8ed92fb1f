"""Gaussians over tasks that move by bounded steps: KL divergence, Fisher products, natural gradients.

A Gaussian N(mean, L L^T) is one vector, its weights: the mean, the logarithms of the diagonal of L, and the entries of
L below the diagonal, row by row. References: Klink et al., arXiv:2004.11812 (the natural-gradient step of SPDL, which
is that of TRPO, arXiv:1502.05477, appendix C) and arXiv:2102.13176 (the constrained step).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.teachers.task_mixtures import forward_substitution, gaussian_log_density

Weights = Float[Array, " weights"]

_Search = tuple[Array, Array, Array, Array, Array]
"""Of conjugate gradients: turn, solution, residual, direction, squared residual."""
_STEP_SIZES = 2.0 ** np.arange(3, -13, -1)
_ROUNDS, _STEPS_IN_ROUND = 12, 10
_PENALTY = 10.0
_INSIDE = 1e-3
"""The constrained step aims so far inside its bounds, in shares of them."""


def gaussian_weights(mean: Float[Array, " dim"], std: Float[Array, " dim"]) -> Weights:
    """Those of the Gaussian with independent coordinates."""
    d = mean.shape[0]
    return jnp.concatenate([mean, jnp.log(std), jnp.zeros(d * (d - 1) // 2)])


def dimensions_of(weights: Weights) -> int:
    """Length of a task: d (d + 3) / 2 weights belong to d dimensions."""
    return (math.isqrt(9 + 8 * weights.shape[0]) - 3) // 2


def mean_and_factor(weights: Weights) -> tuple[Float[Array, " dim"], Float[Array, "dim dim"]]:
    """The mean, and L."""
    d = dimensions_of(weights)
    rows, columns = np.tril_indices(d, -1)
    lower = jnp.diag(jnp.exp(weights[d : 2 * d])).at[rows, columns].set(weights[2 * d :])
    return weights[:d], lower


def log_density(weights: Weights, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
    """log N(task; mean, L L^T)."""
    return gaussian_log_density(tasks, *mean_and_factor(weights))


def kl_divergence(p: Weights, q: Weights) -> Float[Array, ""]:
    """KL(p || q) of two Gaussians."""
    d = dimensions_of(p)
    p_mean, p_lower = mean_and_factor(p)
    q_mean, q_lower = mean_and_factor(q)
    columns = jnp.concatenate([p_lower, (p_mean - q_mean)[:, None]], axis=1)
    whitened = forward_substitution(q_lower, columns)
    return jnp.sum(q[d : 2 * d] - p[d : 2 * d]) + 0.5 * (jnp.sum(whitened**2) - d)


def fisher_product(weights: Weights, vector: Weights) -> Weights:
    """F vector, with F the Hessian of KL(weights || .) at weights."""

    def gradient(moved: Weights) -> Weights:
        return jax.grad(kl_divergence, argnums=1)(weights, moved)

    return jax.jvp(gradient, (weights,), (vector,))[1]


def conjugate_gradient(
    product: Callable[[Weights], Weights], b: Weights, *, iterations: int = 10, residual: float = 1e-10
) -> Weights:
    """x with `product(x)` = b, after at most so many iterations or once |product(x) - b|^2 < residual.

    Args:
      product: with a symmetric positive definite matrix.
      b: right-hand side.
      iterations: at most, >= 1.
      residual: > 0.
    """

    def going_on(carry: _Search) -> Bool[Array, ""]:
        turn, _, _, _, r2 = carry
        return (turn < iterations) & (r2 >= residual)

    def step(carry: _Search) -> _Search:
        turn, x, r, p, r2 = carry
        z = product(p)
        length = r2 / jnp.dot(p, z)
        r = r - length * z
        new_r2 = jnp.dot(r, r)
        return turn + 1, x + length * p, r, r + new_r2 / r2 * p, new_r2

    start: _Search = (jnp.int32(0), jnp.zeros_like(b), b, b, jnp.dot(b, b))
    return jax.lax.while_loop(going_on, step, start)[1]


def natural_gradient_step(
    objective: Callable[[Weights], Float[Array, ""]],
    weights: Weights,
    *,
    max_kl: float,
    damping: float = 1e-2,
    iterations: int = 10,
    residual: float = 1e-10,
    tries: int = 10,
    strict: bool = False,
) -> tuple[Weights, Bool[Array, ""]]:
    """One step up the objective along the natural gradient, as long as the trust region allows.

    The step solves (F + damping) x = gradient by conjugate gradients and is scaled to
    x / sqrt(x^T (F + damping) x / 2 / max_kl). The first of the lengths 1, 1/2, 1/4, ... is taken with
    KL(old || new) <= 1.5 max_kl or an objective that did not decrease. That "or" is the reference's.

    Args:
      objective: of the weights, to be raised.
      weights: of the old Gaussian.
      max_kl: bound of the step, > 0.
      damping: added to the diagonal of F, >= 0.
      iterations: of conjugate gradients.
      residual: see `conjugate_gradient`.
      tries: lengths that are tried.
      strict: ask for both conditions instead of one.

    Returns:
      the new weights and whether a step was taken; the old ones without, also where anything is not finite.
    """

    def damped(vector: Weights) -> Weights:
        return fisher_product(weights, vector) + damping * vector

    before, gradient = jax.value_and_grad(objective)(weights)
    direction = conjugate_gradient(damped, gradient, iterations=iterations, residual=residual)
    full = direction / jnp.sqrt(0.5 * jnp.dot(direction, damped(direction)) / max_kl)
    tried = weights + 0.5 ** jnp.arange(tries)[:, None] * full
    near = jax.vmap(lambda new: kl_divergence(weights, new))(tried) <= 1.5 * max_kl
    no_worse = jax.vmap(objective)(tried) >= before
    fits = (near & no_worse) if strict else (near | no_worse)
    fits &= jnp.all(jnp.isfinite(tried), axis=1)
    taken = jnp.any(fits) & (jnp.linalg.norm(gradient) >= 1e-10)
    return jnp.where(taken, tried[jnp.argmax(fits)], weights), taken


def constrained_step(
    objective: Callable[[Weights], Float[Array, ""]],
    margin: Callable[[Weights], Float[Array, ""]],
    weights: Weights,
    *,
    max_kl: float,
    floor: Weights | None = None,
) -> tuple[Weights, Bool[Array, ""]]:
    """Minimises objective(new) with KL(weights || new) <= max_kl, margin(new) >= 0 and new >= floor.

    An augmented Lagrangian, its inner problems solved by Gauss-Newton steps in the Fisher metric whose length is the
    best of a grid. In the end the lowest point on the way from `weights` that keeps the bounds is taken, so that they
    hold whatever the solver did. The reference calls SciPy's "trust-constr" on the same problem.

    Args:
      objective: to be lowered.
      margin: >= 0 at `weights`; a constant where there is no such bound.
      weights: where the trust region has its centre.
      max_kl: its size, > 0.
      floor: lower bounds of the weights, which `weights` keep; none by default.

    Returns:
      the new weights and whether they are better than the old ones.
    """
    p = weights.shape[0]
    lowest = jnp.full(p, -jnp.inf) if floor is None else floor

    def fisher(at: Weights) -> Float[Array, "weights weights"]:
        return jax.hessian(kl_divergence, argnums=1)(at, at)

    def natural_norm(function: Callable[[Weights], Float[Array, ""]]) -> Float[Array, ""]:
        gradient = jax.grad(function)(weights)
        squared = jnp.dot(gradient, jnp.linalg.solve(fisher(weights), gradient))
        return jnp.sqrt(jnp.maximum(squared * 2 * max_kl, 1e-12))

    # In these units a step to the edge of the trust region changes objective and margin by about 1.
    objective_unit, margin_unit = natural_norm(objective), natural_norm(margin)

    def excess(new: Weights) -> Float[Array, "2"]:
        kl = kl_divergence(weights, new) / max_kl - 1 + _INSIDE
        return jnp.stack([kl, jnp.minimum(-margin(new) / margin_unit + _INSIDE, 1e6)])

    def merit(new: Weights, multipliers: Float[Array, "2"]) -> Float[Array, ""]:
        shifted = jnp.maximum(multipliers + _PENALTY * excess(new), 0)
        return objective(new) / objective_unit + jnp.sum(shifted**2) / (2 * _PENALTY)

    def inner(new: Weights, multipliers: Float[Array, "2"]) -> Weights:
        slope = jax.jacobian(excess)(new)
        shifted = jnp.maximum(multipliers + _PENALTY * excess(new), 0)
        curvature = fisher(new) * (1 / objective_unit + shifted[0] / max_kl)
        curvature += _PENALTY * (slope.T * (shifted > 0)) @ slope + 1e-6 * jnp.eye(p)
        step = -jnp.linalg.solve(curvature, jax.grad(merit)(new, multipliers))
        tried = jnp.concatenate([new[None], new + jnp.asarray(_STEP_SIZES, new.dtype)[:, None] * step])
        tried = jnp.maximum(tried, lowest)
        merits = jax.vmap(lambda w: merit(w, multipliers))(tried)
        return tried[jnp.nanargmin(merits)]

    def outer(carry: tuple[Weights, Float[Array, "2"]], _: None) -> tuple[tuple[Weights, Array], None]:
        new, multipliers = carry
        new = jax.lax.fori_loop(0, _STEPS_IN_ROUND, lambda _, new: inner(new, multipliers), new)
        return (new, jnp.maximum(multipliers + _PENALTY * excess(new), 0)), None

    start = (weights, jnp.asarray([0.5, 0.0], weights.dtype))
    (found, _), _ = jax.lax.scan(outer, start, None, length=_ROUNDS)
    shares = jnp.linspace(0, 1, 65, dtype=weights.dtype)
    path = weights + shares[:, None] * (found - weights)
    inside = jax.vmap(lambda w: (kl_divergence(weights, w) <= max_kl) & (margin(w) >= 0))(path)
    values = jnp.where(inside.at[0].set(True), jax.vmap(objective)(path), jnp.inf)
    best = jnp.nanargmin(values)
    return path[best], best > 0
