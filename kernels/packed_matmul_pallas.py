"""Products with packed matrices as a Pallas kernel: codes become floats in registers and are never written out.

A program makes one tile of rows for up to 64 vectors; where these are few, several programs share a tile's chunks and
their sums are added afterwards, since a small grid would leave most of an accelerator idle.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_VECTORS = 64
_FEWEST_VECTORS = 16  # that Triton multiplies
_MOST_SHARES = 8


def multiply(x: jax.Array, codes: jax.Array, scale: jax.Array, minimum: jax.Array | None) -> jax.Array:
    """Compute x @ W.T; see `packed_matmul` for the layout of W.

    Args:
      x: float32 [vectors, columns].
      codes: uint8 or int8 [tiles, chunks, bytes, tile], chunks of 32 columns.
      scale: float32 [tiles, chunks, 1, tile].
      minimum: likewise, or None.

    Returns:
      float32 [vectors, tiles * tile].

    Raises:
      ValueError: chunks are narrower.
    """
    tiles, chunks, size, tile = codes.shape
    half = size if codes.dtype == jnp.uint8 else size // 2
    if half != 16:
        raise ValueError(f"chunks have {2 * half} columns; implementation 'pallas' takes chunks of 32")
    count = len(x)
    block = min(_VECTORS, max(_FEWEST_VECTORS, 1 << (count - 1).bit_length()))
    padded = jnp.pad(x, ((0, -count % block), (0, 0)))
    # Both halves of every chunk, chunks first: [2, chunks, vectors, half].
    halves = padded.reshape(len(padded), chunks, 2, half).transpose(2, 1, 0, 3)
    shares = 1 if len(padded) > _VECTORS else max(s for s in range(1, _MOST_SHARES + 1) if chunks % s == 0)
    arguments = (halves, codes, scale) if minimum is None else (halves, codes, scale, minimum)
    options = {"block": block, "shares": shares}
    sums = lax.platform_dependent(
        *arguments,
        cpu=functools.partial(_call, **options, interpret=True),
        cuda=functools.partial(_call, **options, compiler_params=triton.CompilerParams(num_warps=4)),
        tpu=functools.partial(_call, **options),
    )
    return sums.sum(0).transpose(1, 0, 2).reshape(len(padded), -1)[:count]


def _call(*arguments: jax.Array, block: int, shares: int, **options: Any) -> jax.Array:
    halves, codes, scale, *_ = arguments
    _, chunks, vectors, half = halves.shape
    tiles, _, size, tile = codes.shape
    share = chunks // shares
    of_tile = pl.BlockSpec((1, share, 1, tile), lambda i, j, k: (j, k, 0, 0))
    in_specs = [
        pl.BlockSpec((2, share, block, half), lambda i, j, k: (0, k, i, 0)),
        pl.BlockSpec((1, share, size, tile), lambda i, j, k: (j, k, 0, 0)),
        *(of_tile for _ in arguments[2:]),
    ]
    return pl.pallas_call(
        _kernel,
        grid=(vectors // block, tiles, shares),
        in_specs=in_specs,
        out_specs=pl.BlockSpec((1, 1, block, tile), lambda i, j, k: (k, j, i, 0)),
        out_shape=jax.ShapeDtypeStruct((shares, tiles, vectors, tile), jnp.float32),
        **options,
    )(*arguments)


def _kernel(x_ref: Any, codes_ref: Any, scale_ref: Any, *rest: Any) -> None:
    *minimum_ref, out_ref = rest

    def add(chunk: jax.Array, total: jax.Array) -> jax.Array:
        low, high = _halves(codes_ref, chunk)
        left, right = x_ref[0, chunk], x_ref[1, chunk]
        scale = scale_ref[0, chunk]
        minimum = minimum_ref[0][0, chunk] if minimum_ref else jnp.zeros_like(scale)
        return total + _dot(left, low * scale + minimum) + _dot(right, high * scale + minimum)

    out_ref[0, 0] = lax.fori_loop(0, x_ref.shape[1], add, jnp.zeros(out_ref.shape[2:], jnp.float32))


def _halves(codes_ref: Any, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
    if codes_ref.dtype == jnp.uint8:
        both = codes_ref[0, chunk].astype(jnp.int32)
        low, high = both & 15, both >> 4
    else:
        low, high = (codes_ref[0, chunk, pl.ds(start, 16)].astype(jnp.int32) for start in (0, 16))
    return low.astype(jnp.float32), high.astype(jnp.float32)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return lax.dot_general(
        left,
        right,
        (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
