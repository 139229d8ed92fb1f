"""Dequantization of GGML block formats to float32, bit for bit what the reference implementation gives.

A tensor is a row of blocks; a block holds 32 or 256 values as small integers with shared float16 scales. Each
decoder below turns `uint8[blocks, bytes]` into `float32[blocks, values]`; the order of the float32 operations
is part of the format.
Reference: ggml-quants.c and ggml-common.h of the ggml repository.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxlab.errors import InputError

# Decoded at a time: input, output and intermediates together stay in the second-level cache.
_CHUNK_VALUES = 1 << 16


class BlockFormat(NamedTuple):
    """`number` is GGML's type id; `nbytes` bytes hold `values` values."""

    number: int
    values: int
    nbytes: int
    decode: Callable[[np.ndarray, np.ndarray], None]


def dequantize(data: np.ndarray, kind: str, out: np.ndarray | None = None) -> np.ndarray:
    """Values of quantized blocks.

    Args:
      data: uint8[n], whole blocks one after another.
      kind: name of the format, a key of `BLOCK_FORMATS`.
      out: float32[n / bytes a block * values a block], contiguous; made when None.

    Returns:
      `out`.

    Raises:
      InputError: unknown `kind`, or `data` is not a whole number of blocks.

    Reference:
      ggml-quants.c, `dequantize_row_*`.
    """
    spec = BLOCK_FORMATS.get(kind)
    if spec is None:
        raise InputError(f"kind={kind!r} is not supported; supported are {', '.join(BLOCK_FORMATS)}")
    if data.size % spec.nbytes:
        raise InputError(f"data has {data.size} bytes, expected a multiple of {spec.nbytes} ({kind})")
    count = data.size // spec.nbytes
    if out is None:
        out = np.empty(count * spec.values, np.float32)
    blocks, values = data.reshape(count, spec.nbytes), out.reshape(count, spec.values)
    step = max(1, _CHUNK_VALUES // spec.values)
    for start in range(0, count, step):
        spec.decode(blocks[start : start + step], values[start : start + step])
    return out


def _decode_f32(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:] = np.ascontiguousarray(blocks).view("<f4")


def _decode_f16(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:] = np.ascontiguousarray(blocks).view("<f2")


def _decode_bf16(blocks: np.ndarray, out: np.ndarray) -> None:
    out.view(np.uint32)[:] = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16


def _half(blocks: np.ndarray, position: int) -> np.ndarray:
    """The float16 at byte `position` of each block, as float32[blocks, 1]."""
    return np.ascontiguousarray(blocks[:, position : position + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8[..., n] -> uint8[..., 2, n]: the low, then the high four bits."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def _decode_q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    levels = _nibbles(blocks[:, 2:]).reshape(out.shape).view(np.int8) - np.int8(8)
    np.multiply(levels, _half(blocks, 0), out=out)


def _decode_q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks[:, 4:]).reshape(out.shape), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _five_bits(blocks: np.ndarray, position: int) -> np.ndarray:
    """int8[blocks, 32]: four bits from the nibbles, the fifth from the bit field at byte `position`."""
    high = np.unpackbits(blocks[:, position : position + 4], axis=1, bitorder="little")
    low = _nibbles(blocks[:, position + 4 :]).reshape(high.shape)
    return (low | high << 4).view(np.int8)


def _decode_q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_five_bits(blocks, 2) - np.int8(16), _half(blocks, 0), out=out)


def _decode_q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_five_bits(blocks, 4), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _decode_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _sub_block_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of the eight 32-value parts of a 256-value block, each float32[blocks, 8, 1].

    Twelve bytes hold eight 6-bit scales and eight 6-bit minima: bytes 0-3 and 4-7 the first four of each,
    whose upper two bits are the upper two bits of the last four; bytes 8-11 the lower four bits of those.
    """
    scales, minima, rest = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scale = np.concatenate([scales & 63, (rest & 15) | (scales >> 6 << 4)], axis=1)
    minimum = np.concatenate([minima & 63, (rest >> 4) | (minima >> 6 << 4)], axis=1)
    return (_half(blocks, 0) * scale)[..., None], (_half(blocks, 2) * minimum)[..., None]


def _decode_q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale, minimum = _sub_block_scales(blocks)
    parts = out.reshape(-1, 8, 32)
    levels = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(parts.shape)
    np.multiply(levels, scale, out=parts)
    parts -= minimum


def _decode_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale, minimum = _sub_block_scales(blocks)
    parts = out.reshape(-1, 8, 32)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(parts.shape)
    # Bit p of byte k is the fifth bit of value k of part p.
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    np.multiply(low | high << 4, scale, out=parts)
    parts -= minimum


def _decode_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    # Each half of 128 values: two rows of 32 bytes give low nibbles to values 0-63 and high nibbles to
    # 64-127.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (low | high << 4).view(np.int8) - np.int8(32)
    np.multiply(levels.reshape(-1, 16, 16), scale[..., None], out=out.reshape(-1, 16, 16))


BLOCK_FORMATS: dict[str, BlockFormat] = {
    "F32": BlockFormat(0, 1, 4, _decode_f32),
    "F16": BlockFormat(1, 1, 2, _decode_f16),
    "Q4_0": BlockFormat(2, 32, 18, _decode_q4_0),
    "Q4_1": BlockFormat(3, 32, 20, _decode_q4_1),
    "Q5_0": BlockFormat(6, 32, 22, _decode_q5_0),
    "Q5_1": BlockFormat(7, 32, 24, _decode_q5_1),
    "Q8_0": BlockFormat(8, 32, 34, _decode_q8_0),
    "Q4_K": BlockFormat(12, 256, 144, _decode_q4_k),
    "Q5_K": BlockFormat(13, 256, 176, _decode_q5_k),
    "Q6_K": BlockFormat(14, 256, 210, _decode_q6_k),
    "BF16": BlockFormat(30, 1, 2, _decode_bf16),
}
