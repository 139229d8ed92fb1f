"""PennyLane's circuits as programs. Works on PennyLane 0.45; its classes are touched here and in the device alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jaxtyping import Array

from jaxlab.errors import InputError
from jaxlab.quantum.gates import GATES
from jaxlab.quantum.recording import Circuit, Program, Slots
from jaxlab.quantum.simulation import simulate

_NOTHING = {"Identity", "Barrier", "Snapshot", "WireCut"}
_CONDITIONS = (qml.operation.StatePrepBase,)


def is_supported(operation: Any) -> bool:
    """Whether an operation becomes gates or a matrix of a program."""
    if isinstance(operation, qml.ops.op_math.ScalarSymbolicOp) and operation.has_decomposition:
        return False  # an exponential of Pauli words: rotations are cheaper, and know their angles
    return operation.name in _NOTHING or operation.has_matrix


def add_operation(c: Circuit, operation: Any) -> bool:
    """Records a PennyLane operation, whose wires are the circuit's.

    Returns:
      Whether it is known to be unitary.

    Raises:
      InputError: it has no matrix.
    """
    controls: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    adjoint = False
    while True:
        if isinstance(operation, qml.ops.op_math.Adjoint):
            adjoint, operation = not adjoint, operation.base
        elif isinstance(operation, qml.ops.op_math.Controlled):
            controls += tuple(operation.control_wires)
            values += tuple(int(value) for value in operation.control_values)
            operation = operation.base
        else:
            break
    name, wires = operation.name, tuple(operation.wires)
    options: dict[str, Any] = {"controls": controls, "values": values, "adjoint": adjoint}
    if name in _NOTHING:
        return True
    if name == "GlobalPhase":
        c.gate(name, (), *operation.data, **options)
    elif name == "MultiRZ":
        c.gate(f"MultiRZ:{len(wires)}", wires, *operation.data, **options)
    elif name == "PauliRot":
        word = operation.hyperparameters["pauli_word"]
        kept = [(wire, letter) for wire, letter in zip(wires, word, strict=True) if letter != "I"]
        if kept:
            letters = "".join(letter for _, letter in kept)
            c.gate(f"PauliRot:{letters}", tuple(wire for wire, _ in kept), *operation.data, **options)
        else:
            c.gate("GlobalPhase", (), operation.data[0] / 2, **options)
    elif name == "PCPhase":
        dimension = operation.hyperparameters["dimension"][0]
        c.gate(f"PCPhase:{len(wires)},{dimension}", wires, *operation.data, **options)
    elif name in GATES:
        c.gate(name, wires, *operation.data, **options)
    elif operation.has_matrix:
        c.unitary(operation.matrix(), wires, check=False, **options)
        return name != "Projector"
    else:
        raise InputError(
            f"{operation} has no matrix; jaxlab.qubit decomposes it if it runs the circuit itself"
        )
    return True


def from_tape(tape: Any) -> tuple[Program, Slots, Array | None, bool]:
    """The program of a tape on wires 0 to n - 1, without batches.

    Returns:
      Program, slots, initial state (None for |0...0>), and whether all of it is unitary.

    Raises:
      InputError: an operation has no matrix.
    """
    c = Circuit(max(1, tape.num_wires))
    operations, state = list(tape.operations), None
    if operations and isinstance(operations[0], _CONDITIONS):
        state = jnp.asarray(operations[0].state_vector(wire_order=range(c.n))).reshape(-1)
        operations = operations[1:]
    unitary = [add_operation(c, operation) for operation in operations]
    program, slots = c.finish()
    return program, slots, state, all(unitary)


def final_state(tape: Any, *, block: int | None = None) -> Array:
    """The state after a tape on wires 0 to n - 1: [2^n], or [batch, 2^n] of a tape with batched parameters."""

    def run(tape: Any) -> Array:
        program, slots, state, unitary = from_tape(tape)
        return simulate(program, slots, state, block=block, diff="adjoint" if unitary else "backprop")

    if tape.batch_size is None:
        return run(tape)
    data = tape.get_parameters(trainable_only=False)
    places = [(operation, i) for operation in tape.operations for i in range(len(operation.data))]
    ranks = [operation.ndim_params[i] for operation, i in places]
    count = len(ranks)
    axes = [0 if jnp.ndim(x) > rank else None for x, rank in zip(data[:count], ranks, strict=True)]
    chosen = list(range(count))
    return jax.vmap(lambda *own: run(tape.bind_new_parameters(own, chosen)), in_axes=axes)(*data[:count])


def from_qnode(node: Any) -> Callable[..., tuple[Program, Slots]]:
    """A function from a QNode's arguments to the program and slots of its circuit, decomposed as needed.

    Raises:
      InputError: it prepares a state or is not unitary, which a program alone cannot say.
    """

    def build(*args: Any, **kwargs: Any) -> tuple[Program, Slots]:
        tape = qml.workflow.construct_tape(node)(*args, **kwargs)
        (tape,), _ = qml.devices.preprocess.decompose(tape, is_supported, name="jaxlab.qubit")
        program, slots, state, unitary = from_tape(tape.map_to_standard_wires())
        if state is not None or not unitary:
            raise InputError(
                "the circuit prepares a state or projects; simulate it with the device jaxlab.qubit"
            )
        return program, slots

    return build


def interpreted_state(tape: Any) -> np.ndarray:
    """`final_state` in NumPy, gate by gate, for a circuit that is run once: nothing is compiled."""
    n = max(1, tape.num_wires)
    operations = list(tape.operations)
    psi = np.zeros((2,) * n, complex)
    psi[(0,) * n] = 1
    batched = False
    if operations and isinstance(operations[0], _CONDITIONS):
        psi = np.asarray(operations[0].state_vector(wire_order=range(n))).astype(complex)
        batched = psi.ndim == n + 1
        operations = operations[1:]
    for operation in operations:
        if operation.name in _NOTHING:
            continue
        matrix, wires = np.asarray(operation.matrix()), list(operation.wires)
        if matrix.ndim == 3 and not batched:
            psi, batched = np.broadcast_to(psi, (len(matrix), *psi.shape)), True
        axes = [wire + batched for wire in wires]
        front = range(int(batched), int(batched) + len(wires))
        moved = np.moveaxis(psi, axes, front)
        flat = moved.reshape(*moved.shape[: int(batched)], 1 << len(wires), -1)
        psi = np.moveaxis((matrix @ flat).reshape(moved.shape), front, axes)
    return psi.reshape(-1, 1 << n) if batched else psi.reshape(-1)
