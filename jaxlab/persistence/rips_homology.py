"""dim H_1 of Rips filtrations, by our own reduction in XLA or by gudhi on the host."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.rips_cohomology import rips_edges, rips_h1_curve
from jaxlab.persistence.checks import is_concrete
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.gudhi_slices import hilbert_rips_callback
from jaxlab.persistence.rips import function_rips_slices

_LANES = {"cpu": 1}
"""Slices reduced together; on a CPU one after the other is faster, as none waits for the slowest."""
_LANES_ELSEWHERE = 64


def hilbert_rips_h1(
    distances: Float[Array, "n n"],
    values: Float[Array, "n q"],
    grid: Grid,
    *,
    max_cols: int = 64,
    backend: Literal["auto", "xla", "gudhi"] = "auto",
) -> tuple[Int[Array, "*lines"], Bool[Array, ""]]:
    """dim H_1 of a function-Rips filtration (its full flag complex) at every grid point.

    Args:
      distances: symmetric, zero diagonal.
      values: q >= 0 functions on the points.
      grid: 1 + q parameters, the distance first.
      max_cols: room for columns of a slice, in XLA: one for each class that lives longer than a grid cell, and a few
        more. Memory is max_cols n^3 / 16 bytes a lane, so n up to about 200.
      backend: "xla" everywhere; "gudhi", on the host; "auto" takes XLA.

    Returns:
      The Hilbert function, and whether some slice needed more than `max_cols` columns, so that it is wrong.

    Raises:
      InputError: as for `hilbert_h0_dense`; an unknown backend; more than `max_cols` columns (outside of jit; inside,
        look at the flag).
      ResourceError: backend "gudhi" without gudhi or on several hosts.
    """
    if backend not in ("auto", "xla", "gudhi"):
        raise InputError(f"backend is {backend!r}; it must be 'auto', 'xla' or 'gudhi'")
    if max_cols < 1:
        raise InputError(f"max_cols is {max_cols}, but must be at least 1")
    if backend == "gudhi":
        return hilbert_rips_callback(distances, values, grid, degree=1), jnp.asarray(False)
    ranks, births = function_rips_slices(distances, values, grid)
    curves, needed = _curves(ranks, births, lines=grid.shape[0], max_cols=max_cols)
    overflow = jnp.max(needed) > max_cols
    if is_concrete(overflow) and overflow:
        raise InputError(f"more than max_cols columns: {int(jnp.max(needed))} > {max_cols}, raise max_cols")
    return curves.T.reshape(grid.shape), overflow


@functools.partial(jax.jit, static_argnames=("lines", "max_cols"))
def _curves(ranks: Array, births: Array, *, lines: int, max_cols: int) -> tuple[Array, Array]:
    if ranks.shape[0] < 3:
        return jnp.zeros((len(births), lines), jnp.int32), jnp.zeros(len(births), jnp.int32)
    edges = rips_edges(ranks)
    lanes = _LANES.get(jax.default_backend(), _LANES_ELSEWHERE)

    def one(born: Array) -> tuple[Array, Array]:
        return rips_h1_curve(edges, born < lines, lines=lines, max_cols=max_cols)

    if lanes == 1:
        return jax.lax.map(one, births)
    return jax.lax.map(one, births, batch_size=min(lanes, len(births)))
