"""Value and gradient of the fixture by TensorCircuit-NG: gates one by one under jit, or layers in a scan."""

import sys
import time

import numpy as np


def main(given: str, written: str) -> None:
    """Reads n, layers, repetitions, scan; writes seconds, cpu, compile_cpu, value, gradient."""
    import jax
    import jax.numpy as jnp
    import tensorcircuit as tc

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
    params = jnp.asarray(np.random.default_rng(0).uniform(-np.pi, np.pi, (layers, n, 2)))
    start = time.process_time()
    value, gradient = jax.block_until_ready(both(params))
    first = time.process_time() - start
    wall, cpu = [], []
    for _ in range(repetitions):
        began, began_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(both(params))
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


if __name__ == "__main__":
    main(*sys.argv[1:])
