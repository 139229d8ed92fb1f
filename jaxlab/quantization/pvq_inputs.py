"""Activations in pyramid codes: every token's inputs of a matrix, in groups, each an integer direction and a gain.

With weights in the same kind of code the product of two groups is one of integers times two scales,
<w, x> = s_w s_x <y_w, y_x> with |<y_w, y_x>| <= K_w K_x, so that sums within a group are exact.
Reference: arXiv:2410.16926.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int8

from jaxlab.errors import InputError
from jaxlab.kernels.packed_matmul import packed_integer_matmul
from jaxlab.kernels.pyramid_index import MAX_PULSES
from jaxlab.kernels.pyramid_search import MAX_CANDIDATES, search
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import dense, linear, register_linear
from jaxlab.models.packed import PackedMatrix
from jaxlab.models.transformer import INPUT_SITES
from jaxlab.quantization.pvq import dequantize, quantize_prepared
from jaxlab.quantization.rotation import random_signs, rotate, unrotate
from jaxlab.quantization.spec import PVQSpec, index_bits

_GAIN_BITS = 16  # a half-precision number a group
_FEW = 8  # vectors whose products are taken in integers; more are multiplied as floats of the same values


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """A pyramid code of activations: groups of `n`, directions of L1 norm `k`, a gain in half precision."""

    n: int
    """Numbers a group, 2 to 32."""
    k: int
    """Pulses, 1 to 127."""
    candidates: int = 8
    """Scalings that the direction search tries, 1 to 16."""

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range."""
        for name, low, high in (("n", 2, 32), ("k", 1, MAX_PULSES), ("candidates", 1, MAX_CANDIDATES)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must be from {low} to {high}")

    @property
    def rate(self) -> float:
        """Bits a number, gain included."""
        return (index_bits(self.n, self.k) + _GAIN_BITS) / self.n


def quantize_inputs(
    x: Float[Array, "... columns"], spec: InputSpec
) -> tuple[Int8[Array, "... groups n"], Float16[Array, "... groups"]]:
    """Integer directions y and the scales <x, y> / <y, y>, for which scale * y is nearest to x.

    Args:
        x: already rotated, if at all.
        spec: the code.

    Raises:
        InputError: the columns are no multiple of `spec.n`.
    """
    if x.shape[-1] % spec.n:
        raise InputError(f"x has {x.shape[-1]} columns; they must be a multiple of the group size {spec.n}")
    groups = x.reshape(*x.shape[:-1], -1, spec.n).astype(jnp.float32)
    y = search(groups, k=spec.k, candidates=spec.candidates)
    wide = y.astype(jnp.float32)
    scale = jnp.sum(groups * wide, axis=-1) / jnp.sum(wide * wide, axis=-1)
    return y, scale.astype(jnp.float16)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrix", "signs"], meta_fields=["spec"])
@dataclasses.dataclass(frozen=True)
class CodedInputs:
    """A matrix whose inputs are rotated and put into a pyramid code first; leading axes may be stacked."""

    matrix: Any
    """Any leaf that `linear` takes, of the rotated matrix; for packed ones few products are of integers."""
    signs: Bool[Array, "*stack columns"]
    spec: InputSpec


def with_coded_inputs(
    params: dict[str, Any],
    cfg: ModelConfig,
    spec: InputSpec,
    key: jax.Array,
    *,
    weights: PVQSpec | None = None,
) -> dict[str, Any]:
    """The model with all inputs of its blocks' matrices in a pyramid code.

    Matrices that read the same input share its rotation, and so its code.

    Args:
        params: with stacked layers.
        cfg: the model.
        spec: of the inputs.
        key: PRNG key of the rotations' signs.
        weights: round the matrices to this code too, without feedback; None leaves them as they are.

    Raises:
        InputError: layers are not stacked, or widths do not fit a code.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        raise InputError("params['layers'] is a tuple; it must be stacked")
    coded = dict(layers)
    for site_key, names in zip(jax.random.split(key, len(INPUT_SITES)), INPUT_SITES.values(), strict=True):
        for name in (name for name in names if name in layers):
            stack = dense(layers[name])
            signs = random_signs(site_key, stack.shape[-1])
            rotated = [_rotated(matrix, signs, weights) for matrix in stack]
            every = jnp.broadcast_to(signs, (cfg.num_layers, *signs.shape))
            coded[name] = CodedInputs(jnp.stack(rotated), every, spec)
    return {**params, "layers": coded}


def _rotated(
    matrix: Float[Array, "rows columns"], signs: Bool[Array, " columns"], weights: PVQSpec | None
) -> Float[Array, "rows columns"]:
    rotated = rotate(matrix, signs)
    return rotated if weights is None else dequantize(quantize_prepared(rotated, None, None, spec=weights))


def _apply(x: Float[Array, "... columns"], leaf: CodedInputs) -> Float[Array, "... rows"]:
    y, scale = quantize_inputs(rotate(x, leaf.signs), leaf.spec)
    matrix = leaf.matrix
    alike = isinstance(matrix, PackedMatrix) and matrix.layer is None and matrix.chunk == leaf.spec.n
    if alike and y.size <= _FEW * leaf.signs.size:
        arrays = matrix.codes, matrix.scale, matrix.minimum
        return packed_integer_matmul(y, scale, *arrays, rows=matrix.rows).astype(x.dtype)
    rounded = y.astype(jnp.float32) * scale.astype(jnp.float32)[..., None]
    return linear(rounded.reshape(x.shape).astype(x.dtype), matrix)


def _dense(leaf: CodedInputs) -> Float[Array, "*stack rows columns"]:
    if leaf.signs.ndim > 1:
        return jax.lax.map(_dense, leaf)
    return unrotate(dense(leaf.matrix), leaf.signs)


register_linear(CodedInputs, _apply, _dense)
