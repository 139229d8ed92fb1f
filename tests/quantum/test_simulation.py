"""The fused simulator against PennyLane, dense matrices, and its own other ways of running."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pennylane_oracle import all_angles, final_state, random_gates, record_gates

from jaxlab.errors import InputError, ResourceError
from jaxlab.quantum.recording import record, trace
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")


def hermitian(rng, n):
    matrix = rng.normal(size=(1 << n, 1 << n)) + 1j * rng.normal(size=(1 << n, 1 << n))
    return (matrix + matrix.conj().T) / 2


def energy(psi, matrix):
    return jnp.real(jnp.vdot(psi, matrix @ psi))


def case(seed, count=24):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    return rng, n, random_gates(rng, n, count)


def compared_to_pennylane(seed, count=24):
    _, n, gates = case(seed, count)

    @jax.jit
    def run(angles):
        return simulate(*record(lambda c: record_gates(c, gates, angles), n), block=min(n, 1 + seed % 4))

    expected = final_state(gates, n, ("default.qubit", "lightning.qubit")[seed % 2])
    np.testing.assert_allclose(run(all_angles(gates)), expected, atol=1e-10)
    if seed % 4 == 0:
        np.testing.assert_allclose(run(all_angles(gates).astype(np.float32)), expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(8))
def test_state_is_pennylanes(seed):
    compared_to_pennylane(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 200))
def test_state_is_pennylanes_in_many_circuits(seed):
    compared_to_pennylane(seed, 14)


@pytest.mark.parametrize("seed", range(4))
def test_adjoint_gradient_is_that_of_plain_differentiation(seed):
    rng, n, gates = case(100 + seed)
    matrix = hermitian(rng, n)
    start = rng.normal(size=1 << n) + 1j * rng.normal(size=1 << n)

    @functools.partial(jax.jit, static_argnames="diff")
    def gradient(angles, state, diff):
        def loss(angles, state):
            program, slots = record(lambda c: record_gates(c, gates, angles), n)
            return energy(simulate(program, slots, state, block=min(n, 3), diff=diff), matrix)

        return jax.grad(loss, argnums=(0, 1))(angles, state)

    for adjoint, backprop in zip(
        gradient(all_angles(gates), start, "adjoint"),
        gradient(all_angles(gates), start, "backprop"),
        strict=True,
    ):
        np.testing.assert_allclose(adjoint, backprop, atol=1e-10)


def test_gradient_in_a_given_matrix_is_that_of_plain_differentiation():
    rng = np.random.default_rng(0)
    unitary = np.linalg.qr(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))[0]
    matrix = hermitian(rng, 3)

    @functools.partial(jax.jit, static_argnames="diff")
    def gradient(unitary, diff):
        def circuit(c):
            c.h(range(3))
            c.unitary(unitary, (2, 0))
            c.unitary(unitary[:2, :2] @ jnp.eye(2), 1, controls=(0, 2), values=(1, 0), adjoint=True)

        return jax.grad(
            lambda u: energy(simulate(*record(circuit, 3), diff=diff), matrix), holomorphic=False
        )(unitary)

    unitary[:2, :2] = np.linalg.qr(unitary[:2, :2])[0]
    unitary[2:, 2:] = np.linalg.qr(unitary[2:, 2:])[0]
    unitary[:2, 2:] = unitary[2:, :2] = 0
    np.testing.assert_allclose(gradient(unitary, "adjoint"), gradient(unitary, "backprop"), atol=1e-12)


def ansatz(c, angles):
    """A layer of a hardware-efficient ansatz: RY, RZ, a chain of CNOTs."""
    c.ry(angles[:, 0], range(c.n))
    c.rz(angles[:, 1], range(c.n))
    for wire in range(c.n - 1):
        c.cnot(wire, wire + 1)


def ising_energy(psi, n):
    """Of -sum Z Z - sum X with an open end, from plain index arithmetic."""
    index = np.arange(1 << n)
    bits = 1 - 2 * (index[:, None] >> np.arange(n)[::-1] & 1)
    total = -jnp.sum(jnp.abs(psi) ** 2 * (bits[:, 1:] * bits[:, :-1]).sum(1))
    for wire in range(n):
        total -= jnp.real(jnp.vdot(psi, psi[index ^ (1 << (n - 1 - wire))]))
    return total


@pytest.mark.parametrize(
    ("n", "layers", "value", "norm"),
    [
        (8, 4, -1.275907008067503, 2.600845509115612),
        (12, 4, -0.450516977518038, 2.241692159864249),
        pytest.param(16, 4, 0.134985780357370, 2.365231213401902, marks=pytest.mark.slow),
        pytest.param(16, 8, 0.233636100678732, 1.533088063575196, marks=pytest.mark.slow),
        pytest.param(20, 4, 0.042032253025197, 2.417635392828463, marks=pytest.mark.slow),
    ],
)
def test_transverse_field_ising_fixture(n, layers, value, norm):
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (layers, n, 2))

    @jax.jit
    @jax.value_and_grad
    def loss(angles):
        return ising_energy(simulate(*record(lambda c: c.repeat(ansatz, angles), n)), n)

    found, gradient = loss(angles)
    assert abs(found - value) < 1e-10
    assert abs(np.linalg.norm(gradient) - norm) < 1e-10


def test_repeat_is_the_layers_written_out():
    angles = np.random.default_rng(0).uniform(-1, 1, (3, 5, 2))

    def written_out(c):
        for layer in angles:
            ansatz(c, layer)

    rolled = simulate(*record(lambda c: c.repeat(ansatz, angles), 5))
    np.testing.assert_allclose(rolled, simulate(*record(written_out, 5)), atol=1e-14)


def test_program_does_not_grow_with_depth():
    def size(layers):
        def loss(angles):
            return ising_energy(simulate(*record(lambda c: c.repeat(ansatz, angles), 4)), 4)

        return len(str(jax.make_jaxpr(jax.grad(loss))(np.zeros((layers, 4, 2)))))

    assert abs(size(32) - size(4)) < 0.02 * size(4)


def test_batches_by_vmap_are_the_loop_and_hessian_is_symmetric():
    angles = np.random.default_rng(0).uniform(-1, 1, (3, 2, 3, 2))

    def loss(angles):
        return ising_energy(simulate(*record(lambda c: c.repeat(ansatz, angles), 3)), 3)

    gradient = jax.jit(jax.grad(loss))
    together = jax.jit(jax.vmap(jax.grad(loss)))(angles)
    np.testing.assert_allclose(together, [gradient(one) for one in angles], atol=1e-13)
    hessian = jax.jit(jax.hessian(loss))(angles[0]).reshape(12, 12)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    step = np.zeros(12)
    step[5] = 1e-5
    ahead, behind = (gradient(angles[0] + sign * step.reshape(2, 3, 2)) for sign in (1, -1))
    np.testing.assert_allclose(hessian[5], (ahead - behind).reshape(12) / 2e-5, atol=1e-8)


def test_norm_stays_over_a_thousand_layers():
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (1000, 4, 2))
    for dtype, drift in (("complex128", 1e-12), ("complex64", 1e-4)):
        program, slots = record(lambda c: c.repeat(ansatz, jnp.asarray(angles)), 4)
        psi = jax.jit(functools.partial(simulate, program, dtype=dtype))(slots)
        assert abs(float(jnp.linalg.norm(psi)) - 1) < drift


def test_trace_finds_the_program_without_values():
    program, slots_fn = trace(
        lambda c, t: [c.rx(t, 0), c.cnot(0, 1)], 2, jax.ShapeDtypeStruct((), jnp.float64)
    )
    hash(program)
    psi = simulate(program, slots_fn(0.4))
    np.testing.assert_allclose(psi, [np.cos(0.2), 0, 0, -1j * np.sin(0.2)], atol=1e-15)


@chex.variants(with_jit=True, without_jit=True)
class Ghz(chex.TestCase):
    def test_ghz_state(self):
        def circuit(c):
            c.h(0)
            for wire in range(3):
                c.cnot(wire, wire + 1)

        psi = self.variant(lambda: simulate(*record(circuit, 4)))()
        np.testing.assert_allclose(np.abs(psi) ** 2, np.eye(16)[0] / 2 + np.eye(16)[15] / 2, atol=1e-7)


def test_quantum_fourier_transform_is_the_dft_matrix():
    n = 4

    def circuit(c):
        for wire in range(n):
            c.h(wire)
            for other in range(wire + 1, n):
                c.cphase(np.pi / 2 ** (other - wire), other, wire)
        for wire in range(n // 2):
            c.swap(wire, n - 1 - wire)

    program, slots = record(circuit, n)
    columns = jax.vmap(lambda state: simulate(program, slots, state))(jnp.eye(1 << n, dtype=complex))
    index = np.arange(1 << n)
    expected = np.exp(2j * np.pi * np.outer(index, index) / (1 << n)) / np.sqrt(1 << n)
    np.testing.assert_allclose(columns.T, expected, atol=1e-14)


def test_wrong_use_is_named():
    def fails(match, circuit, n=2, **options):
        with pytest.raises(InputError, match=match):
            simulate(*record(circuit, n), **options)

    fails("wire 2; wires lie between 0 and 1", lambda c: c.rx(0.1, 2))
    fails("none may stand twice", lambda c: c.cnot(1, 1))
    fails("there is no gate 'RQ'", lambda c: c.gate("RQ", 0))
    fails("given 0 angles; it takes 1", lambda c: c.gate("RX", 0))
    fails("acts on 2 besides", lambda c: c.gate("IsingXX", 0, 0.1))
    fails(r"shape \(3,\)", lambda c: c.rx(jnp.zeros(3), (0, 1)))
    fails("must be a scalar", lambda c: c.gate("RX", 0, jnp.zeros(3)))
    fails("angles are real", lambda c: c.rx(1j, 0))
    fails("one 0 or 1", lambda c: c.gate("RX", 0, 0.1, controls=1, values=(2,)))
    fails("not unitary", lambda c: c.unitary(np.ones((2, 2)), 0))
    fails(r"must be \(4, 4\)", lambda c: c.unitary(np.eye(2), (0, 1)))
    fails("leading axes", lambda c: c.repeat(lambda c, x: c.rx(x, 0), jnp.zeros(0)))
    fails("at least one wire", lambda c: None, n=0)
    fails("'adjoint' or 'backprop'", lambda c: c.x(0), diff="forward")
    fails("complex64 or complex128", lambda c: c.x(0), dtype="float32")
    fails("block is 0", lambda c: c.x(0), block=0)
    fails(r"must be \(4,\)", lambda c: c.x(0), state=jnp.ones(2))
    with jax.enable_x64(False):
        fails("needs double precision", lambda c: c.x(0), dtype="complex128")


def test_forward_mode_and_too_many_wires_are_named():
    def first(angle, **options):
        return jnp.abs(simulate(*record(lambda c: c.rx(angle, 0), 1), **options)[0]) ** 2

    for jit in (jax.jit, lambda fn: fn):
        with pytest.raises(InputError, match="pass diff='backprop'"):
            jit(jax.jacfwd(first))(0.3)
    assert jax.jacfwd(lambda x: first(x, diff="backprop"))(0.3) == pytest.approx(-np.sin(0.3) / 2)
    with pytest.raises(ResourceError, match=r"40 wires in complex128 need 49,152 GiB"):
        simulate(*record(lambda c: c.x(0), 40), dtype="complex128")
