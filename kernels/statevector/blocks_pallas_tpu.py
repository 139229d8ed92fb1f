"""Blocks on a TPU: products of 128 by 128 matrices on slabs of 128 columns, which are the last 7 wires.

All passes see the state as rows of 128 columns, 8 rows to a tile: the order that it has in memory, so that XLA need not
copy it from one view to the next. A pass takes one block on wires in front of the last 7, whose 2^k amplitudes are rows
apart, and the first pass all blocks on the last 7 wires too, as one matrix. A block that lies on both sides of the
border is left out.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxlab.kernels.statevector.tiles import (
    Pass,
    Planes,
    Runs,
    Window,
    gradient_product,
    joined_runs,
    loaded_planes,
    product,
    whole,
)

LANES = 7
_SUBLANES = 8
_TILE = 16
"""Logarithm of how many amplitudes make a tile: four planes of them, and as many that are on their way, are 4 MiB."""


def plan(runs: Runs, n: int, *, backward: bool, tile: int | None = None) -> tuple[Pass, ...]:
    """Passes over the state for the blocks; they do not depend on the tile, nor on the direction."""
    del backward, tile
    border = n - LANES
    last = tuple(sorted((i for i, run in runs.items() if run[0] >= border), key=lambda i: runs[i]))
    columns = (Window(border, n, last),) if last else ()
    ahead = {i: run for i, run in runs.items() if run[1] <= border and run[1] - run[0] <= LANES}
    rows = joined_runs(ahead, most=LANES)
    if not rows:
        return (Pass(columns),) if columns else ()
    return (Pass((rows[-1], *columns)), *(Pass((one,)) for one in reversed(rows[:-1])))


class _Layout(NamedTuple):
    """How a pass sees the state, in tiles of slabs [K, 128]."""

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    grid: tuple[int, int]
    slabs: tuple[int, int]
    """How many there are in a tile, along its first axis and within."""
    places: tuple[int | None, int | None]
    """Of the blocks on rows and on columns in the pass."""


def _layout(one: Pass, n: int, tile: int) -> _Layout:
    total = 1 << (n - LANES)
    columns = one.windows[-1].stop == n
    places = (None if len(one.windows) == columns else 0, len(one.windows) - 1 if columns else None)
    if places[0] is None:
        k, apart = min(total, 1 << LANES), 1
    else:
        window = one.windows[0]
        k, apart = 1 << (window.stop - window.start), 1 << (n - LANES - window.stop)
    ahead = total // (k * apart)
    slabs = max(1, (1 << (tile - LANES)) // k)
    if apart < _SUBLANES:
        along = min(ahead, max(1, slabs // apart))
        rows = k * apart
        return _Layout(
            (ahead, rows, 1 << LANES), (along, rows, 1 << LANES), (ahead // along, 1), (along, apart), places
        )
    within = min(apart, max(_SUBLANES, slabs))
    return _Layout(
        (ahead, k, apart, 1 << LANES),
        (1, k, within, 1 << LANES),
        (ahead, apart // within),
        (1, within),
        places,
    )


def forward(
    one: Pass, planes: Planes, matrices: Sequence[jax.Array], n: int, *, tile: int = _TILE, **options: Any
) -> Planes:
    """The blocks of a pass on planes [2^n]; matrices [1 or 2, K, K] by real and imaginary part."""
    layout = _layout(one, n, tile)
    state = _state(layout)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, layout),
        grid=layout.grid,
        in_specs=[*whole(matrices), state, state],
        out_specs=[state, state],
        out_shape=[jax.ShapeDtypeStruct(layout.shape, jnp.float32)] * 2,
        input_output_aliases={len(matrices): 0, len(matrices) + 1: 1},
        **options,
    )(*matrices, *(plane.reshape(layout.shape) for plane in planes))
    return tuple(plane.reshape(-1) for plane in out)


def backward(
    one: Pass,
    after: Planes,
    psi: Planes,
    matrices: Sequence[jax.Array],
    n: int,
    *,
    tile: int = _TILE,
    **options: Any,
) -> tuple[Planes, Planes, list[jax.Array]]:
    """Takes the blocks of a pass back on both states; their gradients are [1 or 2, K, K] like the matrices."""
    layout = _layout(one, n, tile)
    state = _state(layout)
    first = len(matrices)
    out = pl.pallas_call(
        functools.partial(_backward_kernel, layout, first),
        grid=layout.grid,
        in_specs=[*whole(matrices), *[state] * 4],
        out_specs=[*[state] * 4, *whole(matrices)],
        out_shape=[
            *[jax.ShapeDtypeStruct(layout.shape, jnp.float32)] * 4,
            *(jax.ShapeDtypeStruct(one.shape, jnp.float32) for one in matrices),
        ],
        input_output_aliases={first + i: i for i in range(4)},
        **options,
    )(*matrices, *(plane.reshape(layout.shape) for plane in (*after, *psi)))
    states = [plane.reshape(-1) for plane in out[:4]]
    return tuple(states[:2]), tuple(states[2:]), list(out[4:])


def _state(layout: _Layout) -> pl.BlockSpec:
    if len(layout.shape) == 3:
        return pl.BlockSpec(layout.tile, lambda i, j: (i, 0, 0))
    return pl.BlockSpec(layout.tile, lambda i, j: (i, 0, j, 0))


def _slab(layout: _Layout, i: jax.Array) -> tuple[Any, ...]:
    """Where the rows of slab i are in a tile."""
    if len(layout.shape) == 4:
        return (0, slice(None), i, slice(None))
    apart = layout.slabs[1]
    rows = layout.tile[1] // apart
    if apart == 1:
        return (i, slice(None), slice(None))
    within = jax.lax.rem(i, jnp.int32(apart))
    return (jax.lax.div(i, jnp.int32(apart)), pl.ds(within, rows, stride=apart), slice(None))


def _forward_kernel(layout: _Layout, *refs: Any) -> None:
    *matrices, real, imag, out_real, out_imag = refs
    rows, columns = (None if place is None else loaded_planes(matrices[place]) for place in layout.places)

    def one(i: jax.Array, carry: None) -> None:
        here = _slab(layout, i)
        slab: Planes = (real[here], imag[here])
        if rows is not None:
            slab = product(slab, rows, (0, 1), left=True)
        if columns is not None:
            slab = product(slab, columns, (1, 1))
        out_real[here], out_imag[here] = slab

    jax.lax.fori_loop(0, layout.slabs[0] * layout.slabs[1], one, None)


def _backward_kernel(layout: _Layout, count: int, *refs: Any) -> None:
    matrices, states, outs = refs[:count], refs[count : count + 4], refs[count + 4 : count + 8]
    gradients = refs[count + 8 :]
    on_rows, on_columns = layout.places

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _() -> None:
        for ref in gradients:
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def add(place: int, after: Planes, before: Planes, contracted: tuple[int, int]) -> None:
        ref = gradients[place]
        for plane, found in enumerate(gradient_product(after, before, contracted, ref.shape[0])):
            ref[plane] += found

    def one(i: jax.Array, carry: None) -> None:
        here = _slab(layout, i)
        loaded = [ref[here] for ref in states]
        after, psi = tuple(loaded[:2]), tuple(loaded[2:])
        if on_rows is not None:
            matrix = loaded_planes(matrices[on_rows])
            psi = product(psi, matrix, (0, 0), conjugate=True, left=True)
            add(on_rows, after, psi, (1, 1))
            after = product(after, matrix, (0, 0), conjugate=True, left=True)
        if on_columns is not None:
            matrix = loaded_planes(matrices[on_columns])
            psi = product(psi, matrix, (1, 0), conjugate=True)
            add(on_columns, after, psi, (0, 0))
            after = product(after, matrix, (1, 0), conjugate=True)
        for ref, plane in zip(outs, (*after, *psi), strict=True):
            ref[here] = plane

    jax.lax.fori_loop(0, layout.slabs[0] * layout.slabs[1], one, None)
