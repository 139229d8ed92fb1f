"""Curvature H = sum_n J_n^T Lambda_n J_n of all data, in blocks of leaves, and the eigenvalues of its blocks.

A block-diagonal structure with a block for each leaf has log |H + P0| - log |P0| = sum_l sum_i log(1 + v_li / delta_l)
with v_l the eigenvalues of leaf l's block, whatever the prior: they are for it what Gram matrices are in function
space. Reference: arXiv:2306.03968, theorem 1; K-FAC, arXiv:1503.05671, over positions as in arXiv:2311.00636.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply, Shown, Use, capture, find_uses, tapped_jacobian
from jaxlab.evidence.checks import require_choice, require_count

Structure = Literal["full", "layer", "tensor", "kron", "diag"]
LeafStructure = Literal["tensor", "kron", "diag"]
_SIDE_LIMIT = 32768
"""Of one curvature block; 4 GiB in float32."""


def curvature_spectra(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "n C R"],
    *,
    structure: LeafStructure,
    batch: int | None = None,
    counted: Bool[Array, " n"] | None = None,
) -> PyTree:
    """Eigenvalues of every leaf's block of H, for any number of prior steps.

    Args:
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: n examples.
      factors: L_n, of `output_factor`; zero rows for padding.
      structure: "tensor" for the leaf's whole block, "kron" for Kronecker factors of it where the leaf is a matrix,
        kernel or table with a single use, "diag" for its diagonal.
      batch: examples whose Jacobians exist at the same time, 1 to n; None is all.
      counted: False for padding; None is all.

    Returns:
      [entries] for every leaf, in the structure of the parameters; in an order of their own.

    Raises:
      InputError: an option is wrong, or a block would not fit into memory.
    """
    require_choice("structure", structure, get_args(LeafStructure))
    blocks = blocks_of(params, structure)
    uses: list[Use | None] = [None] * len(blocks)
    if structure != "tensor":
        uses = find_uses(apply, params, inputs)
    require_room(params, blocks, uses, structure)
    sums = summed_curvatures(
        apply, params, inputs, factors, blocks, uses, structure, batch=batch, counted=counted
    )
    spectra = []
    for curvature in sums:
        if structure == "diag":
            spectra.append(curvature)
        elif isinstance(curvature, Kron):
            spectra.append(kron_eigenvalues(curvature))
        else:
            spectra.append(_eigenvalues(curvature))
    return jax.tree.unflatten(jax.tree.structure(params), spectra)


class Kron(NamedTuple):
    """H of a leaf is taken as inputs (x) outputs; a table's inputs are a diagonal."""

    inputs: Array
    outputs: Array


def blocks_of(params: PyTree, structure: Structure) -> list[list[int]]:
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


def require_room(
    params: PyTree, blocks: list[list[int]], uses: list[Use | None], structure: Structure
) -> None:
    """Raises InputError where a block is too large for memory."""
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


def summed_curvatures(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "n C R"],
    blocks: list[list[int]],
    uses: list[Use | None],
    structure: Structure,
    *,
    batch: int | None,
    counted: Bool[Array, " n"] | None = None,
) -> list[Any]:
    """Curvature of each block, summed over the examples: a matrix, a diagonal, or a `Kron` where a leaf has a use.

    Args:
      apply: see `gram_leaves`.
      params: the model's parameters.
      inputs: n examples.
      factors: L_n.
      blocks: of `blocks_of`.
      uses: None for leaves whose Jacobian is to be taken, in their own layout.
      structure: what to make.
      batch: see `curvature_spectra`.
      counted: see `curvature_spectra`.

    Raises:
      InputError: batch out of range.
    """
    n = len(factors)
    size = n if batch is None else batch
    require_count("batch", size, at_least=1, at_most=n)
    counted = jnp.ones(n, bool) if counted is None else counted
    total = jnp.sum(counted, dtype=factors.dtype)

    def one(part: tuple[PyTree, Array, Array]) -> list[Any]:
        inputs, factors, counted = part
        shown = capture(apply, params, inputs, factors, uses)
        found: list[Any] = []
        for block in blocks:
            use = uses[block[0]]
            if use is not None:
                of_use = _diagonal if structure == "diag" else _kron_sums
                found.append(of_use(use, shown[block[0]], counted / total))
                continue
            rows = jnp.concatenate([shown[leaf].cotangents for leaf in block], axis=2)
            rows = rows.reshape(-1, rows.shape[2])
            found.append(jnp.sum(jnp.square(rows), axis=0) if structure == "diag" else _moment(rows))
        return found

    everything = jax.tree.map(jnp.asarray, (inputs, factors, counted))
    if size == n:
        return one(everything)
    # Padding repeats the first examples, which neither rows nor counts see.
    short = -n % size
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:short]]), everything)
    real = jnp.arange(n + short) < n
    padded = (padded[0], padded[1] * real[:, None, None], padded[2] & real)
    split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), padded)
    zeros = jax.tree.map(
        lambda shape: jnp.zeros(shape.shape, shape.dtype),
        jax.eval_shape(one, jax.tree.map(lambda x: x[0], split)),
    )
    sums, _ = lax.scan(lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None), zeros, split)
    return sums


def kron_eigenvalues(curvature: Kron) -> Float[Array, " entries"]:
    """Of inputs (x) outputs."""
    return jnp.outer(_eigenvalues(curvature.inputs), _eigenvalues(curvature.outputs)).ravel()


def _kron_sums(use: Use, shown: Shown, share: Float[Array, " n"]) -> Kron:
    """H ~ (mean of a a^T over examples and positions) (x) (sum of d d^T), to be summed over batches.

    `share` is what an example counts in the mean.
    """
    d = shown.cotangents.reshape(-1, use.fan_out)
    share = share / use.positions
    if use.kind == "look-up":
        seen = jax.nn.one_hot(shown.inputs, use.fan_in, dtype=d.dtype)  # -1 counts nowhere
        inputs = jnp.einsum("n,nti->i", share, seen)
    else:
        rows = shown.inputs * jnp.sqrt(share)[:, None, None]
        inputs = _moment(rows.reshape(-1, use.fan_in))
    return Kron(inputs, _moment(d))


def _diagonal(use: Use, shown: Shown, share: Float[Array, " n"]) -> Float[Array, " entries"]:
    """Squares of the Jacobian's entries; where a layer has one position, from squares of inputs and cotangents."""
    if use.positions == 1 and use.kind == "product":
        squares = jnp.sum(jnp.square(shown.cotangents[:, :, 0]), axis=1)
        inputs = jnp.square(shown.inputs[:, 0])
        return jnp.einsum("ni,no->io", inputs, squares, precision="highest").ravel()
    return jnp.sum(jnp.square(tapped_jacobian(use, shown)), axis=(0, 1))


def _moment(rows: Float[Array, "rows columns"]) -> Float[Array, "columns columns"]:
    return jnp.einsum("ri,rj->ij", rows, rows, precision="highest")


def _eigenvalues(factor: Array) -> Float[Array, " columns"]:
    return factor if factor.ndim == 1 else jnp.maximum(jnp.linalg.eigvalsh(factor), 0)
