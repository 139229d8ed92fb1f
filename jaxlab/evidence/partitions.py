"""Partitions of the data into blocks: every one gives a lower bound, those with alike examples together a tighter one.

Reference: arXiv:2306.03968, theorem 2.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.evidence.checks import require_choice, require_count, require_outputs
from jaxlab.kernels.kmeans import lloyd, seeds
from jaxlab.kernels.lanes import pad_to_lanes

Kind = Literal["random", "label", "cluster"]


def make_partition(
    key: jax.Array,
    size: int,
    *,
    block: int,
    kind: Kind = "random",
    labels: Int[Array, " n"] | None = None,
    outputs: Float[Array, "n C"] | None = None,
) -> Int[Array, "B block"]:
    """A random order of the data, cut into blocks; the last one ends with -1 where examples are missing.

    Args:
      key: PRNG key.
      size: examples, n >= 1.
      block: examples a block, 1 to n; static.
      kind: "random" takes any order, "label" class after class, in random order of and within the classes, "cluster"
        the same with clusters of the outputs (k-means, as many as blocks), which needs no labels.
      labels: with "label", integers.
      outputs: with "cluster", logits or means.

    Raises:
      InputError: a number is out of range, or what the kind needs is missing.
    """
    require_choice("kind", kind, get_args(Kind))
    require_count("size", size, at_least=1)
    require_count("block", block, at_least=1, at_most=size)
    order_key, group_key, cluster_key = jax.random.split(key, 3)
    blocks = -(-size // block)
    order = jax.random.permutation(order_key, size)
    if kind == "random":
        groups = None
    elif kind == "label":
        if labels is None or jnp.shape(labels) != (size,):
            found = None if labels is None else f"of shape {jnp.shape(labels)}"
            raise InputError(f"labels is {found}; kind 'label' needs {size} labels")
        groups = jnp.asarray(labels)
    else:
        if outputs is None:
            raise InputError("outputs is None; kind 'cluster' needs the outputs of all examples")
        require_outputs("outputs", outputs)
        if len(outputs) != size:
            raise InputError(f"outputs has {len(outputs)} rows; it must have size = {size}")
        points = pad_to_lanes(jnp.asarray(outputs).T)
        centres = seeds(cluster_key, points, size, clusters=(blocks,))
        groups = lloyd(points, size, centres, clusters=(blocks,))[1][0, :size]
    if groups is not None:
        # Equal ranks within a group, different ones between groups; the sort is stable.
        groups = jnp.unique(groups, size=size, return_inverse=True)[1]
        ranks = jax.random.permutation(group_key, size)
        first = jax.ops.segment_min(ranks, groups, num_segments=size)
        order = order[jnp.argsort(first[groups][order], stable=True)]
    return jnp.pad(order, (0, blocks * block - size), constant_values=-1).reshape(blocks, block)


def random_block(key: jax.Array, size: int, *, block: int) -> Int[Array, " block"]:
    """Different examples drawn at random, every set of them alike, at a cost that does not grow with the data.

    Args:
      key: PRNG key.
      size: examples to draw from, >= 1.
      block: examples to draw, 1 to size; static.

    Raises:
      InputError: a number is out of range.

    Reference: R. W. Floyd, in Bentley, "Programming pearls: a sample of brilliance", CACM 30 (1987).
    """
    require_count("size", size, at_least=1)
    require_count("block", block, at_least=1, at_most=size)
    last = jnp.arange(size - block, size)
    draws = jax.random.randint(key, (block,), 0, last + 1)

    def one(chosen: Int[Array, " block"], place: Array) -> tuple[Int[Array, " block"], None]:
        own = jnp.where(jnp.any(chosen == draws[place]), last[place], draws[place])
        return chosen.at[place].set(own), None

    return jax.lax.scan(one, jnp.full(block, -1, draws.dtype), jnp.arange(block))[0]
