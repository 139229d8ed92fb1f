"""Functions on the nodes of graphs, for lower-star filtrations; vmap over padded adjacency matrices.

A graph is a symmetric 0/1 matrix and a mask of its nodes; what the functions say about padding is of no meaning.
Reference: arXiv:2306.03801, section 4 (graph classification).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_no_nan

ISOLATED = 1.1
"""Value of a node without neighbours: above that of one with a single neighbour."""


def inverse_degree(adjacency: Float[Array, "n n"]) -> Float[Array, " n"]:
    """1 / degree, so that hubs enter first; `ISOLATED` for isolated nodes.

    Raises:
      InputError: not a symmetric square matrix without loops.
    """
    _require_adjacency(adjacency)
    degree = jnp.sum(adjacency, axis=1)
    return jnp.where(degree > 0, 1 / jnp.where(degree > 0, degree, 1), ISOLATED)


def heat_kernel_signature(adjacency: Float[Array, "n n"], *, time: float) -> Float[Array, " n"]:
    """Heat left at each node after `time`: the diagonal of exp(-time L), L the normalised Laplacian.

    Equal to sum_j exp(-time lambda_j) phi_j(v)^2, without eigenvectors, whose gradients fail at equal eigenvalues.

    Args:
      adjacency: weights >= 0; isolated nodes keep all their heat.
      time: >= 0.

    Raises:
      InputError: not a symmetric square matrix without loops, or a negative time.
    """
    _require_adjacency(adjacency)
    if is_concrete(time) and not time >= 0:
        raise InputError(f"time is {time}, but must not be negative")
    degree = jnp.sum(adjacency, axis=1)
    scale = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1)), 0)
    laplacian = jnp.diag((degree > 0).astype(scale.dtype)) - scale[:, None] * adjacency * scale
    return jnp.diagonal(jax.scipy.linalg.expm(-time * laplacian))


def closeness(adjacency: Float[Array, "n n"], mask: Bool[Array, " n"] | None = None) -> Float[Array, " n"]:
    """Closeness centrality with Wasserman and Faust's factor: (r - 1)^2 / ((N - 1) sum of distances in hops).

    r nodes are reachable, of N nodes in the graph. 0 for isolated nodes. O(n^3).

    Args:
      adjacency: an edge wherever it is not zero.
      mask: which nodes there are; None for all.

    Raises:
      InputError: not a symmetric square matrix without loops.
    """
    _require_adjacency(adjacency)
    n = adjacency.shape[0]
    nodes = n if mask is None else jnp.sum(mask)
    hops = jnp.where(adjacency != 0, 1, jnp.inf)
    hops = jnp.where(jnp.eye(n, dtype=bool), 0, hops)

    def through(node: Array, hops: Array) -> Array:
        return jnp.minimum(hops, hops[:, node, None] + hops[node])

    hops = jax.lax.fori_loop(0, n, through, hops)
    reached = jnp.isfinite(hops)
    others = jnp.sum(reached, axis=1) - 1
    total = jnp.sum(jnp.where(reached, hops, 0), axis=1)
    score = others**2 / jnp.where(total > 0, total * jnp.maximum(nodes - 1, 1), 1)
    return jnp.where(others > 0, score, 0).astype(adjacency.dtype)


def local_degree_profile(adjacency: Float[Array, "n n"]) -> Float[Array, "n 5"]:
    """Degree of each node, and minimum, maximum, mean and standard deviation of its neighbours' degrees; 0 without any.

    Args:
      adjacency: an edge wherever it is not zero.

    Raises:
      InputError: not a symmetric square matrix without loops.

    Reference: Cai and Wang, "A simple yet effective baseline for non-attributed graph classification", 2018.
    """
    _require_adjacency(adjacency)
    near = adjacency != 0
    degree = jnp.sum(near, axis=1).astype(adjacency.dtype)
    some = jnp.maximum(degree, 1)
    mean = jnp.sum(jnp.where(near, degree, 0), axis=1) / some
    spread = jnp.sqrt(jnp.sum(jnp.where(near, (degree - mean[:, None]) ** 2, 0), axis=1) / some)
    lowest = jnp.min(jnp.where(near, degree, jnp.inf), axis=1)
    highest = jnp.max(jnp.where(near, degree, 0), axis=1)
    return jnp.stack([degree, jnp.where(degree > 0, lowest, 0), highest, mean, spread], -1)


def adjacency_matrix(nodes: int, edges: Array | np.ndarray) -> Float[np.ndarray, "n n"]:
    """The 0/1 matrix of edges int[m, 2], each given once or twice, on the host.

    Raises:
      InputError: a loop, or a node out of range.
    """
    ends = np.asarray(edges, np.int64).reshape(-1, 2)
    wrong = (ends < 0).any(1) | (ends >= nodes).any(1) | (ends[:, 0] == ends[:, 1])
    if wrong.any():
        edge = ends[wrong][0].tolist()
        raise InputError(f"edge {edge} is a loop or leaves the nodes 0 to {nodes - 1}")
    matrix = np.zeros((nodes, nodes), np.float32)
    matrix[ends[:, 0], ends[:, 1]] = matrix[ends[:, 1], ends[:, 0]] = 1
    return matrix


def _require_adjacency(adjacency: Array) -> None:
    shape = jnp.shape(adjacency)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(f"adjacency has shape {shape}, but must be a square matrix of at least one node")
    if is_concrete(adjacency):
        require_no_nan("adjacency", adjacency)
        matrix = np.asarray(adjacency)
        if (matrix != matrix.T).any() or np.diagonal(matrix).any() or (matrix < 0).any():
            raise InputError("adjacency must be symmetric, without loops, and not negative")
