"""Low-rank adapters: beside a frozen matrix W a trainable increment scale * B A, folded into W when trained.

Reference: Hu et al., LoRA, arXiv:2106.09685, section 4.1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxlab.errors import InputError
from jaxlab.models.linear import CROSS_LINEARS, LINEARS, dense, linear, register_linear

Params = dict[str, Any]
_MATRICES = LINEARS + CROSS_LINEARS
Mask = (
    Bool[Array, "*layers outputs inputs"]
    | tuple[Bool[Array, "*layers outputs"], Bool[Array, "*layers inputs"]]
)
"""Entries of a matrix that were not pruned, or the rows and the columns that were not."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "a", "b"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LoRA:
    """The matrix weight + scale * b @ a.

    Attributes:
        weight: any leaf that stands for a matrix `[outputs, inputs]`.
        a: maps inputs to the rank.
        b: maps the rank to outputs.
        scale: static, so that it is neither trained nor stacked.
    """

    weight: Any
    a: Float[Array, "*stack rank inputs"]
    b: Float[Array, "*stack outputs rank"]
    scale: float


class Adapter(NamedTuple):
    """The trainable arrays of one `LoRA`."""

    a: Float[Array, "*stack rank inputs"]
    b: Float[Array, "*stack outputs rank"]


def init_lora(
    key: Key[Array, ""],
    params: Params,
    *,
    rank: int,
    targets: Collection[str] = _MATRICES,
    scale: float = 1.0,
    std: float = 1.0,
) -> Params:
    """Put an adapter beside every target matrix of every layer; the model's outputs stay the same.

    Args:
        key: the values of a layer are the same whether layers are stacked or a tuple.
        params: the model, or one of the two stacks of an encoder-decoder; its matrices are shared, not copied.
        rank: of the adapters, at least 1.
        targets: names of matrices, of `LINEARS` and `CROSS_LINEARS`; those that the model has not are passed over.
        scale: factor of the increment b @ a.
        std: standard deviation of the entries of `a`, > 0; `b` is zero. Both are float32.

    Raises:
        InputError: an argument out of range, no target that the model has, or one that has an adapter already.
    """
    layers = params["layers"]
    stacked = not isinstance(layers, tuple)
    there = [name for name in _MATRICES if name in (layers if stacked else layers[0])]
    names = [name for name in there if name in targets]
    if not names or set(targets) - set(_MATRICES):
        raise InputError(f"targets is {targets!r}; give one or more of {', '.join(there)}")
    if rank < 1:
        raise InputError(f"rank is {rank}; it must be at least 1")
    if not (std > 0 and math.isfinite(std) and math.isfinite(scale)):
        raise InputError(f"std is {std} and scale {scale}; both must be finite, and std positive")
    count = jax.eval_shape(dense, layers[names[0]]).shape[0] if stacked else len(layers)
    keys = {name: jax.random.split(jax.random.fold_in(key, _MATRICES.index(name)), count) for name in names}

    def adapted(name: str, weight: Any, layer: int | None) -> LoRA:
        if isinstance(weight, LoRA):
            raise InputError(f"init_lora: {name!r} has an adapter already; fold it with merge_lora first")
        shape = jax.eval_shape(dense, weight).shape

        def draw(key: Key[Array, ""]) -> Float[Array, "rank inputs"]:
            return std * jax.random.normal(key, (rank, shape[-1]))

        a = jax.vmap(draw)(keys[name]) if layer is None else draw(keys[name][layer])
        return LoRA(weight, a, jnp.zeros((*shape[:-1], rank)), float(scale))

    def changed(layer: dict[str, Any], index: int | None) -> dict[str, Any]:
        return layer | {name: adapted(name, layer[name], index) for name in names}

    return {**params, "layers": _each_layer(changed, layers, None if stacked else tuple(range(count)))}


def adapters_of(params: Params) -> Any:
    """The trainable arrays alone, a pytree to differentiate, to give to optax, or to stack and `vmap` over.

    Returns:
        `{matrix name: Adapter}`, or a tuple of these for a tuple of layers.
    """
    return _each_layer(
        lambda layer: {
            name: Adapter(leaf.a, leaf.b) for name, leaf in layer.items() if isinstance(leaf, LoRA)
        },
        params["layers"],
    )


def with_adapters(params: Params, adapters: Any) -> Params:
    """The same model with other trainable arrays.

    Gradients for the adapters alone are `jax.grad(lambda adapters: loss(with_adapters(params, adapters)))`.

    Args:
        params: made by `init_lora`.
        adapters: laid out as `adapters_of(params)` returns them.

    Raises:
        InputError: the adapters are not those of this model's matrices.
    """
    expected: Any = jax.tree.structure(adapters_of(params))
    found = jax.tree.structure(adapters)
    if expected != found:
        raise InputError(f"adapters has the structure {found}; these parameters have {expected}")

    def changed(layer: dict[str, Any], new: dict[str, Adapter]) -> dict[str, Any]:
        return layer | {
            name: dataclasses.replace(layer[name], a=adapter.a, b=adapter.b) for name, adapter in new.items()
        }

    return {**params, "layers": _each_layer(changed, params["layers"], adapters)}


def merge_lora(params: Params, *, masks: Any = None) -> Params:
    """Fold every adapter into a dense matrix of the dtype of the one it stands beside.

    Args:
        params: the model; leaves without an adapter stay as they are.
        masks: laid out like `params["layers"]`, `{matrix name: Mask}` with a leading layer axis, or a tuple of
            these; matrices without one are folded whole. Entries that a mask does not keep stay as they are,
            bit for bit, so that pruned ones stay zero.

    Raises:
        InputError: a mask of an unknown matrix, or of a wrong shape or dtype.
    """
    layers = params["layers"]
    per_layer = isinstance(layers, tuple)
    if masks is None:
        masks = ({},) * len(layers) if per_layer else {}
    if isinstance(masks, tuple) != per_layer or (per_layer and len(masks) != len(layers)):
        raise InputError(
            "merge_lora: masks must be laid out like params['layers']: one dict, or a tuple of as many dicts"
        )

    def merged(layer: dict[str, Any], kept: Mapping[str, Mask]) -> dict[str, Any]:
        unknown = sorted(set(kept) - set(_MATRICES))
        if unknown:
            raise InputError(f"merge_lora: masks names {unknown}; matrices are {', '.join(_MATRICES)}")
        return {
            name: _folded(name, leaf, kept.get(name)) if isinstance(leaf, LoRA) else leaf
            for name, leaf in layer.items()
        }

    return {**params, "layers": _each_layer(merged, layers, masks)}


def _folded(name: str, leaf: LoRA, kept: Mask | None) -> Float[Array, "*stack outputs inputs"]:
    matrix = dense(leaf.weight)
    updated = dense(leaf).astype(matrix.dtype)
    if kept is None:
        return updated
    return jnp.where(_entries(name, kept, matrix.shape), updated, matrix)


def _entries(name: str, kept: Mask, shape: tuple[int, ...]) -> Bool[Array, "*stack outputs inputs"]:
    """The mask of entries that `kept` stands for."""
    parts = [jnp.asarray(part) for part in (kept if isinstance(kept, tuple) else (kept,))]
    expected = [shape] if len(parts) == 1 else [shape[:-1], (*shape[:-2], shape[-1])]
    if [(part.shape, part.dtype) for part in parts] != [(one, jnp.dtype(bool)) for one in expected]:
        found = ", ".join(f"{part.dtype} {part.shape}" for part in parts)
        raise InputError(
            f"merge_lora: masks[{name!r}] is {found}; it must be bool {shape}, or a pair of kept rows "
            f"{shape[:-1]} and kept columns {(*shape[:-2], shape[-1])}"
        )
    return parts[0] if len(parts) == 1 else parts[0][..., :, None] & parts[1][..., None, :]


def _each_layer(function: Callable[..., Any], *layers: Any) -> Any:
    """`function` of the stacked layers, or of each of a tuple."""
    if isinstance(layers[0], tuple):
        return tuple(function(*one) for one in zip(*layers, strict=True))
    return function(*layers)


def _apply(x: Float[Array, "... inputs"], leaf: LoRA) -> Float[Array, "... outputs"]:
    out = linear(x, leaf.weight)
    return out + (leaf.scale * linear(linear(x, leaf.a), leaf.b)).astype(out.dtype)


def _dense(leaf: LoRA) -> Float[Array, "*stack outputs inputs"]:
    return dense(leaf.weight) + leaf.scale * (leaf.b @ leaf.a)


register_linear(LoRA, _apply, _dense)
