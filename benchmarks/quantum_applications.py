"""QAOA, shots and noise beside lightning.qubit, default.qubit, default.mixed and Qulacs: values equal, faster each.

QAOA: expected cut and gradient of four layers on the dodecahedral graph (20 qubits) and the Heawood graph (14), beside
lightning.qubit's adjoint method at device level and, where it can be installed, Qulacs' backpropagation in an
environment of its own. Shots: 10,000 samples of all wires after the circuit of `peers/tfim.py`, state and drawing in
one call; the mean of every Z must lie within five standard errors of the exact value, for peers too. Noise: value and
gradient of the same circuit with amplitude damping after each gate, by the density matrix; default.mixed under jit with
backpropagation, and by trajectories, 256 in one call, whose mean must lie within five standard errors. complex128;
`first_cpu_s` is the first call, compilation included.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers import lightning, run_peer, tfim
from jaxlab.errors import ResourceError
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.ansatze import qaoa
from jaxlab.quantum.graphs import Graph, cut_hamiltonian, graph
from jaxlab.quantum.measurements import marginal_z, sample
from jaxlab.quantum.noise import amplitude_damping, density_matrix_of, trajectory
from jaxlab.quantum.recording import Circuit, record
from jaxlab.quantum.simulation import circuit

_SHOTS, _TRAJECTORIES, _GAMMA = 10_000, 256, 0.02


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of the three parts."""
    with jax.enable_x64(True):
        rows = _qaoa("petersen" if quick else "heawood", 4, quick)
        rows += [] if quick else _qaoa("dodecahedral", 4, quick)
        for n in (6,) if quick else (10, 16, 20):
            rows += _shots(n, quick)
        return rows + _noise(3 if quick else 6, 2 if quick else 4, quick)


def _qaoa(name: str, p: int, quick: bool) -> list[dict[str, Any]]:
    chosen = graph(name)
    cost = cut_hamiltonian(chosen)
    ansatz = qaoa(cost, p)
    angles = np.stack([np.linspace(0.2, 0.7, p), np.linspace(0.6, 0.1, p)], 1)
    on_device = jnp.asarray(angles)
    mine = jax.jit(
        jax.value_and_grad(lambda a: pauli_sums.expval(ansatz.state(a, dtype=jnp.complex128), cost))
    )
    peer = _qaoa_on_lightning(chosen, angles)
    contestants: dict[str, Callable[[], Any]] = {"ours": lambda: mine(on_device), "lightning.qubit": peer}
    timings = harness.compare(contestants, 3, turn_s=0.05 if quick else 0.3)
    harness.require_equal(mine(on_device), peer(), 1e-9)
    given = {"edges": np.array(chosen.edges), "n": chosen.n, "angles": angles, "repetitions": 3}
    found = run_peer("qulacs", {key: np.asarray(value) for key, value in given.items()})
    harness.require_equal(mine(on_device), (found["value"], found["gradient"]), 1e-9)
    timings["Qulacs"] = harness.Timing(0.0, tuple(found["seconds"]), 0.0, tuple(found["cpu"]))
    return harness.cpu_rows(f"QAOA, value and gradient, {name}, n={chosen.n}, p={p}", timings)


def _qaoa_on_lightning(chosen: Graph, angles: np.ndarray) -> Callable[[], tuple[float, np.ndarray]]:
    import pennylane as qml

    operations: list[Any] = [qml.Hadamard(wire) for wire in range(chosen.n)]
    for gamma, beta in angles:
        # exp(-i gamma (1 - ZZ) / 2) is IsingZZ(-gamma), but for a phase.
        operations += [qml.IsingZZ(-gamma, edge) for edge in chosen.edges]
        operations += [qml.RX(2 * beta, wire) for wire in range(chosen.n)]
    # PennyLane has no gate with the sum as generator: derivatives of all edges and all wires, summed by us.
    cost = qml.Hamiltonian(
        [len(chosen.edges) / 2, *[-0.5] * len(chosen.edges)],
        [qml.Identity(0), *(qml.PauliZ(a) @ qml.PauliZ(b) for a, b in chosen.edges)],
    )
    run = lightning.adjoint(operations, qml.expval(cost), chosen.n)

    def both() -> tuple[float, np.ndarray]:
        value, slopes = run()
        each = slopes.reshape(len(angles), len(chosen.edges) + chosen.n)
        edges, wires = np.split(each, [len(chosen.edges)], axis=1)
        return value, np.stack([-edges.sum(1), 2 * wires.sum(1)], 1)

    return both


def _shots(n: int, quick: bool) -> list[dict[str, Any]]:
    import pennylane as qml

    params = tfim.angles(n, 4)
    on_device = jnp.asarray(params)

    @jax.jit
    def mine(key: jax.Array, params: jax.Array) -> jax.Array:
        return circuit(_record, n, functools.partial(sample, key, shots=_SHOTS), dtype=jnp.complex128)(params)

    exact = np.asarray(jax.jit(circuit(_record, n, marginal_z, dtype=jnp.complex128))(on_device))
    contestants: dict[str, Callable[[], Any]] = {"ours": lambda: mine(jax.random.key(0), on_device)}
    with qml.queuing.AnnotatedQueue() as queue:
        tfim.ansatz(params, n)
        qml.sample(wires=range(n))
    tape = qml.tape.QuantumScript.from_queue(queue, shots=_SHOTS)
    for name in ("lightning.qubit", "default.qubit"):
        device = qml.device(name, wires=n, seed=0)
        (ready,), _ = device.preprocess_transforms()([tape])
        contestants[name] = functools.partial(device.execute, ready)
    timings = harness.compare(contestants, 3, turn_s=0.05 if quick else 0.3)
    for who, contestant in contestants.items():
        bits = np.asarray(contestant()).reshape(_SHOTS, n).astype(float)
        wrong = np.abs(1 - 2 * bits.mean(0) - exact) / np.sqrt((1 - exact**2) / _SHOTS)
        if not wrong.max() < 5:
            raise ResourceError(f"{who}: a mean is {wrong.max():.1f} standard errors off: nothing to compare")
    return harness.cpu_rows(f"{_SHOTS} samples of {n} wires, L=4", timings)


def _record(c: Circuit, params: jax.Array) -> None:
    _layers(c, params, None)


def _layers(c: Circuit, params: jax.Array, gamma: Any) -> None:
    n = params.shape[1]

    def layer(c: Circuit, own: jax.Array) -> None:
        for turn, angles in ((c.ry, own[:, 0]), (c.rz, own[:, 1])):
            turn(angles, range(n))
        for wire in range(n - 1):
            c.cnot(wire, wire + 1)
        if gamma is not None:
            for wire in range(n):
                c.channel(amplitude_damping(gamma), wire)

    c.repeat(layer, params)


def _noise(n: int, layers: int, quick: bool) -> list[dict[str, Any]]:
    import pennylane as qml

    params = jnp.asarray(tfim.angles(n, layers))

    def recorded(params: jax.Array) -> Any:
        return record(lambda c, p: _layers(c, p, _GAMMA), n, params)

    signs = 1.0 - 2 * (np.arange(1 << n) >> (n - 1))

    def mean(params: jax.Array) -> jax.Array:
        rho = density_matrix_of(*recorded(params), dtype=jnp.complex128)
        return jnp.real(jnp.sum(jnp.diagonal(rho) * signs))

    def drawn(key: jax.Array, params: jax.Array) -> jax.Array:
        psi = trajectory(key, *recorded(params), dtype=jnp.complex128)
        return jnp.sum(signs * jnp.square(jnp.abs(psi)))

    @qml.qnode(qml.device("default.mixed", wires=n), interface="jax", diff_method="backprop")
    def node(params):
        for own in params:
            for wire in range(n):
                qml.RY(own[wire, 0], wire)
            for wire in range(n):
                qml.RZ(own[wire, 1], wire)
            for wire in range(n - 1):
                qml.CNOT([wire, wire + 1])
            for wire in range(n):
                qml.AmplitudeDamping(_GAMMA, wire)
        return qml.expval(qml.PauliZ(0))

    compiled = {
        "ours": jax.jit(jax.value_and_grad(mean)),
        "default.mixed, jit": jax.jit(jax.value_and_grad(node)),
    }
    contestants = {who: functools.partial(one, params) for who, one in compiled.items()}
    timings = harness.compare(contestants, 3, turn_s=0.05 if quick else 0.3)
    exact = compiled["ours"](params)
    harness.require_equal(exact, compiled["default.mixed, jit"](params), 1e-9)
    rows = harness.cpu_rows(f"noise, value and gradient of the density matrix, n={n}, L={layers}", timings)
    many = jax.jit(jax.vmap(drawn, (0, None)))
    keys = jax.random.split(jax.random.key(0), _TRAJECTORIES)
    timings = harness.compare({"ours": lambda: many(keys, params)}, 3, turn_s=0.05 if quick else 0.3)
    found = np.asarray(many(keys, params))
    if abs(found.mean() - float(exact[0])) > 5 * found.std() / np.sqrt(len(found)):
        raise ResourceError("the trajectories' mean is more than five standard errors off")
    return rows + harness.cpu_rows(
        f"noise, value of {_TRAJECTORIES} trajectories, n={n}, L={layers}", timings
    )
