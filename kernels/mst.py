"""Minimum spanning trees of point clouds and distance matrices: fixed shapes, under jit and vmap, with gradients.

Prim's algorithm takes n short steps of two vector minima, which is fastest on a CPU. Boruvka's takes at most log2(n)
rounds over the whole matrix, which suits accelerators; its tiled form never holds the matrix. The choice of edges is
locally constant: a length is differentiated through the coordinates of its two ends alone.

References: Prim, "Shortest connection networks and some generalizations", 1957; Boruvka, 1926; arXiv:2510.23484,
section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kernels.lanes import LANES, lane_min

MATRIX_POINTS = 16384
"""Above this many points the matrix of distances is not made: 1 GiB in float32."""
_PRIM_POINTS = 256
"""Below this many points Prim's steps are used on accelerators too."""
_DIFFERENCED = 16
"""Up to so many dimensions squared distances are sums of squared differences, exact on integer grids."""
_ROWS = 512
"""Rows of distances that the tiled form holds at a time."""

_ALGORITHMS = (None, "prim", "boruvka", "boruvka_tiled")
_Nearest = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Edges(NamedTuple):
    """Edges of a spanning tree of n points, n - 1 places."""

    a: jax.Array
    """int32[n - 1], one end; 0 where there is no edge."""
    b: jax.Array
    """int32[n - 1], the other end."""
    valid: jax.Array
    """bool[n - 1]; fewer than n - 1 are true where points are masked, or lie at infinite or NaN distance."""


def pairwise_sq_dists(points: jax.Array) -> jax.Array:
    """Squared Euclidean distances, at least 0.

    Up to 16 dimensions they are sums of squared differences. Above, |a|^2 + |b|^2 - 2 a.b of centred points in full
    float32: off by some 1e-7 of the largest squared norm, enough for choosing edges.

    Args:
      points: [n, d]; other types than float32 and float64 are converted to float32.

    Returns:
      [n, n].
    """
    points = points.astype(_float(points))
    dimensions = points.shape[1]
    if dimensions <= _DIFFERENCED:
        parts = [jnp.square(points[:, i, None] - points[:, i]) for i in range(dimensions)]
        return sum(parts, start=jnp.zeros((len(points), len(points)), points.dtype))
    return _from_products(*_centred(points))


def mst_edges(weights: jax.Array, *, mask: jax.Array | None = None, algorithm: str | None = None) -> Edges:
    """Minimum spanning tree of a complete graph. Works under `jit` and `vmap`.

    Args:
      weights: [n, n], n >= 1, symmetric, at least 0; the diagonal is not looked at. Infinity or NaN: no edge, so
        that the result is a spanning forest.
      mask: bool[n], the vertices that take part, all by default.
      algorithm: "prim", "boruvka", or None: "boruvka" on accelerators from 256 points on, otherwise "prim".

    Raises:
      ValueError: the shapes do not fit, or an unknown algorithm.
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or weights.shape[0] == 0:
        raise ValueError(f"weights has shape {weights.shape}; it must be (n, n) with n >= 1")
    if algorithm not in _ALGORITHMS[:3]:
        raise ValueError(f"algorithm is {algorithm!r}; it must be None, 'prim' or 'boruvka'")
    n = len(weights)
    present = _present(n, mask)
    weights = weights.astype(_float(weights))
    if algorithm == "prim" or (algorithm is None and n < _PRIM_POINTS):
        return _prim(weights, present)
    if algorithm == "boruvka":
        return _dense_boruvka(weights, present)
    return jax.lax.platform_dependent(weights, present, cpu=_prim, default=_dense_boruvka)


def mst_of_points(
    points: jax.Array,
    *,
    mask: jax.Array | None = None,
    algorithm: str | None = None,
    implementation: str | None = None,
) -> Edges:
    """Euclidean minimum spanning tree of a point cloud. Works under `jit` and `vmap`.

    Args:
      points: [n, d], n >= 1.
      mask: bool[n], the points that take part, all by default; the others may be anything.
      algorithm: as in `mst_edges`, or "boruvka_tiled", which computes distances anew each round instead of holding
        them, and is what None means above 16,384 points.
      implementation: of the tiled form: "xla" (also None: the only one that has been timed), or "pallas", a kernel for
        NVIDIA GPUs (interpreted, slowly, on CPU; float32 only).

    Raises:
      ValueError: the shapes do not fit, or an unknown algorithm or implementation.
    """
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"points has shape {points.shape}; it must be (n, d) with n >= 1")
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}; it must be one of {_ALGORITHMS}")
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation is {implementation!r}; it must be None, 'xla' or 'pallas'")
    n = len(points)
    present = _present(n, mask)
    points = jnp.where(present[:, None], jax.lax.stop_gradient(points.astype(_float(points))), 0)
    if algorithm == "boruvka_tiled" or (algorithm is None and n > MATRIX_POINTS):
        if implementation == "pallas":
            from jaxlab.kernels.mst_pallas import nearest_outside

            return _boruvka(nearest_outside(*_centred(points), present), n)
        return _boruvka(_streamed(*_centred(points), present), n)
    return mst_edges(pairwise_sq_dists(points), mask=mask, algorithm=algorithm)


def edge_lengths(points: jax.Array, edges: Edges) -> jax.Array:
    """Euclidean lengths of edges, from differences of coordinates; 0 for those that are not valid.

    Differentiable in `points`, with gradient 0 for an edge between equal points.

    Args:
      points: [n, d].
      edges: of a tree of these points.

    Returns:
      [n - 1].
    """
    points = points.astype(_float(points))
    # One gather, so that the reverse pass is one scatter.
    ends = points[jnp.concatenate([edges.a, edges.b])].reshape(2, *edges.a.shape, points.shape[1])
    squares = jnp.sum(jnp.square(jnp.where(edges.valid[:, None], ends[0] - ends[1], 0)), axis=-1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), jnp.where(edges.valid, squares, 0))


def mst_length(
    points: jax.Array,
    *,
    alpha: float = 1.0,
    mask: jax.Array | None = None,
    algorithm: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """E = sum of |edge|^alpha over the Euclidean minimum spanning tree; differentiable, under `jit` and `vmap`.

    The gradient in a point is alpha |edge|^(alpha - 1) times the unit vectors along its edges, pointing away from their
    other ends. Value and gradient are NaN where a point is NaN or so far away that squared distances overflow.

    Args:
      points: [n, d], n >= 1.
      alpha: > 0.
      mask: bool[n], as in `mst_of_points`.
      algorithm: as in `mst_of_points`.
      implementation: as in `mst_of_points`.

    Returns:
      A scalar in float32 (float64 for float64 points).

    Raises:
      ValueError: alpha is not positive, or as `mst_of_points`.

    Reference: arXiv:2510.23484, section 4.1 (alpha = 1).
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be > 0")
    edges = mst_of_points(points, mask=mask, algorithm=algorithm, implementation=implementation)
    lengths = edge_lengths(points, edges)
    if alpha != 1:
        positive = lengths > 0
        lengths = jnp.where(positive, jnp.where(positive, lengths, 1) ** alpha, 0)
    present = _present(len(points), mask)
    complete = jnp.sum(edges.valid) == jnp.maximum(jnp.sum(present) - 1, 0)
    # A multiple of the points, so that NaN reaches their gradients too.
    missing = jnp.where(complete, 0, jnp.nan).astype(lengths.dtype)
    return jnp.sum(lengths) + missing * jnp.sum(jnp.where(present[:, None], points, 0))


def _float(values: jax.Array) -> jnp.dtype:
    return jnp.promote_types(values.dtype, jnp.float32)


def _present(n: int, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return jnp.ones(n, bool)
    if mask.shape != (n,):
        raise ValueError(f"mask has shape {mask.shape}; for {n} points it must be ({n},)")
    return mask.astype(bool)


def _centred(points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points about their mean, whose products cancel less, and their squared norms."""
    points = points - jnp.mean(points, axis=0)
    return points, jnp.sum(jnp.square(points), axis=1)


def _from_products(points: jax.Array, norms: jax.Array) -> jax.Array:
    return _block_from_products(points, norms, points, norms)


def _block_from_products(
    rows: jax.Array, row_norms: jax.Array, points: jax.Array, norms: jax.Array
) -> jax.Array:
    products = jnp.matmul(rows, points.T, precision="highest")
    return jnp.maximum(row_norms[:, None] + norms - 2 * products, 0)


def _prim(weights: jax.Array, present: jax.Array) -> Edges:
    """Step by step the nearest vertex outside the tree; -inf marks those inside, the largest number those unreached."""
    n, unreached = len(weights), jnp.finfo(weights.dtype).max
    padding = -n % LANES
    rows = jnp.pad(weights, ((0, 0), (0, padding)), constant_values=jnp.inf)
    vertex = jnp.arange(n + padding, dtype=jnp.int32)

    def step(
        state: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        distance, parent = state
        key = jnp.where(distance == -jnp.inf, jnp.inf, distance)
        nearest = lane_min(key)
        # Looking for a minimum's place is a second minimum: XLA's CPU backend vectorises it, and not `argmin`.
        chosen = lane_min(jnp.where(key == nearest, vertex, n + padding))
        row = jax.lax.dynamic_index_in_dim(rows, chosen, keepdims=False)
        closer = row < distance
        distance = jnp.where(vertex == chosen, -jnp.inf, jnp.where(closer, row, distance))
        return (distance, jnp.where(closer, chosen, parent)), (parent[chosen], chosen, nearest < unreached)

    distance = jnp.where(jnp.pad(present, (0, padding)), unreached, -jnp.inf).astype(weights.dtype)
    start = (distance, jnp.zeros(n + padding, jnp.int32))
    parent, child, valid = jax.lax.scan(step, start, None, length=n)[1]
    # The first vertex of the tree comes without an edge.
    parent, child, valid = parent[1:], child[1:], valid[1:]
    return Edges(jnp.where(valid, parent, 0), jnp.where(valid, child, 0), valid)


def _dense_boruvka(weights: jax.Array, present: jax.Array) -> Edges:
    n = len(weights)
    usable = present[:, None] & present & ~jnp.isnan(weights)
    weights = jnp.where(usable, weights, jnp.inf)
    vertex = jnp.arange(n, dtype=jnp.int32)

    def nearest(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        outside = jnp.where(labels[:, None] == labels, jnp.inf, weights)
        weight = jnp.min(outside, axis=0)
        return weight, jnp.min(jnp.where(outside == weight, vertex[:, None], n - 1), axis=0)

    return _boruvka(nearest, n)


def _streamed(points: jax.Array, norms: jax.Array, present: jax.Array) -> _Nearest:
    """Nearest points of other labels, some rows of distances at a time."""
    n = len(points)
    blocks = -(-n // _ROWS)
    padding = ((0, blocks * _ROWS - n), (0, 0))
    own = (
        jnp.pad(points, padding).reshape(blocks, _ROWS, -1),
        jnp.pad(norms, padding[0]).reshape(blocks, _ROWS),
    )
    vertex = jnp.arange(n, dtype=jnp.int32)

    def nearest(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = jnp.where(present, labels, -1)

        def rows(block: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            points_here, norms_here, labels_here = block
            distances = _block_from_products(points_here, norms_here, points, norms)
            allowed = (labels_here[:, None] != labels) & (labels_here[:, None] >= 0) & (labels >= 0)
            outside = jnp.where(allowed & ~jnp.isnan(distances), distances, jnp.inf)
            weight = jnp.min(outside, axis=1)
            return weight, jnp.min(jnp.where(outside == weight[:, None], vertex, n - 1), axis=1)

        padded = jnp.pad(labels, padding[0], constant_values=-1).reshape(blocks, _ROWS)
        weight, other = jax.lax.map(rows, (*own, padded))
        return weight.reshape(-1)[:n], other.reshape(-1)[:n]

    return nearest


class _Round(NamedTuple):
    labels: jax.Array
    """A vertex of each vertex's tree."""
    edges: tuple[jax.Array, jax.Array]
    found: jax.Array
    """Edges so far."""
    joined: jax.Array
    """Whether the last round found any."""


def _boruvka(nearest: _Nearest, n: int) -> Edges:
    """In each round every tree takes its lightest edge to another one.

    Where weights are equal, or were rounded differently from their two ends, the edges taken may close cycles. All
    edges of such a cycle weigh the same, so that any of them can be left out: the smallest label on it becomes a root.

    Args:
      nearest: labels, int[n], to the least weight from each vertex to one of another label, infinity if none, and that
        vertex.
      n: vertices.
    """
    vertex = jnp.arange(n, dtype=jnp.int32)
    doublings = (n - 1).bit_length()

    def join(state: _Round) -> _Round:
        labels = state.labels
        weight, other = nearest(labels)
        least = jnp.full(n, jnp.inf, weight.dtype).at[labels].min(weight)
        best = (weight < jnp.inf) & (weight == least[labels])
        chooser = jnp.full(n, n, jnp.int32).at[labels].min(jnp.where(best, vertex, n))
        chosen = chooser < n
        a = jnp.minimum(chooser, n - 1)
        b = other[a]
        target = jnp.where(chosen, labels[b], vertex)
        root = _smallest_on_the_way(target, doublings) == vertex
        kept = chosen & ~root
        place = jnp.where(kept, state.found + jnp.cumsum(kept) - 1, n)
        edges = tuple(
            ends.at[place].set(new, mode="drop") for ends, new in zip(state.edges, (a, b), strict=True)
        )
        ends_of_ways = _ends(jnp.where(root, vertex, target), doublings)
        found = state.found + jnp.sum(kept, dtype=jnp.int32)
        return _Round(ends_of_ways[labels], (edges[0], edges[1]), found, jnp.any(kept))

    nothing = jnp.zeros(n - 1, jnp.int32)
    start = _Round(vertex, (nothing, nothing), jnp.int32(0), jnp.asarray(True))
    last = jax.lax.while_loop(lambda state: state.joined & (state.found < n - 1), join, start)
    return Edges(*last.edges, jnp.arange(n - 1, dtype=jnp.int32) < last.found)


def _smallest_on_the_way(target: jax.Array, doublings: int) -> jax.Array:
    """The least vertex met when following targets, the start itself only if it is met again."""

    def double(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        least, jump = state
        return jnp.minimum(least, least[jump]), jump[jump]

    return jax.lax.fori_loop(0, doublings, double, (target, target))[0]


def _ends(parent: jax.Array, doublings: int) -> jax.Array:
    return jax.lax.fori_loop(0, doublings, lambda _, jump: jump[jump], parent)
