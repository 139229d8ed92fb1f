"""Block error feedback: quantize a matrix block of columns by block of columns, passing each error on.

With the second moment H of the inputs and the upper Cholesky factor U of its inverse (H^-1 = U^T U), the
error E = W_B - W^_B of a block is compensated in the columns R to its right by W_R -= E U_BB^-1 U_BR. A block
of one column is GPTQ (arXiv:2210.17323); wider blocks are the block LDLQ of QuIP# (arXiv:2402.04396). The
quantizer itself is an argument, so that scalar and lattice codes share this loop.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

QuantizeBlock = Callable[[jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]


class Feedback(NamedTuple):
    """What `block_feedback` needs of a factor U; prepared once where many matrices share it."""

    corners: jax.Array
    """U_BB of each block: float[C / block, block, block]."""
    spread: jax.Array
    """U_BB^-1 U_B: float[C / block, block, C]."""


class Descent(NamedTuple):
    """What `block_descent` needs of a Hessian H; prepared once where many matrices share it."""

    hessian: jax.Array
    corners: jax.Array
    """H_BB of each block: float[C / block, block, block]."""
    inverses: jax.Array
    """H_BB^-1."""


def prepare_feedback(inverse_factor: jax.Array, *, block: int) -> Feedback:
    """The parts of an upper factor U, H^-1 = U^T U (see `inverse_cholesky`), cut into blocks.

    Raises:
      ValueError: `inverse_factor` is not square, or `block` does not divide its size.
    """
    stripes, corners = _blocks(inverse_factor, "inverse_factor", block)
    return Feedback(corners, jax.scipy.linalg.solve_triangular(corners, stripes))


def prepare_descent(hessian: jax.Array, *, block: int) -> Descent:
    """A symmetric positive definite H cut into blocks.

    Raises:
      ValueError: `hessian` is not square, or `block` does not divide its size.
    """
    _, corners = _blocks(hessian, "hessian", block)
    return Descent(hessian, corners, jnp.linalg.inv(corners))


def block_feedback(
    weight: jax.Array, inverse_factor: jax.Array | Feedback, quantize_block: QuantizeBlock, *, block: int
) -> tuple[Any, jax.Array]:
    """Quantizes `weight` from left to right with error feedback.

    Args:
      weight: float[R, C] matrix; C a multiple of `block`.
      inverse_factor: float[C, C] upper triangular U with H^-1 = U^T U (see `inverse_cholesky`), or what
        `prepare_feedback` made of it.
      quantize_block: `(w [R, block], u [block, block], i) -> (codes, w_hat [R, block])`, the quantizer of one
        block;
        `w` are the weights with all earlier errors passed on, `u` is U_BB and `i` the block's number.
      block: columns per block, at least 1.

    Returns:
      The codes with the leaves' axis 0 = block number (C / block), and the quantized matrix float[R, C].

    Raises:
      ValueError: the shapes do not fit.
    """
    rows, columns = weight.shape
    if isinstance(inverse_factor, Feedback):
        feedback = inverse_factor
        _check(weight, (len(feedback.spread) * feedback.spread.shape[1], columns), "inverse_factor", block)
    else:
        _check(weight, inverse_factor.shape, "inverse_factor", block)
        feedback = prepare_feedback(inverse_factor, block=block)
    column = jnp.arange(columns)

    def step(current: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        i, u, propagate = inputs
        target = jax.lax.dynamic_slice_in_dim(current, i * block, block, 1)
        codes, quantized = quantize_block(target, u, i)
        to_the_right = jnp.where(column >= (i + 1) * block, propagate, 0)
        return current - (target - quantized) @ to_the_right, (codes, quantized)

    _, (codes, quantized) = jax.lax.scan(step, weight, (jnp.arange(columns // block), *feedback))
    return codes, quantized.transpose(1, 0, 2).reshape(rows, columns)


def block_descent(
    weight: jax.Array,
    hessian: jax.Array | Descent,
    codes: Any,
    quantized: jax.Array,
    quantize_block: QuantizeBlock,
    *,
    block: int,
) -> tuple[Any, jax.Array]:
    """One sweep of coordinate descent over the blocks of a quantized matrix.

    Each block in turn is quantized anew towards what is best for it given all other blocks, and kept where that
    lowers (w - w_hat) H (w - w_hat)^T of its row, which therefore never rises. Reference: QuIP (arXiv:2307.13304),
    supplement, greedy updates.

    Args:
      weight: float[R, C].
      hessian: float[C, C], symmetric positive definite, or what `prepare_descent` made of it.
      codes: as `block_feedback` returns them: leaves [C / block, R, ...].
      quantized: float[R, C], what the codes stand for.
      quantize_block: see `block_feedback`; `u` is the block's own part of the Hessian here.
      block: columns per block.

    Returns:
      Codes and quantized matrix after the sweep.

    Raises:
      ValueError: the shapes do not fit.
    """
    rows, columns = weight.shape
    shape = hessian.hessian.shape if isinstance(hessian, Descent) else hessian.shape
    _check(weight, shape, "hessian", block)
    descent = hessian if isinstance(hessian, Descent) else prepare_descent(hessian, block=block)
    stripes = descent.hessian.reshape(-1, block, columns)
    blocks = len(stripes)

    def step(pull: jax.Array, inputs: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        i, stripe, corner, inverse, old_codes, old = inputs
        away = jax.lax.dynamic_slice_in_dim(pull, i * block, block, 1) @ inverse
        new_codes, new = quantize_block(old + away, corner, i)
        left = old + away - new
        better = jnp.sum((left @ corner) * left, axis=1) < jnp.sum((away @ corner) * away, axis=1)

        def keep_better(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        kept = keep_better(new, old)
        return pull - (kept - old) @ stripe, (jax.tree.map(keep_better, new_codes, old_codes), kept)

    by_block = quantized.reshape(rows, blocks, block).transpose(1, 0, 2)
    inputs = (jnp.arange(blocks), stripes, descent.corners, descent.inverses, codes, by_block)
    _, (codes, by_block) = jax.lax.scan(step, (weight - quantized) @ descent.hessian, inputs)
    return codes, by_block.transpose(1, 0, 2).reshape(rows, columns)


def _blocks(square: jax.Array, name: str, block: int) -> tuple[jax.Array, jax.Array]:
    """The rows of `square` block by block [C / block, block, C], and its diagonal blocks [C / block, block, block]."""
    columns = square.shape[0]
    _check(square, square.shape, name, block)
    stripes = square.reshape(columns // block, block, columns)
    corners = jax.vmap(lambda stripe, i: jax.lax.dynamic_slice_in_dim(stripe, i * block, block, 1))(
        stripes, jnp.arange(len(stripes))
    )
    return stripes, corners


def _check(weight: jax.Array, shape: tuple[int, ...], name: str, block: int) -> None:
    """Raises ValueError where blocks or a square matrix of this shape do not fit the weights."""
    columns = weight.shape[1]
    if block < 1 or columns % block:
        raise ValueError(f"weight has {columns} columns, not a multiple of block = {block}")
    if shape != (columns, columns):
        raise ValueError(f"{name} is {shape}, expected {(columns, columns)}")


def damped(hessian: jax.Array, damping: float | jax.Array) -> jax.Array:
    """H + damping * mean(diag H) * I of float[C, C]."""
    return hessian + damping * jnp.mean(jnp.diagonal(hessian)) * jnp.eye(
        hessian.shape[0], dtype=hessian.dtype
    )


def wait_for(x: jax.Array, others: Any) -> jax.Array:
    """x, but not before the arrays `others` are there.

    XLA's CPU backend runs independent steps of a program at the same time, and its triangular solve waits, in a thread
    of the pool, for others of the same pool: two of them at once can hang on two cores (seen with jaxlib 0.10.2).
    A barrier does not help, since it is taken out before the steps are scheduled.

    Args:
      x: floating point.
      others: pytree of finite arrays of at least one number.
    """
    for other in jax.tree.leaves(others):
        x = x + 0 * other.reshape(-1)[0].astype(x.dtype)
    return x


def inverse_cholesky(hessian: jax.Array, *, damping: float = 0.01) -> jax.Array:
    """Upper triangular U with (H + damping * mean(diag H) * I)^-1 = U^T U.

    NaN where the damped matrix is not positive definite; callers outside jit check for it.

    Args:
      hessian: float[C, C], symmetric positive semi-definite.
      damping: share of the mean diagonal that is added to the diagonal, >= 0.

    Returns:
      float[C, C], upper triangular.
    """
    size = hessian.shape[-1]
    # With J the exchange matrix and J H J = L L^T: H^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper
    # triangular.
    lower = jnp.linalg.cholesky(damped(hessian, damping)[::-1, ::-1])
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(size, dtype=hessian.dtype), lower=True)
    return inverse[::-1, ::-1]
