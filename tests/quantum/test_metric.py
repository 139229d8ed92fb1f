"""The Fubini-Study metric against PennyLane and closed forms, and the optimizers that use it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pennylane as qml
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum import metric as mt
from jaxlab.quantum.measurements import marginal_z, probs
from jaxlab.quantum.optimizers import qng, qnspsa, rotosolve
from jaxlab.quantum.simulation import circuit

pytestmark = pytest.mark.usefixtures("double_precision")


def layers(c, params):
    for row in params:
        c.ry(row[:3], range(3))
        c.rz(row[3:], range(3))
        c.cnot(0, 1)
        c.cnot(1, 2)


PARAMS = np.random.default_rng(0).uniform(-2, 2, (2, 6))
STATE = circuit(layers, 3, lambda psi: psi, diff="backprop")


def energy(params):
    return jnp.sum(marginal_z(STATE(params)) * jnp.asarray([1.0, -0.5, 0.3]))


def test_metric_is_the_closed_form():
    state = circuit(lambda c, x: [c.ry(x[0], 0), c.rz(x[1], 0)], 1, lambda psi: psi, diff="backprop")
    t = 0.7
    np.testing.assert_allclose(
        mt.metric_tensor(state, jnp.asarray([t, 0.2])), np.diag([0.25, np.sin(t) ** 2 / 4]), atol=1e-14
    )


def pennylanes_metric(approx):
    @qml.qnode(qml.device("default.qubit", wires=4))
    def node(params):
        for row in params:
            for wire in range(3):
                qml.RY(row[wire], wires=wire)
            for wire in range(3):
                qml.RZ(row[3 + wire], wires=wire)
            qml.CNOT((0, 1))
            qml.CNOT((1, 2))
        return qml.expval(qml.PauliZ(0))

    params = qml.numpy.array(np.asarray(PARAMS), requires_grad=True)
    return np.asarray(qml.metric_tensor(node, approx=approx, aux_wire=3)(params)).reshape(12, 12)


def test_metric_is_pennylanes():
    np.testing.assert_allclose(mt.metric_tensor(STATE, PARAMS), pennylanes_metric(None), atol=1e-8)


def test_block_diagonal_metric_is_pennylanes():
    # one layer of commuting gates after the other: RY of a row, RZ of a row
    blocks = np.repeat(np.arange(4), 3)
    found = mt.metric_tensor(STATE, PARAMS, approx="block-diag", layers=blocks)
    np.testing.assert_allclose(found, pennylanes_metric("block-diag"), atol=1e-8)
    np.testing.assert_allclose(
        mt.metric_tensor(STATE, PARAMS, approx="diag"), np.diag(np.diag(found)), atol=1e-14
    )
    np.testing.assert_array_equal(
        mt.layers_of({"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}), [0, 0, 0, 1, 1, 1, 2]
    )


def test_product_without_the_metric_is_the_product_with_it():
    vector = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6)))
    found = jax.jit(lambda v: mt.metric_vector_product(STATE, PARAMS, v))(vector)
    np.testing.assert_allclose(
        found.reshape(-1), mt.metric_tensor(STATE, PARAMS) @ vector.reshape(-1), atol=1e-12
    )


def test_classical_information_is_at_most_the_quantum_one():
    quantum = mt.quantum_fisher(STATE, PARAMS)
    classical = mt.classical_fisher(lambda x: probs(STATE(x)), PARAMS)
    assert np.linalg.eigvalsh(quantum - classical).min() > -1e-10
    assert np.abs(classical).max() > 0.1


def test_natural_gradient_step_solves_with_the_metric():
    optimizer = qng(STATE, 0.1, lam=0.01, approx=None)
    gradient = jax.grad(energy)(PARAMS)
    step, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    expected = -0.1 * np.linalg.solve(
        np.asarray(mt.metric_tensor(STATE, PARAMS)) + 0.01 * np.eye(12), np.asarray(gradient).reshape(-1)
    )
    np.testing.assert_allclose(step.reshape(-1), expected, atol=1e-10)


def run(optimizer, steps):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(energy)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(PARAMS)
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_natural_gradient_reaches_the_ground_state():
    params, _ = run(qng(STATE, 0.2, lam=1e-3, approx=None), 40)
    assert energy(params) < -1.8 + 1e-2


def test_qnspsa_estimates_the_metric():
    _, state = run(qnspsa(STATE, jax.random.key(0), 1e-12), 3000)
    exact = mt.metric_tensor(STATE, PARAMS)
    assert np.abs(np.asarray(state.metric - exact)).mean() < 0.05


def test_rotosolve_finds_the_minimum_over_each_angle():
    params, _ = run(rotosolve(energy), 1)
    last = np.asarray(params).reshape(-1)[-1]
    scan = [energy(params.at[1, 5].set(last + x)) for x in np.linspace(-np.pi, np.pi, 25)]
    assert energy(params) <= min(scan) + 1e-12
    params, _ = run(rotosolve(energy), 12)
    assert energy(params) < -1.8 + 1e-3


def test_wrong_use_is_named():
    with pytest.raises(InputError, match="approx is 'full'"):
        mt.metric_tensor(STATE, PARAMS, approx="full")
    with pytest.raises(InputError, match="there are 12 parameters"):
        mt.metric_tensor(STATE, PARAMS, approx="block-diag", layers=[0, 1])
    for optimizer in (qng(STATE), qnspsa(STATE, jax.random.key(0)), rotosolve(energy)):
        with pytest.raises(InputError, match="needs the parameters"):
            optimizer.update(PARAMS, optimizer.init(PARAMS))
    for match, make in (
        ("learning_rate is 0", lambda: qng(STATE, 0)),
        ("lam is -1", lambda: qng(STATE, lam=-1)),
        ("h is 0", lambda: qnspsa(STATE, jax.random.key(0), h=0)),
        ("frequency is 0", lambda: rotosolve(energy, frequency=0)),
    ):
        with pytest.raises(InputError, match=match):
            make()
