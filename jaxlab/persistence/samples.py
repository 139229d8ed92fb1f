"""What is counted of samples that share a structure, many at a time, on one device or spread over a mesh.

A kind of sample says how one of them is counted; here that is done for all, in few compiled programs. Samples are
independent, so a mesh gives each device its share of them and nothing is exchanged. The other pure functions of this
package go over a mesh the same way: `jaxlab.parallel.shard_rows(jax.vmap(function), mesh)(samples)`.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.parallel import shard_rows
from jaxlab.persistence.filtrations import Filtration
from jaxlab.persistence.grids import Grid, rescaled
from jaxlab.persistence.hilbert import MOST_COLUMNS
from jaxlab.persistence.landscapes import landscape_mp


class Kind(NamedTuple):
    """How one sample, a pytree of arrays, is counted; functions of the module that they are defined in."""

    hilbert: Callable[..., Int[Array, "*lines"]]
    """Hilbert signed measure (sample, grid, degree=)."""
    euler: Callable[..., Int[Array, "*lines"]]
    """Euler signed measure (sample, grid)."""
    filtration: Callable[..., Filtration]
    """All cells that matter in a degree (sample, degree=)."""
    batch: int | None = None
    """Samples of a device that are counted side by side; None for all, one after the other."""


class Read(NamedTuple):
    """Samples as a source has read them."""

    values: tuple[Float[np.ndarray, " cells"], ...]
    """Of each parameter all values of all samples, without those of cells that never enter; for `make_grid`."""
    samples: Any
    """A pytree; leading axes are samples."""
    kind: Kind

    def weights(self, grid: Grid, degree: int, *, mesh: Mesh | None = None) -> Int[Array, "samples *lines"]:
        """Hilbert signed measures in one degree of homology."""
        return self._over(self.kind.hilbert, grid, mesh=mesh, degree=degree)

    def euler(self, grid: Grid, *, mesh: Mesh | None = None) -> Int[Array, "samples *lines"]:
        """Euler signed measures."""
        return self._over(self.kind.euler, grid, mesh=mesh)

    def landscapes(
        self,
        grid: Grid,
        points: Float[Array, "points p"],
        *,
        degree: int,
        count: int,
        mesh: Mesh | None = None,
    ) -> Float[Array, "samples count points"]:
        """Multiparameter landscapes, parameters being rescaled so that the grid is the unit cube."""
        lows, highs = (jnp.stack([lines[i] for lines in grid.coords]) for i in (0, -1))
        return self._over(
            _landscapes,
            lows,
            highs,
            points,
            mesh=mesh,
            filtration=self.kind.filtration,
            degree=degree,
            count=count,
        )

    def _over(self, function: Callable[..., Array], *shared: Any, mesh: Mesh | None, **static: Any) -> Array:
        return over_samples(function, self.samples, *shared, mesh=mesh, batch=self.kind.batch, **static)


def _landscapes(
    sample: Any,
    lows: Array,
    highs: Array,
    points: Array,
    *,
    filtration: Callable[..., Filtration],
    degree: int,
    count: int,
) -> Array:
    own = filtration(sample, degree=degree)
    grades = tuple(rescaled(values, lows, highs) for values in own.grades)
    return landscape_mp(own._replace(grades=grades), points, degree=degree, count=count)


def require_few(cells: int, degree: int) -> None:
    """Raises InputError where landscapes of a degree would reduce too many cells one dimension up."""
    if degree and cells > MOST_COLUMNS:
        raise InputError(
            f"landscapes of degree {degree} reduce {cells} cells of dimension {degree + 1}; at most {MOST_COLUMNS} "
            "can be"
        )


def over_samples(
    function: Callable[..., Array],
    samples: Any,
    *shared: Any,
    mesh: Mesh | None = None,
    batch: int | None = None,
    side_by_side: bool = False,
    **static: Hashable,
) -> Array:
    """function(sample, *shared, **static) of all samples, compiled once for each function and shape.

    Args:
      function: of a module, not made anew for every call.
      samples: a pytree of arrays with a leading axis.
      shared: arrays that all samples see.
      mesh: devices to spread samples over, by its axis "data"; None for one device. The results are the same.
      batch: samples of a device that go through one program side by side, the last batch filled up, so that one program
        does for any number of samples; None takes all.
      side_by_side: whether all samples of a device go through it together (vmap), or one after the other.
      static: options that the program depends on.

    Raises:
      InputError: the mesh has no axis "data".
    """
    program = _program(function, tuple(sorted(static.items())), mesh, side_by_side or batch is not None)
    if batch is None:
        return program(samples, *shared)
    total = len(jax.tree.leaves(samples)[0])
    size = batch * (1 if mesh is None else mesh.shape["data"])
    found = []
    for start in range(0, total, size):
        places = np.minimum(np.arange(start, start + size), total - 1)
        rows = jax.tree.map(lambda leaf, places=places: np.asarray(leaf)[places], samples)
        found.append(np.asarray(program(rows, *shared))[: total - start])
    return jnp.asarray(np.concatenate(found))


@functools.lru_cache(maxsize=64)
def _program(
    function: Callable[..., Array], static: tuple[tuple[str, Any], ...], mesh: Mesh | None, side_by_side: bool
) -> Callable[..., Array]:
    def rows(samples: Any, *shared: Any) -> Array:
        def one(sample: Any) -> Array:
            return function(sample, *shared, **dict(static))

        return jax.vmap(one)(samples) if side_by_side else jax.lax.map(one, samples)

    return shard_rows(rows, mesh)
