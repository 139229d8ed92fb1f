"""PennyLane's view of our gates, as an oracle."""

import numpy as np
import pennylane as qml

from jaxlab.quantum.gates import ALIASES, GATES, gate_type

NAMES = [
    name
    for name in (*GATES, *ALIASES, "MultiRZ:3", "PauliRot:XYZ", "PauliRot:YIY", "PCPhase:2,3")
    if name != "GlobalPhase"
]


def wires_and_angles(kind):
    """How many a gate takes, controls of its name included."""
    controls, base = (ALIASES[kind].controls, ALIASES[kind].base) if kind in ALIASES else (0, kind)
    known = gate_type(base)
    return known.wires + controls, known.angles


def operator(kind, angles, wires, controls=(), values=(), adjoint=False):
    """PennyLane's operator for one of our gates."""
    name, _, detail = kind.partition(":")
    wires = [int(wire) for wire in wires]
    if name == "PauliRot":
        found = qml.PauliRot(*angles, detail, wires=wires)
    elif name == "PCPhase":
        found = qml.PCPhase(*angles, dim=int(detail.split(",")[1]), wires=wires)
    else:
        found = getattr(qml, name)(*angles, wires=wires)
    if adjoint:
        found = qml.adjoint(found)
    return (
        qml.ctrl(found, list(controls), control_values=[bool(v) for v in values]) if len(controls) else found
    )


def random_gates(rng, n, count):
    """Gates as arguments of `Circuit.gate` and of `operator`."""
    names = [name for name in NAMES if wires_and_angles(name)[0] <= n]
    gates = []
    for _ in range(count):
        kind = names[rng.integers(len(names))]
        wires, angles = wires_and_angles(kind)
        order = [int(wire) for wire in rng.permutation(n)]
        controls = int(rng.integers(0, n - wires + 1)) if rng.random() < 0.25 else 0
        gates.append(
            {
                "kind": kind,
                "angles": rng.uniform(-3, 3, angles),
                "wires": order[:wires],
                "controls": order[wires : wires + controls],
                "values": [int(value) for value in rng.integers(0, 2, controls)],
                "adjoint": bool(rng.random() < 0.3),
            }
        )
    return gates


def record_gates(c, gates, angles):
    """Calls the gates on a `Circuit`, with other angles, all in one vector."""
    at = 0
    for gate in gates:
        count = len(gate["angles"])
        own = [angles[at + i] for i in range(count)]
        at += count
        options = {name: gate[name] for name in ("controls", "values", "adjoint")}
        c.gate(gate["kind"], gate["wires"], *own, **options)


def all_angles(gates):
    return np.concatenate([gate["angles"] for gate in gates] or [np.zeros(0)])


def final_state(gates, n, device="default.qubit"):
    """The state PennyLane finds."""

    @qml.qnode(qml.device(device, wires=n))
    def circuit():
        for gate in gates:
            operator(**gate)
        return qml.state()

    return np.asarray(circuit())
