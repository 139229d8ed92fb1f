"""Cross-entropy of scores that never exist as a whole.

Positions are taken in chunks: the scores of a chunk over the vocabulary are made, summed up and forgotten. The backward
pass makes them again from the sums that were kept; where only the hidden states are trained (adapters, a frozen head)
it needs no scores at all, since the forward pass leaves the slope of every position behind.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal

Scores = Callable[[Any, jax.Array], jax.Array]


def cross_entropy(
    scores: Scores,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    chunk: int,
    count: jax.Array | None = None,
) -> jax.Array:
    """Compute log(sum(exp(s))) - s[target] of every position, where s = scores(head, hidden).

    Has gradients with respect to `hidden` and all floating point leaves of `head`, of any order, in reverse mode
    (`jax.jvp` of this function itself is refused by jax).

    Args:
      scores: pure function `(head, hidden [..., width]) -> [..., vocabulary]`; static.
      head: pytree of arrays.
      hidden: [*rows, time, width].
      targets: integers in [0, vocabulary), [*rows, time].
      chunk: positions of each row whose scores exist at the same time, at least 1; static.
      count: of positions of each row; the loss of those behind is 0, and chunks of them are not computed. None is all.

    Returns:
      [*rows, time], >= 0, in nats; float32, or float64 for float64 scores.

    Raises:
      ValueError: shapes do not fit, there is no position, or `chunk` is below 1.
    """
    return _losses(scores, _chunks(hidden, targets, chunk), head, hidden, targets, count)


def summed_cross_entropy(
    scores: Scores,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    count: jax.Array | None = None,
) -> jax.Array:
    """Compute sum(weights * cross_entropy(scores, head, hidden, targets)), for training.

    The forward pass already makes the gradients, chunk by chunk, and the backward pass multiplies them by a number:
    three products with the head, where `cross_entropy`, whose weights come later, needs four. In exchange the gradient
    of the head is there from the forward pass on.

    Args:
      scores: see `cross_entropy`.
      head: see `cross_entropy`.
      hidden: [*rows, time, width].
      targets: integers in [0, vocabulary), [*rows, time].
      weights: floating point, [*rows, time].
      chunk: see `cross_entropy`.
      count: see `cross_entropy`.

    Returns:
      A scalar in nats; float32, or float64 for float64 scores.

    Raises:
      ValueError: shapes do not fit, there is no position, or `chunk` is below 1.
    """
    if weights.shape != targets.shape:
        raise ValueError(f"weights has shape {weights.shape} and targets {targets.shape}; they must be equal")
    return _sum(scores, _chunks(hidden, targets, chunk), head, hidden, targets, weights, count)


def _chunks(hidden: jax.Array, targets: jax.Array, chunk: int) -> int:
    if targets.ndim < 1 or hidden.shape[:-1] != targets.shape or not targets.size:
        raise ValueError(
            f"hidden has shape {hidden.shape} and targets {targets.shape}; they must be [*rows, time, width] and "
            "[*rows, time], with at least one position"
        )
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    return -(-targets.shape[-1] // chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(
    scores: Scores, chunks: int, head: Any, hidden: jax.Array, targets: jax.Array, count: jax.Array | None
) -> jax.Array:
    return _forward_alone(scores, chunks, head, hidden, targets, count)[0]


def _forward(
    scores: Scores, chunks: int, head: Any, hidden: Any, targets: Any, count: Any
) -> tuple[jax.Array, tuple]:
    head_is_trained = _is_trained(head)
    head, hidden, targets, count = _values(head, hidden, targets, count)
    if head_is_trained:
        losses, log_sums = _forward_alone(scores, chunks, head, hidden, targets, count)
        return losses, (None, (head, hidden, targets, count, log_sums))
    weights = jnp.ones(targets.shape, _wide(hidden.dtype))
    losses, slopes, _ = _with_gradients(scores, chunks, head, False, hidden, targets, count, weights)
    return losses, (slopes, None)


def _backward(
    scores: Scores, chunks: int, kept: tuple, weight: jax.Array
) -> tuple[Any, jax.Array, None, None]:
    slopes, inputs = kept
    if inputs is None:
        return None, (weight[..., None] * slopes).astype(slopes.dtype), None, None
    head, hidden, targets, count, log_sums = inputs
    _, of_hidden, of_head = _with_gradients(
        scores, chunks, head, True, hidden, targets, count, weight, log_sums
    )
    return of_head, of_hidden, None, None


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(
    scores: Scores,
    chunks: int,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    count: jax.Array | None,
) -> jax.Array:
    return jnp.sum(weights * _forward_alone(scores, chunks, head, hidden, targets, count)[0])


def _sum_forward(
    scores: Scores, chunks: int, head: Any, hidden: Any, targets: Any, weights: Any, count: Any
) -> tuple[jax.Array, tuple]:
    head_is_trained = _is_trained(head)
    head, hidden, targets, weights, count = _values(head, hidden, targets, weights, count)
    losses, of_hidden, of_head = _with_gradients(
        scores, chunks, head, head_is_trained, hidden, targets, count, weights
    )
    return jnp.sum(weights * losses), (of_head, of_hidden, losses.astype(weights.dtype))


def _sum_backward(
    _scores: Scores, _chunks: int, kept: tuple, slope: jax.Array
) -> tuple[Any, jax.Array, None, jax.Array, None]:
    of_head, of_hidden, of_weights = jax.tree.map(lambda leaf: (slope * leaf).astype(leaf.dtype), kept)
    return of_head, of_hidden, None, of_weights, None


_sum.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


def _with_gradients(
    scores: Scores,
    chunks: int,
    head: Any,
    head_is_trained: bool,
    hidden: jax.Array,
    targets: jax.Array,
    count: jax.Array | None,
    weights: jax.Array,
    log_sums: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Any]:
    """Losses, and gradients of their weighted sum with respect to the hidden states and the head (None: not trained).

    `log_sums` are those of an earlier pass, if there was one.
    """
    leaves, structure = jax.tree.flatten(head)
    trained = [
        i for i, leaf in enumerate(leaves) if head_is_trained and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]

    def with_leaves(changed: list[jax.Array], rows: jax.Array) -> jax.Array:
        every = list(leaves)
        for index, leaf in zip(trained, changed, strict=True):
            every[index] = leaf
        return scores(jax.tree.unflatten(structure, every), rows)

    def one(
        total: list[jax.Array], rows: jax.Array, wanted: jax.Array, weight: jax.Array, *given: jax.Array
    ) -> tuple[list[jax.Array], tuple[jax.Array, jax.Array]]:
        found, pull = jax.vjp(with_leaves, [leaves[index] for index in trained], rows)
        loss, log_sum = _loss_and_log_sum(found, wanted)
        # Zeros in place of products with 0: filled up positions have no sum that belongs to their scores.
        slope = _slope(found, wanted, given[0] if given else log_sum)
        slope = jnp.where(weight[..., None] == 0, 0, weight[..., None] * slope)
        of_head, of_rows = pull(slope.astype(found.dtype))
        total = [whole + part.astype(whole.dtype) for whole, part in zip(total, of_head, strict=True)]
        return total, (loss, of_rows)

    if count is not None:
        weights = jnp.where(jnp.arange(weights.shape[-1]) < count, weights, 0)
    nothing = [jnp.zeros(leaves[i].shape, _wide(leaves[i].dtype)) for i in trained]
    further = () if log_sums is None else (log_sums,)
    total, (losses, of_hidden) = _over_chunks(
        one, nothing, chunks, targets.ndim - 1, count, hidden, targets, weights, *further
    )
    of_leaves: list[jax.Array | None] = [None] * len(leaves)
    for index, whole in zip(trained, total, strict=True):
        of_leaves[index] = whole.astype(leaves[index].dtype)
    return losses, of_hidden, jax.tree.unflatten(structure, of_leaves)


def _forward_alone(
    scores: Scores, chunks: int, head: Any, hidden: jax.Array, targets: jax.Array, count: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Losses, and the logarithms of the sums of exponentials."""

    def one(_: Any, rows: jax.Array, wanted: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        return None, _loss_and_log_sum(scores(head, rows), wanted)

    return _over_chunks(one, None, chunks, targets.ndim - 1, count, hidden, targets)[1]


def _loss_and_log_sum(found: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = found.astype(_wide(found.dtype))
    log_sum = jax.nn.logsumexp(wide, axis=-1)
    return log_sum - jnp.take_along_axis(wide, wanted[..., None], axis=-1)[..., 0], log_sum


def _slope(found: jax.Array, wanted: jax.Array, log_sum: jax.Array) -> jax.Array:
    """Derivative of the losses with respect to the scores: the softmax, less one at the target."""
    p = jnp.exp(found.astype(_wide(found.dtype)) - log_sum[..., None])
    return p - (lax.broadcasted_iota(wanted.dtype, p.shape, p.ndim - 1) == wanted[..., None])


def _over_chunks(
    function: Callable[..., tuple[Any, Any]],
    carry: Any,
    chunks: int,
    axis: int,
    count: jax.Array | None,
    *arrays: jax.Array,
) -> tuple[Any, Any]:
    """Fold `function(carry, *parts) -> (carry, results)` over equal pieces of an axis that arrays and results share.

    Behind the first `count` positions results are zeros, and pieces that lie there whole leave the carry as it is.
    """
    time = arrays[0].shape[axis]
    size = -(-time // chunks)

    def split(x: jax.Array) -> jax.Array:
        lacking = chunks * size - time
        padded = jnp.pad(x, [(0, lacking if a == axis else 0) for a in range(x.ndim)]) if lacking else x
        return jnp.moveaxis(padded.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :]), axis, 0)

    def join(x: jax.Array) -> jax.Array:
        whole = jnp.moveaxis(x, 0, axis)
        whole = whole.reshape(*whole.shape[:axis], chunks * size, *whole.shape[axis + 2 :])
        return lax.slice_in_dim(whole, 0, time, axis=axis)

    def one(carry: Any, inputs: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[Any, Any]:
        index, parts = inputs
        if count is None:
            return function(carry, *parts)
        shapes = jax.eval_shape(function, carry, *parts)[1]

        def compute(carry: Any) -> tuple[Any, Any]:
            carry, results = function(carry, *parts)
            return carry, jax.tree.map(keep, results)

        def keep(x: jax.Array) -> jax.Array:
            there = index * size + jnp.arange(size) < count
            return jnp.where(there.reshape(size, *(1,) * (x.ndim - axis - 1)), x, jnp.zeros((), x.dtype))

        def skip(carry: Any) -> tuple[Any, Any]:
            return carry, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        return lax.cond(index * size < count, compute, skip, carry)

    carry, results = lax.scan(one, carry, (jnp.arange(chunks), tuple(map(split, arrays))))
    return carry, jax.tree.map(join, results)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _is_trained(head: Any) -> bool:
    return any(leaf.perturbed for leaf in jax.tree.leaves(head, is_leaf=_is_primal))


def _values(*trees: Any) -> tuple[Any, ...]:
    return jax.tree.map(lambda leaf: leaf.value, trees, is_leaf=_is_primal)


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)
