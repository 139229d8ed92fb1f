"""Scalar quantization in groups: round-to-nearest and GPTQ, the baselines that lattice codes have to beat.

GPTQ (arXiv:2210.17323) is the block feedback with blocks of one column, inside groups that share a scale
taken from the weights as they stand when the group is reached.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, UInt8, UInt32

from jaxlab.errors import InputError
from jaxlab.kernels.block_feedback import block_feedback
from jaxlab.models.linear import register_linear
from jaxlab.quantization.packing import WORD, pack, unpack, words_for
from jaxlab.quantization.rotation import rotate, unrotate
from jaxlab.quantization.spec import RowMap, bind

ScalarGrid = Literal["minmax", "midrise", "midtread"]
OFFSET: dict[str, float] = {"midrise": 0.5, "midtread": 0.0}
"""Of the symmetric grids: what is added to a code less the middle one before it is scaled."""
_CLIPS = 48
_LARGEST = 16384.0  # a quarter of fp16's range: rotation and feedback may enlarge a weight


@dataclasses.dataclass(frozen=True)
class ScalarSpec:
    """A uniform scalar quantizer of `bits` bits with one fp16 scale (and, for "minmax", one fp16 minimum) a
    group.
    """

    bits: int
    """Bits a weight, 1 to 8 (2 to 8 for "midtread")."""
    group: int
    """Weights that share a scale, along the input dimension, >= 1."""
    grid: ScalarGrid = "minmax"
    """"minmax": scale * q + minimum; "midrise": scale * (q + 1/2), symmetric, even; "midtread": scale * q,
    symmetric."""
    clip: bool = False
    """Shrink the range to the one of least squared error (for "midrise" and "midtread")."""

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        if self.grid not in ("minmax", *OFFSET):
            raise InputError(f"grid is {self.grid!r}; it must be minmax, midrise or midtread")
        if not (2 if self.grid == "midtread" else 1) <= self.bits <= 8:
            raise InputError(f"bits is {self.bits}; it must be 1 to 8 (2 to 8 for midtread)")
        if self.group < 1:
            raise InputError(f"group is {self.group}; it must be at least 1")
        if self.clip and self.grid == "minmax":
            raise InputError("clip=True needs a symmetric grid: midrise or midtread")

    def groups(self, columns: int) -> int:
        """Groups in a row.

        Raises:
          InputError: `columns` is not a multiple of the group size.
        """
        if columns % self.group:
            divisors = [d for d in range(8, 257) if columns % d == 0]
            raise InputError(
                f"in_features {columns} is not divisible by the group size {self.group}: use one of {divisors}"
            )
        return columns // self.group

    def stored_bits(self, columns: int) -> float:
        """Bits a weight on disk: codes, a row's padding to a word, scales and minima."""
        side = 32 if self.grid == "minmax" else 16
        return (self.row_words(columns) * WORD + self.groups(columns) * side) / columns

    def row_words(self, columns: int) -> int:
        """32-bit words that the codes of a row take."""
        return words_for(columns, self.bits)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "scale", "minimum", "signs"],
    meta_fields=["spec", "columns"],
)
@dataclasses.dataclass(frozen=True)
class ScalarTensor:
    """A matrix [rows, columns] of packed scalar codes; leading axes may be stacked (layers) and are mapped
    over.
    """

    words: UInt32[Array, "*stack rows row_words"]
    scale: Float16[Array, "*stack rows groups"]
    minimum: Float16[Array, "*stack rows groups"] | None
    """Value of code 0; None for symmetric grids."""
    signs: Bool[Array, "*stack columns"] | None
    """Rotation signs (True is -1) of the input dimension; None where the weights were not rotated."""
    spec: ScalarSpec
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix that this stands for."""
        return (*self.words.shape[:-1], self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all that a file holds of this tensor (rotation signs as bits)."""
        signs = 0 if self.signs is None else math.prod(self.signs.shape[:-1]) * -(-self.columns // 8)
        minimum = 0 if self.minimum is None else 2 * self.minimum.size
        return 4 * self.words.size + 2 * self.scale.size + minimum + signs


def quantize_scalar(
    w: Float[Array, "rows columns"],
    signs: Bool[Array, " columns"] | None = None,
    inverse_factor: Float[Array, "columns columns"] | None = None,
    *,
    spec: ScalarSpec,
    row_map: RowMap = lambda function: function,
) -> ScalarTensor:
    """Round-to-nearest, or GPTQ where `inverse_factor` is given.

    Args:
      w: finite weights.
      signs: rotate the input dimension by these signs and a Hadamard transform first.
      inverse_factor: upper U with H^-1 = U^T U of the (rotated, damped) second moment H of the inputs.
      spec: the code.
      row_map: turns `f(rows, *replicated) -> rows` into a function of the same arguments, e.g. one that
        shards rows.

    Raises:
      InputError: w is not a finite matrix within the range of fp16 scales, or its columns do not fit the groups.
    """
    if w.ndim != 2 or 0 in w.shape:
        raise InputError(
            f"w has shape {w.shape}; a matrix [rows, columns] with at least one weight is needed"
        )
    spec.groups(w.shape[1])
    peak = float(jnp.max(jnp.abs(w)))
    if not peak <= _LARGEST:
        raise InputError(
            f"the largest weight is {peak}; fp16 scales need finite weights up to {_LARGEST:.0f}"
        )
    words, scale, minimum = row_map(bind(scalar_rows, spec=spec))(w, signs, inverse_factor)
    return ScalarTensor(words, scale, minimum if spec.grid == "minmax" else None, signs, spec, w.shape[1])


@functools.partial(jax.jit, static_argnames="spec")
def scalar_rows(
    w: Array, signs: Array | None, inverse_factor: Array | None, *, spec: ScalarSpec
) -> tuple[Array, Array, Array]:
    """Words, scales and minima of finite rows, each by itself; arguments as for `quantize_scalar`."""
    rows, columns = w.shape
    groups = spec.groups(columns)
    if signs is not None:
        w = rotate(w, signs)
    if inverse_factor is None:
        grouped = w.reshape(rows, groups, spec.group)
        scale, minimum = _group_scale(grouped, spec)
        codes = _code(grouped, scale, minimum, spec)
    else:

        def quantize_group(
            target: jax.Array, u: jax.Array, i: jax.Array
        ) -> tuple[tuple[jax.Array, ...], jax.Array]:
            del i
            scale, minimum = _group_scale(target, spec)

            def quantize_column(column: jax.Array, u: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
                del u, i
                code = _code(column, scale, minimum, spec)
                return code, _value(code, scale, minimum, spec, w.dtype)

            code, quantized = block_feedback(target, u, quantize_column, block=1)
            return (code[..., 0].T, scale, minimum), quantized

        (codes, scale, minimum), _ = block_feedback(w, inverse_factor, quantize_group, block=spec.group)
        codes, scale, minimum = (x.swapaxes(0, 1) for x in (codes, scale, minimum))
    words = spec.row_words(columns)
    return pack(codes.reshape(rows, columns, 1).astype(jnp.uint32), spec.bits, words=words), scale, minimum


@functools.partial(jax.jit, static_argnames="dtype")
def dequantize_scalar(
    t: ScalarTensor, *, dtype: jnp.dtype = jnp.float32
) -> Float[Array, "*stack rows columns"]:
    """The matrix that a tensor stands for, in the original (unrotated) basis."""
    if t.words.ndim > 2:
        return jax.lax.map(lambda part: dequantize_scalar(part, dtype=dtype), t)
    rows = t.words.shape[0]
    start = jnp.arange(t.columns)[None] * t.spec.bits
    codes = unpack(t.words, start, t.spec.bits, limbs=1).reshape(rows, -1, t.spec.group)
    minimum = jnp.zeros_like(t.scale) if t.minimum is None else t.minimum
    w = _value(codes.astype(jnp.uint8), t.scale, minimum, t.spec, jnp.float32).reshape(rows, t.columns)
    return (w if t.signs is None else unrotate(w, t.signs)).astype(dtype)


def _group_scale(
    w: Float[Array, "... group"], spec: ScalarSpec
) -> tuple[Float16[Array, "..."], Float16[Array, "..."]]:
    """Scale and minimum of each group, rounded to half precision."""
    if spec.grid == "minmax":
        low = jnp.minimum(w.min(-1), 0).astype(jnp.float16)
        span = jnp.maximum(w.max(-1), 0) - low.astype(w.dtype)
        return (span / (2**spec.bits - 1)).astype(jnp.float16), low
    peak = jnp.abs(w).max(-1)
    half = 2 ** (spec.bits - 1) - (1 - OFFSET[spec.grid])
    zero = jnp.zeros(peak.shape, jnp.float16)
    if not spec.clip:
        return (peak / half).astype(jnp.float16), zero

    def error_at(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = (ratio * peak / half).astype(jnp.float16)
        quantized = _value(_code(w, scale, zero, spec), scale, zero, spec, w.dtype)
        return jnp.sum(jnp.square(w - quantized), axis=-1), scale

    def keep_best(
        best: tuple[jax.Array, jax.Array], ratio: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        error, scale = error_at(ratio)
        better = error < best[0]
        return (jnp.where(better, error, best[0]), jnp.where(better, scale, best[1])), None

    ratios = jnp.linspace(1.0, 0.35, _CLIPS, dtype=w.dtype)
    return jax.lax.scan(keep_best, error_at(ratios[0]), ratios[1:])[0][1], zero


def _code(w: jax.Array, scale: jax.Array, minimum: jax.Array, spec: ScalarSpec) -> UInt8[Array, "... group"]:
    step = scale.astype(w.dtype)[..., None]
    steps = (w - minimum.astype(w.dtype)[..., None]) / jnp.where(step == 0, 1, step)
    if spec.grid == "minmax":
        return jnp.clip(jnp.round(steps), 0, 2**spec.bits - 1).astype(jnp.uint8)
    middle = 2 ** (spec.bits - 1)
    lowest = 1 if spec.grid == "midtread" else 0  # midtread keeps to -(2^(b-1) - 1), so that it is symmetric
    return jnp.clip(jnp.round(steps - OFFSET[spec.grid]) + middle, lowest, 2 * middle - 1).astype(jnp.uint8)


def _value(
    code: UInt8[Array, "... group"], scale: jax.Array, minimum: jax.Array, spec: ScalarSpec, dtype: jnp.dtype
) -> Float[Array, "... group"]:
    steps = code.astype(dtype)
    if spec.grid != "minmax":
        steps = steps - 2 ** (spec.bits - 1) + OFFSET[spec.grid]
    return steps * scale.astype(dtype)[..., None] + minimum.astype(dtype)[..., None]


def _apply(x: Array, t: ScalarTensor) -> Array:
    return x @ dequantize_scalar(t, dtype=x.dtype).T


register_linear(ScalarTensor, _apply, dequantize_scalar)
