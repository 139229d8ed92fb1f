"""Splits of trees as bit sets under jit and vmap: Robinson-Foulds distances and supports of thousands of trees.

An edge splits the taxa in two; the side without the first taxon stands for both. Trees are arrays of parents in which a
parent has a higher number than its children and the last node is the top, as `jaxlab.kernels.neighbor_joining` makes
them. Reference: Robinson and Foulds, "Comparison of phylogenetic trees", 1981.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

_WORD = 32


class Splits(NamedTuple):
    """One split for every edge that leads to an inner node."""

    bits: UInt32[Array, "edges words"]
    """Taxon i is bit i % 32 of word i // 32."""
    there: Bool[Array, " edges"]
    """False for edges that do not exist or cut off fewer than two taxa."""


def node_sets(parents: Int[Array, " nodes"], *, taxa: int) -> UInt32[Array, "nodes words"]:
    """The taxa below every node.

    Args:
      parents: of taxa first, then inner nodes; -1 for the top and for nodes that do not exist.
      taxa: how many of the nodes are taxa.
    """
    nodes = parents.shape[0]
    taxon = jnp.arange(taxa)
    own = jnp.uint32(1) << (taxon % _WORD).astype(jnp.uint32)
    sets = jnp.zeros((nodes, -(-taxa // _WORD)), jnp.uint32).at[taxon, taxon // _WORD].set(own)

    def gather(node: Int[Array, ""], sets: UInt32[Array, "nodes words"]) -> UInt32[Array, "nodes words"]:
        above = jnp.where(parents[node] < 0, nodes, parents[node])
        joined = sets.at[above].get(mode="fill", fill_value=0) | sets[node]
        return sets.at[above].set(joined, mode="drop")

    return jax.lax.fori_loop(0, nodes - 1, gather, sets)


def tree_splits(parents: Int[Array, " nodes"], *, taxa: int) -> Splits:
    """The splits of a tree. The two edges at the top of a rooted binary tree give the same one.

    Args:
      parents: see `node_sets`.
      taxa: see `node_sets`.
    """
    sets = node_sets(parents, taxa=taxa)
    everyone = sets[-1]
    below = sets[taxa:-1]
    # The lowest bit of the first word that has one.
    lowest = everyone & (~everyone + 1)
    first = jnp.where(jnp.cumsum(everyone != 0) == 1, lowest, 0)
    bits = jnp.where(jnp.any(below & first, axis=1, keepdims=True), everyone & ~below, below)
    size = jax.lax.population_count(bits).sum(1)
    total = jax.lax.population_count(everyone).sum()
    return Splits(bits, (size >= 2) & (size + 2 <= total) & (parents[taxa:-1] >= 0))


def contained(splits: Splits, others: Splits) -> Bool[Array, " edges"]:
    """Which splits the other tree has too."""
    same = jnp.asarray(True)
    for word in range(splits.bits.shape[1]):
        same &= splits.bits[:, None, word] == others.bits[None, :, word]
    return splits.there & jnp.any(same & others.there, axis=1)


def split_distance(splits: Splits, others: Splits) -> Int[Array, ""]:
    """Robinson-Foulds distance: how many splits only one of two trees has, if each holds each of its splits once."""
    shared = contained(splits, others).sum()
    return splits.there.sum() + others.there.sum() - 2 * shared


def split_supports(splits: Splits, replicates: Splits) -> Float[Array, " edges"]:
    """Share of replicates that contain each split; 0 where there is none.

    Args:
      splits: of one tree.
      replicates: of many, along a leading axis.
    """
    return jax.vmap(lambda others: contained(splits, others))(replicates).mean(0)
