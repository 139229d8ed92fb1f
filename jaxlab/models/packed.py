"""Weight matrices that stay packed in 4 or 8 bits in memory: W[r, c] = scale * code + minimum for groups of columns.

Decoding a token reads every weight once, so that its speed is the number of bytes that weights take. Blocks of GGUF's
Q4_0, Q4_1, Q5_0 and Q8_0 are such matrices as they are, bit for bit.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8, UInt8

from jaxlab.errors import InputError
from jaxlab.kernels.packed_matmul import (
    chunk_size,
    dequantize_packed,
    pack_codes,
    pack_scales,
    packed_matmul,
    packed_rows,
)
from jaxlab.models.linear import register_linear


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "minimum", "layer"],
    meta_fields=["rows", "integer_products"],
)
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """A frozen matrix in the layout of `jaxlab.kernels.packed_matmul`: products with it have gradients, it has none."""

    codes: UInt8[Array, "*stack tiles chunks half_chunk tile"] | Int8[Array, "*stack tiles chunks chunk tile"]
    scale: Float[Array, "*stack tiles groups tile"]
    minimum: Float[Array, "*stack tiles groups tile"] | None
    """Value of code 0; None is zero."""
    rows: int
    integer_products: bool = False
    """Round what the matrix is multiplied with to 8 bits a number, as llama.cpp does: faster, and inexact."""
    layer: Int[Array, ""] | int | None = None
    """Which matrix of a stack this is; None is all of them, or the only one."""

    @property
    def bits(self) -> int:
        """Of a code."""
        return 4 if self.codes.dtype == jnp.uint8 else 8

    @property
    def chunk(self) -> int:
        """Columns of a chunk."""
        return self.codes.shape[-2] * (8 // self.bits)

    @property
    def columns(self) -> int:
        """Width of the matrix."""
        return self.codes.shape[-3] * self.chunk

    @property
    def nbytes(self) -> int:
        """Bytes in memory, padding of rows to whole tiles included."""
        return sum(array.nbytes for array in jax.tree.leaves(self))


def pack_matrix(
    codes: Int[Array, "*stack rows columns"],
    scale: Float[Array, "*stack rows groups"],
    minimum: Float[Array, "*stack rows groups"] | None = None,
    *,
    bits: int,
) -> PackedMatrix:
    """The matrix scale * code + minimum, kept in `bits` bits a code; scales and minima stay in their dtype.

    Args:
        codes: 0 to 15 for 4 bits, -128 to 127 for 8.
        scale: one for so many neighbouring columns; a single one a row is fine.
        minimum: likewise; None is zero.
        bits: 4 or 8.

    Raises:
        InputError: shapes or bits do not fit, or codes are no integers.
    """
    if bits not in (4, 8):
        raise InputError(f"bits is {bits}; it must be 4 or 8")
    if codes.ndim < 2 or not jnp.issubdtype(codes.dtype, jnp.integer):
        raise InputError(
            f"codes has shape {codes.shape} and dtype {codes.dtype}; it must be integers [rows, columns]"
        )
    *lead, columns = codes.shape
    for name, array in (("scale", scale), ("minimum", minimum)):
        if array is not None and (array.shape != scale.shape or list(array.shape[:-1]) != lead):
            raise InputError(
                f"{name} has shape {array.shape}; for codes of shape {codes.shape} it must be {(*lead, 'groups')}"
            )
    groups = scale.shape[-1] if scale.ndim else 0
    if not groups or columns % groups:
        raise InputError(f"scale has {groups} groups a row; that must divide the {columns} columns")
    try:
        chunk = chunk_size(columns, columns // groups)
    except ValueError as error:
        raise InputError(f"scale has {groups} groups a row: {error}") from error
    return PackedMatrix(
        pack_codes(jnp.asarray(codes), bits=bits, chunk=chunk),
        pack_scales(jnp.asarray(scale)),
        None if minimum is None else pack_scales(jnp.asarray(minimum)),
        codes.shape[-2],
    )


def with_integer_products(params: Any, *, enabled: bool = True) -> Any:
    """The model with all its packed matrices multiplying integers (`PackedMatrix.integer_products`), or none.

    Args:
        params: any pytree.
        enabled: False turns it off.
    """

    def switch(leaf: Any) -> Any:
        if isinstance(leaf, PackedMatrix):
            return dataclasses.replace(leaf, integer_products=enabled)
        return leaf

    return jax.tree.map(switch, params, is_leaf=lambda leaf: isinstance(leaf, PackedMatrix))


def pack_blocks(data: UInt8[np.ndarray, "*stack rows bytes"], kind: str) -> PackedMatrix:
    """The matrix of GGUF's blocks, equal to the last bit to what `gguf_blocks.dequantize` makes of them.

    Args:
        data: the rows' bytes.
        kind: one of `PACKED_KINDS`.

    Raises:
        InputError: another kind, or scales that are infinite or no numbers.
    """
    if kind not in PACKED_KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(PACKED_KINDS)}")
    blocks = data.reshape(*data.shape[:-1], -1, PACKED_KINDS[kind])
    scale, minimum, bits = _halves(blocks, 0), None, 8
    if kind == "Q8_0":
        codes = blocks[..., 2:].view(np.int8)
    elif kind == "Q5_0":
        fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
        codes = (_nibbles(blocks[..., 6:]) | fifth << 4).view(np.int8) - np.int8(16)
    elif kind == "Q4_0":
        codes, minimum, bits = _nibbles(blocks[..., 2:]), np.float32(-8) * scale.astype(np.float32), 4
    else:
        codes, minimum, bits = _nibbles(blocks[..., 4:]), _halves(blocks, 2), 4
    if not all(np.isfinite(array).all() for array in (scale, minimum) if array is not None):
        raise InputError("a scale is infinite or not a number: the weights are damaged")
    return pack_matrix(
        jnp.asarray(codes.reshape(*codes.shape[:-2], -1)),
        jnp.asarray(scale),
        None if minimum is None else jnp.asarray(minimum),
        bits=bits,
    )


PACKED_KINDS = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}
"""GGUF's formats that can be kept, and the bytes of a block of 32 values."""


def _halves(blocks: np.ndarray, position: int) -> np.ndarray:
    """The float16 at byte `position` of each block."""
    return np.ascontiguousarray(blocks[..., position : position + 2]).view("<f2")[..., 0]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low, then the high four bits of a block's bytes."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _apply(x: Float[Array, "... columns"], leaf: PackedMatrix) -> Float[Array, "... rows"]:
    if leaf.codes.ndim != (4 if leaf.layer is None else 5) or x.shape[-1] != leaf.columns:
        raise InputError(
            f"linear: a packed leaf {(*leaf.codes.shape[:-4], leaf.rows, leaf.columns)} cannot act on inputs of width "
            f"{x.shape[-1]}"
        )
    if 0 in x.shape:
        return jnp.zeros((*x.shape[:-1], leaf.rows), x.dtype)
    out = packed_matmul(
        x,
        leaf.codes,
        leaf.scale,
        leaf.minimum,
        rows=leaf.rows,
        layer=leaf.layer,
        integer=leaf.integer_products,
    )
    return out.astype(x.dtype)


def _dense(leaf: PackedMatrix) -> Float[Array, "*stack rows columns"]:
    if leaf.layer is not None:
        leaf = jax.tree.map(lambda array: array[leaf.layer], dataclasses.replace(leaf, layer=None))
    if leaf.codes.ndim > 4:
        return jax.lax.map(_dense, leaf)
    return dequantize_packed(leaf.codes, leaf.scale, leaf.minimum, rows=leaf.rows)


def _rows(leaf: PackedMatrix, indices: Int[Array, "..."]) -> Float[Array, "... columns"]:
    return packed_rows(jnp.clip(indices, 0, leaf.rows - 1), leaf.codes, leaf.scale, leaf.minimum)


def _at_layer(leaf: PackedMatrix, layer: Int[Array, ""] | int) -> PackedMatrix:
    return dataclasses.replace(leaf, layer=layer)


register_linear(PackedMatrix, _apply, _dense, _rows, _at_layer)
