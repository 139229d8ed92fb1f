"""Pyramid vector quantization of one weight matrix. Reference: arXiv:2410.16926; Fischer 1986.

A row is rotated, cut into groups of n weights; a group is stored as the index of its direction among the integer
vectors of L1 norm k, and a gain code on levels shared by the matrix, in units of the row's root mean square.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Float32, Int8, UInt8, UInt32

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import block_feedback as _block_feedback
from jaxlab.kernels.block_feedback import inverse_cholesky
from jaxlab.kernels.pyramid_index import rank, rank_tables, unrank
from jaxlab.kernels.pyramid_search import search
from jaxlab.quantization.gains import gain_levels
from jaxlab.quantization.packing import WORD, pack, unpack
from jaxlab.quantization.rotation import random_signs, rotate, rotate_hessian, unrotate
from jaxlab.quantization.spec import PVQSpec, RowMap


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "scale", "levels", "signs"],
    meta_fields=["spec", "columns"],
)
@dataclasses.dataclass(frozen=True)
class PVQTensor:
    """A matrix [rows, columns] as it stands on disk; leading axes may be stacked (layers) and are mapped over."""

    words: UInt32[Array, "*stack rows row_words"]
    """Group codes (index bits, then gain bits), little-endian, a row padded to a word."""
    scale: Float16[Array, "*stack rows"]
    """Root mean square of the row."""
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
    refit: bool = True,
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
      refit: with a Hessian, solve for the best gains once the directions are known, and round those with feedback.
      pad: fill the last group of a row with zeros where `columns` is not a multiple of `spec.n`.

    Raises:
      InputError: w is not a finite matrix, does not fit the groups, or the Hessian is unusable.
    """
    w = jnp.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise InputError(f"w has shape {w.shape}; a matrix [rows, columns] with at least one weight is needed")
    columns = w.shape[1]
    padding = -columns % spec.n if pad else 0
    spec.groups(columns + padding)
    if not bool(jnp.isfinite(w).all()):
        raise InputError(f"w has {int((~jnp.isfinite(w)).sum())} non-finite weights of {w.size}")
    signs = random_signs(key, columns) if rotated else None
    inverse_factor = None
    if hessian is not None:
        hessian = jnp.asarray(hessian)
        if hessian.shape != (columns, columns):
            raise InputError(f"hessian has shape {hessian.shape}, expected {(columns, columns)} for w {w.shape}")
        inverse_factor = feedback_factor(hessian, signs, damping=damping)
    return quantize_prepared(w, signs, inverse_factor, spec=spec, refit=refit, padding=padding)


def quantize_prepared(
    w: Float[Array, "rows columns"],
    signs: Bool[Array, " columns"] | None,
    inverse_factor: Float[Array, "columns columns"] | None,
    *,
    spec: PVQSpec,
    refit: bool = True,
    padding: int = 0,
    row_map: RowMap = lambda function: function,
) -> PVQTensor:
    """`quantize` with the rotation drawn and the Hessian factored, by a row-wise function that `row_map` may wrap.

    Args:
      w: finite weights.
      signs: of the rotation; None leaves the weights as they are.
      inverse_factor: upper U of the rotated, damped Hessian's inverse; None is no feedback.
      spec: the code.
      refit: as in `quantize`.
      padding: zeros to add to a row.
      row_map: turns `f(rows, *replicated) -> rows` into a function of the same arguments, e.g. one that shards rows.
    """
    # A power of two carried by the levels keeps the fp16 row scales near 1 whatever the size of the weights.
    size = jnp.sqrt(jnp.mean(jnp.square(w)))
    unit = jnp.exp2(jnp.round(jnp.log2(jnp.where(size > 0, size, 1)))).astype(jnp.float32)
    levels = unit * levels_for(spec, w.shape[1] + padding)
    rows = functools.partial(quantize_rows, spec=spec, refit=refit and inverse_factor is not None, padding=padding)
    words, scale = row_map(rows)(w, unit, levels, signs, inverse_factor)
    return PVQTensor(words, scale, levels, signs, spec, w.shape[1])


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
def _feedback_factor(hessian: jax.Array, signs: jax.Array | None, damping: jax.Array) -> jax.Array:
    return inverse_cholesky(hessian if signs is None else rotate_hessian(hessian, signs), damping=damping)


def levels_for(spec: PVQSpec, columns: int) -> np.ndarray:
    """Gain levels of `spec` in rows of `columns` weights: the norm's levels times the mean cosine of the code.

    Returns:
      float32[2**gain_bits].
    """
    return np.float32(mean_cosine(spec.n, spec.k)) * gain_levels(spec.n, columns, spec.gain_bits, spec.grid)


@functools.lru_cache(maxsize=256)
def mean_cosine(n: int, k: int) -> float:
    """E[cos] between a Gaussian vector and its nearest direction in P(n, k), over 16384 fixed draws."""
    draws = np.random.default_rng(0).standard_normal((16384, n)).astype(np.float32)
    y = np.asarray(search(jnp.asarray(draws), k=k), np.float32)
    cosine = (draws * y).sum(1) / np.linalg.norm(draws, axis=1) / np.linalg.norm(y, axis=1)
    return float(cosine.mean())


@functools.partial(jax.jit, static_argnames=("spec", "refit", "padding"))
def quantize_rows(
    w: Float[Array, "rows columns"],
    unit: Float32[Array, ""],
    levels: Float32[Array, " levels"],
    signs: Bool[Array, " columns"] | None,
    inverse_factor: Float[Array, "columns columns"] | None,
    *,
    spec: PVQSpec,
    refit: bool,
    padding: int = 0,
) -> tuple[UInt32[Array, "rows row_words"], Float16[Array, " rows"]]:
    """Words and scales of a `PVQTensor`, each row by itself; `unit` is what the scales are counted in."""
    if signs is not None:
        w = rotate(w, signs)
    w = jnp.pad(w, ((0, 0), (0, padding)))
    scale = row_scale(w / unit)
    if inverse_factor is None:
        per_group = jnp.repeat(scale, w.shape[1] // spec.n)
        y, gains, _ = quantize_groups(w.reshape(-1, spec.n), per_group, levels, spec)
        y, gains = y.reshape(w.shape), gains.reshape(w.shape[0], -1)
    else:
        if padding:
            inverse_factor = jax.scipy.linalg.block_diag(inverse_factor, jnp.eye(padding, dtype=w.dtype))
        y, gains = block_feedback(w, inverse_factor, spec, scale=scale, levels=levels)
        if refit:
            gains = refit_gains(w, y, inverse_factor, scale=scale, levels=levels, spec=spec)
    return encode(y, gains, spec), scale


def row_scale(w: Float[Array, "rows columns"]) -> Float16[Array, " rows"]:
    """Root mean square of each row in half precision (all-zero rows: 0)."""
    return jnp.sqrt(jnp.mean(jnp.square(w), axis=1)).astype(jnp.float16)


def quantize_groups(
    w: Float[Array, "groups n"], scale: Float16[Array, " groups"], levels: Float32[Array, " levels"], spec: PVQSpec
) -> tuple[Int8[Array, "groups n"], UInt8[Array, " groups"], Float[Array, "groups n"]]:
    """Nearest direction, then nearest gain level of the projection <w, y>/||y||.

    Returns:
      Directions, gain codes, and the groups they stand for.
    """
    y = search(w, k=spec.k, candidates=spec.candidates)
    unit = _unit(y, w.dtype)
    gain = nearest_level(jnp.sum(w * unit, axis=-1), scale, levels)
    return y, gain, _reconstruct(unit, gain, scale, levels)


def nearest_level(
    gain: Float[Array, " groups"], scale: Float16[Array, " groups"], levels: Float32[Array, " levels"]
) -> UInt8[Array, " groups"]:
    """Code of the level nearest to gain / scale."""
    distance = jnp.abs(gain[..., None] - scale.astype(gain.dtype)[..., None] * levels.astype(gain.dtype))
    return jnp.argmin(distance, axis=-1).astype(jnp.uint8)


def block_feedback(
    w: Float[Array, "rows columns"],
    chol_u: Float[Array, "columns columns"],
    spec: PVQSpec,
    *,
    scale: Float16[Array, " rows"] | None = None,
    levels: Float32[Array, " levels"] | None = None,
) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"]]:
    """Directions and gain codes of a matrix under block error feedback (pvq of each group, errors passed on).

    Args:
      w: weights, already rotated.
      chol_u: upper U with H^-1 = U^T U, of the rotated inputs.
      spec: the code.
      scale: row scales; None takes each row's root mean square.
      levels: gain levels; None takes `levels_for(spec, columns)`.
    """
    rows, columns = w.shape
    scale = row_scale(w) if scale is None else scale
    levels = jnp.asarray(levels_for(spec, columns)) if levels is None else levels

    def quantize_block(target: jax.Array, u: jax.Array, i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        del u, i
        y, gain, quantized = quantize_groups(target, scale, levels, spec)
        return (y, gain), quantized

    (y, gain), _ = _block_feedback(w, chol_u, quantize_block, block=spec.n)
    return y.transpose(1, 0, 2).reshape(rows, columns), gain.T


def refit_gains(
    w: Float[Array, "rows columns"],
    y: Int8[Array, "rows columns"],
    chol_u: Float[Array, "columns columns"],
    *,
    scale: Float16[Array, " rows"],
    levels: Float32[Array, " levels"],
    spec: PVQSpec,
) -> UInt8[Array, "rows groups"]:
    """Gain codes anew, for directions that stay: the least-squares gains g = (C^T H C)^-1 C^T H w, rounded with feedback.

    C holds a row's unit directions, one column a group. Reference: pvq spec section 2.6; arXiv:2410.16926.
    """
    columns = w.shape[1]
    groups = columns // spec.n
    # H = V V^T with V = U^-1, so that a row's error is the squared length of (w - C g)^T V.
    v = jax.scipy.linalg.solve_triangular(chol_u, jnp.eye(columns, dtype=w.dtype))
    stripes = v.reshape(groups, spec.n, columns)

    def one_row(w: jax.Array, y: jax.Array, scale: jax.Array) -> jax.Array:
        unit = _unit(y.reshape(groups, spec.n), w.dtype)
        basis = jnp.einsum("gn,gnc->gc", unit, stripes)
        gram = basis @ basis.T
        factor = inverse_cholesky(gram, damping=1e-6)
        gain = factor.T @ (factor @ (basis @ (w @ v)))

        def round_one(gain: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            code = nearest_level(gain[i], scale, levels)
            error = (gain[i] - scale.astype(gain.dtype) * levels[code].astype(gain.dtype)) / factor[i, i]
            return gain - error * jnp.where(jnp.arange(groups) > i, factor[i], 0), code

        return jax.lax.scan(round_one, gain, jnp.arange(groups))[1]

    return jax.lax.map(lambda row: one_row(*row), (w, y, scale), batch_size=min(w.shape[0], 64))


def encode(
    y: Int8[Array, "rows columns"], gains: UInt8[Array, "rows groups"], spec: PVQSpec
) -> UInt32[Array, "rows row_words"]:
    """Packs directions and gain codes into the words of a `PVQTensor`."""
    rows, columns = y.shape
    index = rank(y.reshape(rows, columns // spec.n, spec.n), jnp.asarray(rank_tables(spec.n, spec.k)))
    limbs = -(-spec.group_bits // WORD)
    value = jnp.pad(index, ((0, 0), (0, 0), (0, max(0, limbs - index.shape[-1]))))
    if spec.gain_bits:
        gain = gains.astype(jnp.uint32)
        limb, shift = divmod(spec.index_bits, WORD)
        value = value.at[..., limb].add(gain << shift)
        if shift + spec.gain_bits > WORD:
            value = value.at[..., limb + 1].add(gain >> (WORD - shift))
    return pack(value[..., :limbs], width=spec.group_bits)


def decode(t: PVQTensor) -> tuple[Int8[Array, "rows columns"], UInt8[Array, "rows groups"]]:
    """Directions and gain codes of a tensor without stacked axes (columns padded to whole groups)."""
    spec = t.spec
    groups = -(-t.columns // spec.n)
    value = unpack(t.words, width=spec.group_bits, codes=groups)
    gain = jnp.zeros(value.shape[:2], jnp.uint8)
    limb, shift = divmod(spec.index_bits, WORD)
    if spec.gain_bits:
        bits = value[..., limb] >> shift
        if shift + spec.gain_bits > WORD:
            bits = bits | (value[..., limb + 1] << (WORD - shift))
        gain = (bits & ((1 << spec.gain_bits) - 1)).astype(jnp.uint8)
    tables = rank_tables(spec.n, spec.k)
    index = value[..., : tables.shape[-1]]
    if shift and limb < index.shape[-1]:
        index = index.at[..., limb].set(index[..., limb] & ((1 << shift) - 1))
    y = unrank(index, jnp.asarray(tables))
    return y.reshape(t.words.shape[0], groups * spec.n), gain


@functools.partial(jax.jit, static_argnames="dtype")
def dequantize(t: PVQTensor, *, dtype: jnp.dtype = jnp.float32) -> Float[Array, "*stack rows columns"]:
    """The matrix that a tensor stands for, in the original (unrotated) basis."""
    if t.words.ndim > 2:
        return jax.lax.map(lambda part: dequantize(part, dtype=dtype), t)
    rotated = rotated_weights(t)
    w = rotated if t.signs is None else unrotate(rotated, t.signs)
    return w.astype(dtype)


def rotated_weights(t: PVQTensor) -> Float32[Array, "rows columns"]:
    """The quantized matrix in the rotated basis, without padding."""
    y, gain = decode(t)
    unit = _unit(y.reshape(-1, t.spec.n), jnp.float32)
    scale = jnp.repeat(t.scale, gain.shape[1])
    return _reconstruct(unit, gain.reshape(-1), scale, t.levels).reshape(y.shape)[:, : t.columns]


def matmul(x: Float[Array, "... columns"], t: PVQTensor) -> Float[Array, "... rows"]:
    """x @ W^T with the input rotated instead of the weights."""
    rotated = x if t.signs is None else rotate(x, t.signs)
    return rotated @ rotated_weights(t).astype(x.dtype).T


def _unit(y: Int8[Array, "... n"], dtype: jnp.dtype) -> Float[Array, "... n"]:
    y = y.astype(dtype)
    return y * jax.lax.rsqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True))


def _reconstruct(unit: jax.Array, gain: jax.Array, scale: jax.Array, levels: jax.Array) -> jax.Array:
    return (scale.astype(unit.dtype) * levels.astype(unit.dtype)[gain])[:, None] * unit
