"""One threshold on the removal costs of the whole model, which says how much each matrix gives up.

Everything that costs at most the threshold is pruned, and the threshold is the largest cost at which no more than
int(sparsity * total) parameters go. Equal costs are pruned together or not at all, so the target may be missed
by the size of a tie, never exceeded. The one exception is cost 0 (pruned earlier, or dead): that is always pruned,
also where it alone exceeds the target.

The number of parameters removed never falls with the threshold, so it is found by bisection on the bits of a
floating-point number (non-negative ones are ordered as their bit patterns): 31 passes of comparing and counting in
float32, no sort and no concatenation, and over sharded costs only counts are exchanged. Counts are exact far beyond
2^31. Reference: arXiv:2312.17244, section 3.3.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError

_LIMB = 15
"""Counts are held as two int32: high * 2^15 + low. Exact for totals below 2^46, summed over at most 2^16 numbers."""


def element_threshold(
    costs: Mapping[str, Float[Array, "layers rows columns"]], sparsity: float, total: int | None = None
) -> Float[Array, ""]:
    """The largest cost at which at most int(sparsity * total) weights cost that or less.

    Without ties this prunes exactly int(sparsity * total) weights.

    Args:
      costs: name of the matrix -> removal costs of its weights, >= 0.
      sparsity: share of `total` to prune, in [0, 1].
      total: the number of parameters that the share refers to; None: as many as there are costs.

    Returns:
      Threshold; prune where cost <= threshold.

    Raises:
      InputError: `sparsity` or `total` is out of range, or there is nothing to prune.
    """
    size = sum(value.size for value in _some(costs, "costs").values())
    return _element_threshold(dict(costs), _limbs(_budget(sparsity, size if total is None else total)))


def group_threshold(
    group_costs: Mapping[str, Float[Array, "layers rows groups"]], sparsity: float, *, n: int, m: int
) -> Float[Array, ""]:
    """The largest group cost at which at most a share sparsity * m / n of all groups cost that or less.

    Pruning n weights of each of these groups of m removes at most int(sparsity * m * groups) weights.

    Args:
      group_costs: name of the matrix -> costs of converting its groups (see `n_of_m`), >= 0.
      sparsity: share of all weights to prune, from 0 to n / m.
      n: weights pruned in a converted group.
      m: weights in a group.

    Returns:
      Threshold; convert the groups whose cost <= threshold.

    Raises:
      InputError: `sparsity` is out of what n:m can reach, or there is nothing to prune.
    """
    if not 0 < n <= m:
        raise InputError(f"n is {n}; it must be from 1 to m = {m}")
    groups = sum(value.size for value in _some(group_costs, "group_costs").values())
    if not 0 <= sparsity <= n / m:
        raise InputError(f"sparsity is {sparsity}; {n}:{m} pruning reaches from 0 to {n / m:g}")
    return _element_threshold(dict(group_costs), _limbs(_budget(sparsity, groups * m) // n))


def structured_threshold(
    row_costs: Mapping[str, Float[Array, "layers rows"]] | None,
    column_costs: Mapping[str, Float[Array, "layers columns"]] | None,
    shapes: Mapping[str, tuple[int, int]],
    sparsity: float,
) -> Float[Array, ""]:
    """The largest cost at which rows and columns of that cost or less hold at most int(sparsity * total) weights.

    r rows and c columns of a matrix [R, C] hold r C + c R - r c weights; `total` is the sum over layers of R C.

    Args:
      row_costs: name of the matrix -> removal costs of its rows, >= 0; None to prune columns only.
      column_costs: name of the matrix -> removal costs of its columns, >= 0; None to prune rows only.
      shapes: name of the matrix -> (R, C).
      sparsity: share of all weights to prune, in [0, 1].

    Returns:
      Threshold; prune the rows and columns whose cost <= threshold.

    Raises:
      InputError: `sparsity` is out of range, names or shapes do not agree, or there is nothing to prune.
    """
    kinds = {"row_costs": (row_costs, 0), "column_costs": (column_costs, 1)}
    given = {what: (values, axis) for what, (values, axis) in kinds.items() if values is not None}
    if not given:
        raise InputError("row_costs and column_costs are both None; give at least one")
    layers: dict[str, int] = {}
    for what, (values, axis) in given.items():
        if set(values) != set(shapes) or not shapes:
            raise InputError(f"{what} are of {sorted(values)}, shapes of {sorted(shapes)}; names must agree")
        for name, value in values.items():
            layers.setdefault(name, len(value))
            if value.shape != (layers[name], shapes[name][axis]):
                raise InputError(
                    f"{what}[{name!r}] has shape {value.shape}; by its layers and shapes[{name!r}] = "
                    f"{shapes[name]} it must be {(layers[name], shapes[name][axis])}"
                )
    total = sum(layers[name] * math.prod(shapes[name]) for name in layers)
    given_costs = {what: dict(values) for what, (values, _) in given.items()}
    return _structured_threshold(given_costs, tuple(sorted(shapes.items())), _limbs(_budget(sparsity, total)))


def unit_threshold(
    costs: Mapping[str, Float[Array, "layers units"]], sizes: Mapping[str, int], target: int
) -> Float[Array, ""]:
    """The largest cost at which units of that cost or less hold at most `target` parameters.

    For coupled structures (hidden units, heads), each of which takes a fixed number of parameters along.

    Args:
      costs: name of the kind of unit -> removal costs, >= 0.
      sizes: name -> parameters that leave with one unit, >= 1.
      target: parameters to remove, >= 0.

    Returns:
      Threshold; prune the units whose cost <= threshold.

    Raises:
      InputError: names do not agree, or a size or the target is out of range.
    """
    if set(_some(costs, "costs")) != set(sizes):
        raise InputError(f"costs are of {sorted(costs)}, sizes of {sorted(sizes)}; names must agree")
    for name, size in sizes.items():
        if not 1 <= size * costs[name].shape[-1] < 2**31:
            raise InputError(
                f"sizes[{name!r}] is {size}; it must be at least 1, and a layer below 2^31 parameters"
            )
    if target < 0:
        raise InputError(f"target is {target}; it must be at least 0 parameters")
    return _unit_threshold(dict(costs), tuple(sorted(sizes.items())), _limbs(target))


@jax.jit
def _element_threshold(costs: dict[str, jax.Array], budget: jax.Array) -> jax.Array:
    def removed(threshold: jax.Array) -> list[jax.Array]:
        return [_count(values, threshold, axis=(1, 2)) for values in costs.values()]

    return _largest_within(removed, costs, budget)


@functools.partial(jax.jit, static_argnames="shapes")
def _structured_threshold(
    costs: dict[str, dict[str, jax.Array]], shapes: tuple[tuple[str, tuple[int, int]], ...], budget: jax.Array
) -> jax.Array:
    def count(kind: str, name: str, threshold: jax.Array) -> jax.Array | int:
        return _count(costs[kind][name], threshold, axis=1) if kind in costs else 0

    def removed(threshold: jax.Array) -> list[jax.Array]:
        counts = []
        for name, (rows, columns) in shapes:
            r, c = count("row_costs", name, threshold), count("column_costs", name, threshold)
            counts.append(jnp.asarray(r * columns + c * (rows - r)))
        return counts

    return _largest_within(removed, costs, budget)


@functools.partial(jax.jit, static_argnames="sizes")
def _unit_threshold(
    costs: dict[str, jax.Array], sizes: tuple[tuple[str, int], ...], budget: jax.Array
) -> jax.Array:
    def removed(threshold: jax.Array) -> list[jax.Array]:
        return [size * _count(costs[name], threshold, axis=1) for name, size in sizes]

    return _largest_within(removed, costs, budget)


def _largest_within(
    removed: Callable[[jax.Array], list[jax.Array]], costs: Any, budget: Int[Array, " 2"]
) -> Float[Array, ""]:
    """The largest of `costs` at which `removed` (parameters per layer) stays within the budget; 0 if none does."""
    values = jax.tree.leaves(costs)
    dtype = jnp.result_type(*values)
    bits = jnp.finfo(dtype).bits
    integer = jnp.dtype(f"int{bits}")
    largest = jax.lax.bitcast_convert_type(jnp.finfo(dtype).max, integer)

    def as_float(pattern: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(pattern, dtype)

    def set_bit(step: jax.Array, pattern: jax.Array) -> jax.Array:
        higher = pattern | (jnp.ones((), integer) << (bits - 2 - step).astype(integer))
        high, low = _total(removed(as_float(jnp.minimum(higher, largest))))
        fits = (high < budget[0]) | ((high == budget[0]) & (low <= budget[1]))
        return jnp.where(fits & (higher <= largest), higher, pattern)

    bound = as_float(jax.lax.fori_loop(0, bits - 1, set_bit, jnp.zeros((), integer)))
    within = [jnp.max(value, initial=0, where=value <= bound).astype(dtype) for value in values]
    return jnp.max(jnp.stack(within))


def _count(costs: jax.Array, threshold: jax.Array, *, axis: int | tuple[int, ...]) -> Int[Array, " layers"]:
    return jnp.sum(costs <= threshold, axis=axis, dtype=jnp.int32)


def _total(counts: list[jax.Array]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Their sum as (high, low), low below 2^15."""
    every = jnp.concatenate(counts)
    low = jnp.sum(every & (2**_LIMB - 1))
    return jnp.sum(every >> _LIMB) + (low >> _LIMB), low & (2**_LIMB - 1)


def _limbs(budget: int) -> Int[np.ndarray, " 2"]:
    return np.array([budget >> _LIMB, budget % 2**_LIMB], np.int32)


def _budget(sparsity: float, total: int) -> int:
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity is {sparsity}; it must be in [0, 1]")
    if total < 1:
        raise InputError(f"total is {total}; it must be at least 1 parameter")
    return int(sparsity * total)


def _some(costs: Mapping[str, Array], argument: str) -> Mapping[str, Array]:
    if not costs:
        raise InputError(f"{argument} is empty; give the costs of at least one matrix")
    return costs
