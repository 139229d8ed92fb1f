"""Circuits of continuous variables as lists: the same as gate by gate, on both backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cv_oracle import apply, program, random_gates

from jaxlab.errors import InputError
from jaxlab.quantum import fock, gaussian
from jaxlab.quantum import gaussian_measurements as measured
from jaxlab.quantum.cv_circuits import KINDS, cv_circuit, run_cv

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("modes", [1, 3])
def test_gaussian_circuit_is_its_gates_one_by_one(modes):
    rng = np.random.default_rng(modes)
    gates = random_gates(rng, modes, 10)
    circuit, params = program(gates, modes)
    start = gaussian.thermal(gaussian.vacuum(modes), 0.3, modes - 1)
    found = jax.jit(lambda p: run_cv(circuit, p, start))(params)
    one_by_one = jax.jit(lambda: apply(gaussian, gates, start))()
    for a, b in zip(found, one_by_one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_fock_circuit_is_its_gates_one_by_one():
    rng = np.random.default_rng(0)
    order = rng.permutation([*KINDS, "Kerr", "Displacement"])
    gates = []
    for name in order:
        params = rng.uniform(-0.3, 0.3, len(KINDS[name].rules)).tolist()
        gates.append((str(name), params, [int(wire) for wire in rng.permutation(2)[: KINDS[name].wires]]))
    circuit, params = program(gates, 2)
    start = fock.number_state((1, 0), cutoff=5)
    found = jax.jit(lambda p: run_cv(circuit, p, start))(params)
    one_by_one = jax.jit(lambda: apply(fock, gates, start).amp)()
    np.testing.assert_allclose(found.amp, one_by_one, atol=1e-12)


def test_batches_and_gradients():
    circuit, _ = program(random_gates(np.random.default_rng(0), 3, 12), 3)

    def count(p):
        return measured.number_mean(run_cv(circuit, p, gaussian.vacuum(3)), 1)

    batch = np.random.default_rng(1).uniform(-0.4, 0.4, (4, circuit.size))
    slopes = jax.jit(jax.vmap(jax.grad(count)))(batch)
    one = jax.jit(jax.grad(count))
    np.testing.assert_allclose(slopes, [one(p) for p in batch], atol=1e-12)
    run, steps = jax.jit(jax.vmap(count)), 1e-5 * np.eye(circuit.size)
    np.testing.assert_allclose(slopes[0], (run(batch[0] + steps) - run(batch[0] - steps)) / 2e-5, atol=1e-8)


def test_program_does_not_grow_with_the_number_of_gates():
    def operations(layers):
        gates = [("Rotation", 0), ("Squeezing", 1), ("Beamsplitter", (1, 0)), ("Displacement", 1)] * layers
        circuit = cv_circuit(2, gates)
        traced = jax.make_jaxpr(lambda p: run_cv(circuit, p, gaussian.vacuum(2)))(jnp.zeros(circuit.size))
        return len(traced.eqns)

    assert operations(2) == operations(50)


def test_circuit_is_hashable_and_knows_its_parameters():
    gates = [("Displacement", 0), ("Beamsplitter", (0, 1)), ("Kerr", 1)]
    circuit = cv_circuit(2, gates)
    assert circuit == cv_circuit(2, gates)
    assert hash(circuit) == hash(cv_circuit(2, gates))
    assert circuit.size == 5
    assert [gate.first for gate in circuit.gates] == [0, 2, 4]


def test_circuit_without_gates_changes_nothing():
    state = gaussian.vacuum(2)
    assert run_cv(cv_circuit(2, []), np.zeros(0), state) is state


def test_states_keep_their_precision():
    circuit = cv_circuit(2, [("Displacement", 0), ("Beamsplitter", (0, 1))])
    params = np.array([0.1, 0.2, 0.3, 0.4])

    def run(state):
        return jax.eval_shape(lambda p: run_cv(circuit, p, state), params)

    assert run(gaussian.vacuum(2, dtype=jnp.float32)).cov.dtype == jnp.float32
    assert run(fock.vacuum(2, cutoff=3, dtype=jnp.complex64)).amp.dtype == jnp.complex64


KERR = [("Kerr", 0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cv_circuit(0, []), "modes is 0"),
        (lambda: cv_circuit(1, [("Hadamard", 0)]), "no gate 'Hadamard'; there are Rotation"),
        (lambda: cv_circuit(1, [("Rotation", 1)]), "they lie between 0 and 0"),
        (lambda: cv_circuit(2, [("CrossKerr", (1, 1))]), "none may stand twice"),
        (lambda: cv_circuit(2, [("Beamsplitter", 1)]), "2 must be given"),
        (lambda: run_cv(cv_circuit(1, KERR), np.zeros(2), gaussian.vacuum(1)), r"this circuit takes \(1,\)"),
        (lambda: run_cv(cv_circuit(1, KERR), np.zeros(1) + 0j, gaussian.vacuum(1)), "must be real"),
        (lambda: run_cv(cv_circuit(1, KERR), np.zeros(1), gaussian.vacuum(1)), "Kerr, which is not Gaussian"),
        (lambda: run_cv(cv_circuit(2, []), np.zeros(0), gaussian.vacuum(1)), r"this circuit takes \(4,\)"),
        (lambda: run_cv(cv_circuit(2, KERR), np.zeros(1), fock.vacuum(1, cutoff=3)), "state has 1 modes"),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
