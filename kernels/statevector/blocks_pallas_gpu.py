"""Blocks on a GPU: a tile of 2^12 amplitudes stays on the chip while all blocks on its wires act on it.

A tile is a window of wires and, so that memory is read in whole sectors, some of the last wires beside it. Inside, each
block reads its wires in front and leaves them at the end, as in `blocks.rotate`; so do wires without a block and the
columns, after which all are back in order and the tile goes to where it came from.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

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

_MOST_BLOCK, _MERGED = 5, 4
"""Wires of the largest block that a tile takes, and up to which neighbours become one matrix."""
_LEAST_PROGRAMS, _MOST_TILES = 1024, 16
"""A program sums the gradients of several tiles, as long as there are enough programs for all processors."""


class Sizes(NamedTuple):
    """Logarithms of how many amplitudes make a tile, and of how many of them must be neighbours in memory."""

    tile: int
    columns: int


FORWARD = Sizes(12, 4)
BACKWARD = Sizes(11, 3)
"""Two states are in a tile, and the gradients' sums: of 2^12 amplitudes they would not fit into the registers."""


def plan(runs: Runs, n: int, *, backward: bool, tile: Sizes | None = None) -> tuple[Pass, ...]:
    """Passes over the state for the blocks; those that are too large are left out."""
    sizes = tile or (BACKWARD if backward else FORWARD)
    windows = joined_runs(runs, most=_MERGED)
    passes: list[Pass] = []
    group: tuple[Window, ...] = ()
    for window in reversed([one for one in windows if one.stop - one.start <= min(_MOST_BLOCK, sizes.tile)]):
        stop = group[-1].stop if group else window.stop
        if group and stop - window.start + min(n - stop, sizes.columns) > sizes.tile:
            passes.append(Pass(group))
            group = ()
        group = (window, *group)
    return (*passes, Pass(group)) if group else tuple(passes)


class _Layout(NamedTuple):
    """How a pass sees the state: as [ahead, rows, behind], in tiles of all rows and some columns."""

    ahead: int
    rows: int
    behind: int
    columns: int
    parts: tuple[tuple[int, int | None], ...]
    """What takes its turn in a tile: 2^wires, and the block's place in the pass, None for wires without a block."""


def _layout(one: Pass, n: int, sizes: Sizes) -> _Layout:
    start, stop = one.windows[0].start, one.windows[-1].stop
    parts: list[tuple[int, int | None]] = []
    at = start
    for i, window in enumerate(one.windows):
        if window.start > at:
            parts.append((1 << (window.start - at), None))
        parts.append((1 << (window.stop - window.start), i))
        at = window.stop
    columns = 1 << min(n - stop, max(sizes.tile - (stop - start), 0))
    if columns > 1:
        parts.append((columns, None))
    return _Layout(1 << start, 1 << (stop - start), 1 << (n - stop), columns, tuple(parts))


def forward(
    one: Pass, planes: Planes, matrices: Sequence[jax.Array], n: int, *, tile: Sizes = FORWARD, **options: Any
) -> Planes:
    """The blocks of a pass on planes [2^n]; matrices [1 or 2, K, K] by real and imaginary part."""
    layout = _layout(one, n, tile)
    ahead, rows, behind, columns, parts = layout
    state = pl.BlockSpec((None, rows, columns), lambda i, j: (i, 0, j))
    shape = (ahead, rows, behind)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, parts),
        grid=(ahead, behind // columns),
        in_specs=[*whole(matrices), state, state],
        out_specs=[state, state],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2,
        input_output_aliases={len(matrices): 0, len(matrices) + 1: 1},
        **_compiled(options),
    )(*matrices, *(plane.reshape(shape) for plane in planes))
    return tuple(plane.reshape(-1) for plane in out)


def backward(
    one: Pass,
    after: Planes,
    psi: Planes,
    matrices: Sequence[jax.Array],
    n: int,
    *,
    tile: Sizes = BACKWARD,
    **options: Any,
) -> tuple[Planes, Planes, list[jax.Array]]:
    """Takes the blocks of a pass back on both states; their gradients are [1 or 2, K, K] like the matrices."""
    ahead, rows, behind, columns, parts = _layout(one, n, tile)
    across, along = _tiles_of_a_program(ahead, behind // columns)
    grid = (ahead // along, behind // (columns * across))
    state = pl.BlockSpec((along, rows, across * columns), lambda i, j: (i, 0, j))
    shape = (ahead, rows, behind)
    first = len(matrices)
    out = pl.pallas_call(
        functools.partial(_backward_kernel, parts, columns, first),
        grid=grid,
        in_specs=[*whole(matrices), *[state] * 4],
        out_specs=[
            *[state] * 4,
            *(pl.BlockSpec((None, None, *one.shape), lambda i, j: (i, j, 0, 0, 0)) for one in matrices),
        ],
        out_shape=[
            *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 4,
            *(jax.ShapeDtypeStruct((*grid, *one.shape), jnp.float32) for one in matrices),
        ],
        input_output_aliases={first + i: i for i in range(4)},
        **_compiled(options),
    )(*matrices, *(plane.reshape(shape) for plane in (*after, *psi)))
    states = [plane.reshape(-1) for plane in out[:4]]
    return tuple(states[:2]), tuple(states[2:]), [jnp.sum(partial, (0, 1)) for partial in out[4:]]


def _compiled(options: dict[str, Any]) -> dict[str, Any]:
    # Without stages: the next tile's copy in shared memory would push this one's out of the registers.
    return options or {"compiler_params": triton.CompilerParams(num_warps=8, num_stages=1)}


def _tiles_of_a_program(ahead: int, tiles: int) -> tuple[int, int]:
    """Of a row of tiles, and of rows."""
    several = max(1, min(_MOST_TILES, ahead * tiles // _LEAST_PROGRAMS))
    across = min(several, tiles)
    return across, min(several // across, ahead)


def _forward_kernel(parts: tuple[tuple[int, int | None], ...], *refs: Any) -> None:
    *matrices, real, imag, out_real, out_imag = refs
    tile: Planes = (real[...], imag[...])
    shape = tile[0].shape
    for size, place in parts:
        tile = _in_front(tile, size)
        if place is None:
            tile = tuple(plane.T for plane in tile)
        else:
            tile = product(tile, loaded_planes(matrices[place]), (0, 1))
    for ref, plane in zip((out_real, out_imag), tile, strict=True):
        ref[...] = plane.reshape(shape)


def _backward_kernel(parts: tuple[tuple[int, int | None], ...], columns: int, count: int, *refs: Any) -> None:
    matrices, states, outs = refs[:count], refs[count : count + 4], refs[count + 4 : count + 8]
    gradients = refs[count + 8 :]
    along, rows, width = states[0].shape
    across = width // columns

    def one(i: jax.Array, sums: list[Planes]) -> list[Planes]:
        place_along, place_across = jax.lax.div(i, jnp.int32(across)), jax.lax.rem(i, jnp.int32(across))
        here = (place_along, slice(None), pl.ds(pl.multiple_of(place_across * columns, columns), columns))
        loaded = [ref[here] for ref in states]
        after, psi = tuple(loaded[:2]), tuple(loaded[2:])
        for size, place in parts:
            after, psi = _in_front(after, size), _in_front(psi, size)
            if place is None:
                after, psi = (tuple(plane.T for plane in x) for x in (after, psi))
                continue
            matrix = loaded_planes(matrices[place])
            psi = product(psi, matrix, (0, 0), conjugate=True)
            found = gradient_product(after, psi, (1, 0), len(matrix))
            sums[place] = tuple(a + b for a, b in zip(sums[place], found, strict=True))
            after = product(after, matrix, (0, 0), conjugate=True)
        for ref, plane in zip(outs, (*after, *psi), strict=True):
            ref[here] = plane.reshape(rows, columns)
        return sums

    zeros = [tuple(jnp.zeros(ref.shape[1:], jnp.float32) for _ in range(ref.shape[0])) for ref in matrices]
    for ref, total in zip(gradients, jax.lax.fori_loop(0, along * across, one, zeros), strict=True):
        for i, plane in enumerate(total):
            ref[i] = plane


def _in_front(tile: Planes, size: int) -> Planes:
    return tuple(plane.reshape(size, -1) for plane in tile)
