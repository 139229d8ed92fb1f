"""dim H_1 of Rips filtrations, by our own reduction on the device or by gudhi on the host."""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.rips_cohomology import rips_edges, rips_h1_curve
from jaxlab.persistence.checks import is_concrete
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.gudhi_slices import rips_slices_callback
from jaxlab.persistence.rips import degree_rips_slices, function_rips_slices

Backend = Literal["auto", "xla", "pallas", "gudhi"]
_LANES = {"cpu": 1}
"""Slices reduced together; on a CPU one after the other is faster, as none waits for the slowest."""
_LANES_ELSEWHERE = 64
_MOST_POINTS_ON_CPU = 160
"""Beyond so many gudhi on the host is faster than XLA on a CPU."""
_KERNEL_BYTES = 2**31
"""Columns of all slices that a kernel reduces together; there none waits for another."""


def hilbert_rips_h1(
    distances: Float[Array, "n n"],
    values: Float[Array, "n q"],
    grid: Grid,
    *,
    max_cols: int = 64,
    backend: Backend = "auto",
) -> tuple[Int[Array, "*lines"], Bool[Array, ""]]:
    """dim H_1 of a function-Rips filtration (its full flag complex) at every grid point.

    Args:
      distances: symmetric, zero diagonal.
      values: q >= 0 functions on the points.
      grid: 1 + q parameters, the distance first.
      max_cols: room for columns of a slice, unless gudhi does it: one for each class that lives longer than a grid
        cell, and a few more. Memory is max_cols n^3 / 16 bytes a lane, so n up to about 200.
      backend: "xla" everywhere; "pallas", a kernel for NVIDIA GPUs; "gudhi", on the host; "auto" takes the kernel on
        GPUs, gudhi on a CPU for more than 160 points if it is installed and there is one host, else XLA.

    Returns:
      The Hilbert function, and whether some slice needed more than `max_cols` columns, so that it is wrong.

    Raises:
      InputError: as for `hilbert_h0_dense`; an unknown backend; more than `max_cols` columns (outside of jit; inside,
        look at the flag).
      ResourceError: backend "gudhi" without gudhi or on several hosts.
    """
    _require(backend, max_cols)
    ranks, births = function_rips_slices(distances, values, grid)
    curves, overflow = _cycles(ranks, births, grid.shape[0], max_cols, backend, late=False)
    return curves.T.reshape(grid.shape), overflow


def hilbert_h1_degree_rips(
    distances: Float[Array, "n n"],
    degrees: Sequence[int],
    grid: Grid,
    *,
    max_cols: int = 64,
    backend: Backend = "auto",
) -> tuple[Int[Array, "lines degrees"], Bool[Array, ""]]:
    """dim H_1 of a degree-Rips filtration, as a function of distance and of the negated degree.

    At (r, k) there is the flag complex of the points with at least k others within r and of the edges of length at
    most r. In the slice of one k vertices are born late, and an edge enters with the last of its ends or at its length.

    Args:
      distances: symmetric, zero diagonal.
      degrees: decreasing, so that the second parameter -k increases; 0 to n - 1.
      grid: the distance, and -degrees as made by `degree_rips_grid`.
      max_cols: as for `hilbert_rips_h1`.
      backend: as for `hilbert_rips_h1`.

    Returns:
      The Hilbert function, and whether some slice needed more than `max_cols` columns, so that it is wrong.

    Raises:
      InputError: as for `hilbert_h0_degree_rips` and `hilbert_rips_h1`.
      ResourceError: backend "gudhi" without gudhi or on several hosts.
    """
    _require(backend, max_cols)
    ranks, births = degree_rips_slices(distances, degrees, grid)
    curves, overflow = _cycles(ranks, births, grid.shape[0], max_cols, backend, late=True)
    return curves.T, overflow


def _require(backend: Backend, max_cols: int) -> None:
    if backend not in ("auto", "xla", "pallas", "gudhi"):
        raise InputError(f"backend is {backend!r}; it must be 'auto', 'xla', 'pallas' or 'gudhi'")
    if max_cols < 1:
        raise InputError(f"max_cols is {max_cols}, but must be at least 1")


def _cycles(
    ranks: Array, births: Array, lines: int, max_cols: int, backend: Backend, *, late: bool
) -> tuple[Array, Array]:
    """int[slices, lines], and whether a slice had too little room; `late` if births move edges."""
    if backend == "gudhi" or (backend == "auto" and _gudhi_is_faster(ranks.shape[0])):
        return rips_slices_callback(ranks, births, lines=lines, degree=1), jnp.asarray(False)
    implementation = None if backend == "auto" else backend
    curves, needed = _curves(
        ranks, births, lines=lines, max_cols=max_cols, implementation=implementation, late=late
    )
    overflow = jnp.max(needed) > max_cols
    if is_concrete(overflow) and overflow:
        raise InputError(f"more than max_cols columns: {int(jnp.max(needed))} > {max_cols}, raise max_cols")
    return curves, overflow


def _gudhi_is_faster(n: int) -> bool:
    on_cpu = jax.default_backend() == "cpu" and jax.process_count() == 1
    return n > _MOST_POINTS_ON_CPU and on_cpu and importlib.util.find_spec("gudhi") is not None


@functools.partial(jax.jit, static_argnames=("lines", "max_cols", "implementation", "late"))
def _curves(
    ranks: Array, births: Array, *, lines: int, max_cols: int, implementation: str | None, late: bool
) -> tuple[Array, Array]:
    if ranks.shape[0] < 3:
        return jnp.zeros((len(births), lines), jnp.int32), jnp.zeros(len(births), jnp.int32)
    shared = None if late else rips_edges(ranks)

    def one(born: Array) -> tuple[Array, Array]:
        edges = rips_edges(jnp.maximum(ranks, jnp.maximum(born[:, None], born))) if shared is None else shared
        return rips_h1_curve(
            edges, born < lines, lines=lines, max_cols=max_cols, implementation=implementation
        )

    lanes = _lanes(ranks.shape[0], max_cols, implementation)
    if lanes == 1:
        return jax.lax.map(one, births)
    return jax.lax.map(one, births, batch_size=min(lanes, len(births)))


def _lanes(n: int, max_cols: int, implementation: str | None) -> int:
    device = jax.default_backend()
    if device == "gpu" and implementation != "xla":
        return max(1, _KERNEL_BYTES // (max_cols * n**3 // 16 + 1))
    return _LANES.get(device, _LANES_ELSEWHERE)
