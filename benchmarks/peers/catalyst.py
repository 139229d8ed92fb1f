"""Value and gradient of the fixture by Catalyst on lightning.qubit."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))  # behind the package of this name


def main(given: str, written: str) -> None:
    """Reads n, layers, repetitions; writes seconds, cpu, compile_cpu, value, gradient."""
    import jax
    import pennylane as qml
    import tfim
    from catalyst import qjit, value_and_grad

    jax.config.update("jax_enable_x64", True)
    inputs = np.load(given)
    n, layers, repetitions = (int(inputs[name]) for name in ("n", "layers", "repetitions"))
    device = qml.device("lightning.qubit", wires=n)

    @qml.qnode(device, diff_method="adjoint")
    def energy(params):
        tfim.ansatz(params, n)
        return qml.expval(tfim.hamiltonian(n))

    @qjit
    def both(params):
        return value_and_grad(energy)(params)

    params = tfim.angles(n, layers)
    tfim.record(lambda: jax.block_until_ready(both(params)), repetitions, written)


if __name__ == "__main__":
    main(*sys.argv[1:])
