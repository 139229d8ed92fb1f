"""Block error feedback: quantize a matrix block of columns by block of columns, passing each error on.

With the second moment H of the inputs and the upper Cholesky factor U of its inverse (H^-1 = U^T U), the
error E = W_B - W^_B of a block is compensated in the columns R to its right by W_R -= E U_BB^-1 U_BR. A block
of one column is GPTQ (arXiv:2210.17323); wider blocks are the block LDLQ of QuIP# (arXiv:2402.04396). The
quantizer itself is an argument, so that scalar and lattice codes share this loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

QuantizeBlock = Callable[[jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]


def block_feedback(
    weight: jax.Array, inverse_factor: jax.Array, quantize_block: QuantizeBlock, *, block: int
) -> tuple[Any, jax.Array]:
    """Quantizes `weight` from left to right with error feedback.

    Args:
      weight: float[R, C] matrix; C a multiple of `block`.
      inverse_factor: float[C, C] upper triangular U with H^-1 = U^T U (see `inverse_cholesky`).
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
    stripes, diagonal = _blocks(weight, inverse_factor, "inverse_factor", block)
    blocks = len(stripes)
    spread = jax.scipy.linalg.solve_triangular(diagonal, stripes)  # U_BB^-1 U_B, all blocks at once
    column = jnp.arange(columns)

    def step(current: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        i, u, propagate = inputs
        target = jax.lax.dynamic_slice_in_dim(current, i * block, block, 1)
        codes, quantized = quantize_block(target, u, i)
        to_the_right = jnp.where(column >= (i + 1) * block, propagate, 0)
        return current - (target - quantized) @ to_the_right, (codes, quantized)

    _, (codes, quantized) = jax.lax.scan(step, weight, (jnp.arange(blocks), diagonal, spread))
    return codes, quantized.transpose(1, 0, 2).reshape(rows, columns)


def block_descent(
    weight: jax.Array,
    hessian: jax.Array,
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
      hessian: float[C, C], symmetric positive definite.
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
    stripes, corners = _blocks(weight, hessian, "hessian", block)
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
    inputs = (jnp.arange(blocks), stripes, corners, jnp.linalg.inv(corners), codes, by_block)
    _, (codes, by_block) = jax.lax.scan(step, (weight - quantized) @ hessian, inputs)
    return codes, by_block.transpose(1, 0, 2).reshape(rows, columns)


def _blocks(weight: jax.Array, square: jax.Array, name: str, block: int) -> tuple[jax.Array, jax.Array]:
    """The rows of `square` block by block [C / block, block, C], and its diagonal blocks [C / block, block, block]."""
    columns = weight.shape[1]
    if block < 1 or columns % block:
        raise ValueError(f"weight has {columns} columns, not a multiple of block = {block}")
    if square.shape != (columns, columns):
        raise ValueError(f"{name} is {square.shape}, expected {(columns, columns)}")
    stripes = square.reshape(columns // block, block, columns)
    corners = jax.vmap(lambda stripe, i: jax.lax.dynamic_slice_in_dim(stripe, i * block, block, 1))(
        stripes, jnp.arange(len(stripes))
    )
    return stripes, corners


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
    damped = hessian + damping * jnp.mean(jnp.diagonal(hessian)) * jnp.eye(size, dtype=hessian.dtype)
    # With J the exchange matrix and J H J = L L^T: H^-1 = (J L^-T J)(J L^-1 J), and J L^-1 J is upper
    # triangular.
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(size, dtype=hessian.dtype), lower=True)
    return inverse[::-1, ::-1]
