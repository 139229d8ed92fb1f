"""What removing a weight, a row or a column costs, in the quadratic model of the loss with Fisher F = G (x) A.

With inverses the cost assumes that all other weights are then moved to their optimum (optimal brain surgeon), without
that they stay (optimal brain damage). Functions are for one matrix, rows = outputs and columns = inputs; `jax.vmap`
takes them over layers. A factor is a matrix, or a vector (its diagonal), or None (the identity).

Reference: arXiv:2312.17244, section 3.2 and table 1 of methods; optimal brain surgeon: Hassibi & Stork, 1992.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.pruning.inverse import Inverses
from jaxlab.pruning.masked_algebra import product

_SPLIT = 512  # smaller symmetric factors are multiplied whole

Structure = Literal["rowcol", "rows", "cols", "element"]
Method = Literal["magnitude", "l-obd", "k-obd", "sparsegpt", "surgeon"]
Factor = jax.Array | None
"""float[n, n], or float[n] for a diagonal one, or None for the identity."""


class Costs(NamedTuple):
    """Removal costs of the structures asked for; None for the others."""

    rows: Float[Array, " rows"] | None = None
    columns: Float[Array, " columns"] | None = None
    elements: Float[Array, "rows columns"] | None = None


class CostModel(NamedTuple):
    """The factors and inverses that a method's costs and updates use; `inverses=None`: nothing is updated."""

    A: Factor
    G: Factor
    inverses: Inverses | None


class MethodNeeds(NamedTuple):
    """Which curvature a method uses: of each factor nothing, the diagonal or all, and whether it updates weights."""

    A: Literal["none", "diagonal", "full"]
    G: Literal["none", "full"]
    updates: bool


METHODS: dict[Method, MethodNeeds] = {
    "magnitude": MethodNeeds("none", "none", updates=False),
    "l-obd": MethodNeeds("diagonal", "none", updates=False),
    "k-obd": MethodNeeds("full", "full", updates=False),
    "sparsegpt": MethodNeeds("full", "none", updates=True),
    "surgeon": MethodNeeds("full", "full", updates=True),
}
"""Magnitude: no curvature. L-OBD and SparseGPT: the layer's own output error. K-OBD and Surgeon: the model's loss."""


def costs(
    W: Float[Array, "rows columns"],
    A: Factor,
    G: Factor,
    inverses: Inverses | None,
    structure: Structure,
) -> Costs:
    """Removal costs of all structures of one kind, each as if it were the only one removed.

    Structures already pruned (weights all zero) and dead ones (zero on the inverse's diagonal) cost 0.

    Args:
      W: weights.
      A: input factor, undamped: matrix, diagonal, or None for the identity.
      G: output-gradient factor, likewise.
      inverses: damped inverses for costs with an optimal update, None for costs without.
      structure: 'rowcol' (rows and columns), 'rows', 'cols' or 'element'.

    Returns:
      Costs, >= 0, in the unit of the loss.

    Raises:
      InputError: `structure` is none of these.
    """
    if structure not in get_args(Structure):
        raise InputError(f"structure is {structure!r}; it must be one of {', '.join(get_args(Structure))}")
    return Costs(
        rows=row_costs(W, A, G, inverses) if structure in ("rowcol", "rows") else None,
        columns=column_costs(W, A, G, inverses) if structure in ("rowcol", "cols") else None,
        elements=element_costs(W, A, G, inverses) if structure == "element" else None,
    )


def row_costs(
    W: Float[Array, "rows columns"], A: Factor, G: Factor, inverses: Inverses | None = None
) -> Float[Array, " rows"]:
    """1/2 (w_i A w_i^T) / (G^-1)_ii of each row i; without inverses 1/2 (w_i A w_i^T) G_ii.

    Args:
      W: weights.
      A: input factor, undamped: matrix, diagonal, or None for the identity.
      G: output-gradient factor, likewise.
      inverses: damped inverses for costs with an optimal update, None for costs without.

    Returns:
      Costs, >= 0; rounding below zero, and what an indefinite factor makes of it, is cut off.
    """
    energy = _quadratic_forms(W, A)
    return jnp.maximum(energy, 0) * _curvature(G, inverses, "G") / 2


def column_costs(
    W: Float[Array, "rows columns"], A: Factor, G: Factor, inverses: Inverses | None = None
) -> Float[Array, " columns"]:
    """1/2 (w_j^T G w_j) / (A^-1)_jj of each column j; without inverses 1/2 (w_j^T G w_j) A_jj.

    Arguments as for `row_costs`.
    """
    energy = _quadratic_forms(W.T, G)
    return jnp.maximum(energy, 0) * _curvature(A, inverses, "A") / 2


def element_costs(
    W: Float[Array, "rows columns"], A: Factor, G: Factor, inverses: Inverses | None = None
) -> Float[Array, "rows columns"]:
    """1/2 W_ij^2 / ((G^-1)_ii (A^-1)_jj) of each weight; without inverses 1/2 W_ij^2 G_ii A_jj.

    Arguments as for `row_costs`.
    """
    of_rows, of_columns = _curvature(G, inverses, "G"), _curvature(A, inverses, "A")
    return W**2 * jnp.reshape(of_rows, (-1, 1)) * of_columns / 2


def quadratic_loss(dW: Float[Array, "rows columns"], A: Factor, G: Factor) -> Float[Array, ""]:
    """1/2 vec(dW)^T (G (x) A) vec(dW): what the change dW of a matrix costs in the quadratic model."""
    return jnp.sum(_times(dW.T, G).T * _times(dW, A)) / 2


def cost_model(
    method: Method,
    A: Float[Array, "columns columns"] | None = None,
    G: Float[Array, "rows rows"] | None = None,
    inverses: Inverses | None = None,
) -> CostModel:
    """What of the curvature a method looks at; `METHODS` says beforehand what has to be there.

    Works on stacked factors too (leading axes are kept).

    Args:
      method: 'magnitude', 'l-obd', 'k-obd', 'sparsegpt' or 'surgeon'.
      A: input factor, undamped; not needed for 'magnitude'.
      G: output-gradient factor, undamped; needed for 'k-obd' and 'surgeon'.
      inverses: damped inverses of A ('sparsegpt') or of both ('surgeon').

    Returns:
      Arguments for `costs` and, if there are inverses, for the updates.

    Raises:
      InputError: unknown method, or something that it needs is None.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    needs = METHODS[method]
    given = {"A": A, "G": G, "inverses": inverses}
    given |= {"inverses.A": inverses.A, "inverses.G": inverses.G} if inverses is not None else {}
    needed = {"A": needs.A != "none", "G": needs.G != "none", "inverses": needs.updates}
    needed |= {"inverses.A": needs.updates, "inverses.G": needs.updates and needs.G != "none"}
    for name, value in given.items():
        if needed[name] and value is None:
            raise InputError(f"{name} is None; the method {method!r} needs it")
    if needs.A == "diagonal":
        assert A is not None
        A = jnp.diagonal(A, axis1=-2, axis2=-1)
    kept_inverses = None
    if needs.updates:
        assert inverses is not None
        kept_inverses = Inverses(inverses.A, inverses.G if needs.G != "none" else None)
    return CostModel(A if needs.A != "none" else None, G if needs.G != "none" else None, kept_inverses)


def n_of_m(
    scores: Float[Array, "rows columns"], n: int, m: int
) -> tuple[Bool[Array, "rows columns"], Float[Array, "rows groups"]]:
    """The n cheapest of each m consecutive inputs of a row, and what they cost together.

    Among equal scores the one with the lower index comes first.

    Args:
      scores: costs or other scores, lowest first to go.
      n: how many of a group are pruned, 1 to m.
      m: group size, a divisor of the number of columns.

    Returns:
      Mask of the n cheapest of each group, and the group's sum of them [rows, columns / m].

    Raises:
      InputError: `n` or `m` does not fit.
    """
    rows, columns = scores.shape
    if not 0 < n <= m:
        raise InputError(f"n is {n}; it must be from 1 to m = {m}")
    if columns % m:
        raise InputError(f"the matrix has {columns} inputs, which m = {m} does not divide; choose a divisor")
    groups = scores.reshape(rows, columns // m, m)
    mine, other = groups[..., :, None], groups[..., None, :]
    before = (other < mine) | ((other == mine) & jnp.tri(m, k=-1, dtype=bool))
    cheapest = before.sum(axis=-1) < n
    return cheapest.reshape(rows, columns), jnp.sum(groups, axis=-1, where=cheapest)


def wanda_scores(W: Float[Array, "rows columns"], A: Factor) -> Float[Array, "rows columns"]:
    """|W_ij| sqrt(A_jj), to be compared within a row. Reference: Wanda, arXiv:2306.11695, equation 1."""
    return jnp.abs(W) * jnp.sqrt(jnp.maximum(_diagonal(A), 0))


def lowest(scores: Float[Array, "rows columns"], share: float) -> Bool[Array, "rows columns"]:
    """The int(share * columns) lowest scores of every row; ties go to the lower index.

    With `wanda_scores` these are the weights that Wanda prunes; for n:m use `n_of_m`.

    Args:
      scores: costs or other scores, lowest first to go.
      share: of a row, in [0, 1].

    Raises:
      InputError: `share` is out of range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}; it must be in [0, 1]")
    order = jnp.argsort(scores, axis=1, stable=True)[:, : int(share * scores.shape[1] + 1e-9)]
    return jnp.put_along_axis(jnp.zeros(scores.shape, bool), order, True, axis=1, inplace=False)


def check_finite(costs: Mapping[str, Float[Array, "layers ..."]]) -> None:
    """Raises where a cost is not finite; for drivers, not under `jit`.

    Args:
      costs: name of the matrix -> costs with the layers as axis 0.

    Raises:
      InputError: naming the matrix and its first such layer.
    """
    for name, values in costs.items():
        finite = np.asarray(jnp.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        for layer in np.flatnonzero(~finite):
            raise InputError(
                f"a removal cost of {name}, layer {layer}, is not finite: its weights or factors overflow; "
                "accumulate the factors in float32 and look at the layer's weights"
            )


def _times(W: jax.Array, factor: Factor) -> jax.Array:
    """W F on the columns of W."""
    if factor is None:
        return W
    return W * factor if factor.ndim == 1 else product(W, factor)


def _quadratic_forms(W: Float[Array, "rows n"], factor: Factor) -> Float[Array, " rows"]:
    """w_i F w_i^T of each row of W, for a symmetric F: what is above its diagonal blocks is not multiplied."""
    if factor is None or factor.ndim == 1 or len(factor) < _SPLIT:
        return jnp.sum(W * _times(W, factor), axis=1)
    half = len(factor) // 2
    first, last = W[:, :half], W[:, half:]
    across = jnp.sum(first * product(last, factor[half:, :half]), axis=1)
    of_first, of_last = (
        _quadratic_forms(first, factor[:half, :half]),
        _quadratic_forms(last, factor[half:, half:]),
    )
    return of_first + of_last + 2 * across


def _diagonal(factor: Factor) -> jax.Array | float:
    if factor is None:
        return 1.0
    return factor if factor.ndim == 1 else jnp.diagonal(factor)


def _curvature(factor: Factor, inverses: Inverses | None, letter: Literal["A", "G"]) -> jax.Array | float:
    """Curvature left for each entry: 1 / diag(F^-1) (0 for dead ones), without inverses diag(F)."""
    if inverses is None:
        return _diagonal(factor)
    inverse = getattr(inverses, letter)
    if inverse is None:
        return 1.0
    diagonal = jnp.diagonal(inverse)
    # The inner `where` keeps the gradient of the unused branch finite. `!= 0`, so that a NaN stays one.
    return jnp.where(diagonal != 0, 1 / jnp.where(diagonal != 0, diagonal, 1), 0)
