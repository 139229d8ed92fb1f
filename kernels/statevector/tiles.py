"""What the kernels for blocks on GPU and TPU share: complex numbers as two planes, and which blocks go together.

Pallas has no complex type. A plane is the real or the imaginary part, float32; of a real matrix there is one alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Planes = tuple[jax.Array, ...]
"""Real and imaginary part, or only the real one."""

Runs = Mapping[int, tuple[int, int]]
"""Of blocks on neighbouring wires start, ..., stop - 1: the block's place among all, and (start, stop)."""


class Window(NamedTuple):
    """Neighbouring wires start, ..., stop - 1, and the places of the blocks on them, which become one matrix."""

    start: int
    stop: int
    members: tuple[int, ...]


class Pass(NamedTuple):
    """Windows whose blocks act while a tile is on the chip, by their first wire."""

    windows: tuple[Window, ...]


def joined_runs(runs: Runs, *, most: int) -> list[Window]:
    """Windows of blocks, neighbours joined up to `most` wires from the last wire on; by their first wire."""
    windows: list[Window] = []
    for i, (start, stop) in sorted(runs.items(), key=lambda item: item[1], reverse=True):
        if windows and windows[-1].start == stop and windows[-1].stop - start <= most:
            windows[-1] = Window(start, windows[-1].stop, (i, *windows[-1].members))
        else:
            windows.append(Window(start, stop, (i,)))
    return windows[::-1]


def window_matrix(window: Window, runs: Runs, matrices: Sequence[jax.Array]) -> jax.Array:
    """The matrix of all blocks of a window, with identities on wires that have none."""
    whole = jnp.ones((1, 1), jnp.float32)
    at = window.start
    for i in window.members:
        start, stop = runs[i]
        whole = jnp.kron(jnp.kron(whole, jnp.eye(1 << (start - at), dtype=whole.dtype)), matrices[i])
        at = stop
    return jnp.kron(whole, jnp.eye(1 << (window.stop - at), dtype=whole.dtype))


def whole(matrices: Sequence[jax.Array]) -> list[pl.BlockSpec]:
    """How every program of a grid of two axes sees matrices [1 or 2, K, K]."""
    return [pl.BlockSpec(one.shape, lambda i, j: (0, 0, 0)) for one in matrices]


def loaded_planes(ref: Any) -> Planes:
    """The planes of a matrix."""
    return tuple(ref[i] for i in range(ref.shape[0]))


def product(
    x: Planes, matrix: Planes, contracted: tuple[int, int], *, conjugate: bool = False, left: bool = False
) -> Planes:
    """x times a matrix, real or complex, over one axis of each; `left` puts the matrix first."""

    def dot(plane: jax.Array, part: jax.Array) -> jax.Array:
        if left:
            return _dot(part, plane, contracted[::-1])
        return _dot(plane, part, contracted)

    if len(matrix) == 1:
        return tuple(dot(plane, matrix[0]) for plane in x)
    real, imag = x
    by_real, by_imag = (tuple(dot(plane, part) for plane in (real, imag)) for part in matrix)
    if conjugate:
        return by_real[0] + by_imag[1], by_real[1] - by_imag[0]
    return by_real[0] - by_imag[1], by_real[1] + by_imag[0]


def gradient_product(after: Planes, before: Planes, contracted: tuple[int, int], planes: int) -> Planes:
    """conj(after) times before over one axis of each: its real part, or both where `planes` is 2."""
    real = _dot(after[0], before[0], contracted) + _dot(after[1], before[1], contracted)
    if planes == 1:
        return (real,)
    return real, _dot(after[0], before[1], contracted) - _dot(after[1], before[0], contracted)


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(
        a,
        b,
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
