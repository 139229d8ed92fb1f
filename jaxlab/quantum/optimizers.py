"""Optimizers that know about circuits, as optax transformations: natural gradient, QNSPSA, Rotosolve."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.quantum.metric import Approximation, StateFunction, metric_tensor


def qng(
    state_fn: StateFunction,
    learning_rate: float = 0.01,
    *,
    lam: float = 0.0,
    approx: Approximation = "block-diag",
    layers: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Quantum natural gradient: theta - eta (g + lam I)^+ gradient, with the metric at the current parameters.

    `update` needs `params`. Reference: Stokes et al., Quantum 4 (2020) 269.

    Args:
      state_fn: see `jaxlab.quantum.metric`.
      learning_rate: eta, > 0.
      lam: added to the metric's diagonal, >= 0.
      approx: see `metric_tensor`.
      layers: see `metric_tensor`.

    Raises:
      InputError: an argument is out of range.
    """
    _check(learning_rate, lam)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if params is None:
            raise InputError("qng needs the parameters: optimizer.update(gradient, state, params)")
        metric = metric_tensor(state_fn, params, approx=approx, layers=layers)
        gradient, unravel = ravel_pytree(updates)
        return unravel(-learning_rate * _solve(metric, gradient, lam)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _check(learning_rate: float, lam: float) -> None:
    if not learning_rate > 0:
        raise InputError(f"learning_rate is {learning_rate}; it must be > 0")
    if not lam >= 0:
        raise InputError(f"lam is {lam}; it must be >= 0")


def _solve(metric: Array, gradient: Array, lam: float) -> Array:
    """(g + lam I)^+ gradient; directions that do not move the state are left alone."""
    eye = jnp.eye(metric.shape[0], dtype=metric.dtype)
    return jnp.matmul(jnp.linalg.pinv(metric + lam * eye, hermitian=True), gradient, precision="highest")


class QnspsaState(NamedTuple):
    """Running mean of the metric's estimates."""

    metric: Float[Array, "P P"]
    steps: Int[Array, ""]
    key: jax.Array


def qnspsa(
    state_fn: StateFunction,
    key: jax.Array,
    learning_rate: float = 0.01,
    *,
    h: float = 1e-2,
    lam: float = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """Natural gradient with a metric that is estimated from four overlaps a step, whatever the number of parameters.

    `update` needs `params`; take the gradient from `spsa_gradient`, or exactly. Reference: Gacon, Zoufal, Carleo and
    Woerner, Quantum 5 (2021) 567.

    Args:
      state_fn: from parameters to a state.
      key: PRNG key of the directions.
      learning_rate: > 0.
      h: step of the differences, > 0.
      lam: added to the metric's diagonal, > 0.

    Raises:
      InputError: an argument is out of range.
    """
    _check(learning_rate, lam)
    if not h > 0:
        raise InputError(f"h is {h}; it must be > 0")

    def init(params: Any) -> QnspsaState:
        flat, _ = ravel_pytree(params)
        return QnspsaState(jnp.eye(flat.shape[0], dtype=flat.dtype), jnp.int32(0), key)

    def update(updates: Any, state: QnspsaState, params: Any = None, **extra: Any) -> tuple[Any, QnspsaState]:
        del extra
        if params is None:
            raise InputError("qnspsa needs the parameters: optimizer.update(gradient, state, params)")
        flat, unravel = ravel_pytree(params)
        own, following = jax.random.split(state.key)
        first, second = jax.random.rademacher(own, (2, *flat.shape), flat.dtype)
        psi = state_fn(params)

        def overlap(shift: Array) -> Array:
            return jnp.abs(jnp.vdot(psi, state_fn(unravel(flat + shift)))) ** 2

        change = overlap(h * (first + second)) - overlap(h * first)
        change -= overlap(h * (second - first)) - overlap(-h * first)
        # overlap(d) = 1 - d g d, so that the change is -4 h^2 first g second
        outer = jnp.outer(first, second)
        estimate = -change / (4 * h**2) * (outer + outer.T) / 2
        steps = state.steps + 1
        metric = (state.metric * steps + estimate) / (steps + 1)
        values, vectors = jnp.linalg.eigh(metric)
        positive = jnp.matmul(vectors * (jnp.abs(values) + lam), vectors.T, precision="highest")
        gradient, back = ravel_pytree(updates)
        step = jnp.linalg.solve(positive, gradient)
        return back(-learning_rate * step), QnspsaState(metric, steps, following)

    return optax.GradientTransformationExtraArgs(init, update)


def rotosolve(
    loss: Callable[[Any], Float[Array, ""]], *, frequency: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Sets each angle in turn to where the loss is least: exactly, since it is a sinusoid in one angle.

    `update` needs `params` and ignores the gradient. For angles whose gate has one frequency. Reference: Ostaszewski,
    Grant and Benedetti, Quantum 5 (2021) 391.

    Args:
      loss: of the parameters, an expectation value.
      frequency: of the loss in every angle, > 0.

    Raises:
      InputError: the frequency is not positive.
    """
    if not frequency > 0:
        raise InputError(f"frequency is {frequency}; it must be > 0")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del updates, extra
        if params is None:
            raise InputError("rotosolve needs the parameters: optimizer.update(gradient, state, params)")
        flat, unravel = ravel_pytree(params)
        quarter = math.pi / (2 * frequency)

        def one(i: Array, flat: Array) -> Array:
            at, ahead, behind = (loss(unravel(flat.at[i].add(shift))) for shift in (0.0, quarter, -quarter))
            # loss(x) = mean + size sin(frequency x + phase), x from the current angle
            phase = jnp.arctan2(2 * at - ahead - behind, ahead - behind)
            move = (-math.pi / 2 - phase) / frequency
            period = 2 * math.pi / frequency
            return flat.at[i].add((move + period / 2) % period - period / 2)

        return unravel(jax.lax.fori_loop(0, flat.shape[0], one, flat) - flat), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
