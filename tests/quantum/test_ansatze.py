"""Ansatze against PennyLane's templates, and their compile time against their depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
import scipy.optimize

from jaxlab.errors import InputError
from jaxlab.quantum import ansatze
from jaxlab.quantum.molecules import molecule
from jaxlab.quantum.pauli_sums import expval, from_pennylane, pauli_sum

pytestmark = pytest.mark.usefixtures("double_precision")


def random_params(ansatz, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, ansatz.shape)


def pennylanes(n, record):
    @qml.qnode(qml.device("default.qubit", wires=n))
    def state():
        record()
        return qml.state()

    return np.asarray(state())


@pytest.mark.parametrize(("n", "layers"), [(1, 2), (2, 3), (4, 2), (4, 9), (5, 30)])
def test_strongly_entangling_layers_are_pennylanes(n, layers):
    ansatz = ansatze.strongly_entangling(n, layers)
    params = random_params(ansatz)
    expected = pennylanes(n, lambda: qml.StronglyEntanglingLayers(params, range(n)))
    np.testing.assert_allclose(jax.jit(ansatz.state)(params), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "layers"), [(1, 1), (4, 5)])
def test_hardware_efficient_layers_gate_by_gate(n, layers):
    ansatz = ansatze.hardware_efficient(n, layers)
    params = random_params(ansatz)

    def record():
        for layer in params:
            for wire, (y, z) in enumerate(layer):
                qml.RY(y, wire)
                qml.RZ(z, wire)
            for wire in range(n - 1):
                qml.CNOT((wire, wire + 1))

    np.testing.assert_allclose(jax.jit(ansatz.state)(params), pennylanes(n, record), atol=1e-12)


@pytest.mark.parametrize(("k", "electrons"), [(2, 2), (3, 2), (3, 4), (4, 4)])
def test_excitations_are_pennylanes(k, electrons):
    singles, doubles = qml.qchem.excitations(electrons, 2 * k)
    found = ansatze.excitations(k, electrons)
    assert [list(one) for one in found.singles] == singles
    assert [list(one) for one in found.doubles] == doubles
    assert ansatze.excitations(k, (electrons // 2, electrons // 2)) == found


@pytest.mark.parametrize(("k", "electrons"), [(2, 2), (3, 2), (3, 4), (4, 4)])
def test_all_singles_and_doubles_are_pennylanes(k, electrons):
    ansatz, n = ansatze.all_singles_doubles(k, electrons), 2 * k
    params = random_params(ansatz)
    singles, doubles = qml.qchem.excitations(electrons, n)
    start = qml.qchem.hf_state(electrons, n)
    expected = pennylanes(n, lambda: qml.AllSinglesDoubles(params, range(n), start, singles, doubles))
    np.testing.assert_allclose(jax.jit(ansatz.state)(params), expected, atol=1e-12)


@pytest.mark.parametrize(("k", "electrons", "repeats"), [(2, 2, 1), (3, 2, 1), (3, 4, 2), (4, 4, 1)])
def test_unitary_coupled_cluster_is_pennylanes(k, electrons, repeats):
    ansatz, n = ansatze.uccsd(k, electrons, repeats=repeats), 2 * k
    params = random_params(ansatz)
    wires = qml.qchem.excitations_to_wires(*qml.qchem.excitations(electrons, n))
    start = qml.qchem.hf_state(electrons, n)
    expected = pennylanes(n, lambda: qml.UCCSD(params, range(n), *wires, start, n_repeats=repeats))
    np.testing.assert_allclose(jax.jit(ansatz.state)(params), expected, atol=1e-12)


@pytest.mark.parametrize("electrons", [(1, 0), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("make", [ansatze.uccsd, ansatze.all_singles_doubles])
def test_electrons_of_each_spin_stay_as_many(make, electrons):
    k = 4
    ansatz = make(k, electrons)
    p = np.abs(jax.jit(ansatz.state)(random_params(ansatz))) ** 2
    bits = np.arange(1 << 2 * k)[:, None] >> np.arange(2 * k)[::-1] & 1
    for spin in range(2):
        np.testing.assert_allclose(p @ bits[:, spin::2].sum(1), electrons[spin], atol=1e-12)
    kept = p > 1e-12
    assert np.all(bits[kept, ::2].sum(1) == electrons[0])
    start = np.abs(ansatz.state(np.zeros(ansatz.shape)))
    assert bits[np.argmax(start)].sum() == sum(electrons) and np.max(start) == pytest.approx(1)


@pytest.mark.parametrize("electrons", [(2, 2), (3, 1)])
def test_coupled_cluster_rotates_by_ladder_operators(electrons):
    """exp(t (T - T^dagger) / 2) of each excitation alone, up to the sign of t."""
    k, n = 3 + (electrons == (3, 1)), 6 + 2 * (electrons == (3, 1))

    def ladder(wire):
        whole = np.eye(1)
        for at in range(n):
            own = np.diag([1, -1]) if at < wire else np.array([[0, 1], [0, 0]]) if at == wire else np.eye(2)
            whole = np.kron(whole, own)
        return whole

    a = [ladder(wire) for wire in range(n)]
    ansatz = ansatze.uccsd(k, electrons)
    singles, doubles = ansatze.excitations(k, electrons)
    start = np.asarray(ansatz.state(np.zeros(ansatz.shape)))
    states = jax.jit(jax.vmap(ansatz.state))(0.6 * np.eye(*ansatz.shape * 2))
    for wires, psi in zip([*singles, *doubles], states, strict=True):
        half = len(wires) // 2
        t = np.eye(1 << n)
        for wire in wires[:half]:
            t = a[wire] @ t
        for wire in wires[half:]:
            t = a[wire].T @ t
        moved = t @ start
        assert np.linalg.norm(moved) == pytest.approx(1)
        expected = np.cos(0.3) * start
        across = np.vdot(moved, psi).real
        assert abs(across) == pytest.approx(np.sin(0.3), abs=1e-12)
        np.testing.assert_allclose(psi, expected + across * moved, atol=1e-12)


def test_coupled_cluster_of_hydrogen_is_exact():
    found = molecule("H2")
    ansatz = ansatze.uccsd(2, found.electrons)

    def energy(params):
        return expval(ansatz.state(params), found.hamiltonian)

    start = np.zeros(ansatz.shape)
    assert float(energy(start)) == pytest.approx(found.hf_energy, abs=1e-9)
    best = scipy.optimize.minimize(jax.jit(jax.value_and_grad(energy)), start, jac=True, tol=1e-10)
    assert best.fun == pytest.approx(found.fci_energy, abs=1e-9)


def test_qaoa_is_pennylanes():
    n, p = 4, 3
    edges = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 2)]
    cost = qml.Hamiltonian(
        [0.5, -1.5, *[-0.5] * len(edges)],
        [qml.I(0), qml.Z(3), *(qml.Z(a) @ qml.Z(b) for a, b in edges)],
    )
    ansatz = ansatze.qaoa(from_pennylane(cost), p)
    params = random_params(ansatz)

    def record():
        for wire in range(n):
            qml.Hadamard(wire)
        for gamma, beta in params:
            qml.exp(cost, -1j * gamma)
            for wire in range(n):
                qml.RX(2 * beta, wire)

    expected = pennylanes(n, record)
    np.testing.assert_allclose(jax.jit(ansatz.state)(params), expected, atol=1e-12)


def test_qaoa_of_a_cost_that_does_not_commute_is_a_product_of_its_words():
    terms = {"XYI": 0.3, "IZZ": -0.7, "YIX": 0.4}
    cost = pauli_sum(terms)
    ansatz = ansatze.qaoa(cost, 2)
    params = random_params(ansatz)

    def record():
        for wire in range(3):
            qml.Hadamard(wire)
        for gamma, beta in params:
            for word, weight in ansatze.words(cost).items():
                wires = [wire for wire, letter in enumerate(word) if letter != "I"]
                qml.PauliRot(2 * gamma * weight, "".join(word[wire] for wire in wires), wires)
            for wire in range(3):
                qml.RX(2 * beta, wire)

    np.testing.assert_allclose(jax.jit(ansatz.state)(params), pennylanes(3, record), atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda depth: ansatze.hardware_efficient(4, depth),
        lambda depth: ansatze.strongly_entangling(4, depth),
        lambda depth: ansatze.strongly_entangling(5, depth),
        lambda depth: ansatze.uccsd(2, 2, repeats=depth),
        lambda depth: ansatze.qaoa(pauli_sum({"ZZII": 1.0, "IZZI": 1.0, "IXXI": 0.5}), depth),
    ],
    ids=["hardware_efficient", "strongly_entangling", "strongly_entangling, 5 wires", "uccsd", "qaoa"],
)
def test_programs_do_not_grow_with_depth(make):
    sizes = []
    for depth in (12, 48):
        ansatz = make(depth)
        loss = jax.jit(jax.grad(lambda x, ansatz=ansatz: jnp.abs(ansatz.state(x)[0])))
        sizes.append(loss.lower(random_params(ansatz)).as_text().count("\n"))
    # Where simulate finds the layers itself, recording has taken their angles apart before, with a few lines a layer.
    assert sizes[1] - sizes[0] <= 36 * 45


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ansatze.hardware_efficient(0, 1), "n is 0"),
        (lambda: ansatze.strongly_entangling(2, 0), "layers is 0"),
        (lambda: ansatze.uccsd(0, 2), "k is 0"),
        (lambda: ansatze.uccsd(2, 3), "odd number"),
        (lambda: ansatze.uccsd(2, 6), "hold 0 to 2"),
        (lambda: ansatze.uccsd(2, (3, 1)), "hold 0 to 2"),
        (lambda: ansatze.uccsd(2, 4), "no excitations"),
        (lambda: ansatze.all_singles_doubles(2, 0), "no excitations"),
        (lambda: ansatze.uccsd(2, 2, repeats=0), "repeats is 0"),
        (lambda: ansatze.qaoa(pauli_sum({"Z": 1.0}), 0), "layers is 0"),
        (lambda: ansatze.qaoa(pauli_sum({"Z": 1j}), 1), "complex coefficients"),
        (lambda: ansatze.uccsd(2, 2).state(np.zeros(2)), r"params has shape \(2,\); it must be \(3,\)"),
        (
            lambda: ansatze.record(ansatze.uccsd(2, 2), 5, np.zeros(3)),
            "the circuit has 5 wires; the ansatz is for 4",
        ),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
