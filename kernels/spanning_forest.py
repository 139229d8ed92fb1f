"""Minimum spanning forests: of a sparse graph by Boruvka's rounds, of complete graphs by Prim's steps in lanes.

Weights are integers (ranks), so that ties and roundings cannot make two programs disagree. Reference: Boruvka, 1926;
Prim, "Shortest connection networks and some generalizations", 1957.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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
        first = jnp.full(vertices, m, jnp.int32).at[a].min(key).at[b].min(key)
        edge = jnp.minimum(first, m - 1)
        parent = jnp.where(first < m, jnp.where(a[edge] == tree, b[edge], a[edge]), tree)
        # Two trees that choose the same edge would point at each other: the smaller label becomes the root.
        parent = jnp.where((parent[parent] == tree) & (tree < parent), tree, parent)
        root = _roots(parent)
        a, b = root[a], root[b]
        return _Round(
            root[state.labels], (a, b), state.chosen.at[first].set(True, mode="drop"), present & (a != b)
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
        shorter = state[0][state[0]]
        return shorter, jnp.any(shorter != state[0])

    return jax.lax.while_loop(lambda state: state[1], double, (parent, jnp.asarray(True)))[0]


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
