"""The symmetric rank-k update as one Pallas kernel: tiles below the diagonal are neither loaded nor computed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_TILE = 128
_STEP = 64  # tokens multiplied at a time


@jax.custom_vjp
def syrk(x: jax.Array) -> jax.Array:
    """Compute x @ x.T.

    Args:
      x: float32 or bfloat16 [n, tokens].

    Returns:
      float32[n, n], symmetric to the last bit.
    """
    n, tokens = x.shape
    tiles, steps = pl.cdiv(n, _TILE), pl.cdiv(tokens, _STEP)
    padded = jnp.pad(x, ((0, tiles * _TILE - n), (0, steps * _STEP - tokens)))
    product = lax.platform_dependent(
        padded,
        cpu=functools.partial(_call, interpret=True),
        cuda=functools.partial(_call, compiler_params=triton.CompilerParams(num_warps=8)),
        tpu=_call,
    )
    upper = jnp.triu(product)[:n, :n]
    return upper + jnp.triu(upper, 1).T


def _call(x: jax.Array, **options: Any) -> jax.Array:
    n, tokens = x.shape
    return pl.pallas_call(
        functools.partial(_kernel, steps=tokens // _STEP),
        grid=(n // _TILE, n // _TILE),
        in_specs=[
            pl.BlockSpec((_TILE, tokens), lambda i, j: (i, 0)),
            # A tile that is not computed takes the block that is there already.
            pl.BlockSpec((_TILE, tokens), lambda i, j: (jnp.maximum(i, j), 0)),
        ],
        out_specs=pl.BlockSpec((_TILE, _TILE), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((n, n), jnp.float32),
        **options,
    )(x, x)


def _kernel(left_ref: Any, right_ref: Any, out_ref: Any, *, steps: int) -> None:
    @pl.when(pl.program_id(0) <= pl.program_id(1))
    def _() -> None:
        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            part = pl.ds(pl.multiple_of(step * _STEP, _STEP), _STEP)
            left, right = left_ref[:, part], right_ref[:, part]
            return total + lax.dot_general(
                left, right, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )

        out_ref[...] = lax.fori_loop(0, steps, add, jnp.zeros((_TILE, _TILE), jnp.float32))


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return syrk(x), x


def _backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (((cotangent + cotangent.T) @ x.astype(jnp.float32)).astype(x.dtype),)


syrk.defvjp(_forward, _backward)
