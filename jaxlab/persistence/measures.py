"""Signed measures: finite sums of Diracs with integer weights, dense on a grid or as a list of atoms.

An invariant that is constant on half-open grid cells (Hilbert function, Euler surface) has one signed measure with
H(x) = mu({y <= x}): its Moebius inversion. Reference: arXiv:2306.03801, section 2.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_no_nan, require_shape
from jaxlab.persistence.grids import Grid, grid_ranks, rescaled


class DenseMeasure(NamedTuple):
    """A weight for every grid point; most of them zero."""

    weights: Int[Array, "*lines"]
    grid: Grid


class SparseMeasure(NamedTuple):
    """A list of atoms with room for `cap`; where `mask` is false there is none, its weight is 0 and its point 0."""

    points: Float[Array, "cap p"]
    weights: Int[Array, " cap"]
    mask: Bool[Array, " cap"]


def mobius(values: Int[Array, "*lines"]) -> Int[Array, "*lines"]:
    """Weights whose sums over {y <= x} are the given values: the backward difference along every axis."""
    for axis in range(values.ndim):
        values = jnp.diff(values, axis=axis, prepend=0)
    return values


def integrate(weights: Int[Array, "*lines"]) -> Int[Array, "*lines"]:
    """Values at every grid point, the sums of the weights over {y <= x}: the inverse of `mobius`."""
    for axis in range(weights.ndim):
        weights = jnp.cumsum(weights, axis=axis, dtype=weights.dtype)
    return weights


def sparsify(measure: DenseMeasure, *, max_atoms: int) -> tuple[SparseMeasure, Bool[Array, ""]]:
    """The atoms of a dense measure, in row-major order of the grid. The points are differentiable in the grid.

    Args:
      measure: on a grid.
      max_atoms: room for atoms, at least 1.

    Returns:
      The atoms, and whether there were more than `max_atoms`, in which case the list is incomplete.

    Raises:
      InputError: max_atoms is below 1; or there are more atoms (outside of jit; inside, look at the flag).
    """
    if max_atoms < 1:
        raise InputError(f"max_atoms is {max_atoms}, but must be at least 1")
    count = jnp.count_nonzero(measure.weights)
    if is_concrete(count) and count > max_atoms:
        raise InputError(f"more than max_atoms atoms: {int(count)} > {max_atoms}, raise max_atoms")
    index = jnp.nonzero(measure.weights, size=max_atoms, fill_value=0)
    mask = jnp.arange(max_atoms) < count
    points = jnp.stack([lines[i] for lines, i in zip(measure.grid.coords, index, strict=True)], -1)
    return (
        SparseMeasure(jnp.where(mask[:, None], points, 0), jnp.where(mask, measure.weights[index], 0), mask),
        count > max_atoms,
    )


def densify(measure: SparseMeasure, grid: Grid) -> DenseMeasure:
    """The measure on a grid: exact if every point lies on its lines, else rounded up; what lies beyond is dropped."""
    ranks = grid_ranks(measure.points, grid)
    weights = jnp.where(measure.mask, measure.weights, 0)
    empty = jnp.zeros(grid.shape, measure.weights.dtype)
    return DenseMeasure(empty.at[tuple(ranks.T)].add(weights, mode="drop"), grid)


def corner_of(grid: Grid) -> Float[Array, " p"]:
    """The usual corner for `balance_mass`: 1.1 max - 0.1 min of each parameter's lines."""
    return jnp.stack([1.1 * lines[-1] - 0.1 * lines[0] for lines in grid.coords])


def balance_mass(
    measure: DenseMeasure | SparseMeasure, corner: Float[Array, " p"]
) -> DenseMeasure | SparseMeasure:
    """The measure of the module restricted to {x < corner}; its total mass is zero, as transport distances need.

    Every atom at p becomes the sum over S of (-1)^|S| atoms at p with the coordinates of S moved to the corner.
    Atoms with a coordinate at or beyond the corner vanish.

    Args:
      measure: dense, or a list of atoms.
      corner: one number a parameter; `corner_of(grid)` is the usual one.

    Returns:
      The same kind of measure: dense with one more line a parameter, or 2^p times the room for atoms.
    """
    if isinstance(measure, DenseMeasure):
        weights = measure.weights
        require_shape("corner", corner, (weights.ndim,))
        coords = []
        for axis, lines in enumerate(measure.grid.coords):
            inside = jnp.expand_dims(lines < corner[axis], [i for i in range(weights.ndim) if i != axis])
            weights = jnp.where(inside, weights, 0)
            weights = jnp.concatenate([weights, -weights.sum(axis, keepdims=True, dtype=weights.dtype)], axis)
            coords.append(jnp.append(jnp.minimum(lines, corner[axis]), corner[axis]))
        return DenseMeasure(weights, Grid(tuple(coords)))
    p = measure.points.shape[-1]
    require_shape("corner", corner, (p,))
    inside = measure.mask & jnp.all(measure.points < corner, -1)
    points, signs = [], []
    for moved in itertools.product((False, True), repeat=p):
        points.append(jnp.where(np.array(moved), corner, measure.points))
        signs.append((-1) ** sum(moved))
    mask = jnp.tile(inside, len(signs))
    weights = jnp.concatenate([sign * measure.weights for sign in signs])
    return SparseMeasure(
        jnp.where(mask[:, None], jnp.concatenate(points), 0), jnp.where(mask, weights, 0), mask
    )


def rescale(
    measure: DenseMeasure | SparseMeasure, lo: Float[Array, " p"], hi: Float[Array, " p"]
) -> DenseMeasure | SparseMeasure:
    """The measure with each parameter mapped so that `lo` goes to 0 and `hi` to 1; weights stay.

    For measures of a data set take `lo` and `hi` of its training part. Differentiable in all of them.

    Args:
      measure: dense, or a list of atoms.
      lo: of each parameter.
      hi: not below `lo`; where both are equal the parameter is moved alone.

    Returns:
      The same kind of measure.

    Raises:
      InputError: a wrong shape, numbers that are not finite, or `hi` below `lo`.
    """
    p = measure.weights.ndim if isinstance(measure, DenseMeasure) else measure.points.shape[-1]
    for name, bound in (("lo", lo), ("hi", hi)):
        require_shape(name, bound, (p,))
        require_no_nan(name, bound)
    if is_concrete(lo, hi) and (np.asarray(hi) < np.asarray(lo)).any():
        raise InputError(f"hi is {hi}, but must not be below lo, {lo}")
    if isinstance(measure, DenseMeasure):
        coords = [rescaled(lines, lo[i], hi[i]) for i, lines in enumerate(measure.grid.coords)]
        return measure._replace(grid=Grid(tuple(coords)))
    points = rescaled(measure.points, jnp.asarray(lo), jnp.asarray(hi))
    return measure._replace(points=jnp.where(measure.mask[:, None], points, 0))


def total_mass(measure: DenseMeasure | SparseMeasure) -> Int[Array, ""]:
    """Sum of the weights: the invariant's value at +inf."""
    return jnp.sum(jax.lax.stop_gradient(measure.weights))


def atoms_of(measure: DenseMeasure | SparseMeasure) -> SparseMeasure:
    """A list of atoms as it is; of a dense measure one atom a grid point, most of weight zero, in row-major order."""
    if isinstance(measure, SparseMeasure):
        return measure
    mesh = jnp.meshgrid(*measure.grid.coords, indexing="ij")
    points = jnp.stack([lines.reshape(-1) for lines in mesh], -1)
    weights = measure.weights.reshape(-1)
    mask = (weights != 0) & jnp.all(jnp.isfinite(points), -1)
    return SparseMeasure(jnp.where(mask[:, None], points, 0), jnp.where(mask, weights, 0), mask)
