"""Hilbert functions by gudhi, a slice at a time, on the host: what XLA on a CPU does not do well.

The program hands over integers (ranks on the grid) and gets integers back, so no gradient rule is needed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError, ResourceError
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.grids import Grid, require_grid
from jaxlab.persistence.rips import function_rips_slices
from jaxlab.persistence.slices import slices_of


def hilbert_rips_callback(
    distances: Float[Array, "n n"], values: Float[Array, "n q"], grid: Grid, *, degree: int
) -> Int[Array, "*lines"]:
    """dim H_degree of a function-Rips filtration: each slice cut at its enclosing radius, collapsed, reduced by gudhi.

    Args:
      distances: symmetric, zero diagonal.
      values: q >= 0 functions on the points.
      grid: 1 + q parameters, the distance first.
      degree: of homology, at least 0.

    Raises:
      InputError: as for `hilbert_h0_dense`, or a negative degree.
      ResourceError: gudhi is missing, or there are several hosts.
    """
    if degree < 0:
        raise InputError(f"degree is {degree}, but must not be negative")
    ranks, births = function_rips_slices(distances, values, grid)
    return rips_slices_callback(ranks, births, lines=grid.shape[0], degree=degree).T.reshape(grid.shape)


def rips_slices_callback(
    ranks: Int[Array, "n n"], births: Int[Array, "slices n"], *, lines: int, degree: int
) -> Int[Array, "slices lines"]:
    """dim H_degree of Rips filtrations whose vertices are born late, at every line; see `rips`.

    Raises:
      ResourceError: gudhi is missing, or there are several hosts.
    """
    _require_one_host(f"degree {degree} of a Rips complex")
    function = functools.partial(_rips_slices, lines=lines, degree=degree)
    return _call(function, (births.shape[0], lines), ranks, births)


def hilbert_callback(filtration: Filtration, grid: Grid, *, degree: int) -> Int[Array, "*lines"]:
    """dim H_degree of any filtration of a simplicial complex, a slice at a time.

    Args:
      filtration: of a simplicial complex.
      grid: as for `signed_measure`.
      degree: 0 to the dimension of the complex.

    Raises:
      InputError: the complex is not simplicial, or as for `signed_measure`.
      ResourceError: gudhi is missing, or there are several hosts.
    """
    complex = filtration.complex
    _require_one_host(f"degree {degree} of a {complex.kind} complex")
    if complex.kind != "simplicial":
        raise InputError(f"the complex is {complex.kind!r}; gudhi takes simplicial ones, hilbert_generic any")
    if not 0 <= degree <= complex.dimension:
        raise InputError(
            f"degree is {degree}, but must be 0 to {complex.dimension}, the dimension of the complex"
        )
    require_filtration(filtration)
    require_grid(grid, filtration.parameters)
    sliced = slices_of(filtration, grid)
    function = functools.partial(_complex_slices, points=sliced.points, lines=sliced.lines, degree=degree)
    found = _call(function, (len(sliced.points), sliced.lines), complex.faces, sliced.running, sliced.fixed)
    others = [size for i, size in enumerate(sliced.shape) if i != sliced.axis]
    return jnp.moveaxis(found.reshape(*others, sliced.lines), -1, sliced.axis)


def _call(function: Any, shape: tuple[int, int], *arguments: Any) -> Array:
    _gudhi()
    result = jax.ShapeDtypeStruct(shape, jnp.int32)
    return jax.pure_callback(function, result, *arguments, vmap_method="sequential")


def _require_one_host(what: str) -> None:
    if jax.process_count() > 1:
        raise ResourceError(
            f"{what} uses the gudhi callback, which runs on one host, but there are {jax.process_count()} processes; "
            "call it on one of them, or take hilbert_generic or hilbert_rips_h1(backend='xla')"
        )


def _gudhi() -> Any:
    try:
        import gudhi
    except ImportError as error:
        raise ResourceError(f"this needs gudhi: pip install 'jaxlab[persistence]' ({error})") from error
    return gudhi


def _rips_slices(ranks: Any, births: Any, *, lines: int, degree: int) -> np.ndarray:
    ranks, births = np.asarray(ranks), np.asarray(births)
    found = np.zeros((len(births), lines), np.int32)
    for row, born in zip(found, births, strict=True):
        active = np.flatnonzero(born < lines)
        if len(active) <= degree:
            continue
        weights = np.maximum(ranks[np.ix_(active, active)], np.maximum.outer(born[active], born[active]))
        # Beyond the enclosing radius of the points of this slice the complex is a cone: nothing but H_0 is left.
        cut = min(int(weights.max(axis=1).min()), lines - 1)
        tree = _gudhi().SimplexTree.create_from_array(weights.astype(np.float64), max_filtration=cut)
        tree.collapse_edges()
        tree.expansion(degree + 1)
        _add_bars(row, tree, degree)
    return found


def _complex_slices(
    faces: Any, running: Any, fixed: Any, *, points: np.ndarray, lines: int, degree: int
) -> np.ndarray:
    faces, running, fixed = jax.tree.map(np.asarray, (faces, running, fixed))
    corners = _corners(faces)[: degree + 2]
    found = np.zeros((len(points), lines), np.int32)
    for row, point in zip(found, points, strict=True):
        tree = _gudhi().SimplexTree()
        for own, run, fix in zip(corners, running, fixed, strict=False):
            there = (fix <= point).all(axis=1) & (run < lines)
            tree.insert_batch(own[there].T, run[there].astype(np.float64))
        _add_bars(row, tree, degree)
    return found


def _add_bars(row: np.ndarray, tree: Any, degree: int) -> None:
    """Adds the bars of one degree to a Betti curve; a diagonal bar adds nothing."""
    tree.compute_persistence(homology_coeff_field=2, min_persistence=0, persistence_dim_max=True)
    bars = tree.persistence_intervals_in_dimension(degree).reshape(-1, 2)
    change = np.zeros(len(row) + 1, np.int32)
    np.add.at(change, bars[:, 0].astype(np.int64), 1)
    np.add.at(change, np.minimum(bars[:, 1], len(row)).astype(np.int64), -1)
    row += np.cumsum(change[:-1])


def _corners(faces: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """Vertices of each simplex: those of its first face, and of its second what is not there yet."""
    found = [np.arange(len(faces[0]), dtype=np.int32)[:, None]]
    for own in faces[1:]:
        first, last = found[-1][own[:, 0]], found[-1][own[:, -1]]
        missing = ~(last[:, :, None] == first[:, None]).any(axis=2)
        found.append(np.concatenate([first, last[missing][:, None]], axis=1))
    return found
