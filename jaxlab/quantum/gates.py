"""Gates: what each does, as matrices of their angles, and in the cheaper forms that some of them have.

Names, angles and matrices are PennyLane's. A gate with controls is its base gate with control wires in front (`CNOT`
is `PauliX` with one), so that one rule serves every controlled gate. Reference: arXiv:1811.04968, table of operations;
Nielsen and Chuang, chapter 4.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from jaxlab.kernels.statevector.monomials import waves

Builder = Callable[[Float[Array, "... angles"]], Inexact[Array, "... K K"]]
"""Matrices of a gate, from its angles along the last axis; batches in front."""


class Parity(NamedTuple):
    """A term of a diagonal gate's phase: (slope * angle + constant) (-1)^(number of ones under `mask`).

    Masks count the gate's own wires, its first wire highest.
    """

    mask: int
    slope: float
    constant: float = 0.0


class Pair(NamedTuple):
    """A gate that mixes an amplitude j only with j XOR `flip`, and only where the bits of j under `where` are `value`,
    or `value` with the bits of `flip` turned over.

    There psi[j] becomes (a + a' s) psi[j] + (b + b' s) psi[j XOR flip], with s = (-1)^(number of ones of j under
    `signs`). Masks as in `Parity`.
    """

    flip: int
    signs: int
    where: int
    value: int
    coefficients: Callable[[Float[Array, "... angles"]], Complex[Array, "... 4"]]
    """a, a', b, b'."""


class GateType(NamedTuple):
    """What is known of a gate; `wires` is its number of wires without controls."""

    wires: int
    angles: int
    matrix: Builder
    parities: tuple[Parity, ...] | None = None
    """Of a diagonal gate."""
    pair: Pair | None = None
    is_real: bool = False
    """Whether its matrices are, whatever the angles."""
    spectrum: tuple[float, ...] = (-0.5, 0.5)
    """Eigenvalues of the generator of each angle alone."""


class Alias(NamedTuple):
    """A gate that is another one with controls in front."""

    base: str
    controls: int


def _complex(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.complex64))


def _stack(rows: list[list[Array]]) -> Array:
    """Matrices from entries that may be scalars."""
    shape = jnp.broadcast_shapes(*(jnp.shape(entry) for row in rows for entry in row))
    full = [[_complex(jnp.broadcast_to(jnp.asarray(entry), shape)) for entry in row] for row in rows]
    return jnp.stack([jnp.stack(row, axis=-1) for row in full], axis=-2)


def _constant(entries: np.ndarray) -> Builder:
    entries = _real_if_possible(entries)

    def build(angles: Array) -> Array:
        dtype = _dtype(angles, entries)
        return jnp.broadcast_to(jnp.asarray(entries, dtype), (*angles.shape[:-1], *entries.shape))

    return build


def _real_if_possible(entries: np.ndarray) -> np.ndarray:
    return np.asarray(entries).real if np.all(np.imag(entries) == 0) else np.asarray(entries)


def _dtype(angles: Array, entries: np.ndarray) -> Any:
    return jnp.promote_types(angles.dtype, jnp.complex64 if np.iscomplexobj(entries) else jnp.float32)


def _by_half_angle(*entries: np.ndarray) -> Builder:
    """entries[0] + cos(t / 2) entries[1] + sin(t / 2) entries[2]."""
    basis = _real_if_possible(np.stack(entries))

    def build(angles: Array) -> Array:
        fixed, along, across = jnp.asarray(basis, _dtype(angles, basis))
        cosine, sine = (wave[..., None, None] for wave in waves(angles[..., 0] / 2))
        return fixed + cosine * along + sine * across

    return build


def _diagonal(parities: tuple[Parity, ...], wires: int) -> Builder:
    def build(angles: Array) -> Array:
        masks = np.array([term.mask for term in parities], np.int64)
        signs = (-1.0) ** np.bitwise_count(np.arange(1 << wires) & masks[:, None])
        slopes, constants = (
            np.array([getattr(term, name) for term in parities], np.float64) for name in ("slope", "constant")
        )
        angle = angles if angles.shape[-1] else jnp.zeros((*angles.shape[:-1], 1), angles.dtype)
        phase = angle * jnp.asarray(slopes @ signs, angles.dtype) + jnp.asarray(
            constants @ signs, angles.dtype
        )
        factors = jax.lax.complex(*waves(phase))
        return factors[..., None] * jnp.eye(factors.shape[-1], dtype=factors.real.dtype)

    return build


def parities_of(slopes: np.ndarray, constants: np.ndarray) -> tuple[Parity, ...]:
    """The terms of phases slope * angle + constant of all basis states: their Walsh transform."""
    states = np.arange(len(slopes))
    terms = []
    for mask in states:
        signs = (-1.0) ** np.bitwise_count(states & mask)
        term = Parity(int(mask), float(np.mean(signs * slopes)), float(np.mean(signs * constants)))
        if term.slope or term.constant:
            terms.append(term)
    return tuple(terms)


def _rotation(pauli: np.ndarray) -> Builder:
    """exp(-i t P / 2) for P with P^2 = 1."""
    return _by_half_angle(np.zeros_like(pauli), np.eye(len(pauli)), -1j * pauli)


X = np.array([[0, 1], [1, 0]], complex)
Y = np.array([[0, -1j], [1j, 0]])
Z = np.diag([1.0, -1.0]).astype(complex)
PAULIS = {"I": np.eye(2, dtype=complex), "X": X, "Y": Y, "Z": Z}
_HADAMARD = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
_SQRT_X = np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2
_SWAP = np.eye(4)[[0, 2, 1, 3]].astype(complex)
_ISWAP = np.array([[1, 0, 0, 0], [0, 0, 1j, 0], [0, 1j, 0, 0], [0, 0, 0, 1]])
_SQRT_ISWAP = np.array(
    [
        [1, 0, 0, 0],
        [0, 1 / math.sqrt(2), 1j / math.sqrt(2), 0],
        [0, 1j / math.sqrt(2), 1 / math.sqrt(2), 0],
        [0, 0, 0, 1],
    ]
)
_ECR = np.array([[0, 0, 1, 1j], [0, 0, 1j, 1], [1, -1j, 0, 0], [-1j, 1, 0, 0]]) / math.sqrt(2)


def _rot(angles: Array) -> Array:
    phi, theta, omega = (angles[..., i] for i in range(3))
    c, s = jnp.cos(theta / 2), jnp.sin(theta / 2)
    plus, minus = (phi + omega) / 2, (phi - omega) / 2
    return _stack(
        [
            [jnp.exp(-1j * plus) * c, -jnp.exp(1j * minus) * s],
            [jnp.exp(-1j * minus) * s, jnp.exp(1j * plus) * c],
        ]
    )


def _u2(angles: Array) -> Array:
    phi, delta = angles[..., 0], angles[..., 1]
    one = jnp.ones_like(phi)
    rows = [[one, -jnp.exp(1j * delta)], [jnp.exp(1j * phi), jnp.exp(1j * (phi + delta))]]
    return _stack(rows) / math.sqrt(2)


def _u3(angles: Array) -> Array:
    theta, phi, delta = (angles[..., i] for i in range(3))
    c, s = jnp.cos(theta / 2), jnp.sin(theta / 2)
    return _stack([[c, -jnp.exp(1j * delta) * s], [jnp.exp(1j * phi) * s, jnp.exp(1j * (phi + delta)) * c]])


def _in_subspace(size: int, low: int, high: int, outside: float = 0.0) -> Builder:
    """A Givens rotation by half the angle of basis states `low` and `high`; phase `outside` * angle elsewhere."""
    inside = np.zeros(size)
    inside[[low, high]] = 1
    turn = np.zeros((size, size))
    turn[high, low], turn[low, high] = 1, -1
    plain = _by_half_angle(np.diag(1 - inside), np.diag(inside), turn)
    if not outside:
        return plain

    def build(angles: Array) -> Array:
        rest = jnp.exp(1j * outside * angles[..., 0, None, None])
        chosen = jnp.asarray(np.diag(1 - inside), rest.dtype)
        return _complex(plain(angles)) + (rest - 1) * chosen

    return build


def _givens(flip: int, value: int) -> Pair:
    """The pair form of `_in_subspace`; `value` is the lower basis state: the highest bit of `flip` is 0 in it."""

    def coefficients(angles: Array) -> Array:
        half = angles[..., 0] / 2
        zero = jnp.zeros_like(half)
        return _complex(jnp.stack([jnp.cos(half), zero, zero, -jnp.sin(half)], axis=-1))

    return Pair(flip, 1 << (flip.bit_length() - 1), flip, value, coefficients)


def pair_of_matrix(matrix: Builder) -> Pair:
    """The pair form of any gate on one wire."""

    def coefficients(angles: Array) -> Array:
        m = _complex(matrix(angles))
        along, across = (m[..., 0, 0], m[..., 1, 1]), (m[..., 0, 1], m[..., 1, 0])
        return jnp.stack(
            [(x + y) / 2 if plus else (x - y) / 2 for x, y in (along, across) for plus in (1, 0)], axis=-1
        )

    return Pair(1, 1, 0, 0, coefficients)


_INNER_EXCHANGE = np.kron(np.kron(np.eye(2), np.diag([1, 1, 1, -1]) @ np.eye(4)[[0, 2, 1, 3]]), np.eye(2))
"""Of fermions on the middle two of four wires."""


def _orbital_rotation(angles: Array) -> Array:
    """A Givens rotation in each spin: up on wires 0 and 2, down on wires 1 and 3, fermions exchanged on the way."""
    rotation = _in_subspace(4, 1, 2)(angles)
    both = jnp.einsum("...ab,...cd->...acbd", rotation, rotation).reshape(*angles.shape[:-1], 16, 16)
    exchange = jnp.asarray(_INNER_EXCHANGE, both.dtype)
    return jnp.einsum("ab,...bc,cd->...ad", exchange, both, exchange, precision="highest")


def _fermionic_swap(angles: Array) -> Array:
    phi = angles[..., 0]
    half = phi / 2
    g = jnp.exp(1j * half)
    zero, one = jnp.zeros_like(phi), jnp.ones_like(phi)
    c, s = g * jnp.cos(half), -1j * g * jnp.sin(half)
    return _stack(
        [
            [one, zero, zero, zero],
            [zero, c, s, zero],
            [zero, s, c, zero],
            [zero, zero, zero, jnp.exp(1j * phi)],
        ]
    )


def _pswap(angles: Array) -> Array:
    phase = jnp.exp(1j * angles[..., 0])[..., None, None]
    swapped = np.zeros((4, 4))
    swapped[1, 2] = swapped[2, 1] = 1
    return jnp.asarray(np.diag([1.0, 0, 0, 1])) + phase * jnp.asarray(swapped)


def _ising_xy(angles: Array) -> Array:
    half = angles[..., 0] / 2
    zero, one = jnp.zeros_like(half), jnp.ones_like(half)
    c, s = jnp.cos(half), 1j * jnp.sin(half)
    return _stack([[one, zero, zero, zero], [zero, c, s, zero], [zero, s, c, zero], [zero, zero, zero, one]])


def pauli_matrix(word: str) -> np.ndarray:
    """The matrix of a Pauli word, its first letter on the first (most significant) wire."""
    return functools.reduce(np.kron, [PAULIS[letter] for letter in word])


def _pauli_pair(word: str) -> Pair:
    """exp(-i t P / 2) in pair form."""
    n = len(word)
    flip, signs = (
        sum(1 << (n - 1 - i) for i, one in enumerate(word) if one in letters) for letters in ("XY", "YZ")
    )
    # <j| P |j XOR flip>: a Y gives -i where its bit of j is 0 and +i where it is 1, a Z gives (-1)^bit.
    unit = (-1j) ** word.count("Y")

    def coefficients(angles: Array) -> Array:
        half = angles[..., 0] / 2
        zero = jnp.zeros_like(half)
        return jnp.stack(
            [_complex(jnp.cos(half)), _complex(zero), _complex(zero), -1j * unit * jnp.sin(half)], axis=-1
        )

    return Pair(flip, signs, 0, 0, coefficients)


def _diagonal_type(
    parities: tuple[Parity, ...], wires: int, angles: int = 1, spectrum: tuple[float, ...] = (-0.5, 0.5)
) -> GateType:
    return GateType(wires, angles, _diagonal(parities, wires), parities, spectrum=spectrum)


def _fixed_phase(phase: float) -> GateType:
    """exp(i phase) on |1>."""
    return _diagonal_type((Parity(0, 0.0, phase / 2), Parity(1, 0.0, -phase / 2)), 1, 0)


def _fixed(entries: np.ndarray) -> GateType:
    return GateType(
        len(entries).bit_length() - 1, 0, _constant(entries), is_real=bool(np.all(np.imag(entries) == 0))
    )


def _excitation(size: int, low: int, high: int, outside: float = 0.0) -> GateType:
    return GateType(
        size.bit_length() - 1,
        1,
        _in_subspace(size, low, high, outside),
        pair=None if outside else _givens(low ^ high, low),
        is_real=not outside,
        spectrum=(-0.5, 0.5) if outside else (-0.5, 0.0, 0.5),
    )


def _fermionic_excitation(ends: int, between: int) -> GateType:
    """|1..10..0> to cos(t / 2) |1..10..0> + (-1)^parity sin(t / 2) |0..01..1>, the parity that of the wires between.

    That is exp(t (T - T^dagger) / 2) of an excitation T in the Jordan-Wigner transform.
    """
    half, string = ends // 2, (1 << between) - 1
    flip = ((1 << ends) - 1) << between
    before, after = (((1 << half) - 1) << (between + shift) for shift in (half, 0))
    givens = _givens(flip, after)

    def matrix(angles: Array) -> Array:
        index = np.arange(1 << (ends + between))
        inside = np.isin(index & flip, (before, after))
        start = index[(index & flip) == before]
        signs = (-1.0) ** np.bitwise_count(start & string)
        turn = np.zeros((len(index),) * 2)
        turn[start ^ flip, start], turn[start, start ^ flip] = signs, -signs
        return _by_half_angle(np.diag(1.0 - inside), np.diag(1.0 * inside), turn)(angles)

    pair = givens._replace(
        signs=givens.signs | string, coefficients=lambda angles: givens.coefficients(-angles)
    )
    # a long string's matrix is made only if it is asked for
    return GateType(ends + between, 1, matrix, None, pair, is_real=True, spectrum=(-0.5, 0.0, 0.5))


GATES: dict[str, GateType] = {
    "Identity": _diagonal_type((), 1, 0)._replace(matrix=_constant(np.eye(2)), is_real=True),
    "PauliX": _fixed(X),
    "PauliY": _fixed(Y),
    "PauliZ": _fixed_phase(math.pi)._replace(matrix=_constant(Z), is_real=True),
    "Hadamard": _fixed(_HADAMARD),
    "S": _fixed_phase(math.pi / 2),
    "T": _fixed_phase(math.pi / 4),
    "SX": _fixed(_SQRT_X),
    "RX": GateType(1, 1, _rotation(X)),
    "RY": GateType(1, 1, _rotation(Y), is_real=True),
    "RZ": _diagonal_type((Parity(1, -0.5),), 1),
    "PhaseShift": _diagonal_type((Parity(0, 0.5), Parity(1, -0.5)), 1, spectrum=(0.0, 1.0)),
    "GlobalPhase": _diagonal_type((Parity(0, -1.0),), 0, spectrum=(-1.0,)),
    "Rot": GateType(1, 3, _rot),
    "U2": GateType(1, 2, _u2, spectrum=(0.0, 1.0)),
    "U3": GateType(1, 3, _u3, spectrum=(-0.5, 0.0, 0.5, 1.0)),
    "SWAP": _fixed(_SWAP),
    "ISWAP": _fixed(_ISWAP),
    "SISWAP": _fixed(_SQRT_ISWAP),
    "ECR": _fixed(_ECR),
    "PSWAP": GateType(2, 1, _pswap, spectrum=(0.0, 1.0)),
    "IsingXX": GateType(2, 1, _rotation(pauli_matrix("XX")), pair=_pauli_pair("XX")),
    "IsingYY": GateType(2, 1, _rotation(pauli_matrix("YY")), pair=_pauli_pair("YY")),
    "IsingZZ": _diagonal_type((Parity(3, -0.5),), 2),
    "IsingXY": GateType(2, 1, _ising_xy, spectrum=(-0.5, 0.0, 0.5)),
    "SingleExcitation": _excitation(4, 1, 2),
    "SingleExcitationPlus": _excitation(4, 1, 2, 0.5),
    "SingleExcitationMinus": _excitation(4, 1, 2, -0.5),
    "DoubleExcitation": _excitation(16, 3, 12),
    "DoubleExcitationPlus": _excitation(16, 3, 12, 0.5),
    "DoubleExcitationMinus": _excitation(16, 3, 12, -0.5),
    "OrbitalRotation": GateType(4, 1, _orbital_rotation, is_real=True, spectrum=(-1.0, -0.5, 0.0, 0.5, 1.0)),
    "FermionicSWAP": GateType(2, 1, _fermionic_swap, spectrum=(0.0, 1.0)),
}
"""Gates with a fixed number of wires."""

ALIASES: dict[str, Alias] = {
    "CNOT": Alias("PauliX", 1),
    "CY": Alias("PauliY", 1),
    "CZ": Alias("PauliZ", 1),
    "CH": Alias("Hadamard", 1),
    "CRX": Alias("RX", 1),
    "CRY": Alias("RY", 1),
    "CRZ": Alias("RZ", 1),
    "CRot": Alias("Rot", 1),
    "ControlledPhaseShift": Alias("PhaseShift", 1),
    "CSWAP": Alias("SWAP", 1),
    "Toffoli": Alias("PauliX", 2),
    "CCZ": Alias("PauliZ", 2),
}


@functools.cache
def gate_type(kind: str) -> GateType:
    """The gate of this name; `MultiRZ:3` has three wires, `PauliRot:XYZ` a word, `PCPhase:2,3` wires and dimension.

    `FermionicExcitation:4,2` takes electrons from the first half of 4 wires to the second, past 2 more wires whose
    parity is the sign of that.

    Raises:
      KeyError: there is none.
    """
    name, _, detail = kind.partition(":")
    if not detail:
        found = GATES[name]
        return found._replace(pair=pair_of_matrix(found.matrix)) if found.wires == 1 else found
    if name == "MultiRZ":
        wires = int(detail)
        return _diagonal_type((Parity((1 << wires) - 1, -0.5),), wires)
    if name == "PauliRot":
        is_real = detail.count("Y") % 2 == 1
        # a long word's matrix is made only if it is asked for
        return GateType(
            len(detail),
            1,
            lambda angles: _rotation(pauli_matrix(detail))(angles),
            None,
            _pauli_pair(detail),
            is_real,
        )
    if name == "FermionicExcitation":
        return _fermionic_excitation(*map(int, detail.split(",")))
    if name == "PCPhase":
        wires, inside = map(int, detail.split(","))
        slopes = np.where(np.arange(1 << wires) < inside, 1.0, -1.0)
        return _diagonal_type(parities_of(slopes, np.zeros_like(slopes)), wires, spectrum=(-1.0, 1.0))
    raise KeyError(kind)
