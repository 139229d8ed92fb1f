"""One-parameter barcodes as pairs of cells: which cell opens a class, and which one closes it.

Pairs are integers, constant for autodiff; births and deaths are gathered from the grades, so a gradient on a bar
reaches the two cells that realise it. Reference: arXiv:2406.07224, section 2; for trees the elder rule of Edelsbrunner,
Letscher, Zomorodian, "Topological persistence and simplification", 2002.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.spanning_forest import spanning_forest
from jaxlab.kernels.z2_reduction import lowest_ones, pack_columns
from jaxlab.persistence.filtrations import Filtration, require_filtration

Backend = Literal["auto", "forest", "generic"]


class Pairs(NamedTuple):
    """For every cell of one dimension: whether it opens a class, and the cell one dimension up that closes it.

    -1 is for a class that lives forever, and for cells that open none.
    """

    opens: Bool[Array, " cells"]
    closed_by: Int[Array, " cells"]


class Barcode(NamedTuple):
    """Birth and death of every cell's class, [cells, 2]; where `mask` is false there is none, and both are 0.

    Deaths are +inf for a class that lives forever. Bars of length 0 are kept: they count for nothing in `losses`.
    """

    bars: Float[Array, "cells 2"]
    mask: Bool[Array, " cells"]


def persistence_pairs(filtration: Filtration, *, degree: int, backend: Backend = "auto") -> Pairs:
    """Pairs of a filtration by one parameter; ties are broken by the order of the cells.

    Args:
      filtration: with p = 1; cells at +inf never enter.
      degree: of homology, 0 to the dimension of the complex.
      backend: "forest" (degree 0 of complexes whose edges have at most two ends): O(edges log vertices + vertices^2);
        "generic": reduction over Z/2, up to some thousand cells; "auto" takes the first that applies.

    Raises:
      InputError: more than one parameter, a filtration that is not monotone or has NaN, a degree above the dimension,
        or a backend that does not apply.
    """
    require_filtration(filtration)
    complex = filtration.complex
    if filtration.parameters != 1:
        raise InputError(f"the filtration has {filtration.parameters} parameters; a barcode needs one")
    if not 0 <= degree <= complex.dimension:
        raise InputError(
            f"degree is {degree}, but must be 0 to {complex.dimension}, the dimension of the complex"
        )
    applies = degree == 0 and (complex.dimension == 0 or complex.faces[1].shape[1] <= 2)
    if backend == "auto":
        backend = "forest" if applies else "generic"
    if backend not in ("forest", "generic"):
        raise InputError(f"backend is {backend!r}; it must be auto, forest or generic")
    if backend == "forest" and not applies:
        raise InputError(
            f"backend is 'forest' and degree {degree}; forests give degree 0 of simplicial complexes alone"
        )
    values = [jax.lax.stop_gradient(grades[:, 0]) for grades in filtration.grades]
    return _elder(complex.faces, values) if backend == "forest" else _reduced(complex.faces, values, degree)


def barcode(filtration: Filtration, pairs: Pairs, *, degree: int) -> Barcode:
    """The bars of pairs; differentiable in the grades.

    Args:
      filtration: with p = 1, the one that the pairs were found for.
      pairs: from `persistence_pairs`.
      degree: the same.
    """
    births = filtration.grades[degree][:, 0]
    deaths = jnp.full_like(births, jnp.inf)
    if degree < filtration.complex.dimension:
        later = filtration.grades[degree + 1][:, 0]
        deaths = jnp.where(pairs.closed_by >= 0, later[pairs.closed_by], jnp.inf)
    bars = jnp.stack([births, deaths], -1)
    # Padding is made 0 on both sides of the choice: inf would come back as NaN in gradients.
    return Barcode(jnp.where(pairs.opens[:, None], bars, 0), pairs.opens)


def _elder(faces: tuple[Array, ...], values: list[Array]) -> Pairs:
    """Components by the edges of the spanning forest, in order: of two the younger one ends."""
    n = len(values[0])
    opens = jnp.isfinite(values[0])
    if len(values) == 1 or not len(values[1]):
        return Pairs(opens, jnp.full(n, -1, jnp.int32))
    edges, m = faces[1], len(values[1])
    # An edge with one end is a relation that kills its generator: an edge to the ground, which is older than all.
    edges = jnp.pad(edges, ((0, 0), (0, 2 - edges.shape[1])), constant_values=-1)
    order = jnp.argsort(values[1], stable=True).astype(jnp.int32)
    edges = jnp.where(edges < 0, n, edges)[order]
    chosen = spanning_forest(edges, jnp.isfinite(values[1][order]), vertices=n + 1)
    places = jnp.nonzero(chosen, size=min(n, m), fill_value=m)[0]
    age = jnp.zeros(n, jnp.int32).at[jnp.argsort(values[0], stable=True)].set(jnp.arange(n, dtype=jnp.int32))

    def merge(state: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
        oldest, closed_by = state
        ends = oldest[edges[jnp.minimum(place, m - 1)]]
        young, old = jnp.max(ends), jnp.min(ends)
        there = (place < m) & (young != old)
        closed_by = closed_by.at[jnp.where(there, young, n)].set(
            order[jnp.minimum(place, m - 1)], mode="drop"
        )
        return (jnp.where(there & (oldest == young), old, oldest), closed_by), None

    ages = jnp.append(age, -1)
    (_, closed_by), _ = jax.lax.scan(merge, (ages, jnp.full(n, -1, jnp.int32)), places)
    return Pairs(opens, jnp.where(opens, closed_by[age], -1))


def _reduced(faces: tuple[Array, ...], values: list[Array], degree: int) -> Pairs:
    opens = jnp.isfinite(values[degree])
    if degree:
        lows, order = _lows(faces, values, degree)
        opens &= jnp.zeros(len(opens), bool).at[order].set(lows < 0)
    closed_by = jnp.full(len(opens), -1, jnp.int32)
    if degree + 1 < len(values):
        lows, order = _lows(faces, values, degree + 1)
        cell = jnp.argsort(values[degree], stable=True)[lows]
        closes = (lows >= 0) & jnp.isfinite(values[degree + 1][order])
        closed_by = closed_by.at[jnp.where(closes, cell, len(opens))].set(order, mode="drop")
    return Pairs(opens, closed_by)


def _lows(faces: tuple[Array, ...], values: list[Array], dimension: int) -> tuple[Array, Array]:
    """Lowest ones of the boundary matrix in order of entry, and the cells that its columns are."""
    rows, order = (jnp.argsort(values[k], stable=True).astype(jnp.int32) for k in (dimension - 1, dimension))
    place = jnp.zeros(len(rows), jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
    own = faces[dimension][order]
    # Cells that never enter close nothing.
    own = jnp.where((own < 0) | ~jnp.isfinite(values[dimension][order])[:, None], -1, place[own])
    return lowest_ones(pack_columns(own, rows=len(rows))), order
