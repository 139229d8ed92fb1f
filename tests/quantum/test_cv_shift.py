"""Shift rules of continuous variables against derivatives through the simulation, and against PennyLane's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from cv_oracle import for_pennylane, program, random_gates

from jaxlab.errors import InputError
from jaxlab.quantum import fock, gaussian
from jaxlab.quantum import fock_measurements as counted
from jaxlab.quantum import gaussian_measurements as measured
from jaxlab.quantum.cv_circuits import cv_circuit, run_cv
from jaxlab.quantum.cv_shift import (
    cv_second_order_gradient,
    cv_shift_gradient,
    cv_variance_gradient,
    shifted_observables,
)

pytestmark = pytest.mark.usefixtures("double_precision")
MODES = 3
GATES = random_gates(np.random.default_rng(5), MODES, 14)
FEW = [gate for gate in GATES if gate[0] in ("Displacement", "TwoModeSqueezing", "Rotation")]
rng = np.random.default_rng(6)
LINEAR, SQUARE = rng.normal(size=1 + 2 * MODES), rng.normal(size=(1 + 2 * MODES,) * 2)


@functools.cache
def simulated(few=False):
    """The circuit, its parameters, and mean and variance of a polynomial as functions of parameters."""
    circuit, params = program(FEW if few else GATES, MODES)

    def mean(p, coefficients):
        return measured.polynomial_mean(run_cv(circuit, p, gaussian.vacuum(MODES)), coefficients)

    def variance(p, coefficients):
        return measured.polynomial_variance(run_cv(circuit, p, gaussian.vacuum(MODES)), coefficients)

    return circuit, params, mean, variance


@pytest.mark.parametrize("shift", [0.1, 1.3])
def test_first_order_rule_is_the_derivative(shift):
    circuit, params, mean, _ = simulated()
    rule = jax.jit(lambda p: cv_shift_gradient(lambda p: mean(p, LINEAR), circuit, p, shift=shift))
    exact = jax.jit(jax.grad(mean))(params, LINEAR)
    np.testing.assert_allclose(rule(params), exact, atol=1e-10)


@pytest.mark.parametrize("coefficients", [LINEAR, SQUARE], ids=["linear", "square"])
def test_second_order_rule_is_the_derivative(coefficients):
    circuit, params, mean, _ = simulated()
    rule = jax.jit(
        lambda p: cv_second_order_gradient(lambda c: mean(p, c), circuit, p, coefficients, shift=0.4)
    )
    np.testing.assert_allclose(rule(params), jax.jit(jax.grad(mean))(params, coefficients), atol=1e-10)


def test_variance_rule_is_the_derivative():
    circuit, params, mean, variance = simulated()
    rule = jax.jit(lambda p: cv_variance_gradient(lambda c: mean(p, c), circuit, p, LINEAR))
    np.testing.assert_allclose(rule(params), jax.jit(jax.grad(variance))(params, LINEAR), atol=1e-10)


def test_second_order_rule_is_pennylanes():
    circuit, params, mean, _ = simulated()
    square = (SQUARE + SQUARE.T) / 2
    device = qml.device("default.gaussian", wires=MODES)

    @qml.qnode(device, diff_method="parameter-shift", interface="autograd")
    def node(params):
        place = 0
        for name, own, wires in GATES:
            getattr(qml, name)(*[params[place + i] for i in range(len(own))], wires=wires)
            place += len(own)
        return qml.expval(qml.PolyXP(for_pennylane(square), wires=range(MODES)))

    theirs = qml.grad(node)(qml.numpy.array(params, requires_grad=True))
    ours = jax.jit(lambda p: cv_second_order_gradient(lambda c: mean(p, c), circuit, p, square))(params)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_some_parameters_several_measurements_and_batches():
    circuit, params, mean, _ = simulated(few=True)

    def both(p):
        return jnp.stack([mean(p, LINEAR), mean(p, LINEAR[::-1])])

    which = [5, 2]
    rule = jax.jit(jax.vmap(lambda p: cv_shift_gradient(both, circuit, p, which=which, batch=3)))
    batch = np.stack([params, params / 2])
    exact = jax.jit(jax.vmap(jax.jacobian(both)))(batch)[:, :, np.array(which)]
    np.testing.assert_allclose(rule(batch), exact, atol=1e-10)
    rule = jax.jit(lambda p: cv_second_order_gradient(lambda c: mean(p, c), circuit, p, SQUARE, which=which))
    slope = jax.jit(jax.grad(mean))(params, SQUARE)
    np.testing.assert_allclose(rule(params), slope[np.array(which)], atol=1e-10)


def test_rule_can_be_differentiated_again():
    circuit, params, mean, _ = simulated(few=True)

    def rule(p):
        return cv_second_order_gradient(lambda c: mean(p, c), circuit, p, SQUARE, which=[3])[0]

    exact = jax.jit(jax.hessian(mean))(params, SQUARE)[3]
    np.testing.assert_allclose(jax.jit(jax.grad(rule))(params), exact, atol=1e-9)


def test_gates_before_may_be_of_any_kind():
    circuit = cv_circuit(
        2, [("Displacement", 0), ("Kerr", 0), ("Squeezing", 1), ("Beamsplitter", (0, 1)), ("Displacement", 1)]
    )
    params = np.array([0.4, 0.1, 0.3, 0.15, 0.2, 0.7, 0.3, 0.1, -0.6])

    def run(p):
        return run_cv(circuit, p, fock.vacuum(2, cutoff=24))

    which = list(range(3, 9))
    linear, square = LINEAR[:5], SQUARE[:5, :5]

    def mean(p, c):
        return counted.polynomial_mean(run(p), c)

    exact = jax.jit(jax.grad(mean))
    first = jax.jit(lambda p: cv_shift_gradient(lambda p: mean(p, linear), circuit, p, which=which))
    np.testing.assert_allclose(first(params), exact(params, linear)[3:], atol=1e-9)
    state = jax.jit(run)(params)
    second = jax.jit(
        lambda p: cv_second_order_gradient(
            lambda c: counted.polynomial_mean(state, c), circuit, p, square, which=which
        )
    )
    np.testing.assert_allclose(second(params), exact(params, square)[3:], atol=1e-9)


def test_measurements_with_shots_get_keys_of_their_own():
    circuit, params, _, _ = simulated(few=True)
    shots = 4000

    def sampled(p, key):
        state = run_cv(circuit, p, gaussian.vacuum(MODES))
        return jnp.mean(measured.sample_homodyne(key, state, shots, wires=0))

    rule = jax.jit(lambda key: cv_shift_gradient(sampled, circuit, params, shift=1.0, key=key))
    found, again = rule(jax.random.key(0)), rule(jax.random.key(1))
    assert not np.any(found == again)

    def final(p):
        return run_cv(circuit, p, gaussian.vacuum(MODES))

    exact = jax.jit(jax.grad(lambda p: measured.quadrature_mean(final(p), 0.0, 0)))(params)
    # Both terms of a rule weigh at most 1/2; the widest shifted state bounds the variance.
    shifts = np.concatenate([size * np.eye(len(params)) for size in (1, -1, np.pi / 2, -np.pi / 2)])
    states = jax.jit(jax.vmap(lambda p: measured.quadrature_variance(final(p), 0.0, 0)))(params + shifts)
    error = 4 * np.sqrt(0.5 * np.max(states) / shots)
    assert np.all(np.abs(found - exact) < error)

    def noisy(c, key):
        return jnp.sum(c) * 0 + jax.random.normal(key)

    second = cv_second_order_gradient(noisy, circuit, params, SQUARE, key=jax.random.key(0))
    assert len(np.unique(second)) == circuit.size


def test_displacement_shifts_the_observable_by_a_constant():
    circuit = cv_circuit(1, [("Displacement", 0)])
    found = shifted_observables(circuit, np.array([0.3, 0.0]), np.array([0.0, 1.0, 0.0]))
    # d<x>/da = 2, and d<x>/dphi = -<p> + .. = 0 at phi = 0 once a is taken off again.
    np.testing.assert_allclose(found, [[2, 0, 0], [0, 0, 0]], atol=1e-12)


def blocked():
    return cv_circuit(1, [("Rotation", 0), ("Kerr", 0), ("Squeezing", 0)])


def gradient(circuit, which=None, **options):
    return cv_shift_gradient(lambda p: jnp.sum(p), circuit, np.zeros(circuit.size), which=which, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient(blocked(), [1]), r"parameter 1 \(gate 1, Kerr\) has no shift rule; jax.grad"),
        (lambda: gradient(blocked(), [0]), "followed by gate 1, Kerr, which is not Gaussian"),
        (lambda: gradient(blocked(), [4]), "which has 4; this circuit's parameters are 0 to 3"),
        (lambda: gradient(blocked(), []), "no parameter to differentiate in"),
        (lambda: gradient(blocked(), [2], shift=0.0), "shift is 0.0; it must be positive"),
        (lambda: gradient(blocked(), [2], batch=0), "batch is 0"),
        (
            lambda: cv_shift_gradient(jnp.sum, blocked(), np.zeros(2)),
            r"params has shape \(2,\); this circuit takes \(4,\)",
        ),
        (
            lambda: cv_second_order_gradient(jnp.sum, blocked(), np.zeros(4), np.zeros(4), which=[2]),
            r"must be \(3,\) or \(3, 3\)",
        ),
        (
            lambda: cv_variance_gradient(jnp.sum, blocked(), np.zeros(4), np.eye(3), which=[2]),
            "only the variance of a polynomial of first order has a rule",
        ),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
