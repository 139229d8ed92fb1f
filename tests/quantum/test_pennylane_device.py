"""The device `jaxlab.qubit` in PennyLane: its interfaces, its gradients, and PennyLane's own device tests."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from pennylane import numpy as pnp
from pennylane.devices.tests import get_device_tests

from jaxlab.errors import InputError
from jaxlab.quantum.pennylane_tapes import from_qnode
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")
ANGLES = np.array([0.4, -0.7, 1.1])


def gates(x):
    qml.RX(x[0], "a")
    qml.CRY(x[1], ("a", "b"))
    qml.adjoint(qml.IsingXY(x[2], ("b", "c")))
    qml.ctrl(qml.RZ(x[0] * x[1], "c"), control=("a", "b"), control_values=(0, 1))
    qml.CNOT(("c", "a"))


def node(measure, device="jaxlab.qubit", **options):
    @qml.qnode(qml.device(device, wires=("a", "b", "c")), **options)
    def circuit(x):
        gates(x)
        return measure()

    return circuit


def energy():
    return qml.expval(0.5 * qml.X("a") @ qml.Z("c") - qml.Y("b") + 0.2 * qml.Z("a"))


MEASUREMENTS = {
    "energy": energy,
    "hermitian": lambda: qml.expval(qml.Hermitian(np.array([[1, 2j], [-2j, 0.5]]), "b")),
    "variance": lambda: qml.var(qml.Z("a") @ qml.X("b")),
    "probabilities": lambda: qml.probs(("c", "a")),
    "state": qml.state,
    "density": lambda: qml.density_matrix(("a",)),
    "entropy": lambda: qml.vn_entropy(("a",)),
    "several": lambda: (qml.expval(qml.Z("a")), qml.probs(("b",))),
}


def as_arrays(results):
    return [np.asarray(leaf) for leaf in (results if isinstance(results, tuple | list) else [results])]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_results_are_those_of_default_qubit(name):
    ours, theirs = (node(MEASUREMENTS[name], device) for device in ("jaxlab.qubit", "default.qubit"))
    for run in (ours, jax.jit(ours)):
        x = jnp.asarray(ANGLES) if run is not ours else ANGLES
        for a, b in zip(as_arrays(run(x)), as_arrays(theirs(ANGLES)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_circuits_that_come_again_are_compiled_and_give_the_same():
    ours, theirs = node(energy), node(energy, "default.qubit")
    for shift in range(5):
        np.testing.assert_allclose(ours(ANGLES + shift), theirs(ANGLES + shift), atol=1e-12)
    assert len(ours.device._programs) == 1


@pytest.mark.parametrize("name", ["energy", "variance", "probabilities"])
def test_jax_derivatives_are_those_of_default_qubit(name):
    ours, theirs = (node(MEASUREMENTS[name], device) for device in ("jaxlab.qubit", "default.qubit"))
    x = jnp.asarray(ANGLES)
    np.testing.assert_allclose(jax.jit(jax.jacrev(ours))(x), jax.jacrev(theirs)(x), atol=1e-10)


def test_hessian_is_that_of_default_qubit():
    x = jnp.asarray(ANGLES)
    ours = jax.jit(jax.hessian(node(energy)))(x)
    np.testing.assert_allclose(ours, jax.hessian(node(energy, "default.qubit"))(x), atol=1e-9)


@pytest.mark.parametrize("name", ["energy", "hermitian", "probabilities", "several"])
def test_eager_jax_circuits_that_come_again_are_compiled_and_give_the_same(name):
    device = qml.device("jaxlab.qubit", wires=("a", "b", "c"))

    @qml.qnode(device, interface="jax")
    def circuit(x):
        gates(x)
        return MEASUREMENTS[name]()

    reference = node(MEASUREMENTS[name], "default.qubit", interface="jax")
    for run in range(3):
        x = jnp.asarray(ANGLES + 0.3 * run)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), circuit(x), reference(x))
        assert len(device._programs) == (run > 0)
    expected = jax.jacobian(reference)(x)
    found = [jax.jacobian(circuit)(x) for _ in range(2)][-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), found, expected)
    batch = jnp.stack([x, 2 * x])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
        jax.vmap(circuit)(batch),
        jax.vmap(reference)(batch),
    )


def test_eager_circuits_know_other_observables_and_traced_coefficients():
    device = qml.device("jaxlab.qubit", wires=2)

    @qml.qnode(device, interface="jax")
    def mean(x, c, which):
        qml.RY(x, 0)
        qml.CNOT((0, 1))
        return qml.expval(c[0] * qml.Z(0) + c[1] * (qml.X(0) @ qml.X(1) if which else qml.Y(0) @ qml.Y(1)))

    for _ in range(3):
        for which, sign in ((True, 1), (False, -1)):
            c = jnp.asarray([0.3, 0.7])
            # cos|00> + sin|11> of half the angle: <Z> = cos x, <XX> = sin x = -<YY>.
            expected = 0.3 * np.cos(0.4) + sign * 0.7 * np.sin(0.4)
            assert float(mean(0.4, c, which)) == pytest.approx(expected, abs=1e-12)
            gradient = jax.grad(mean, argnums=1)(0.4, c, which)
            np.testing.assert_allclose(gradient, [np.cos(0.4), sign * np.sin(0.4)], atol=1e-12)


def test_gradient_through_the_state():
    x = jnp.asarray(ANGLES)

    def first(run):
        return jax.grad(lambda x: jnp.real(run(x)[3] * jnp.conj(run(x)[1])))(x)

    np.testing.assert_allclose(first(node(qml.state)), first(node(qml.state, "default.qubit")), atol=1e-10)


def test_nested_batches_of_gradients_need_no_callback():
    batch = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 3)))
    function = jax.jit(jax.vmap(jax.vmap(jax.grad(node(energy)))))
    assert "callback" not in str(jax.make_jaxpr(function)(batch))
    one = jax.jit(jax.grad(node(energy)))
    np.testing.assert_allclose(function(batch), [[one(x) for x in row] for row in batch], atol=1e-12)


def test_batched_parameters_are_run_together():
    x = np.stack([ANGLES, ANGLES + 0.3], axis=1)
    for device in ("jaxlab.qubit", "default.qubit"):
        found = node(energy, device)(x)
        assert found.shape == (2,)
        np.testing.assert_allclose(found, [node(energy, device)(x[:, i]) for i in range(2)], atol=1e-12)
    np.testing.assert_allclose(
        jax.jit(node(energy))(jnp.asarray(x)), node(energy, "default.qubit")(x), atol=1e-12
    )


def test_autograd_and_torch_get_adjoint_gradients():
    torch = pytest.importorskip("torch")
    exact = jax.grad(node(energy, "default.qubit"))(jnp.asarray(ANGLES))
    found = qml.grad(node(energy, diff_method="adjoint"))(pnp.array(ANGLES, requires_grad=True))
    np.testing.assert_allclose(found, exact, atol=1e-10)
    x = torch.tensor(ANGLES, requires_grad=True)
    node(energy, interface="torch")(x).backward()
    np.testing.assert_allclose(x.grad, exact, atol=1e-10)


def test_jacobian_of_several_measurements_is_nested_as_pennylane_nests():
    def stacked(x):
        return pnp.hstack(node(MEASUREMENTS["several"])(x))

    def theirs(x):
        return pnp.hstack(node(MEASUREMENTS["several"], "default.qubit")(x))

    x = pnp.array(ANGLES, requires_grad=True)
    np.testing.assert_allclose(qml.jacobian(stacked)(x), qml.jacobian(theirs)(x), atol=1e-10)


def test_samples_differ_from_call_to_call_and_follow_the_probabilities():
    device = qml.device("jaxlab.qubit", wires=1, seed=jax.random.key(0))

    @qml.set_shots(2000)
    @qml.qnode(device)
    def circuit():
        qml.RY(1.0, 0)
        return qml.expval(qml.Z(0))

    first, second = circuit(), circuit()
    assert first != second
    for value in (first, second):
        assert abs(value - np.cos(1.0)) < 4 * np.sin(1.0) / np.sqrt(2000)


@pytest.mark.parametrize("interface", ["jax", "autograd"])
def test_pauli_sums_are_measured_by_our_kernel(interface, monkeypatch):
    from jaxlab.quantum import pennylane_device

    def measured():
        words = [qml.X("a") @ qml.Y("c"), qml.Z("b"), qml.prod(qml.Y("a"), qml.Y("b"), qml.X("c"))]
        total = qml.Hamiltonian([0.3, -1.2, 0.7], words)
        return (
            qml.expval(total),
            qml.var(total),
            qml.probs(wires="b"),
            qml.expval(qml.Projector([1], wires="a")),
        )

    x = np.array(ANGLES)
    if interface == "jax":
        expected = jax.jacobian(node(measured, "default.qubit"))(jnp.asarray(x))
        seen = []
        ours = pennylane_device.pauli_sums.expval
        monkeypatch.setattr(
            pennylane_device.pauli_sums, "expval", lambda *args: seen.append(1) or ours(*args)
        )
        found = jax.jit(jax.jacobian(node(measured)))(jnp.asarray(x))
        assert len(seen) == 1
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        return
    x = qml.numpy.array(x, requires_grad=True)

    def total(name):
        return lambda x: qml.math.sum(qml.math.hstack(node(measured, name, interface=interface)(x)))

    np.testing.assert_allclose(
        qml.grad(total("jaxlab.qubit"))(x), qml.grad(total("default.qubit"))(x), atol=1e-10
    )


def test_program_of_a_qnode_gives_its_state():
    build = from_qnode(node(qml.state))
    program, slots = build(jnp.asarray(ANGLES))
    np.testing.assert_allclose(simulate(program, slots), node(qml.state, "default.qubit")(ANGLES), atol=1e-12)

    @qml.qnode(qml.device("jaxlab.qubit", wires=1))
    def prepared():
        qml.StatePrep([0.6, 0.8], wires=0)
        return qml.state()

    with pytest.raises(InputError, match="prepares a state"):
        from_qnode(prepared)()


def test_wrong_use_is_named():
    with pytest.raises(qml.exceptions.DeviceError, match="device option speed not present"):
        node(energy).device.setup_execution_config(qml.devices.ExecutionConfig(device_options={"speed": 1}))
    with pytest.raises(qml.exceptions.DeviceError, match="mcm_method one-shot not supported"):
        node(energy, mcm_method="one-shot")(ANGLES)
    with pytest.raises(qml.wires.WireError):
        qml.QNode(lambda: (qml.X("d"), qml.state())[1], qml.device("jaxlab.qubit", wires=("a",)))()


@pytest.mark.slow
@pytest.mark.parametrize(("shots", "least"), [("None", 389), ("10000", 370)])
def test_pennylanes_own_device_tests_pass(shots, least, tmp_path):
    command = [
        sys.executable, "-m", "pytest", get_device_tests(), "--device=jaxlab.qubit", f"--shots={shots}", "--skip-ops",
        "--no-flaky-report", "-p", "no:cacheprovider", "-o", "addopts=",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= least, done.stdout[-300:]
