"""Exact nearest neighbours of a few queries among many points of few dimensions, by brute force in blocks.

Distances are sums of squared differences: the form with products loses the bits that tell near duplicates apart. The
scan keeps the smallest distance of each query and its block, a minimum that vectorises; the point is found in the block
afterwards.
"""

import jax
import jax.numpy as jnp

from jaxlab.kernels.lanes import LANES, lane_min

_CPU_BLOCK = 512
_ACCELERATOR_BLOCK = 4096


def nearest_neighbor(
    queries: jax.Array,
    points: jax.Array,
    *,
    size: jax.Array | int | None = None,
    first: jax.Array | int | None = None,
    stop: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The nearest point of each query, the lowest index of equals.

    Works under `jit` and `vmap`; only blocks that hold points before `size` are read.

    Args:
      queries: [m, d].
      points: [N, d].
      size: how many points there are, 0..N; the rest is not looked at. All of them by default.
      first: [m] or one number, the first index that a query may choose.
      stop: [m], the index before which a query's points end.

    Returns:
      indices, int32[m], and squared distances, [m]; -1 and infinity where a query has no point.

    Raises:
      ValueError: the shapes do not fit.
    """
    if queries.ndim != 2 or points.ndim != 2 or queries.shape[1] != points.shape[1]:
        raise ValueError(
            f"queries and points have shapes {queries.shape}, {points.shape}; must be (m, d), (N, d)"
        )
    size = jnp.asarray(points.shape[0] if size is None else size, jnp.int32)
    low = None if first is None else jnp.broadcast_to(jnp.asarray(first, jnp.int32), queries.shape[:1])
    high = None if stop is None else jnp.asarray(stop, jnp.int32)

    def scan(block: int) -> tuple[jax.Array, jax.Array]:
        return _scan(
            queries.T, points.T, size, low, high, min(block, -(-max(points.shape[0], 1) // LANES) * LANES)
        )

    return jax.lax.platform_dependent(cpu=lambda: scan(_CPU_BLOCK), default=lambda: scan(_ACCELERATOR_BLOCK))


def _scan(
    queries: jax.Array,
    points: jax.Array,
    size: jax.Array,
    first: jax.Array | None,
    stop: jax.Array | None,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    dimensions, count = queries.shape
    points = jnp.pad(points, ((0, 0), (0, -points.shape[1] % block)))
    blocks = points.reshape(dimensions, points.shape[1] // block, block)
    lane = jnp.arange(block, dtype=jnp.int32)

    def distances(
        index: jax.Array,
        part: list[jax.Array],
        queries: jax.Array,
        first: jax.Array | None,
        stop: jax.Array | None,
    ) -> jax.Array:
        """Infinite where a query may not choose; all of shapes that go together."""
        distance = sum((part[i] - queries[i]) ** 2 for i in range(dimensions))
        allowed = index < size
        if first is not None:
            allowed &= index >= first
        if stop is not None:
            allowed &= index < stop
        return jnp.where(allowed, distance, jnp.inf)

    def body(b: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        closest, where = state
        part = jax.lax.optimization_barrier(jax.lax.dynamic_index_in_dim(blocks, b, 1, keepdims=False))
        index = b * block + lane[:, None]
        columns = [part[i][:, None] for i in range(dimensions)]
        nearest = distances(index, columns, queries, first, stop).min(0)
        return jnp.minimum(nearest, closest), jnp.where(nearest < closest, b, where)

    start = (jnp.full(count, jnp.inf, points.dtype), jnp.full(count, -1, jnp.int32))
    closest, where = jax.lax.fori_loop(jnp.int32(0), (size + block - 1) // block, body, start)
    chosen = jnp.maximum(where, 0)
    # Here a row is a query, so that its block is read in one piece and minima are taken in lanes. Distances are not
    # compared with `closest`: the same formula may round otherwise in another loop. The barrier makes them once.
    index = chosen[:, None] * block + lane
    within = jax.lax.optimization_barrier(
        distances(
            index,
            [blocks[i][chosen] for i in range(dimensions)],
            queries[..., None],
            None if first is None else first[:, None],
            None if stop is None else stop[:, None],
        )
    )
    distance = lane_min(within)
    best = lane_min(jnp.where(within == distance[:, None], index, jnp.iinfo(jnp.int32).max))
    return jnp.where(where < 0, -1, best), distance
