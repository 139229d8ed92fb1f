"""Hilbert functions dim H_i(K_x; Z/2) on a grid, and their signed measures.

Each slice of the grid is a one-parameter filtration. H_0 needs the edges of its minimum spanning forest alone; H_1 of
graphs, images and other complexes without 2-cycles is H_0 less the Euler characteristic; everything else is reduced
over Z/2. All results are integers, constant for autodiff: gradients go through the grid lines.
Reference: arXiv:2306.03801, section 2; arXiv:2406.07224, for the gradient.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlab.errors import InputError
from jaxlab.kernels.spanning_forest import box_forest_weights, fits_box, spanning_forest
from jaxlab.kernels.z2_reduction import lowest_ones, pack_columns
from jaxlab.persistence.euler import euler_measure
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.grids import Grid, require_grid
from jaxlab.persistence.measures import DenseMeasure, integrate, mobius
from jaxlab.persistence.slices import Sliced, count_ranks, entered, over_slices, present, slices_of

Backend = Literal["auto", "forest", "planar", "generic", "callback"]
MOST_COLUMNS = 4096
"""Columns of a boundary matrix up to which "auto" takes the reduction in XLA."""


def signed_measure(
    filtration: Filtration, grid: Grid, *, degree: int, backend: Backend = "auto"
) -> DenseMeasure:
    """Hilbert signed measure of a filtration in one degree of homology.

    Args:
      filtration: by p >= 1 parameters.
      grid: exact, or coarser: grades are rounded up, and cells above the last lines are left out.
      degree: of homology, 0 to the dimension of the complex.
      backend: "forest" (degree 0), "planar" (degree 1 of complexes without 2-cycles), "generic" (any, up to some
        thousand cells), "callback" (gudhi on the host; simplicial complexes); "auto" takes the first that applies.

    Raises:
      InputError: a filtration that is not monotone or has NaN, a grid that does not fit, a degree above the dimension,
        or a backend that does not apply.
      ResourceError: the callback is needed and gudhi is missing or there are several hosts.
    """
    _require_degree(filtration, degree)
    if backend == "auto":
        backend = _best(filtration, degree)
    if backend == "forest":
        if degree:
            raise InputError(f"backend is 'forest' and degree {degree}; forests give degree 0 alone")
        values = hilbert_h0(filtration, grid)
    elif backend == "planar":
        if degree > 1:
            raise InputError(f"backend is 'planar' and degree {degree}; it gives degrees 0 and 1")
        values = hilbert_planar(filtration, grid)[degree]
    elif backend == "generic":
        values = hilbert_generic(filtration, grid, degree=degree)
    elif backend == "callback":
        from jaxlab.persistence.gudhi_slices import hilbert_callback

        values = hilbert_callback(filtration, grid, degree=degree)
    else:
        raise InputError(f"backend is {backend!r}; it must be auto, forest, planar, generic or callback")
    return DenseMeasure(mobius(values), grid)


def hilbert_h0(filtration: Filtration, grid: Grid) -> Int[Array, "*lines"]:
    """Number of connected components of every sublevel complex: vertices less edges of the spanning forest.

    Args:
      filtration: only vertices and edges are looked at.
      grid: as for `signed_measure`.

    Raises:
      InputError: a filtration that is not monotone or has NaN, or a grid that does not fit.
    """
    _require(filtration, grid)
    return _h0(filtration, grid)


@jax.jit
def _h0(filtration: Filtration, grid: Grid) -> Int[Array, "*lines"]:
    sliced, complex = slices_of(filtration, grid), filtration.complex
    if complex.dimension == 0:
        return over_slices(sliced, lambda x: entered(sliced, 0, present(sliced, 0, x)), work=1)
    if complex.faces[1].shape[1] > 2:
        return _generic(filtration, grid, degree=0)
    if complex.box is not None and fits_box(complex.box, never=sliced.lines):
        return _h0_of_box(sliced, complex.box)
    # Sorted once along the running parameter; a slice only leaves edges out.
    order = jnp.argsort(sliced.running[1], stable=True)
    # A relation that kills one generator is an edge to the ground, one vertex more that is never counted.
    ground = filtration.complex.sizes[0]
    edges = filtration.complex.faces[1][order]
    edges = jnp.pad(edges, ((0, 0), (0, 2 - edges.shape[1])), constant_values=-1)
    edges = jnp.where(edges < 0, ground, edges)
    lanes = sliced._replace(
        running=(sliced.running[0], sliced.running[1][order]), fixed=(sliced.fixed[0], sliced.fixed[1][order])
    )

    def components(point: Array) -> Array:
        there = present(lanes, 1, point)
        joined = entered(lanes, 1, spanning_forest(edges, there, vertices=ground + 1))
        return entered(lanes, 0, present(lanes, 0, point)) - joined

    return over_slices(lanes, components, work=ground + len(order))


def _h0_of_box(sliced: Sliced, box: tuple[int, ...]) -> Int[Array, "*lines"]:
    extents = [tuple(size - (other == axis) for other, size in enumerate(box)) for axis in range(len(box))]
    ends = np.cumsum([math.prod(extent) for extent in extents])[:-1]

    def components(point: Array) -> Array:
        weights = jnp.where(present(sliced, 1, point), sliced.running[1], sliced.lines)
        along = [own.reshape(extent) for own, extent in zip(jnp.split(weights, ends), extents, strict=True)]
        joined = count_ranks(box_forest_weights(along, never=sliced.lines), sliced.lines)
        return entered(sliced, 0, present(sliced, 0, point)) - joined

    return over_slices(sliced, components, work=len(sliced.running[1]))


def hilbert_planar(filtration: Filtration, grid: Grid) -> tuple[Int[Array, "*lines"], Int[Array, "*lines"]]:
    """H_0 and H_1 = H_0 - chi of a complex without 2-cycles: a graph, an image, a subset of the plane.

    Args:
      filtration: of a complex with `no_two_cycles`.
      grid: as for `signed_measure`.

    Raises:
      InputError: the complex has 2-cycles (a sphere, a flag complex, a 3-dimensional image), so the formula is false;
        or as for `hilbert_h0`.
    """
    if not filtration.complex.no_two_cycles:
        raise InputError(
            f"the complex ({filtration.complex.kind}, dimension {filtration.complex.dimension}) has closed surfaces, "
            "so H1 = H0 - chi is false for it; use hilbert_generic or hilbert_callback"
        )
    components = hilbert_h0(filtration, grid)
    return components, components - integrate(euler_measure(filtration, grid).weights)


def hilbert_generic(filtration: Filtration, grid: Grid, *, degree: int) -> Int[Array, "*lines"]:
    """dim H_degree of every sublevel complex by reduction over Z/2: cells less those that open or close no class.

    O(m^2 rows / 32) a slice for m columns, so for complexes of up to some thousand cells.

    Args:
      filtration: of any complex.
      grid: as for `signed_measure`.
      degree: 0 to the dimension of the complex.

    Raises:
      InputError: as for `signed_measure`.
    """
    _require(filtration, grid)
    _require_degree(filtration, degree)
    return _generic(filtration, grid, degree=degree)


@functools.partial(jax.jit, static_argnames="degree")
def _generic(filtration: Filtration, grid: Grid, *, degree: int) -> Int[Array, "*lines"]:
    sliced, complex = slices_of(filtration, grid), filtration.complex
    boundary = range(max(degree, 1), min(degree + 1, complex.dimension) + 1)
    packed = {k: packed_boundary(filtration, sliced, k) for k in boundary}

    def betti(point: Array) -> Array:
        found = entered(sliced, degree, present(sliced, degree, point))
        for k, (columns, order) in packed.items():
            there = present(sliced, k, point)[order]
            lows = lowest_ones(jnp.where(there, columns, 0))
            found -= entered(sliced, k, jnp.zeros(len(order), bool).at[order].set(lows >= 0))
        return found

    return over_slices(sliced, betti, work=sum(columns.size for columns, _ in packed.values()))


def packed_boundary(filtration: Filtration, sliced: Sliced, dimension: int) -> tuple[Array, Array]:
    """The boundary matrix in bits with rows and columns in order of entry, and the cells that the columns are."""
    rows, order = (jnp.argsort(sliced.running[k], stable=True) for k in (dimension - 1, dimension))
    place = jnp.zeros(len(rows), jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
    faces = filtration.complex.faces[dimension][order]
    return pack_columns(jnp.where(faces < 0, -1, place[faces]), rows=len(rows)), order


def _require(filtration: Filtration, grid: Grid) -> None:
    require_filtration(filtration)
    require_grid(grid, filtration.parameters)


def _require_degree(filtration: Filtration, degree: int) -> None:
    if not 0 <= degree <= filtration.complex.dimension:
        raise InputError(
            f"degree is {degree}, but must be 0 to {filtration.complex.dimension}, the dimension of the complex"
        )


def _best(filtration: Filtration, degree: int) -> Backend:
    complex = filtration.complex
    if degree == 0:
        return "forest"
    if degree == 1 and complex.no_two_cycles:
        return "planar"
    small = max(complex.sizes[degree : degree + 2]) <= MOST_COLUMNS
    return "generic" if small or complex.kind != "simplicial" else "callback"
