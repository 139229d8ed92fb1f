"""Molecules against figures of pyscf and OpenFermion (jaxlab's specification), PennyLane's qchem and exact states."""

import builtins
import math

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

from jaxlab.errors import InputError, ResourceError
from jaxlab.quantum import molecules
from jaxlab.quantum.molecules import geometry, jordan_wigner, molecule
from jaxlab.quantum.pauli_sums import dense, expval, ground_state, words
from jaxlab.quantum.simulation import circuit

pytestmark = pytest.mark.usefixtures("double_precision")

BOHR = 0.529177210903
H2_IN_BOHR = 1.3886957


@pytest.mark.parametrize(
    ("name", "wires", "terms", "masks", "hf", "fci"),
    [
        ("H2", 4, 15, 2, -1.11668439, -1.13727017),
        ("H4", 8, 185, 27, -2.09854594, -2.16638745),
        ("LiH", 12, 631, 84, -7.86202696, -7.88240341),
        ("H6", 12, 919, 148, -3.13553221, -3.23606628),
        ("BeH2", 14, 666, 94, -15.56031234, -15.59517687),
        ("H2O", 14, 1086, 162, -74.96302314, -75.01257824),
        ("H8", 16, 2913, 501, -4.17436981, -4.30757160),
        # With axes of symmetry; without them see below.
        ("N2", 20, 2239, 378, -107.49589331, -107.65282873),
    ],
)
def test_known_molecules_have_their_known_figures(name, wires, terms, masks, hf, fci):
    found = molecule(name)
    sizes = found.hamiltonian.n, len(words(found.hamiltonian)), len(np.unique(found.hamiltonian.x))
    assert sizes == (wires, terms, masks)
    assert (found.hf_energy, found.fci_energy) == pytest.approx((hf, fci), abs=1e-8)
    assert len(found.hf_bits) == wires
    assert sum(found.hf_bits) == sum(found.electrons)
    index = int("".join(map(str, found.hf_bits)), 2)
    psi = jnp.zeros(1 << wires, complex).at[index].set(1)
    assert float(jax.jit(expval)(psi, found.hamiltonian)) == pytest.approx(found.hf_energy, abs=1e-9)


@pytest.mark.slow
def test_without_axes_of_symmetry_nitrogen_has_more_words_and_the_same_energies():
    found = molecule("N2", symmetry=False)
    assert len(words(found.hamiltonian)) == 2951
    assert len(np.unique(found.hamiltonian.x)) == 534
    assert (found.hf_energy, found.fci_energy) == pytest.approx((-107.49589331, -107.65282873), abs=1e-8)


@pytest.mark.parametrize("name", ["H2", "H4", "LiH"])
def test_lowest_eigenvalue_is_full_configuration_interaction(name):
    found = molecule(name)
    lowest, _ = ground_state(found.hamiltonian)
    assert lowest == pytest.approx(found.fci_energy, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BeH2", "H2O"])
def test_lowest_eigenvalue_is_full_configuration_interaction_on_14_wires(name):
    test_lowest_eigenvalue_is_full_configuration_interaction(name)


def test_hydrogen_is_that_of_pennylanes_chemistry():
    ours = molecule("H2", bond=H2_IN_BOHR * BOHR)
    atoms = qml.qchem.Molecule(["H", "H"], np.array([[0, 0, 0], [0, 0, H2_IN_BOHR]]), unit="bohr")
    theirs, wires = qml.qchem.molecular_hamiltonian(atoms)
    assert wires == ours.hamiltonian.n
    np.testing.assert_allclose(
        dense(ours.hamiltonian), qml.matrix(theirs, wire_order=range(wires)), atol=2e-8
    )
    np.testing.assert_array_equal(ours.hf_bits, qml.qchem.hf_state(2, 4))


def test_one_double_excitation_finds_the_ground_state_of_hydrogen():
    found = molecule("H2", bond=H2_IN_BOHR * BOHR)
    assert found.hf_energy == pytest.approx(-1.117004808120779, abs=1e-8)
    assert ground_state(found.hamiltonian)[0] == pytest.approx(-1.1373060514294933, abs=1e-8)
    assert found.fci_energy == pytest.approx(-1.1373060514294933, abs=1e-8)

    def ansatz(c, theta):
        c.x([wire for wire, bit in enumerate(found.hf_bits) if bit])
        c.double_excitation(theta, 0, 1, 2, 3)

    energy = circuit(ansatz, 4, lambda psi: expval(psi, found.hamiltonian), dtype=complex)
    value_and_slope = jax.jit(jax.value_and_grad(energy))
    value, slope = value_and_slope(0.0)
    assert (float(value), float(slope)) == pytest.approx((-1.117004808120779, -0.18092373), abs=1e-8)
    value, slope = value_and_slope(0.22348285)
    assert (float(value), float(slope)) == pytest.approx((-1.137306051429494, 0.0), abs=2e-8)


def test_jordan_wigner_is_made_of_ladder_operators():
    """Matrices of a_p, and the Hamiltonian from them as in textbooks."""
    k, rng = 3, np.random.default_rng(0)
    one = rng.normal(size=(k, k))
    one += one.T
    two = rng.normal(size=(k,) * 4)
    two = sum(np.einsum(f"pqrs->{out}", two) for out in ("pqrs", "qprs", "pqsr", "qpsr"))
    two = two + two.transpose(2, 3, 0, 1)
    n, lowering = 2 * k, np.array([[0, 1], [0, 0]])

    def ladder(wire):
        factors = [np.diag([1, -1])] * wire + [lowering] + [np.eye(2)] * (n - 1 - wire)
        whole = np.eye(1)
        for factor in factors:
            whole = np.kron(whole, factor)
        return whole

    a = [[ladder(2 * p + spin) for spin in range(2)] for p in range(k)]
    expected = 0.7 * np.eye(1 << n)
    for p in range(k):
        for q in range(k):
            for spin in range(2):
                expected += one[p, q] * a[p][spin].T @ a[q][spin]
                for r in range(k):
                    for s in range(k):
                        for other in range(2):
                            pair = a[p][spin].T @ a[r][other].T @ a[s][other] @ a[q][spin]
                            expected += 0.5 * two[p, q, r, s] * pair
    np.testing.assert_allclose(dense(jordan_wigner(0.7, one, two)), expected, atol=1e-11)


def test_frozen_and_active_orbitals():
    full, frozen = molecule("LiH"), molecule("LiH", frozen=1)
    assert frozen.hamiltonian.n == 10
    assert frozen.electrons == (1, 1)
    assert frozen.hf_energy == pytest.approx(full.hf_energy, abs=1e-9)
    assert full.fci_energy < frozen.fci_energy < full.fci_energy + 1e-3
    assert ground_state(frozen.hamiltonian)[0] == pytest.approx(frozen.fci_energy, abs=1e-8)
    same = molecule("LiH", active=[5, 1, 2, 3, 4])
    assert words(same.hamiltonian) == pytest.approx(words(frozen.hamiltonian), abs=1e-12)
    small = molecule("LiH", active=[1, 2])
    assert (small.hamiltonian.n, small.electrons, small.hf_bits) == (4, (1, 1), (1, 1, 0, 0))
    psi = jnp.zeros(16, complex).at[0b1100].set(1)
    assert float(expval(psi, small.hamiltonian)) == pytest.approx(full.hf_energy, abs=1e-9)


def test_unpaired_electrons_and_charges():
    triplet = molecule("H2", unpaired=2)
    assert (triplet.electrons, triplet.hf_bits) == ((2, 0), (1, 0, 1, 0))
    assert triplet.hf_energy == pytest.approx(triplet.fci_energy, abs=1e-10)
    cation = molecule("H2", charge=1, unpaired=1)
    assert cation.electrons == (1, 0)
    values = np.linalg.eigvalsh(dense(cation.hamiltonian))
    assert np.abs(values - cation.fci_energy).min() < 1e-9


def test_atoms_may_be_given():
    named = molecule("H2")
    given = molecule([("H", (0, 0, 0)), ("H", (0, 0.7414, 0))])
    assert given.fci_energy == pytest.approx(named.fci_energy, abs=1e-9)
    assert molecule("H2", basis="6-31G").hamiltonian.n == 8


def test_bonds_have_the_length_asked_for():
    for name in molecules.MOLECULES:
        (_, first), (_, second), *_ = geometry(name, bond=1.3)
        assert math.dist(first, second) == pytest.approx(1.3)
    (_, o), (_, first), (_, second) = geometry("H2O", bond=1.3)
    assert math.dist(o, second) == pytest.approx(1.3)
    (_, o), (_, near), (_, other) = geometry("H2O")
    assert math.dist(first, second) / math.dist(near, other) == pytest.approx(1.3 / math.dist(o, near))


def test_second_time_comes_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    first = molecule("H2")
    (file,) = (tmp_path / "molecules").iterdir()

    def without_pyscf(name, *args, **options):
        if name.startswith("pyscf"):
            raise ImportError("no pyscf here")
        return imported(name, *args, **options)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_pyscf)
    second = molecule("H2")
    for name in ("atoms", "electrons", "hf_energy", "fci_energy", "hf_bits", "core_energy"):
        assert getattr(first, name) == getattr(second, name)
    np.testing.assert_array_equal(first.one_body, second.one_body)
    np.testing.assert_array_equal(first.two_body, second.two_body)
    assert words(first.hamiltonian) == words(second.hamiltonian)
    with pytest.raises(ResourceError, match="pip install"):
        molecule("H2", bond=0.9)
    monkeypatch.undo()
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    for damage in (file.read_bytes()[:100], b"", b"not an archive"):
        file.write_bytes(damage)
        assert words(molecule("H2").hamiltonian) == words(first.hamiltonian)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: molecule("Xx"), "'Xx' is not known"),
        (lambda: molecule("H2", bond=-1.0), "bond is -1.0"),
        (lambda: molecule("H2", bond=math.nan), "bond is nan"),
        (lambda: molecule([("H", (0, 0, 0))], bond=1.0), "belongs to a name"),
        (lambda: molecule([("H", (0, 0))]), "atom is"),
        (lambda: molecule([("H", (0, 0, math.inf))]), "atom is"),
        (lambda: molecule([]), "no atoms"),
        (lambda: molecule([("Qq", (0, 0, 0))]), "pyscf cannot use"),
        (lambda: molecule([("H", (0, 0, 0))]), "pyscf cannot use"),
        (lambda: molecule("H2", basis="no-such-basis"), "pyscf cannot use"),
        (lambda: molecule("H2", charge=1), "pyscf cannot use"),
        (lambda: molecule("H2", frozen=2), "frozen is 2; there are 1"),
        (lambda: molecule("H2", frozen=-1), "frozen is -1"),
        (lambda: molecule("H2", frozen=1, active=[0]), "give one of them"),
        (lambda: molecule("H2", active=[0, 0]), "none twice"),
        (lambda: molecule("H2", active=[2]), "orbitals 0 to 1"),
        (lambda: molecule("H2", active=[]), "active is"),
        (lambda: molecule("H2", unpaired=2, active=[1]), "unpaired electrons"),
        (lambda: molecule("H8", basis="6-31g"), "16 orbitals"),
        (lambda: jordan_wigner(0.0, np.eye(2), np.zeros((2, 2))), "have shapes"),
        (lambda: jordan_wigner(0.0, np.eye(16), np.zeros((16,) * 4)), "16 orbitals"),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
