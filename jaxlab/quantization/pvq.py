"""Pyramid vector quantization of one weight matrix. Reference: arXiv:2410.16926; Fischer 1986.

A row is rotated, cut into groups of n weights; a group is stored as the index of its direction among the
integer vectors of L1 norm k, and a gain code on levels shared by the matrix, in units of the row's root mean
square.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Float32, Int8, UInt8, UInt32

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import inverse_cholesky
from jaxlab.kernels.pyramid_index import unrank
from jaxlab.kernels.pyramid_search import search
from jaxlab.models.linear import register_linear
from jaxlab.quantization.gains import gain_levels
from jaxlab.quantization.packing import unpack
from jaxlab.quantization.rotation import random_signs, rotate, rotate_hessian, unrotate
from jaxlab.quantization.rows import (
    code_of,
    gain_value,
    most_words,
    quantize_rows,
    quantize_with_feedback,
    reconstruct,
    row_scale,
    shared_tables,
    unit_direction,
)
from jaxlab.quantization.spec import PVQSpec, RowMap, bind

_LEAST_EXPONENT = -120  # of the scales' unit, so that it and the levels stay normal float32 numbers


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "scale", "levels", "signs"],
    meta_fields=["spec", "columns"],
)
@dataclasses.dataclass(frozen=True)
class PVQTensor:
    """A matrix [rows, columns] as it stands on disk; leading axes may be stacked (layers) and are mapped
    over.
    """

    words: UInt32[Array, "*stack rows row_words"]
    """Group codes (index bits, then gain bits), little-endian, a row padded to a word."""
    scale: Float16[Array, "*stack rows"]
    """Root mean square of the row, in a unit that the levels carry."""
    levels: Float32[Array, "*stack levels"]
    """Gain levels in units of `scale`."""
    signs: Bool[Array, "*stack columns"] | None
    """Rotation signs (True is -1) of the input dimension; None where the weights were not rotated."""
    spec: PVQSpec
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix that this stands for."""
        return (*self.words.shape[:-1], self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all that a file holds of this tensor (rotation signs as bits)."""
        signs = 0 if self.signs is None else math.prod(self.signs.shape[:-1]) * -(-self.columns // 8)
        return 4 * self.words.size + 2 * self.scale.size + 4 * self.levels.size + signs


def quantize(
    w: Float[Array, "rows columns"],
    spec: PVQSpec,
    key: jax.Array,
    *,
    hessian: Float[Array, "columns columns"] | None = None,
    damping: float = 0.01,
    rotated: bool = True,
    sweeps: int = 0,
    refit: bool = False,
    pad: bool = False,
) -> PVQTensor:
    """Quantizes a matrix, with block error feedback where the inputs' second moment is given.

    Args:
      w: weights, finite.
      spec: group size, pulses, gain bits.
      key: PRNG key of the rotation's signs.
      hessian: E[x x^T] (or the sum) of the inputs x, unrotated; symmetric positive semi-definite.
      damping: share of the mean diagonal of the Hessian that is added to it, > 0.
      rotated: rotate the input dimension by signs and a Hadamard transform first.
      sweeps: with a Hessian, passes of coordinate descent over the groups after the feedback.
      refit: with a Hessian, solve for the best gains once the directions are known, and round those with
        feedback.
      pad: fill the last group of a row with zeros where `columns` is not a multiple of `spec.n`.

    Raises:
      InputError: w is not a finite matrix, does not fit the groups, or the Hessian is unusable.
    """
    w = jnp.asarray(w)
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    if w.ndim != 2 or 0 in w.shape:
        raise InputError(
            f"w has shape {w.shape}; a matrix [rows, columns] with at least one weight is needed"
        )
    columns = w.shape[1]
    padding = -columns % spec.n if pad else 0
    if not bool(jnp.isfinite(w).all()):
        raise InputError(f"w has {int((~jnp.isfinite(w)).sum())} non-finite weights of {w.size}")
    signs = random_signs(key, columns) if rotated else None
    inverse_factor = None
    if hessian is not None:
        hessian = jnp.asarray(hessian)
        if hessian.shape != (columns, columns):
            raise InputError(
                f"hessian has shape {hessian.shape}, expected {(columns, columns)} for w {w.shape}"
            )
        inverse_factor = feedback_factor(hessian, signs, damping=damping)
    return quantize_prepared(w, signs, inverse_factor, spec=spec, sweeps=sweeps, refit=refit, padding=padding)


def quantize_prepared(
    w: Float[Array, "rows columns"],
    signs: Bool[Array, " columns"] | None,
    inverse_factor: Float[Array, "columns columns"] | None,
    *,
    spec: PVQSpec,
    sweeps: int = 0,
    refit: bool = False,
    padding: int = 0,
    output_moment: Float[Array, "rows rows"] | None = None,
    row_sets: int = 16,
    row_map: RowMap = lambda function: function,
) -> PVQTensor:
    """`quantize` with the rotation drawn and the Hessian factored, by a row-wise function that `row_map` may
    wrap.

    Args:
      w: finite weights.
      signs: of the rotation; None leaves the weights as they are.
      inverse_factor: upper U of the rotated, damped Hessian's inverse; None is no feedback.
      spec: the code.
      sweeps: as in `quantize`.
      refit: as in `quantize`.
      padding: zeros to add to a row.
      output_moment: damped second moment of the gradients at the outputs; passes errors on between rows too. Rows
        then depend on each other, and `row_map` is not used.
      row_sets: at most so many sets of rows are quantized one after the other then.
      row_map: turns `f(rows, *replicated) -> rows` into a function of the same arguments, e.g. one that
        shards rows.

    Raises:
      InputError: the columns do not fit the groups.
    """
    columns = w.shape[1] + padding
    spec.groups(columns)
    # A power of two that the levels carry: whatever the weights' size, the fp16 scales stay below 2^15, and those
    # of rows down to 2^-29 of the largest weight keep their full precision.
    exponent = jnp.frexp(jnp.max(jnp.abs(w)))[1]
    unit = jnp.ldexp(jnp.float32(1), jnp.maximum(exponent - 15, _LEAST_EXPONENT))
    levels = jnp.asarray(levels_for(spec, columns))
    tables = shared_tables(spec.n, spec.k)
    rows = bind(
        quantize_rows,
        n=spec.n,
        candidates=spec.candidates,
        words=most_words(spec.n, columns),
        sweeps=sweeps,
        refit=refit and inverse_factor is not None,
        padding=padding,
        row_sets=max(sets for sets in range(1, row_sets + 1) if w.shape[0] % sets == 0),
    )
    arguments = (w, unit, code_of(spec, levels), jnp.asarray(tables), signs, inverse_factor)
    if output_moment is None:
        words, scale = row_map(rows)(*arguments)
    else:
        words, scale = rows(*arguments, output_moment)
    return PVQTensor(words[:, : spec.row_words(columns)], scale, unit * levels, signs, spec, w.shape[1])


def feedback_factor(
    hessian: Float[Array, "columns columns"], signs: Bool[Array, " columns"] | None, *, damping: float
) -> Float[Array, "columns columns"]:
    """Upper factor U of the damped, rotated Hessian's inverse (H^-1 = U^T U).

    Raises:
      InputError: the damping is not positive, or the damped Hessian is not positive definite.
    """
    if not damping > 0:
        raise InputError(f"damping is {damping}; it must be > 0")
    factor = _feedback_factor(hessian, signs, damping)
    if not bool(jnp.isfinite(factor).all()):
        raise InputError(f"Hessian not positive definite after damping {damping}: raise --damping")
    return factor


@jax.jit
def _feedback_factor(hessian: Array, signs: Array | None, damping: Array) -> Array:
    return inverse_cholesky(hessian if signs is None else rotate_hessian(hessian, signs), damping=damping)


def levels_for(spec: PVQSpec, columns: int) -> np.ndarray:
    """Gain levels of `spec` in rows of `columns` weights: the norm's levels times the mean cosine of the
    code.

    Returns:
      float32[2**gain_bits].
    """
    return np.float32(mean_cosine(spec.n, spec.k)) * gain_levels(spec.n, columns, spec.gain_bits, spec.grid)


@functools.lru_cache(maxsize=256)
def mean_cosine(n: int, k: int) -> float:
    """E[cos] between a Gaussian vector and its nearest direction in P(n, k), over 16384 fixed draws."""
    draws = np.random.default_rng(0).standard_normal((16384, n)).astype(np.float32)
    with jax.ensure_compile_time_eval():  # a caller may be tracing
        y = np.asarray(_search(draws, k), np.float32)
    cosine = (draws * y).sum(1) / np.linalg.norm(draws, axis=1) / np.linalg.norm(y, axis=1)
    return float(cosine.mean())


@jax.jit
def _search(x: Array, k: Array) -> Array:
    return search(x, k=k)


def block_feedback(
    w: Float[Array, "rows columns"],
    chol_u: Float[Array, "columns columns"],
    spec: PVQSpec,
    *,
    scale: Float16[Array, " rows"] | None = None,
    levels: Float32[Array, " levels"] | None = None,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"]]:
    """Directions and gain codes of a matrix under block error feedback.

    Args:
      w: weights, already rotated; columns a multiple of `spec.n`.
      chol_u: upper U with H^-1 = U^T U, of the rotated inputs.
      spec: the code.
      scale: row scales; None takes each row's root mean square.
      levels: gain levels in units of `scale`; None takes `levels_for(spec, columns)`.
    """
    scale = row_scale(w) if scale is None else scale
    levels = jnp.asarray(levels_for(spec, w.shape[1])) if levels is None else levels
    return _quantize_with_feedback(
        w, chol_u, scale, code_of(spec, levels), n=spec.n, candidates=spec.candidates
    )


_quantize_with_feedback = jax.jit(quantize_with_feedback, static_argnames=("n", "candidates"))


def decode(t: PVQTensor) -> tuple[Int8[Array, "rows groups n"], UInt8[Array, "rows groups"]]:
    """Directions and gain codes of a tensor without stacked axes."""
    spec = t.spec
    groups = -(-t.columns // spec.n)
    tables = jnp.asarray(shared_tables(spec.n, spec.k))
    start = jnp.arange(groups)[None] * spec.group_bits
    index = unpack(t.words, start, spec.index_bits, limbs=tables.shape[-1])
    gain = unpack(t.words, start + spec.index_bits, spec.gain_bits, limbs=1)[..., 0]
    return unrank(index, tables, pulses=jnp.full(gain.shape, spec.k, jnp.int32)), gain.astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="dtype")
def dequantize(t: PVQTensor, *, dtype: Any = jnp.float32) -> Float[Array, "*stack rows columns"]:
    """The matrix that a tensor stands for, in the original (unrotated) basis."""
    if t.words.ndim > 2:
        return jax.lax.map(lambda part: dequantize(part, dtype=dtype), t)
    rotated = rotated_weights(t)
    w = rotated if t.signs is None else unrotate(rotated, t.signs)
    return w.astype(dtype)


def rotated_weights(t: PVQTensor) -> Float32[Array, "rows columns"]:
    """The quantized matrix in the rotated basis, without padding."""
    y, gain = decode(t)
    w = reconstruct(unit_direction(y, jnp.float32), gain_value(gain, t.scale[:, None], t.levels))
    return w.reshape(w.shape[0], -1)[:, : t.columns]


def matmul(x: Float[Array, "... columns"], t: PVQTensor) -> Float[Array, "... rows"]:
    """x @ W^T with the input rotated instead of the weights."""
    rotated = x if t.signs is None else rotate(x, t.signs)
    return rotated @ rotated_weights(t).astype(x.dtype).T


register_linear(PVQTensor, matmul, dequantize)
