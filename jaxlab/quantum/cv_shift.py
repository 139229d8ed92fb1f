"""Gradients of circuits of continuous variables as differences of circuits with shifted parameters.

A Gaussian gate takes quadratures R to S R + d, where S and d depend on each parameter by sine and cosine, by sinh and
cosh, or linearly; so two shifted gates give its exact derivative. Means of first order in R inherit this rule. Of means
of second order the derivative is itself the mean of an observable of second order, at the unshifted point: the rule of
the Heisenberg picture. Between the gate and the measurement all gates must be Gaussian, before it any. Reference:
Schuld et al., arXiv:1811.11184, section IV; arXiv:1811.04968, section on continuous variables.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.quantum import symplectic
from jaxlab.quantum.cv_circuits import (
    KINDS,
    CVCircuit,
    CVGate,
    Rule,
    affine,
    by_kind,
    checked_params,
    own_params,
)
from jaxlab.quantum.modes import require_positive
from jaxlab.quantum.shift import variance_gradient

Coefficients = Float[Array, " 1+2N"] | Float[Array, "1+2N 1+2N"]
"""Of a polynomial in all quadratures, as `polynomial_mean` takes them."""


def cv_shift_gradient(
    measure: Callable[..., Any],
    circuit: CVCircuit,
    params: Float[Array, " P"],
    *,
    which: Sequence[int] | None = None,
    shift: float = 0.1,
    key: jax.Array | None = None,
    batch: int = 64,
) -> Float[Array, "... which"]:
    """Derivatives of a measurement of first order in x and p, by the rule of two shifted circuits.

    Args:
      measure: from parameters [P] to means of first-order polynomials, by any backend or device.
      circuit: which gates the parameters belong to.
      params: where.
      which: places of the parameters to differentiate in; all if None.
      shift: > 0, of parameters that are no angles; every value gives the exact derivative.
      key: if given, `measure(params, key)` is called with a key of its own for each shifted circuit.
      batch: shifted circuits that run together.

    Returns:
      The measurement's axes, then one for the parameters.

    Raises:
      InputError: a parameter has no rule, a gate after it is not Gaussian, or an argument is out of range.
    """
    params = checked_params(circuit, params)
    places = _places(circuit, which)
    sizes, weights = _two_terms([rule for _, _, rule in places], shift)
    rows = np.repeat([place for place, _, _ in places], 2)
    shifts = np.stack([sizes, -sizes], axis=1).reshape(-1)

    def shifted(entry: tuple[Array, Array], *own: Array) -> Any:
        row, by = entry
        return measure(params.at[row].add(by), *own)

    values = _in_batches(shifted, (jnp.asarray(rows), jnp.asarray(shifts, params.dtype)), key, batch)
    ahead, behind = values[0::2], values[1::2]
    return jnp.moveaxis(ahead - behind, 0, -1) * jnp.asarray(weights, values.dtype)


def cv_second_order_gradient(
    measure: Callable[..., Any],
    circuit: CVCircuit,
    params: Float[Array, " P"],
    coefficients: Coefficients,
    *,
    which: Sequence[int] | None = None,
    shift: float = 0.1,
    key: jax.Array | None = None,
    batch: int = 64,
) -> Float[Array, " which"]:
    """Derivatives of the mean of a polynomial of first or second order, as means of other polynomials.

    Args:
      measure: from coefficients to the mean of that polynomial in the final state at `params`, by any backend or
        device.
      circuit: which gates the parameters belong to.
      params: where.
      coefficients: of the polynomial to differentiate, in all quadratures.
      which: places of the parameters to differentiate in; all if None.
      shift: see `cv_shift_gradient`.
      key: if given, `measure(coefficients, key)` is called with a key of its own for each parameter.
      batch: polynomials that are measured together.

    Raises:
      InputError: as `cv_shift_gradient`, or the coefficients do not fit the circuit.
    """
    observables = shifted_observables(circuit, params, coefficients, which=which, shift=shift)
    return _in_batches(measure, observables, key, batch)


def cv_variance_gradient(
    measure: Callable[..., Any],
    circuit: CVCircuit,
    params: Float[Array, " P"],
    coefficients: Float[Array, " 1+2N"],
    *,
    which: Sequence[int] | None = None,
    shift: float = 0.1,
    batch: int = 64,
) -> Float[Array, " which"]:
    """Derivatives of the variance of a polynomial of first order; arguments as for `cv_second_order_gradient`.

    Raises:
      InputError: as `cv_second_order_gradient`, or the polynomial is not of first order.
    """
    linear = jnp.asarray(coefficients)
    if linear.ndim != 1:
        raise InputError(
            f"coefficients have shape {linear.shape}; only the variance of a polynomial of first order has a rule "
            "(jax.grad through the simulation differentiates any)"
        )
    of_mean, of_square = (
        cv_second_order_gradient(measure, circuit, params, one, which=which, shift=shift, batch=batch)
        for one in (linear, jnp.outer(linear, linear))
    )
    return variance_gradient(measure(linear), of_mean, of_square)


def shifted_observables(
    circuit: CVCircuit,
    params: Float[Array, " P"],
    coefficients: Coefficients,
    *,
    which: Sequence[int] | None = None,
    shift: float = 0.1,
) -> Float[Array, "which ..."]:
    """Coefficients of the polynomials whose means are the derivatives; arguments as `cv_second_order_gradient`.

    With (1, R) after the gate H times (1, R) before it, and B the product of all later gates, (1, R) at the end changes
    by B Z B^-1 times itself, Z = (sum of c_i H(theta + s_i)) H(theta)^-1.
    """
    params = checked_params(circuit, params)
    places = _places(circuit, which)
    size = 1 + 2 * circuit.modes
    values = jnp.asarray(coefficients, params.dtype)
    if values.shape not in ((size,), (size, size)):
        raise InputError(
            f"coefficients have shape {values.shape}; on {circuit.modes} modes it must be ({size},) or ({size}, {size})"
        )
    start = min(gate for _, gate, _ in places)
    gates = circuit.gates[start:]
    Z, row_of = _generators(circuit.modes, gates, params, shift)
    B, B_inverse = _later(circuit.modes, gates, params)
    at = np.array([gate - start for _, gate, _ in places])
    own = Z[np.array([row_of[place] for place, _, _ in places])]
    change = jnp.einsum("kij,kjl,klm->kim", B[at], own, B_inverse[at], precision="highest")
    if values.ndim == 1:
        return jnp.einsum("i,kij->kj", values, change, precision="highest")
    symmetric = (values + values.T) / 2
    half = jnp.einsum("ij,kjl->kil", symmetric, change, precision="highest")
    return half + half.swapaxes(-1, -2)


def _places(circuit: CVCircuit, which: Sequence[int] | None) -> list[tuple[int, int, Rule]]:
    """Place, gate and rule of each parameter to differentiate in."""
    owner = [(i, rule) for i, gate in enumerate(circuit.gates) for rule in KINDS[gate.kind].rules]
    chosen = range(len(owner)) if which is None else [int(place) for place in which]
    obstacle = max(
        (i for i, gate in enumerate(circuit.gates) if not KINDS[gate.kind].is_gaussian), default=-1
    )
    found: list[tuple[int, int, Rule]] = []
    for place in chosen:
        if not 0 <= place < len(owner):
            raise InputError(f"which has {place}; this circuit's parameters are 0 to {len(owner) - 1}")
        gate, rule = owner[place]
        name = f"parameter {place} (gate {gate}, {circuit.gates[gate].kind})"
        advice = "jax.grad through the simulation of a Fock state differentiates it"
        if rule == "none":
            raise InputError(f"{name} has no shift rule; {advice}")
        if gate < obstacle:
            kind = circuit.gates[obstacle].kind
            raise InputError(
                f"{name} is followed by gate {obstacle}, {kind}, which is not Gaussian; {advice}"
            )
        found.append((place, gate, rule))
    if not found:
        raise InputError("there is no parameter to differentiate in")
    return found


def _two_terms(rules: Sequence[Rule], shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Shifts s and weights c with f' = c (f(s) - f(-s))."""
    if not shift > 0:
        raise InputError(f"shift is {shift}; it must be positive")
    terms: dict[Rule, tuple[float, float]] = {
        "angle": (math.pi / 2, 0.5),
        "hyperbolic": (shift, 0.5 / math.sinh(shift)),
        "linear": (shift, 0.5 / shift),
    }
    sizes, weights = zip(*(terms[rule] for rule in rules), strict=True)
    return np.array(sizes), np.array(weights)


def _in_batches(fn: Callable[..., Any], entries: Any, key: jax.Array | None, batch: int) -> Any:
    require_positive("batch", batch)
    count = len(jax.tree.leaves(entries)[0])
    if key is None:
        return jax.lax.map(fn, entries, batch_size=min(batch, count))
    keys = jax.random.split(key, count)
    return jax.lax.map(lambda both: fn(*both), (entries, keys), batch_size=min(batch, count))


def _generators(
    modes: int, gates: Sequence[CVGate], params: Array, shift: float
) -> tuple[Float[Array, "rules 1+2N 1+2N"], dict[int, int]]:
    """Z of every parameter of the gates, and which of them belongs to which place."""
    found: list[Array] = []
    row_of: dict[int, int] = {}
    for kind, members in by_kind(gates).items():
        own = own_params(gates, members, params)
        S, d = affine(kind, own)
        S_inverse = _inverse(S)
        for column, rule in enumerate(KINDS[kind].rules):
            (size,), (weight,) = _two_terms([rule], shift)
            (S_ahead, d_ahead), (S_behind, d_behind) = (
                affine(kind, own.at[:, column].add(by)) for by in (size, -size)
            )
            turn = weight * jnp.matmul(S_ahead - S_behind, S_inverse, precision="highest")
            push = weight * (d_ahead - d_behind) - jnp.einsum("gij,gj->gi", turn, d, precision="highest")
            row_of |= {gates[i].first + column: len(row_of) + at for at, i in enumerate(members)}
            found.append(_embedded(modes, [gates[i].wires for i in members], turn, push, 0.0))
    return jnp.concatenate(found), row_of


def _later(modes: int, gates: Sequence[CVGate], params: Array) -> tuple[Array, Array]:
    """Product of all gates after each one, and its inverse: [gates, 1 + 2N, 1 + 2N] both."""
    groups = by_kind(gates)
    forward, backward = [], []
    for kind, members in groups.items():
        wires = [gates[i].wires for i in members]
        S, d = affine(kind, own_params(gates, members, params))
        S_inverse = _inverse(S)
        d_inverse = -jnp.einsum("gij,gj->gi", S_inverse, d, precision="highest")
        forward.append(_embedded(modes, wires, S, d, 1.0))
        backward.append(_embedded(modes, wires, S_inverse, d_inverse, 1.0))
    back = np.argsort(np.concatenate(list(groups.values())))
    H, H_inverse = (jnp.concatenate(one)[back] for one in (forward, backward))

    def step(later: tuple[Array, Array], gate: tuple[Array, Array]) -> tuple[tuple[Array, Array], Any]:
        B, B_inverse = later
        H, H_inverse = gate
        onward = jnp.matmul(B, H, precision="highest"), jnp.matmul(H_inverse, B_inverse, precision="highest")
        return onward, later

    one = jnp.eye(1 + 2 * modes, dtype=H.dtype)
    return jax.lax.scan(step, (one, one), (H, H_inverse), reverse=True)[1]


def _inverse(S: Float[Array, "... 2k 2k"]) -> Float[Array, "... 2k 2k"]:
    """-Omega S^T Omega."""
    omega = jnp.asarray(symplectic.form(S.shape[-1] // 2), S.dtype)
    return -omega @ S.swapaxes(-1, -2) @ omega


def _embedded(
    modes: int, wires: Sequence[tuple[int, ...]], matrices: Array, columns: Array, rest: float
) -> Float[Array, "gates 1+2N 1+2N"]:
    """On (1, x_1..x_N, p_1..p_N), with `rest` on the diagonal of all that the gates' wires do not touch."""
    rows = 1 + np.concatenate([np.array(wires), modes + np.array(wires)], axis=1)
    gates = np.arange(len(rows))[:, None]
    whole = jnp.broadcast_to(
        rest * jnp.eye(1 + 2 * modes, dtype=matrices.dtype), (len(rows), *(1 + 2 * modes,) * 2)
    )
    filled = whole.at[gates[:, None], rows[:, :, None], rows[:, None]].set(matrices)
    return filled.at[gates, rows, 0].set(columns)
