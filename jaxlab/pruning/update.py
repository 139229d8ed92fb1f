"""What the rest of a matrix does when rows and columns of it are removed: the optimum of the quadratic model.

With Fisher F = G (x) A the optimal change for pruned rows r is dW = -G^-1[:,r] (G^-1[r,r])^-1 W[r,:] and for pruned
columns c dW = -W[:,c] (A^-1[c,c])^-1 A^-1[c,:]; for both together the optimum is one after the other, W <- P W Q.
Reference: arXiv:2312.17244, section 3.4 (correlated updates), equations of the structured case.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import wait_for
from jaxlab.pruning.inverse import Inverses
from jaxlab.pruning.masked_algebra import block, cholesky, product, solve_cholesky

_SMALLEST_SYSTEM = 64
_GROWTH = 3  # of the sizes of systems


def update(
    W: Float[Array, "rows columns"],
    row_mask: Bool[Array, " rows"] | None,
    column_mask: Bool[Array, " columns"] | None,
    inverses: Inverses | None,
    *,
    joint: Literal["exact", "sum"] = "exact",
    max_correlate: int = 0,
    add_update: bool = True,
    update_scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "rows columns"]:
    """Removes rows and columns of a matrix and moves the other weights to make up for it.

    Structures pruned earlier belong into the masks: they are kept at zero. Dead ones (zero on the diagonal of their
    inverse) are only zeroed.

    Args:
      W: weights.
      row_mask: True for pruned rows; None for none (saves the factorisation).
      column_mask: True for pruned columns; None for none.
      inverses: damped inverses; None leaves the other weights as they are, and a None in it is the identity.
      joint: 'exact' updates for the columns what the rows' update left, which is the optimum; 'sum' adds the two
        updates of the original weights, as the authors' code does.
      max_correlate: 0 lets all pruned rows (and all pruned columns) act together; m > 0 splits them into groups of m
        in index order and updates group by group. 1 is the paper's variant without correlations.
      add_update: each group starts from what the groups before it left; False: from the original weights.
      update_scale: multiplies the change.

    Returns:
      New weights, exactly 0 where pruned.

    Raises:
      InputError: an argument does not fit.
    """
    rows, columns = W.shape
    for name, mask, size in (("row_mask", row_mask, rows), ("column_mask", column_mask, columns)):
        if mask is not None and mask.shape != (size,):
            raise InputError(f"{name} has shape {mask.shape}; W {W.shape} needs {(size,)}")
    if joint not in ("exact", "sum"):
        raise InputError(f"joint is {joint!r}; it must be 'exact' or 'sum'")
    if max_correlate < 0:
        raise InputError(f"max_correlate is {max_correlate}; it must be 0 (all together) or a group size")
    change = jnp.zeros_like(W)
    if inverses is not None and row_mask is not None:
        change += _row_change(W, row_mask, inverses.G, max_correlate, add_update)
    if inverses is not None and column_mask is not None:
        start = W + change if joint == "exact" else wait_for(W, change)
        change += _row_change(start.T, column_mask, inverses.A, max_correlate, add_update).T
    pruned = jnp.zeros(W.shape, bool)
    if row_mask is not None:
        pruned |= row_mask[:, None]
    if column_mask is not None:
        pruned |= column_mask
    return jnp.where(pruned, 0, W + update_scale * change)


def _row_change(
    W: Float[Array, "rows columns"],
    pruned: Bool[Array, " rows"],
    inverse: Float[Array, "rows rows"] | None,
    max_correlate: int,
    add_update: bool,
) -> Float[Array, "rows columns"]:
    """-G^-1[:,r] Z, where Z solves S Z = W[r,:], S = G^-1[r,r], or that system with groups cut apart.

    The system's size is the smallest of a few that the pruned rows fit in: shapes are static, and most layers lose
    far fewer rows than the one that loses most.
    """
    if inverse is None:
        return jnp.where(pruned[:, None], -W, 0)
    solved = pruned & (jnp.diagonal(inverse) != 0)
    sizes = [_SMALLEST_SYSTEM]
    while sizes[-1] < len(pruned):
        sizes.append(_GROWTH * sizes[-1])
    sizes[-1] = len(pruned)
    branches = [functools.partial(_change_of, size, max_correlate, add_update) for size in sizes]
    fitting = jnp.searchsorted(jnp.array(sizes), jnp.sum(solved))
    return jax.lax.switch(fitting, branches, W, solved, inverse)


def _change_of(
    size: int,
    max_correlate: int,
    add_update: bool,
    W: Float[Array, "rows columns"],
    solved: Bool[Array, " rows"],
    inverse: Float[Array, "rows rows"],
) -> Float[Array, "rows columns"]:
    """`_row_change` where at most `size` rows are pruned.

    Updating group by group, each from the original weights, solves with S's diagonal blocks only; each from what the
    ones before left, with its diagonal blocks and what is below them. (One sweep of block Jacobi and of block
    Gauss-Seidel.)
    """
    rows = len(solved)
    at = jnp.nonzero(solved, size=size, fill_value=rows)[0]
    picked = inverse.at[:, at].get(mode="fill", fill_value=0)
    right_sides = W.at[at].get(mode="fill", fill_value=0)
    system = block(picked.at[at].get(mode="fill", fill_value=0), at < rows)
    if max_correlate == 0:
        return -product(picked, solve_cholesky(cholesky(system), right_sides))

    group = jnp.arange(size) // max_correlate
    lower = cholesky(jnp.where(group[:, None] == group, system, 0))
    half = _solve_lower(lower, right_sides)
    if add_update:
        # With the diagonal blocks B B^T and N below them, B B^T + N = B (I + B^-1 N B^-T) B^T: triangular systems.
        below = jnp.where(group[:, None] > group, system, 0)
        below = _solve_lower(lower, _solve_lower(lower, below).T).T
        half = jax.scipy.linalg.solve_triangular(below, half, lower=True, unit_diagonal=True)
    return -product(picked, jax.scipy.linalg.solve_triangular(lower, half, lower=True, trans=1))


def _solve_lower(lower: Float[Array, "n n"], right: Float[Array, "n columns"]) -> Float[Array, "n columns"]:
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)
