"""The pyramid search as one Pallas kernel: a tile of groups stays in registers from the first step to the last.

The arithmetic is that of `pyramid_search`; only the loops are written for one tile instead of for all groups, so
that each weight is read once and each pulse count written once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxlab.kernels.pyramid_search import (
    Rows,
    Usual,
    cheapest_change,
    first_codeword,
    plan_sweep,
    solve_level,
    tie_gap,
)

TPU_TILE = (8, 128)
GPU_TILE = (1, 128)


def search_planar(a: jax.Array, k: int | jax.Array, usual: Usual, candidates: int) -> jax.Array:
    """Pulses of each weight.

    Args:
      a: float32[n, groups], magnitudes over each group's maximum.
      k: pulses.
      usual: where the search starts for n and k.
      candidates: scales tried.

    Returns:
      int32[n, groups] >= 0 with sum k over axis 0.
    """
    return jax.lax.platform_dependent(
        a,
        jnp.stack([jnp.asarray(value, jnp.float32) for value in (k, *usual)]),
        cpu=functools.partial(_call, candidates=candidates, tile=TPU_TILE, interpret=True),
        cuda=functools.partial(
            _call, candidates=candidates, tile=GPU_TILE, compiler_params=triton.CompilerParams(num_warps=4)
        ),
        tpu=functools.partial(_call, candidates=candidates, tile=TPU_TILE),
    )


def _call(
    a: jax.Array, scalars: jax.Array, *, candidates: int, tile: tuple[int, int], **options: Any
) -> jax.Array:
    n, groups = a.shape
    height, width = tile
    blocks = pl.cdiv(groups, height * width)
    padded = jnp.pad(a, ((0, 0), (0, blocks * height * width - groups)), constant_values=1)
    spread = jnp.broadcast_to(
        scalars[:, None, None], (4, height, width)
    )  # vectors: no scalar memory is needed
    block = pl.BlockSpec((n, height, width), lambda i: (0, i, 0))
    y = pl.pallas_call(
        functools.partial(_kernel, n=n, candidates=candidates),
        grid=(blocks,),
        in_specs=[pl.BlockSpec((4, height, width), lambda i: (0, 0, 0)), block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((n, blocks * height, width), jnp.int32),
        **options,
    )(spread, padded.reshape(n, blocks * height, width))
    return y.reshape(n, -1)[:, :groups]


def _kernel(scalars_ref: Any, a_ref: Any, y_ref: Any, *, n: int, candidates: int) -> None:
    k = scalars_ref[0]
    usual = Usual(*(scalars_ref[1 + i] for i in range(3)))
    a = [a_ref[i] for i in range(n)]
    distinct = [row - i * tie_gap(n) for i, row in enumerate(a)]
    sweep = plan_sweep(distinct, k, usual, candidates)
    word = jax.lax.fori_loop(
        0,
        candidates,
        lambda j, best: jnp.maximum(best, sweep.word(distinct, k, usual.density, j)),
        sweep.none_yet(),
    )
    alpha, mu = sweep.best(word)
    mu = jax.lax.fori_loop(0, 2, lambda _, mu: solve_level(a, alpha, mu, k, usual.density, trials=4), mu)
    for i, row in enumerate(_repaired(a, alpha, mu, k)):
        y_ref[i] = row.astype(jnp.int32)


def _repaired(a: Rows, alpha: jax.Array, mu: jax.Array, k: jax.Array) -> Rows:
    t, y = zip(*(first_codeword(row, alpha, mu, k) for row in a), strict=True)

    def apply(state: tuple[tuple[jax.Array, ...], jax.Array]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        y, change = state
        step = jnp.clip(change, -1, 1).astype(jnp.float32)
        y = tuple(row + jnp.where(jnp.abs(change) == i + 1, step, 0.0) for i, row in enumerate(y))
        return y, cheapest_change(y, t, a, k)

    start = (tuple(y), cheapest_change(y, t, a, k))
    return list(jax.lax.while_loop(lambda state: jnp.max(jnp.abs(state[1])) > 0, apply, start)[0])
