"""Gates against PennyLane's matrices, and each of their forms against the matrix."""

import functools

import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
import scipy.linalg
from pennylane_oracle import NAMES, operator, wires_and_angles

from jaxlab.quantum.gates import ALIASES, GATES, gate_type
from jaxlab.quantum.lowering import pair_form, parities
from jaxlab.quantum.recording import Gate, record
from jaxlab.quantum.simulation import simulate

BASE = [name for name in NAMES if name not in ALIASES]


pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("kind", BASE)
def test_matrix_is_pennylanes(kind):
    wires, count = wires_and_angles(kind)
    angles = np.random.default_rng(0).uniform(-3, 3, (2, count))
    ours = gate_type(kind).matrix(jnp.asarray(angles))
    for row in range(2):
        np.testing.assert_allclose(
            ours[row],
            qml.matrix(operator(kind, angles[row], range(wires)), wire_order=range(wires)),
            atol=1e-14,
        )


def test_global_phase_is_pennylanes():
    np.testing.assert_allclose(
        gate_type("GlobalPhase").matrix(jnp.asarray([0.3]))[0, 0], np.exp(-0.3j), atol=1e-15
    )


@pytest.mark.parametrize("kind", [kind for kind in BASE if gate_type(kind).parities is not None])
@pytest.mark.parametrize("values", [(), (1,), (0, 1)])
def test_parities_give_the_phases_of_the_controlled_matrix(kind, values):
    wires, count = wires_and_angles(kind)
    angles = np.random.default_rng(1).uniform(-1, 1, count)
    n = wires + len(values)
    gate = Gate(kind, tuple(range(len(values), n)), 0, tuple(range(len(values))), values)
    phase = np.zeros(1 << n)
    for mask, slope, constant in parities(gate):
        signs = (-1.0) ** np.bitwise_count(np.arange(1 << n) & mask)
        phase += (constant + (slope * angles[0] if count else 0)) * signs
    matrix = qml.matrix(
        operator(kind, angles, range(len(values), n), range(len(values)), values), wire_order=range(n)
    )
    np.testing.assert_allclose(np.diag(np.exp(1j * phase)), matrix, atol=1e-14)


@pytest.mark.parametrize("kind", [kind for kind in BASE if gate_type(kind).pair is not None])
@pytest.mark.parametrize("values", [(), (1,), (0, 1)])
def test_pair_form_is_the_controlled_matrix(kind, values):
    wires, count = wires_and_angles(kind)
    angles = np.random.default_rng(2).uniform(-3, 3, count)
    n = wires + len(values)
    gate = Gate(kind, tuple(range(len(values), n)), 0, tuple(range(len(values))), values)
    form = pair_form(gate, n)
    a, a_sign, b, b_sign = np.asarray(gate_type(kind).pair.coefficients(jnp.asarray(angles)))
    matrix = np.zeros((1 << n, 1 << n), complex)
    for j in range(1 << n):
        sign = (-1) ** bin(j & form.signs).count("1")
        if (j ^ form.value) & form.where == 0 or (j ^ form.value ^ form.flip) & form.where == 0:
            matrix[j, j] += a + a_sign * sign
            matrix[j, j ^ form.flip] += b + b_sign * sign
        else:
            matrix[j, j] = 1
    expected = qml.matrix(
        operator(kind, angles, range(len(values), n), range(len(values)), values), wire_order=range(n)
    )
    np.testing.assert_allclose(matrix, expected, atol=1e-14)


@pytest.mark.parametrize(
    "kind", [kind for kind in GATES if gate_type(kind).angles == 1 and kind != "GlobalPhase"]
)
def test_spectrum_is_that_of_the_generator(kind):
    matrix = gate_type(kind).matrix
    step = 1e-5
    slope = (matrix(jnp.asarray([step])) - matrix(jnp.asarray([-step]))) / (2 * step)
    at_zero = np.asarray(matrix(jnp.asarray([0.0])))
    values = np.linalg.eigvals(np.asarray(slope) @ np.linalg.inv(at_zero)).imag
    spectrum = gate_type(kind).spectrum
    found = {round(abs(a - b), 3) for a in values for b in values if abs(a - b) > 1e-3}
    if kind == "PSWAP":  # at 0 it swaps already
        found = {1.0}
    assert found == {abs(a - b) for a in spectrum for b in spectrum} - {0.0}


@pytest.mark.parametrize("kind", BASE)
def test_real_gates_are_called_real(kind):
    matrix = gate_type(kind).matrix(
        jnp.asarray(np.random.default_rng(3).uniform(-3, 3, wires_and_angles(kind)[1]))
    )
    known = gate_type(kind)
    if known.is_real:
        assert np.abs(np.imag(matrix)).max() == 0
    assert known.is_real or known.parities is not None or np.abs(np.imag(matrix)).max() > 0


@pytest.mark.parametrize(("ends", "between"), [(2, 0), (2, 2), (4, 0), (4, 1), (4, 2)])
def test_fermionic_excitations_are_exponentials_of_ladder_operators(ends, between):
    n, half, t = ends + between, ends // 2, 0.7
    # Jordan-Wigner with the wires between just behind the first one that is emptied.
    order = [0, *range(ends, n), *range(1, ends)]

    def annihilate(wire):
        before = order[: order.index(wire)]
        lower = np.array([[0, 1], [0, 0]])
        factors = [
            np.diag([1, -1]) if one in before else lower if one == wire else np.eye(2) for one in range(n)
        ]
        return functools.reduce(np.kron, factors)

    excitation = np.eye(1 << n)
    for wire in range(half, ends):
        excitation = excitation @ annihilate(wire).T
    for wire in range(half):
        excitation = excitation @ annihilate(wire)
    full = (1 << half) - 1
    # The order of the electrons is a matter of convention: without others in between the sign is +.
    excitation = excitation * excitation[full << between, full << (between + half)]
    kind = f"FermionicExcitation:{ends},{between}"
    matrix = np.asarray(gate_type(kind).matrix(jnp.asarray([t])))
    np.testing.assert_allclose(matrix, scipy.linalg.expm(t / 2 * (excitation - excitation.T)), atol=1e-12)
    psi = np.random.default_rng(0).normal(size=1 << n) + 0j
    for block in (1, n):  # in pair form, and as a matrix
        run = simulate(*record(lambda c: c.gate(kind, range(n), t), n), jnp.asarray(psi), block=block)
        np.testing.assert_allclose(run, matrix @ psi, atol=1e-12)
