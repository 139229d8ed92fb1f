"""Value and gradient of a variational circuit: 10 times lightning.qubit at 8 wires, 8 at 12, 1.5 at 16, 2 at 20.

The energy of a transverse-field Ising chain after layers of RY, RZ and a chain of CNOTs (`peers/tfim.py`), in turns
with lightning.qubit's adjoint method at device level (no QNode around it) on the same tape; `cpu_ms` are the CPU
seconds of all threads of a call, and ratios of both are given. default.qubit, TensorCircuit-NG and Catalyst run where
they can: the last two in environments of their own, one after the other. Values are checked to be equal to 1e-9.
`first_cpu_s` is what the first call took in CPU seconds: tracing and compilation. The memory is that of a process of
its own.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers import lightning, run_peer, tfim
from jaxlab.quantum import circuit, pauli_sums
from jaxlab.quantum.recording import Circuit

_TARGETS = {8: 10.0, 12: 8.0, 16: 1.5, 20: 2.0}
_MEMORY = """
import sys
from benchmarks.quantum_speed import memory
memory(int(sys.argv[1]), int(sys.argv[2]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all sizes, of the batch, and of memory."""
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(True):
        for n in (4, 8) if quick else (4, 8, 12, 16, 20):
            rows += _against_lightning(n, 4, np.complex128, quick)
        if not quick:
            rows += _against_lightning(16, 8, np.complex128, quick)
            rows += _against_lightning(12, 32, np.complex128, quick)
            rows += _against_lightning(16, 4, np.complex64, quick)
            rows += _against_lightning(20, 4, np.complex64, quick)
        rows += _against_default_qubit(4 if quick else 8, 64)
        if not quick:
            rows += _against_default_qubit(12, None)
        rows += _elsewhere(4 if quick else 8, quick)
        if not quick:
            for n in (12, 16):
                rows += _elsewhere(n, quick)
    rows.append(_peak_memory(8 if quick else 20))
    return rows


def ours(
    n: int, dtype: Any = np.complex128, block: int | None = None
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """The function from angles [layers, n, 2] to energy and gradient, not yet compiled."""
    words = [(-1.0, "ZZ", (i, i + 1)) for i in range(n - 1)] + [(-1.0, "X", (i,)) for i in range(n)]
    hamiltonian = pauli_sums.pauli_sum(words, n)

    def layer(c: Circuit, own: jax.Array) -> None:
        c.ry(own[:, 0], range(n))
        c.rz(own[:, 1], range(n))
        for wire in range(n - 1):
            c.cnot(wire, wire + 1)

    energy = circuit(
        lambda c, params: c.repeat(layer, params),
        n,
        lambda state: pauli_sums.expval(state, hamiltonian),
        dtype=dtype,
        block=block,
    )
    return jax.value_and_grad(energy)


def memory(n: int, layers: int) -> None:
    """One value and gradient."""
    with jax.enable_x64(True):
        jax.block_until_ready(jax.jit(ours(n))(jnp.asarray(tfim.angles(n, layers))))


def _lightning(n: int, layers: int, dtype: Any) -> Callable[[], tuple[float, np.ndarray]]:
    import pennylane as qml

    params = tfim.angles(n, layers)
    with qml.queuing.AnnotatedQueue() as queue:
        tfim.ansatz(params, n)
    operations = qml.tape.QuantumScript.from_queue(queue).operations
    run = lightning.adjoint(operations, qml.expval(tfim.hamiltonian(n)), n, dtype)

    def both() -> tuple[float, np.ndarray]:
        value, slopes = run()
        return value, slopes.reshape(params.shape)

    return both


def _against_lightning(n: int, layers: int, dtype: Any, quick: bool) -> list[dict[str, Any]]:
    compiled = jax.jit(ours(n, dtype))
    params = jnp.asarray(tfim.angles(n, layers), np.zeros(0, dtype).real.dtype)
    peer = _lightning(n, layers, dtype)
    timings = harness.compare(
        {"ours": lambda: compiled(params), "lightning.qubit": peer},
        3 if quick or n > 18 else 5,
        turn_s=0.05 if quick else 0.3,
    )
    harness.require_equal(compiled(params), peer(), 1e-9 if dtype == np.complex128 else 1e-3)
    what = f"value and gradient, n={n}, L={layers}, {np.dtype(dtype).name}"
    target = _TARGETS.get(n) if layers == 4 and dtype == np.complex128 else None
    return harness.cpu_rows(what, timings, target)


def _against_default_qubit(n: int, batch: int | None) -> list[dict[str, Any]]:
    """Both under jit; with a batch under vmap as well."""
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=n), interface="jax", diff_method="backprop")
    def energy(params):
        tfim.ansatz(params, n)
        return qml.expval(tfim.hamiltonian(n))

    params = jnp.asarray(tfim.angles(n, 4))
    functions = {"ours": ours(n), "default.qubit, jit": jax.value_and_grad(energy)}
    if batch:
        params = params + jnp.linspace(0, 1, batch)[:, None, None, None]
        functions = {who: jax.vmap(one) for who, one in functions.items()}
        functions["ours, blocks of 3"] = jax.vmap(ours(n, block=3))
    compiled = {who: jax.jit(one) for who, one in functions.items()}
    timings = harness.compare(
        {who: functools.partial(one, params) for who, one in compiled.items()}, 5, turn_s=0.3
    )
    expected = compiled["ours"](params)
    for one in compiled.values():
        harness.require_equal(one(params), expected, 1e-9)
    batched = f", vmap {batch}" if batch else ""
    return harness.cpu_rows(
        f"value and gradient, n={n}, L=4, complex128{batched}", timings, 3.0 if batch else None
    )


def _elsewhere(n: int, quick: bool) -> list[dict[str, Any]]:
    """Peers in environments of their own, ours measured again just before each."""
    compiled, params = jax.jit(ours(n)), jnp.asarray(tfim.angles(n, 4))
    expected = compiled(params)
    rows = []
    kinds = {"Catalyst": ("catalyst", {}), "TensorCircuit-NG, scan": ("tensorcircuit", {"scan": 1})}
    if n <= 8:
        kinds["TensorCircuit-NG, unrolled"] = ("tensorcircuit", {"scan": 0})
    for who, (peer, extra) in kinds.items():
        mine = harness.compare({"ours": lambda: compiled(params)}, 3, turn_s=0.3)["ours"]
        given = {"n": n, "layers": 4, "repetitions": 3 if quick else 9} | extra
        found = run_peer(peer, {name: np.asarray(value) for name, value in given.items()})
        harness.require_equal(expected, (found["value"], found["gradient"]), 1e-9)
        timing = harness.Timing(
            0.0, tuple(found["seconds"]), float(found["compile_cpu"]), tuple(found["cpu"])
        )
        rows += harness.cpu_rows(f"value and gradient, n={n}, L=4, complex128", {"ours": mine, who: timing})[
            1:
        ]
    return rows


def _peak_memory(n: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(n), "4"], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.splitlines()[-1]) / 2**10
    return {"what": f"peak memory, n={n}, L=4, complex128", "who": "ours", "MiB": round(peak), "target": 600}
