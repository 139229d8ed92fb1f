"""Neighbour joining: an unrooted tree from a matrix of distances, one matrix or many side by side.

All arrays have fixed shapes. Trees of a batch lie along the minor axis, sixteen to a block, so that the search for
the pair to join, nearly all of the work, goes through whole vectors. The working matrix shrinks by stages, so that the
searches read about 0.4 M^3 entries, not M^3. References: Saitou and Nei, "The neighbor-joining method", 1987; Studier
and Keppler, "A note on the neighbor-joining algorithm of Saitou and Nei", 1988.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LANES = 16
"""Trees that are joined side by side, and columns of a single matrix that are compared at once."""

SMALLEST_STAGE = 48
"""So few nodes are not worth a program of their own for still fewer."""


class JoinedTree(NamedTuple):
    """An unrooted binary tree as the edges from each node to its parent, for M taxa of which some may be absent.

    Nodes 0 to M - 1 are the taxa, M + t is made by the join t, and node 2 M - 3 is the one in which the last three
    meet. A parent has a higher number than its children.
    """

    parents: jax.Array
    """int32[2 M - 2]; -1 for the last node, absent taxa, and nodes that were not made."""
    lengths: jax.Array
    """[2 M - 2], of the edge to the parent, negative where the joins make it so; 0 where there is none."""


def neighbor_joining(distances: jax.Array, present: jax.Array | None = None) -> JoinedTree:
    """The neighbour-joining tree. Works under jit and vmap; under vmap trees are joined sixteen at a time.

    With m nodes left, r_i = sum_k D_ik and Q_ij = (m - 2) D_ij - r_i - r_j; the pair of the smallest Q is joined, the
    first in row-major order where several are equal. The new node takes the place of the first of them. Lengths are
    D_ij / 2 + (r_i - r_j) / (2 (m - 2)) and D_ij less that, and D_uk = (D_ik + D_jk - D_ij) / 2. The last three nodes
    meet in one. Negative lengths are kept. Forward derivatives (`jax.jvp`) of the lengths hold while the tree stays the
    same; there are no reverse ones.

    Args:
      distances: float[M, M], symmetric and finite, M >= 3. The diagonal is not read.
      present: bool[M], at least three of them; all by default. Rows and columns of absent taxa are not read.

    Raises:
      ValueError: the matrix is not square, or smaller than 3.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or distances.shape[0] < 3:
        raise ValueError(
            f"distances has shape {distances.shape}; it must be a square matrix of at least 3 taxa"
        )
    if present is None:
        present = jnp.ones(distances.shape[0], bool)
    return _joined(distances, present)


@jax.custom_batching.custom_vmap
def _joined(distances: jax.Array, present: jax.Array) -> JoinedTree:
    tree = _join_lanes(distances[..., None], present[:, None])
    return JoinedTree(tree.parents[:, 0], tree.lengths[:, 0])


@_joined.def_vmap
def _joined_batch(
    axis_size: int, batched: list[bool], distances: jax.Array, present: jax.Array
) -> tuple[JoinedTree, JoinedTree]:
    """Blocks of `LANES` trees one after the other, each small enough for a processor's cache."""
    taxa = present.shape[-1]
    if not batched[0]:
        distances = jnp.broadcast_to(distances, (axis_size, taxa, taxa))
    if not batched[1]:
        present = jnp.broadcast_to(present, (axis_size, taxa))
    lanes = min(LANES, axis_size)
    blocks = -(-axis_size // lanes)
    # The last block is filled with copies of the last tree.
    tree = jnp.minimum(jnp.arange(blocks * lanes), axis_size - 1).reshape(blocks, lanes)
    joined = jax.lax.map(
        lambda rows: _join_lanes(jnp.moveaxis(distances[rows], 0, -1), present[rows].T), tree
    )
    in_order = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2).reshape(blocks * lanes, -1)[:axis_size], joined)
    return in_order, JoinedTree(True, True)  # type: ignore[arg-type]  # which outputs have the batch axis


class _Nodes(NamedTuple):
    """What is still to be joined: `slots` places, one tree a lane."""

    distances: jax.Array
    """[slots, slots, lanes], +inf on the diagonal."""
    sums: jax.Array
    """r_i, [slots, lanes]; -inf where there is no node."""
    names: jax.Array
    """Number in the tree, int32[slots, lanes]."""
    left: jax.Array
    """How many, int32[lanes]."""


class _Join(NamedTuple):
    """One step: two nodes become children of a new one."""

    children: jax.Array
    """int32[2, lanes]; beyond all nodes if the lane was at its end."""
    lengths: jax.Array
    """[2, lanes]."""


def _join_lanes(distances: jax.Array, present: jax.Array) -> JoinedTree:
    """Trees of [M, M, lanes]."""
    taxa, _, lanes = distances.shape
    nodes = _Nodes(
        distances,
        jnp.where(present, 0, -jnp.inf).astype(distances.dtype),
        jnp.broadcast_to(jnp.arange(taxa, dtype=jnp.int32)[:, None], (taxa, lanes)),
        present.sum(0, dtype=jnp.int32),
    )
    joins, done = [], 0
    while done < taxa - 3:
        slots = -(-(taxa - done) // LANES) * LANES
        # At most three quarters of the slots are left when the next stage begins.
        until = taxa - slots * 3 // 4 // LANES * LANES if slots > SMALLEST_STAGE else taxa - 3
        nodes, stage = jax.lax.scan(
            lambda nodes, t: _join(nodes, t, taxa), _packed(nodes, slots), jnp.arange(done, until)
        )
        joins.append(stage)
        done = until
    nodes = _packed(nodes, 3)
    sums = nodes.sums
    # (D_ab + D_ac - D_bc) / 2 is r_a - (r_a + r_b + r_c) / 4.
    last = sums - sums.sum(0) / 4
    nobody = 2 * taxa - 2
    children = jnp.concatenate([join.children.reshape(-1, lanes) for join in joins] + [nodes.names])
    lengths = jnp.concatenate([join.lengths.reshape(-1, lanes) for join in joins] + [last])
    parents = jnp.concatenate(
        [jnp.repeat(jnp.arange(taxa, 2 * taxa - 3), 2), jnp.full(3, 2 * taxa - 3)]
    ).astype(jnp.int32)
    lane = jnp.arange(lanes)
    return JoinedTree(
        jnp.full((nobody, lanes), -1, jnp.int32).at[children, lane].set(parents[:, None], mode="drop"),
        jnp.zeros((nobody, lanes), distances.dtype).at[children, lane].set(lengths, mode="drop"),
    )


def _packed(nodes: _Nodes, slots: int) -> _Nodes:
    """The nodes in order in the first of `slots` places, and their sums computed afresh."""
    place = jnp.arange(slots)[:, None]
    # The s-th node comes after all places up to which there are at most s.
    upto = jnp.cumsum(nodes.sums != -jnp.inf, axis=0)
    order = jnp.minimum((upto[None] <= place[:, None]).sum(1), nodes.sums.shape[0] - 1)
    there = place < nodes.left
    lane = jnp.arange(order.shape[1])
    distances = nodes.distances[order[:, None], order[None], lane]
    other = there[None] & ~jnp.eye(slots, dtype=bool)[..., None]
    sums = jnp.where(there, jnp.where(other, distances, 0).sum(1), -jnp.inf)
    # What an absent taxon holds may be anything, and must not become a NaN.
    kept = jnp.where(other & there[:, None], distances, 0)
    return _Nodes(
        jnp.where(jnp.eye(slots, dtype=bool)[..., None], jnp.inf, kept),
        sums,
        nodes.names[order, lane],
        nodes.left,
    )


def _join(nodes: _Nodes, t: jax.Array, taxa: int) -> tuple[_Nodes, _Join]:
    """Joins the pair of the smallest Q in every lane that has more than three nodes."""
    slots, lanes = nodes.sums.shape
    slot, lane = jnp.arange(slots)[:, None], jnp.arange(lanes)
    weight = (nodes.left - 2).astype(nodes.distances.dtype)
    going = nodes.left > 3

    first = jnp.argmin(_row_minima(nodes, weight), axis=0)
    second = jnp.argmin(weight * nodes.distances[first, :, lane].T - nodes.sums, axis=0)
    i, j = jnp.minimum(first, second), jnp.maximum(first, second)
    d_i, d_j = nodes.distances[i, :, lane].T, nodes.distances[j, :, lane].T
    d_ij = d_i[j, lane]
    other = (nodes.sums != -jnp.inf) & (slot != i) & (slot != j)
    difference = jnp.where(other, d_i - d_j, 0).sum(0)  # r_i - r_j, free of the error that `sums` gathers
    length_i = d_ij / 2 + difference / (2 * weight)
    joined = jnp.where(other, (d_i + d_j - d_ij) / 2, 0)

    sums = jnp.where(other, nodes.sums + joined - d_i - d_j, -jnp.inf)
    sums = jnp.where(slot == i, joined.sum(0), sums)
    row = jnp.where(slot == i, jnp.inf, joined)
    at = jnp.where(going, i, slots)
    distances = nodes.distances.at[at, :, lane].set(row.T, mode="drop").at[:, at, lane].set(row, mode="drop")
    nobody = 2 * taxa - 2
    children = jnp.where(going, jnp.stack([nodes.names[i, lane], nodes.names[j, lane]]), nobody)
    after = _Nodes(
        distances,
        jnp.where(going, sums, nodes.sums),
        jnp.where((slot == i) & going, (taxa + t).astype(jnp.int32), nodes.names),
        nodes.left - going,
    )
    return after, _Join(children, jnp.stack([length_i, d_ij - length_i]))


def _row_minima(nodes: _Nodes, weight: jax.Array) -> jax.Array:
    """min_k Q_ik for each i, [slots, lanes]; +inf where there is no node."""
    slots, lanes = nodes.sums.shape
    # Vectors of LANES columns of all lanes, and only then one column after the other.
    shape = (slots, slots // LANES, LANES * lanes)
    scaled = jnp.broadcast_to(weight, (LANES, lanes)).reshape(-1) * nodes.distances.reshape(shape)
    columns = (scaled - nodes.sums.reshape(1, *shape[1:])).min(1)
    return jax.lax.optimization_barrier(columns).reshape(slots, LANES, lanes).min(1) - nodes.sums
