"""Sums of Pauli words on state vectors against Kronecker products and plain differentiation."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_states import random_state

from jaxlab.kernels.statevector import pauli_sum
from jaxlab.kernels.statevector.pauli_sum import Split, Tables, Words, apply_sum, expectation, tables

pytestmark = pytest.mark.usefixtures("double_precision")

LETTERS = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}


def random_words(n, rows=4, width=3, seed=0, complex_coefficients=False):
    """Rows of one x and one parity of the number of Y; the last row has its x from the first, as rows may."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << n, rows)
    x[-1] = x[0]
    z = rng.integers(0, 1 << n, (rows, width))
    wanted = np.where(x == 0, 0, rng.integers(0, 2, rows))
    wrong = np.bitwise_count(x[:, None] & z) % 2 != wanted[:, None]
    z ^= wrong * (x & -x)[:, None]
    c = rng.normal(size=(rows, width))
    if complex_coefficients:
        c = c + 1j * rng.normal(size=(rows, width))
    return Words(x.astype(np.int32), z.astype(np.int32), c)


def letters_of(x, z, n):
    return ["IZXY"[2 * (int(x) >> w & 1) + (int(z) >> w & 1)] for w in range(n)[::-1]]


def apply_letters(psi, words, n):
    """One 2 by 2 matrix after the other, word by word."""
    total = np.zeros(1 << n, complex)
    for x, zs, cs in zip(*words, strict=True):
        for z, c in zip(zs, cs, strict=True):
            turned = psi
            for wire, letter in enumerate(letters_of(x, z, n)):
                split = turned.reshape(1 << wire, 2, -1)
                turned = np.einsum("ab,ibj->iaj", LETTERS[letter], split).reshape(-1)
            total += c * turned
    return total


def random_split(n, seed=0, complex_coefficients=False):
    """Words of Z alone, of X alone and of all letters: as a sum in three parts, and as one with all its words."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (5, 7):
        c = rng.normal(size=(1, count)) + (1j * rng.normal(size=(1, count)) if complex_coefficients else 0)
        parts.append(Words(np.zeros(1, np.int32), rng.integers(0, 1 << n, (1, count), dtype=np.int32), c))
    of_z, of_x = parts
    others = random_words(n, seed=seed, complex_coefficients=complex_coefficients)
    none = np.zeros((of_x.z.shape[1], 1), np.int32)
    whole = [of_z, Words(of_x.z[0], none, of_x.c.T), others]
    return Split(of_z, of_x, others), whole


def word_matrices(words, n):
    """[M, T, 2^n, 2^n]."""
    return np.array(
        [
            [functools.reduce(np.kron, [LETTERS[letter] for letter in letters_of(x, z, n)]) for z in zs]
            for x, zs in zip(words.x, words.z, strict=True)
        ],
        complex,
    )


def operators(words, n):
    yield jax.tree.map(jnp.asarray, words)
    yield tables(jax.tree.map(jnp.asarray, words), n)


@settings(max_examples=12)
@given(st.sampled_from([1, 3, 6]), st.booleans(), st.integers(0, 2**31))
def test_sum_is_its_words_letter_by_letter(n, complex_coefficients, seed):
    words = random_words(n, seed=seed, complex_coefficients=complex_coefficients)
    psi = random_state(n, seed)
    expected = apply_letters(psi, words, n)
    for operator in operators(words, n):
        np.testing.assert_allclose(apply_sum(jnp.asarray(psi), operator), expected, atol=1e-12)
        if not complex_coefficients:
            value = expectation(jnp.asarray(psi), operator)
            np.testing.assert_allclose(value, np.vdot(psi, expected).real, atol=1e-12)


@settings(max_examples=8)
@given(st.sampled_from([1, 3, 6]), st.booleans(), st.integers(0, 2**31))
def test_diagonals_in_two_bases_are_their_words_letter_by_letter(n, complex_coefficients, seed):
    split, whole = random_split(n, seed, complex_coefficients)
    psi = random_state(n, seed)
    parts = [apply_letters(psi, words, n) for words in whole]
    operator = jax.tree.map(jnp.asarray, split)
    np.testing.assert_allclose(apply_sum(jnp.asarray(psi), operator), sum(parts), atol=1e-12)
    for part, expected in zip(Split._fields, parts, strict=True):
        alone = Split(None, None, None)._replace(**{part: getattr(operator, part)})
        np.testing.assert_allclose(apply_sum(jnp.asarray(psi), alone), expected, atol=1e-12)
    if not complex_coefficients:
        value = expectation(jnp.asarray(psi), operator)
        np.testing.assert_allclose(value, np.vdot(psi, sum(parts)).real, atol=1e-12)


def test_derivatives_of_diagonals_in_two_bases_are_those_of_the_matrix():
    n = 3
    split, whole = random_split(n)
    matrices = [jnp.asarray(word_matrices(words, n)) for words in whole]
    parts = jnp.asarray([random_state(n).real, random_state(n).imag])
    coefficients = tuple(jnp.asarray(words.c) for words in split)

    def operator(c):
        return Split(*(words._replace(c=own) for words, own in zip(split, c, strict=True)))

    def dense_sum(psi, c):
        own = [c[0], c[1].T, c[2]]
        return sum(jnp.einsum("mt,mtij,j->i", *pair, psi) for pair in zip(own, matrices, strict=True))

    def mean(apply):
        def value(parts, c):
            psi = parts[0] + 1j * parts[1]
            return jnp.real(jnp.vdot(psi, apply(psi, c)))

        return value

    def norm(apply):
        return lambda parts, c: jnp.sum(jnp.abs(apply(parts[0] + 1j * parts[1], c)) ** 4)

    def ours(parts, c):
        return expectation(parts[0] + 1j * parts[1], operator(c))

    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, atol=1e-11))
    both = functools.partial(jax.grad, argnums=(0, 1))
    close(jax.jit(both(ours))(parts, coefficients), both(mean(dense_sum))(parts, coefficients))
    close(jax.hessian(ours)(parts, coefficients), jax.hessian(mean(dense_sum))(parts, coefficients))
    close(
        jax.jit(both(norm(lambda psi, c: apply_sum(psi, operator(c)))))(parts, coefficients),
        both(norm(dense_sum))(parts, coefficients),
    )


def test_more_wires_than_a_tile_has():
    n = pauli_sum._TILE_BITS + 1
    words, psi = random_words(n), random_state(n)
    expected = apply_letters(psi, words, n)
    for operator in operators(words, n):
        np.testing.assert_allclose(jax.jit(apply_sum)(psi, operator), expected, atol=1e-12)


def test_tiles_give_what_the_whole_state_gives(monkeypatch):
    n = 7
    words, psi = random_words(n, complex_coefficients=True), jnp.asarray(random_state(n))
    after = random_state(n, 1)

    def value_and_gradients(operator):
        def loss(psi, c):
            return jnp.real(jnp.vdot(after, apply_sum(psi, operator._replace(**{operator._fields[-1]: c}))))

        return jax.value_and_grad(loss, argnums=(0, 1))(psi, operator[-1])

    used = []

    def spied(*args, bits, **options):
        used.append(bits)
        return in_tiles(*args, bits=bits, **options)

    in_tiles = pauli_sum._in_tiles
    monkeypatch.setattr(pauli_sum, "_in_tiles", spied)
    results = []
    for bits in (13, 3):
        jax.clear_caches()
        monkeypatch.setattr(pauli_sum, "_TILE_BITS", bits)
        results.append([value_and_gradients(operator) for operator in operators(words, n)])
        assert min(used) == min(bits, n)
    jax.clear_caches()
    expected = np.real(np.vdot(after, apply_letters(np.asarray(psi), words, n)))
    for whole, tiled in zip(*results, strict=True):
        assert tiled[0] == pytest.approx(expected, abs=1e-12)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), tiled, whole)


@pytest.mark.parametrize("kind", [Words, Tables])
def test_derivatives_are_those_of_the_matrix(kind):
    n = 3
    words = random_words(n)
    operator = next(one for one in operators(words, n) if isinstance(one, kind))
    matrices = jnp.asarray(word_matrices(words, n))
    parts = np.array([random_state(n).real, random_state(n).imag])
    direction = np.array([random_state(n, 2).real, random_state(n, 2).imag])

    def rebuilt(c):
        words_ = Words(operator.x, words.z, c)
        return words_ if kind is Words else tables(jax.tree.map(jnp.asarray, words_), n)

    def ours(parts, c):
        return expectation(parts[0] + 1j * parts[1], rebuilt(c))

    def dense(parts, c):
        psi = parts[0] + 1j * parts[1]
        return jnp.real(jnp.vdot(psi, jnp.einsum("mt,mtij,j->i", c, matrices, psi)))

    args = parts, jnp.asarray(words.c)
    close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, atol=1e-11))
    both = functools.partial(jax.grad, argnums=(0, 1))
    close(jax.jit(both(ours))(*args), both(dense)(*args))
    hessians = [jax.jit(jax.hessian(f, argnums=(0, 1))) for f in (ours, dense)]
    close(*(f(*args) for f in hessians))
    ahead = [jax.jvp(f, args, (direction, jnp.ones_like(args[1]))) for f in (ours, dense)]
    close(*ahead)

    def norm(apply):
        def loss(parts, c):
            return jnp.sum(jnp.abs(apply(parts[0] + 1j * parts[1], c)) ** 4)

        return jax.jit(both(loss))(*args)

    close(
        norm(lambda psi, c: apply_sum(psi, rebuilt(c))),
        norm(lambda psi, c: jnp.einsum("mt,mtij,j->i", c, matrices, psi)),
    )


def test_complex_coefficients_have_derivatives_too():
    n = 3
    words = random_words(n, complex_coefficients=True)
    matrices, psi, after = jnp.asarray(word_matrices(words, n)), random_state(n), random_state(n, 1)

    def ours(c):
        return jnp.real(jnp.vdot(after, apply_sum(jnp.asarray(psi), Words(words.x, words.z, c))))

    def dense(c):
        return jnp.real(jnp.vdot(after, jnp.einsum("mt,mtij,j->i", c, matrices, psi)))

    c = jnp.asarray(words.c)
    np.testing.assert_allclose(jax.grad(ours)(c), jax.grad(dense)(c), atol=1e-12)


def test_batches_are_states_one_by_one():
    n = 4
    operator = Words(*map(jnp.asarray, random_words(n)))
    states = jnp.asarray([[random_state(n, 3 * i + j) for j in range(3)] for i in range(2)])
    for function in (apply_sum, expectation):
        single = np.array([[function(psi, operator) for psi in row] for row in states])
        assert len(np.unique(single)) == single.size  # nothing is zero, or the same for all
        np.testing.assert_allclose(function(states, operator), single, atol=1e-13)
        np.testing.assert_allclose(
            jax.vmap(jax.vmap(function, (0, None)), (0, None))(states, operator), single, atol=1e-13
        )
    scales = jnp.arange(3.0)
    scaled = jax.vmap(lambda s: expectation(states[0, 0], operator._replace(c=s * operator.c)))(scales)
    np.testing.assert_allclose(scaled, scales * expectation(states[0, 0], operator), atol=1e-13)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("n", [3, pauli_sum._TILE_BITS + 1])
def test_lowers_for_every_platform(n, platform):
    with jax.enable_x64(False):
        words = Words(*map(jnp.asarray, random_words(n)))
        gradient = jax.jit(jax.value_and_grad(lambda psi: expectation(psi, words)))
        exported = jax.export.export(gradient, platforms=[platform])
        assert exported(jax.ShapeDtypeStruct((1 << n,), jnp.complex64)).mlir_module()
        split = jax.tree.map(jnp.asarray, random_split(n)[0])
        gradient = jax.jit(jax.value_and_grad(lambda psi: expectation(psi, split)))
        exported = jax.export.export(gradient, platforms=[platform])
        assert exported(jax.ShapeDtypeStruct((1 << n,), jnp.complex64)).mlir_module()


def test_what_does_not_fit_is_named():
    words = Words(*map(jnp.asarray, random_words(3)))
    for psi in (jnp.zeros(6, complex), jnp.zeros(8), jnp.zeros(1, complex)):
        with pytest.raises(ValueError, match="psi has shape"):
            apply_sum(psi, words)
    psi = jnp.asarray(random_state(3))
    with pytest.raises(ValueError, match=r"\[M, T\]"):
        apply_sum(psi, words._replace(c=words.c[:, :1]))
    with pytest.raises(ValueError, match=r"\[M, 8\]"):
        apply_sum(psi, tables(words, 4))
    with pytest.raises(ValueError, match="coefficients are complex"):
        expectation(psi, words._replace(c=words.c + 0j))
