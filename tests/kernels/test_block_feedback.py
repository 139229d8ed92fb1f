"""Block error feedback and coordinate descent against float64 loops, their error identities, and special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.kernels.block_feedback import (
    block_descent,
    block_feedback,
    damped,
    inverse_cholesky,
    prepare_descent,
    prepare_feedback,
    wait_for,
)


def rounding(target, u, i):
    del u, i
    quantized = jnp.round(target * 2) / 2
    return quantized, quantized


def problem(rows, columns, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)).astype(dtype), (x.T @ x / len(x)).astype(dtype)


def loop_reference(w, h, block):
    """Feedback column block by column block from the textbook inverse, in float64 NumPy."""
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    w, out = w.copy(), np.zeros_like(w)
    for start in range(0, w.shape[1], block):
        here, right = slice(start, start + block), slice(start + block, None)
        out[:, here] = np.round(w[:, here] * 2) / 2
        error = w[:, here] - out[:, here]
        w[:, right] -= error @ np.linalg.inv(u[here, here]) @ u[here, right]
    return out


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), block=st.integers(1, 4), seed=st.integers(0, 99))
def test_equals_the_float64_loop(rows, blocks, block, seed):
    w, h = problem(rows, blocks * block, seed)
    with jax.enable_x64(True):
        factor = inverse_cholesky(jnp.asarray(h), damping=0.0)
        _, quantized = block_feedback(jnp.asarray(w), factor, rounding, block=block)
    np.testing.assert_allclose(quantized, loop_reference(w, h, block), atol=1e-9)


def test_final_error_is_the_sum_of_the_blocks_residuals():
    w, h = problem(6, 24, seed=3)
    block = 4
    residuals = []

    def recording(target, u, i):
        quantized = jnp.round(target)
        return (target - quantized, u), quantized

    with jax.enable_x64(True):
        u = inverse_cholesky(jnp.asarray(h), damping=0.0)
        (residuals, corners), quantized = block_feedback(jnp.asarray(w), u, recording, block=block)
    error = w - np.asarray(quantized)
    total = np.einsum("rc,cd,rd->r", error, h, error)
    inner = np.linalg.inv(np.einsum("bji,bjk->bik", corners, corners))
    by_block = np.einsum("bri,bij,brj->r", residuals, inner, residuals)
    np.testing.assert_allclose(by_block, total, rtol=1e-11)


def test_identity_hessian_means_no_feedback():
    w, _ = problem(5, 12, seed=1, dtype=np.float32)
    _, quantized = block_feedback(jnp.asarray(w), inverse_cholesky(jnp.eye(12)), rounding, block=3)
    np.testing.assert_array_equal(quantized, np.round(w * 2) / 2)


def test_nested_blocks_of_one_column_equal_one_pass_of_columns():
    w, h = problem(4, 16, seed=5)

    def inner(target, u, i):
        del i
        return block_feedback(target, u, rounding, block=1)

    with jax.enable_x64(True):
        u = inverse_cholesky(jnp.asarray(h))
        _, once = block_feedback(jnp.asarray(w), u, rounding, block=1)
        _, nested = block_feedback(jnp.asarray(w), u, inner, block=4)
    np.testing.assert_allclose(nested, once, atol=1e-12)


def test_feedback_lowers_the_weighted_error():
    w, h = problem(32, 32, seed=7)
    with jax.enable_x64(True):
        _, quantized = block_feedback(jnp.asarray(w), inverse_cholesky(jnp.asarray(h)), rounding, block=4)

    def weighted(error):
        return np.einsum("rc,cd,rd->", error, h, error)

    assert weighted(w - np.asarray(quantized)) < 0.7 * weighted(w - np.round(w * 2) / 2)


def test_inverse_cholesky_is_the_upper_factor_of_the_damped_inverse():
    _, h = problem(1, 10, seed=2)
    with jax.enable_x64(True):
        u = np.asarray(inverse_cholesky(jnp.asarray(h), damping=0.3))
    np.testing.assert_array_equal(np.tril(u, -1), 0)
    damped = h + 0.3 * np.mean(np.diag(h)) * np.eye(10)
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(10), atol=1e-9)


def test_inverse_cholesky_marks_an_indefinite_matrix_with_nan():
    assert np.isnan(inverse_cholesky(jnp.diag(jnp.array([1.0, -5.0])))).any()


def test_jit_vmap_and_eager_agree():
    w, h = problem(3, 8, seed=4, dtype=np.float32)
    u = inverse_cholesky(jnp.asarray(h))

    def run(w):
        return block_feedback(w, u, rounding, block=2)[1]

    eager = run(jnp.asarray(w))
    np.testing.assert_allclose(jax.jit(run)(w), eager, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(run)(jnp.stack([w, 2 * w]))[0], eager, atol=1e-6)


def test_gradient_of_an_unquantized_pass_is_the_identity():
    w, h = problem(2, 6, seed=6, dtype=np.float32)
    u = inverse_cholesky(jnp.asarray(h))

    def keep(target, u, i):
        return (), target

    gradient = jax.grad(lambda w: jnp.sum(block_feedback(w, u, keep, block=2)[1]))(jnp.asarray(w))
    np.testing.assert_allclose(gradient, np.ones_like(w), atol=1e-6)


def test_lowers_for_cpu_cuda_and_tpu():
    def run(w, h):
        return block_feedback(w, inverse_cholesky(h), rounding, block=4)[1]

    shapes = (jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32))
    exported = jax.export.export(jax.jit(run), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("columns, block", [(6, 4), (6, 0)])
def test_unfitting_shapes_are_refused(columns, block):
    with pytest.raises(ValueError, match="multiple of block"):
        block_feedback(jnp.zeros((2, columns)), jnp.eye(columns), rounding, block=block)
    with pytest.raises(ValueError, match="inverse_factor is"):
        block_feedback(jnp.zeros((2, 6)), jnp.eye(5), rounding, block=3)


def descent_reference(w, h, quantized, block):
    """One sweep of block coordinate descent in float64 from the full objective, row by row."""
    quantized = quantized.copy()
    for row in range(len(w)):
        for start in range(0, w.shape[1], block):
            here = slice(start, start + block)
            others = w[row] - quantized[row]
            others[here] = 0
            best = w[row, here] + np.linalg.solve(h[here, here], h[here] @ others)
            candidate = quantized[row].copy()
            candidate[here] = np.round(best * 2) / 2
            errors = [(w[row] - x) @ h @ (w[row] - x) for x in (candidate, quantized[row])]
            if errors[0] < errors[1]:
                quantized[row] = candidate
    return quantized


def row_errors(w, quantized, h):
    error = w - np.asarray(quantized)
    return np.einsum("rc,cd,rd->r", error, h, error)


def by_block(quantized, block):
    return quantized.reshape(len(quantized), -1, block).transpose(1, 0, 2)


@pytest.mark.parametrize("block", [1, 3])
def test_descent_equals_the_float64_loop(block):
    w, h = problem(6, 12, seed=8)
    start = np.round(w * 2) / 2
    with jax.enable_x64(True):
        codes, quantized = block_descent(
            w, jnp.asarray(h), by_block(start, block), start, rounding, block=block
        )
    np.testing.assert_allclose(quantized, descent_reference(w, h, start, block), atol=1e-12)
    np.testing.assert_array_equal(by_block(np.asarray(quantized), block), codes)
    assert row_errors(w, quantized, h).sum() < 0.8 * row_errors(w, start, h).sum()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), bad=st.booleans())
def test_descent_never_raises_the_error_of_a_row(seed, bad):
    """Neither from rounded weights nor from arbitrary ones, nor with a quantizer that returns nonsense."""
    w, h = problem(5, 12, seed=seed)
    start = np.random.default_rng(seed).integers(-3, 4, w.shape) / 2

    def nonsense(target, u, i):
        return (far := jnp.round(target * 3 + i)), far

    quantizer = nonsense if bad else rounding
    with jax.enable_x64(True):
        _, quantized = block_descent(w, jnp.asarray(h), by_block(start, 4), start, quantizer, block=4)
    assert np.all(row_errors(w, quantized, h) <= row_errors(w, start, h) * (1 + 1e-12))


def test_descent_leaves_what_is_optimal():
    _, h = problem(1, 12, seed=9)
    w = np.random.default_rng(9).integers(-4, 5, (3, 12)) / 2
    _, quantized = block_descent(w, jnp.asarray(h), by_block(w, 4), w, rounding, block=4)
    np.testing.assert_array_equal(quantized, w)


def test_descent_keeps_codes_of_any_structure_with_their_blocks():
    w, h = problem(4, 8, seed=10, dtype=np.float32)
    start = np.round(w)

    def tree_of_codes(target, u, i):
        quantized = jnp.round(target)
        return {"whole": quantized, "first": quantized[:, 0]}, quantized

    codes = {"whole": by_block(start, 2), "first": by_block(start, 2)[..., 0]}
    run = jax.jit(lambda w, h: block_descent(w, h, codes, jnp.asarray(start), tree_of_codes, block=2))
    found, quantized = run(w, h)
    np.testing.assert_array_equal(found["whole"], by_block(np.asarray(quantized), 2))
    np.testing.assert_array_equal(found["first"], found["whole"][..., 0])


def test_descent_lowers_for_cpu_cuda_and_tpu():
    def run(w, h):
        start = jnp.round(w)
        codes = start.reshape(8, 4, 4).transpose(1, 0, 2)
        return block_descent(w, h, codes, start, rounding, block=4)[1]

    shapes = (jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32))
    exported = jax.export.export(jax.jit(run), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("columns, block", [(6, 4), (6, 0)])
def test_descent_refuses_unfitting_shapes(columns, block):
    w = jnp.zeros((2, columns))
    with pytest.raises(ValueError, match="multiple of block"):
        block_descent(w, jnp.eye(columns), w, w, rounding, block=block)
    with pytest.raises(ValueError, match="hessian is"):
        block_descent(jnp.zeros((2, 6)), jnp.eye(5), w, w, rounding, block=3)


def test_prepared_parts_give_the_same_bytes():
    w, h = problem(3, 8, 5, np.float32)
    factor = inverse_cholesky(jnp.asarray(h), damping=0.01)
    _, quantized = block_feedback(jnp.asarray(w), factor, rounding, block=4)
    prepared = prepare_feedback(factor, block=4)
    np.testing.assert_array_equal(block_feedback(jnp.asarray(w), prepared, rounding, block=4)[1], quantized)
    codes = quantized.reshape(3, 2, 4).transpose(1, 0, 2)
    arguments = (codes, quantized, rounding)
    once = block_descent(jnp.asarray(w), jnp.asarray(h), *arguments, block=4)
    twice = block_descent(jnp.asarray(w), prepare_descent(jnp.asarray(h), block=4), *arguments, block=4)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    with pytest.raises(ValueError, match=r"inverse_factor is \(8, 4\)"):
        block_feedback(jnp.zeros((2, 4)), prepared, rounding, block=4)


def test_damping_adds_a_share_of_the_mean_diagonal():
    _, h = problem(1, 5, 0)
    np.testing.assert_allclose(
        damped(jnp.asarray(h, jnp.float32), 0.3), h + 0.3 * np.trace(h) / 5 * np.eye(5), rtol=1e-5
    )


def test_waiting_changes_no_bit_and_is_still_there_after_compilation():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    others = (jnp.arange(4, dtype=jnp.int8), {"a": jnp.full((2, 2), 1e30)})
    np.testing.assert_array_equal(jax.jit(wait_for)(x, others), x)
    # A compiler that dropped the unused operand would not let its NaN through.
    assert np.isnan(jax.jit(wait_for)(x, jnp.array([jnp.nan]))).all()
