"""dim H_1 of Rips filtrations, by our own reduction on the device or by gudhi on the host."""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.rips_cohomology import rips_edges, rips_h1_curve, rips_trees
from jaxlab.persistence.checks import is_concrete
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.gudhi_slices import rips_slices_callback
from jaxlab.persistence.rips import degree_rips_slices, function_rips_slices

Backend = Literal["auto", "xla", "pallas", "gudhi"]
_LANES = {"cpu": 1}
"""Slices reduced together; on a CPU one after the other is faster, as none waits for the slowest."""
_LANES_ELSEWHERE = 64
_ROOM, _ROOM_IN_KERNEL = 256, 64
"""Columns of a slice; the kernel keeps them whole."""
_KERNEL_BYTES = 2**31
"""Columns of all slices that a kernel reduces together; there none waits for another."""


def hilbert_rips_h1(
    distances: Float[Array, "n n"],
    values: Float[Array, "n q"],
    grid: Grid,
    *,
    max_cols: int | None = None,
    backend: Backend = "auto",
) -> tuple[Int[Array, "*lines"], Bool[Array, ""]]:
    """dim H_1 of a function-Rips filtration (its full flag complex) at every grid point.

    Args:
      distances: symmetric, zero diagonal.
      values: q >= 0 functions on the points.
      grid: 1 + q parameters, the distance first.
      max_cols: room for columns of a slice, unless gudhi does it: one for each class that lives longer than a grid
        cell, and a few more. None is 256, in the kernel 64. Memory is n^3 / 16 + max_cols n^2 / 16 bytes a lane, and in
        the kernel max_cols n^3 / 16, so n up to about 200.
      backend: "xla" everywhere; "pallas", a kernel for NVIDIA GPUs; "gudhi", on the host; "auto" takes the kernel on
        GPUs, else XLA.

    Returns:
      The Hilbert function, and whether some slice needed more than `max_cols` columns, so that it is wrong.

    Raises:
      InputError: as for `hilbert_h0_dense`; an unknown backend; more than `max_cols` columns (outside of jit; inside,
        look at the flag).
      ResourceError: backend "gudhi" without gudhi or on several hosts.
    """
    room = _room(backend, max_cols)
    ranks, births = function_rips_slices(distances, values, grid)
    curves, overflow = _cycles(ranks, births, grid.shape[0], room, backend, late=False)
    return curves.T.reshape(grid.shape), overflow


def hilbert_h1_degree_rips(
    distances: Float[Array, "n n"],
    degrees: Sequence[int],
    grid: Grid,
    *,
    max_cols: int | None = None,
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
    room = _room(backend, max_cols)
    ranks, births = degree_rips_slices(distances, degrees, grid)
    curves, overflow = _cycles(ranks, births, grid.shape[0], room, backend, late=True)
    return curves.T, overflow


def _room(backend: Backend, max_cols: int | None) -> int:
    if backend not in ("auto", "xla", "pallas", "gudhi"):
        raise InputError(f"backend is {backend!r}; it must be 'auto', 'xla', 'pallas' or 'gudhi'")
    if max_cols is None:
        return _ROOM_IN_KERNEL if _in_kernel(None if backend == "auto" else backend) else _ROOM
    if max_cols < 1:
        raise InputError(f"max_cols is {max_cols}, but must be at least 1")
    return max_cols


def _cycles(
    ranks: Array, births: Array, lines: int, max_cols: int, backend: Backend, *, late: bool
) -> tuple[Array, Array]:
    """int[slices, lines], and whether a slice had too little room; `late` if births move edges."""
    if backend == "gudhi":
        return rips_slices_callback(ranks, births, lines=lines, degree=1), jnp.asarray(False)
    implementation = None if backend == "auto" else backend
    curves, needed = _curves(
        ranks, births, lines=lines, max_cols=max_cols, implementation=implementation, late=late
    )
    overflow = jnp.max(needed) > max_cols
    if is_concrete(overflow) and overflow:
        raise InputError(f"more than max_cols columns: {int(jnp.max(needed))} > {max_cols}, raise max_cols")
    return curves, overflow


@functools.partial(jax.jit, static_argnames=("lines", "max_cols", "implementation", "late"))
def _curves(
    ranks: Array, births: Array, *, lines: int, max_cols: int, implementation: str | None, late: bool
) -> tuple[Array, Array]:
    if ranks.shape[0] < 3:
        return jnp.zeros((len(births), lines), jnp.int32), jnp.zeros(len(births), jnp.int32)
    shared = None if late else rips_edges(ranks)
    # Prim's packed numbers have room for 1,600 points; beyond, each slice finds its tree by itself.
    together = shared is not None and shared.rank.size * (shared.rank.shape[0] + 1) < 2**32
    trees = rips_trees(shared, births < lines) if together else None

    def one(own: tuple[Array, Array | None]) -> tuple[Array, Array]:
        born, tree = own
        edges = rips_edges(jnp.maximum(ranks, jnp.maximum(born[:, None], born))) if shared is None else shared
        return rips_h1_curve(
            edges, born < lines, tree, lines=lines, max_cols=max_cols, implementation=implementation
        )

    lanes = _lanes(ranks.shape[0], max_cols, implementation)
    if lanes == 1:
        return jax.lax.map(one, (births, trees))
    return jax.lax.map(one, (births, trees), batch_size=min(lanes, len(births)))


def _lanes(n: int, max_cols: int, implementation: str | None) -> int:
    if jax.default_backend() == "gpu" and _in_kernel(implementation):
        return max(1, _KERNEL_BYTES // (max_cols * n**3 // 16 + 1))
    return _LANES.get(jax.default_backend(), _LANES_ELSEWHERE)


def _in_kernel(implementation: str | None) -> bool:
    return implementation == "pallas" or (implementation is None and jax.default_backend() == "gpu")
