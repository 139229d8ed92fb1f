"""One dispatch for every weight matrix: `linear(x, leaf)` is `x @ leaf.T`, whatever the leaf is made of.

A leaf is an array `[out, in]` or an object of a registered class (quantized codes, low-rank adapters,
gathered rows). Registered classes must be pytrees whose arrays have a leading layer axis when they are
stacked, so that `lax.scan` can slice them like arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
"""Names of the weight matrices of a block, in the order in which the forward pass uses them."""


CROSS_LINEARS = ("cross_q", "cross_k", "cross_v", "cross_o")
"""Those of a block's attention to an encoder's output, which follow upon q, k, v, o."""


def matrix_names(layer: Mapping[str, Any]) -> list[str]:
    """Names of the weight matrices that a block has; without a gate, or with attention to an encoder."""
    return [name for name in LINEARS + CROSS_LINEARS if name in layer]


class _Rule(NamedTuple):
    apply: Callable[[Array, Any], Array]
    dense: Callable[[Any], Array]
    rows: Callable[[Any, Array], Array] | None
    at_layer: Callable[[Any, Any], Any] | None


_RULES: dict[type, _Rule] = {}


def linear(x: Float[Array, "... inputs"], leaf: Any) -> Float[Array, "... outputs"]:
    """Compute x @ W.T for the matrix W `[outputs, inputs]` that `leaf` stands for.

    Raises:
        InputError: the leaf is neither an array nor of a registered class, or its width is not that of `x`.
    """
    rule = _rule(leaf)
    if rule is not None:
        return rule.apply(x, leaf)
    if leaf.ndim != 2 or leaf.shape[1] != x.shape[-1]:
        raise InputError(f"linear: a leaf of shape {leaf.shape} cannot act on inputs of width {x.shape[-1]}")
    dtype = jnp.promote_types(x.dtype, leaf.dtype)
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(dtype), jnp.asarray(leaf, dtype), contract_last)


def dense(leaf: Any) -> Float[Array, "outputs inputs"]:
    """The matrix `[outputs, inputs]` that `leaf` stands for, as an array.

    Raises:
        InputError: the leaf is neither an array nor of a registered class.
    """
    rule = _rule(leaf)
    return jnp.asarray(leaf) if rule is None else rule.dense(leaf)


def matrix_rows(leaf: Any, indices: Int[Array, "..."]) -> Float[Array, "... inputs"]:
    """Rows of the matrix that `leaf` stands for; indices outside of it are drawn to its ends.

    Raises:
        InputError: the leaf is neither an array nor of a registered class.
    """
    rule = _rule(leaf)
    if rule is not None and rule.rows is not None:
        return rule.rows(leaf, indices)
    return jnp.take(dense(leaf), indices, axis=0, mode="clip")


def matrix_shape(leaf: Any) -> tuple[int, ...]:
    """Shape of the matrix, or stack of matrices, that `leaf` stands for."""
    return jax.eval_shape(dense, leaf).shape


def register_linear(
    cls: type,
    apply: Callable[[Array, Any], Array],
    dense: Callable[[Any], Array],
    rows: Callable[[Any, Array], Array] | None = None,
    at_layer: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Let instances of `cls` (and of its subclasses) stand where a weight matrix can.

    Args:
        cls: a class registered as a pytree.
        apply: `(x [..., in], leaf) -> x @ W.T`.
        dense: `leaf -> W [out, in]`.
        rows: `(leaf, indices) -> W[indices]`; None takes them from the dense matrix.
        at_layer: `(stacked leaf, layer) -> leaf`; a loop over layers then keeps the stack whole. None lets the loop
            slice the leaf's arrays.
    """
    _RULES[cls] = _Rule(apply, dense, rows, at_layer)


def keeps_whole(leaf: Any) -> bool:
    """Whether a loop over layers should take `at_layer` of this stacked leaf instead of slicing it."""
    rule = _rule(leaf) if is_linear_leaf(leaf) else None
    return rule is not None and rule.at_layer is not None


def at_layer(leaf: Any, layer: Int[Array, ""] | int) -> Any:
    """One layer's leaf of a stacked one that `keeps_whole`.

    Raises:
        InputError: the leaf is of a class whose arrays are to be sliced.
    """
    rule = _rule(leaf)
    if rule is None or rule.at_layer is None:
        raise InputError(f"at_layer: a leaf of type {type(leaf).__name__} is sliced, not kept whole")
    return rule.at_layer(leaf, layer)


def is_linear_leaf(leaf: Any) -> bool:
    """Whether `leaf` is of a registered class; the `is_leaf` of tree maps that should not look inside one."""
    return any(base in _RULES for base in type(leaf).__mro__)


def _rule(leaf: Any) -> _Rule | None:
    """The registered rule of a leaf; None for arrays."""
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return None
    for base in type(leaf).__mro__:
        if base in _RULES:
            return _RULES[base]
    raise InputError(
        f"linear: a leaf of type {type(leaf).__name__} is neither an array nor of a class given to "
        "register_linear"
    )
