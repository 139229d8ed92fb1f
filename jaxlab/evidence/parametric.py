"""Evidence in parameter space: determinants of H + P0, H = sum_n J_n^T Lambda_n J_n, and of parts of H.

Zeros in place of off-diagonal blocks make H + P0's determinant larger (Fischer's inequality), so that the values fall
from "full" to "layer" to "tensor" to "diag", each a lower bound of the one before. "kron" approximates "tensor".
Reference: arXiv:2306.03968, theorems 1 and 3; K-FAC, arXiv:1503.05671, over positions as in arXiv:2311.00636.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply, Shown, Use, capture, find_uses
from jaxlab.evidence.checks import require_choice, require_count, require_number
from jaxlab.evidence.likelihoods import Likelihood, log_likelihood, output_factor
from jaxlab.evidence.priors import for_leaves, prior_quadratic

Structure = Literal["full", "layer", "tensor", "kron", "diag"]
_SIDE_LIMIT = 32768
"""Of one curvature block; 4 GiB in float32."""


class ParametricEvidence(NamedTuple):
    """Terms of the evidence."""

    loglik: Float[Array, ""]
    """Log-likelihood, times the scale."""
    quad: Float[Array, ""]
    """theta^T P0 theta."""
    logdet: Float[Array, ""]
    """log |H + P0| - log |P0| of the structure, times the scale."""
    value: Float[Array, ""]
    """loglik - quad / 2 - logdet / 2, nats."""


def parametric_evidence(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    targets: Array,
    log_delta: PyTree,
    *,
    likelihood: Likelihood,
    structure: Structure = "full",
    log_sigma: float | Float[Array, ""] = 0.0,
    scale: float = 1.0,
    batch: int | None = None,
) -> ParametricEvidence:
    """The evidence with the curvature of all examples given, or the bound with a structure in it.

    Args:
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: n examples.
      targets: labels or values, see `log_likelihood`.
      log_delta: prefix of `params`; numbers, or arrays of a leaf's shape (with "kron" only at leaves that are not the
        matrix of a single operation).
      likelihood: "softmax" or "gaussian".
      structure: "full"; "layer", a block for all leaves whose paths differ in the last name alone (a weight and its
        bias); "tensor", a block for each leaf; "kron", Kronecker factors for matrices, convolutions and tables, blocks
        for other leaves; "diag".
      log_sigma: log of the observation noise of a Gaussian likelihood.
      scale: N / n where the examples are a block of N, > 0 (theorem 3). Not used within the determinant.
      batch: examples whose Jacobians exist at the same time, a divisor of n; None is all.

    Raises:
      InputError: a shape, a label or an option is wrong, or a block would not fit into memory.
    """
    require_choice("structure", structure, get_args(Structure))
    require_number("scale", scale, above=0)
    outputs = apply(params, inputs)
    noise = log_sigma if likelihood == "gaussian" else 0.0
    loglik = scale * jnp.sum(log_likelihood(outputs, targets, likelihood=likelihood, log_sigma=noise))
    factors = output_factor(outputs, likelihood=likelihood, rotation="closed")
    blocks = _blocks(params, structure)
    uses: list[Use | None] = [None] * len(jax.tree.leaves(params))
    if structure == "kron":
        uses = find_uses(apply, params, inputs)
    _require_room(params, blocks, uses, structure)
    sums = _accumulate(apply, params, inputs, factors, blocks, uses, structure, batch)
    spread = for_leaves(log_delta, params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    logdet = jnp.zeros((), outputs.dtype)
    for block, curvature in zip(blocks, sums, strict=True):
        use = uses[block[0]]
        # 1 / (delta sigma^2) of every parameter, or of all of them.
        inverse = [jnp.exp(-spread[leaf] - 2 * noise) for leaf in block]
        if use is not None:
            if inverse[0].ndim:
                raise InputError(
                    "log_delta has a number for each entry of a matrix; 'kron' needs one for all of it"
                )
            values = jnp.outer(_eigenvalues(curvature.inputs), _eigenvalues(curvature.outputs))
            logdet += jnp.sum(jnp.log1p(values * inverse[0]))
            continue
        flat = [jnp.broadcast_to(v, shapes[leaf]).ravel() for v, leaf in zip(inverse, block, strict=True)]
        weights = jnp.concatenate(flat)
        if structure == "diag":
            logdet += jnp.sum(jnp.log1p(curvature * weights))
        else:
            root = jnp.sqrt(weights)
            lower = jnp.linalg.cholesky(
                jnp.eye(len(root), dtype=curvature.dtype) + root[:, None] * curvature * root
            )
            logdet += 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    logdet, quad = scale * logdet, prior_quadratic(log_delta, params)
    return ParametricEvidence(loglik, quad, logdet, loglik - quad / 2 - logdet / 2)


class _Kron(NamedTuple):
    """H of a leaf is taken as inputs (x) outputs; a table's inputs are a diagonal."""

    inputs: Array
    outputs: Array


def _blocks(params: PyTree, structure: Structure) -> list[list[int]]:
    """Leaves that share a block."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    if structure == "full":
        return [list(range(len(paths)))]
    if structure != "layer":
        return [[leaf] for leaf in range(len(paths))]
    named: dict[str, list[int]] = {}
    for leaf, path in enumerate(paths):
        named.setdefault(jax.tree_util.keystr(_layer(path)), []).append(leaf)
    return list(named.values())


def _layer(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the tensor's own name; nnx adds an attribute for the value inside a variable."""
    while len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return path[:-1]


def _require_room(
    params: PyTree, blocks: list[list[int]], uses: list[Use | None], structure: Structure
) -> None:
    if structure == "diag":
        return
    sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
    for block in blocks:
        use = uses[block[0]]
        tables = use is not None and use.kind == "look-up"
        side = sum(sizes[leaf] for leaf in block)
        if use is not None:
            side = use.fan_out if tables else max(use.fan_in, use.fan_out)
        if side > _SIDE_LIMIT:
            raise InputError(
                f"a block of {side} x {side} would take {side**2 * 4 / 2**30:.0f} GiB in float32; structure is "
                f"{structure!r}, and it must be a coarser one, or the evidence taken in function space (gram_leaves)"
            )


def _accumulate(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "n C R"],
    blocks: list[list[int]],
    uses: list[Use | None],
    structure: Structure,
    batch: int | None,
) -> list[Any]:
    """Curvature of each block, summed over the examples."""
    n = len(factors)
    size = n if batch is None else batch
    require_count("batch", size, at_least=1, at_most=n)
    if n % size:
        raise InputError(f"batch is {size}; it must divide the number of examples, {n}")

    def one(part: tuple[PyTree, Array]) -> list[Any]:
        shown = capture(apply, params, *part, uses)
        found: list[Any] = []
        for block in blocks:
            use = uses[block[0]]
            if use is not None:
                found.append(_kron_sums(use, shown[block[0]], n))
                continue
            rows = jnp.concatenate([shown[leaf].cotangents for leaf in block], axis=2)
            rows = rows.reshape(-1, rows.shape[2])
            if structure == "diag":
                found.append(jnp.sum(jnp.square(rows), axis=0))
            else:
                found.append(_moment(rows))
        return found

    split = jax.tree.map(lambda x: jnp.asarray(x).reshape(n // size, size, *x.shape[1:]), (inputs, factors))
    if size == n:
        return one((inputs, factors))
    zeros = jax.tree.map(
        lambda shape: jnp.zeros(shape.shape, shape.dtype),
        jax.eval_shape(one, jax.tree.map(lambda x: x[0], split)),
    )
    sums, _ = lax.scan(lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None), zeros, split)
    return sums


def _kron_sums(use: Use, shown: Shown, n: int) -> _Kron:
    """H ~ (mean of a a^T over examples and positions) (x) (sum of d d^T), to be summed over batches of n examples."""
    d = shown.cotangents.reshape(-1, use.fan_out)
    if use.kind == "look-up":
        seen = jax.nn.one_hot(shown.inputs, use.fan_in, dtype=d.dtype)  # -1 counts nowhere
        inputs = jnp.sum(seen, axis=(0, 1))
    else:
        inputs = _moment(shown.inputs.reshape(-1, use.fan_in))
    return _Kron(inputs / (n * use.positions), _moment(d))


def _moment(rows: Float[Array, "rows columns"]) -> Float[Array, "columns columns"]:
    return jnp.einsum("ri,rj->ij", rows, rows, precision="highest")


def _eigenvalues(factor: Array) -> Float[Array, " columns"]:
    return factor if factor.ndim == 1 else jnp.maximum(jnp.linalg.eigvalsh(factor), 0)
