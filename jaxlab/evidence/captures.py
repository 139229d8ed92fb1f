"""What every example shows at the parameters of a model: layer inputs, and cotangents of layer outputs.

A plain apply function is traced to its operations. Where a leaf of the parameters is the matrix of one product, the
kernel of one convolution, or the table of one look-up, the operation's input and the cotangents of its output say all
about the leaf's Jacobian, which is then never made. Leaves that are used in any other way (biases, scales of norms, a
matrix used twice, a layer within a scan) get their Jacobian itself. Both are exact.
Reference: "Fast Finite Width Neural Tangent Kernel", arXiv:2206.08720 (structured derivatives).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from jaxlab.errors import InputError

Apply = Callable[[Any, Any], Array]
"""`(params, inputs) -> outputs [n, C]`; pure, and without a word between examples."""

_VIEWS = {"transpose", "reshape", "squeeze", "convert_element_type", "copy"}
"""Operations that leave the entries of a leaf as they are."""
_INLINED = {"jit", "remat2", "checkpoint"}
"""Operations that are a function called once, their option `jaxpr`."""


@dataclasses.dataclass(frozen=True)
class Use:
    """The one operation that reads a leaf, in terms of rows: outputs[t] = inputs[t] @ leaf."""

    kind: Literal["product", "look-up"]
    positions: int
    """Rows t of one example."""
    fan_in: int
    fan_out: int
    shape: tuple[int, ...]
    """Of the operation's output, for one example."""
    dtype: Any
    rows: Callable[[Array], Array] = dataclasses.field(compare=False)
    """Output, or a cotangent of it, as [positions, fan_out]."""


class Shown(NamedTuple):
    """What examples show at a leaf: taps where there is a `Use`, else the Jacobian."""

    inputs: Any
    """[n, positions, fan_in]; of a look-up the integers [n, positions], -1 for none; None beside a Jacobian."""
    cotangents: Array
    """[n, R, positions, fan_out], or the Jacobian, [n, R, entries]."""


def find_uses(apply: Apply, params: PyTree, inputs: PyTree) -> list[Use | None]:
    """For every leaf of the parameters its single use; None where its Jacobian must be taken.

    Args:
      apply: the model.
      params: its parameters.
      inputs: examples; the leading axis of every leaf counts them.

    Raises:
      InputError: the outputs of n examples are not [n, C].
    """
    leaves = jax.tree.leaves(params)
    found: list[list[Use | None]] = [[] for _ in leaves]

    def record(leaf: int, use: Use | None, layer_input: Array | None, output: Array | None) -> Array | None:
        found[leaf].append(use)
        return output

    def run(leaves: list[Array], example: PyTree) -> Array:
        return _interpret(_trace(apply, params, example), leaves, example, record)

    jax.eval_shape(run, leaves, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs))
    return [uses[0] if len(uses) == 1 else None for uses in found]


def capture(
    apply: Apply,
    params: PyTree,
    inputs: PyTree,
    factors: Float[Array, "n C R"],
    uses: Sequence[Use | None],
) -> list[Shown]:
    """One forward pass over the examples, and R backward passes that give the rows L_n^T J_n.

    Args:
      apply: the model.
      params: its parameters.
      inputs: examples; the leading axis of every leaf counts them.
      factors: L_n, cotangents of the outputs.
      uses: of `find_uses`; set to None to take a leaf's Jacobian nevertheless.
    """
    leaves = jax.tree.leaves(params)
    untapped = {leaf: leaves[leaf] for leaf, use in enumerate(uses) if use is None}
    taps = {leaf: jnp.zeros(use.shape, use.dtype) for leaf, use in enumerate(uses) if use is not None}

    def one(example: PyTree, factor: Float[Array, "C R"]) -> list[Shown]:
        def run(taps: dict[int, Array], untapped: dict[int, Array]) -> tuple[Array, dict[int, Array | None]]:
            seen: dict[int, Array | None] = {}

            def tap(
                leaf: int, use: Use | None, layer_input: Array | None, output: Array | None
            ) -> Array | None:
                if leaf not in taps or output is None:
                    return output
                seen[leaf] = layer_input
                return output + taps[leaf]

            values = [untapped.get(leaf, value) for leaf, value in enumerate(leaves)]
            return _interpret(_trace(apply, params, example), values, example, tap), seen

        outputs, pull_back, seen = jax.vjp(run, taps, untapped, has_aux=True)
        rows = jnp.moveaxis(factor, 1, 0)[:, None].astype(outputs.dtype)
        through_taps, jacobians = jax.vmap(pull_back)(rows)
        shown = []
        for leaf, use in enumerate(uses):
            if use is None:
                shown.append(Shown(None, jacobians[leaf].reshape(len(rows), -1)))
            else:
                shown.append(Shown(seen[leaf], jax.vmap(use.rows)(through_taps[leaf])))
        return shown

    return jax.vmap(one)(inputs, factors)


def tapped_jacobian(use: Use, shown: Shown) -> Float[Array, "n R entries"]:
    """Rows of the leaf's Jacobian from its taps, entries in the order (fan_in, fan_out), which need not be the leaf's.

    One product a pair of example and row, where the backward pass to a convolution's kernel has one convolution.

    Args:
      use: of the leaf.
      shown: its taps.
    """
    inputs, d = shown.inputs, shown.cotangents
    if use.kind == "look-up":
        inputs = jax.nn.one_hot(inputs, use.fan_in, dtype=d.dtype)  # -1 is nowhere
    rows = jnp.einsum("nti,nrto->nrio", inputs, d, precision="highest")
    return rows.reshape(*d.shape[:2], -1)


def _trace(apply: Apply, params: PyTree, example: PyTree) -> core.ClosedJaxpr:
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), example)
    closed = jax.make_jaxpr(apply)(params, batch)
    shapes = [aval.shape for aval in closed.out_avals]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 1:
        raise InputError(f"apply gives shapes {shapes} for one example; it must give one array [1, outputs]")
    return closed


Visit = Callable[[int, Use | None, Array | None, Array | None], Array | None]
"""Leaf, its use, the input and the output there; gives back the output to go on with."""


def _interpret(closed: core.ClosedJaxpr, leaves: Sequence[Array], example: PyTree, visit: Visit) -> Array:
    """Evaluates the operations for one example, and visits each that reads a leaf of the parameters."""
    batch = [x[None] for x in jax.tree.leaves(example)]
    owners = [*range(len(leaves)), *[None] * len(batch)]
    (output,), (owner,) = _run(closed.jaxpr, closed.consts, [*leaves, *batch], owners, visit)
    if owner is not None:
        visit(owner, None, None, None)
    return output


def _run(
    jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], owners: Sequence[int | None], visit: Visit
) -> tuple[list[Any], list[int | None]]:
    """Values of the outputs, and which leaf each one is a view of."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    owner_of = dict(zip(jaxpr.invars, owners, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    def owner(var: Any) -> int | None:
        return None if isinstance(var, core.Literal) else owner_of.get(var)

    for eqn in jaxpr.eqns:
        operands, read_from = [read(var) for var in eqn.invars], [owner(var) for var in eqn.invars]
        name = eqn.primitive.name
        views: list[int | None] = [None] * len(eqn.outvars)
        if name in _INLINED and any(leaf is not None for leaf in read_from):
            inner = eqn.params["jaxpr"]
            closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
            results, views = _run(closed.jaxpr, closed.consts, operands, read_from, visit)
        else:
            results = _bind(eqn, operands)
            owned = [leaf for leaf in read_from if leaf is not None]
            if owned and name in _VIEWS and len(results) == 1:
                views = [owned[0]]
            elif len(owned) == 1:
                use, layer_input = _use(eqn, operands, read_from.index(owned[0]), results[0])
                visited = visit(owned[0], use, layer_input, results[0] if use else None)
                results = [visited] if use else results
            else:
                for leaf in owned:
                    visit(leaf, None, None, None)
        values.update(zip(eqn.outvars, results, strict=True))
        owner_of.update(zip(eqn.outvars, views, strict=True))
    return [read(var) for var in jaxpr.outvars], [owner(var) for var in jaxpr.outvars]


def _bind(eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Inner functions stand beside the options in some versions of JAX, among them in others.
    functions, options = bound if isinstance(bound, tuple) else ((), bound)
    results = eqn.primitive.bind(*functions, *operands, **options)
    return results if eqn.primitive.multiple_results else [results]


def _use(eqn: core.JaxprEqn, operands: list[Any], place: int, output: Any) -> tuple[Use | None, Array | None]:
    """How the operation reads the leaf at `place`, and the input beside it; None where it is not of a known kind."""
    match eqn.primitive.name:
        case "dot_general":
            return _product(eqn, operands, place, output)
        case "conv_general_dilated":
            return _convolution(eqn, operands, place, output)
        case "gather":
            return _look_up(eqn, operands, place, output)
    return None, None


def _product(
    eqn: core.JaxprEqn, operands: list[Any], place: int, output: Any
) -> tuple[Use | None, Array | None]:
    contracted, batched = eqn.params["dimension_numbers"]
    if batched[0]:
        return None, None
    leaf, beside = operands[place], operands[1 - place]
    inner = contracted[1 - place]
    outer = [axis for axis in range(beside.ndim) if axis not in inner]
    fan_in = math.prod(beside.shape[axis] for axis in inner)
    positions = math.prod(beside.shape[axis] for axis in outer)
    inputs = jnp.transpose(beside, (*outer, *inner)).reshape(positions, fan_in)
    fan_out = leaf.size // fan_in

    def rows(values: Array) -> Array:
        # The output's axes are those left over of the left operand, then those of the right one.
        return values.reshape(positions, fan_out) if place else values.reshape(fan_out, positions).T

    return Use("product", positions, fan_in, fan_out, output.shape, output.dtype, rows), inputs


def _convolution(
    eqn: core.JaxprEqn, operands: list[Any], place: int, output: Any
) -> tuple[Use | None, Array | None]:
    options = eqn.params
    if place != 1 or options["feature_group_count"] != 1 or options["batch_group_count"] != 1:
        return None, None
    numbers, kernel = options["dimension_numbers"], operands[1]
    patches = lax.conv_general_dilated_patches(
        operands[0],
        filter_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        window_strides=options["window_strides"],
        padding=options["padding"],
        lhs_dilation=options["lhs_dilation"],
        rhs_dilation=options["rhs_dilation"],
        dimension_numbers=numbers,
        precision=lax.Precision.HIGHEST,
    )
    channels = numbers.out_spec[1]

    def rows(values: Array) -> Array:
        moved = jnp.moveaxis(values, channels, -1)
        return moved.reshape(-1, moved.shape[-1])

    inputs = rows(patches)
    positions, fan_in = inputs.shape
    use = Use("product", positions, fan_in, output.shape[channels], output.shape, output.dtype, rows)
    return use, inputs


def _look_up(
    eqn: core.JaxprEqn, operands: list[Any], place: int, output: Any
) -> tuple[Use | None, Array | None]:
    numbers, (table, places) = eqn.params["dimension_numbers"], operands
    whole_rows = (
        place == 0
        and numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and tuple(eqn.params["slice_sizes"]) == (1, *table.shape[1:])
        and numbers.offset_dims == tuple(range(places.ndim - 1, output.ndim))
    )
    if not whole_rows:
        return None, None
    indices, last = places.reshape(-1), len(table) - 1
    if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        indices = jnp.clip(indices, 0, last)
    indices = jnp.where((indices >= 0) & (indices <= last), indices, -1)
    positions, fan_out = indices.size, table.size // len(table)

    def rows(values: Array) -> Array:
        return values.reshape(positions, fan_out)

    return Use("look-up", positions, len(table), fan_out, output.shape, output.dtype, rows), indices
