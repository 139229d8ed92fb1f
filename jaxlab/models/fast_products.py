"""Weight matrices whose products are taken in bfloat16 and summed in float32, for passes that only gather statistics.

Activations, norms and attention stay in float32. CPUs with AMX and all accelerators multiply so several times
faster; a product is then off by about 2^-9 of its terms, far less than what quantization or pruning does to a weight.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float, UInt16

from jaxlab.models.linear import dense, matrix_names, register_linear


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class FastMatrix:
    """A frozen matrix: products with it have gradients, it has none.

    It is kept as the bits of its bfloat16 numbers: of a stack in bfloat16 that a loop slices, XLA's CPU backend makes a
    copy in float32 at every call, which takes longer than the products.
    """

    bits: UInt16[Array, "*stack outputs inputs"]

    @classmethod
    def of(cls, weight: Float[Array, "*stack outputs inputs"]) -> "FastMatrix":
        """Rounded to bfloat16."""
        return cls(lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16))

    @property
    def weight(self) -> BFloat16[Array, "*stack outputs inputs"]:
        """The matrix itself."""
        return lax.bitcast_convert_type(self.bits, jnp.bfloat16)


@jax.jit
def with_fast_products(layer: dict[str, Any]) -> dict[str, Any]:
    """A block's parameters (or stacked blocks') with every weight matrix as a `FastMatrix`."""
    return layer | {name: FastMatrix.of(dense(layer[name])) for name in matrix_names(layer)}


def fast_head(params: dict[str, Any]) -> FastMatrix:
    """The matrix that makes scores of hidden states: the head, or the embedding where they are one."""
    head = params["head"] if "head" in params else params["embed"]
    return FastMatrix.of(dense(head))


def fast_transposed_product(
    x: Float[Array, "inputs tokens"], y: Float[Array, "outputs tokens"]
) -> Float[Array, "inputs outputs"]:
    """x @ y.T with bfloat16 factors, summed in float32.

    XLA's CPU backend is fast at this only where both have their tokens last in memory, as arguments of a jitted
    function or slices of them have.
    """
    return _product(x, y, 1)


@jax.custom_vjp
def _multiply(x: Float[Array, "... inputs"], matrix: FastMatrix) -> Array:
    return _product(x, matrix.weight, 1)


def _forward(x: Array, matrix: FastMatrix) -> tuple[Array, tuple[FastMatrix, Array]]:
    # The bits themselves are kept, so that a backward loop over layers slices the stack that is there already.
    return _product(x, matrix.weight, 1), (matrix, jnp.zeros((), x.dtype))


def _backward(saved: tuple[FastMatrix, Array], gradient: Array) -> tuple[Array, None]:
    matrix, like = saved
    return _product(gradient, matrix.weight, 0).astype(like.dtype), None


def _product(x: Array, weight: Array, axis: int) -> Array:
    contract = (((x.ndim - 1,), (axis,)), ((), ()))
    factors = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return lax.dot_general(*factors, contract, preferred_element_type=jnp.float32)


_multiply.defvjp(_forward, _backward)
register_linear(
    FastMatrix,
    lambda x, leaf: _multiply(x, leaf).astype(x.dtype),
    lambda leaf: leaf.weight.astype(jnp.float32),
)
