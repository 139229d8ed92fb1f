"""OpenQASM: programs as text and back.

Gates of the standard library (`qelib1.inc`, `stdgates.inc`), without definitions of own gates, measurements, conditions
or loops. Reference: arXiv:1707.03429 (version 2), arXiv:2104.14722 (version 3).
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlab.errors import InputError
from jaxlab.quantum.lowering import known_type
from jaxlab.quantum.recording import Circuit, Gate, Program, Slots

_PLAIN = {
    "id": "Identity", "x": "PauliX", "y": "PauliY", "z": "PauliZ", "h": "Hadamard", "s": "S", "t": "T", "sx": "SX",
    "rx": "RX", "ry": "RY", "rz": "RZ", "p": "PhaseShift", "u1": "PhaseShift", "u2": "U2", "u3": "U3", "U": "U3",
    "u": "U3", "swap": "SWAP", "rxx": "IsingXX", "ryy": "IsingYY", "rzz": "IsingZZ",
}  # fmt: skip
_CONTROLLED = {
    "cx": ("PauliX", 1), "CX": ("PauliX", 1), "cy": ("PauliY", 1), "cz": ("PauliZ", 1), "ch": ("Hadamard", 1),
    "crx": ("RX", 1), "cry": ("RY", 1), "crz": ("RZ", 1), "cp": ("PhaseShift", 1), "cu1": ("PhaseShift", 1),
    "cu3": ("U3", 1), "ccx": ("PauliX", 2), "cswap": ("SWAP", 1),
}  # fmt: skip
_ADJOINT = {"sdg": "S", "tdg": "T", "sxdg": "SX"}
_IGNORED = ("OPENQASM", "include", "barrier", "creg", "bit", "//")
_OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_STATEMENT = re.compile(r"^([A-Za-z_]\w*)\s*(?:\((.*)\))?\s+(.+)$", re.DOTALL)


def to_qasm(program: Program, slots: Slots) -> str:
    """The program in OpenQASM 2, with the numbers of these slots.

    Raises:
      InputError: a gate has no name there.
    """
    names = {kind: name for name, kind in reversed(_PLAIN.items()) if name not in ("u1", "U", "u")}
    named = {pair: name for name, pair in reversed(_CONTROLLED.items()) if name not in ("CX", "cu1")}
    inverse = {kind: name for name, kind in _ADJOINT.items()}
    lines = ["OPENQASM 2.0;", 'include "qelib1.inc";', f"qreg q[{program.n}];"]

    def write(gate: Gate, angles: np.ndarray) -> None:
        known = known_type(gate)
        count = 0 if known is None else known.angles
        values = [float(one) for one in angles[gate.slot : gate.slot + count]]
        flipped = [wire for wire, value in zip(gate.controls, gate.values, strict=True) if not value]
        if gate.controls:
            name = named.get((gate.kind, len(gate.controls)))
        elif gate.adjoint and gate.kind in inverse:
            name = inverse[gate.kind]
        else:
            name = names.get(gate.kind)
        turned = gate.adjoint and not (not gate.controls and gate.kind in inverse)
        if turned and count == 1:
            values = [-values[0]]
        elif turned and gate.kind == "U3":
            values = [-values[0], -values[2], -values[1]]
        elif turned and gate.kind not in ("PauliX", "PauliY", "PauliZ", "Hadamard", "SWAP", "Identity"):
            name = None
        if name is None:
            raise InputError(f"{gate} has no name in OpenQASM 2; write it out in its gates")
        angle = f"({','.join(map(repr, values))})" if values else ""
        wires = ",".join(f"q[{wire}]" for wire in gate.controls + gate.wires)
        around = [f"x q[{wire}];" for wire in flipped]
        lines.extend([*around, f"{name}{angle} {wires};", *around])

    for part, own in zip(program.parts, slots, strict=True):
        rows = np.asarray(own.angles)
        for row in rows if part.times is not None else rows[None]:
            for gate in part.body.gates:
                write(gate, row)
    return "\n".join(lines) + "\n"


def from_qasm(text: str) -> tuple[int, Callable[[Circuit], None]]:
    """Number of wires, and a circuit `fn(c)` for `record` or `circuit`, of an OpenQASM 2 or 3 text.

    Raises:
      InputError: a statement is not understood; it is named with its line.
    """
    registers: dict[str, tuple[int, int]] = {}
    steps: list[tuple[str, int, str, list[float], list[int]]] = []
    total = 0
    for number, statement in _statements(text):
        if statement.startswith(_IGNORED):
            continue
        declared = re.fullmatch(r"qreg\s+(\w+)\s*\[(\d+)\]|qubit\s*(?:\[(\d+)\])?\s*(\w+)", statement)
        if declared:
            name = declared[1] or declared[4]
            size = int(declared[2] or declared[3] or 1)
            registers[name] = (total, size)
            total += size
            continue
        found = _STATEMENT.match(statement)
        if found is None or not (found[1] in _PLAIN or found[1] in _CONTROLLED or found[1] in _ADJOINT):
            raise InputError(
                f"line {number}: {statement!r} is not understood; gates of the standard library are"
            )
        angles = [_number(one, number) for one in found[2].split(",")] if found[2] else []
        operands = [_wires(one.strip(), registers, number) for one in found[3].split(",")]
        longest = max(map(len, operands))
        for i in range(longest):  # a whole register is each of its wires in turn
            wires = [one[i if len(one) > 1 else 0] for one in operands]
            steps.append((found[1], number, statement, angles, wires))
    if not total:
        raise InputError("the text declares no qubits")

    def play(c: Circuit) -> None:
        for name, number, statement, angles, wires in steps:
            controls = 0
            if name in _CONTROLLED:
                kind, controls = _CONTROLLED[name]
            else:
                kind = _PLAIN.get(name) or _ADJOINT[name]
            try:
                c.gate(kind, wires[controls:], *angles, controls=wires[:controls], adjoint=name in _ADJOINT)
            except InputError as error:
                raise InputError(f"line {number}: {statement!r}: {error}") from error

    return total, play


def _statements(text: str) -> list[tuple[int, str]]:
    """Statements and the lines they begin on, comments left out."""
    found, number = [], 1
    plain = re.sub(r"//[^\n]*", "", text)
    for piece in plain.split(";"):
        lead = len(piece) - len(piece.lstrip())
        begin = number + piece[:lead].count("\n")
        if piece.strip():
            found.append((begin, piece.strip()))
        number += piece.count("\n")
    return found


def _wires(operand: str, registers: dict[str, tuple[int, int]], number: int) -> list[int]:
    found = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", operand)
    if found is None or found[1] not in registers:
        raise InputError(f"line {number}: {operand!r} is no declared qubit")
    start, size = registers[found[1]]
    if found[2] is None:
        return list(range(start, start + size))
    if int(found[2]) >= size:
        raise InputError(f"line {number}: {operand!r} is out of range; {found[1]} has {size} qubits")
    return [start + int(found[2])]


def _number(text: str, number: int) -> float:
    def value(node: Any) -> float:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in ("pi", "tau", "π"):
            return math.tau if node.id == "tau" else math.pi
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.operand))
        raise ValueError

    try:
        return value(ast.parse(text.strip(), mode="eval"))
    except (ValueError, SyntaxError, ZeroDivisionError) as error:
        raise InputError(f"line {number}: the angle {text.strip()!r} is not understood") from error
