"""Neighbour joining by scikit-bio and Biopython: seconds a tree, and scikit-bio's trees as parents of nodes.

Reads `distances` [trees, taxa, taxa], `timed` (how many of them to time) and `biopython` (how many of these it does as
well). Writes `seconds` and `biopython_seconds`, of each timed tree, and `sides`, bool [trees, taxa - 3, taxa]: the side
without the first taxon of every split, in the order of their bytes.
"""

import sys
import time

import numpy as np
import skbio
from Bio.Phylo.TreeConstruction import DistanceMatrix, DistanceTreeConstructor


def sides_of(tree, taxa):
    """The proper splits of a tree."""
    found = []
    for node in tree.postorder(include_self=True):
        below = np.zeros(taxa, bool)
        if node.is_tip():
            below[int(node.name[1:])] = True
        for child in node.children:
            below |= child.below
        node.below = below
        if 2 <= below.sum() <= taxa - 2:
            found.append(~below if below[0] else below)
    return np.unique(np.array(found), axis=0)


def main(given, written):
    """Runs both on what is given."""
    with np.load(given) as inputs:
        distances = inputs["distances"].astype(np.float64)
        distances = (distances + np.swapaxes(distances, 1, 2)) / 2  # rounding may differ on the two sides
        timed, biopython = int(inputs["timed"]), int(inputs["biopython"])
    taxa = distances.shape[1]
    names = [f"t{i}" for i in range(taxa)]
    sides, seconds, slow = [], [], []
    skbio.tree.nj(skbio.DistanceMatrix(distances[0], names), neg_as_zero=False)
    for b, matrix in enumerate(distances):
        whole = skbio.DistanceMatrix(matrix, names)
        began = time.perf_counter()
        tree = skbio.tree.nj(whole, neg_as_zero=False)
        if b < timed:
            seconds.append(time.perf_counter() - began)
        sides.append(sides_of(tree, taxa))
    for matrix in distances[:biopython]:
        lower = [[float(matrix[i, j]) for j in range(i + 1)] for i in range(taxa)]
        began = time.perf_counter()
        DistanceTreeConstructor().nj(DistanceMatrix(names, lower))
        slow.append(time.perf_counter() - began)
    np.savez(written, seconds=seconds, biopython_seconds=slow, sides=np.array(sides))


if __name__ == "__main__":
    main(*sys.argv[1:])
