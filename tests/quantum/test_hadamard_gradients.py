"""Gradients by the Hadamard test against PennyLane's, the adjoint method's and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from pennylane import numpy as pnp

from jaxlab.errors import InputError
from jaxlab.quantum import pauli_sum
from jaxlab.quantum.hadamard_gradients import hadamard_gradient
from jaxlab.quantum.pauli_sums import expval
from jaxlab.quantum.recording import record
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")
HAMILTONIAN = pauli_sum({"XZI": 0.5, "IYY": -0.4, "ZII": 0.8, "IXZ": 0.3})
ANGLES = np.random.default_rng(0).uniform(-2, 2, 12)


def mixed(c, x):
    c.h(0)
    c.rx(x[0], 0)
    c.rot(x[1], x[2], x[3], 1)
    c.cry(x[4], 0, 2)
    c.gate("RZ", 1, x[5], controls=(2,), values=(0,))
    c.gate("IsingXY", (0, 1), x[6], adjoint=True)
    c.unitary(np.array([[0, 1j], [1j, 0]]), 2)
    c.single_excitation(x[7], 1, 2)
    c.gate("PauliRot:XZ", (2, 0), x[8])
    c.gate("GlobalPhase", (), x[9])
    c.phase_shift(x[10], 2)


def layered(c, x):
    def layer(c, own):
        c.ry(own[:3], range(3))
        c.cnot(0, 1)
        c.crz(own[3], 1, 2)

    c.rx(x[0], 1)
    c.repeat(layer, x[:12].reshape(3, 4))


def energy(program):
    return lambda slots: expval(simulate(program, slots), HAMILTONIAN)


@pytest.mark.parametrize("circuit", [mixed, layered])
@pytest.mark.parametrize("mode", ["standard", "direct"])
def test_gradients_are_the_adjoint_methods(circuit, mode):
    program, slots = record(circuit, 3, jnp.asarray(ANGLES))
    found = jax.jit(lambda slots: hadamard_gradient(program, slots, HAMILTONIAN, mode=mode))(slots)
    expected = jax.grad(energy(program))(slots)
    for one, other in zip(found, expected, strict=True):
        assert float(jnp.abs(other.angles).max()) > 0.05
        np.testing.assert_allclose(one, other.angles, atol=1e-9)


def test_gradients_are_pennylanes():
    device = qml.device("default.qubit", wires=4)

    @qml.qnode(device, interface="autograd")
    def circuit(x):
        qml.RX(x[0], 0)
        qml.CRY(x[1], (0, 1))
        qml.IsingXY(x[2], (1, 2))
        qml.SingleExcitation(x[3], (0, 2))
        return qml.expval(0.5 * qml.X(0) @ qml.Z(1) - 0.4 * qml.Y(1) @ qml.Y(2) + 0.8 * qml.Z(0))

    def ours(c, x):
        c.rx(x[0], 0)
        c.cry(x[1], 0, 1)
        c.ising_xy(x[2], 1, 2)
        c.single_excitation(x[3], 0, 2)

    x = jnp.asarray(ANGLES[:4])
    expected = qml.gradients.hadamard_grad(circuit, aux_wire=3)(pnp.array(ANGLES[:4], requires_grad=True))
    program, slots = record(ours, 3, x)
    hamiltonian = pauli_sum({"XZI": 0.5, "IYY": -0.4, "ZII": 0.8})
    for mode in ("standard", "direct"):
        (found,) = hadamard_gradient(program, slots, hamiltonian, mode=mode, batch=3)
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_one_rotation_has_its_closed_form():
    program, slots = record(lambda c, t: c.rx(t, 0), 1, jnp.asarray(0.7))
    for mode in ("standard", "direct"):
        (found,) = hadamard_gradient(program, slots, pauli_sum({"Z": 1.0}), mode=mode)
        np.testing.assert_allclose(found, [-np.sin(0.7)], atol=1e-14)


def test_another_measure_may_estimate_the_mean():
    program, slots = record(lambda c, t: c.rx(t, 0), 1, jnp.asarray(0.7))
    seen = []

    def doubled(state, operator):
        seen.append((state.shape, operator.n))
        return 2 * expval(state, operator)

    (found,) = hadamard_gradient(program, slots, pauli_sum({"Z": 1.0}), measure=doubled)
    np.testing.assert_allclose(found, [-2 * np.sin(0.7)], atol=1e-14)
    assert set(seen) == {((4,), 2)}  # one more wire


def test_wrong_use_is_named():
    program, slots = record(mixed, 3, jnp.asarray(ANGLES))
    for options, message in (
        ({"mode": "reversed"}, "mode is 'reversed'"),
        ({"batch": 0}, "batch is 0"),
    ):
        with pytest.raises(InputError, match=message):
            hadamard_gradient(program, slots, HAMILTONIAN, **options)
    with pytest.raises(InputError, match="hamiltonian is on 1 wires, the program on 3"):
        hadamard_gradient(program, slots, pauli_sum({"Z": 1.0}))
    program, slots = record(lambda c: c.h(0), 1)
    with pytest.raises(InputError, match="no angle"):
        hadamard_gradient(program, slots, pauli_sum({"Z": 1.0}))
