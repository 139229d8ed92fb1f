"""Finite cell complexes: simplicial, cubical, or any chain complex over Z/2.

A cell is known by the indices of its faces, so simplices, cubes and presentations (generators and relations) are one
type. Built on the host, used under jit; padded and stacked for vmap.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxlab.errors import InputError
from jaxlab.persistence.two_cycles import has_two_cycle

Kind = Literal["simplicial", "cubical", "cells"]


@dataclass(frozen=True)
class Complex:
    """Cells by dimension: `faces[k][c]` are the (k-1)-cells on the boundary of the k-cell c, -1 where there are fewer.

    `faces[0]` has shape (vertices, 0). Where a mask is false the cell is padding. Build it with `simplicial_complex`,
    `cubical_complex` or `cell_complex`, which find out `no_two_cycles`: that H_2 vanishes for every subcomplex, and
    with it everything above. `box` are the vertices along each axis of a whole box of cubes, which has faster programs.
    The kind, this flag and the box are static under jit.
    """

    faces: tuple[Int[Array, "cells faces"], ...]
    masks: tuple[Bool[Array, " cells"], ...]
    kind: Kind = "cells"
    no_two_cycles: bool = False
    box: tuple[int, ...] | None = None

    @property
    def dimension(self) -> int:
        """Largest dimension of a cell."""
        return len(self.faces) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells of each dimension, padding included."""
        return tuple(faces.shape[-2] for faces in self.faces)


jax.tree_util.register_dataclass(Complex, ["faces", "masks"], ["kind", "no_two_cycles", "box"])


def simplicial_complex(vertices: int, *simplices: Int[np.ndarray, "cells corners"]) -> Complex:
    """A simplicial complex from its edges, triangles, ... as rows of vertex numbers.

    Args:
      vertices: how many, at least 1.
      simplices: one array a dimension, from edges on: int[m_1, 2], int[m_2, 3], ...; in any order, each simplex once,
        and with every simplex all its faces. Higher dimensions may be left out or be empty.

    Raises:
      InputError: no vertices, a vertex out of range, a simplex twice, or a face that is missing.
    """
    if vertices < 1:
        raise InputError(f"vertices is {vertices}; a complex must have at least one")
    faces = [np.zeros((vertices, 0), np.int32)]
    below: dict[tuple[int, ...], int] = {(i,): i for i in range(vertices)}
    for dimension, rows in enumerate(simplices, 1):
        corners = np.sort(np.asarray(rows, np.int64).reshape(-1, dimension + 1), axis=1)
        if corners.size and (corners.min() < 0 or corners.max() >= vertices):
            wrong = int(corners[(corners < 0) | (corners >= vertices)][0])
            raise InputError(
                f"a {dimension}-simplex has vertex {wrong}, but vertices are 0 to {vertices - 1}"
            )
        index: dict[tuple[int, ...], int] = {}
        found = np.empty((len(corners), dimension + 1), np.int32)
        for i, simplex in enumerate(map(tuple, corners.tolist())):
            if simplex in index or len(set(simplex)) <= dimension:
                raise InputError(f"the {dimension}-simplex {simplex} occurs twice or repeats a vertex")
            index[simplex] = i
            for j in range(dimension + 1):
                face = simplex[:j] + simplex[j + 1 :]
                if face not in below:
                    raise InputError(
                        f"the {dimension}-simplex {simplex} is there, but its face {face} is not"
                    )
                found[i, j] = below[face]
        faces.append(found)
        below = index
    return _complex(faces, "simplicial")


def cubical_complex(shape: Sequence[int]) -> Complex:
    """All cubes of a box with `shape` vertices along its axes; vertices in row-major order, as in an image.

    Cells of one dimension come sorted by the axes that they extend along, then in row-major order.

    Raises:
      InputError: no axis, or an axis without vertices.
    """
    shape = tuple(int(size) for size in shape)
    if not shape or min(shape) < 1:
        raise InputError(
            f"shape is {shape}; a box needs at least one axis, with at least one vertex along each"
        )
    axes = range(len(shape))
    faces: list[np.ndarray] = []
    blocks: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}  # axes of the cells: first index, extent
    for dimension in range(len(shape) + 1):
        rows, count = [], 0
        for along in itertools.combinations(axes, dimension):
            extent = tuple(shape[axis] - (axis in along) for axis in axes)
            position = np.indices(extent).reshape(len(shape), -1)
            columns = []
            for axis in along:
                first, below = blocks[tuple(other for other in along if other != axis)]
                for step in (0, 1):
                    moved = position + step * (np.arange(len(shape)) == axis)[:, None]
                    columns.append(first + np.ravel_multi_index(tuple(moved), below))
            blocks[along] = (count, extent)
            count += position.shape[1]
            rows.append(np.stack(columns, 1) if along else np.zeros((position.shape[1], 0)))
        faces.append(np.concatenate(rows).astype(np.int32))
    return _complex(faces, "cubical", no_two_cycles=sum(size > 1 for size in shape) <= 2, box=shape)


def cell_complex(faces: Sequence[Int[np.ndarray, "cells faces"]]) -> Complex:
    """Any chain complex over Z/2 by the faces of its cells: `faces[k]` int[m_k, f_k], -1 where there are fewer.

    A module with generators and relations is one too: generators without faces in dimension k, relations in k + 1.

    Raises:
      InputError: no vertices, an index out of range, a face twice, or a boundary of a boundary that is not zero.
    """
    arrays = [np.asarray(array, np.int32) for array in faces]
    for dimension, array in enumerate(arrays):
        if array.ndim != 2 or (dimension == 0 and (array.shape[0] == 0 or array.shape[1])):
            raise InputError(
                f"faces[{dimension}] has shape {array.shape}, but must be (cells, faces), and (vertices, 0) in "
                "dimension 0 with at least one vertex"
            )
        for cell, row in enumerate(array if dimension else ()):
            found = row[row >= 0]
            below = len(arrays[dimension - 1])
            if (row < -1).any() or (found >= below).any() or len(set(found.tolist())) < len(found):
                raise InputError(
                    f"faces[{dimension}][{cell}] is {row.tolist()}, but must be distinct cells 0 to {below - 1}, or -1"
                )
            twice = arrays[dimension - 1][found].ravel()
            if (np.bincount(twice[twice >= 0], minlength=1) % 2).any():
                raise InputError(f"the boundary of cell {cell} of dimension {dimension} is not closed")
    return _complex(arrays, "cells")


def _complex(
    faces: Sequence[np.ndarray],
    kind: Kind,
    *,
    no_two_cycles: bool | None = None,
    box: tuple[int, ...] | None = None,
) -> Complex:
    faces = list(faces)
    while len(faces) > 1 and not len(faces[-1]):
        faces.pop()
    if no_two_cycles is None:
        no_two_cycles = len(faces) < 3 or (len(faces) == 3 and not has_two_cycle(faces[2]))
    arrays = tuple(jnp.asarray(array, jnp.int32) for array in faces)
    # NumPy's ones: jnp's would compile a program for every size that occurs.
    masks = tuple(jnp.asarray(np.ones(len(array), bool)) for array in faces)
    return Complex(arrays, masks, kind, no_two_cycles, box)


def pad_complex(complex: Complex, sizes: Sequence[int]) -> Complex:
    """The complex with masked cells up to `sizes` cells of each dimension.

    Raises:
      InputError: fewer than there are.
    """
    wanted = tuple(sizes) + complex.sizes[len(sizes) :]
    if any(size < there for size, there in zip(wanted, complex.sizes, strict=False)):
        raise InputError(f"sizes is {tuple(sizes)}, but the complex has {complex.sizes} cells")
    faces, masks = [], []
    for dimension, size in enumerate(wanted):
        there = dimension <= complex.dimension
        width = {"simplicial": dimension + 1, "cubical": 2 * dimension}.get(complex.kind, 1)
        # NumPy's: jnp's would compile a program for every size that occurs.
        own = np.asarray(complex.faces[dimension]) if there else np.zeros((0, width), np.int32)
        mask = np.asarray(complex.masks[dimension]) if there else np.zeros(0, bool)
        faces.append(jnp.asarray(np.pad(own, ((0, size - len(own)), (0, 0)), constant_values=-1)))
        masks.append(jnp.asarray(np.pad(mask, (0, size - len(mask)))))
    box = complex.box if wanted == complex.sizes else None
    return Complex(tuple(faces), tuple(masks), complex.kind, complex.no_two_cycles, box)


def stack_complexes(complexes: Sequence[Complex], *, sizes: Sequence[int] = ()) -> Complex:
    """Complexes of one kind, padded to common sizes and stacked along a leading axis, for vmap.

    Args:
      complexes: at least one. The stack has `no_two_cycles` if all have.
      sizes: cells of each dimension to pad to; the largest that occur where it says less.

    Raises:
      InputError: none, or complexes of different kinds.
    """
    kinds = sorted({one.kind for one in complexes})
    if len(kinds) != 1:
        raise InputError(f"complexes has {len(complexes)} entries of kinds {kinds}; one kind is needed")
    largest = [max(s) for s in itertools.zip_longest(*(one.sizes for one in complexes), sizes, fillvalue=0)]
    padded = [pad_complex(one, largest) for one in complexes]
    none = all(one.no_two_cycles for one in complexes)
    boxes = {one.box for one in padded}
    box = boxes.pop() if len(boxes) == 1 else None
    alike = [Complex(one.faces, one.masks, one.kind, none, box) for one in padded]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *alike)
