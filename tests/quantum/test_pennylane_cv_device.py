"""The device `jaxlab.gaussian` in PennyLane, against `default.gaussian` where that is right."""

import ast
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from cv_oracle import random_gates
from pennylane import numpy as pnp
from pennylane.exceptions import DeviceError

from jaxlab.quantum import pennylane_cv_device

pytestmark = pytest.mark.usefixtures("double_precision")
LABELS = ("a", "b", "c", "d")
GATES = random_gates(np.random.default_rng(2), 4, 12, scale=0.4)
PARAMS = np.array([x for _, own, _ in GATES for x in own])
SQUARE = np.random.default_rng(3).normal(size=(5, 5))
SQUARE = SQUARE + SQUARE.T


def gates(x):
    place = 0
    for name, own, wires in GATES:
        getattr(qml, name)(*[x[place + i] for i in range(len(own))], wires=[LABELS[wire] for wire in wires])
        place += len(own)


def node(measure, device="jaxlab.gaussian", prepare=None, **options):
    @qml.qnode(qml.device(device, wires=LABELS), **options)
    def circuit(x):
        if prepare:
            prepare()
        gates(x)
        return measure()

    return circuit


OBSERVABLES = {
    "QuadX": lambda: qml.QuadX("b"),
    "QuadP": lambda: qml.QuadP("c"),
    "QuadOperator": lambda: qml.QuadOperator(0.7, wires="a"),
    "NumberOperator": lambda: qml.NumberOperator(wires="d"),
    "TensorN": lambda: qml.TensorN(wires=["c"]),
    "linear": lambda: qml.PolyXP(SQUARE[0], wires=("d", "b")),
    "square": lambda: qml.PolyXP(SQUARE, wires=("d", "b")),
    "FockStateProjector": lambda: qml.FockStateProjector(np.array([0, 1, 0]), wires=("a", "b", "d")),
    "Identity": lambda: qml.Identity("a"),
}


def number():
    return qml.expval(qml.NumberOperator(wires="b"))


def several():
    return qml.expval(qml.QuadX("a")), qml.var(qml.QuadP("b")), qml.expval(qml.NumberOperator(wires="c"))


@pytest.mark.parametrize("name", OBSERVABLES)
@pytest.mark.parametrize("read", [qml.expval, qml.var])
def test_results_are_those_of_default_gaussian(name, read):
    ours, theirs = (
        node(lambda: read(OBSERVABLES[name]()), device) for device in ("jaxlab.gaussian", "default.gaussian")
    )
    expected = theirs(PARAMS)
    found = ours(PARAMS)
    assert isinstance(found, float | np.ndarray)
    for value in (found, jax.jit(ours)(jnp.asarray(PARAMS))):
        np.testing.assert_allclose(value, expected, rtol=1e-10)


def prepared():
    qml.CoherentState(0.4, 0.3, wires="a")
    qml.SqueezedState(0.2, -0.3, wires="b")
    qml.DisplacedSqueezedState(0.4, 0.3, 0.2, 0.1, wires="c")
    qml.ThermalState(0.6, wires="d")
    qml.InterferometerUnitary(np.array([[np.exp(0.3j)]]), wires="a")


def covariance():
    """Of a physical mixed state of four modes."""
    root = np.random.default_rng(0).normal(size=(8, 8))
    return 2 * np.eye(8) + 0.1 * root @ root.T


@pytest.mark.parametrize(
    "prepare", [prepared, lambda: qml.GaussianState(covariance(), np.arange(8) / 10, wires=LABELS)]
)
def test_preparations_are_those_of_default_gaussian(prepare):
    def measure():
        return qml.var(OBSERVABLES["square"]())

    expected = node(measure, "default.gaussian", prepare, diff_method=None)(PARAMS)
    np.testing.assert_allclose(node(measure, prepare=prepare)(PARAMS), expected, rtol=1e-10)


def test_interferometer_of_two_modes_is_its_beamsplitter():
    """`default.gaussian` is wrong here: it takes (x, p, x, p) for (x, x, p, p)."""
    theta, phi = 0.7, 0.4
    turn = np.exp(1j * phi) * np.sin(theta)
    U = np.array([[np.cos(theta), -turn.conj()], [turn, np.cos(theta)]])

    def run(gate):
        @qml.qnode(qml.device("jaxlab.gaussian"))
        def circuit():
            qml.Squeezing(0.3, 0.2, wires=0)
            qml.Displacement(0.5, 0.1, wires=1)
            gate()
            return qml.var(qml.PolyXP(SQUARE, wires=(0, 1)))

        return circuit()

    found = run(lambda: qml.InterferometerUnitary(U, wires=(1, 0)))
    np.testing.assert_allclose(found, run(lambda: qml.Beamsplitter(theta, phi, wires=(1, 0))), rtol=1e-12)


def test_operations_that_decompose_are_decomposed():
    @qml.qnode(qml.device("jaxlab.gaussian"))
    def circuit():
        qml.DisplacementEmbedding(np.array([0.3, 0.4]), wires=range(2))
        qml.Interferometer(theta=[0.3], phi=[0.2], varphi=[0.1, 0.5], wires=range(2))
        qml.adjoint(qml.Interferometer)(theta=[0.3], phi=[0.2], varphi=[0.1, 0.5], wires=range(2))
        qml.Identity(0)
        return qml.expval(qml.QuadX(0)), qml.expval(qml.QuadX(1))

    np.testing.assert_allclose(circuit(), 2 * np.cos(0.1) * np.array([0.3, 0.4]), atol=1e-12)


@pytest.mark.parametrize("name", ["square", "FockStateProjector"])
def test_jax_derivatives_need_no_callback_and_are_exact(name):
    def measure():
        return qml.expval(OBSERVABLES[name]())

    ours = node(measure)
    slope = jax.jit(jax.grad(ours))
    assert "callback" not in str(jax.make_jaxpr(slope)(jnp.asarray(PARAMS)))
    found = slope(jnp.asarray(PARAMS))
    if name == "square":
        theirs = node(measure, "default.gaussian", diff_method="parameter-shift")
        np.testing.assert_allclose(found, qml.grad(theirs)(pnp.array(PARAMS)), atol=1e-8)
    theirs = node(measure, "default.gaussian", diff_method=None)
    for place in (0, 5):
        step = 1e-5 * np.eye(len(PARAMS))[place]
        numeric = (theirs(PARAMS + step) - theirs(PARAMS - step)) / 2e-5
        np.testing.assert_allclose(found[place], numeric, atol=1e-7 * max(1, abs(numeric)))


def test_hessian_and_batches_of_gradients():
    ours = node(number)
    hessian = jax.jit(jax.hessian(ours))(jnp.asarray(PARAMS))
    slope, step = jax.jit(jax.grad(ours)), 1e-5 * np.eye(len(PARAMS))[4]
    numeric = (slope(PARAMS + step) - slope(PARAMS - step)) / 2e-5
    np.testing.assert_allclose(hessian[4], numeric, atol=1e-7)
    batch = np.stack([PARAMS, PARAMS / 2])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(ours)))(batch), [slope(x) for x in batch], atol=1e-12
    )


def test_autograd_and_torch_get_exact_gradients():
    torch = pytest.importorskip("torch")
    exact = jax.jit(jax.grad(node(number)))(jnp.asarray(PARAMS))
    found = qml.grad(node(number))(pnp.array(PARAMS, requires_grad=True))
    np.testing.assert_allclose(found, exact, atol=1e-12)
    x = torch.tensor(PARAMS, requires_grad=True)
    node(number, interface="torch")(x).backward()
    np.testing.assert_allclose(x.grad, exact, atol=1e-12)
    through_callbacks = jax.jit(jax.grad(node(number, diff_method="device")))(jnp.asarray(PARAMS))
    np.testing.assert_allclose(through_callbacks, exact, atol=1e-12)


def test_jacobian_of_several_measurements_is_nested_as_pennylane_nests():
    found = qml.jacobian(lambda x: pnp.hstack(node(several)(x)))(pnp.array(PARAMS, requires_grad=True))
    exact = jax.jit(jax.jacobian(lambda x: jnp.stack(node(several)(x))))(jnp.asarray(PARAMS))
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_observables_parameters_are_differentiated_too():
    @qml.qnode(qml.device("jaxlab.gaussian", wires=1))
    def circuit(angle):
        qml.Displacement(0.4, 0.3, wires=0)
        return qml.expval(qml.QuadOperator(angle, wires=0))

    exact = 0.8 * np.sin(0.3 - 0.9)
    np.testing.assert_allclose(qml.grad(circuit)(pnp.array(0.9, requires_grad=True)), exact, atol=1e-12)
    np.testing.assert_allclose(jax.grad(circuit)(0.9), exact, atol=1e-12)


def test_pennylanes_shift_rule_runs_on_the_device():
    exact = jax.jit(jax.grad(node(number)))(jnp.asarray(PARAMS))
    by_rule = node(number, diff_method="parameter-shift")
    found = qml.grad(by_rule)(pnp.array(PARAMS, requires_grad=True))
    np.testing.assert_allclose(found, exact, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.grad(by_rule))(jnp.asarray(PARAMS)), exact, atol=1e-9)


SHOTS = 8000


def shot(measure, x=PARAMS, seed=0, shots=SHOTS):
    @qml.set_shots(shots)
    @qml.qnode(qml.device("jaxlab.gaussian", wires=LABELS, seed=seed), diff_method=None)
    def circuit(x):
        gates(x)
        return measure()

    return circuit


@pytest.mark.parametrize("name", ["QuadP", "QuadOperator", "NumberOperator", "square", "FockStateProjector"])
def test_shots_estimate_the_exact_values(name):
    mean, variance = (
        node(lambda read=read: read(OBSERVABLES[name]()))(PARAMS) for read in (qml.expval, qml.var)
    )
    run = shot(lambda: qml.expval(OBSERVABLES[name]()))
    first, second = run(PARAMS), run(PARAMS)
    assert first != second
    for value in (first, second):
        assert abs(value - mean) < 4 * np.sqrt(variance / SHOTS)
    spread = shot(lambda: qml.var(OBSERVABLES[name]()))(PARAMS)
    assert abs(spread - variance) < 4 * np.sqrt(3 / SHOTS) * max(variance, 0.1)


def test_samples_are_those_of_homodyne_detection():
    samples = shot(lambda: qml.sample(qml.QuadX("b")), seed=jax.random.key(0))(PARAMS)
    assert samples.shape == (SHOTS,)
    mean, variance = (node(lambda read=read: read(qml.QuadX("b")))(PARAMS) for read in (qml.expval, qml.var))
    assert abs(samples.mean() - mean) < 4 * np.sqrt(variance / SHOTS)
    assert abs(samples.var() - variance) < 4 * variance * np.sqrt(2 / SHOTS)
    parts = shot(lambda: (qml.expval(qml.QuadX("b")), qml.var(qml.QuadX("a"))), shots=(5, 7))(PARAMS)
    assert np.shape(parts) == (2, 2)
    assert parts[0] != parts[1]


def test_gradients_of_samples_are_estimated_by_shifts():
    @qml.set_shots(20_000)
    @qml.qnode(qml.device("jaxlab.gaussian", wires=1, seed=0))
    def circuit(a):
        qml.Displacement(a, 0.3, wires=0)
        return qml.expval(qml.QuadX(0))

    # Two values of variance 1 / shots, times 1 / (2 s) with PennyLane's s = 0.1.
    error = 5 * np.sqrt(2 / 20_000)
    exact = 2 * np.cos(0.3)
    assert abs(qml.grad(circuit)(pnp.array(0.5, requires_grad=True)) - exact) < 4 * error
    assert abs(jax.jit(jax.grad(circuit))(0.5) - exact) < 4 * error


def test_compiled_samples_differ_from_call_to_call():
    run = jax.jit(shot(lambda: qml.expval(qml.QuadX("b"))))
    assert run(PARAMS) != run(PARAMS)


def test_wires_of_the_circuit_are_taken_if_none_are_given():
    @qml.qnode(qml.device("jaxlab.gaussian"))
    def circuit(x):
        qml.Displacement(x, 0, wires="left")
        qml.Beamsplitter(np.pi / 2, 0, wires=("left", 7))
        return qml.expval(qml.NumberOperator(wires=7))

    np.testing.assert_allclose(circuit(0.5), 0.25, atol=1e-12)


def with_gate(gate, measure=number):
    @qml.qnode(qml.device("jaxlab.gaussian", wires=LABELS))
    def circuit():
        gate()
        return measure()

    return circuit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            with_gate(lambda: qml.Kerr(0.1, wires="a")),
            "Kerr is not Gaussian.*jaxlab.quantum.fock simulates it",
        ),
        (with_gate(lambda: qml.CatState(0.1, 0.2, 0.3, wires="a")), "CatState is not Gaussian"),
        (with_gate(lambda: qml.Rotation(np.ones(2), wires="a")), r"shapes \[\(2,\)\]; they must be scalars"),
        (with_gate(lambda: qml.RX(0.1, wires="a")), "RX"),
        (with_gate(lambda: None, lambda: qml.expval(qml.Z("a"))), "not accepted for analytic simulation"),
        (with_gate(lambda: None, lambda: qml.expval(qml.TensorN(wires=("a", "b")))), "not accepted"),
        (with_gate(lambda: None, lambda: qml.probs(wires="a")), "not accepted"),
        (
            lambda: shot(lambda: qml.sample(qml.NumberOperator(wires="a")))(PARAMS),
            "not accepted with finite shots",
        ),
        (
            with_gate(lambda: None, lambda: qml.expval(qml.PolyXP(np.ones(4), wires="a"))),
            r"it must be \(3,\)",
        ),
        (
            lambda: node(number).device.setup_execution_config(
                qml.devices.ExecutionConfig(device_options={"block": 1})
            ),
            "device option block not present",
        ),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(DeviceError, match=message):
        call()


def test_derivative_in_a_unitary_is_refused():
    @qml.qnode(qml.device("jaxlab.gaussian", wires=1))
    def circuit(U):
        qml.InterferometerUnitary(U, wires=0)
        return qml.expval(qml.NumberOperator(wires=0))

    with pytest.raises(DeviceError, match="declare it not trainable"):
        qml.grad(circuit)(pnp.array([[1j]], requires_grad=True))


def test_module_names_no_class_of_continuous_variables():
    tree = ast.parse(inspect.getsource(pennylane_cv_device))
    used = {one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute)}
    used |= {name.name for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) for name in one.names}
    assert not used & (qml.ops.cv.__ops__ | qml.ops.cv.__obs__)
