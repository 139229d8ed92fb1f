"""Symmetric rank-k update: S + X X^T, of which only the tiles on and above the diagonal are computed.

The sums of outer products over tokens are the dominant cost of curvature, and half of them are the other half's mirror
image.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_TILE = 512  # smaller products waste more of a CPU or a systolic array than the mirrored half saves
_PIECES = 3  # of a transposition; few, since each is a round of a loop, but a loop of one round is unrolled


def syrk_accumulate(total: jax.Array | None, x: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Compute total + x @ x.T, with factors as they come and sums in float32 (float64 for float64 `x`).

    Args:
      total: symmetric, float32 (float64) [n, n]; None is zeros.
      x: float32, bfloat16 or float64 [n, tokens]; the tokens lie last in memory, where all platforms multiply fast.
      implementation: "xla" (also None: the only one that has been timed), or "pallas" for GPU and TPU (interpreted,
        slowly, on CPU; not for float64).

    Returns:
      [n, n], symmetric to the last bit.

    Raises:
      ValueError: shapes or dtypes do not fit, or an unknown implementation.
    """
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has shape {x.shape} and dtype {x.dtype}; it must be floating point [n, tokens]")
    n = x.shape[0]
    if total is not None and total.shape != (n, n):
        raise ValueError(f"total has shape {total.shape}; for x of shape {x.shape} it must be {(n, n)}")
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation = {implementation!r}; it must be None, 'xla' or 'pallas'")
    if implementation == "pallas":
        if x.dtype == jnp.float64:
            raise ValueError("implementation = 'pallas' takes float32 or bfloat16, not float64")
        from jaxlab.kernels.syrk_pallas import syrk

        product = syrk(x)
    else:
        product = _blocked(x)
    return product if total is None else total + product


def tokens_last(x: jax.Array) -> jax.Array:
    """The transpose of x [tokens, n], really there in memory.

    XLA's CPU backend turns a transposition and the product that reads it into one product, which in bfloat16 takes
    four times as long as both apart; it does not look into a loop.
    """
    if x.shape[1] < 2:
        return x.T
    return lax.platform_dependent(x, cpu=_transposed_in_pieces, default=jnp.transpose)


def _transposed_in_pieces(x: jax.Array) -> jax.Array:
    tokens, n = x.shape
    piece = -(-n // _PIECES)

    def one(i: jax.Array, done: jax.Array) -> jax.Array:
        start = jnp.minimum(i * piece, n - piece)  # the last piece may do again what one before it did
        part = lax.dynamic_slice_in_dim(x, start, piece, 1)
        return lax.dynamic_update_slice_in_dim(done, part.T, start, 0)

    return lax.fori_loop(0, -(-n // piece), one, jnp.zeros((n, tokens), x.dtype))


@functools.partial(jax.jit, inline=True)
def _blocked(x: jax.Array) -> jax.Array:
    n = x.shape[0]
    # In bfloat16 writing a product takes longer on a CPU than computing it, so that mirroring would not pay.
    blocks = 1 if x.dtype == jnp.bfloat16 else max(1, n // _TILE)
    edges = [round(i * n / blocks) for i in range(blocks + 1)]
    parts = [x[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    tiles = {(i, j): _product(parts[i], parts[j]) for i in range(blocks) for j in range(i, blocks)}
    if blocks == 1:
        return _mirrored(tiles[0, 0])
    rows = [
        jnp.concatenate([tiles[i, j] if i <= j else tiles[j, i].T for j in range(blocks)], axis=1)
        for i in range(blocks)
    ]
    return _mirrored(jnp.concatenate(rows))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=wide)


def _mirrored(product: jax.Array) -> jax.Array:
    """The upper triangle and its mirror image: summing in another order may leave the halves unequal."""
    upper = jnp.triu(product)
    return upper + jnp.triu(product, 1).T
