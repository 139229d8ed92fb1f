"""The fixture that simulators are compared on: the energy of a transverse-field Ising chain under layers of RY, RZ and
nearest-neighbour CNOT, as PennyLane operators. Imports no jax, so that peers with environments of their own can use it.
"""

import time

import numpy as np


def angles(n: int, layers: int) -> np.ndarray:
    """[layers, n, 2], of RY and RZ."""
    return np.random.default_rng(0).uniform(-np.pi, np.pi, (layers, n, 2))


def ansatz(params, n: int) -> None:
    """All layers."""
    import pennylane as qml

    for layer in range(params.shape[0]):
        for wire in range(n):
            qml.RY(params[layer, wire, 0], wires=wire)
            qml.RZ(params[layer, wire, 1], wires=wire)
        for wire in range(n - 1):
            qml.CNOT(wires=[wire, wire + 1])


def hamiltonian(n: int):
    """- sum of Z Z on neighbours - sum of X."""
    import pennylane as qml

    words = [qml.Z(i) @ qml.Z(i + 1) for i in range(n - 1)] + [qml.X(i) for i in range(n)]
    return qml.Hamiltonian([-1.0] * len(words), words)


def record(both, repetitions: int, written: str) -> None:
    """Times a function that returns value and gradient, and writes seconds, cpu, compile_cpu, value and gradient."""
    start = time.process_time()
    value, gradient = both()
    first = time.process_time() - start
    wall, cpu = [], []
    for _ in range(repetitions):
        began, began_cpu = time.perf_counter(), time.process_time()
        both()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    np.savez(
        written,
        seconds=wall,
        cpu=cpu,
        compile_cpu=first - min(cpu),
        value=float(value),
        gradient=np.asarray(gradient),
    )
