"""Gaussian states against PennyLane's `default.gaussian` and closed forms; invariants on random circuits."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
import scipy.stats
from cv_oracle import (
    FIXTURE,
    FIXTURE_PLACES,
    FIXTURE_PROBABILITIES,
    FIXTURE_VALUES,
    GATES,
    apply,
    expectation,
    for_pennylane,
    moments,
    program,
    random_gates,
    snake,
)
from hypothesis import given, settings

from jaxlab.errors import InputError
from jaxlab.quantum import gaussian, symplectic
from jaxlab.quantum import gaussian_measurements as measured
from jaxlab.quantum.cv_circuits import run_cv

pytestmark = pytest.mark.usefixtures("double_precision")


def random_state(seed, modes, count=20):
    """Gates and the state after them."""
    gates = random_gates(np.random.default_rng(seed), modes, count)
    circuit, params = program(gates, modes)
    return gates, jax.jit(lambda p: run_cv(circuit, p, gaussian.vacuum(modes)))(params)


def assert_moments(state, expected, atol=1e-12):
    for ours, theirs in zip(state, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


def test_fixture_of_the_specification():
    circuit, params = program(FIXTURE, 2)
    quantities = {
        "number": lambda state: measured.number_mean(state, 0),
        "x": lambda state: measured.quadrature_mean(state, 0.0, 0),
        "variance": lambda state: measured.quadrature_variance(state, 0.0, 0),
    }

    def run(p):
        return run_cv(circuit, p, gaussian.vacuum(2))

    def read(p):
        return {name: of(run(p)) for name, of in quantities.items()}

    values, slopes = jax.jit(lambda p: (read(p), jax.jacobian(read)(p)))(params)

    def count(state):
        return [measured.fock_probability(state, photons) for photons in FIXTURE_PROBABILITIES]

    def tables(state):
        return (count(state), measured.fock_probabilities(state, cutoff=3))

    single, table = jax.jit(lambda p: tables(run(p)))(params)
    for name, (value, slope) in FIXTURE_VALUES.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(slopes[name][np.array(FIXTURE_PLACES)], slope, rtol=0, atol=5e-9)
    for place, (photons, p) in enumerate(FIXTURE_PROBABILITIES.items()):
        assert abs(single[place] - p) < 1e-12
        assert abs(table[photons] - p) < 1e-12


def projected(photons, wires):
    return qml.expval(qml.FockStateProjector(np.array(photons), wires=wires))


@pytest.mark.parametrize("name", GATES)
def test_gate_is_pennylanes(name):
    prior, state = random_state(1, 3)
    own = (name, [0.4, -0.7][: GATES[name][0]], [2, 0][: GATES[name][1]])
    assert_moments(apply(gaussian, [own], state), moments([*prior, own], 3))


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        ("CoherentState", gaussian.coherent),
        ("SqueezedState", gaussian.squeezed),
        ("DisplacedSqueezedState", gaussian.displaced_squeezed),
        ("ThermalState", gaussian.thermal),
    ],
)
def test_preparation_is_pennylanes(name, prepare):
    params = [0.4, -0.7, 0.3, 0.9][: getattr(qml, name).num_params]
    mixing = ("Beamsplitter", [0.7, 0.2], [0, 1])
    state = apply(gaussian, [mixing], prepare(gaussian.vacuum(2), *params, 1))
    assert_moments(state, moments([(name, params, [1]), mixing], 2))


def test_preparation_leaves_the_other_wires_as_they_are():
    _, state = random_state(2, 3)
    _, donor = random_state(3, 2)
    after = gaussian.prepare(state, *donor, (2, 0))
    assert_moments(gaussian.reduced(after, (2, 0)), donor)
    assert_moments(gaussian.reduced(after, 1), gaussian.reduced(state, 1))
    assert np.all(after.cov[np.ix_((0, 2, 3, 5), (1, 4))] == 0)


parameters = st.floats(-2, 2)


@pytest.mark.parametrize("name", [name for name in GATES if name != "Displacement"])
@settings(max_examples=20)
@given(first=parameters, second=parameters)
def test_matrices_are_symplectic(name, first, second):
    S = np.asarray(getattr(symplectic, snake(name))(*(first, second)[: GATES[name][0]]))
    omega = symplectic.form(len(S) // 2)
    np.testing.assert_allclose(S @ omega @ S.T, omega, atol=1e-12 * np.max(np.abs(S)) ** 2)


def lossy_circuit():
    """From parameters and a transmissivity to a state and what loss on wire 1 leaves of it."""
    circuit, _ = program(random_gates(np.random.default_rng(4), 3, 12), 3)

    def run(params, transmissivity):
        state = run_cv(circuit, params, gaussian.vacuum(3))
        return state, gaussian.loss(state, transmissivity, 1)

    return circuit.size, jax.jit(
        lambda *args: [(one, gaussian.purity(one), measured.number_mean(one, 1)) for one in run(*args)]
    )


LOSSY = functools.cache(lossy_circuit)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), transmissivity=st.floats(0, 1))
def test_states_stay_physical(seed, transmissivity):
    size, run = LOSSY()
    params = np.random.default_rng(seed).uniform(-0.7, 0.7, size)
    (pure, one, photons), (lossy, less, kept) = run(params, transmissivity)
    assert abs(one - 1) < 1e-9
    assert less < 1 + 1e-9
    np.testing.assert_allclose(kept, transmissivity * photons, atol=1e-10)
    for cov in (np.asarray(pure.cov), np.asarray(lossy.cov)):
        assert np.linalg.eigvalsh(cov + 1j * symplectic.form(3))[0] > -1e-10 * np.max(np.abs(cov))


@pytest.mark.parametrize("modes", [1, 2, 4, 8])
def test_random_circuit_has_pennylanes_moments(modes):
    gates, state = random_state(modes, modes, 16)
    assert_moments(state, moments(gates, modes))


def test_random_circuit_measures_what_pennylane_measures():
    modes = 4
    gates, state = random_state(0, modes, 16)
    rng = np.random.default_rng(0)
    linear, square = rng.normal(size=1 + 2 * modes), rng.normal(size=(1 + 2 * modes,) * 2)
    square = square + square.T
    part = square[:5, :5]
    for pick, mean, variance in [
        (
            lambda: qml.NumberOperator(wires=2),
            measured.number_mean(state, 2),
            measured.number_variance(state, 2),
        ),
        (
            lambda: qml.QuadOperator(0.7, wires=1),
            measured.quadrature_mean(state, 0.7, 1),
            measured.quadrature_variance(state, 0.7, 1),
        ),
        *(
            (
                lambda q=q, wires=wires: qml.PolyXP(for_pennylane(q), wires=wires),
                measured.polynomial_mean(state, q, wires),
                measured.polynomial_variance(state, q, wires),
            )
            for q, wires in [(linear, range(modes)), (square, range(modes)), (part, (3, 1))]
        ),
    ]:
        for found, read in [(mean, qml.expval), (variance, qml.var)]:
            theirs = expectation(gates, modes, lambda pick=pick, read=read: read(pick()))
            np.testing.assert_allclose(found, theirs, rtol=1e-11)
    for photons, wires in [((1, 0, 2), (0, 1, 3)), ((2,), (3,)), ((0, 0, 0, 0), range(modes))]:
        found = measured.fock_probability(state, photons, wires)
        theirs = expectation(gates, modes, functools.partial(projected, photons, wires))
        np.testing.assert_allclose(found, theirs, rtol=1e-10)


def test_photon_counts_of_mixed_states():
    state = gaussian.thermal(gaussian.vacuum(2), 0.8, 1)
    n = np.arange(5)
    expected = 0.8**n / 1.8 ** (n + 1)
    np.testing.assert_allclose(measured.fock_probabilities(state, cutoff=5)[0], expected, atol=1e-14)
    lossy = gaussian.loss(gaussian.coherent(gaussian.vacuum(1), 1.1, 0.4, 0), 0.6, 0)
    found = measured.fock_probabilities(lossy, cutoff=5)
    np.testing.assert_allclose(found, scipy.stats.poisson.pmf(n, 0.6 * 1.1**2), atol=1e-14)


def test_gaussian_transformation_of_the_paper():
    @jax.jit
    def count(p):
        state = gaussian.displacement(gaussian.vacuum(1), p[0], p[1], 0)
        return measured.number_mean(gaussian.rotation(state, p[2], 0), 0)

    value, slope = jax.value_and_grad(count)(jnp.array([0.8, 0.3, 1.2]))
    np.testing.assert_allclose(value, 0.64, atol=1e-14)
    np.testing.assert_allclose(slope, [1.6, 0, 0], atol=1e-14)


def test_interferometer_maps_amplitudes_by_its_unitary():
    rng = np.random.default_rng(0)
    U, _ = np.linalg.qr(rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3)))
    alpha = np.array([0.3 - 0.5j, 0.8j, -0.4])
    state = gaussian.vacuum(4)
    for wire, a in zip((2, 0, 3), alpha, strict=True):
        state = gaussian.coherent(state, abs(a), np.angle(a), wire)
    found = gaussian.interferometer(state, U, (2, 0, 3))
    mean = gaussian.reduced(found, (2, 0, 3)).mean
    np.testing.assert_allclose((mean[:3] + 1j * mean[3:]) / 2, U @ alpha, atol=1e-12)
    np.testing.assert_allclose(found.cov, np.eye(8), atol=1e-12)
    theta, phi = 0.7, 0.4
    turn = np.exp(1j * phi) * np.sin(theta)
    _, entangled = random_state(5, 2)
    U = np.array([[np.cos(theta), -turn.conj()], [turn, np.cos(theta)]])
    assert_moments(
        gaussian.interferometer(entangled, U, (1, 0)),
        gaussian.beamsplitter(entangled, theta, phi, (1, 0)),
    )


SHOTS = 20000


def assert_normal(samples, mean, cov):
    """Mean and covariance of samples within 4 standard errors."""
    samples = np.asarray(samples)
    assert np.all(np.abs(samples.mean(0) - mean) < 4 * np.sqrt(np.diag(cov) / SHOTS))
    found = np.cov(samples.T).reshape(cov.shape)
    error = np.sqrt((cov**2 + np.outer(np.diag(cov), np.diag(cov))) / SHOTS)
    assert np.all(np.abs(found - cov) < 4 * error)


def test_homodyne_samples_have_the_quadratures_moments():
    _, state = random_state(7, 3)
    phi, wires = np.array([0.3, -1.1]), (2, 0)
    samples = measured.sample_homodyne(jax.random.key(0), state, SHOTS, phi, wires)
    u = np.zeros((2, 6))
    for row, (wire, angle) in enumerate(zip(wires, phi, strict=True)):
        u[row, [wire, wire + 3]] = np.cos(angle), np.sin(angle)
    assert_normal(samples, u @ state.mean, u @ state.cov @ u.T)
    one = measured.sample_homodyne(jax.random.key(0), state, SHOTS, 0.3)
    assert one.shape == (SHOTS, 3)


def test_heterodyne_samples_follow_the_husimi_function():
    _, state = random_state(8, 2)
    samples = np.asarray(measured.sample_heterodyne(jax.random.key(1), state, SHOTS))
    planar = 2 * np.concatenate([samples.real, samples.imag], axis=1)
    assert_normal(planar, np.asarray(state.mean), np.asarray(state.cov) + np.eye(4))


def test_conditioning_on_a_quadrature_of_two_mode_squeezing():
    r, outcome = 0.6, 1.3
    pair = gaussian.two_mode_squeezing(gaussian.vacuum(2), r, 0.0, (0, 1))
    for phi, sign in [(0.0, 1), (np.pi / 2, -1)]:
        after = measured.condition_homodyne(pair, outcome, phi, 0)
        assert_moments(gaussian.reduced(after, 0), gaussian.vacuum(1))
        mean, cov = gaussian.reduced(after, 1)
        along, across = (0, 1) if phi == 0 else (1, 0)
        np.testing.assert_allclose(mean[along], sign * np.tanh(2 * r) * outcome, atol=1e-12)
        np.testing.assert_allclose([mean[across], cov[0, 1]], 0, atol=1e-12)
        expected = [1 / np.cosh(2 * r), np.cosh(2 * r)]
        np.testing.assert_allclose([cov[along, along], cov[across, across]], expected, atol=1e-12)
        assert abs(gaussian.purity(after) - 1) < 1e-12


def test_conditioning_on_an_amplitude_of_two_mode_squeezing_leaves_a_coherent_state():
    r, alpha = 0.6, 0.4 - 0.9j
    pair = gaussian.two_mode_squeezing(gaussian.vacuum(2), r, 0.0, (0, 1))
    after = gaussian.reduced(measured.condition_heterodyne(pair, alpha, 0), 1)
    left = np.tanh(r) * np.conj(alpha)
    assert_moments(after, gaussian.coherent(gaussian.vacuum(1), abs(left), np.angle(left), 0))


def test_outcomes_average_to_the_state_that_was_not_looked_at():
    _, state = random_state(9, 2)
    x = np.asarray(measured.sample_homodyne(jax.random.key(2), state, SHOTS, 0.4, 1))[:, 0]
    after = jax.vmap(lambda value: measured.condition_homodyne(state, value, 0.4, 1))(x)
    other = gaussian.reduced(state, 0)
    means = gaussian.reduced(after, 0).mean
    spread = np.std(means, axis=0) / np.sqrt(SHOTS)
    assert np.all(np.abs(means.mean(0) - other.mean) < 4 * spread)


def test_batches_by_leading_axes_and_by_vmap_agree():
    params = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 4))

    def run(p, leading=()):
        start = gaussian.Gaussian(jnp.zeros((*leading, 4)), jnp.broadcast_to(jnp.eye(4), (*leading, 4, 4)))
        state = gaussian.squeezing(start, p[..., 0], 0.3, 0)
        state = gaussian.displacement(state, p[..., 1], p[..., 2], 1)
        state = gaussian.loss(gaussian.beamsplitter(state, p[..., 3], 0.2, (1, 0)), 0.9, 0)
        state = gaussian.thermal(
            gaussian.two_mode_squeezing(state, 0.2, p[..., 0], (0, 1)), p[..., 1] ** 2, 1
        )
        Q = jnp.arange(25.0).reshape(5, 5)
        return measured.number_mean(state, 0), measured.polynomial_variance(state, Q), state

    whole = jax.jit(lambda p: run(p, (3,)))(params)
    each = jax.jit(jax.vmap(run))(params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", ["probability", "variance", "sample", "conditioned"])
def test_gradients_are_those_of_finite_differences(name):
    circuit, params = program(random_gates(np.random.default_rng(3), 2, 9), 2)
    Q = np.arange(25.0).reshape(5, 5) / 10

    def value(p):
        state = run_cv(circuit, p, gaussian.vacuum(2))
        if name == "probability":
            return measured.fock_probability(state, (1, 2))
        if name == "variance":
            return measured.polynomial_variance(state, Q)
        if name == "sample":
            return jnp.sum(measured.sample_homodyne(jax.random.key(0), state, 3, 0.2) ** 2)
        return measured.number_mean(measured.condition_heterodyne(state, 0.3 + 0.1j, 1), 0)

    slope = jax.jit(jax.grad(value))(params)
    run, step = jax.jit(jax.vmap(value)), 1e-5
    steps = step * np.eye(len(params))
    numeric = (run(params + steps) - run(params - steps)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, atol=1e-7 * max(1, np.max(np.abs(numeric))))


def test_float32_stays_float32():
    def run():
        state = gaussian.vacuum(2, dtype=jnp.float32)
        state = gaussian.beamsplitter(gaussian.squeezing(state, 0.3, 0.1, 0), 0.2, 0.1, (0, 1))
        state = gaussian.loss(gaussian.coherent(state, 0.3, 0.1, 1), 0.5, 0)
        samples = measured.sample_homodyne(jax.random.key(0), state, 2)
        return *state, measured.number_mean(state, 0), measured.fock_probability(state, (1, 1)), samples

    assert {array.dtype for array in jax.eval_shape(run)} == {jnp.dtype(jnp.float32)}


ONE, TWO = functools.partial(gaussian.vacuum, 1), functools.partial(gaussian.vacuum, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.vacuum(0), "modes is 0"),
        (lambda: gaussian.gaussian_state(np.zeros(3), np.eye(3)), r"mean has shape \(3,\)"),
        (lambda: gaussian.gaussian_state(np.zeros(2), np.array([[1, 0.5], [0, 1]])), "not symmetric"),
        (lambda: gaussian.gaussian_state(np.zeros(2), np.eye(2) / 2), "not physical"),
        (lambda: gaussian.prepare(TWO(), np.zeros(2), np.eye(2), (0, 1)), "of 1 modes; there are 2 wires"),
        (lambda: gaussian.thermal(ONE(), -0.1, 0), "nbar is -0.1"),
        (lambda: gaussian.loss(ONE(), 1.1, 0), "transmissivity is 1.1"),
        (lambda: gaussian.rotation(ONE(), 0.1, 1), "they lie between 0 and 0"),
        (lambda: gaussian.beamsplitter(TWO(), 0.1, 0.1, (1, 1)), "none may stand twice"),
        (lambda: gaussian.beamsplitter(TWO(), 0.1, 0.1, 1), "2 must be given"),
        (lambda: gaussian.reduced(TWO(), ()), "at least 1 must be given"),
        (lambda: gaussian.displacement(ONE(), 0.1j, 0.1, 0), "a has dtype complex128; it must be real"),
        (lambda: gaussian.squeezing(ONE(), jnp.ones(2), 0.1, 0), r"parameters have the axes \(2,\)"),
        (lambda: gaussian.interferometer(TWO(), np.ones((2, 3)), (0, 1)), r"unitary has shape \(2, 3\)"),
        (lambda: gaussian.interferometer(TWO(), np.ones((2, 2)), (0, 1)), "not unitary"),
        (lambda: gaussian.apply_symplectic(TWO(), np.eye(2), (0, 1)), r"S has shape \(2, 2\)"),
        (lambda: gaussian.apply_symplectic(ONE(), 2 * np.eye(2), 0), "not symplectic"),
        (lambda: measured.polynomial_mean(TWO(), np.zeros(4)), r"must be \(5,\) or \(5, 5\)"),
        (lambda: measured.fock_probability(TWO(), (1,)), "a number >= 0 for each of 2 wires"),
        (lambda: measured.fock_probability(ONE(), (-1,)), "a number >= 0"),
        (lambda: measured.fock_probabilities(ONE(), cutoff=0), "cutoff is 0"),
        (lambda: measured.sample_homodyne(jax.random.key(0), ONE(), 0), "shots is 0"),
        (lambda: measured.sample_heterodyne(jax.random.key(0), ONE(), 0), "shots is 0"),
        (lambda: measured.condition_homodyne(ONE(), 0.1, 0.1, 3), "they lie between 0 and 0"),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
