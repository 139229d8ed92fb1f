"""Shift rules against automatic differentiation of the same circuits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from pennylane_oracle import all_angles, random_gates, record_gates

from jaxlab.errors import InputError
from jaxlab.quantum.measurements import counts, expval_dense, marginal_z, probs
from jaxlab.quantum.recording import record, trace
from jaxlab.quantum.shift import (
    by_shift,
    second_order_rule,
    shift_gradient,
    shift_rule,
    stochastic_shift_gradient,
    variance_gradient,
)
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")


def test_two_term_rule_is_the_textbook_one():
    np.testing.assert_allclose(shift_rule((1.0,)), [[0.5, -0.5], [np.pi / 2, -np.pi / 2]], atol=1e-15)


def test_four_term_rule_is_the_published_one():
    coefficients, shifts = shift_rule((0.5, 1.0))
    np.testing.assert_allclose(shifts, np.pi * np.array([0.5, 1.5, -0.5, -1.5]), atol=1e-14)
    np.testing.assert_allclose(coefficients, [0.4267767, -0.0732233, -0.4267767, 0.0732233], atol=1e-7)


@pytest.mark.parametrize("frequencies", [(1.0,), (0.5, 1.0), (0.5, 1.0, 1.5, 2.0), (2.0,), (0.5, 1.3, 2.1)])
def test_rules_are_exact_for_trigonometric_polynomials(frequencies):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, len(frequencies)))
    omega = np.array(frequencies)

    def value(x):
        return 0.7 + a @ np.cos(omega * x) + b @ np.sin(omega * x)

    for rule, exact in (
        (shift_rule(frequencies), b @ omega),
        (shift_rule(frequencies, tuple(0.4 * (1 + np.arange(len(omega))))), b @ omega),
        (second_order_rule(frequencies) if len(omega) != 3 else (np.zeros(0), np.zeros(0)), -a @ omega**2),
    ):
        if len(rule[0]):
            assert abs(sum(c * value(s) for c, s in zip(*rule, strict=True)) - exact) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_shift_gradient_is_the_adjoint_one_for_all_gates(seed):
    rng = np.random.default_rng(seed)
    n = 4
    gates = random_gates(rng, n, 16)
    matrix = rng.normal(size=(4, 4))
    matrix = matrix + matrix.T
    program, slots_fn = trace(lambda c, angles: record_gates(c, gates, angles), n, all_angles(gates))

    def measure(slots):
        return expval_dense(simulate(program, slots, block=2), matrix, (2, 0))

    slots = slots_fn(jnp.asarray(all_angles(gates)))
    (shifted,) = jax.jit(lambda slots: shift_gradient(measure, program, slots))(slots)
    (exact,) = jax.jit(jax.grad(measure))(slots)
    np.testing.assert_allclose(shifted, exact.angles, atol=1e-9)


def layered(c, stacked):
    def layer(c, x):
        c.ry(x, range(3))
        c.cnot(0, 1)
        c.crx(x[0] * x[1], 1, 2)

    c.repeat(layer, stacked)
    c.rz(jnp.sum(stacked), 2)
    c.h(2)


def test_by_shift_goes_through_what_makes_the_angles():
    stacked = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3)))
    program, slots_fn = trace(layered, 3, stacked)

    def measure(slots):
        return marginal_z(simulate(program, slots))

    shifted = jax.jit(jax.jacrev(lambda x: by_shift(measure, program)(slots_fn(x))))(stacked)
    exact = jax.jit(jax.jacrev(lambda x: measure(slots_fn(x))))(stacked)
    np.testing.assert_allclose(shifted, exact, atol=1e-10)


def test_gradient_from_shots_lies_within_four_sigma():
    shots = 4000
    program, slots_fn = trace(lambda c, t: c.ry(t, 0), 1, 0.0)

    def measure(slots, key):
        found = counts(key, simulate(program, slots), shots)
        return (found[0] - found[1]) / shots

    (gradient,) = jax.jit(lambda key: shift_gradient(measure, program, slots_fn(0.4), key=key))(
        jax.random.key(0)
    )
    variance = (1 - np.sin(0.4) ** 2) / shots / 2
    assert abs(gradient[0] + np.sin(0.4)) < 4 * np.sqrt(variance)
    assert gradient[0] != -np.sin(0.4)


def test_variance_gradient():
    def mean(t):
        return jnp.cos(t)

    exact = jax.grad(lambda t: 1 - mean(t) ** 2)(0.3)
    assert abs(variance_gradient(mean(0.3), jax.grad(mean)(0.3)) - exact) < 1e-14
    assert abs(variance_gradient(mean(0.3), jax.grad(mean)(0.3), 0.0) - exact) < 1e-14


def test_stochastic_rule_averages_to_the_derivative():
    rng = np.random.default_rng(1)
    fixed = rng.normal(size=(4, 4))
    fixed = (fixed + fixed.T) / 2
    varied = np.kron([[0, 1], [1, 0]], [[1, 0], [0, -1]])
    observable = np.diag([1.0, -1, 0.5, 2])

    def measure(unitary):
        return jnp.real(unitary[:, 0].conj() @ observable @ unitary[:, 0])

    def value(theta):
        return measure(scipy.linalg.expm(1j * (fixed + theta * varied)))

    exact = (value(0.3 + 1e-6) - value(0.3 - 1e-6)) / 2e-6
    single = jax.vmap(lambda key: stochastic_shift_gradient(key, measure, fixed, varied, 0.3, samples=1))
    estimates = single(jax.random.split(jax.random.key(0), 4000))
    assert abs(np.mean(estimates) - exact) < 4 * np.std(estimates) / np.sqrt(4000)
    assert np.std(estimates) < 0.2


def test_wrong_use_is_named():
    program, slots = record(lambda c: c.unitary(jnp.eye(2), 0), 1)
    with pytest.raises(InputError, match="no angle"):
        shift_gradient(lambda slots: probs(simulate(program, slots)), program, slots)
    with pytest.raises(InputError, match="a matrix of the circuit"):
        jax.grad(
            lambda slots: by_shift(lambda s: probs(simulate(program, s))[0], program)(slots), allow_int=True
        )(slots)
    with pytest.raises(InputError, match="distinct positive"):
        shift_rule((0.0,))
    with pytest.raises(InputError, match="one for each"):
        shift_rule((1.0,), (0.1, 0.2))
    with pytest.raises(InputError, match="samples is 0"):
        stochastic_shift_gradient(jax.random.key(0), lambda u: 0.0, np.eye(2), np.eye(2), 0.1, samples=0)
    with pytest.raises(InputError, match="must be 1"):
        stochastic_shift_gradient(jax.random.key(0), lambda u: 0.0, np.eye(2), 2 * np.eye(2), 0.1, samples=1)
    with pytest.warns(UserWarning, match="hardly tell"):
        shift_rule((1.0, 1.0 + 1e-9))
