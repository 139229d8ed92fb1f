"""Pauli sums against Kronecker products, PennyLane's matrices, and plain differentiation of a matrix."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_states import random_state

from jaxlab.errors import InputError
from jaxlab.quantum import pauli_sums
from jaxlab.quantum.pauli_sums import (
    PauliSum,
    dense,
    expval,
    from_masks,
    from_openfermion,
    from_pennylane,
    ground_state,
    pauli_sum,
    prepare,
    simplify,
    stack,
    variance,
    words,
)

pytestmark = pytest.mark.usefixtures("double_precision")

LETTERS = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}
OF_X = {"XIII": 0.3, "IXII": -0.2, "XIXI": 0.9, "IIXX": 0.5, "XIIX": -1.2, "IIIX": 0.8}
TERMS = {"XYZI": 0.7, "YYXX": -0.4, "ZIIZ": 1.1, "IIII": 0.3, "XXZI": -0.9, "IYII": 0.25, "XYIZ": 0.6}
N = 4


def matrix_of(terms):
    return sum(
        c * functools.reduce(np.kron, [LETTERS[letter] for letter in word]) for word, c in terms.items()
    )


def random_terms(n, count, seed):
    rng = np.random.default_rng(seed)
    return {"".join(rng.choice(list("IXYZ"), n)): float(rng.normal()) for _ in range(count)}


@settings(max_examples=10)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 12, 60]), st.integers(0, 2**31))
def test_everything_read_off_is_that_of_the_matrix(n, count, seed):
    terms = random_terms(n, count, seed)
    matrix, ours, psi = matrix_of(terms), pauli_sum(terms), random_state(n, seed)
    mean = np.vdot(psi, matrix @ psi).real
    spread = np.vdot(psi, matrix @ matrix @ psi).real - mean**2
    np.testing.assert_allclose(dense(ours), matrix, atol=1e-12)
    for one in (ours, prepare(ours), prepare(ours, limit=0)):
        np.testing.assert_allclose(pauli_sums.apply(one, jnp.asarray(psi)), matrix @ psi, atol=1e-12)
        np.testing.assert_allclose(expval(jnp.asarray(psi), one), mean, atol=1e-12)
        np.testing.assert_allclose(variance(jnp.asarray(psi), one), spread, atol=1e-11)
    assert words(ours) == pytest.approx(terms)
    lowest, state = ground_state(ours)
    assert lowest == pytest.approx(np.linalg.eigvalsh(matrix)[0], abs=1e-10)
    np.testing.assert_allclose(matrix @ state, lowest * state, atol=1e-8)


def test_only_large_sums_are_left_without_tables():
    assert isinstance(prepare(pauli_sum(TERMS), limit=0), PauliSum)
    assert isinstance(prepare(pauli_sum(TERMS)), pauli_sums.PauliTables)


@given(st.integers(0, 2**31))
@settings(max_examples=5)
def test_sums_add_and_scale_as_matrices(seed):
    first, second = random_terms(3, 9, seed), random_terms(3, 30, seed + 1)
    a, b = pauli_sum(first), pauli_sum(second)
    together = 2 * a - np.float64(0.5) * b + a
    np.testing.assert_allclose(dense(together), 3 * matrix_of(first) - matrix_of(second) / 2, atol=1e-12)
    assert words(a - a) == {}
    assert together.c.dtype == np.float64


def test_small_terms_can_be_left_out():
    kept = words(simplify(pauli_sum(TERMS), tolerance=0.5))
    assert kept == {word: c for word, c in TERMS.items() if abs(c) > 0.5}
    assert words(simplify(pauli_sum(TERMS), tolerance=2.0)) == {}
    assert simplify(pauli_sum(TERMS), tolerance=2.0).n == N


@pytest.mark.parametrize("further", [{}, OF_X], ids=["", "words of X alone"])
def test_gradients_in_state_and_coefficients_are_those_of_the_matrix(further):
    terms = TERMS | further
    hamiltonian = pauli_sum(terms)
    basis = jnp.asarray([matrix_of({word: 1.0}) for word in terms])
    args = np.array([random_state(N).real, random_state(N).imag]), np.array([*terms.values()])

    def rebuilt(c):
        return pauli_sum(dict(zip(terms, c, strict=True)))

    def means(parts, c):
        return expval(parts[0] + 1j * parts[1], rebuilt(c))

    def variances(parts, c):
        return variance(parts[0] + 1j * parts[1], rebuilt(c))

    def dense_means(parts, c, spread=False):
        psi = parts[0] + 1j * parts[1]
        applied = jnp.einsum("t,tij,j->i", c, basis, psi)
        mean = jnp.real(jnp.vdot(psi, applied))
        return jnp.sum(jnp.abs(applied - mean * psi) ** 2) if spread else mean

    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, atol=1e-11))
    both = functools.partial(jax.grad, argnums=(0, 1))
    close(jax.jit(both(means))(*args), both(dense_means)(*args))
    close(jax.jit(both(variances))(*args), both(functools.partial(dense_means, spread=True))(*args))
    second = functools.partial(jax.hessian, argnums=(0, 1))
    close(jax.jit(second(means))(*args), jax.jit(second(dense_means))(*args))
    tables = jax.jit(jax.grad(lambda parts: expval(parts[0] + 1j * parts[1], prepare(hamiltonian))))
    close(tables(args[0]), jax.grad(dense_means)(*args))
    of_sum = jax.jit(jax.grad(lambda h: expval(random_state(N), h), allow_int=True))(hamiltonian)
    of_one = jax.grad(lambda t: expval(random_state(N), hamiltonian + t * pauli_sum({"ZIIZ": 1.0})))(0.0)
    assert of_sum.c[hamiltonian.c == TERMS["ZIIZ"]][0] == pytest.approx(float(of_one), abs=1e-12)


def test_many_words_of_x_are_measured_in_their_own_basis():
    hamiltonian = pauli_sum(TERMS | OF_X)
    # Coefficients that are known are summed up to diagonals at once; others stay with their words.
    assert pauli_sums._split(hamiltonian).of_x.values.shape == (1, 2**N)
    split = pauli_sums._split(dataclasses.replace(hamiltonian, c=jnp.asarray(hamiltonian.c)))
    assert split.of_x.c.size == len(OF_X) and split.of_z.c.size >= 2
    psi = random_state(N)
    known, unknown = (
        expval(psi, own)
        for own in (hamiltonian, dataclasses.replace(hamiltonian, c=jnp.asarray(hamiltonian.c)))
    )
    assert float(known) == pytest.approx(float(unknown), abs=1e-12)
    assert pauli_sums._split(pauli_sum({"XI": 1.0, "IX": 1.0, "ZZ": 1.0})).of_x is None
    psi = random_state(N)
    expected = np.vdot(psi, matrix_of(TERMS | OF_X) @ psi).real
    assert float(expval(psi, pauli_sum(TERMS | OF_X))) == pytest.approx(expected, abs=1e-12)


def test_batches_and_single_states_agree():
    hamiltonian = pauli_sum(TERMS)
    states = jnp.asarray([random_state(N, seed) for seed in range(3)])
    for function in (expval, variance):
        single = np.array([function(psi, hamiltonian) for psi in states])
        np.testing.assert_allclose(function(states, hamiltonian), single, atol=1e-13)
        np.testing.assert_allclose(
            jax.vmap(jax.jit(function), (0, None))(states, hamiltonian), single, atol=1e-13
        )


def test_stacked_sums_are_mapped_over():
    sums = [pauli_sum(random_terms(3, count, seed)) for seed, count in enumerate((4, 20, 9))]
    stacked, psi = stack(sums), jnp.asarray(random_state(3))
    assert stacked.c.shape[0] == 3
    values = jax.jit(jax.vmap(lambda c: expval(psi, dataclasses.replace(stacked, c=c))))(stacked.c)
    np.testing.assert_allclose(values, [expval(psi, one) for one in sums], atol=1e-13)
    axes = dataclasses.replace(stacked, x=None, z=None, c=0)
    np.testing.assert_allclose(jax.vmap(expval, (None, axes))(psi, stacked), values, atol=1e-13)
    with pytest.raises(InputError, match="a stacked sum must be mapped over"):
        expval(psi, stacked)
    with pytest.raises(InputError, match="a stacked sum must be mapped over"):
        stacked + sums[0]
    with pytest.raises(InputError, match="empty"):
        stack([])


def test_terms_with_wires_are_words_with_letters():
    ours = pauli_sum([(0.5, "XZ", (0, 2)), (0.25, "Y", (1,)), (0.5, "ZX", (2, 0)), (2.0, "", ())])
    assert words(ours) == {"XIZ": 1.0, "IYI": 0.25, "III": 2.0}
    assert pauli_sum([(1.0, "X", (0,))], n=3).n == 3
    x, z = np.array([4, 2, 0]), np.array([1, 2, 0])
    np.testing.assert_allclose(dense(from_masks(x, z, [1.0, 0.25, 2.0], 3)), dense(ours), atol=1e-13)
    assert from_masks(x, z, [1, 2, 3], 3).c.dtype == np.float64


def test_coefficients_that_are_complex_by_rounding_become_real():
    assert pauli_sum({"X": 1 + 1e-16j, "Z": 2.0}).c.dtype == np.float64
    assert pauli_sum({"X": 1 + 0.1j, "Z": 2.0}).c.dtype == np.complex128


def test_complex_sums_are_applied_but_have_no_expectation():
    terms = {"XY": 0.5 + 0.25j, "ZI": 1j, "YY": 2.0}
    ours, psi = pauli_sum(terms), jnp.asarray(random_state(2))
    np.testing.assert_allclose(pauli_sums.apply(ours, psi), matrix_of(terms) @ psi, atol=1e-13)
    np.testing.assert_allclose(pauli_sums.apply(prepare(ours), psi), matrix_of(terms) @ psi, atol=1e-13)
    for refused in (expval, variance):
        for one in (ours, prepare(ours)):
            with pytest.raises(InputError, match="complex coefficients"):
                refused(psi, one)
    with pytest.raises(InputError, match="coefficients are complex"):
        ground_state(ours)


def test_single_precision_is_enough_for_single_precision():
    with jax.enable_x64(False):
        psi = jnp.asarray(random_state(N), jnp.complex64)
        value = expval(psi, pauli_sum(TERMS))
        assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(
        float(expval(jnp.asarray(random_state(N)), pauli_sum(TERMS))), abs=1e-5
    )


@pytest.mark.parametrize(
    "operator",
    [
        0.5 * qml.X(0) @ qml.Y(2) + 2 * qml.Z(1) - qml.I(0),
        qml.Hamiltonian([0.3, -1.2], [qml.Z(0) @ qml.Z(1), qml.Y(2) @ qml.X(0)]),
        qml.X(0) @ qml.Y(0) + 1j * qml.Z(1) @ qml.X(2),
        qml.prod(qml.X(2), qml.Z(0)),
        qml.Y(2),
    ],
    ids=["sum", "hamiltonian", "complex", "prod", "one"],
)
def test_pennylanes_operators_keep_their_matrix(operator):
    ours = from_pennylane(operator, n=3)
    np.testing.assert_allclose(dense(ours), qml.matrix(operator, wire_order=range(3)), atol=1e-12)


def test_pennylanes_labels_get_places():
    operator = qml.X("a") @ qml.Z(7) + 0.5 * qml.Y("b")
    ours = from_pennylane(operator, wires=["b", 7, "a"])
    np.testing.assert_allclose(dense(ours), qml.matrix(operator, wire_order=["b", 7, "a"]), atol=1e-13)
    assert from_pennylane(qml.X(0) - qml.X(0)).n == 1
    assert from_pennylane(qml.I(2)).n == 3
    slope = jax.grad(lambda t: expval(random_state(2), from_pennylane(t * qml.X(0) @ qml.Z(1) + qml.Z(0))))(
        0.3
    )
    assert slope == pytest.approx(float(expval(random_state(2), pauli_sum({"XZ": 1.0}))), abs=1e-12)
    for wrong in (operator, qml.I("a")):
        with pytest.raises(InputError, match="is no number"):
            from_pennylane(wrong)
    with pytest.raises(InputError, match="are not all in"):
        from_pennylane(operator, wires=["b", "a"])
    with pytest.raises(InputError, match="without a Pauli decomposition"):
        from_pennylane(qml.RX(0.1, 0))


def test_openfermions_operators_are_read():
    class QubitOperator(types.SimpleNamespace):
        pass

    operator = QubitOperator(terms={(): 0.5, ((0, "X"), (2, "Z")): 1.5 + 0j, ((1, "Y"),): -2.0})
    assert words(from_openfermion(operator)) == {"III": 0.5, "XIZ": 1.5, "IYI": -2.0}
    assert from_openfermion(operator, n=4).n == 4
    assert words(from_openfermion(QubitOperator(terms={}), n=2)) == {}
    with pytest.raises(InputError, match="ladder operators"):
        from_openfermion(QubitOperator(terms={((0, 1), (1, 0)): 1.0}))
    with pytest.raises(InputError, match="must be an openfermion"):
        from_openfermion({"X": 1.0})


X1, Z1 = np.array([1]), np.array([0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pauli_sum({}), "terms is empty"),
        (lambda: pauli_sum({"XQ": 1.0}), "letter 'Q'"),
        (lambda: pauli_sum({"X": 1.0, "XY": 1.0}), r"lengths \[1, 2\]"),
        (lambda: pauli_sum({"XY": 1.0}, n=3), "length 2; n is 3"),
        (lambda: pauli_sum({"X" * 31: 1.0}), "wires lie between 0 and 29"),
        (lambda: pauli_sum([(1.0, "X", (0,))], n=31), "1 to 30"),
        (lambda: pauli_sum([(1.0, "XY", (0, 0))]), "none may stand twice"),
        (lambda: pauli_sum([(1.0, "X", (3,))], n=3), "wires lie between 0 and 2"),
        (lambda: pauli_sum([(1.0, "XY", (0,))]), "2 letters for 1 wires"),
        (lambda: pauli_sum({"X": np.ones(3)}), "must be numbers"),
        (lambda: pauli_sum({"X": jnp.ones(3)}), "must be numbers"),
        (lambda: from_masks(X1, Z1, [1.0, 2.0], 1), "all must be"),
        (lambda: from_masks(X1, Z1, [1.0], 31), "between 1 and 30"),
        (lambda: from_masks(2 * X1, Z1, [1.0], 1), "bits beyond"),
        (lambda: pauli_sum({"X": 1.0}) + pauli_sum({"XX": 1.0}), "1 and 2 wires"),
        (lambda: pauli_sum({"X": 1.0}) * np.ones(2), "factor has shape"),
        (lambda: expval(random_state(2), pauli_sum({"X": 1.0})), r"must be \(..., 2\)"),
        (lambda: expval(np.ones(2), pauli_sum({"X": 1.0})), "must be complex"),
        (lambda: pauli_sums.apply(prepare(pauli_sum({"X": 1.0})), random_state(2)), r"must be \(..., 2\)"),
        (lambda: dense(pauli_sum({"X" * 14: 1.0})), "up to 13 wires"),
        (lambda: jax.jit(words)(pauli_sum({"X": 1.0})), "traced"),
        (lambda: jax.jit(lambda h: (h + h).c)(pauli_sum({"X": 1.0})), "masks are traced"),
        (lambda: jax.jit(lambda t: words(pauli_sum({"X": t})))(1.0), "coefficients are traced"),
        (lambda: jax.jit(prepare)(pauli_sum({"X": 1.0})), "masks are traced"),
    ],
)
def test_wrong_use_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_sums_and_other_things_do_not_mix():
    with pytest.raises(TypeError):
        pauli_sum({"X": 1.0}) + 1
    with pytest.raises(TypeError):
        pauli_sum({"X": 1.0}) * pauli_sum({"X": 1.0})
