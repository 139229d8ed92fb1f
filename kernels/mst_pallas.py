"""Nearest points of other labels as a Pallas kernel: distances are computed tile by tile and never written out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_TILE = 64
_STEP = 32  # dimensions multiplied at a time


def nearest_outside(
    points: jax.Array, norms: jax.Array, present: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """A function of labels for Boruvka's rounds.

    Args:
      points: float32[n, d], about their mean.
      norms: float32[n], squared.
      present: bool[n].

    Returns:
      int32[n] labels to the least squared distance from each point to a present one of another label, infinity if none,
      and that point, the lowest of equals.

    Raises:
      ValueError: the points are not float32.
    """
    if points.dtype != jnp.float32:
        raise ValueError(f"points has dtype {points.dtype}; implementation 'pallas' takes float32")
    n, dimensions = points.shape
    rows = -n % _TILE
    points = jnp.pad(points, ((0, rows), (0, -dimensions % _STEP)))
    norms = jnp.pad(norms, (0, rows))

    def nearest(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        padded = jnp.pad(jnp.where(present, labels, -1), (0, rows), constant_values=-1)
        weight, other = jax.lax.platform_dependent(
            points,
            norms,
            padded,
            cpu=functools.partial(_call, interpret=True),
            cuda=functools.partial(_call, compiler_params=triton.CompilerParams(num_warps=4)),
        )
        return weight[:n], jnp.minimum(other[:n], n - 1)

    return nearest


def _call(
    points: jax.Array, norms: jax.Array, labels: jax.Array, **options: Any
) -> tuple[jax.Array, jax.Array]:
    n = len(points)
    whole = [
        pl.BlockSpec(array.shape, lambda i, rank=array.ndim: (0,) * rank) for array in (points, norms, labels)
    ]
    own = pl.BlockSpec((_TILE,), lambda i: (i,))
    return pl.pallas_call(
        _kernel,
        grid=(n // _TILE,),
        in_specs=whole,
        out_specs=(own, own),
        out_shape=(jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)),
        **options,
    )(points, norms, labels)


def _kernel(points_ref: Any, norms_ref: Any, labels_ref: Any, weight_ref: Any, other_ref: Any) -> None:
    n, dimensions = points_ref.shape
    here = pl.ds(pl.multiple_of(pl.program_id(0) * _TILE, _TILE), _TILE)
    own_norms, own_labels = norms_ref[here], labels_ref[here]

    def tile(index: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weight, other = best
        first = pl.multiple_of(index * _TILE, _TILE)
        there = pl.ds(first, _TILE)

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            part = pl.ds(pl.multiple_of(step * _STEP, _STEP), _STEP)
            return total + jax.lax.dot_general(
                points_ref[here, part],
                points_ref[there, part],
                (((1,), (1,)), ((), ())),
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )

        products = jax.lax.fori_loop(0, dimensions // _STEP, add, jnp.zeros((_TILE, _TILE), jnp.float32))
        distances = jnp.maximum(own_norms[:, None] + norms_ref[there][None, :] - 2 * products, 0)
        labels = labels_ref[there]
        allowed = (
            (own_labels[:, None] != labels[None, :]) & (own_labels[:, None] >= 0) & (labels[None, :] >= 0)
        )
        outside = jnp.where(allowed & (distances < jnp.inf), distances, jnp.inf)
        least = jnp.min(outside, axis=1)
        column = first + jax.lax.broadcasted_iota(jnp.int32, (_TILE, _TILE), 1)
        place = jnp.min(jnp.where(outside == least[:, None], column, n), axis=1)
        closer = least < weight
        return jnp.where(closer, least, weight), jnp.where(closer, place, other)

    start = (jnp.full(_TILE, jnp.inf, jnp.float32), jnp.full(_TILE, n, jnp.int32))
    weight_ref[...], other_ref[...] = jax.lax.fori_loop(0, n // _TILE, tile, start)
