"""Noise against PennyLane's channels and density matrices, and trajectories against density matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum import noise
from jaxlab.quantum.recording import record
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")


def superoperator(kraus):
    return sum(np.kron(one, np.conj(one)) for one in np.asarray(kraus))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (noise.bit_flip(0.1), qml.BitFlip(0.1, wires=0)),
        (noise.phase_flip(0.1), qml.PhaseFlip(0.1, wires=0)),
        (noise.depolarizing(0.1), qml.DepolarizingChannel(0.1, wires=0)),
        (noise.amplitude_damping(0.2), qml.AmplitudeDamping(0.2, wires=0)),
        (noise.generalized_amplitude_damping(0.2, 0.7), qml.GeneralizedAmplitudeDamping(0.2, 0.7, wires=0)),
        (noise.phase_damping(0.2), qml.PhaseDamping(0.2, wires=0)),
        (noise.reset_error(0.1, 0.2), qml.ResetError(0.1, 0.2, wires=0)),
        (noise.pauli_error("XY", 0.3), qml.PauliError("XY", 0.3, wires=(0, 1))),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_channel_is_pennylanes(ours, theirs):
    noise.check_channel(ours)
    np.testing.assert_allclose(superoperator(ours), superoperator(theirs.kraus_matrices()), atol=1e-6)


ANGLES = np.array([[0.4, -0.7], [1.1, 0.3]])


def noisy(c, p, angles=ANGLES):
    def layer(c, x):
        c.rx(x[0], 0)
        c.gate("CRot", (0, 2), x[1], 0.3, x[0])
        c.channel(noise.amplitude_damping(p), 0)
        c.gate("IsingXY", (1, 2), x[1], adjoint=True)
        c.rz(x[0], 1)
        c.ry(x[1], 1)
        c.channel(noise.pauli_error("XZ", p), (2, 1))

    c.repeat(layer, jnp.asarray(angles))
    c.sx(2)
    c.channel(noise.depolarizing(p / 2), 2)


def pennylanes(p):
    @qml.qnode(qml.device("default.mixed", wires=3))
    def circuit():
        for x in ANGLES:
            qml.RX(x[0], 0)
            qml.CRot(x[1], 0.3, x[0], wires=(0, 2))
            qml.AmplitudeDamping(p, wires=0)
            qml.adjoint(qml.IsingXY(x[1], (1, 2)))
            qml.RZ(x[0], 1)
            qml.RY(x[1], 1)
            qml.PauliError("XZ", p, wires=(2, 1))
        qml.SX(2)
        qml.DepolarizingChannel(p / 2, wires=2)
        return qml.density_matrix(range(3))

    return np.asarray(circuit())


def test_density_matrix_is_pennylanes():
    rho = jax.jit(lambda p: noise.density_matrix_of(*record(lambda c: noisy(c, p), 3)))(0.2)
    np.testing.assert_allclose(rho, pennylanes(0.2), atol=1e-12)


def test_density_matrix_can_be_differentiated_in_the_noise():
    observable = np.array([[1, 0.5j], [-0.5j, -1]])

    def value(p):
        rho = noise.density_matrix_of(*record(lambda c: noisy(c, p), 3))
        return noise.expval_of_density(rho, observable, (1,))

    slope = jax.jit(jax.grad(value))(0.2)
    ahead, behind = (
        np.real(np.trace(np.kron(np.kron(np.eye(2), observable), np.eye(2)) @ pennylanes(p)))
        for p in (0.2001, 0.1999)
    )
    assert abs(slope - (ahead - behind) / 2e-4) < 1e-6


def test_trajectories_average_to_the_density_matrix():
    program, slots = record(lambda c: noisy(c, 0.3), 3)
    count = 3000
    states = jax.jit(jax.vmap(lambda key: noise.trajectory(key, program, slots)))(
        jax.random.split(jax.random.key(0), count)
    )
    p = np.abs(states) ** 2
    exact = np.real(np.diag(pennylanes(0.3)))
    assert np.allclose(p.sum(1), 1)
    assert np.all(np.abs(p.mean(0) - exact) < 4 * p.std(0) / np.sqrt(count) + 1e-12)
    coherence = states[:, 1] * states[:, 6].conj()
    assert abs(coherence.mean() - pennylanes(0.3)[1, 6]) < 4 * np.abs(coherence).std() / np.sqrt(count) * 2


def test_wrong_use_is_named():
    program, slots = record(lambda c: noisy(c, 0.1), 3)
    with pytest.raises(InputError, match="density_matrix_of or trajectory"):
        simulate(program, slots)
    with pytest.raises(InputError, match="average trajectories"):
        noise.density_matrix_of(*record(lambda c: c.x(0), 15))
    with pytest.raises(InputError, match="kraus has shape"):
        record(lambda c: c.channel(np.eye(2), 0), 1)
    with pytest.raises(InputError, match="no channel"):
        noise.check_channel(jnp.ones((1, 2, 2)))
    rho = jnp.eye(4) / 4
    with pytest.raises(InputError, match="ascending"):
        noise.expval_of_density(rho, jnp.eye(4), (1, 0))
    with pytest.raises(InputError, match="matrix has shape"):
        noise.expval_of_density(rho, jnp.eye(4), (0,))
