"""Value and gradient of the fixture by TensorCircuit-NG: gates one by one under jit, or layers in a scan."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))  # behind the package of this name


def main(given: str, written: str) -> None:
    """Reads n, layers, repetitions, scan; writes seconds, cpu, compile_cpu, value, gradient."""
    import jax
    import jax.numpy as jnp
    import tensorcircuit as tc
    import tfim

    jax.config.update("jax_enable_x64", True)
    tc.set_backend("jax")
    tc.set_dtype("complex128")
    inputs = np.load(given)
    n, layers, repetitions, scan = (int(inputs[name]) for name in ("n", "layers", "repetitions", "scan"))

    def layer(circuit, own):
        for wire in range(n):
            circuit.ry(wire, theta=own[wire, 0])
            circuit.rz(wire, theta=own[wire, 1])
        for wire in range(n - 1):
            circuit.cnot(wire, wire + 1)

    def energy(params):
        if scan:

            def step(state, own):
                circuit = tc.Circuit(n, inputs=state)
                layer(circuit, own)
                return circuit.state(), None

            state, _ = jax.lax.scan(step, tc.Circuit(n).state(), params)
            circuit = tc.Circuit(n, inputs=state)
        else:
            circuit = tc.Circuit(n)
            for own in params:
                layer(circuit, own)
        total = 0.0
        for wire in range(n - 1):
            total -= circuit.expectation_ps(z=[wire, wire + 1])
        for wire in range(n):
            total -= circuit.expectation_ps(x=[wire])
        return jnp.real(total)

    both = jax.jit(jax.value_and_grad(energy))
    params = jnp.asarray(tfim.angles(n, layers))
    tfim.record(lambda: jax.block_until_ready(both(params)), repetitions, written)


if __name__ == "__main__":
    main(*sys.argv[1:])
