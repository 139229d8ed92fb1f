"""Measurements against PennyLane, closed forms, and statistics of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from random_states import random_state

from jaxlab.errors import InputError
from jaxlab.quantum import measurements as ms

pytestmark = pytest.mark.usefixtures("double_precision")


def pennylane(n, measurement):
    psi = random_state(n)

    @qml.qnode(qml.device("default.qubit", wires=n))
    def circuit():
        qml.StatePrep(psi, wires=range(n))
        return measurement()

    return np.asarray(circuit())


def hermitian():
    rng = np.random.default_rng(7)
    matrix = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
    return (matrix + matrix.conj().T) / 2


MATRIX = hermitian()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda psi: ms.probs(psi), lambda: qml.probs(wires=range(4))),
        (lambda psi: ms.probs(psi, (3, 1)), lambda: qml.probs(wires=(3, 1))),
        (lambda psi: ms.expval_dense(psi, MATRIX, (3, 1)), lambda: qml.expval(qml.Hermitian(MATRIX, (3, 1)))),
        (lambda psi: ms.variance_dense(psi, MATRIX, (0, 2)), lambda: qml.var(qml.Hermitian(MATRIX, (0, 2)))),
        (lambda psi: ms.density_matrix(psi, (2, 0)), lambda: qml.density_matrix((2, 0))),
        (lambda psi: ms.purity(psi, (1, 3)), lambda: qml.purity((1, 3))),
        (lambda psi: ms.vn_entropy(psi, (1,)), lambda: qml.vn_entropy((1,))),
        (lambda psi: ms.vn_entropy(psi, (1, 2), base=2), lambda: qml.vn_entropy((1, 2), log_base=2)),
        (lambda psi: ms.mutual_info(psi, (0,), (2, 3)), lambda: qml.mutual_info((0,), (2, 3))),
    ],
)
def test_measurement_is_pennylanes(ours, theirs):
    np.testing.assert_allclose(jax.jit(ours)(jnp.asarray(random_state(4))), pennylane(4, theirs), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_marginals_of_z_are_sums_over_probabilities(n):
    p = np.abs(random_state(n)) ** 2
    bits = 1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n)[::-1] & 1)
    np.testing.assert_allclose(ms.marginal_z(jnp.asarray(random_state(n))), p @ bits, atol=1e-14)


def test_batches_by_vmap_are_the_loop():
    states = jnp.asarray([random_state(3, seed) for seed in range(4)])
    for measure in (ms.probs, ms.marginal_z, lambda psi: ms.vn_entropy(psi, (0, 2))):
        np.testing.assert_allclose(jax.vmap(measure)(states), [measure(psi) for psi in states], atol=1e-14)


def test_entropy_of_a_product_state_has_a_finite_gradient():
    psi = jnp.kron(jnp.asarray([0.6, 0.8]), jnp.asarray([1.0, 0.0])).astype(complex)
    gradient = jax.grad(lambda t: ms.vn_entropy(psi * jnp.exp(1j * t), (0,)))(0.3)
    assert abs(gradient) < 1e-8


def test_counts_follow_the_probabilities():
    psi, shots = jnp.asarray(random_state(3)), 20_000
    found = jax.jit(lambda key: ms.counts(key, psi, shots, (2, 0)))(jax.random.key(0))
    p = np.asarray(ms.probs(psi, (2, 0)))
    assert found.sum() == shots
    assert np.all(np.abs(found - shots * p) < 4 * np.sqrt(shots * p * (1 - p)))
    drawn = ms.sample(jax.random.key(0), psi, shots, (2, 0))
    np.testing.assert_array_equal(np.bincount(drawn @ np.array([2, 1]), minlength=4), found)


def test_outcomes_without_probability_are_never_drawn():
    psi = jnp.asarray([0, 1, 0, 0, 0, 0, 1, 0]) / np.sqrt(2) + 0j
    drawn = ms.sample(jax.random.key(1), psi, 500)
    assert set(map(tuple, np.asarray(drawn))) == {(0, 0, 1), (1, 1, 0)}


def test_shadow_estimates_lie_within_four_sigma():
    psi, shots = random_state(3), 6000
    bits, bases = jax.jit(lambda key: ms.shadow(key, jnp.asarray(psi), shots))(jax.random.key(2))
    for word in ("ZII", "IXY", "YZX"):
        exact = np.real(psi.conj() @ qml.pauli.string_to_pauli_word(word).matrix(wire_order=range(3)) @ psi)
        weight = 3 ** (3 - word.count("I"))
        estimate = ms.shadow_expval(bits, bases, word)
        assert abs(estimate - exact) < 4 * np.sqrt((weight - exact**2) / shots)


def test_wrong_use_is_named():
    psi = jnp.asarray(random_state(2))
    for match, call in (
        ("lie between 0 and 1", lambda: ms.probs(psi, (2,))),
        ("none may stand twice", lambda: ms.probs(psi, (0, 0))),
        (r"\(2\^n,\)", lambda: ms.probs(psi[:3])),
        ("shots is 0", lambda: ms.sample(jax.random.key(0), psi, 0)),
        ("must not share a wire", lambda: ms.mutual_info(psi, (0,), (0,))),
        ("letters of IXYZ", lambda: ms.shadow_expval(jnp.zeros((4, 2)), jnp.zeros((4, 2)), "ZA")),
        (
            "must divide the 4 shots",
            lambda: ms.shadow_expval(jnp.zeros((4, 2)), jnp.zeros((4, 2)), "ZZ", groups=3),
        ),
        (r"must be \(2, 2\)", lambda: ms.expval_dense(psi, jnp.eye(4), (0,))),
    ):
        with pytest.raises(InputError, match=match):
            call()
