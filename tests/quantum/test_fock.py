"""Fock states against dense exponentials at large truncation, closed forms and the Gaussian backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cv_oracle import (
    FIXTURE,
    FIXTURE_PLACES,
    FIXTURE_PROBABILITIES,
    FIXTURE_VALUES,
    apply,
    program,
    quadratures,
    random_gates,
    unitary,
)

from jaxlab.errors import InputError
from jaxlab.quantum import fock, fock_matrices, gaussian
from jaxlab.quantum import fock_measurements as counted
from jaxlab.quantum import gaussian_measurements as measured
from jaxlab.quantum.cv_circuits import run_cv

pytestmark = pytest.mark.usefixtures("double_precision")


def test_fixture_of_the_specification():
    circuit, params = program(FIXTURE, 2)
    quantities = {
        "number": lambda state: counted.number_mean(state, 0),
        "x": lambda state: counted.quadrature_mean(state, 0.0, 0),
        "variance": lambda state: counted.quadrature_variance(state, 0.0, 0),
    }

    def read(p):
        return {name: of(run_cv(circuit, p, fock.vacuum(2, cutoff=40))) for name, of in quantities.items()}

    values, slopes = jax.jit(lambda p: (read(p), jax.jacobian(read)(p)))(params)
    for name, (value, slope) in FIXTURE_VALUES.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(slopes[name][np.array(FIXTURE_PLACES)], slope, rtol=0, atol=5e-9)
    # Probabilities need no larger cutoff than their photons.
    p = counted.probs(jax.jit(lambda p: run_cv(circuit, p, fock.vacuum(2, cutoff=40)))(params))
    for photons, expected in FIXTURE_PROBABILITIES.items():
        assert abs(p[photons] - expected) < 1e-12


def generator(name, params, size):
    """H of a gate exp(i H), as a matrix of photon numbers below `size`."""
    x, p = quadratures(size)
    a = (x + 1j * p) / 2
    n = np.diag(np.arange(size)).astype(complex)
    if name in ("Beamsplitter", "TwoModeSqueezing", "CrossKerr", "ControlledAddition", "ControlledPhase"):
        one = np.eye(size)
        first, second = (lambda m: np.kron(m, one)), (lambda m: np.kron(one, m))
    complex_amplitude = params[0] * np.exp(1j * params[-1])

    def anti(m):
        return -1j * (m - m.conj().T)

    return {
        "Rotation": lambda: params[0] * n,
        "Displacement": lambda: anti(complex_amplitude * a.conj().T),
        "Squeezing": lambda: anti(complex_amplitude.conjugate() * a @ a) / 2,
        "QuadraticPhase": lambda: params[0] * x @ x / 4,
        "CubicPhase": lambda: params[0] * x @ x @ x / 6,
        "Kerr": lambda: params[0] * n @ n,
        "CrossKerr": lambda: params[0] * first(n) @ second(n),
        "Beamsplitter": lambda: anti(complex_amplitude * first(a) @ second(a.conj().T)),
        "TwoModeSqueezing": lambda: anti(complex_amplitude * first(a.conj().T) @ second(a.conj().T)),
        "ControlledAddition": lambda: -params[0] * first(x) @ second(p) / 2,
        "ControlledPhase": lambda: params[0] * first(x) @ second(x) / 2,
    }[name]()


@functools.cache
def low_block(name, params, cutoff, size):
    """<m| exp(i H) |n> of photon numbers below `cutoff`, from those below `size`: [output.., input..]."""
    H = generator(name, params, size)
    modes = 1 if len(H) == size else 2
    U = unitary(H).reshape((size,) * (2 * modes))
    return U[(slice(cutoff),) * (2 * modes)]


@pytest.mark.parametrize(
    ("name", "params", "cutoff", "size"),
    [
        ("Rotation", (0.7,), 6, 6),
        ("Displacement", (0.6, 0.3), 8, 60),
        ("Displacement", (3.0, -0.4), 60, 250),
        ("Squeezing", (0.4, 0.9), 8, 90),
        ("Squeezing", (-1.2, 0.3), 12, 400),
        ("QuadraticPhase", (0.8,), 8, 120),
        ("CubicPhase", (0.3,), 6, 500),
        ("Kerr", (0.3,), 6, 6),
        ("CrossKerr", (0.3,), 5, 5),
        ("Beamsplitter", (0.9, 0.5), 5, 10),
        ("TwoModeSqueezing", (0.3, 0.7), 5, 28),
        ("ControlledAddition", (0.2,), 5, 28),
        ("ControlledPhase", (-0.2,), 5, 28),
    ],
)
def test_gate_is_the_exponential_of_its_generator(name, params, cutoff, size):
    expected = low_block(name, params, cutoff, size)
    modes = expected.ndim // 2
    wires = (0,) if modes == 1 else (0, 1)
    basis = jnp.eye(cutoff**modes, dtype=complex).reshape(-1, *(cutoff,) * modes)

    def one(amp):
        return apply(fock, [(name, params, wires)], fock.Fock(amp)).amp

    found = jax.jit(jax.vmap(one, out_axes=-1))(basis).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-11)


def coherent(*alphas, cutoff):
    state = fock.vacuum(len(alphas), cutoff=cutoff)
    for wire, alpha in enumerate(alphas):
        state = fock.displacement(state, abs(alpha), np.angle(alpha), wire)
    return state


def test_kerr_turns_and_shrinks_the_mean_of_a_coherent_state():
    alpha, kappa = 0.9 - 0.4j, 0.3
    state = fock.kerr(coherent(alpha, cutoff=40), kappa, 0)
    a = alpha * np.exp(1j * kappa - abs(alpha) ** 2 * (1 - np.exp(2j * kappa)))
    means = [counted.quadrature_mean(state, phi, 0) for phi in (0, np.pi / 2)]
    np.testing.assert_allclose(means, [2 * a.real, 2 * a.imag], atol=1e-12)
    np.testing.assert_allclose(counted.probs(state), counted.probs(coherent(alpha, cutoff=40)), atol=1e-14)


def test_cross_kerr_turns_the_mean_by_the_photons_of_the_other_mode():
    alpha, beta, kappa = 0.5 - 0.4j, 0.8, 0.6
    state = fock.cross_kerr(coherent(alpha, beta, cutoff=24), kappa, (1, 0))
    a = alpha * np.exp(-(abs(beta) ** 2) * (1 - np.exp(1j * kappa)))
    means = [counted.quadrature_mean(state, phi, 0) for phi in (0, np.pi / 2)]
    np.testing.assert_allclose(means, [2 * a.real, 2 * a.imag], atol=1e-12)


def test_cubic_phase_adds_a_multiple_of_x_squared_to_p():
    gamma = 0.05
    state = fock.cubic_phase(fock.vacuum(1, cutoff=80), gamma, 0)
    assert abs(counted.leakage(state)) < 1e-12
    np.testing.assert_allclose(counted.quadrature_mean(state, np.pi / 2, 0), gamma, atol=1e-10)
    np.testing.assert_allclose(counted.quadrature_variance(state, np.pi / 2, 0), 1 + 2 * gamma**2, atol=1e-10)
    np.testing.assert_allclose(counted.quadrature_variance(state, 0.0, 0), 1, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_gaussian_circuits_agree_with_the_gaussian_backend(seed):
    rng = np.random.default_rng(seed)
    circuit, params = program(random_gates(rng, 2, 10, scale=0.15), 2)
    cutoff = 32
    Q, q = rng.normal(size=(5, 5)), rng.normal(size=5)

    def read(module, state):
        """What both backends measure under the same names."""
        return [
            module.number_mean(state, 1),
            module.number_variance(state, 1),
            module.quadrature_mean(state, 0.4, 0),
            module.quadrature_variance(state, 0.4, 0),
            *(
                of(state, coefficients, wires)
                for of in (module.polynomial_mean, module.polynomial_variance)
                for coefficients, wires in [(Q, (1, 0)), (q, None), (Q[:3, :3], 1)]
            ),
        ]

    @jax.jit
    def on_fock(p):
        state = run_cv(circuit, p, fock.vacuum(2, cutoff=cutoff))
        one, other = counted.probs(state), counted.probs(state, (1,))
        return state, counted.leakage(state), [*read(counted, state), one[2, 1], other[2]]

    @jax.jit
    def on_gaussian(p):
        state = run_cv(circuit, p, gaussian.vacuum(2))
        single = [measured.fock_probability(state, (2, 1)), measured.fock_probability(state, (2,), 1)]
        return fock.from_gaussian(state, cutoff=cutoff), read(measured, state) + single

    state, leaked, ours = on_fock(params)
    exact, theirs = on_gaussian(params)
    assert abs(leaked) < 1e-12
    phase = np.vdot(exact.amp, state.amp)
    assert abs(abs(phase) - 1) < 1e-12
    np.testing.assert_allclose(state.amp, phase * exact.amp, atol=1e-11)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_photon_redirection_of_the_paper():
    def transmitted(p):
        state = fock.beamsplitter(fock.number_state((1, 0), cutoff=2), p[0], p[1], (0, 1))
        return counted.number_mean(state, 1)

    t = np.linspace(0, 2, 5)
    found = jax.vmap(lambda t: transmitted((t, 0.3)))(t)
    np.testing.assert_allclose(found, np.sin(t) ** 2, atol=1e-14)

    def climb(_, p):
        return p + 0.4 * jax.grad(transmitted)(p)

    end = jax.jit(lambda p: jax.lax.fori_loop(0, 100, climb, p))(jnp.array([0.01, 0.01]))
    np.testing.assert_allclose(end, [np.pi / 2, 0.01], atol=1e-12)


def test_two_photons_leave_a_balanced_beamsplitter_together():
    p = counted.probs(fock.beamsplitter(fock.number_state((1, 1), cutoff=3), np.pi / 4, 0.2, (0, 1)))
    np.testing.assert_allclose([p[1, 1], p[2, 0], p[0, 2]], [0, 0.5, 0.5], atol=1e-14)


def test_expectations_are_exact_beyond_the_cutoff():
    state = fock.number_state((2,), cutoff=3)
    x_squared = np.diag([0.0, 1, 0])
    assert abs(counted.polynomial_mean(state, x_squared) - 5) < 1e-14
    assert abs(counted.polynomial_variance(state, x_squared) - (39 - 25)) < 1e-13
    np.testing.assert_allclose([counted.number_mean(state, 0), counted.number_variance(state, 0)], [2, 0])


def test_probabilities_of_some_wires_are_sums():
    state = fock.number_state((0, 1, 2), cutoff=3)
    assert counted.probs(state, (2, 0))[2, 0] == 1
    assert counted.probs(state, 1)[1] == 1


def test_matrix_acts_on_its_wires_in_their_order():
    rng = np.random.default_rng(0)
    amp, matrix = rng.normal(size=(3, 3, 3)) + 0j, rng.normal(size=(3,) * 4)
    found = fock.apply_matrix(fock.Fock(jnp.asarray(amp)), jnp.asarray(matrix), (2, 0)).amp
    np.testing.assert_allclose(found, np.einsum("abcd,dxc->bxa", matrix, amp), atol=1e-12)


def test_samples_have_the_probabilities():
    state = fock.squeezing(coherent(0.7, 0.3j, cutoff=10), 0.3, 0.1, 1)
    shots = 20000
    samples = np.asarray(counted.sample(jax.random.key(0), state, shots, (1, 0)))
    table = np.asarray(counted.probs(state, (1, 0)))
    found = np.zeros_like(table)
    np.add.at(found, tuple(samples.T), 1 / shots)
    assert np.all(np.abs(found - table) < 4 * np.sqrt(table / shots) + 1 / shots)


def test_leakage_is_what_lies_beyond_the_cutoff():
    state = coherent(1.5, cutoff=6)
    lost = scipy.stats.poisson.sf(5, 1.5**2)
    np.testing.assert_allclose(counted.leakage(state), lost, atol=1e-14)
    with pytest.raises(InputError, match=r"1 - \|psi\|\^2 is 0.0274 at cutoff 6.*larger cutoff"):
        counted.require_small_leakage(state)
    assert counted.require_small_leakage(state, tolerance=0.03) is state
    with pytest.raises(InputError, match="return leakage"):
        jax.jit(counted.require_small_leakage)(state)


def nonlinear(p):
    gates = [
        ("Squeezing", (p[0], p[1]), (0,)),
        ("Kerr", (p[2],), (0,)),
        ("TwoModeSqueezing", (p[3], p[1]), (1, 0)),
        ("CubicPhase", (p[4],), (1,)),
        ("CrossKerr", (p[5],), (0, 1)),
        ("ControlledPhase", (p[6],), (1, 0)),
        ("Displacement", (p[6], p[0]), (1,)),
        ("Beamsplitter", (p[5], p[3]), (0, 1)),
    ]
    state = apply(fock, gates, fock.vacuum(2, cutoff=8))
    Q = np.arange(25.0).reshape(5, 5) / 10
    return counted.polynomial_mean(state, Q), counted.number_variance(state, 0)


def test_gradients_and_batches():
    params = np.random.default_rng(0).uniform(-0.4, 0.4, (3, 7))
    values = jax.jit(jax.vmap(nonlinear))
    run = jax.jit(nonlinear)
    for i, p in enumerate(params):
        for a, b in zip(values(params), run(p), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-12)
    slopes = jax.jit(jax.jacobian(nonlinear))(params[0])
    steps = 1e-5 * np.eye(7)
    ahead, behind = values(params[0] + steps), values(params[0] - steps)
    for slope, a, b in zip(slopes, ahead, behind, strict=True):
        np.testing.assert_allclose(slope, (a - b) / 2e-5, atol=1e-8)


def test_single_precision_is_kept():
    state = fock.vacuum(2, cutoff=5, dtype=jnp.complex64)
    gates = [
        ("Displacement", (0.3, 0.1), (0,)),
        ("CubicPhase", (0.1,), (1,)),
        ("Beamsplitter", (0.3, 0.2), (0, 1)),
        ("ControlledPhase", (0.1,), (0, 1)),
    ]
    state = jax.eval_shape(lambda state: apply(fock, gates, state), state)
    assert state.amp.dtype == jnp.complex64
    read = jax.eval_shape(lambda state: counted.polynomial_variance(state, jnp.ones((5, 5))), state)
    assert read.dtype == jnp.float32


VACUUM = functools.partial(fock.vacuum, 2, cutoff=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fock.vacuum(0, cutoff=3), r"photons is \(\)"),
        (lambda: fock.number_state((1, 3), cutoff=3), "0 to cutoff - 1 = 2"),
        (lambda: fock.number_state((-1,), cutoff=3), "each mode needs a number"),
        (lambda: fock.from_gaussian(gaussian.vacuum(1), cutoff=0), "cutoff is 0"),
        (lambda: fock.from_gaussian(gaussian.thermal(gaussian.vacuum(1), 0.2, 0), cutoff=3), "purity 0.714"),
        (lambda: fock.rotation(fock.Fock(jnp.ones((2, 3), complex)), 0.1, 0), r"amp has shape \(2, 3\)"),
        (lambda: fock.rotation(fock.Fock(jnp.ones(3)), 0.1, 0), "must be complex"),
        (lambda: fock.rotation(VACUUM(), 0.1, 2), "they lie between 0 and 1"),
        (lambda: fock.cross_kerr(VACUUM(), 0.1, (1, 1)), "none may stand twice"),
        (lambda: fock.beamsplitter(VACUUM(), 0.1, 0.2, (0,)), "2 must be given"),
        (lambda: fock.kerr(VACUUM(), 0.1j, 0), "must be real"),
        (lambda: fock.kerr(VACUUM(), np.ones(2), 0), "must be a scalar"),
        (lambda: fock.cubic_phase(VACUUM(), 1.2, 0), "pass a larger one"),
        (lambda: fock.apply_matrix(VACUUM(), jnp.eye(3), 0), r"must be \(4, 4\)"),
        (lambda: counted.sample(jax.random.key(0), VACUUM(), 0), "shots is 0"),
        (lambda: counted.polynomial_mean(VACUUM(), np.ones(3)), r"must be \(5,\) or \(5, 5\)"),
        (lambda: counted.probs(VACUUM(), (0, 0)), "none may stand twice"),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_cubic_phase_beyond_its_nodes_is_not_a_number_while_traced():
    matrix = jax.jit(lambda gamma: fock_matrices.cubic_phase(gamma, cutoff=3))(1.5)
    assert np.all(np.isnan(matrix))
    found = fock_matrices.cubic_phase(jnp.asarray(1.5), cutoff=3, largest=2.0)
    assert np.all(np.isfinite(found))
