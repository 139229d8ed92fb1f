"""Expected cut of a graph under QAOA and its gradient, by Qulacs' backpropagation."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))  # behind the package of this name


def main(given: str, written: str) -> None:
    """Reads n, edges [m, 2], angles [p, 2], repetitions; writes what `tfim.record` writes."""
    import tfim
    from qulacs import Observable, ParametricQuantumCircuit

    inputs = np.load(given)
    n, edges, angles = int(inputs["n"]), inputs["edges"].tolist(), inputs["angles"]
    circuit = ParametricQuantumCircuit(n)
    for wire in range(n):
        circuit.add_H_gate(wire)
    # Angles of Qulacs turn the other way: exp(+i angle P / 2).
    for gamma, beta in angles:
        for edge in edges:
            circuit.add_parametric_multi_Pauli_rotation_gate(edge, [3, 3], gamma)
        for wire in range(n):
            circuit.add_parametric_RX_gate(wire, -2 * beta)
    cost = Observable(n)
    cost.add_operator(len(edges) / 2, "")
    for a, b in edges:
        cost.add_operator(-0.5, f"Z {a} Z {b}")

    def both():
        from qulacs import QuantumState

        state = QuantumState(n)
        circuit.update_quantum_state(state)
        value = cost.get_expectation_value(state)
        slopes = np.asarray(circuit.backprop(cost)).reshape(len(angles), len(edges) + n)
        turned = np.split(slopes, [len(edges)], axis=1)
        return value, np.stack([turned[0].sum(1), -2 * turned[1].sum(1)], 1)

    tfim.record(both, int(inputs["repetitions"]), written)


if __name__ == "__main__":
    main(*sys.argv[1:])
