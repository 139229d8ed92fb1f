"""A p-parameter filtration as slices: one parameter runs, the others are fixed at a grid point.

A slice is an ordinary one-parameter filtration by integers, and all slices go through the same program in lanes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxlab.persistence.filtrations import Filtration
from jaxlab.persistence.grids import Grid, grid_ranks

_WORK_AT_ONCE = {"cpu": 2**11}
"""Cells in all lanes of one batch. On a CPU a batch must stay in a core's cache: five times faster for large images."""
_WORK_AT_ONCE_ELSEWHERE = 2**24


class Sliced(NamedTuple):
    """Ranks of the cells on a grid, the running parameter first."""

    running: tuple[Int[Array, " cells"], ...]
    fixed: tuple[Int[Array, "cells q"], ...]
    points: Int[np.ndarray, "slices q"]
    axis: int
    """Which parameter runs."""
    shape: tuple[int, ...]
    """Of the grid, in its own order."""

    @property
    def lines(self) -> int:
        """Lines of the running parameter; this rank means never."""
        return self.shape[self.axis]


def slices_of(filtration: Filtration, grid: Grid) -> Sliced:
    """The parameter with the most lines runs, so that there are as few slices as possible."""
    shape = grid.shape
    axis = int(np.argmax(shape))
    ranks = [grid_ranks(grades, grid) for grades in filtration.grades]
    others = [i for i in range(len(shape)) if i != axis]
    points = (
        np.indices([shape[i] for i in others]).reshape(len(others), -1).T if others else np.zeros((1, 0), int)
    )
    return Sliced(
        tuple(r[:, axis] for r in ranks),
        tuple(r[:, np.array(others, int)] for r in ranks),
        points.astype(np.int32),
        axis,
        shape,
    )


def present(sliced: Sliced, dimension: int, point: Int[Array, " q"]) -> Bool[Array, " cells"]:
    """Which cells of a dimension ever enter in the slice at `point`."""
    below = jnp.all(sliced.fixed[dimension] <= point, axis=-1)
    return below & (sliced.running[dimension] < sliced.lines)


def entered(sliced: Sliced, dimension: int, which: Bool[Array, " cells"]) -> Int[Array, " lines"]:
    """How many of these cells have entered, at each line of the running parameter."""
    return count_ranks(sliced.running[dimension], sliced.lines, which)


def count_ranks(
    ranks: Int[Array, " cells"], lines: int, which: Bool[Array, " cells"] | int = 1
) -> Int[Array, " lines"]:
    """How many of these ranks lie at or below each line; those from `lines` on are never counted."""
    born = jnp.zeros(lines, jnp.int32).at[ranks].add(which, mode="drop")
    return jnp.cumsum(born, dtype=jnp.int32)


def over_slices(
    sliced: Sliced, function: Callable[[Int[Array, " q"]], Int[Array, " lines"]], *, work: int
) -> Int[Array, "*lines"]:
    """Calls `function` for every slice and puts the results on the grid.

    Args:
      sliced: from `slices_of`.
      function: from the point of a slice to a value at each line of the running parameter.
      work: cells that one lane holds; it limits how many slices go at once.
    """
    points = jnp.asarray(sliced.points)
    at_once = _WORK_AT_ONCE.get(jax.default_backend(), _WORK_AT_ONCE_ELSEWHERE)
    batch = max(1, at_once // max(work, 1))
    if len(points) <= batch:
        found = jax.vmap(function)(points)
    else:
        found = jax.lax.map(function, points, batch_size=batch)
    others = [size for i, size in enumerate(sliced.shape) if i != sliced.axis]
    return jnp.moveaxis(found.reshape(*others, sliced.lines), -1, sliced.axis)
