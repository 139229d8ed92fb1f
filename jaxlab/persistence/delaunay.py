"""Delaunay triangulations, on the host: a complex of linear size that stays while the points move a little."""

from itertools import combinations

import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError, ResourceError
from jaxlab.persistence.checks import is_concrete, require_no_nan, require_shape
from jaxlab.persistence.complexes import Complex, simplicial_complex


def delaunay_complex(points: Float[Array, "n d"]) -> Complex:
    """The Delaunay triangulation of points in the plane or in space, with all faces.

    In the plane it has no 2-cycles, so `hilbert_planar` applies to any filtration of it.

    Args:
      points: at least d + 1, not all in one hyperplane, all different; concrete, not under jit.

    Raises:
      InputError: too few points, NaN, equal or degenerate points, or traced ones.
      ResourceError: scipy is not installed.
    """
    require_shape("points", points, (None, None))
    if not is_concrete(points):
        raise InputError(
            "points are traced; delaunay_complex runs on the host, so call it outside of jit, vmap and grad"
        )
    require_no_nan("points", points)
    array = np.asarray(points, np.float64)
    n, d = array.shape
    if d < 2 or n < d + 1:
        raise InputError(
            f"points has shape {array.shape}; at least d + 1 points in d >= 2 dimensions are needed"
        )
    try:
        from scipy.spatial import Delaunay, QhullError
    except ImportError as error:
        raise ResourceError(f"Delaunay needs scipy: pip install 'jaxlab[persistence]' ({error})") from error
    try:
        found = Delaunay(array)
    except QhullError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"points lie in a hyperplane or are equal, so they have no triangulation ({reason})"
        ) from error
    if len(found.coplanar):
        left, _, nearest = found.coplanar[0]
        raise InputError(f"point {left} is left out of the triangulation: it (nearly) equals point {nearest}")
    simplices: list[np.ndarray] = []
    for size in range(2, d + 2):
        faces = np.concatenate([found.simplices[:, list(c)] for c in combinations(range(d + 1), size)])
        simplices.append(np.unique(np.sort(faces, axis=1), axis=0))
    return simplicial_complex(n, *simplices)
