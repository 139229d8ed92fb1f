"""Value and gradient of a Gaussian circuit on 8 modes: 300 times PennyLane's default.gaussian.

Four layers of a rotation, a squeezing and a displacement a mode, and of beamsplitters between neighbours, 216
parameters in all; measured is the mean number of photons of the first mode. Ours is jitted; default.gaussian runs the
same circuit as a QNode with each of its gradient methods, of which the parameter-shift rule of the Heisenberg picture
is exact and finite differences are not. The QNode on the device jaxlab.gaussian is timed too. Values are checked to be
equal to 1e-9 (finite differences to 1e-4). `first_cpu_s` is what the first call took in CPU seconds: tracing and
compilation; `load` is the machine's run queue before the turns begin.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxlab.errors import ResourceError
from jaxlab.quantum import cv_circuit, gaussian, run_cv
from jaxlab.quantum.gaussian_measurements import number_mean

_TARGET = 300.0
_TOLERANCES = {"default.gaussian, parameter-shift": 1e-9, "default.gaussian, finite-diff": 1e-4}


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a contestant."""
    modes, layers = (3, 2) if quick else (8, 4)
    gates = _gates(modes, layers)
    with jax.enable_x64(True):
        circuit = cv_circuit(modes, gates)
        params = np.random.default_rng(0).uniform(-0.3, 0.3, circuit.size)

        def photons(p: jax.Array) -> jax.Array:
            return number_mean(run_cv(circuit, p, gaussian.vacuum(modes)), 0)

        compiled, on_device = jax.jit(jax.value_and_grad(photons)), jnp.asarray(params)

        def ours():
            return compiled(on_device)

        through = jax.jit(jax.value_and_grad(_node("jaxlab.gaussian", modes, gates, "best", "jax")))
        contestants: dict[str, Callable[[], Any]] = {
            "ours": ours,
            "QNode on jaxlab.gaussian, jitted": lambda: through(on_device),
            "QNode on jaxlab.gaussian, autograd": _by_autograd(
                "jaxlab.gaussian", modes, gates, params, "best"
            ),
        }
        for name in _TOLERANCES:
            device, method = name.split(", ")
            contestants[name] = _by_autograd(device, modes, gates, params, method)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        timings = harness.compare(contestants, 2 if quick else 5, turn_s=0.05 if quick else 0.3)
        for name, contestant in contestants.items():
            _check(name, ours(), contestant(), _TOLERANCES.get(name, 1e-9))
    best = min(_TOLERANCES, key=lambda name: timings[name].median)
    rows = []
    for who, timing in timings.items():
        times = timing.median / timings["ours"].median
        row = {
            "what": f"value and gradient, {modes} modes, {layers} layers, {circuit.size} parameters",
            "who": who,
            "median_ms": round(1e3 * timing.median, 4),
            "cpu_ms": round(1e3 * float(np.median(timing.cpu)), 4),
            "ours_is_x_faster": round(times, 2),
            "first_cpu_s": round(timing.first_cpu, 2),
            "repetitions": len(timing.seconds),
            "load": load and round(load, 2),
        }
        if who == best and not quick:
            row |= {"target": _TARGET, "met": times >= _TARGET}
        rows.append(row)
    return rows


def _gates(modes: int, layers: int) -> list[tuple[str, tuple[int, ...]]]:
    of_one: list[tuple[str, tuple[int, ...]]] = [
        (name, (wire,)) for wire in range(modes) for name in ("Rotation", "Squeezing", "Displacement")
    ]
    of_two: list[tuple[str, tuple[int, ...]]] = [
        ("Beamsplitter", (wire, wire + 1)) for wire in range(modes - 1)
    ]
    return (of_one + of_two) * layers


def _node(
    device: str, modes: int, gates: list[tuple[str, tuple[int, ...]]], method: str, interface: str
) -> Any:
    import pennylane as qml

    @qml.qnode(qml.device(device, wires=modes), diff_method=method, interface=interface)
    def photons(params: Any) -> Any:
        place = 0
        for name, wires in gates:
            gate = getattr(qml, name)
            gate(*(params[place + i] for i in range(gate.num_params)), wires=wires)
            place += gate.num_params
        return qml.expval(qml.NumberOperator(wires=0))

    return photons


def _by_autograd(
    device: str, modes: int, gates: list[tuple[str, tuple[int, ...]]], params: np.ndarray, method: str
) -> Callable[[], tuple[Any, Any]]:
    import pennylane as qml

    gradient = qml.grad(_node(device, modes, gates, method, "autograd"))
    trainable = qml.numpy.array(params, requires_grad=True)

    def both() -> tuple[Any, Any]:
        slope = np.asarray(gradient(trainable))
        return np.asarray(gradient.forward), slope

    return both


def _check(name: str, mine: Any, theirs: Any, tolerance: float) -> None:
    for a, b in zip(mine, theirs, strict=True):
        error = float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        if not error <= tolerance:
            raise ResourceError(f"{name} differs by {error:.2g}, more than {tolerance:g}: nothing to compare")
