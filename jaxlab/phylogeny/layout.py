"""Where to draw the nodes of a tree: as a ladder from the root, or spread around the middle.

Reference: Felsenstein, "Inferring Phylogenies", 2004, chapter 34 (drawing trees; the equal-angle method).
"""

import numpy as np
from jaxtyping import Float

from jaxlab.phylogeny.trees import Phylogeny


def ladder_layout(tree: Phylogeny) -> Float[np.ndarray, "nodes 2"]:
    """Depth below the top, and height: taxa at 0, 1, 2, ... in the order of the tree, parents amid their children.

    Negative and unknown lengths are drawn as 0.
    """
    points = np.zeros((len(tree.names), 2))
    lengths = _drawn(tree)
    for node in range(len(tree.names) - 2, -1, -1):
        points[node, 0] = points[tree.parents[node], 0] + lengths[node]
    for node, below in enumerate(tree.children):
        points[node, 1] = np.mean(points[below, 1]) if below else node
    return points


def equal_angle_layout(tree: Phylogeny) -> Float[np.ndarray, "nodes 2"]:
    """Points such that every edge has its length and its taxa a share of the circle; no two edges cross.

    Negative and unknown lengths are drawn as 0.
    """
    taxa = len(tree.taxa)
    size = np.array([1] * taxa + [0] * (len(tree.names) - taxa))
    for node, parent in enumerate(tree.parents[:-1]):
        size[parent] += size[node]
    lengths, children = _drawn(tree), tree.children
    points, start = np.zeros((len(tree.names), 2)), np.zeros(len(tree.names))
    for node in range(len(tree.names) - 1, -1, -1):
        angle = start[node]
        for child in children[node]:
            start[child] = angle
            wide = 2 * np.pi * size[child] / taxa
            middle = angle + wide / 2
            points[child] = points[node] + lengths[child] * np.array([np.cos(middle), np.sin(middle)])
            angle += wide
    return points


def branch_families(tree: Phylogeny, family_of: dict[str, str]) -> list[str]:
    """Family of the taxa below each node; "" where they are of several, or of none."""
    found: list[set[str]] = [{family_of.get(name, "")} for name in tree.taxa]
    found += [set() for _ in tree.names[len(tree.taxa) :]]
    for node, parent in enumerate(tree.parents[:-1]):
        found[parent] |= found[node]
    return [next(iter(families)) if len(families) == 1 else "" for families in found]


def _drawn(tree: Phylogeny) -> Float[np.ndarray, " nodes"]:
    return np.maximum(np.nan_to_num(tree.lengths), 0)
