"""Gradients at the outputs of weight matrices, taken as cotangents of dummy inputs; no weight gradient is computed.

A `Tapped` leaf acts like its matrix. Differentiate with respect to its `dummy` (zeros), and what comes back is not a
derivative but what the shape of the dummy asks for: the gradients g of all tokens, or the sum of g g^T over them. This
works for all layers at once, through `lax.scan` over stacked layers and under `jax.checkpoint`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from jaxlab.kernels.syrk import syrk_accumulate
from jaxlab.models.linear import dense, linear, register_linear

Kept = Literal["tokens", "moment"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "dummy"], meta_fields=["kept"])
@dataclasses.dataclass(frozen=True)
class Tapped:
    """A matrix with a dummy input whose cotangent tells about the gradient g at the matrix's outputs.

    Attributes:
        weight: any leaf that `linear` takes.
        dummy: zeros. With kept="tokens" `[outputs, tokens]`, float32 or bfloat16: its cotangent is g, a column a
            token, the batch's rows of tokens one after the other. With kept="moment" `[outputs, outputs]`, float32:
            its cotangent is the sum of g g^T over the tokens.
        kept: static.
    """

    weight: Any
    dummy: Float[Array, "outputs kept"]
    kept: Kept = "tokens"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(kept: Kept, y: Array, dummy: Array) -> Array:
    del kept, dummy
    return y


def _forward(kept: Kept, y: Array, dummy: Array) -> tuple[Array, Array]:
    del kept
    return y, dummy[:0]


def _backward(kept: Kept, like: Array, gradient: Array) -> tuple[Array, Array]:
    columns = gradient.reshape(-1, gradient.shape[-1]).T.astype(like.dtype)
    if kept == "tokens":
        return gradient, columns
    return gradient, syrk_accumulate(None, columns)


_tap.defvjp(_forward, _backward)
register_linear(
    Tapped,
    lambda x, leaf: _tap(leaf.kept, linear(x, leaf.weight), leaf.dummy),
    lambda leaf: dense(leaf.weight),
)
