"""Codes of any width packed little-endian into 32-bit words, and back, without 64-bit integers.

Widths may be traced, so that one compiled program serves codes of many widths.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

WORD = 32


def words_for(codes: int, width: int) -> int:
    """Whole words that hold `codes` codes of `width` bits."""
    return -(-codes * width // WORD)


def pack(
    values: UInt32[Array, "rows codes limbs"], width: Int[Array, ""] | int, *, words: int
) -> UInt32[Array, "rows words"]:
    """Packs each row's codes one after the other; what is left of the row is zero.

    Args:
      values: codes, least significant limb first; bits from `width` on must be zero.
      width: bits per code, 1 to 32 * limbs; may be traced.
      words: length of the rows, at least `words_for(codes, width)`.
    """
    rows, codes, limbs = values.shape
    start = jnp.arange(codes) * width
    first, shift = start // WORD, (start % WORD).astype(jnp.uint32)
    packed = jnp.zeros((rows, words), jnp.uint32)
    for limb in range(limbs):
        value = values[..., limb]
        # Codes do not overlap, so that adding is the same as or-ing; a word past the row is dropped, its bits
        # are 0.
        packed = packed.at[:, first + limb].add(value << shift, mode="drop")
        spill = jnp.where(shift == 0, 0, value >> ((WORD - shift) % WORD))
        packed = packed.at[:, first + limb + 1].add(spill, mode="drop")
    return packed


def unpack(
    words: UInt32[Array, "rows words"],
    start: Int[Array, "rows codes"] | Int[Array, "1 codes"],
    width: Int[Array, "rows 1"] | int,
    *,
    limbs: int,
) -> UInt32[Array, "rows codes limbs"]:
    """Codes of `width` bits from bit position `start` on, in `limbs` limbs; both may be traced and differ by
    row.
    """
    padded = jnp.pad(words, ((0, 0), (0, limbs + 1)))
    first, shift = start // WORD, (start % WORD).astype(jnp.uint32)
    shape = jnp.broadcast_shapes(first.shape, (words.shape[0], 1))

    def word(offset: int) -> jax.Array:
        return jnp.take_along_axis(padded, jnp.broadcast_to(first + offset, shape), axis=1, mode="clip")

    parts = []
    for limb in range(limbs):
        low = word(limb) >> shift
        high = word(limb + 1) << ((WORD - shift) % WORD)
        left = jnp.clip(jnp.asarray(width) - WORD * limb, 0, WORD).astype(jnp.uint32)
        mask = jnp.where(left == WORD, jnp.uint32(0xFFFFFFFF), (jnp.uint32(1) << (left % WORD)) - 1)
        parts.append(jnp.where(shift == 0, low, low | high) & mask)
    return jnp.stack(parts, axis=-1)


def join(low: UInt32[Array, "... limbs"], bits: Int[Array, ""] | int, high: UInt32[Array, "..."]) -> Array:
    """The code whose lowest `bits` bits are `low` and whose next bits are `high`; as many limbs as `low` and
    one more.
    """
    limbs = low.shape[-1] + 1
    position = jnp.arange(limbs) * WORD
    offset = jnp.asarray(bits) - position
    here = (offset >= 0) & (offset < WORD)
    shift = (offset % WORD).astype(jnp.uint32)
    placed = jnp.where(here, high[..., None] << shift, 0)
    before = (offset < 0) & (offset > -WORD)
    spill = jnp.where(before, high[..., None] >> ((-offset) % WORD).astype(jnp.uint32), 0)
    return jnp.pad(low, [(0, 0)] * (low.ndim - 1) + [(0, 1)]) | placed | spill
