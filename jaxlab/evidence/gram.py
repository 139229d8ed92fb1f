"""Gram matrices of the rows L_n^T J_n, one for every leaf of the parameters: the neural tangent kernel in parts.

K = sum over leaves of G_l / delta_l. The G_l do not depend on the prior, so that one pass over a block of data serves
any number of prior steps. Reference: arXiv:2306.03968.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.errors import InputError
from jaxlab.evidence.captures import Apply, Shown, Use, capture, find_uses, tapped_jacobian
from jaxlab.evidence.checks import require_choice

Method = Literal["structured", "leaf_jacobian", "ntk_vp"]
Parts = Literal["joint", "rows"]
_ROWS_LIMIT = 32768
"""Of one Gram matrix; 4 GiB a leaf in float32."""


def gram_leaves(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "n C R"],
    *,
    parts: Parts = "joint",
    method: Method = "structured",
) -> PyTree:
    """G_l = A_l A_l^T of every leaf l, A_l the rows L_n^T J_n of a block of data.

    Args:
      apply: `(params, inputs) -> outputs [n, C]`, pure, each output row a function of its own example: no batch
        statistics, no dropout. With flax nnx, `nnx.merge` of `nnx.split`'s parts; with linen, `model.apply`.
      params: the parameters, any pytree.
      inputs: n examples; an array or a pytree of arrays with a common leading axis.
      factors: L_n, of `output_factor`; zero rows for examples that are padding change no determinant.
      parts: "joint" for one matrix over all rows, row n R + r, or "rows" for R matrices over the examples.
      method: "structured" contracts layer inputs and output cotangents of matrices, convolutions and tables, in the
        order that takes fewer operations; "leaf_jacobian" takes the Jacobian of every leaf; "ntk_vp" makes column after
        column by a backward pass of one row and a forward-mode pass of the block for each leaf, and keeps no Jacobian:
        for leaves and outputs too wide for the others. The values are the same.

    Returns:
      [1, n R, n R] or [R, n, n] for every leaf, in the structure of the parameters.

    Raises:
      InputError: an option or a shape is wrong, or the matrices would not fit into memory.
    """
    require_choice("parts", parts, get_args(Parts))
    require_choice("method", method, get_args(Method))
    n, R = _require_block(inputs, factors)
    side = n * R if parts == "joint" else n
    if side > _ROWS_LIMIT:
        leaves = len(jax.tree.leaves(params))
        raise InputError(
            f"a block of {n} examples with {R} rows each needs {leaves} matrices of {side} x {side}, "
            f"{leaves * side**2 * factors.dtype.itemsize / 2**30:.0f} GiB; take fewer examples, or fewer rows"
        )
    if method == "ntk_vp":
        if parts == "joint":
            return jax.tree.map(lambda G: G[None], _product_grams(apply, params, inputs, factors))
        apart = [_product_grams(apply, params, inputs, factors[:, :, r : r + 1]) for r in range(R)]
        return jax.tree.map(lambda *every: jnp.stack(every), *apart)
    uses = find_uses(apply, params, inputs)
    if method == "leaf_jacobian":
        uses = [None] * len(uses)
    shown = capture(apply, params, inputs, factors, uses)
    grams = []
    for use, (seen, cotangents) in zip(uses, shown, strict=True):
        if parts == "joint":
            grams.append(_gram(use, Shown(seen, cotangents))[None])
        else:
            each = jax.vmap(lambda d, use=use, seen=seen: _gram(use, Shown(seen, d[:, None])), in_axes=1)
            grams.append(each(cotangents))
    return jax.tree.unflatten(jax.tree.structure(params), grams)


def block_grams(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "N C R"],
    partition: Int[Array, "B M"],
    *,
    parts: Parts = "joint",
    method: Method = "structured",
) -> PyTree:
    """`gram_leaves` of every block of a partition of the data, one block at a time.

    Args:
      apply: see `gram_leaves`.
      params: see `gram_leaves`.
      inputs: N examples.
      factors: L_n of all examples.
      partition: examples of each block, -1 for padding; see `make_partition`.
      parts: see `gram_leaves`.
      method: see `gram_leaves`.

    Returns:
      [B, ...] joined to the first axis of what `gram_leaves` gives.

    Raises:
      InputError: as `gram_leaves`.
    """
    _require_block(inputs, factors)
    if jnp.ndim(partition) != 2:
        raise InputError(f"partition has shape {jnp.shape(partition)}; it must be [blocks, examples]")

    def one(block: Int[Array, " M"]) -> PyTree:
        here = jax.tree.map(lambda x: jnp.asarray(x)[block], inputs)
        counted = jnp.where(block[:, None, None] >= 0, factors[block], 0)
        return gram_leaves(apply, params, here, counted, parts=parts, method=method)

    grams = lax.map(one, jnp.asarray(partition))
    return jax.tree.map(lambda G: G.reshape(-1, *G.shape[2:]), grams)


def _is_cheaper(use: Use, R: int) -> bool:
    """Whether pairs of positions cost less than the leaf's Jacobian and its products, per pair of rows."""
    fan_in = 1 if use.kind == "look-up" else use.fan_in
    pairs = use.positions**2 * (use.fan_out + 1 + fan_in / R**2)
    return pairs <= use.fan_in * use.fan_out


def _product_grams(apply: Apply, params: PyTree, inputs: PyTree, factors: Float[Array, "n C R"]) -> PyTree:
    """[n R, n R] a leaf: products of the kernel with unit vectors, J (J^T e)."""
    leaves, treedef = jax.tree.flatten(params)
    inputs = jax.tree.map(jnp.asarray, inputs)
    n, _, R = factors.shape

    def rows(leaves: list[Array], inputs: PyTree, factors: Array) -> Float[Array, " rows"]:
        outputs = apply(jax.tree.unflatten(treedef, leaves), inputs)
        return jnp.einsum("nc,ncr->nr", outputs, factors, precision="highest").reshape(-1)

    def of_leaf(number: int, leaf: Array) -> Array:
        return rows([*leaves[:number], leaf, *leaves[number + 1 :]], inputs, factors)

    push = [jax.linearize(functools.partial(of_leaf, number), leaf)[1] for number, leaf in enumerate(leaves)]

    def column(row: Int[Array, ""]) -> list[Array]:
        example = jax.tree.map(lambda x: x[row // R][None], inputs)
        factor = factors[row // R][None, :, row % R, None]
        pulled = jax.grad(lambda leaves: rows(leaves, example, factor)[0])(leaves)
        return [forward(one) for forward, one in zip(push, pulled, strict=True)]

    return jax.tree.unflatten(treedef, lax.map(column, jnp.arange(n * R)))


def _gram(use: Use | None, shown: Shown) -> Float[Array, "rows rows"]:
    n, R = shown.cotangents.shape[:2]
    if use is None:
        jacobian = shown.cotangents.reshape(n * R, -1)
        return _dot("ip,jp->ij", jacobian, jacobian)
    inputs, d = shown.inputs, shown.cotangents
    if not _is_cheaper(use, R):
        jacobian = tapped_jacobian(use, shown).reshape(n * R, -1)
        return _dot("ip,jp->ij", jacobian, jacobian)
    if use.positions == 1:
        pairs = _input_pairs(use, inputs[:, 0], inputs[:, 0])
        flat = d.reshape(n * R, -1)
        outer = _dot("io,jo->ij", flat, flat).reshape(n, R, n, R)
        return (pairs[:, None, :, None] * outer).reshape(n * R, n * R)

    def against_all(one: tuple[Array, Array]) -> Array:
        inputs_here, d_here = one
        pairs = jax.vmap(lambda x: _input_pairs(use, inputs_here, x))(inputs)
        return _dot("mtu,rto,msuo->rms", pairs, d_here, d)

    return lax.map(against_all, (inputs, d)).reshape(n * R, n * R)


def _input_pairs(use: Use, left: Array, right: Array) -> Float[Array, "left right"]:
    """Products of all layer inputs on the left with all on the right."""
    if use.kind == "product":
        return _dot("ti,ui->tu", left, right)
    return ((left[:, None] == right) & (right >= 0)).astype(use.dtype)


def _dot(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *operands, precision="highest")


def _require_block(inputs: PyTree, factors: Array) -> tuple[int, int]:
    """n and R."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    if jnp.ndim(factors) != 3 or sizes != {jnp.shape(factors)[:1]}:
        raise InputError(
            f"factors has shape {jnp.shape(factors)} and inputs lead with {sorted(sizes)}; factors must be "
            "[examples, outputs, rows] with the examples of inputs"
        )
    return factors.shape[0], factors.shape[2]
