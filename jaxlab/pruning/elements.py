"""What the rest of a matrix does when single weights of it are removed (unstructured and n:m pruning).

For pruned positions Q the optimal change is dW = -G^-1 Z A^-1, where Z is zero outside Q and solves
S Z[Q] = W[Q], S[(i,j),(i',j')] = G^-1[i,i'] A^-1[j,j']. Q is cut into chunks of whole rows, which keeps the systems
small; with G the identity the rows are independent and each is solved exactly.

Systems differ in size, shapes must not: each is padded to the next of a few fixed sizes, one branch of a `lax.switch`
for each. Reference: arXiv:2312.17244, section 3.4; per row: optimal brain compression, arXiv:2208.11580.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.pruning.inverse import Inverses
from jaxlab.pruning.masked_algebra import block, cholesky, product, solve_cholesky

SIZES = 24
"""Fixed sizes that systems are padded to, at most ..."""
STEP = 32
"""... and at least so far apart."""
SLAB = 8
"""Rows of Z that are multiplied at a time."""
WINDOW = 64
"""Rows that are brought up to date at a time."""
ROWS_TOGETHER = 8
"""Independent rows solved in one batch."""


class _Progress(NamedTuple):
    """Where the chunks are."""

    ZA: Float[Array, "padded_rows columns"]
    """Z A in the rows that are done, 0 elsewhere."""
    current: Float[Array, "padded_rows columns"]
    """Weights that the next chunks start from: with all that was done so far in rows before `ready`."""
    ready: Int[Array, ""]


class _Runs(NamedTuple):
    """Pruned positions as flat indices in row-major order, and where each run of them (a row, a chunk) lies."""

    positions: Int[Array, " size"]
    """Flat indices; what follows the last one is padding."""
    start: Int[Array, " runs"]
    length: Int[Array, " runs"]


def update_elements(
    W: Float[Array, "rows columns"],
    mask: Bool[Array, "rows columns"],
    inverses: Inverses | None,
    *,
    max_chunk: int = 2000,
    add_update: bool = True,
    update_scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "rows columns"]:
    """Removes single weights of a matrix and moves the others to make up for it.

    Weights pruned earlier belong into the mask: they are kept at zero. Over layers use `jax.lax.map`; under `vmap`
    every system is padded to the largest size.

    Args:
      W: weights.
      mask: True for pruned weights.
      inverses: damped inverses; None leaves the other weights as they are. With G None (the identity) every row is
        solved exactly, whatever the chunks; with A None every column.
      max_chunk: weights pruned together at most; a row with more of them is a chunk of its own. 1 is row by row.
      add_update: each chunk starts from what the chunks before it left; False: from the original weights.
      update_scale: multiplies the change.

    Returns:
      New weights, exactly 0 where pruned.

    Raises:
      InputError: `mask` does not fit W, or `max_chunk` is below 1.
    """
    if mask.shape != W.shape:
        raise InputError(f"mask has shape {mask.shape}; it must be W's {W.shape}")
    if max_chunk < 1:
        raise InputError(f"max_chunk is {max_chunk}; it must be at least 1")
    change = jnp.zeros_like(W)
    if inverses is not None:
        A, G = inverses
        solved = mask
        solved &= True if A is None else jnp.diagonal(A) != 0
        solved &= True if G is None else (jnp.diagonal(G) != 0)[:, None]
        if A is not None and G is not None:
            change = _chunked_change(W, solved, A, G, max_chunk, add_update)
        elif A is not None:
            change = _row_by_row_change(W, solved, A)
        elif G is not None:
            change = _row_by_row_change(W.T, solved.T, G).T
    return jnp.where(mask, 0, W + update_scale * change)


def _chunked_change(
    W: Float[Array, "rows columns"],
    mask: Bool[Array, "rows columns"],
    A: Float[Array, "columns columns"],
    G: Float[Array, "rows rows"],
    max_chunk: int,
    add_update: bool,
) -> Float[Array, "rows columns"]:
    """dW = -G Z A for inverses A, G, chunk after chunk.

    What earlier chunks do to the weights is worked out when it is needed: for `WINDOW` rows at a time just before
    their first chunk, and then after each chunk for what is left of these rows.
    """
    rows, columns = W.shape
    sizes = _sizes(min(max(columns, max_chunk), W.size))
    chunk_of_row = _chunks(mask.sum(axis=1), max_chunk)
    runs = _runs(mask, chunk_of_row, sizes)
    first_row = jnp.searchsorted(chunk_of_row, jnp.arange(rows + 1))
    # Padding keeps `dynamic_slice` from moving a start that is close to the end.
    W, G_padded = jnp.pad(W, ((0, WINDOW), (0, 0))), jnp.pad(G, (0, WINDOW))

    def system(positions: jax.Array) -> jax.Array:
        i, j = positions // columns, positions % columns
        return G[i[:, None], i] * A[j[:, None], j]

    def make_ready(state: _Progress) -> _Progress:
        window = _rows(W, state.ready, WINDOW) - product(_rows(G_padded, state.ready, WINDOW), state.ZA)
        return _Progress(state.ZA, _put_rows(state.current, window, state.ready), state.ready + WINDOW)

    def chunk(k: jax.Array, state: _Progress) -> _Progress:
        row, next_row = first_row[k], first_row[k + 1]
        if add_update:
            state = jax.lax.while_loop(lambda state: state.ready < next_row, make_ready, state)
        state = state._replace(ZA=_solve_into(state.ZA, system, state.current, runs, k[None], sizes))

        def slab(s: jax.Array, state: _Progress) -> _Progress:
            # Rows of the next chunk that a slab reaches into are still zero in Z.
            start = row + s * SLAB
            ZA = product(_rows(state.ZA, start, SLAB), A)
            state = state._replace(ZA=_put_rows(state.ZA, ZA, start))
            if not add_update:
                return state
            moved = product(jax.lax.dynamic_slice(G_padded, (next_row, start), (WINDOW, SLAB)), ZA)
            unready = next_row + jnp.arange(WINDOW) >= state.ready
            window = _rows(state.current, next_row, WINDOW) - jnp.where(unready[:, None], 0, moved)
            return state._replace(current=_put_rows(state.current, window, next_row))

        return jax.lax.fori_loop(0, (next_row - row + SLAB - 1) // SLAB, slab, state)

    state = _Progress(jnp.zeros_like(W), W, jnp.zeros((), first_row.dtype))
    state = jax.lax.fori_loop(0, chunk_of_row[-1] + 1, chunk, state)
    return -product(G, state.ZA[:rows])


def _row_by_row_change(
    W: Float[Array, "rows columns"], mask: Bool[Array, "rows columns"], A: Float[Array, "columns columns"]
) -> Float[Array, "rows columns"]:
    """dW for inverses A and the identity. Rows with about as many pruned weights are solved as one batch."""
    rows, columns = W.shape
    sizes = _sizes(columns)
    runs = _runs(mask, jnp.arange(rows), sizes)
    by_count = jnp.pad(jnp.argsort(runs.length[:rows]), (0, -rows % ROWS_TOGETHER), constant_values=rows)

    def system(positions: jax.Array) -> jax.Array:
        j = positions % columns
        return A[j[:, None], j]

    def batch(k: jax.Array, Z: jax.Array) -> jax.Array:
        of = jax.lax.dynamic_slice_in_dim(by_count, k * ROWS_TOGETHER, ROWS_TOGETHER)
        return _solve_into(Z, system, W, runs, of, sizes)

    return -product(jax.lax.fori_loop(0, len(by_count) // ROWS_TOGETHER, batch, jnp.zeros_like(W)), A)


def _solve_into(
    Z: Float[Array, "more_rows columns"],
    system: Callable[[jax.Array], jax.Array],
    W: Float[Array, "rows columns"],
    runs: _Runs,
    of: Int[Array, " batch"],
    sizes: tuple[int, ...],
) -> Float[Array, "more_rows columns"]:
    """Z with the solutions of S z = W[Q] at Q for the runs `of`; `system` makes the matrix S of some positions."""
    start, count = runs.start[of], runs.length[of]

    def positions(start: jax.Array, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(runs.positions, start, size)

    def solve_one(start: jax.Array, count: jax.Array, size: int) -> jax.Array:
        at, inside = positions(start, size), jnp.arange(size) < count
        right_side = jnp.where(inside, W.reshape(-1)[at], 0)
        z = solve_cholesky(cholesky(block(system(at), inside)), right_side)
        return jnp.pad(z, (0, sizes[-1] - size))

    branches = [
        functools.partial(jax.vmap(functools.partial(solve_one, size=size)), start, count) for size in sizes
    ]
    z = jax.lax.switch(jnp.searchsorted(jnp.array(sizes), count.max()), branches)
    at = jax.vmap(functools.partial(positions, size=sizes[-1]))(start)
    at = jnp.where(jnp.arange(sizes[-1]) < count[:, None], at, Z.size)
    return Z.reshape(-1).at[at].set(z, mode="drop").reshape(Z.shape)


def _runs(
    mask: Bool[Array, "rows columns"], run_of_row: Int[Array, " rows"], sizes: tuple[int, ...]
) -> _Runs:
    """Runs of whole rows, as many as there are rows and an empty one at the end."""
    positions = jnp.nonzero(mask.reshape(-1), size=mask.size, fill_value=0)[0]
    count = jax.ops.segment_sum(mask.sum(axis=1), run_of_row, len(mask) + 1)
    # Padding keeps `dynamic_slice` from moving a start that is close to the end.
    return _Runs(jnp.pad(positions, (0, sizes[-1])), jnp.cumsum(count) - count, count)


def _rows(matrix: Float[Array, "rows columns"], start: jax.Array, size: int) -> Float[Array, "size columns"]:
    return jax.lax.dynamic_slice_in_dim(matrix, start, size)


def _put_rows(
    matrix: Float[Array, "rows columns"], part: Float[Array, "size columns"], start: jax.Array
) -> Float[Array, "rows columns"]:
    return jax.lax.dynamic_update_slice_in_dim(matrix, part, start, 0)


def _chunks(count: Int[Array, " rows"], max_chunk: int) -> Int[Array, " rows"]:
    """The chunk of each row: rows in order, a new chunk where the next row would not fit any more."""

    def step(
        state: tuple[jax.Array, jax.Array], count: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        chunk, filled = state
        full = (filled > 0) & (filled + count > max_chunk)
        chunk, filled = chunk + full, jnp.where(full, count, filled + count)
        return (chunk, filled), chunk

    zero = jnp.zeros((), count.dtype)
    return jax.lax.scan(step, (zero, zero), count)[1]


def _sizes(largest: int) -> tuple[int, ...]:
    """Sizes in even steps, the last one at least `largest`."""
    step = max(STEP, -(-largest // SIZES))
    return tuple(range(step, largest + step, step))
