"""Gradients by the Hadamard test: an extra wire, or a quarter turn, tells a derivative without shifting an angle.

A gate's angle t acts as dU/dt = -i G U with a Hermitian G = sum_j c_j P_j of Pauli words on the gate's own wires.
Standard: with one more wire in |+> that controls P_j behind the gate, d<O>/dt = 2 sum_j c_j <Y (x) O>. Direct: without
one, d<O>/dt = sum_j c_j (<O>_- - <O>_+), where exp(-+ i pi / 4 P_j) stands behind the gate. All circuits are one batch
of one program: every gate has a place behind it, where the identity or the word of the moment is put. References:
Guerreschi and Smelyanskiy, arXiv:1701.01450; Mitarai and Fujii, Phys. Rev. Research 1 (2019) 013006.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.lowering import known_type
from jaxlab.quantum.operands import controlled
from jaxlab.quantum.pauli_sums import PauliSum
from jaxlab.quantum.recording import UNITARY, Body, BodySlots, Gate, Part, Program, Slots
from jaxlab.quantum.simulation import simulate

Mode = Literal["standard", "direct"]
Measure = Callable[[Complex[Array, " 2^n"], PauliSum], Float[Array, ""]]
_PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
_TRIALS = 3


class _Insertion(NamedTuple):
    """The place behind one gate, in one part of the program."""

    gate: Gate
    matrix: int
    """Which of the part's matrices is put there."""
    words: tuple[tuple[int, int], ...]
    """Angle of the gate and Pauli word (in base 4) of every circuit of a time that the part is done."""


def hadamard_gradient(
    program: Program,
    slots: Slots,
    hamiltonian: PauliSum,
    *,
    mode: Mode = "standard",
    measure: Measure = pauli_sums.expval,
    batch: int = 64,
) -> tuple[Float[Array, "..."], ...]:
    """Derivatives of <O> in all angles.

    Args:
      program: of unitary gates.
      slots: where.
      hamiltonian: O, with real coefficients.
      mode: "standard" takes one more wire and one circuit for each word of a generator; "direct" the same wires and
        two circuits.
      measure: of the final state and a sum of words, such as an estimate from samples; exact expectation by default.
      batch: circuits that run together.

    Returns:
      For each part of the program an array of the shape of its angles.

    Raises:
      InputError: batch < 1, an unknown mode, a sum on other wires, or no angle that a measurement depends on.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1")
    if mode not in ("standard", "direct"):
        raise InputError(f"mode is {mode!r}; it must be 'standard' or 'direct'")
    if hamiltonian.n != program.n:
        raise InputError(f"hamiltonian is on {hamiltonian.n} wires, the program on {program.n}")
    extended, insertions = _extended(program, ancilla=mode == "standard")
    entries = _entries(program, insertions)
    if not len(entries):
        raise InputError("the program has no angle that a measurement depends on")
    dtype = functools.reduce(jnp.promote_types, [one.angles.dtype for one in slots], jnp.dtype(jnp.complex64))
    observable = _with_ancilla(hamiltonian) if mode == "standard" else hamiltonian

    def value(entry: tuple[Array, Array]) -> Array:
        def of(sign: int) -> Array:
            inserted = _inserted(program, slots, insertions, *entry, mode=mode, sign=sign, dtype=dtype)
            state = None
            if mode == "standard":
                state = jnp.zeros(1 << extended.n, dtype).at[jnp.arange(2)].set(np.sqrt(0.5))
            return measure(simulate(extended, inserted, state, dtype=dtype), observable)

        return 2 * of(1) if mode == "standard" else of(1) - of(-1)

    places, words = jnp.asarray(entries[:, 0]), jnp.asarray(entries[:, 1])
    values = jax.lax.map(value, (places, words), batch_size=min(batch, len(entries)))
    weighted = values * _coefficients(program, slots, insertions)
    total = sum(one.angles.size for one in slots)
    summed = jnp.zeros(total, weighted.dtype).at[jnp.asarray(entries[:, 2])].add(weighted)
    sizes = np.cumsum([one.angles.size for one in slots])[:-1]
    return tuple(
        part.reshape(one.angles.shape) for part, one in zip(jnp.split(summed, sizes), slots, strict=True)
    )


def _with_ancilla(hamiltonian: PauliSum) -> PauliSum:
    """O (x) Y, the new wire being the last."""
    x, z, c = pauli_sums.all_terms(hamiltonian)
    return pauli_sums.from_masks(2 * x + 1, 2 * z + 1, c, hamiltonian.n + 1)


def _extended(program: Program, *, ancilla: bool) -> tuple[Program, tuple[tuple[_Insertion, ...], ...]]:
    """The program with a place behind every gate that has angles, and what can be put there."""
    parts, found = [], []
    for part in program.parts:
        if part.variants:
            raise InputError(
                "layers that differ are not rolled for the Hadamard test; pass the program as recorded"
            )
        count = sum(gate.kind == UNITARY for gate in part.body.gates)
        gates: list[Gate] = []
        own: list[_Insertion] = []
        for gate in part.body.gates:
            gates.append(gate)
            known = known_type(gate)
            if known is None or not known.angles or not (gate.wires or gate.controls):
                continue
            wires = ((program.n,) if ancilla else ()) + gate.controls + gate.wires
            gates.append(Gate(UNITARY, wires, count))
            own.append(_Insertion(gate, count, _words(gate)))
            count += 1
        parts.append(Part(Body(tuple(gates)), part.times))
        found.append(tuple(own))
    return Program(program.n + ancilla, tuple(parts)), tuple(found)


@functools.lru_cache(maxsize=256)
def _words(gate: Gate) -> tuple[tuple[int, int], ...]:
    """Angles, and words that their generators may hold, from a few angles drawn at random; without the identity."""
    known = known_type(gate)
    assert known is not None
    drawn = np.random.default_rng(0).uniform(-3, 3, (_TRIALS, known.angles))
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        sizes = np.max(
            [np.abs(np.asarray(_pauli_coefficients(gate, jnp.asarray(one)))) for one in drawn], axis=0
        )
    return tuple((int(angle), int(word)) for angle, word in np.argwhere(sizes > 1e-9) if word)


def _pauli_coefficients(gate: Gate, angles: Float[Array, " angles"]) -> Float[Array, "angles words"]:
    """c of G = i (dU/dt) U^dagger for each angle t."""
    known = known_type(gate)
    assert known is not None

    def matrix(angles: Array) -> Array:
        built = known.matrix(angles[None])
        if gate.adjoint:
            built = built.conj().swapaxes(-1, -2)
        return controlled(built, gate.values)[0].astype(jnp.promote_types(angles.dtype, jnp.complex64))

    u = matrix(angles)
    slopes = jnp.moveaxis(jax.jacfwd(matrix)(angles), -1, 0)
    generators = 1j * jnp.matmul(slopes, u.conj().T, precision="highest")
    size = u.shape[0]
    words = jnp.asarray(_word_matrices(size.bit_length() - 1), u.dtype)
    return jnp.real(jnp.einsum("wij,aji->aw", words, generators, precision="highest")) / size


@functools.lru_cache(maxsize=16)
def _word_matrices(wires: int) -> np.ndarray:
    """[4^wires, 2^wires, 2^wires], the first wire the most significant digit and factor."""
    found = np.ones((1, 1, 1), complex)
    for _ in range(wires):
        found = np.array([np.kron(word, letter) for word, letter in itertools.product(found, _PAULIS)])
    return found


def _entries(program: Program, insertions: tuple[tuple[_Insertion, ...], ...]) -> np.ndarray:
    """Of every circuit: place, word, and which of all angles it is for."""
    rows: list[tuple[int, int, int]] = []
    place = start = 0
    for part, own in zip(program.parts, insertions, strict=True):
        width = _angle_count(part)
        for _ in range(part.times or 1):
            for one in own:
                rows += [(place, word, start + one.gate.slot + angle) for angle, word in one.words]
                place += 1
            start += width
    return np.array(rows, np.int32).reshape(-1, 3)


def _angle_count(part: Part) -> int:
    known = (known_type(gate) for gate in part.body.gates)
    return sum(one.angles for one in known if one is not None)


def _coefficients(
    program: Program, slots: Slots, insertions: tuple[tuple[_Insertion, ...], ...]
) -> Float[Array, " circuits"]:
    """c_j of every circuit, in the order of `_entries`."""
    found: list[Array] = []
    for part, own, bodies in zip(program.parts, insertions, slots, strict=True):
        if not own:
            continue

        def of_time(angles: Array, own: tuple[_Insertion, ...] = own) -> Array:
            rows = []
            for one in own:
                known = known_type(one.gate)
                assert known is not None
                c = _pauli_coefficients(one.gate, angles[one.gate.slot : one.gate.slot + known.angles])
                rows += [c[angle, word] for angle, word in one.words]
            return jnp.stack(rows) if rows else jnp.zeros(0, angles.dtype)

        found.append((jax.vmap(of_time) if part.times else of_time)(bodies.angles).reshape(-1))
    return jnp.concatenate(found)


def _inserted(
    program: Program,
    slots: Slots,
    insertions: tuple[tuple[_Insertion, ...], ...],
    place: Array,
    word: Array,
    *,
    mode: Mode,
    sign: int,
    dtype: Any,
) -> Slots:
    """The slots of one circuit: its word at its place, and the identity at all others."""
    found, first = [], 0
    for part, own, bodies in zip(program.parts, insertions, slots, strict=True):
        matrices = list(bodies.matrices)
        for index, one in enumerate(own):
            table = jnp.asarray(_tables(len(one.gate.controls + one.gate.wires), mode, sign), dtype)
            identity = jnp.eye(table.shape[-1], dtype=dtype)
            chosen = table[jnp.minimum(word, len(table) - 1)]
            # By time the part is done, then by gate: as `_entries` counts.
            places = first + index + len(own) * np.arange(part.times or 1)
            here = (place == jnp.asarray(places))[:, None, None]
            stacked = jnp.where(here, chosen, identity)
            matrices.append(stacked if part.times else stacked[0])
        first += len(own) * (part.times or 1)
        found.append(BodySlots(bodies.angles, tuple(matrices)))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _tables(wires: int, mode: Mode, sign: int) -> np.ndarray:
    """For each word the controlled word, or a quarter turn by it: exp(-i sign pi / 4 P)."""
    words = _word_matrices(wires)
    identity = np.eye(words.shape[-1])
    if mode == "direct":
        return np.sqrt(0.5) * (identity - 1j * sign * words)
    return np.array([np.block([[identity, 0 * word], [0 * word, word]]) for word in words])
