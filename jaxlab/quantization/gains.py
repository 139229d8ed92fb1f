"""Levels for the amplitude of a group, from the law of a group's norm in a Gaussian row.

In a rotated row of length d, a group of n weights holds the share r^2 ~ Beta(n/2, (d - n)/2) of the squared
norm. The levels below are for sqrt(d) * r, the group's norm over the row's root mean square. Reference:
arXiv:2410.16926 ("theoretically optimal" scales) and, for the densities, Panter and Dite 1951 and Lloyd 1982.
"""

import functools

import numpy as np
from scipy import special

from jaxlab.errors import InputError
from jaxlab.quantization.spec import GRIDS, Grid

_QUADRATURE = 1 << 16
_LLOYD_STEPS = 20_000


def gain_levels(n: int, row_dim: int, bits: int, grid: Grid = "lloyd") -> np.ndarray:
    """Levels of a group's norm over the row's root mean square.

    Args:
      n: weights per group, >= 1.
      row_dim: weights per row, >= n.
      bits: 0 to 8.
      grid: "quantile" (equal probability), "companded" (point density proportional to the cube root of the
        law's
        density: best at high rate) or "lloyd" (least mean squared error, by fixed-point iteration).

    Returns:
      float32[2**bits], increasing (all equal when row_dim == n, where the norm is fixed).

    Raises:
      InputError: an argument is out of range.
    """
    if grid not in GRIDS:
        raise InputError(f"grid is {grid!r}; it must be one of {', '.join(GRIDS)}")
    if not 1 <= n <= row_dim:
        raise InputError(f"group size n = {n} must lie between 1 and the row's length {row_dim}")
    if not 0 <= bits <= 8:
        raise InputError(f"bits is {bits}; it must be 0 to 8")
    return _levels(n, row_dim, bits, grid).copy()


@functools.lru_cache(maxsize=256)
def _levels(n: int, row_dim: int, bits: int, grid: Grid) -> np.ndarray:
    size = 2**bits
    if row_dim == n:
        return np.full(size, np.sqrt(n), np.float32)
    middle = (np.arange(size) + 0.5) / size
    if grid == "quantile":
        share = special.betaincinv(n / 2, (row_dim - n) / 2, middle)
    else:
        share = special.betaincinv((n + 2) / 6, (row_dim - n + 4) / 6, middle)
    levels = np.sqrt(row_dim * share)
    if grid == "lloyd":
        levels = _lloyd_max(levels, n, row_dim)
    return levels.astype(np.float32)


def _lloyd_max(levels: np.ndarray, n: int, row_dim: int) -> np.ndarray:
    # Equal-probability quadrature points of the law; a cell's mean is a difference of prefix sums.
    points = np.sqrt(
        row_dim * special.betaincinv(n / 2, (row_dim - n) / 2, (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE)
    )
    prefix = np.concatenate([[0.0], np.cumsum(points)])
    for _ in range(_LLOYD_STEPS):
        edges = np.concatenate([[0], np.searchsorted(points, (levels[1:] + levels[:-1]) / 2), [_QUADRATURE]])
        width = np.diff(edges)
        updated = np.where(width > 0, np.diff(prefix[edges]) / np.maximum(width, 1), levels)
        if np.max(np.abs(updated - levels)) < 1e-9 * updated[-1]:
            break
        levels = updated
    return levels
