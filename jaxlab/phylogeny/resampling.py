"""How sure a tree is: replicates from genes drawn anew, and the share of them that contain each split.

Reference: Felsenstein, "Confidence limits on phylogenies: an approach using the bootstrap", 1985.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.kernels.neighbor_joining import JoinedTree, neighbor_joining
from jaxlab.phylogeny.identities import distance, similarity
from jaxlab.phylogeny.splits import split_supports, tree_splits

_BLOCK = 128
"""Replicates whose matrices are in memory at the same time, at most."""


class Bootstrap(NamedTuple):
    """The tree of all genes, trees of resampled genes, and what they say of it."""

    tree: JoinedTree
    supports: Float[Array, " edges"]
    """Share of replicates that contain the split above each inner node."""
    replicates: JoinedTree
    """Along a leading axis."""


def gene_weights(key: jax.Array, *, genes: int, replicates: int) -> Float[Array, "replicates genes"]:
    """How often each gene is drawn when as many genes as there are get drawn with replacement.

    Args:
      key: PRNG key.
      genes: at least 1.
      replicates: at least 1.

    Raises:
      InputError: a number is below 1.
    """
    for name, number in (("genes", genes), ("replicates", replicates)):
        if number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    drawn = jax.random.randint(key, (replicates, genes), 0, genes)
    return jnp.zeros((replicates, genes)).at[jnp.arange(replicates)[:, None], drawn].add(1)


def bootstrap(
    key: jax.Array,
    identities: Float[Array, "genes taxa taxa"],
    *,
    replicates: int = 1000,
    floor: float = 1e-10,
) -> Bootstrap:
    """The neighbour-joining tree with its bootstrap supports over genes.

    Args:
      key: PRNG key.
      identities: of at least 4 models; see `gene_identities`.
      replicates: at least 1.
      floor: see `distance`.

    Raises:
      InputError: fewer than 4 models, no replicates, or a floor out of its range.
    """
    if identities.shape[1] < 4:
        raise InputError(f"identities has {identities.shape[1]} taxa; a tree must have at least 4")
    weights = gene_weights(key, genes=identities.shape[0], replicates=replicates)
    return _bootstrap(identities, weights, floor=floor)


@functools.partial(jax.jit, static_argnames="floor")
def _bootstrap(
    identities: Float[Array, "genes taxa taxa"], weights: Float[Array, "replicates genes"], *, floor: float
) -> Bootstrap:
    genes, taxa, _ = identities.shape
    replicates = weights.shape[0]
    flat = identities.reshape(genes, -1)

    def join(weight: Float[Array, " genes"]) -> JoinedTree:
        total = (weight @ flat).reshape(1, taxa, taxa)
        return neighbor_joining(distance(similarity(total), floor=floor))

    # The tree of all genes comes first; the last block is filled with copies of it.
    rows = 1 + replicates
    blocks = -(-rows // _BLOCK)
    size = -(-rows // blocks)
    padded = jnp.concatenate(
        [
            jnp.ones((1, genes), identities.dtype),
            weights.astype(identities.dtype),
            jnp.ones((blocks * size - rows, genes), identities.dtype),
        ]
    )
    joined = jax.lax.map(jax.vmap(join), padded.reshape(blocks, size, genes))
    in_order = jax.tree.map(lambda x: x.reshape(blocks * size, -1), joined)
    tree, trees = (jax.tree.map(lambda x, at=at: x[at], in_order) for at in (0, slice(1, rows)))
    splits = jax.vmap(functools.partial(tree_splits, taxa=taxa))(trees.parents)
    return Bootstrap(tree, split_supports(tree_splits(tree.parents, taxa=taxa), splits), trees)
