"""Fixed-width codes packed little-endian into 32-bit words, and back, without 64-bit integers."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from jaxlab.errors import InputError

WORD = 32


def pack(values: UInt32[Array, "rows codes limbs"], *, width: int) -> UInt32[Array, "rows words"]:
    """Packs each row's codes of `width` bits one after the other; the row is padded with zeros to a whole word.

    Args:
      values: codes, least significant limb first; bits above `width` must be zero.
      width: bits per code, 1 to 32 * limbs.

    Raises:
      InputError: `width` does not fit the limbs.
    """
    rows, codes, limbs = values.shape
    _check(width, limbs)
    starts = np.arange(codes) * width
    first, shift = starts // WORD, jnp.asarray(starts % WORD, jnp.uint32)
    words = jnp.zeros((rows, -(-codes * width // WORD) + limbs + 1), jnp.uint32)
    for limb in range(limbs):
        value = values[..., limb]
        # Codes do not overlap, so that adding is the same as or-ing.
        words = words.at[:, first + limb].add(value << shift)
        words = words.at[:, first + limb + 1].add(_shift_right(value, WORD - shift))
    return words[:, : -(-codes * width // WORD)]


def unpack(words: UInt32[Array, "rows words"], *, width: int, codes: int) -> UInt32[Array, "rows codes limbs"]:
    """The codes that `pack` has packed, in ceil(width / 32) limbs.

    Raises:
      InputError: the rows are too short for `codes` codes of `width` bits.
    """
    limbs = -(-width // WORD)
    _check(width, limbs)
    if words.shape[-1] != -(-codes * width // WORD):
        raise InputError(
            f"rows of {words.shape[-1]} words cannot hold {codes} codes of {width} bits: "
            f"{-(-codes * width // WORD)} words expected"
        )
    starts = np.arange(codes) * width
    first, shift = starts // WORD, jnp.asarray(starts % WORD, jnp.uint32)
    padded = jnp.pad(words, ((0, 0), (0, limbs + 1)))
    parts = [
        (padded[:, first + limb] >> shift) | _shift_left(padded[:, first + limb + 1], WORD - shift)
        for limb in range(limbs)
    ]
    top = width - WORD * (limbs - 1)
    parts[-1] = parts[-1] & jnp.uint32((1 << top) - 1)
    return jnp.stack(parts, axis=-1)


def _shift_right(value: jax.Array, bits: jax.Array) -> jax.Array:
    return jnp.where(bits >= WORD, jnp.uint32(0), value >> jnp.minimum(bits, WORD - 1))


def _shift_left(value: jax.Array, bits: jax.Array) -> jax.Array:
    return jnp.where(bits >= WORD, jnp.uint32(0), value << jnp.minimum(bits, WORD - 1))


def _check(width: int, limbs: int) -> None:
    if not 1 <= width <= WORD * limbs:
        raise InputError(f"width is {width} bits; it must be 1 to {WORD * limbs} for {limbs} limbs")
