"""Signed measures of whole data sets by multipers, H_0 and H_1, on many grids, as weights on their lines."""

import sys

import numpy as np


def main(given: str, written: str) -> None:
    """Reads filtrations and, numbered from 0, `values_k` of all points or nodes and grids, `lines0_k` and `lines1_k`.

    Graphs are `nodes`, `edge_counts` and `edges`, filtered by two functions; clouds are `distances` [clouds, n, n],
    filtered by distance and a function. multipers rounds grades to the nearest line; with `round_up` they are at lines
    already. Writes `weights`, int32 [grids, 2, samples, lines, lines].
    """
    inputs = dict(np.load(given))
    build = clouds if "distances" in inputs else graphs
    found = []
    while f"values_{len(found)}" in inputs:
        k = len(found)
        grid = [inputs[f"lines{i}_{k}"] for i in (0, 1)]
        rounded = round_up if inputs["round_up"] else as_given
        measures = [counted(tree, grid) for tree in build(inputs, inputs[f"values_{k}"], grid, rounded)]
        found.append(np.stack(measures, 1))
    np.savez(written, weights=np.stack(found))


def graphs(inputs, values, grid, rounded):
    """Lower-star filtrations, one after the other."""
    import multipers as mp

    values = np.stack([rounded(values[:, i], grid[i]) for i in (0, 1)], 1)
    owns = np.split(values, np.cumsum(inputs["nodes"])[:-1])
    edges = np.split(inputs["edges"], np.cumsum(inputs["edge_counts"])[:-1])
    for own, pairs in zip(owns, edges, strict=True):
        grades = np.maximum(own[pairs[:, 0]], own[pairs[:, 1]])
        tree = mp.SimplexTreeMulti(num_parameters=2, dtype=np.float64)
        born, there = np.isfinite(own).all(1), np.isfinite(grades).all(1)
        tree.insert_batch(np.flatnonzero(born)[None], own[born])
        tree.insert_batch(pairs[there].T, grades[there])
        yield tree


def clouds(inputs, values, grid, rounded):
    """Function-Rips filtrations of the whole flag complexes, edges collapsed."""
    from multipers.filtrations import RipsLowerstar

    for distances, own in zip(inputs["distances"], values, strict=True):
        # The last line of a training set may be shorter than a distance in a test set: never, for multipers.
        scale, function = rounded(distances.astype(np.float64), grid[0]), rounded(own, grid[1])
        born = np.isfinite(function)
        tree = RipsLowerstar(
            distance_matrix=scale[np.ix_(born, born)], function=function[born], threshold_radius=grid[0][-1]
        )
        tree.collapse_edges(-1)
        tree.expansion(2)
        yield tree


def counted(tree, grid):
    """Weights on the lines, [2, lines, lines]."""
    import multipers as mp

    found = np.zeros((2, *(len(lines) for lines in grid)), np.int32)
    measures = mp.signed_measure(tree, degrees=[0, 1], grid=grid, coordinate_measure=True)
    for dense, (points, weights) in zip(found, measures, strict=True):
        np.add.at(dense, tuple(np.asarray(points).astype(int).T), weights)
    return found


def as_given(values, lines):
    """The values."""
    return values


def round_up(values, lines):
    """Every value moved to the first line at or above it; +inf where there is none."""
    return np.append(lines, np.inf)[np.searchsorted(lines, values)]


if __name__ == "__main__":
    main(*sys.argv[1:])
