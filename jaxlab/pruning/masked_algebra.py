"""Dense linear algebra on the part of a matrix that a mask picks out, with static shapes.

Products ask for full float32 precision: the default of GPUs (TF32) and TPUs (bfloat16) is too coarse for updates that
subtract nearly equal numbers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def block(matrix: Float[Array, "n n"], inside: Bool[Array, " n"]) -> Float[Array, "n n"]:
    """The block of `matrix` on the entries `inside`; 1 on the diagonal of the others, 0 beside it."""
    return jnp.where(inside[:, None] & inside, matrix, jnp.diag(~inside).astype(matrix.dtype))


def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Lower Cholesky factor, read from the lower triangle; NaN where the matrix is not positive definite."""
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False)


def solve_cholesky(
    lower: Float[Array, "n n"], right_sides: Float[Array, "n columns"]
) -> Float[Array, "n columns"]:
    """(L L^T)^-1 B."""
    return jax.scipy.linalg.cho_solve((lower, True), right_sides)


def product(left: Float[Array, "rows n"], right: Float[Array, "n columns"]) -> Float[Array, "rows columns"]:
    """Matrix product in full precision on every platform."""
    return jnp.matmul(left, right, precision="highest")
