"""Gradients as differences of circuits with shifted angles, which hardware can run too.

An expectation value is a trigonometric polynomial in each angle, with the differences of the generator's eigenvalues as
frequencies; so many shifted values give its exact derivative. All shifted circuits are one batch. References: Schuld
et al., arXiv:1811.11184; Wierichs et al., Quantum 6 (2022) 677; Banchi and Crooks, arXiv:2005.10299.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum.lowering import known_type
from jaxlab.quantum.recording import BodySlots, Gate, Program, Slots

Measure = Callable[..., Any]
"""From slots to a real array; with a key to `(slots, key)`, for measurements by samples."""
_LEAST_DETERMINANT = 1e-6


def frequencies(gate: Gate) -> tuple[float, ...]:
    """Of expectation values in each of the gate's angles, ascending."""
    known = known_type(gate)
    assert known is not None
    spectrum = set(known.spectrum) | ({0.0} if gate.controls else set())
    found = {round(abs(a - b), 10) for a in spectrum for b in spectrum} - {0.0}
    return tuple(sorted(found))


@functools.lru_cache(maxsize=256)
def shift_rule(
    frequencies: tuple[float, ...], shifts: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients c and shifts s with f'(0) = sum c f(s), for every f of these frequencies.

    Args:
      frequencies: positive, distinct.
      shifts: one positive shift for each frequency, used with both signs; None takes those of equal distances, which
        have the smallest coefficients where the frequencies are equidistant.

    Raises:
      InputError: no frequency, one that is not positive, or a wrong number of shifts.
    """
    omega = np.array(sorted(frequencies))
    count = len(omega)
    if not count or omega[0] <= 0 or len(set(frequencies)) != count:
        raise InputError(f"frequencies is {frequencies}; distinct positive numbers are needed")
    if shifts is not None and len(shifts) != count:
        raise InputError(f"shifts has {len(shifts)} entries; {count} are needed, one for each frequency")
    least = omega[0]
    mu = np.arange(1, count + 1)
    equal = (2 * mu - 1) * math.pi / (2 * count * least)
    if shifts is None and np.allclose(omega, least * mu):
        own = equal
        half = least * (-1.0) ** (mu - 1) / (4 * count * np.sin((2 * mu - 1) * math.pi / (4 * count)) ** 2)
    else:
        own = equal if shifts is None else np.array(shifts)
        matrix = 2 * np.sin(np.outer(omega, own))
        if abs(np.linalg.det(matrix)) < _LEAST_DETERMINANT:
            warnings.warn(f"shifts {own} hardly tell the frequencies {frequencies} apart", stacklevel=2)
        half = np.linalg.solve(matrix, omega)
    return np.concatenate([half, -half]), np.concatenate([own, -own])


def shift_gradient(
    measure: Measure, program: Program, slots: Slots, *, key: jax.Array | None = None, batch: int = 64
) -> tuple[Float[Array, "..."], ...]:
    """Derivatives of `measure(slots)` in all angles, by the parameter-shift rule.

    Args:
      measure: expectation values, probabilities or any other measurement that is linear in the state's projector.
      program: what the slots belong to.
      slots: where.
      key: if given, `measure(slots, key)` is called with a key of its own for each shifted circuit.
      batch: shifted circuits that run together.

    Returns:
      For each part of the program an array: the measurement's axes, then those of the part's angles.

    Raises:
      InputError: batch < 1.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    rows, shifts, coefficients = _table(program)
    flat = _flat(slots)

    def shifted(entry: tuple[Array, Array, Array]) -> Any:
        row, shift, own = entry
        moved = _unflat(flat.at[row].add(shift), slots)
        return measure(moved) if key is None else measure(moved, own)

    keys = jnp.zeros(len(rows)) if key is None else jax.random.split(key, len(rows))
    values = jax.lax.map(
        shifted, (jnp.asarray(rows), jnp.asarray(shifts, flat.dtype), keys), batch_size=min(batch, len(rows))
    )
    weighted = jnp.moveaxis(values, 0, -1) * jnp.asarray(coefficients, values.dtype)
    summed = (
        jnp.zeros((*weighted.shape[:-1], flat.shape[0]), values.dtype)
        .at[..., jnp.asarray(rows)]
        .add(weighted)
    )
    sizes = np.cumsum([one.angles.size for one in slots])[:-1]
    return tuple(
        part.reshape(*part.shape[:-1], *one.angles.shape)
        for part, one in zip(jnp.split(summed, sizes, axis=-1), slots, strict=True)
    )


def by_shift(
    measure: Measure, program: Program, *, key: jax.Array | None = None, batch: int = 64
) -> Callable[[Slots], Any]:
    """`measure` as a function of slots whose `jax.grad` is the parameter-shift rule; arguments as `shift_gradient`.

    Raises:
      InputError: differentiated in a matrix, which has no angle to shift.
    """

    @jax.custom_vjp
    def run(slots: Slots) -> Any:
        return measure(slots) if key is None else measure(slots, key)

    def forward(slots: Any) -> tuple[Any, Slots]:
        if any(leaf.perturbed for one in slots for leaf in one.matrices):
            raise InputError(
                "the parameter-shift rule differentiates angles; a matrix of the circuit is differentiated"
            )
        values: Slots = jax.tree.map(
            lambda leaf: leaf.value, slots, is_leaf=lambda leaf: hasattr(leaf, "perturbed")
        )
        return run(values), values

    def backward(slots: Slots, cotangent: Any) -> tuple[Slots]:
        own = None if key is None else jax.random.fold_in(key, 1)
        gradients = shift_gradient(measure, program, slots, key=own, batch=batch)
        axes = jnp.ndim(cotangent)
        found = [
            BodySlots(
                jnp.tensordot(cotangent, gradient, axes).astype(one.angles.dtype),
                tuple(map(jnp.zeros_like, one.matrices)),
            )
            for gradient, one in zip(gradients, slots, strict=True)
        ]
        return (tuple(found),)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def _table(program: Program) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all shifted circuits: which of the flat angles is shifted, by how much, and the coefficient."""
    rows: list[int] = []
    shifts: list[float] = []
    coefficients: list[float] = []
    start = 0
    for part in program.parts:
        angles = [
            (gate.slot + i, frequencies(gate))
            for gate in part.body.gates
            if (known := known_type(gate)) is not None
            for i in range(known.angles)
        ]
        for _ in range(part.times or 1):
            for slot, omega in angles:
                if not omega:
                    continue  # a global phase
                c, s = shift_rule(omega)
                rows += [start + slot] * len(s)
                shifts += list(s)
                coefficients += list(c)
            start += len(angles)
    if not rows:
        raise InputError("the program has no angle that a measurement depends on")
    return np.array(rows, np.int32), np.array(shifts), np.array(coefficients)


def _flat(slots: Slots) -> Float[Array, " angles"]:
    return jnp.concatenate([one.angles.reshape(-1) for one in slots])


def _unflat(flat: Array, slots: Slots) -> Slots:
    pieces = jnp.split(flat, np.cumsum([one.angles.size for one in slots])[:-1])
    return tuple(
        BodySlots(piece.reshape(one.angles.shape), one.matrices)
        for piece, one in zip(pieces, slots, strict=True)
    )


def variance_gradient(
    mean: Float[Array, "..."], mean_gradient: Array, square_gradient: Array | None = None
) -> Array:
    """d(<A^2> - <A>^2) = d<A^2> - 2 <A> d<A>; without `square_gradient` for an involution, A^2 = 1."""
    inner = -2 * mean * mean_gradient
    return inner if square_gradient is None else square_gradient + inner


def stochastic_shift_gradient(
    key: jax.Array,
    measure: Callable[[Complex[Array, "K K"]], Any],
    fixed: Complex[Array, "K K"],
    varied: Complex[Array, "K K"],
    theta: Float[Array, ""],
    *,
    samples: int,
) -> Any:
    """Unbiased derivative in theta of a circuit with the gate exp(i (H + theta V)), V^2 = 1.

    With G = H + theta V it is the mean over s uniform in [0, 1] of C+ - C-, where the gate is exp(i s G)
    exp(+-i pi / 4 V) exp(i (1 - s) G).

    Args:
      key: PRNG key of the s.
      measure: from the gate's matrix to the measurement.
      fixed: H, Hermitian.
      varied: V, Hermitian with V^2 = 1.
      theta: where.
      samples: of s, each two circuits; >= 1.

    Raises:
      InputError: samples < 1, or V is concrete and V^2 is not 1.
    """
    if samples < 1:
        raise InputError(f"samples is {samples}; it must be at least 1")
    if not isinstance(varied, jax.core.Tracer):
        square = np.asarray(varied) @ np.asarray(varied)
        if not np.allclose(square, np.eye(len(square)), atol=1e-5):
            raise InputError("varied is V of exp(i (H + theta V)); V^2 must be 1")
    values, vectors = jnp.linalg.eigh(fixed + theta * varied)

    def power(s: Array) -> Array:
        return jnp.matmul(vectors * jnp.exp(1j * s * values), vectors.conj().T, precision="highest")

    root = math.sqrt(0.5)
    quarter = [root * (jnp.eye(len(varied)) + sign * 1j * varied) for sign in (1, -1)]

    def difference(s: Array) -> Any:
        ahead, behind = (
            measure(jnp.linalg.multi_dot([power(s), turn, power(1 - s)], precision="highest"))
            for turn in quarter
        )
        return ahead - behind

    return jnp.mean(jax.vmap(difference)(jax.random.uniform(key, (samples,), values.dtype)), axis=0)


def second_order_rule(frequencies: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and shifts of the second derivative: the rule twice, equal shifts modulo the period together."""
    c, s = shift_rule(tuple(frequencies))
    period = 2 * math.pi / _common_divisor(tuple(frequencies))
    sums: dict[float, float] = {}
    for (c1, s1), (c2, s2) in ((a, b) for a in zip(c, s, strict=True) for b in zip(c, s, strict=True)):
        shift = (s1 + s2 + period / 2) % period - period / 2
        place = next(
            (known for known in sums if abs((known - shift + period / 2) % period - period / 2) < 1e-9), shift
        )
        sums[place] = sums.get(place, 0.0) + c1 * c2
    kept = [(coefficient, shift) for shift, coefficient in sums.items() if abs(coefficient) > 1e-12]
    return np.array([one for one, _ in kept]), np.array([one for _, one in kept])


def _common_divisor(frequencies: Sequence[float]) -> float:
    scaled = [round(one * 1e6) for one in frequencies]
    return math.gcd(*scaled) / 1e6
