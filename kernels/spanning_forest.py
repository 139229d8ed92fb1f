"""Minimum spanning forests: of sparse graphs and boxes by Boruvka's rounds, of complete graphs by Prim's in lanes.

Weights are integers (ranks), so that ties and roundings cannot make two programs disagree. Reference: Boruvka, 1926;
Prim, "Shortest connection networks and some generalizations", 1957.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_NEVER_CHOSEN = jnp.iinfo(jnp.int32).max


def spanning_forest(edges: jax.Array, present: jax.Array, *, vertices: int) -> jax.Array:
    """Which edges lie in the minimum spanning forest, the edges being sorted by weight, ties by position.

    At most log2(vertices) rounds: every tree takes its first edge to another tree. Works under jit and vmap.

    Args:
      edges: int[m, 2], from lightest to heaviest. Entries of absent edges may be anything.
      present: bool[m].
      vertices: n.

    Returns:
      bool[m]; as many as there are vertices less connected components.
    """
    return _boruvka(edges, present, vertices)[1]


def connected_components(edges: jax.Array, present: jax.Array, *, vertices: int) -> jax.Array:
    """One number for each connected component: int32[vertices], a vertex of it, the same for all its vertices.

    Args:
      edges: int[m, 2], in any order. Entries of absent edges may be anything.
      present: bool[m].
      vertices: n.
    """
    return _boruvka(edges, present, vertices)[0]


def _boruvka(edges: jax.Array, present: jax.Array, vertices: int) -> tuple[jax.Array, jax.Array]:
    """The tree of each vertex, and which edges were chosen."""
    m = edges.shape[0]
    position, tree = jnp.arange(m, dtype=jnp.int32), jnp.arange(vertices, dtype=jnp.int32)
    if m == 0:
        return tree, jnp.zeros(0, bool)
    edges = jnp.clip(edges, 0, vertices - 1)

    def join(state: _Round) -> _Round:
        a, b = state.ends
        key = jnp.where(state.useful, position, m)
        first = jnp.full(vertices, m, jnp.int32)
        for end in (a, b):
            first = first.at[end].min(key, mode="promise_in_bounds")
        edge = jnp.minimum(first, m - 1)
        near, far = _at(a, edge), _at(b, edge)
        parent = jnp.where(first < m, jnp.where(near == tree, far, near), tree)
        # Two trees that choose the same edge would point at each other: the smaller label becomes the root.
        parent = jnp.where((_at(parent, parent) == tree) & (tree < parent), tree, parent)
        root = _roots(parent)
        a, b = _at(root, a), _at(root, b)
        return _Round(
            _at(root, state.labels), (a, b), state.chosen.at[first].set(True, mode="drop"), present & (a != b)
        )

    a, b = edges[:, 0].astype(jnp.int32), edges[:, 1].astype(jnp.int32)
    start = _Round(tree, (a, b), jnp.zeros(m, bool), present & (a != b))
    last = jax.lax.while_loop(lambda state: jnp.any(state.useful), join, start)
    return last.labels, last.chosen


class _Round(NamedTuple):
    labels: jax.Array
    """Tree of each vertex."""
    ends: tuple[jax.Array, jax.Array]
    """Trees of the two ends of each edge."""
    chosen: jax.Array
    useful: jax.Array
    """Edges between two trees."""


def _roots(parent: jax.Array) -> jax.Array:
    """The end of every chain of parents, by doubling."""

    def double(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        shorter = _at(state[0], state[0])
        return shorter, jnp.any(shorter != state[0])

    return jax.lax.while_loop(lambda state: state[1], double, (parent, jnp.asarray(True)))[0]


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
    """`values[index]` for indices that are known to be within bounds."""
    return values.at[index].get(mode="promise_in_bounds")


def fits_box(shape: Sequence[int], *, never: int) -> bool:
    """Whether `box_forest_weights` has room for a box: (never + 1) axes vertices below 2^31."""
    return (never + 1) * len(shape) * math.prod(shape) < 2**31


def box_forest_weights(weights: Sequence[jax.Array], *, never: int) -> jax.Array:
    """Weights of the edges of the minimum spanning forest of a box, whose edges join neighbours along its axes.

    Boruvka's rounds as in `spanning_forest`; since neighbours lie beside each other, a round looks at all edges without
    gathering them, and scatters only what its vertices found. Works under jit and vmap.

    Args:
      weights: int[shape less one along axis a] for each axis a of a box of some shape, entry p that of the edge from
        vertex p to the next one along a, 0 to `never`; `never` means that there is no edge.
      never: see above.

    Returns:
      int32[vertices], row-major: in any order the weights of the forest's edges, each once, and `never` elsewhere.

    Raises:
      ValueError: a box that does not fit (`fits_box`).
    """
    axes = len(weights)
    shape = tuple(size + (axis == 0) for axis, size in enumerate(weights[0].shape))
    if not fits_box(shape, never=never):
        raise ValueError(f"box {shape} with never = {never}: (never + 1) axes vertices must stay below 2^31")
    box, n = np.arange(math.prod(shape), dtype=np.int32).reshape(shape), math.prod(shape)
    # An edge is (weight, axis, its first vertex) in one number.
    keys = [
        jnp.where(own < never, own * (axes * n) + (axis * n + _less_one(box, axis)), _NEVER_CHOSEN)
        for axis, own in enumerate(weights)
    ]
    strides = np.array([math.prod(shape[axis + 1 :]) for axis in range(axes)], np.int32)
    tree = jnp.arange(n, dtype=jnp.int32)

    def lightest(labels: jax.Array) -> jax.Array:
        """Of each vertex's edges to another tree."""
        found, labels = jnp.full(shape, _NEVER_CHOSEN, jnp.int32), labels.reshape(shape)
        for axis, key in enumerate(keys):
            apart = _less_one(labels, axis) != _less_one(labels, axis, first=True)
            key = jnp.where(apart, key, _NEVER_CHOSEN)
            for end in (0, 1):
                pad = [((1 - end, end) if other == axis else (0, 0)) for other in range(axes)]
                found = jnp.minimum(found, jnp.pad(key, pad, constant_values=_NEVER_CHOSEN))
        return found.reshape(n)

    def join(labels: jax.Array, first: jax.Array, ended: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All trees take the edges `first`."""
        some, edge = first < _NEVER_CHOSEN, first % (axes * n)
        near = edge % n
        far = jnp.minimum(near + jnp.asarray(strides)[edge // n], n - 1)
        a, b = _at(labels, near), _at(labels, far)
        parent = jnp.where(some, jnp.where(a == tree, b, a), tree)
        mutual = (_at(parent, parent) == tree) & (tree < parent)
        ended = jnp.where(some & ~mutual, first // (axes * n), ended)
        labels = _at(_roots(jnp.where(mutual, tree, parent)), labels)
        return labels, lightest(labels), ended

    def next_round(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        labels, found, ended = state
        first = jnp.full(n, _NEVER_CHOSEN, jnp.int32).at[labels].min(found, mode="promise_in_bounds")
        return join(labels, first, ended)

    # In the first round every vertex is a tree.
    start = join(tree, lightest(tree), jnp.full(n, never, jnp.int32))
    return jax.lax.while_loop(lambda state: jnp.any(state[1] < _NEVER_CHOSEN), next_round, start)[2]


def _less_one(values: Any, axis: int, *, first: bool = False) -> Any:
    """Without the last entries along an axis, or without the first."""
    return values[(slice(None),) * axis + (slice(1, None) if first else slice(-1),)]


def complete_forest_weights(weights: jax.Array, births: jax.Array, *, never: int) -> jax.Array:
    """Weights of the edges of minimum spanning trees of complete graphs whose vertices are born late.

    In lane s the edge uv weighs max(weights[u, v], births[s, u], births[s, v]). All lanes go through Prim's n - 1 steps
    together, each an (n,)-wide minimum of weight and vertex packed in one integer.

    Args:
      weights: int[n, n], symmetric, 0 to `never`.
      births: int[lanes, n], 0 to `never`.
      never: the largest weight; (never + 1) * n must stay below 2^31.

    Returns:
      int[n - 1, lanes], in the order in which the edges are chosen.

    Raises:
      ValueError: weight and vertex do not fit into 31 bits.
    """
    n = weights.shape[0]
    if (never + 1) * n >= 2**31:
        raise ValueError(f"never = {never} with n = {n}: (never + 1) n must stay below 2^31")
    vertex = jnp.arange(n, dtype=jnp.int32)
    rows = weights.astype(jnp.int32) * n + vertex  # all comparisons of weights are now of packed keys
    born = births.astype(jnp.int32) * n + vertex
    lane = jnp.arange(births.shape[0])

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
        distance, open_born, last = state
        open_born = open_born.at[lane, last].set(_NEVER_CHOSEN)
        late = births[lane, last].astype(jnp.int32) * n
        distance = jnp.minimum(distance, jnp.maximum(rows[last], late[:, None] + vertex))
        key = jnp.min(jnp.maximum(distance, open_born), axis=1)
        return (distance, open_born, key % n), key // n

    start = (jnp.full(born.shape, _NEVER_CHOSEN, jnp.int32), born, jnp.zeros(births.shape[0], jnp.int32))
    return jax.lax.scan(step, start, None, length=n - 1)[1]
