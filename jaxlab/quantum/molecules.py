"""Molecules as sums of Pauli words: Hartree-Fock orbitals of pyscf, Jordan-Wigner transform, kept in the user's cache.

Orbital p with spin up is wire 2 p, with spin down wire 2 p + 1; orbitals are in the order of their energy, so that the
Hartree-Fock state is |1..10..0> for a closed shell. Energies are in hartree, lengths in angstrom. Reference: Jordan and
Wigner, 1928; conventions as in OpenFermion (arXiv:1710.07629) and PennyLane's qchem.
"""

import dataclasses
import functools
import hashlib
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file, cache_dir
from jaxlab.quantum.pauli_sums import MOST_WIRES, PauliSum, from_masks

Atoms = tuple[tuple[str, tuple[float, float, float]], ...]
"""Symbols and coordinates in angstrom."""

_CHAINS = {"H2": 0.7414, "H4": 1.0, "H6": 1.0, "H8": 1.0}
_LINEAR = {"LiH": (("Li", "H"), 1.5949), "BeH2": (("H", "Be", "H"), 1.3264), "N2": (("N", "N"), 1.0977)}
_WATER = (("O", (0.0, 0.0, 0.1173)), ("H", (0.0, 0.7572, -0.4692)), ("H", (0.0, -0.7572, -0.4692)))
MOLECULES = (*_CHAINS, *_LINEAR, "H2O")
"""Molecules with a geometry of their own."""

_FORMAT = 1  # of a cached file; another number makes all of them anew
_SMALLEST = 1e-10  # hartree; smaller coefficients are rounding errors of integrals that symmetry makes zero
_MOST_DETERMINANTS = 4_000_000  # beyond it full configuration interaction takes minutes and gigabytes


@dataclasses.dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule's active space of k orbitals, on 2 k wires.

    H = core_energy + sum_pq one_body[p, q] E_pq + 1/2 sum_pqrs two_body[p, q, r, s] (E_pq E_rs - delta_qr E_ps), E_pq
    moving an electron from orbital q to p, whatever its spin; two_body is (pq|rs).
    """

    hamiltonian: PauliSum
    atoms: Atoms
    electrons: tuple[int, int]
    """Spin up and spin down, in the active space."""
    hf_energy: float
    fci_energy: float | None
    """Lowest energy with these numbers of electrons; None with more than 4 million determinants."""
    hf_bits: tuple[int, ...]
    """The Hartree-Fock state, a bit a wire."""
    core_energy: float
    one_body: Float[np.ndarray, "k k"]
    two_body: Float[np.ndarray, "k k k k"]


class _Integrals(NamedTuple):
    core: float
    one_body: Float[np.ndarray, "k k"]
    two_body: Float[np.ndarray, "k k k k"]


def geometry(name: str, *, bond: float | None = None) -> Atoms:
    """Coordinates of one of `MOLECULES`.

    Args:
      name: hydrogen chains lie on the z axis, so do LiH, BeH2 and N2.
      bond: angstrom between neighbours (in H2O between O and H, at the same angle); None is near equilibrium, for
        chains longer than H2 1.

    Raises:
      InputError: unknown name, or a bond that is not positive.
    """
    if bond is not None and not (bond > 0 and math.isfinite(bond)):
        raise InputError(f"bond is {bond}; it must be positive (angstrom)")
    if name in _CHAINS:
        symbols, length = ("H",) * int(name[1:]), _CHAINS[name]
    elif name in _LINEAR:
        symbols, length = _LINEAR[name]
    elif name == "H2O":
        (_, oxygen), *hydrogens = _WATER
        stretch = 1.0 if bond is None else bond / math.dist(oxygen, hydrogens[0][1])
        moved = [
            (symbol, tuple(o + stretch * (h - o) for o, h in zip(oxygen, at, strict=True)))
            for symbol, at in hydrogens
        ]
        return _atoms([_WATER[0], *moved])
    else:
        raise InputError(f"molecule {name!r} is not known; there are {', '.join(MOLECULES)}, or give atoms")
    length = length if bond is None else bond
    return _atoms([(symbol, (0.0, 0.0, i * length)) for i, symbol in enumerate(symbols)])


def molecule(
    what: str | Sequence[tuple[str, Sequence[float]]],
    *,
    bond: float | None = None,
    basis: str = "sto-3g",
    charge: int = 0,
    unpaired: int = 0,
    frozen: int = 0,
    active: Sequence[int] | None = None,
    symmetry: bool = True,
) -> Molecule:
    """A molecule's Hamiltonian and reference energies; the second time from the cache, without pyscf.

    Args:
      what: one of `MOLECULES`, or atoms: [("Li", (0, 0, 0)), ("H", (0, 0, 1.6))], in angstrom.
      bond: see `geometry`; only with a name.
      basis: any that pyscf knows by name, e.g. "sto-3g", "6-31g".
      charge: electrons fewer than protons.
      unpaired: electrons with spin up that have no partner (2 S); restricted open-shell Hartree-Fock if not 0.
      frozen: lowest orbitals that stay doubly occupied, e.g. 1 for the core of LiH.
      active: orbitals of the active space, instead of `frozen`; of the others, the occupied stay occupied and the
        empty ones are left out.
      symmetry: align degenerate orbitals with the axes of the molecule's point group. Without it their rotation is
        arbitrary, and N2 has 2,951 words instead of 2,239.

    Raises:
      InputError: what pyscf makes of the atoms cannot be used, Hartree-Fock does not converge, the active space is
        not possible, or it has more than 15 orbitals.
      ResourceError: pyscf is not installed.
    """
    if isinstance(what, str):
        atoms = geometry(what, bond=bond)
    elif bond is not None:
        raise InputError(f"bond is {bond}; it belongs to a name, and atoms are given")
    else:
        atoms = _atoms(what)
    if active is not None and frozen:
        raise InputError(f"frozen is {frozen} and active is {tuple(active)}; give one of them")
    settings = {
        "atoms": atoms,
        "basis": basis.lower(),
        "charge": charge,
        "unpaired": unpaired,
        "frozen": frozen,
        "active": None if active is None else sorted(int(orbital) for orbital in active),
        "symmetry": symmetry,
    }
    digest = hashlib.sha256(json.dumps([_FORMAT, settings], sort_keys=True).encode()).hexdigest()
    path = cache_dir("molecules") / f"{digest[:32]}.npz"
    arrays = _read(path) or _computed(path, settings)
    integrals = _Integrals(float(arrays["core"]), arrays["one_body"], arrays["two_body"])
    up, down = (int(count) for count in arrays["electrons"])
    fci = float(arrays["fci"])
    bits = tuple(int(p < count) for p in range(len(integrals.one_body)) for count in (up, down))
    return Molecule(
        hamiltonian=jordan_wigner(*integrals),
        atoms=atoms,
        electrons=(up, down),
        hf_energy=float(arrays["hf"]),
        fci_energy=None if math.isnan(fci) else fci,
        hf_bits=bits,
        core_energy=integrals.core,
        one_body=integrals.one_body,
        two_body=integrals.two_body,
    )


def jordan_wigner(
    core_energy: float, one_body: Float[np.ndarray, "k k"], two_body: Float[np.ndarray, "k k k k"]
) -> PauliSum:
    """The Pauli sum of electrons in k orbitals, on 2 k wires; see `Molecule` for the Hamiltonian.

    Args:
      core_energy: of nuclei and frozen electrons.
      one_body: real and symmetric.
      two_body: real, (pq|rs), with its symmetries.

    Raises:
      InputError: shapes do not fit, or k > 15.
    """
    k = len(one_body)
    if np.shape(one_body) != (k, k) or np.shape(two_body) != (k,) * 4 or not k:
        raise InputError(
            f"one_body and two_body have shapes {np.shape(one_body)}, {np.shape(two_body)}; they must be (k, k) and "
            "(k, k, k, k)"
        )
    if 2 * k > MOST_WIRES:
        raise InputError(
            f"the active space has {k} orbitals; there may be up to {MOST_WIRES // 2}: freeze or drop some"
        )
    n = 2 * k
    e = _excitations(k)
    # E_pq E_rs has E_ps within it where q = r.
    single = one_body - 0.5 * np.einsum("prrq->pq", two_body)
    weights = 0.5 * two_body[e.p[:, None], e.q[:, None], e.p, e.q]
    left, right = np.nonzero(np.abs(weights) > 1e-3 * _SMALLEST)
    crossed = np.bitwise_count(e.z[left] & e.x[right]) & 1
    x = np.concatenate([[0], e.x, e.x[left] ^ e.x[right]])
    z = np.concatenate([[0], e.z, e.z[left] ^ e.z[right]])
    c = np.concatenate(
        [
            [core_energy],
            e.c * single[e.p, e.q],
            weights[left, right] * e.c[left] * e.c[right] * (1 - 2.0 * crossed),
        ]
    )
    key, member = np.unique(x << n | z, return_inverse=True)
    merged = np.bincount(member, c)
    kept = np.abs(merged) > _SMALLEST
    kept[0] = True  # the identity: one word at least
    x, z = key[kept] >> n, key[kept] & ((1 << n) - 1)
    # X^x Z^z is (-i)^y times the word; real integrals leave an even number y of Y.
    return from_masks(x, z, merged[kept] * (1 - 2.0 * (np.bitwise_count(x & z) >> 1 & 1)), n)


class _Excitations(NamedTuple):
    """E_pq of all p, q as sums of c X^x Z^z: four entries a pair and spin."""

    p: np.ndarray
    q: np.ndarray
    x: np.ndarray
    z: np.ndarray
    c: np.ndarray


@functools.lru_cache(4)
def _excitations(k: int) -> _Excitations:
    """The ladder operators are a = Z_before X (1 - Z) / 2 and its adjoint Z_before X (1 + Z) / 2."""
    p, q, spin, first, second = (part.ravel() for part in np.indices((k, k, 2, 2, 2)))
    wire_p, wire_q = 2 * p + spin, 2 * q + spin
    bit = np.left_shift(1, np.arange(2 * k)[::-1])
    before = np.cumsum(bit) - bit
    x = bit[wire_p] ^ bit[wire_q]
    z_p = before[wire_p] ^ first * bit[wire_p]
    z_q = before[wire_q] ^ second * bit[wire_q]
    swapped = np.bitwise_count(z_p & bit[wire_q]) & 1
    return _Excitations(p, q, x, z_p ^ z_q, 0.25 * (1 - 2.0 * second) * (1 - 2.0 * swapped))


def _atoms(atoms: Sequence[tuple[str, Sequence[float]]]) -> Atoms:
    found = []
    for atom in atoms:
        if len(atom) != 2 or len(atom[1]) != 3 or not all(math.isfinite(x) for x in atom[1]):
            raise InputError(f"atom is {atom!r}; it must be (symbol, (x, y, z)) with lengths in angstrom")
        x, y, z = (float(length) for length in atom[1])
        found.append((str(atom[0]), (x, y, z)))
    if not found:
        raise InputError("there are no atoms")
    return tuple(found)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None


def _computed(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        from pyscf import ao2mo, fci, gto, scf
    except ImportError as error:
        raise ResourceError(f"molecules need pyscf: pip install 'jaxlab[quantum]' ({error})") from error
    try:
        mol = gto.M(
            atom=settings["atoms"],
            basis=settings["basis"],
            charge=settings["charge"],
            spin=settings["unpaired"],
            symmetry=settings["symmetry"],
            verbose=0,
        )
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise InputError(f"pyscf cannot use this molecule: {error}") from error
    field = scf.ROHF(mol) if settings["unpaired"] else scf.RHF(mol)
    field.chkfile = None
    field.conv_tol = 1e-12
    field.kernel()
    if not field.converged:
        field = field.newton()
        field.kernel()
    if not field.converged:
        raise InputError(f"Hartree-Fock does not converge for {settings['atoms']}; bring the atoms closer")
    orbitals = _signed(np.asarray(field.mo_coeff))
    (up, down), active = _active_space(mol.nelec, orbitals.shape[1], settings)
    occupied = [orbital for orbital in range(mol.nelec[1]) if orbital not in active]
    density = 2 * orbitals[:, occupied] @ orbitals[:, occupied].T
    coulomb, exchange = field.get_jk(mol, density)
    bare = field.get_hcore()
    dressed = bare + coulomb - 0.5 * exchange
    core = mol.energy_nuc() + 0.5 * np.sum(density * (bare + dressed))
    chosen = orbitals[:, active]
    one_body = chosen.T @ dressed @ chosen
    two_body = ao2mo.restore(1, ao2mo.kernel(mol, chosen), len(active))
    arrays = {
        "hf": field.e_tot,
        "electrons": (up, down),
        "core": core,
        "one_body": one_body,
        "two_body": two_body,
    }
    arrays["fci"] = _fci(fci, one_body, two_body, (up, down)) + core
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return {name: np.asarray(array) for name, array in arrays.items()}


def _signed(orbitals: np.ndarray) -> np.ndarray:
    """The sign of an orbital is arbitrary; with this one it stays the same along a scan over geometries."""
    largest = np.argmax(np.round(np.abs(orbitals), 6), axis=0)
    return orbitals * np.sign(orbitals[largest, np.arange(orbitals.shape[1])])


def _active_space(
    electrons: tuple[int, int], k: int, settings: dict[str, Any]
) -> tuple[tuple[int, int], list[int]]:
    up, down = electrons
    active, frozen = settings["active"], settings["frozen"]
    if active is None:
        if not 0 <= frozen <= down:
            raise InputError(f"frozen is {frozen}; there are {down} doubly occupied orbitals")
        active = list(range(frozen, k))
    if not active or len(set(active)) < len(active) or not 0 <= min(active) <= max(active) < k:
        raise InputError(f"active is {active}; it must be some of the orbitals 0 to {k - 1}, none twice")
    if not set(range(down, up)) <= set(active):
        raise InputError(
            f"active is {active}; it must hold the orbitals {down} to {up - 1} of unpaired electrons"
        )
    if 2 * len(active) > MOST_WIRES:
        raise InputError(
            f"the active space has {len(active)} orbitals; there may be up to {MOST_WIRES // 2}: freeze or drop some"
        )
    held = sum(orbital not in active for orbital in range(down))
    return (up - held, down - held), active


def _fci(fci: Any, one_body: np.ndarray, two_body: np.ndarray, electrons: tuple[int, int]) -> float:
    k = len(one_body)
    determinants = math.comb(k, electrons[0]) * math.comb(k, electrons[1])
    if determinants > _MOST_DETERMINANTS:
        return math.nan
    # Several roots: a single one keeps the spatial symmetry of its first guess, which may not be the lowest's.
    roots = min(3, determinants)
    energies, _ = fci.direct_spin1.kernel(
        one_body, two_body, k, electrons, nroots=roots, conv_tol=1e-12, max_cycle=200, verbose=0
    )
    return float(np.min(energies))
