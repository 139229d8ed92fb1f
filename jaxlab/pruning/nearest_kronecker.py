"""The Kronecker product, or the sum of two, nearest to a matrix's Fisher information in Frobenius norm.

Rearranged, the Fisher information is R = E[vec(g g^T) vec(a a^T)^T] over tokens with inputs a and gradients g, and
G (x) A is vec(G) vec(A)^T: the nearest one is R's first singular pair, the nearest sum R's first two. Power iteration
finds them with one pass over the text a half step, without R itself. Unlike `means` of `jaxlab.pruning.factors`, which
takes inputs and gradients as independent (IAD), this makes A each matrix's own. Reference: arXiv:2312.17244,
section 3.1 and appendix on Kronecker products; rearrangement: Van Loan & Pitsianis, 1993.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import SITE_OF
from jaxlab.pruning.factors import Factors, Products, TokenTaps, batches, token_taps
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

    Without `start` the first half step weighs all tokens alike, which makes G that of IAD; the next one finds the
    best A for it. So from two half steps on the result is never farther from the Fisher information than IAD, and no
    further pair of half steps makes it worse. A second term is found the same way in what the first leaves.

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
    found: list[_Term] = []
    for term in range(terms):
        first = None
        if start is not None and term < len(next(iter(start.A.values()))):
            first = {name: _directions(A[term])[0] for name, A in start.A.items()}
        V_G, _ = _half_step(taps(), first, found, "G", uniform=True)
        V_A, sigma = _half_step(taps(), V_G, found, "A")
        for _ in range(half_steps // 2 - 1):
            V_G, _ = _half_step(taps(), V_A, found, "G")
            V_A, sigma = _half_step(taps(), V_G, found, "A")
        found.append(_term(V_A, V_G, sigma))
    A, G = ({name: jnp.stack([term[i][name] for term in found]) for name in V_G} for i in range(2))
    return KroneckerSum(A, G)


def nearest_factors(
    params: dict[str, Any],
    cfg: ModelConfig,
    windows: Int[Array, "windows context"],
    *,
    half_steps: int = 6,
    products: Products = "float32",
    progress: Callable[[int], None] = lambda half_steps: None,
) -> Factors:
    """Factors as `curvature` returns them, but those of the nearest Kronecker product: A is each matrix's own.

    Labels are the text's own. Only one term is found: costs and updates are those of a single product.

    Args:
        params: the model, layers stacked.
        cfg: static.
        windows: text; all of one length. They are gone through once for each half step.
        half_steps: see `nearest_kronecker`.
        products: see `accumulate`.
        progress: called with the number of half steps done.

    Raises:
        InputError: see `nearest_kronecker` and `curvature`.
    """
    losses: list[Array] = []
    passes = 0

    def taps() -> Iterator[TokenTaps]:
        nonlocal passes
        losses.clear()
        for part, _ in batches(windows):
            found = token_taps(params, cfg, part, products=products)
            losses.append(found.losses)
            yield found
        passes += 1
        progress(passes)

    found = nearest_kronecker(taps, half_steps=half_steps)
    A, G = ({name: terms[0] for name, terms in of.items()} for of in found)
    scored = jnp.concatenate(losses)
    return Factors(A, G, jnp.ones(()), jnp.sum(scored), jnp.float32(scored.size))


class _Term(NamedTuple):
    A: Stack
    G: Stack


def _half_step(
    batches: Iterable[TokenTaps],
    V: Stack | None,
    found: list[_Term],
    side: Literal["A", "G"],
    *,
    uniform: bool = False,
) -> tuple[Stack, dict[str, Float[Array, " L"]]]:
    """Directions and norms of E[(b^T V b) c c^T] less what the terms `found` have of it.

    Args:
      batches: all tokens.
      V: by matrix, on the side of b; None is zeros.
      found: earlier terms.
      side: "A": c are the inputs and b the gradients; "G": the other way around.
      uniform: weigh all tokens alike where V is zero.
    """
    total: Stack | None = None
    tokens = 0
    for taps in batches:
        tokens += taps.losses.shape[0] * (taps.losses.shape[1] + 1)
        moments = _moments(taps, V, side=side, uniform=uniform)
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
    if total is None or not tokens:
        raise InputError("taps gave no tokens; every call must give all of them")
    directions, norms = {}, {}
    for name, moment in total.items():
        left = moment / tokens
        if V is not None:
            for term in found:
                of_b, of_c = (term.G[name], term.A[name]) if side == "A" else (term.A[name], term.G[name])
                left -= jnp.sum(of_b * V[name], axis=(1, 2), keepdims=True) * of_c
        directions[name], norms[name] = _directions(left)
    return directions, norms


@functools.partial(jax.jit, static_argnames=("side", "uniform"))
def _moments(taps: TokenTaps, V: Stack | None, *, side: Literal["A", "G"], uniform: bool) -> Stack:
    """Sum over tokens of (b^T V b) c c^T, in the unit of the gradients of a sequence's mean loss."""
    scale = taps.losses.shape[1] ** -2
    found = {}
    for name, gradients in taps.gradients.items():
        inputs = taps.inputs[SITE_OF[name]]
        b, c = (gradients, inputs) if side == "A" else (inputs, gradients)
        dtype = jnp.promote_types(jnp.promote_types(b.dtype, c.dtype), jnp.float32)
        shape = (*b.shape[:2], b.shape[1])
        V_b = jnp.zeros(shape, dtype) if V is None else V.get(name)
        if V_b is None or V_b.shape != shape:
            has = "nothing" if V_b is None else V_b.shape
            raise InputError(f"start has {has} for the inputs of {name}; these tokens need {shape}")

        def of_layer(layer: tuple[Array, Array, Array], dtype: jnp.dtype = dtype) -> Array:
            V_b, b, c = layer[0], layer[1].astype(dtype), layer[2].astype(dtype)
            weights = jnp.sum(b * product(V_b, b), axis=0)
            if uniform:
                weights = jnp.where(jnp.any(V_b != 0), weights, 1)
            return scale * product(c * weights, c.T)

        found[name] = jax.lax.map(of_layer, (V_b, b, c))
    return found


def _directions(matrices: Float[Array, "L n n"]) -> tuple[Float[Array, "L n n"], Float[Array, " L"]]:
    """Each matrix over its Frobenius norm, and the norm; zeros stay zeros. Squares do not underflow."""
    largest = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True)
    scaled = matrices / jnp.where(largest > 0, largest, 1)
    norm = jnp.linalg.norm(scaled, axis=(1, 2), keepdims=True)
    return scaled / jnp.where(norm > 0, norm, 1), (norm * largest)[:, 0, 0]


def _term(V_A: Stack, V_G: Stack, sigma: dict[str, Float[Array, " L"]]) -> _Term:
    """Both factors with norm sqrt(sigma); where both have a negative first entry, both signs turned."""
    A, G = {}, {}
    for name, of_layers in sigma.items():
        flip = (V_A[name][:, 0, 0] < 0) & (V_G[name][:, 0, 0] < 0)
        size = jnp.where(flip, -1, 1) * jnp.sqrt(of_layers)
        A[name], G[name] = size[:, None, None] * V_A[name], size[:, None, None] * V_G[name]
    return _Term(A, G)
