"""State-vector kernels against explicit matrices and index arithmetic."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_states import random_state

from jaxlab.kernels.statevector import blocks, monomials, pairs

pytestmark = pytest.mark.usefixtures("double_precision")


def random_unitary(size, seed=0):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size)))[0]


def on_wires(matrix, wires, n):
    """The matrix on all n wires, entry by entry."""
    k = len(wires)
    shifts = [n - 1 - wire for wire in wires]
    whole = np.zeros((1 << n, 1 << n), complex)
    for column in range(1 << n):
        inner = sum((column >> shift & 1) << (k - 1 - i) for i, shift in enumerate(shifts))
        rest = column & ~sum(1 << shift for shift in shifts)
        for out in range(1 << k):
            row = rest | sum((out >> (k - 1 - i) & 1) << shift for i, shift in enumerate(shifts))
            whole[row, column] = matrix[out, inner]
    return whole


@pytest.mark.parametrize("wires", [(0,), (3,), (1, 2), (0, 3), (0, 1, 3), (2, 4), (0, 1, 2, 3, 4)])
def test_block_on_any_wires_is_the_whole_matrix(wires):
    n, matrix = 5, random_unitary(1 << len(wires))
    psi, after = random_state(n), random_state(n, 1)
    np.testing.assert_allclose(
        blocks.apply_block(psi, matrix, wires), on_wires(matrix, wires, n) @ psi, atol=1e-13
    )

    def loss(matrix):
        return jnp.real(jnp.vdot(after, blocks.apply_block(psi, matrix, wires)))

    np.testing.assert_allclose(blocks.block_gradient(after, psi, wires), jax.grad(loss)(matrix), atol=1e-12)


def random_orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def phased(psi, c, masks, n, inverse=False):
    c = jnp.asarray(c, psi.real.dtype)
    sides = monomials.side_factors(c, masks, n)
    return monomials.multiply_phases(psi, c, sides, masks, n, inverse=inverse)


@pytest.mark.parametrize("sizes", [(2, 3, 1), (4,), (1, 1)])
def test_turns_by_real_blocks_are_their_product_and_can_be_undone(sizes):
    n = sum(sizes)
    psi, after = random_state(n), random_state(n, 1)
    matrices = [jnp.asarray(random_orthogonal(1 << k, k)) for k in sizes]
    turned = blocks.turn(psi, matrices)
    np.testing.assert_allclose(turned, functools.reduce(np.kron, matrices) @ psi, atol=1e-13)

    def loss(psi, matrices):
        return jnp.real(jnp.vdot(after, blocks.turn(psi, matrices)))

    by_state, by_matrices = jax.grad(loss, argnums=(0, 1))(jnp.asarray(psi), matrices)
    back_after, back_psi, gradients = blocks.turn_back(
        after, turned, [blocks.transposed(one) for one in matrices]
    )
    np.testing.assert_allclose(back_psi, psi, atol=1e-13)
    np.testing.assert_allclose(back_after.conj(), by_state, atol=1e-13)
    for gradient, by_matrix in zip(gradients, by_matrices, strict=True):
        np.testing.assert_allclose(gradient.T, by_matrix, atol=1e-12)


def test_rotations_over_all_wires_are_the_product_of_blocks():
    psi, sizes = random_state(6), (2, 3, 1)
    matrices = [random_unitary(1 << k, k) for k in sizes]
    turned = psi
    for matrix in matrices:
        turned = blocks.rotate(turned, matrix)
    whole = functools.reduce(np.kron, matrices)
    np.testing.assert_allclose(turned, whole @ psi, atol=1e-13)
    for matrix in reversed(matrices):
        turned = blocks.unrotate(turned, matrix)
    np.testing.assert_allclose(turned, psi, atol=1e-13)


def test_gradient_of_a_rotation_is_that_of_plain_differentiation():
    psi, after, matrix = random_state(5), random_state(5, 1), random_unitary(4)

    def loss(matrix):
        return jnp.real(jnp.vdot(after, blocks.rotate(psi, matrix)))

    np.testing.assert_allclose(blocks.rotated_gradient(after, psi, 4), jax.grad(loss)(matrix), atol=1e-12)


@settings(max_examples=15)
@given(st.sampled_from([1, 4, 7]), st.integers(0, 2**31))
def test_affine_permutation_follows_its_columns(n, seed):
    rng = np.random.default_rng(seed)
    columns = [int(column) for column in rng.integers(0, 1 << n, n)]
    offset = int(rng.integers(0, 1 << n))
    psi = random_state(n, seed)
    expected = []
    for y in range(1 << n):
        source = 0
        for bit in range(n):
            source ^= columns[bit] * ((y ^ offset) >> bit & 1)
        expected.append(psi[source])
    np.testing.assert_array_equal(
        monomials.permute(jnp.asarray(psi), monomials.sources(columns, offset, n)), expected
    )


@settings(max_examples=15)
@given(st.sampled_from([1, 6]), st.sampled_from([1, 5]), st.integers(0, 2**31))
def test_phases_are_sums_over_parities(n, terms, seed):
    rng = np.random.default_rng(seed)
    masks = [int(mask) for mask in rng.integers(0, 1 << n, terms)]
    c = jnp.asarray(rng.normal(size=terms))
    psi, after = jnp.asarray(random_state(n, seed)), jnp.asarray(random_state(n, seed + 1))
    index = np.arange(1 << n)
    phase = sum(c[t] * (-1.0) ** np.bitwise_count(index & masks[t]) for t in range(terms))
    turned = phased(psi, c, masks, n)
    np.testing.assert_allclose(turned, np.exp(1j * phase) * psi, atol=1e-12)
    np.testing.assert_allclose(phased(turned, c, masks, n, inverse=True), psi, atol=1e-12)

    def loss(c):
        return jnp.real(jnp.vdot(after, phased(psi, c, masks, n)))

    np.testing.assert_allclose(
        monomials.phase_gradient(after, turned, masks, n), jax.grad(loss)(c), atol=1e-10
    )


def unitary_pairs(rng, n, count):
    """Random gates in pair form: a 2 by 2 unitary on each pair of amplitudes that differ by `flip`."""
    masks, coefficients = [], []
    for _ in range(count):
        flip = int(rng.integers(1, 1 << n))
        signs = flip & -flip  # the lowest bit of flip: s tells the two amplitudes of a pair apart
        where = int(rng.integers(0, 1 << n)) | (signs if rng.random() < 0.5 else 0)
        masks.append((flip, signs, where, int(rng.integers(0, 1 << n)) & where))
        u = random_unitary(2, int(rng.integers(1 << 30)))
        a, b = (u[0, 0], u[1, 1]), (u[0, 1], u[1, 0])
        coefficients.append([(a[0] + a[1]) / 2, (a[0] - a[1]) / 2, (b[0] + b[1]) / 2, (b[0] - b[1]) / 2])
    return np.array(masks, np.int32), np.array(coefficients)


def pair_matrix(masks, c, n):
    whole = np.eye(1 << n, dtype=complex)
    for (flip, signs, where, value), (a, a_sign, b, b_sign) in zip(masks, c, strict=True):
        one = np.zeros_like(whole)
        for j in range(1 << n):
            s = (-1) ** bin(j & signs).count("1")
            if (j ^ value) & where == 0 or (j ^ value ^ flip) & where == 0:
                one[j, j] += a + a_sign * s
                one[j, j ^ flip] += b + b_sign * s
            else:
                one[j, j] = 1
        whole = one @ whole
    return whole


@settings(max_examples=10)
@given(st.sampled_from([1, 4]), st.integers(0, 2**31))
def test_pairs_are_their_matrices_and_can_be_undone(n, seed):
    rng = np.random.default_rng(seed)
    masks, c = unitary_pairs(rng, n, 3)
    psi, after = jnp.asarray(random_state(n, seed)), jnp.asarray(random_state(n, seed + 1))
    turned = pairs.apply_pairs(psi, jnp.asarray(masks), jnp.asarray(c))
    np.testing.assert_allclose(turned, pair_matrix(masks, c, n) @ psi, atol=1e-11)

    def loss(psi, c):
        return jnp.real(jnp.vdot(after, pairs.apply_pairs(psi, jnp.asarray(masks), c)))

    by_state, by_coefficients = jax.grad(loss, argnums=(0, 1))(psi, jnp.asarray(c))
    back_after, back_psi, gradient = pairs.unapply_pairs(after, turned, jnp.asarray(masks), jnp.asarray(c))
    np.testing.assert_allclose(back_psi, psi, atol=1e-11)
    np.testing.assert_allclose(back_after.conj(), by_state, atol=1e-10)
    np.testing.assert_allclose(gradient, by_coefficients, atol=1e-10)


MASKS = np.array([[3, 1, 0, 0], [4, 4, 1, 1]], np.int32)
KERNELS = {
    "rotate": lambda psi: blocks.rotate(psi, jnp.asarray(random_unitary(4), psi.dtype)),
    "turn": lambda psi: blocks.turn(
        psi, [jnp.asarray(random_orthogonal(size), psi.real.dtype) for size in (2, 4)]
    ),
    "apply_block": lambda psi: blocks.apply_block(psi, jnp.asarray(random_unitary(4), psi.dtype), (0, 2)),
    "permute": lambda psi: monomials.permute(psi, monomials.sources((1, 3, 6), 5, 3)),
    "multiply_phases": lambda psi: phased(psi, jnp.asarray([0.1, 0.2, 0.3]), (4, 1, 5), 3),
    "apply_pairs": lambda psi: pairs.apply_pairs(psi, jnp.asarray(MASKS), jnp.ones((2, 4), psi.dtype) / 2),
}


@pytest.mark.parametrize("name", KERNELS)
def test_jit_vmap_and_eager_agree(name):
    kernel = KERNELS[name]
    states = jnp.asarray([random_state(3, seed) for seed in range(3)])
    eager = jnp.stack([kernel(psi) for psi in states])
    np.testing.assert_allclose(jax.vmap(kernel)(states), eager, atol=1e-14)
    np.testing.assert_allclose(jnp.stack([jax.jit(kernel)(psi) for psi in states]), eager, atol=1e-14)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", KERNELS)
def test_lowers_for_every_platform(name, platform):
    with jax.enable_x64(False):
        exported = jax.export.export(jax.jit(KERNELS[name]), platforms=[platform])
        assert exported(jax.ShapeDtypeStruct((8,), jnp.complex64)).mlir_module()


def test_matrix_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="matrix has shape"):
        blocks.apply_block(jnp.zeros(8, complex), jnp.eye(2), (0, 1))
