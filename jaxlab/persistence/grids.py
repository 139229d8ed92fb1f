"""Grids: one increasing vector of lines for each parameter, and the ranks of grades on them.

Comparisons decide topology, so they happen once, here: a grade becomes the index of the first line at or above it
("rounding up"), and all counting works on these integers. The lines themselves stay differentiable: they are gathered
from the values, so a gradient on a line reaches the value that realises it. Reference: arXiv:2306.03801, section 2;
arXiv:2406.07224, for the gradient.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_no_nan

Strategy = Literal["exact", "regular", "quantile", "regular_closest", "regular_left"]
STRATEGIES = ("exact", "regular", "quantile", "regular_closest", "regular_left")
CONSTANT_STRATEGIES = ("regular",)
"""Strategies whose lines carry no gradient."""


class Grid(NamedTuple):
    """The lines of each parameter: non-decreasing; repeated lines and +inf lines at the end are padding."""

    coords: tuple[Float[Array, " lines"], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of lines of each parameter."""
        return tuple(lines.shape[-1] for lines in self.coords)


def make_grid(
    values: Float[Array, "cells p"] | Sequence[Float[Array, " cells"]],
    *,
    strategy: Strategy = "exact",
    resolution: int | Sequence[int] | None = None,
) -> Grid:
    """A grid from the grades of a filtration.

    Under jit and vmap the number of lines is static: an exact grid has one line a value, equal values give repeated
    lines (`distinct_lines` drops them outside of jit), and +inf values repeat the largest finite one.

    Args:
      values: grades, one column a parameter, or one vector a parameter where their lengths differ (a Rips filtration
        wants {0} and the distances of pairs, and the function's values). +inf is ignored: a cell that never enters.
      strategy: "exact" takes every value. The others coarsen: "quantile" takes order statistics of the distinct
        values, evenly spaced; "regular_closest" the values nearest to evenly spaced numbers, "regular_left" the
        largest values not above them; "regular" the evenly spaced numbers themselves, which carry no gradient.
      resolution: lines of each parameter, at least 2, for all strategies but "exact".

    Returns:
      The grid. Its first and last lines are the smallest and the largest value, so that every cell has its place.

    Raises:
      InputError: no values, NaN or -inf among them, no finite value, an unknown strategy, or a resolution that is
        missing, below 2, or given with an exact grid.
    """
    vectors = _vectors(values)
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    sizes = _sizes(strategy, resolution, len(vectors))
    coords = []
    for vector, size in zip(vectors, sizes, strict=True):
        lines, _ = sort_lines(vector)
        coords.append(lines if size is None else _coarse(lines, strategy, size))
    return Grid(tuple(coords))


def sort_lines(
    values: Float[Array, " cells"], *, ties: Literal["first", "mean"] = "first"
) -> tuple[Float[Array, " cells"], Int[Array, " cells"]]:
    """The lines of an exact grid, and whose they are.

    Args:
      values: grades in one parameter; +inf is replaced by the largest finite value, so that every line is finite.
      ties: where the gradient of a repeated line goes: "first" to the value itself, of which the measure's weights use
        the first in input order; "mean" in equal parts to all equal values.

    Returns:
      lines: sorted, repeated where values are equal.
      owner: the index of the value that each line is.
    """
    fixed = jax.lax.stop_gradient(values)
    order = jnp.argsort(fixed, stable=True).astype(jnp.int32)
    finite = jnp.sum(jnp.isfinite(fixed))
    owner = order[jnp.minimum(jnp.arange(len(order)), jnp.maximum(finite - 1, 0))]
    lines = values[owner]
    if ties == "mean":
        still = jax.lax.stop_gradient(lines)
        group = jnp.cumsum(_is_first(still)) - 1
        size = jax.ops.segment_sum(jnp.ones_like(still), group, num_segments=len(order))
        mean = (jax.ops.segment_sum(lines, group, num_segments=len(order)) / size)[group]
        # The mean of equal numbers may be off by a rounding; the lines must be the numbers themselves.
        lines = still + (mean - jax.lax.stop_gradient(mean))
    return lines, owner


def distinct_lines(grid: Grid) -> Grid:
    """The grid without repeated and infinite lines: smaller, with the same measure on it; not for use under jit.

    Raises:
      InputError: the grid is traced, so that its shape cannot depend on its values.
    """
    if not is_concrete(grid):
        raise InputError(
            "grid is traced; distinct_lines needs its values, so call it outside of jit, vmap and grad"
        )
    coords = []
    for lines in grid.coords:
        keep = np.flatnonzero(np.isfinite(np.asarray(lines)) & np.asarray(_is_first(lines)))
        coords.append(lines[keep])
    return Grid(tuple(coords))


def nearest_thresholds(grid: Grid) -> Grid:
    """A grid on which rounding up counts at line i what is nearest to line i of the given one.

    Its lines are halfway between the given ones; the last takes all that lies further out. A value halfway goes to the
    lower line.
    """
    return Grid(
        tuple(
            jnp.append((lines[:-1] + lines[1:]) / 2, jnp.finfo(lines.dtype).max).astype(lines.dtype)
            for lines in grid.coords
        )
    )


def rescaled(values: Array, low: Array, high: Array) -> Array:
    """(values - low) / (high - low), moved alone where the two are equal; shapes broadcast."""
    return (values - low) / jnp.where(high > low, high - low, 1)


def line_ranks(values: Float[Array, "*shape"], lines: Float[Array, " lines"]) -> Int[Array, "*shape"]:
    """Index of the first line at or above each value; the number of lines, meaning never, where there is none.

    +inf is never, also where the grid ends with +inf lines.
    """
    values, lines = jax.lax.stop_gradient((values, lines))
    # "scan" is a loop, whose result is kept: XLA fuses the other methods into whatever looks at a rank, and then
    # searches again for each of a million triangles.
    found = jnp.searchsorted(lines, values, side="left", method="scan").astype(jnp.int32)
    return jnp.where(jnp.isposinf(values), lines.shape[0], found)


def grid_ranks(values: Float[Array, "*cells p"], grid: Grid) -> Int[Array, "*cells p"]:
    """`line_ranks` in every parameter."""
    return jnp.stack([line_ranks(values[..., i], lines) for i, lines in enumerate(grid.coords)], -1)


def require_grid(grid: Grid, parameters: int) -> None:
    """Raises InputError unless the grid has so many parameters, each with lines that do not decrease."""
    if len(grid.coords) != parameters:
        raise InputError(f"grid has {len(grid.coords)} parameters, but the filtration has {parameters}")
    for i, lines in enumerate(grid.coords):
        if lines.ndim != 1 or lines.shape[0] == 0:
            raise InputError(
                f"grid.coords[{i}] has shape {lines.shape}, but must be a vector of at least one line"
            )
        require_no_nan(f"grid.coords[{i}]", lines, infinite=True)
        # As a whole: under jit a slice of a concrete array is traced.
        if is_concrete(lines) and (np.diff(known := np.asarray(lines)) < 0).any():
            j = int(np.flatnonzero(known[1:] < known[:-1])[0])
            raise InputError(
                f"grid.coords[{i}] decreases from {lines[j]} to {lines[j + 1]} at {j + 1}; lines must be sorted"
            )


def _vectors(values: Array | Sequence[Array]) -> list[Array]:
    if isinstance(values, jax.Array | np.ndarray):
        if values.ndim != 2:
            raise InputError(f"values has shape {values.shape}, but must have one column a parameter")
        values = list(jnp.asarray(values).T)
    vectors = [jnp.asarray(vector) for vector in values]
    if not vectors:
        raise InputError("values is empty, but a grid needs at least one parameter")
    for i, vector in enumerate(vectors):
        if vector.ndim != 1 or vector.shape[0] == 0:
            raise InputError(
                f"values of parameter {i} have shape {vector.shape}; a vector of at least one is needed"
            )
        if not jnp.issubdtype(vector.dtype, jnp.floating):
            raise InputError(
                f"values of parameter {i} have dtype {vector.dtype}; they must be floating point"
            )
        require_no_nan(f"values of parameter {i}", vector, infinite=True)
        if is_concrete(vector) and not np.isfinite(np.asarray(vector)).any():
            raise InputError(f"values of parameter {i} are all infinite: no cell ever enters")
    return vectors


def _sizes(strategy: str, resolution: int | Sequence[int] | None, parameters: int) -> list[int | None]:
    if strategy == "exact":
        if resolution is not None:
            raise InputError(
                f"resolution is {resolution}, but an exact grid has one line a value: leave it out"
            )
        return [None] * parameters
    if resolution is None:
        raise InputError(f"resolution is missing: strategy {strategy!r} needs the number of lines")
    sizes = [resolution] * parameters if isinstance(resolution, int) else list(resolution)
    if len(sizes) != parameters or min(sizes) < 2:
        raise InputError(
            f"resolution is {resolution}, but must be one number, or one for each of {parameters} parameters, of at "
            "least 2 each"
        )
    return list(sizes)


def _coarse(lines: Array, strategy: str, size: int) -> Array:
    """`size` of the sorted lines, or evenly spaced numbers."""
    fixed = jax.lax.stop_gradient(lines)
    even = jnp.linspace(fixed[0], fixed[-1], size, dtype=lines.dtype).at[-1].set(fixed[-1])
    if strategy == "regular":
        return even
    if strategy == "quantile":
        # Of the distinct values: a structural tie, as all vertices of a Rips complex at 0, must not take every line.
        distinct = jnp.cumsum(_is_first(fixed)) - 1
        wanted = jnp.round(jnp.linspace(0.0, 1.0, size) * distinct[-1]).astype(jnp.int32)
        return lines[jnp.searchsorted(distinct, wanted, side="left")]
    left = jnp.searchsorted(fixed, even, side="right") - 1
    if strategy == "regular_left":
        return lines[_first_equal(fixed, left)]
    right = jnp.minimum(left + 1, len(lines) - 1)
    nearer = jnp.where(even - fixed[left] <= fixed[right] - even, left, right)
    return lines[_first_equal(fixed, nearer)]


def _first_equal(lines: Array, index: Array) -> Array:
    """The first of the equal lines, which is the one that has the gradient."""
    return jnp.searchsorted(lines, lines[index], side="left")


def _is_first(lines: Array) -> Array:
    """Whether a sorted value is the first of its equals."""
    return jnp.concatenate([jnp.ones(1, bool), lines[1:] != lines[:-1]])
