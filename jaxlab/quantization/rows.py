"""The row-wise arithmetic of pyramid vector quantization: directions, gains, feedback, gain refit.

The number of pulses, the bit widths and the gain levels are data (`Code`), so that one compiled program
serves every rate; only the group size and the number of search candidates are static. Reference:
arXiv:2410.16926; Fischer 1986.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Float32, Int, Int8, Int32, UInt8, UInt32

from jaxlab.kernels.block_feedback import (
    Descent,
    Feedback,
    block_descent,
    inverse_cholesky,
    prepare_descent,
    prepare_feedback,
    wait_for,
)
from jaxlab.kernels.block_feedback import block_feedback as feed_back
from jaxlab.kernels.pyramid_index import count, limbs, rank, rank_tables
from jaxlab.kernels.pyramid_search import search
from jaxlab.quantization.packing import WORD, join, pack, words_for
from jaxlab.quantization.rotation import rotate
from jaxlab.quantization.spec import MAX_GAIN_BITS, MAX_INDEX_BITS, PVQSpec

_MAX_PULSES = 127
_ROWS_AT_ONCE = 64


class Code(NamedTuple):
    """The parameters of a `PVQSpec` as arrays."""

    pulses: Int32[Array, ""]
    index_bits: Int32[Array, ""]
    group_bits: Int32[Array, ""]
    levels: Float32[Array, " max_levels"]
    """Gain levels in units of the row's scale; after the last real one it repeats, so that it is never
    picked."""


def code_of(spec: PVQSpec, levels: Float32[Array, " levels"]) -> Code:
    """The code of a spec with these gain levels."""
    padded = jnp.pad(levels, (0, 2**MAX_GAIN_BITS - levels.shape[0]), mode="edge")
    return Code(jnp.int32(spec.k), jnp.int32(spec.index_bits), jnp.int32(spec.group_bits), padded)


@functools.lru_cache(maxsize=64)
def shared_tables(n: int, k: int) -> np.ndarray:
    """Rank tables that serve `k` and every other number of pulses whose index takes two limbs (or else four).

    Returns:
      uint32[n, K + 1, K + 2, L] of the most pulses K.
    """
    bits = WORD * (2 if limbs(n, k) <= 2 else 4)
    most = k
    while most < _MAX_PULSES and count(n, most + 1) < 1 << bits:
        most += 1
    return rank_tables(n, most)


def most_words(n: int, columns: int) -> int:
    """Words that a row of `columns` weights takes at most, whatever the code."""
    return words_for(columns // n, MAX_INDEX_BITS + MAX_GAIN_BITS)


def quantize_rows(
    w: Float[Array, "rows columns"],
    unit: Float32[Array, ""],
    code: Code,
    tables: UInt32[Array, "n k m limbs"],
    signs: Bool[Array, " columns"] | None,
    inverse_factor: Float[Array, "columns columns"] | None,
    output_moment: Float[Array, "rows rows"] | None = None,
    *,
    n: int,
    candidates: int,
    words: int,
    sweeps: int = 0,
    refit: bool = False,
    padding: int = 0,
    row_sets: int = 1,
) -> tuple[UInt32[Array, "rows words"], Float16[Array, " rows"]]:
    """Words and scales of the rows of a `PVQTensor`, each row by itself unless `output_moment` is given.

    Args:
      w: weights in the original basis.
      unit: what the scales are counted in, a power of two.
      code: pulses, widths, and gain levels in units of the scales.
      tables: `shared_tables`.
      signs: of the rotation, or None.
      inverse_factor: upper U with H^-1 = U^T U in the rotated basis, or None for no feedback.
      output_moment: damped second moment of the gradients at the outputs, or None for no feedback between rows
        (with `inverse_factor`).
      n: weights per group.
      candidates: of the direction search.
      words: length of a row of words, at least what the code needs.
      sweeps: passes of coordinate descent over the groups after the feedback.
      refit: fit the gains again once the directions are known.
      padding: zeros added to a row.
      row_sets: with `output_moment`, how many sets of rows there are, quantized one after the other; divides the
        number of rows.
    """
    # Two programs, since the tables' shape differs between codes: the long one is compiled once for all of them.
    y, gains, scale = _directions_and_gains(
        w,
        unit,
        code,
        signs,
        inverse_factor,
        output_moment,
        n=n,
        candidates=candidates,
        sweeps=sweeps,
        refit=refit,
        padding=padding,
        row_sets=row_sets,
    )
    return encode(y, gains, code, tables, words=words), scale


@functools.partial(jax.jit, static_argnames=("n", "candidates", "sweeps", "refit", "padding", "row_sets"))
def _directions_and_gains(
    w: Float[Array, "rows columns"],
    unit: Float32[Array, ""],
    code: Code,
    signs: Bool[Array, " columns"] | None,
    inverse_factor: Float[Array, "columns columns"] | None,
    output_moment: Float[Array, "rows rows"] | None,
    *,
    n: int,
    candidates: int,
    sweeps: int,
    refit: bool,
    padding: int,
    row_sets: int,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"], Float16[Array, " rows"]]:
    """Directions, gain codes and scales; arguments as for `quantize_rows`."""
    w = w / unit
    if signs is not None:
        w = rotate(w, signs)
    w = jnp.pad(w, ((0, 0), (0, padding)))
    scale = row_scale(w)
    if inverse_factor is None:
        y, gains, _ = quantize_groups(
            w.reshape(w.shape[0], -1, n), scale[:, None], code, candidates=candidates
        )
        y = y.reshape(w.shape)
    else:
        if padding:
            inverse_factor = jax.scipy.linalg.block_diag(inverse_factor, jnp.eye(padding, dtype=w.dtype))
        feedback = _prepare(inverse_factor, n=n, sweeps=sweeps)
        if output_moment is None:
            y, gains, _ = _quantize_rows_with_feedback(
                w, feedback, scale, code, n=n, candidates=candidates, sweeps=sweeps
            )
        else:
            y, gains = _quantize_row_sets(
                w,
                feedback,
                wait_for(output_moment, feedback),
                scale,
                code,
                n=n,
                candidates=candidates,
                sweeps=sweeps,
                sets=row_sets,
            )
        if refit:
            gains = refit_gains(w, y, wait_for(inverse_factor, feedback), scale, code, n=n)
    return y, gains, scale


def row_scale(w: Float[Array, "rows columns"]) -> Float16[Array, " rows"]:
    """Root mean square of each row in half precision (all-zero rows: 0)."""
    return jnp.sqrt(jnp.mean(jnp.square(w), axis=1)).astype(jnp.float16)


def quantize_groups(
    w: Float[Array, "... n"], scale: Float16[Array, "..."], code: Code, *, candidates: int
) -> tuple[Int8[Array, "... n"], UInt8[Array, "..."], Float[Array, "... n"]]:
    """Nearest direction, then the gain level nearest to the projection <w, y> / ||y||.

    Returns:
      Directions, gain codes, and the groups they stand for.
    """
    y = search(w, k=code.pulses, candidates=candidates)
    unit = unit_direction(y, w.dtype)
    gains = nearest_level(jnp.sum(w * unit, axis=-1), scale, code.levels)
    return y, gains, reconstruct(unit, gain_value(gains, scale, code.levels).astype(w.dtype))


def quantize_with_feedback(
    w: Float[Array, "rows columns"],
    inverse_factor: Float[Array, "columns columns"],
    scale: Float16[Array, " rows"],
    code: Code,
    *,
    n: int,
    candidates: int,
    sweeps: int = 0,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"]]:
    """Directions and gain codes, the error of each group passed on to the columns right of it.

    Args:
      w: weights, rotated.
      inverse_factor: upper U with H^-1 = U^T U.
      scale: of each row.
      code: pulses and levels.
      n: weights per group.
      candidates: of the direction search.
      sweeps: passes of coordinate descent over the groups after that.
    """
    y, gains, _ = _quantize_rows_with_feedback(
        w,
        _prepare(inverse_factor, n=n, sweeps=sweeps),
        scale,
        code,
        n=n,
        candidates=candidates,
        sweeps=sweeps,
    )
    return y, gains


def _prepare(
    inverse_factor: Float[Array, "columns columns"], *, n: int, sweeps: int
) -> tuple[Feedback, Descent | None]:
    feedback = prepare_feedback(inverse_factor, block=n)
    if not sweeps:
        return feedback, None
    v = _inverse(wait_for(inverse_factor, feedback))
    return feedback, prepare_descent(v @ v.T, block=n)


def _quantize_rows_with_feedback(
    w: Float[Array, "rows columns"],
    prepared: tuple[Feedback, Descent | None],
    scale: Float16[Array, " rows"],
    code: Code,
    *,
    n: int,
    candidates: int,
    sweeps: int,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"], Float[Array, "rows columns"]]:
    """Directions, gain codes and what they stand for."""
    feedback, descent = prepared

    def quantize_block(target: Array, u: Array, i: Array) -> tuple[tuple[Array, Array], Array]:
        del u, i
        y, gains, quantized = quantize_groups(target, scale, code, candidates=candidates)
        return (y, gains), quantized

    codes, quantized = feed_back(w, feedback, quantize_block, block=n)
    if descent is not None:

        def sweep(_: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
            return block_descent(w, descent, *state, quantize_block, block=n)

        codes, quantized = jax.lax.fori_loop(0, sweeps, sweep, (codes, quantized))
    y, gains = codes
    return y.transpose(1, 0, 2).reshape(w.shape), gains.T, quantized


def _quantize_row_sets(
    w: Float[Array, "rows columns"],
    prepared: tuple[Feedback, Descent | None],
    output_moment: Float[Array, "rows rows"],
    scale: Float16[Array, " rows"],
    code: Code,
    *,
    n: int,
    candidates: int,
    sweeps: int,
    sets: int,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"]]:
    """Feedback on both sides: for an error E, tr(B E A E^T) with A of the inputs and B of the outputs.

    Set s holds the rows s, s + sets, s + 2 sets, ...: of neighbours, whose errors matter together (those of one
    attention head), few are in one set. Once a set is quantized, what is best for the rows still to come moves by
    its error times the factor of B^-1, whatever A is. Reference: YAQA (arXiv:2505.22988).
    """
    rows = w.shape[0]
    order = jnp.arange(rows).reshape(-1, sets).T.reshape(-1)
    ordered, scale = w[order], scale[order]
    factor = inverse_cholesky(output_moment[order][:, order], damping=0.0)
    block = rows // sets

    def quantize_set(target: Array, u: Array, i: Array) -> tuple[tuple[Array, Array], Array]:
        del u
        y, gains, quantized = _quantize_rows_with_feedback(
            target.T,
            prepared,
            jax.lax.dynamic_slice_in_dim(scale, i * block, block),
            code,
            n=n,
            candidates=candidates,
            sweeps=sweeps,
        )
        return (y, gains), quantized.T

    (y, gains), _ = feed_back(ordered.T, factor, quantize_set, block=block)
    back = jnp.argsort(order)
    return y.reshape(rows, -1)[back], gains.reshape(rows, -1)[back]


def _inverse(factor: Float[Array, "columns columns"]) -> Float[Array, "columns columns"]:
    """V = U^-1, with H = V V^T."""
    return jax.scipy.linalg.solve_triangular(factor, jnp.eye(factor.shape[0], dtype=factor.dtype))


def refit_gains(
    w: Float[Array, "rows columns"],
    y: Int8[Array, "rows columns"],
    inverse_factor: Float[Array, "columns columns"],
    scale: Float16[Array, " rows"],
    code: Code,
    *,
    n: int,
) -> UInt8[Array, "rows groups"]:
    """Gain codes anew, for directions that stay.

    With C the row's unit directions, one column a group, the best gains are g = (C^T H C)^-1 C^T H w; they
    are rounded
    one after the other with the error passed on, as the weights were.
    """
    columns = w.shape[1]
    groups = columns // n
    # H = V V^T with V = U^-1, so that a row's error is the squared length of (w - C g)^T V.
    v = _inverse(inverse_factor)
    stripes = v.reshape(groups, n, columns)

    def one_row(row: tuple[Array, Array, Array]) -> Array:
        w, y, scale = row
        unit = unit_direction(y.reshape(groups, n), w.dtype)
        basis = jnp.einsum("gn,gnc->gc", unit, stripes)
        factor = inverse_cholesky(basis @ basis.T, damping=1e-6)
        gain = factor.T @ (factor @ (basis @ (w @ v)))

        def round_one(gain: Array, i: Array) -> tuple[Array, Array]:
            level = nearest_level(gain[i], scale, code.levels)
            error = (gain[i] - gain_value(level, scale, code.levels).astype(gain.dtype)) / factor[i, i]
            return gain - error * jnp.where(jnp.arange(groups) > i, factor[i], 0), level

        return jax.lax.scan(round_one, gain, jnp.arange(groups))[1]

    return jax.lax.map(one_row, (w, y, scale), batch_size=min(w.shape[0], _ROWS_AT_ONCE))


@functools.partial(jax.jit, static_argnames="words")
def encode(
    y: Int8[Array, "rows columns"],
    gains: UInt8[Array, "rows groups"],
    code: Code,
    tables: UInt32[Array, "n k m limbs"],
    *,
    words: int,
) -> UInt32[Array, "rows words"]:
    """Packs directions and gain codes into rows of words."""
    groups = y.reshape(*gains.shape, -1)
    index = rank(groups, tables, pulses=code.pulses)
    return pack(join(index, code.index_bits, gains.astype(jnp.uint32)), code.group_bits, words=words)


def nearest_level(
    gain: Float[Array, "..."], scale: Float16[Array, "..."], levels: Float32[Array, " levels"]
) -> UInt8[Array, "..."]:
    """Code of the level nearest to gain / scale; the lowest of equals."""
    distance = jnp.abs(gain[..., None] - gain_value(jnp.arange(levels.shape[0]), scale[..., None], levels))
    return jnp.argmin(distance, axis=-1).astype(jnp.uint8)


def gain_value(
    code: Int[Array, "..."], scale: Float16[Array, "..."], levels: Float32[Array, " levels"]
) -> Array:
    """The gain that a gain code stands for in a row of this scale."""
    return scale.astype(levels.dtype) * levels[code]


def unit_direction(y: Int8[Array, "... n"], dtype: Any) -> Float[Array, "... n"]:
    """y / ||y||."""
    y = y.astype(dtype)
    return y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True))


def reconstruct(unit: Float[Array, "... n"], gain: Float[Array, "..."]) -> Float[Array, "... n"]:
    """The groups that directions and gains stand for."""
    return gain[..., None] * unit
