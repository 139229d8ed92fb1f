"""Noise: channels, exact density matrices, and trajectories of pure states that average to them.

A channel maps rho to sum_i K_i rho K_i^dagger. A density matrix is run as a state of twice as many wires, where a gate
U is U on one half and its conjugate on the other, and a channel is sum_i K_i (x) conj(K_i). Reference: Nielsen and
Chuang, chapter 8.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxlab.errors import InputError
from jaxlab.kernels.statevector.blocks import apply_block
from jaxlab.quantum.gates import PAULIS, pauli_matrix
from jaxlab.quantum.lowering import known_type
from jaxlab.quantum.recording import CHANNEL, UNITARY, Body, BodySlots, Gate, Part, Program, Slots
from jaxlab.quantum.simulation import simulate, zero_state

Kraus = Complex[Array, "operators K K"]
_MOST_WIRES = 14


def _mixture(weights: Sequence[Any], matrices: Sequence[Any]) -> Kraus:
    """Operators sqrt(weight) matrix."""
    return jnp.stack(
        [jnp.sqrt(weight) * jnp.asarray(matrix) for weight, matrix in zip(weights, matrices, strict=True)]
    )


def bit_flip(p: Any) -> Kraus:
    """X with probability p."""
    return _mixture((1 - p, p), (PAULIS["I"], PAULIS["X"]))


def phase_flip(p: Any) -> Kraus:
    """Z with probability p."""
    return _mixture((1 - p, p), (PAULIS["I"], PAULIS["Z"]))


def depolarizing(p: Any) -> Kraus:
    """X, Y or Z, each with probability p / 3."""
    return _mixture((1 - p, p / 3, p / 3, p / 3), [PAULIS[letter] for letter in "IXYZ"])


def pauli_error(word: str, p: Any) -> Kraus:
    """A Pauli word with probability p."""
    return _mixture((1 - p, p), (jnp.eye(1 << len(word)), pauli_matrix(word)))


def amplitude_damping(gamma: Any) -> Kraus:
    """Decay of |1> to |0> with probability gamma."""
    return generalized_amplitude_damping(gamma, 0.0)[:2]


def generalized_amplitude_damping(gamma: Any, p: Any) -> Kraus:
    """Exchange with a bath in which |1> has the share p: decay with weight 1 - p, excitation with weight p."""
    stay, jump = jnp.sqrt(1 - gamma), jnp.sqrt(gamma)
    one, zero = jnp.ones_like(stay), jnp.zeros_like(stay)
    return _mixture(
        (1 - p, 1 - p, p, p),
        (
            jnp.array([[one, zero], [zero, stay]]) + 0j,
            jnp.array([[zero, jump], [zero, zero]]) + 0j,
            jnp.array([[stay, zero], [zero, one]]) + 0j,
            jnp.array([[zero, zero], [jump, zero]]) + 0j,
        ),
    )


def phase_damping(gamma: Any) -> Kraus:
    """Loss of coherence with probability gamma, no exchange of energy."""
    stay, jump = jnp.sqrt(1 - gamma), jnp.sqrt(gamma)
    one, zero = jnp.ones_like(stay), jnp.zeros_like(stay)
    return jnp.stack([jnp.array([[one, zero], [zero, stay]]), jnp.array([[zero, zero], [zero, jump]])]) + 0j


def reset_error(p0: Any, p1: Any) -> Kraus:
    """Reset to |0> with probability p0, to |1> with probability p1."""
    to0, to1 = ([[1, 0], [0, 0]], [[0, 1], [0, 0]]), ([[0, 0], [1, 0]], [[0, 0], [0, 1]])
    return _mixture(
        (1 - p0 - p1, p0, p0, p1, p1), [jnp.eye(2) + 0j, *(jnp.array(m) + 0j for m in (*to0, *to1))]
    )


def check_channel(kraus: Any) -> None:
    """Raises InputError unless concrete operators satisfy sum_i K_i^dagger K_i = 1."""
    if isinstance(kraus, jax.core.Tracer):
        return
    total = jnp.einsum("iab,iac->bc", kraus.conj(), kraus, precision="highest")
    error = float(jnp.max(jnp.abs(total - jnp.eye(kraus.shape[-1]))))
    if not error <= 1e-4:
        raise InputError(f"kraus is no channel: sum K^dagger K differs from 1 by {error:.2g}")


def density_matrix_of(
    program: Program, slots: Slots, *, dtype: Any = None, block: int | None = None
) -> Complex[Array, "2^n 2^n"]:
    """The density matrix that a program with channels leads to from |0...0>; differentiable, forward too.

    Args:
      program: see `trace`; may hold channels.
      slots: its arrays.
      dtype: see `simulate`.
      block: see `simulate`.

    Raises:
      InputError: more than 14 wires.
    """
    if program.n > _MOST_WIRES:
        raise InputError(
            f"the program has {program.n} wires; a density matrix of more than {_MOST_WIRES} does not "
            "fit (4^n numbers); average trajectories instead"
        )
    wide, own = _doubled(program, slots)
    rho = simulate(wide, own, dtype=dtype, diff="backprop", block=block)
    return rho.reshape(1 << program.n, 1 << program.n)


def _doubled(program: Program, slots: Slots) -> tuple[Program, Slots]:
    """The program on rho as a state of 2 n wires: the rows' wires, then the columns'."""
    parts, wide = [], []
    for part, own in zip(program.parts, slots, strict=True):
        gates: list[Gate] = []
        seen: list[Gate] = []

        def build(own: BodySlots, gates: list[Gate] = gates, part: Part = part) -> BodySlots:
            gates.clear()
            matrices = list(own.matrices)
            for gate in part.body.gates:
                _double(gate, program.n, own, gates, matrices)
            return BodySlots(own.angles, tuple(matrices))

        wide.append(build(own) if part.times is None else jax.vmap(build)(own))
        seen += gates
        parts.append(Part(Body(tuple(seen)), part.times))
    return Program(2 * program.n, tuple(parts)), tuple(wide)


def _double(gate: Gate, n: int, own: BodySlots, gates: list[Gate], matrices: list[Array]) -> None:
    """Adds a gate and its conjugate, or a channel as one matrix."""
    shifted = gate._replace(
        wires=tuple(wire + n for wire in gate.wires), controls=tuple(wire + n for wire in gate.controls)
    )
    if gate.kind == CHANNEL:
        kraus = own.matrices[gate.slot]
        size = kraus.shape[-1] ** 2
        matrix = jnp.einsum("iab,icd->acbd", kraus, kraus.conj(), precision="highest").reshape(size, size)
        gates.append(Gate(UNITARY, gate.wires + shifted.wires, len(matrices)))
        matrices.append(matrix)
        return
    gates.append(gate)
    known = known_type(gate)
    if known is not None and known.is_real:
        gates.append(shifted)
    elif known is not None and known.parities is not None:
        gates.append(shifted._replace(adjoint=not gate.adjoint))
    else:
        if known is None:
            matrix = own.matrices[gate.slot]
        else:
            matrix = known.matrix(own.angles[gate.slot : gate.slot + known.angles])
        gates.append(shifted._replace(kind=UNITARY, slot=len(matrices)))
        matrices.append(matrix.conj())


def trajectory(
    key: jax.Array, program: Program, slots: Slots, *, dtype: Any = None, block: int | None = None
) -> Complex[Array, " 2^n"]:
    """One random pure state; the mean of |psi><psi| over keys is the density matrix. Many by `vmap` over keys.

    Args:
      key: PRNG key of the channels' outcomes.
      program: see `trace`; may hold channels.
      slots: its arrays.
      dtype: see `simulate`.
      block: see `simulate`.
    """
    leaves = [leaf.dtype for leaf in jax.tree.leaves(slots) if leaf.size]
    kind = dtype or functools.reduce(jnp.promote_types, leaves, jnp.dtype(jnp.complex64))
    psi = zero_state(program.n, kind)
    for place, (part, own) in enumerate(zip(program.parts, slots, strict=True)):
        step = functools.partial(_through, part.body, program.n, block)
        keys = jax.random.fold_in(key, place)
        if part.times is None:
            psi = step(psi, (keys, own))[0]
        else:
            psi, _ = jax.lax.scan(step, psi, (jax.random.split(keys, part.times), own))
    return psi


def _through(
    body: Body, n: int, block: int | None, psi: Array, inputs: tuple[jax.Array, BodySlots]
) -> tuple[Array, None]:
    """The state after a body whose channels draw one of their operators each."""
    key, own = inputs
    waiting: list[Gate] = []

    def flushed(psi: Array) -> Array:
        if not waiting:
            return psi
        piece = Program(n, (Part(Body(tuple(waiting))),))
        waiting.clear()
        return simulate(piece, (own,), psi, dtype=psi.dtype, diff="backprop", block=block)

    for place, gate in enumerate(body.gates):
        if gate.kind != CHANNEL:
            waiting.append(gate)
            continue
        psi = _drawn(jax.random.fold_in(key, place), flushed(psi), own.matrices[gate.slot], gate.wires)
    return flushed(psi), None


def _drawn(key: jax.Array, psi: Array, kraus: Kraus, wires: Sequence[int]) -> Array:
    order = sorted(wires)
    k = len(order)
    axes = [list(wires).index(wire) for wire in order]
    tensor = kraus.reshape(-1, *(2,) * (2 * k)).transpose(
        0, *[1 + axis for axis in axes], *[1 + k + axis for axis in axes]
    )
    operators = tensor.reshape(kraus.shape).astype(psi.dtype)
    after = jax.vmap(lambda one: apply_block(psi, one, order))(operators)
    weights = jnp.sum(jnp.square(jnp.abs(after)), axis=1)
    chosen = jax.random.categorical(key, jnp.log(weights))
    return after[chosen] / jnp.sqrt(weights[chosen])


def expval_of_density(
    rho: Complex[Array, "2^n 2^n"], matrix: Complex[Array, "K K"], wires: Sequence[int]
) -> Float[Array, ""]:
    """tr(rho M) of a Hermitian matrix on some wires (ascending).

    Raises:
      InputError: the wires are not ascending or the matrix does not fit them.
    """
    n = int(math.log2(rho.shape[0]))
    if list(wires) != sorted(set(wires)) or not all(0 <= wire < n for wire in wires):
        raise InputError(f"wires is {tuple(wires)}; they must be ascending and lie between 0 and {n - 1}")
    if matrix.shape != (1 << len(wires),) * 2:
        raise InputError(
            f"matrix has shape {matrix.shape}; on {len(wires)} wires it is 2^{len(wires)} square"
        )
    applied = jax.vmap(lambda column: apply_block(column, jnp.asarray(matrix, rho.dtype), wires), 1, 1)(rho)
    return jnp.real(jnp.trace(applied))
