"""Energy of a molecule on a given state: a sum of Pauli words at least 8 times as fast as lightning.qubit on LiH.

The sums are those of LiH (12 qubits, 631 words), H2O (14, 1086) and N2 (20, 2239), the states random, in complex128.
Peers are timed at device level, no QNode around them: lightning.qubit by its own measurement of a state that is already
on the device, and the C++ function in it alone, which is given the sum as C++ objects; default.qubit by `execute` of a
tape that begins with the state (up to 14 qubits; beyond it takes minutes). Ours is jitted; `ours, tables` has the
diagonals made before (`prepare`), where they fit, and `ours, value and gradient` is that of the state too, which the
peers do not give. Values are checked to be equal to 1e-10, relative.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxlab.errors import ResourceError
from jaxlab.quantum.molecules import molecule
from jaxlab.quantum.pauli_sums import PauliSum, PauliTables, expval, prepare, words

_TARGETS = {("LiH", "lightning.qubit"): 8.0, ("LiH", "default.qubit"): 80.0}
_MOST_FOR_DEFAULT_QUBIT = 14


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of every molecule."""
    with jax.enable_x64(True):
        return [row for name in (("H4",) if quick else ("LiH", "H2O", "N2")) for row in _rows(name, quick)]


def _rows(name: str, quick: bool) -> list[dict[str, Any]]:
    hamiltonian = molecule(name).hamiltonian
    n = hamiltonian.n
    rng = np.random.default_rng(0)
    state = rng.normal(size=1 << n) + 1j * rng.normal(size=1 << n)
    state /= np.linalg.norm(state)
    contestants = _ours(hamiltonian, state) | _peers(hamiltonian, state)
    long = n > _MOST_FOR_DEFAULT_QUBIT
    timings = harness.compare(
        contestants, 2 if long else 3 if quick else 7, turn_s=0.0 if long else 0.05 if quick else 0.3
    )
    values = {who: float(np.asarray(call()[0])) for who, call in contestants.items()}
    for who, value in values.items():
        if abs(value - values["ours"]) > 1e-10 * abs(value):
            raise ValueError(f"{name}: {who} finds {value!r}, ours is {values['ours']!r}")
    base = timings["ours"]
    rows = []
    for who, timing in timings.items():
        row: dict[str, Any] = {
            "what": f"{name}, {n} qubits, {len(words(hamiltonian))} words",
            "who": who,
            "median_ms": round(1e3 * timing.median, 3),
            "cpu_ms": round(1e3 * float(np.median(timing.cpu)), 3),
            "ours_is_x_faster": round(timing.median / base.median, 2),
            "x_less_cpu": round(float(np.median(timing.cpu)) / float(np.median(base.cpu)), 2),
            "first_cpu_s": round(timing.first_cpu, 2),
            "repetitions": len(timing.seconds),
        }
        target = _TARGETS.get((name, who))
        rows.append(row | ({"target": target} if target else {}))
    return rows


def _ours(hamiltonian: PauliSum, state: np.ndarray) -> dict[str, Callable[[], Any]]:
    psi = jnp.asarray(state)
    hamiltonian = jax.tree.map(jnp.asarray, hamiltonian)
    value = jax.jit(expval)
    both = jax.jit(jax.value_and_grad(expval))
    found: dict[str, Callable[[], Any]] = {"ours": lambda: (value(psi, hamiltonian),)}
    tables = prepare(hamiltonian)
    if isinstance(tables, PauliTables):
        found["ours, tables"] = lambda: (value(psi, tables),)
    found["ours, value and gradient"] = lambda: both(psi, hamiltonian)
    return found


def _peers(hamiltonian: PauliSum, state: np.ndarray) -> dict[str, Callable[[], Any]]:
    try:
        import pennylane as qml
        from pennylane_lightning.lightning_base._serialize import QuantumScriptSerializer
        from pennylane_lightning.lightning_qubit._measurements import LightningMeasurements
        from pennylane_lightning.lightning_qubit._state_vector import LightningStateVector
    except ImportError as error:
        raise ResourceError(f"this needs pennylane and pennylane-lightning ({error})") from error
    n = hamiltonian.n
    listed = words(hamiltonian)
    factors = [qml.pauli.string_to_pauli_word(word, {wire: wire for wire in range(n)}) for word in listed]
    observable = qml.Hamiltonian(list(listed.values()), factors)
    measured = qml.expval(observable)
    vector = LightningStateVector(n, dtype=np.complex128)
    vector.apply_operations([qml.StatePrep(state, wires=range(n))])
    measurements = LightningMeasurements(vector)
    sum_in_c = QuantumScriptSerializer("lightning.qubit", False, False)._ob(observable)
    found: dict[str, Callable[[], Any]] = {
        "lightning.qubit": lambda: (measurements.expval(measured),),
        "lightning.qubit, C++ alone": lambda: (measurements._measurement_lightning.expval(sum_in_c),),
    }
    if n <= _MOST_FOR_DEFAULT_QUBIT:
        device = qml.device("default.qubit", wires=n)
        tape = qml.tape.QuantumScript([qml.StatePrep(state, wires=range(n))], [measured])
        found["default.qubit"] = lambda: (device.execute(tape),)
    return found
