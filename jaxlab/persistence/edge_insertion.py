"""Signed measures of graphs by two parameters, edge by edge: no grid and no slices, one atom or two for each cell.

Edges are put in in the order of the second parameter. Let b be the bottleneck between the ends of an edge before it is
put in, the least over all paths of the largest first coordinate, and (w, t) the edge's own grade. With w < b the edge
takes the place of one at b in the minimum spanning forest: H_0 loses a component at (w, t) and gets it back at (b, t).
Otherwise it closes a cycle. So H_0 has the atoms +f(v), and -(w, t) and +(b, t) of edges with w < b; H_1 has
+(max(w, b), t) of all edges with finite b: a presentation of both modules, O(edges vertices^2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.measures import SparseMeasure


class _Inserted(NamedTuple):
    """Edges in order of the second parameter."""

    grades: Float[Array, "edges 2"]
    latest: Float[Array, " edges"]
    """max(w, b), where b is finite."""
    joins: Bool[Array, " edges"]
    """w < b."""
    closes: Bool[Array, " edges"]
    """Whether b is finite."""


def graph_measures(filtration: Filtration) -> tuple[SparseMeasure, SparseMeasure]:
    """Hilbert signed measures of a graph by two parameters in degrees 0 and 1; differentiable in the grades.

    Between equal grades the order of the cells decides, so that the gradient is that of a filtration without equal
    grades close by. Atoms may lie on one point, and cancel there.

    Args:
      filtration: of a graph, possibly padded (`pad_complex`, `stack_complexes`); vmap over many.

    Returns:
      The measures, with room for vertices + 2 edges, and for edges.

    Raises:
      InputError: not a graph, not two parameters, or a filtration that is not monotone or has NaN.
    """
    complex = filtration.complex
    if complex.kind != "simplicial" or complex.dimension != 1 or filtration.parameters != 2:
        raise InputError(
            f"the complex is {complex.kind} of dimension {complex.dimension} by {filtration.parameters} parameters; "
            "graph_measures takes graphs by 2, signed_measure any"
        )
    require_filtration(filtration)
    found = _inserted(filtration)
    again = jnp.stack([found.latest, found.grades[:, 1]], -1)
    born = jnp.isfinite(filtration.grades[0]).all(-1)
    points = jnp.concatenate([filtration.grades[0], found.grades, again])
    signs = jnp.concatenate([jnp.ones_like(born, int), -jnp.ones_like(found.joins, int), found.joins])
    components = _sparse(points, signs, jnp.concatenate([born, found.joins, found.joins & found.closes]))
    return components, _sparse(again, jnp.ones_like(found.closes, int), found.closes)


def _inserted(filtration: Filtration) -> _Inserted:
    fixed = jax.lax.stop_gradient(filtration.grades[1])
    edges = len(fixed)
    there = filtration.complex.masks[1] & jnp.isfinite(fixed).all(-1)
    order = jnp.argsort(jnp.where(there, fixed[:, 1], jnp.inf), stable=True)
    there, faces = there[order], filtration.complex.faces[1][order]
    # Ranks in the first parameter, all different: comparisons are of integers, and a rank names its edge.
    by_first = jnp.argsort(jnp.where(there, fixed[order, 0], jnp.inf), stable=True).astype(jnp.int32)
    own = jnp.zeros(edges, jnp.int32).at[by_first].set(jnp.arange(edges, dtype=jnp.int32))
    own = jnp.where(there, own, edges)
    before = insertion_bottlenecks(faces, own, vertices=filtration.complex.sizes[0], never=edges)
    grades = filtration.grades[1][order]
    last = by_first[jnp.minimum(jnp.maximum(own, before), max(edges - 1, 0))]
    return _Inserted(grades, grades[last, 0], there & (own < before), there & (before < edges))


def insertion_bottlenecks(
    edges: Int[Array, "edges 2"], ranks: Int[Array, " edges"], *, vertices: int, never: int
) -> Int[Array, " edges"]:
    """For each edge, the bottleneck between its ends in the graph of the edges before it.

    Args:
      edges: in the order in which they are put in.
      ranks: 0 to `never` - 1; edges of rank `never` are not put in, and their ends may be anything.
      vertices: n.
      never: above all ranks: what two vertices have that no path joins.
    """

    def insert(between: Array, edge: tuple[Array, Array]) -> tuple[Array, Array]:
        (i, j), rank = edge
        from_i, from_j = between[i], between[j]
        before = from_i[j]
        to_i, to_j = jnp.maximum(from_i, rank), jnp.maximum(from_j, rank)
        through = jnp.minimum(jnp.maximum(to_i[:, None], to_j), jnp.maximum(to_j[:, None], to_i))
        return jnp.minimum(between, through), before

    start = jnp.where(jnp.eye(vertices, dtype=bool), -1, never).astype(ranks.dtype)
    return jax.lax.scan(insert, start, (jnp.clip(edges, 0, vertices - 1), ranks))[1]


def _sparse(points: Array, signs: Array, mask: Array) -> SparseMeasure:
    return SparseMeasure(
        jnp.where(mask[:, None], points, 0), jnp.where(mask, signs, 0).astype(jnp.int32), mask
    )
