"""Filtrations of a complex by several parameters at once.

Each cell has one grade, a vector, not below the grades of its faces; the cells at or below x make the sublevel complex
K_x. Reference: arXiv:2306.03801, section 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import is_concrete, require_no_nan, require_shape
from jaxlab.persistence.complexes import Complex


class Filtration(NamedTuple):
    """A complex and the grades of its cells by dimension; padding and cells that never enter have +inf."""

    complex: Complex
    grades: tuple[Float[Array, "cells p"], ...]

    @property
    def parameters(self) -> int:
        """Number of parameters p."""
        return self.grades[0].shape[-1]

    @property
    def values(self) -> Float[Array, "cells p"]:
        """The grades of all cells, for `make_grid`."""
        return jnp.concatenate(self.grades)


def lower_star(complex: Complex, values: Float[Array, "vertices p"]) -> Filtration:
    """Every cell enters with the last of its vertices: its grade is their coordinatewise maximum.

    For images this is the V-construction. The gradient goes to the largest vertex, to the first of equals.

    Raises:
      InputError: a wrong shape, NaN or -inf.
    """
    require_shape("values", values, (complex.sizes[0], None))
    require_no_nan("values", values, infinite=True)
    lowest = [jnp.full((size, values.shape[-1]), -jnp.inf, values.dtype) for size in complex.sizes[1:]]
    return raise_to_faces(complex, [values, *lowest])


def upper_star(complex: Complex, values: Float[Array, "cells p"]) -> Filtration:
    """Every cell enters with the first of the top cells that contain it: its grade is their coordinatewise minimum.

    For images, on the complex with one more vertex than pixels along each axis, this is the T-construction. With
    several parameters a face between two top cells enters at the minimum of both grades, which may be before either of
    them. Cells in no top cell never enter.

    Raises:
      InputError: a wrong shape, NaN or -inf.
    """
    require_shape("values", values, (complex.sizes[-1], None))
    require_no_nan("values", values, infinite=True)
    grades = [jnp.where(complex.masks[-1][:, None], values, jnp.inf)]
    for dimension in range(complex.dimension, 0, -1):
        faces = complex.faces[dimension]
        below = jnp.full((complex.sizes[dimension - 1], values.shape[-1]), jnp.inf, values.dtype)
        index = jnp.where(faces < 0, len(below), faces)
        cofaces = jnp.broadcast_to(grades[0][:, None], (*faces.shape, values.shape[-1]))
        grades.insert(0, below.at[index].min(cofaces, mode="drop"))
    return Filtration(complex, tuple(grades))


def raise_to_faces(complex: Complex, grades: Sequence[Float[Array, "cells p"]]) -> Filtration:
    """A monotone filtration from any grades: cells are raised to the maximum of their faces, none is lowered."""
    raised = [jnp.where(complex.masks[0][:, None], grades[0], jnp.inf)]
    for faces, mask, own in zip(complex.faces[1:], complex.masks[1:], grades[1:], strict=True):
        highest = own
        for i in range(faces.shape[1]):
            face = jnp.where(faces[:, i, None] < 0, -jnp.inf, raised[-1][faces[:, i]])
            # jnp.maximum halves the gradient between equals; the first takes it all, as in `sort_lines`.
            highest = jnp.where(face > highest, face, highest)
        raised.append(jnp.where(mask[:, None], highest, jnp.inf))
    return Filtration(complex, tuple(raised))


def require_filtration(filtration: Filtration) -> None:
    """Raises InputError on wrong shapes, NaN, or a cell below one of its faces; the first is named."""
    complex, grades = filtration
    if len(grades) != len(complex.faces):
        raise InputError(f"grades has {len(grades)} dimensions, but the complex has {len(complex.faces)}")
    for dimension, (own, size) in enumerate(zip(grades, complex.sizes, strict=True)):
        require_shape(f"grades[{dimension}]", own, (size, filtration.parameters))
        require_no_nan(f"grades[{dimension}]", own, infinite=True)
        if dimension and is_concrete(filtration):
            _require_monotone(complex, np.asarray(grades[dimension - 1]), np.asarray(own), dimension)


def _require_monotone(complex: Complex, below: np.ndarray, own: np.ndarray, dimension: int) -> None:
    faces, mask = np.asarray(complex.faces[dimension]), np.asarray(complex.masks[dimension])
    wrong = (below[faces] > own[:, None]).any(-1) & (faces >= 0) & mask[:, None]
    if wrong.any():
        cell, place = (int(i) for i in np.argwhere(wrong)[0])
        face = int(faces[cell, place])
        raise InputError(
            f"the filtration is not monotone: cell {cell} of dimension {dimension} has grade {own[cell].tolist()}, "
            f"but its face {face} has {below[face].tolist()}; raise_to_faces repairs it"
        )
