"""Whether a 2-dimensional complex has a closed set of 2-cells, over Z/2, on the host.

H_1 = H_0 - Euler characteristic holds at every grade exactly when there is none: the 2-cycles of a subcomplex are
2-cycles of the whole. Subsets of the plane have none; spheres and full flag complexes do.
"""

from collections import defaultdict

import numpy as np


def has_two_cycle(faces: np.ndarray) -> bool:
    """Whether the columns of the boundary matrix are dependent.

    2-cells with an edge of their own are peeled off one after the other, which empties a subset of the plane in linear
    time; elimination decides about what is left.

    Args:
      faces: int[cells, faces], the edges of each 2-cell, -1 where there are fewer.
    """
    boundary = [frozenset(row[row >= 0].tolist()) for row in np.asarray(faces)]
    cofaces: dict[int, set[int]] = defaultdict(set)
    for cell, edges in enumerate(boundary):
        for edge in edges:
            cofaces[edge].add(cell)
    left = set(range(len(boundary)))
    free = [edge for edge, cells in cofaces.items() if len(cells) == 1]
    while free:
        cells = cofaces[free.pop()]
        if not cells:
            continue
        (cell,) = cells
        left.discard(cell)
        for edge in boundary[cell]:
            cofaces[edge].discard(cell)
            if len(cofaces[edge]) == 1:
                free.append(edge)
    owner: dict[int, frozenset[int]] = {}
    for cell in left:
        column = boundary[cell]
        while column and max(column) in owner:
            column = column ^ owner[max(column)]
        if not column:
            return True
        owner[max(column)] = column
    return False
