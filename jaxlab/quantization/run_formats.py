"""Quantized matrices in a form to run from: packed codes of 4 or 8 bits, from which products are fast.

Files keep the fewest bits; unpacking them at every product would take longer than the product. A scalar code of up to 8
bits is packed as it is. Of a pyramid code the integer vectors are kept, in 4 bits where all components fit, with one
scale a group.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.models.linear import dense, linear, register_linear
from jaxlab.models.packed import PackedMatrix, pack_matrix
from jaxlab.quantization.packing import unpack
from jaxlab.quantization.pvq import PVQTensor, decode
from jaxlab.quantization.rotation import rotate, unrotate
from jaxlab.quantization.rows import gain_value
from jaxlab.quantization.scalar import OFFSET, ScalarTensor

_HALF = 8  # of the range of 4 bits


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix", "signs"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rotated:
    """A matrix whose inputs are to be rotated first; leading axes may be stacked."""

    matrix: Any
    """Any leaf that `linear` takes, of the rotated matrix."""
    signs: Bool[Array, "*stack columns"]


def run_format(tensor: PVQTensor | ScalarTensor) -> PackedMatrix | Rotated:
    """The same matrix, packed to run from.

    Args:
        tensor: without stacked axes.

    Raises:
        InputError: another type, stacked axes, groups that do not fit chunks of at most 32 columns, or padded columns.
    """
    if not isinstance(tensor, PVQTensor | ScalarTensor):
        raise InputError(f"tensor is a {type(tensor).__name__}; it must be a PVQTensor or a ScalarTensor")
    if tensor.words.ndim != 2:
        raise InputError(f"tensor has shape {tensor.shape}; it must be one matrix: map over a stack")
    packed = _of_pyramid(tensor) if isinstance(tensor, PVQTensor) else _of_scalar(tensor)
    return packed if tensor.signs is None else Rotated(packed, tensor.signs)


def _of_scalar(tensor: ScalarTensor) -> PackedMatrix:
    bits = tensor.spec.bits
    minimum: Array | None
    start = jnp.arange(tensor.columns)[None] * bits
    codes = unpack(tensor.words, start, bits, limbs=1)[..., 0].astype(jnp.int32)
    run_bits = 4 if bits <= 4 else 8
    zero = 0 if run_bits == 4 else 128  # the code that is kept as 0
    scale = tensor.scale.astype(jnp.float32)
    if tensor.minimum is not None:
        minimum = tensor.minimum if zero == 0 else tensor.minimum.astype(jnp.float32) + zero * scale
    else:
        middle = 2 ** (bits - 1) - OFFSET[tensor.spec.grid]
        minimum = None if zero == middle else (zero - middle) * scale
    return pack_matrix(codes - zero, tensor.scale, minimum, bits=run_bits)


def _of_pyramid(tensor: PVQTensor) -> PackedMatrix:
    if tensor.columns % tensor.spec.n:
        raise InputError(
            f"tensor has {tensor.columns} columns in groups of {tensor.spec.n}; the last group must be whole"
        )
    y, gain = decode(tensor)
    wide = y.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(wide * wide, axis=-1))
    scale = gain_value(gain, tensor.scale[:, None], tensor.levels) / jnp.where(length == 0, 1, length)
    codes = y.reshape(y.shape[0], -1).astype(jnp.int32)
    if int(jnp.max(jnp.abs(codes))) < _HALF:
        return pack_matrix(codes + _HALF, scale, -_HALF * scale, bits=4)
    return pack_matrix(codes, scale, bits=8)


def _apply(x: Float[Array, "... columns"], leaf: Rotated) -> Float[Array, "... rows"]:
    return linear(rotate(x, leaf.signs), leaf.matrix)


def _dense(leaf: Rotated) -> Float[Array, "*stack rows columns"]:
    if leaf.signs.ndim > 1:
        return jax.lax.map(_dense, leaf)
    return unrotate(dense(leaf.matrix), leaf.signs)


register_linear(Rotated, _apply, _dense)
