"""PennyLane's `default.gaussian` as an oracle: circuits as lists of (name, parameters, wires)."""

import re

import numpy as np
import pennylane as qml
import scipy.linalg

from jaxlab.quantum.cv_circuits import cv_circuit

GATES = {
    "Rotation": (1, 1),
    "Displacement": (2, 1),
    "Squeezing": (2, 1),
    "QuadraticPhase": (1, 1),
    "Beamsplitter": (2, 2),
    "TwoModeSqueezing": (2, 2),
    "ControlledAddition": (1, 2),
    "ControlledPhase": (1, 2),
}
"""Parameters and wires."""


FIXTURE = (
    ("Displacement", (0.6, 0.3), (0,)),
    ("Squeezing", (0.4, 0.2), (1,)),
    ("Beamsplitter", (0.9, 0.5), (0, 1)),
    ("Rotation", (0.7,), (0,)),
)
"""A circuit whose values were computed with `default.gaussian` and The Walrus; below: where a and theta stand."""
FIXTURE_PLACES = (0, 4)
FIXTURE_VALUES = {
    "number": (0.24262884118723, (0.46367874, -0.18628004)),
    "x": (0.40302875904877, (0.6717146, -0.50788)),
    "variance": (0.75728976786785, (0, -0.38520597)),
}
"""<n_0>, <X_0> and var X_0, with their derivatives in a and theta."""
FIXTURE_PROBABILITIES = {
    (0, 0): 0.6453558006339332,
    (1, 0): 0.0897713299633624,
    (1, 2): 0.007847803462663635,
    (2, 1): 0.0018438743859200766,
}


def random_gates(rng, modes, count, scale=0.5):
    """Every kind of gate once where `count` allows, then at random."""
    names = [name for name, (_, wires) in GATES.items() if wires <= modes]
    found = []
    for i in range(count):
        name = names[i] if i < len(names) else names[rng.integers(len(names))]
        params, wires = GATES[name]
        own = rng.uniform(-scale, scale, params)
        found.append((name, own.tolist(), [int(wire) for wire in rng.permutation(modes)[:wires]]))
    return [found[i] for i in rng.permutation(count)]


def expectation(gates, modes, measurement):
    """What a circuit measures on `default.gaussian`; `measurement` is a function without arguments."""

    @qml.qnode(qml.device("default.gaussian", wires=modes), diff_method=None)
    def circuit():
        for name, params, wires in gates:
            getattr(qml, name)(*params, wires=wires)
        return measurement()

    return float(circuit())


def moments(gates, modes):
    """Mean and covariance at the end of a circuit on `default.gaussian`."""
    device = qml.device("default.gaussian", wires=modes)

    @qml.qnode(device, diff_method=None)
    def circuit():
        for name, params, wires in gates:
            getattr(qml, name)(*params, wires=wires)
        return qml.expval(qml.QuadX(0))

    circuit()
    cov, mean = device.target_device._state
    return np.array(mean), np.array(cov)


def program(gates, modes):
    """The same circuit for `run_cv`, and its parameters."""
    circuit = cv_circuit(modes, [(name, wires) for name, _, wires in gates])
    return circuit, np.array([x for _, params, _ in gates for x in params])


def snake(name):
    """The function of a gate: `two_mode_squeezing` of `TwoModeSqueezing`."""
    return re.sub("(?<!^)([A-Z])", r"_\1", name).lower()


def apply(module, gates, state):
    """The circuit once more, gate by gate with the functions of `gaussian` or `fock`."""
    for name, params, wires in gates:
        state = getattr(module, snake(name))(state, *params, wires if len(wires) > 1 else wires[0])
    return state


def for_pennylane(Q):
    """Coefficients in the order of `PolyXP`: (1, x_1, p_1, x_2, p_2, ..)."""
    modes = (len(Q) - 1) // 2
    order = np.array([0, *(1 + i + modes * kind for i in range(modes) for kind in (0, 1))])
    return Q[np.ix_(*[order] * Q.ndim)]


def quadratures(size):
    """x and p (hbar = 2) as matrices of photon numbers below `size`."""
    lower = np.diag(np.sqrt(np.arange(1, size)), 1)
    return lower + lower.T, -1j * (lower - lower.T)


def unitary(hermitian):
    """exp(i H)."""
    values, vectors = scipy.linalg.eigh(hermitian)
    return (vectors * np.exp(1j * values)) @ vectors.conj().T
