"""The Kronecker product, or the sum of two, nearest to a matrix's Fisher information in Frobenius norm.

Rearranged, the Fisher information is R = E[vec(g g^T) vec(a a^T)^T] over tokens with inputs a and gradients g, and
G (x) A is vec(G) vec(A)^T: the nearest one is R's first singular pair, the nearest sum R's first two. Power iteration
finds them with one pass over the text a half step, without R itself. Unlike `means` of `jaxlab.pruning.factors`, which
takes inputs and gradients as independent (IAD), this makes A each matrix's own. Reference: arXiv:2312.17244,
section 3.1 and appendix on Kronecker products; rearrangement: Van Loan & Pitsianis, 1993.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.models.transformer import SITE_OF
from jaxlab.pruning.factors import TokenTaps
from jaxlab.pruning.masked_algebra import product

Stack = dict[str, Float[Array, "L n n"]]
"""By matrix: one symmetric matrix a layer."""


class KroneckerSum(NamedTuple):
    """By matrix, F is about the sum over the terms k of G[k] (x) A[k], in the unit of `means`; |A[k]| = |G[k]|.

    The first term is positive semi-definite; a second one corrects it and is indefinite.
    """

    A: dict[str, Float[Array, "terms L columns columns"]]
    G: dict[str, Float[Array, "terms L rows rows"]]


def nearest_kronecker(
    taps: Callable[[], Iterable[TokenTaps]],
    *,
    half_steps: int = 6,
    terms: Literal[1, 2] = 1,
    start: KroneckerSum | None = None,
) -> KroneckerSum:
    """Power iteration on the rearranged Fisher information of every matrix in every layer.

    Without `start` the first half step weighs all tokens alike, which makes G that of IAD; the next one finds the best A
    for it. So from two half steps on the result is never farther from the Fisher information than IAD, and no further
    pair of half steps makes it worse. A second term is found the same way in what the first leaves.

    Args:
      taps: called once a half step and term, gives the same tokens every time, in batches (see `token_taps`).
      half_steps: passes over the tokens, even and >= 2; 6 are enough from the result of an earlier shot.
      terms: Kronecker products in the sum, 1 or 2.
      start: where to begin, such as the result before the last pruning step; terms that it lacks begin as without it.

    Returns:
      The sum; zeros where inputs or gradients of a matrix are.

    Raises:
      InputError: `half_steps` or `terms` is out of range, `start` is of other matrices, or there are no tokens.
    """
    if half_steps < 2 or half_steps % 2:
        raise InputError(
            f"half_steps is {half_steps}; it must be even and at least 2, since the first finds only G and the second "
            "A (for factors without iteration use IAD: `curvature` and `means`)"
        )
    if terms not in (1, 2):
        raise InputError(f"terms is {terms}; it must be 1 or 2")
    found: list[_Pair] = []
    for term in range(terms):
        V_A = None
        if start is not None and term < len(next(iter(start.A.values()))):
            V_A = {name: A[term] for name, A in start.A.items()}
        for half in range(0, half_steps, 2):
            moments = _pass(taps(), V_A, [(pair.A, pair.G) for pair in found], "G", uniform=half == 0)
            V_G = {name: _direction(moment)[0] for name, moment in moments.items()}
            moments = _pass(taps(), V_G, [(pair.G, pair.A) for pair in found], "A")
            V_A = {name: _direction(moment)[0] for name, moment in moments.items()}
        found.append(_pair(moments, V_G))
    A, G = ({name: jnp.stack([pair[i][name] for pair in found]) for name in found[0].A} for i in range(2))
    return KroneckerSum(A, G)


class _Pair(NamedTuple):
    """One term."""

    A: Stack
    G: Stack


def _pass(
    batches: Iterable[TokenTaps],
    V: Stack | None,
    found: list[tuple[Stack, Stack]],
    side: Literal["A", "G"],
    *,
    uniform: bool = False,
) -> Stack:
    """One half step: E[(b^T V b) c c^T] less what the terms `found` have of it, c the vectors of `side`, b the others.

    Args:
      batches: tokens.
      V: by matrix; None is zeros.
      found: earlier terms, first the factor on the side of b.
      side: "A" for c = inputs, "G" for c = gradients.
      uniform: weigh all tokens alike where V is zero.
    """
    total: Stack | None = None
    tokens = 0
    for taps in batches:
        tokens += next(iter(taps.gradients.values())).shape[-1]
        total = _add(total, taps, _checked(V, taps), side=side, uniform=uniform)
    if total is None or not tokens:
        raise InputError("taps gave no tokens; it must give all of them whenever it is called")
    moments = {name: moment / tokens for name, moment in total.items()}
    for of_V, of_side in found if V is not None else []:
        moments = {name: moments[name] - _inner(of_V[name], V[name]) * of_side[name] for name in moments}
    return moments
