"""PER, prioritised experience replay: transitions drawn in proportion to a power of their temporal-difference error.

Not a `Teacher`: it selects transitions, not tasks. These are pure functions over priorities alone; the transitions
stay in the student's buffer, whose rows are numbered as here. The priorities are the leaves of a binary tree in one
flat array, in which a node is the sum of its two children: drawing and updating cost log2(capacity) steps. Reference:
Schaul et al., "Prioritized Experience Replay", arXiv:1511.05952, sections 3.3 and 3.4, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError


class PrioritizedTransitions(NamedTuple):
    """Priorities of the rows of a ring buffer."""

    tree: Float[Array, " nodes"]
    """Node 1 is the root, nodes 2 i and 2 i + 1 the children of i, node capacity + r the priority of row r; node 0 is
    not used."""
    greatest: Float[Array, ""]
    """Highest priority so far, which new transitions get, so that each is likely to be seen once."""
    written: Int[Array, ""]
    """Transitions that were ever added."""

    @property
    def capacity(self) -> int:
        """Rows."""
        return self.tree.shape[0] // 2

    @property
    def size(self) -> Int[Array, ""]:
        """Rows in use."""
        return jnp.minimum(self.written, self.capacity)


class TransitionSample(NamedTuple):
    """Drawn rows."""

    rows: Int[Array, " n"]
    weights: Float[Array, " n"]
    """Importance weights, the greatest of them 1."""


def empty_priorities(capacity: int) -> PrioritizedTransitions:
    """A buffer without transitions.

    Raises:
      InputError: the capacity is not a power of two.
    """
    if capacity < 1 or capacity & (capacity - 1):
        raise InputError(f"capacity is {capacity}; it must be a power of two")
    return PrioritizedTransitions(jnp.zeros(2 * capacity), jnp.float32(1), jnp.int32(0))


def add_transitions(state: PrioritizedTransitions, n: int) -> tuple[Int[Array, " n"], PrioritizedTransitions]:
    """The rows that n new transitions go to, the oldest first, and the state with their priorities.

    Args:
      state: before.
      n: 1 to the capacity.

    Raises:
      InputError: `n` is out of range.
    """
    if not 1 <= n <= state.capacity:
        raise InputError(f"n is {n}; it must lie between 1 and the capacity, {state.capacity}")
    rows = (state.written + jnp.arange(n)) % state.capacity
    tree = set_leaves(state.tree, rows, jnp.broadcast_to(state.greatest, (n,)))
    return rows, state._replace(tree=tree, written=state.written + n)


def update_priorities(
    state: PrioritizedTransitions,
    rows: Int[Array, " n"],
    errors: Float[Array, " n"],
    *,
    alpha: float = 0.6,
    epsilon: float = 1e-6,
) -> PrioritizedTransitions:
    """The state with the priorities (|error| + epsilon)^alpha of these rows. Reference: section 3.3.

    Args:
      state: before.
      rows: a row that stands here twice should have one error.
      errors: temporal-difference errors.
      alpha: >= 0; 0 makes all equal.
      epsilon: > 0, so that every transition can come back.

    Raises:
      InputError: `alpha` or `epsilon` is out of range.
    """
    if not alpha >= 0:
        raise InputError(f"alpha is {alpha}; it must be >= 0")
    if not epsilon > 0:
        raise InputError(f"epsilon is {epsilon}; it must be > 0")
    priorities = (jnp.abs(errors) + epsilon) ** alpha
    return state._replace(
        tree=set_leaves(state.tree, rows, priorities),
        greatest=jnp.maximum(state.greatest, priorities.max()),
    )


def sample_transitions(
    key: jax.Array, state: PrioritizedTransitions, n: int, *, beta: Float[Array, ""] | float = 0.4
) -> TransitionSample:
    """Rows drawn in proportion to their priorities, one from each of n equal shares of the total.

    Args:
      key: PRNG key.
      state: with at least one transition.
      n: rows, >= 1.
      beta: exponent of the importance weights (size p)^-beta, in [0, 1], which the paper raises to 1 in the end. They
        are divided by the greatest of those drawn. May be traced.

    Raises:
      InputError: `n` is out of range.
    """
    if n < 1:
        raise InputError(f"n is {n}; it must be >= 1")
    total = state.tree[1]
    mass = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n * total
    rows = jax.vmap(lambda mass: row_at(state.tree, mass))(mass)
    chance = state.tree[state.capacity + rows] / total
    weights = (state.size * chance) ** -jnp.asarray(beta, chance.dtype)
    return TransitionSample(rows, weights / weights.max())


def set_leaves(
    tree: Float[Array, " nodes"], rows: Int[Array, " n"], priorities: Float[Array, " n"]
) -> Float[Array, " nodes"]:
    """The tree with these priorities, and with the sums above them made anew."""
    capacity = tree.shape[0] // 2
    nodes = capacity + rows
    tree = tree.at[nodes].set(priorities)
    for _ in range(capacity.bit_length() - 1):
        nodes = nodes // 2
        # Rows with a common ancestor write the same sum there.
        tree = tree.at[nodes].set(tree[2 * nodes] + tree[2 * nodes + 1])
    return tree


def row_at(tree: Float[Array, " nodes"], mass: Float[Array, ""]) -> Int[Array, ""]:
    """The first row at which the sum of priorities exceeds `mass`, in [0, total); never one of priority 0."""
    capacity = tree.shape[0] // 2
    node = jnp.int32(1)
    for _ in range(capacity.bit_length() - 1):
        left = tree[2 * node]
        # Rounding may leave some mass where nothing is left on the right.
        right = (mass >= left) & (tree[2 * node + 1] > 0)
        mass = mass - jnp.where(right, left, 0)
        node = 2 * node + right
    return node - capacity
