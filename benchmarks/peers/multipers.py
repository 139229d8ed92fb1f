"""Signed measures by multipers: function-Rips, images, graphs; and the graphs of MUTAG, which grakel ships.

Every result is a list of atoms (points, weights) with two series of seconds: `whole` from distances, pixels or edges to
the measure, `measure` for the last call alone on a complex that is there already.
"""

import sys
import time
from pathlib import Path

import numpy as np

DATA = "tests/data/MUTAG/MUTAG_"


def main(given: str, written: str) -> None:
    """Reads `task` and its arrays; writes what that task says."""
    inputs = dict(np.load(given))
    tasks = {"rips": rips, "image": image, "graphs": graphs, "complexes": complexes, "mutag": mutag}
    np.savez(written, **tasks[str(inputs["task"])](inputs))


def rips(inputs):
    """Euler measure of the full 2-skeleton, H_0 and H_1 of (distances, values) on the grid (lines0, lines1)."""
    import multipers as mp
    from multipers.filtrations import RipsLowerstar

    grid = [inputs["lines0"], inputs["lines1"]]

    def build(expand, collapse=False):
        tree = RipsLowerstar(
            distance_matrix=inputs["distances"], function=inputs["values"], threshold_radius=np.inf
        )
        if collapse:
            tree.collapse_edges(-1)
        if expand > 1:
            tree.expansion(expand)
        return tree

    n = int(inputs["repetitions"])
    return (
        timed("euler", lambda: build(2), lambda t: mp.signed_measure(t, invariant="euler", grid=grid), n)
        | timed("h0", lambda: build(1), lambda t: mp.signed_measure(t, degree=0, grid=grid), n)
        | timed("h1", lambda: build(2, True), lambda t: mp.signed_measure(t, degree=1, grid=grid), n)
    )


def image(inputs):
    """H_0 and H_1 of an image [h, w, 2] by vertices."""
    import multipers as mp
    from multipers.filtrations import Cubical

    grid = [inputs["lines0"], inputs["lines1"]]
    pixels, n = inputs["image"].astype(np.float64), int(inputs["repetitions"])
    return timed("h", lambda: Cubical(pixels), lambda c: mp.signed_measure(c, degrees=[0, 1], grid=grid), n)


def graphs(inputs):
    """H_0, H_1 and Euler measures of many lower-star graphs; atoms have the graph's number as first coordinate."""
    import multipers as mp

    grid = [inputs["lines0"], inputs["lines1"]]
    ends = np.cumsum(inputs["nodes"])[:-1]
    values = np.split(inputs["values"].astype(np.float64), ends)
    edges = np.split(inputs["edges"], np.cumsum(inputs["edge_counts"])[:-1])

    def build():
        trees = []
        for own, pairs in zip(values, edges, strict=True):
            tree = mp.SimplexTreeMulti(num_parameters=own.shape[1], dtype=np.float64)
            tree.insert_batch(np.arange(len(own))[None], own)
            if len(pairs):
                tree.insert_batch(pairs.T, np.maximum(own[pairs[:, 0]], own[pairs[:, 1]]))
            trees.append(tree)
        return trees

    def every(options):
        return lambda trees: [mp.signed_measure(tree, grid=grid, **options)[0] for tree in trees]

    n = int(inputs["repetitions"])
    kinds = {"h0": {"degree": 0}, "h1": {"degree": 1}, "euler": {"invariant": "euler"}}
    found = {}
    for name, options in kinds.items():
        found |= timed(name, build, every(options), n, numbered=True)
    return found


def complexes(inputs):
    """H_0, H_1 and Euler measures of many small simplicial complexes by p parameters, on one grid.

    `cells` counts the simplices of each dimension of each complex, `corners_k` and `grades_k` hold them all.
    """
    import multipers as mp

    parameters = inputs["grades_0"].shape[1]
    grid = [inputs[f"lines{i}"] for i in range(parameters)]
    dimensions = inputs["cells"].shape[1]
    split = []
    for k in range(dimensions):
        ends = np.cumsum(inputs["cells"][:, k])[:-1]
        split.append(
            list(
                zip(
                    np.split(inputs[f"corners_{k}"], ends), np.split(inputs[f"grades_{k}"], ends), strict=True
                )
            )
        )
    found = {}
    kinds = {"h0": {"degree": 0}, "h1": {"degree": 1}, "euler": {"invariant": "euler"}}

    def build():
        trees = []
        for own in zip(*split, strict=True):
            tree = mp.SimplexTreeMulti(num_parameters=parameters, dtype=np.float64)
            for corners, grades in own:
                if len(corners):
                    tree.insert_batch(corners.T, grades.astype(np.float64))
            trees.append(tree)
        return trees

    for name, options in kinds.items():
        found |= timed(
            name,
            build,
            lambda trees, o=options: [mp.signed_measure(tree, grid=grid, **o)[0] for tree in trees],
            1,
            numbered=True,
        )
    return found


def mutag(inputs):
    """Edges (each once, numbered within its graph), counts and class labels of the 188 graphs."""
    import grakel

    folder = Path(grakel.__file__).parent

    def read(name):
        return np.loadtxt(f"{folder / DATA}{name}.txt", delimiter=",", dtype=np.int64)

    edges, graph = read("A") - 1, read("graph_indicator") - 1
    nodes = np.bincount(graph)
    edges = edges[edges[:, 0] < edges[:, 1]]
    edges = edges[np.argsort(graph[edges[:, 0]], kind="stable")]
    first = np.cumsum(nodes) - nodes
    own = graph[edges[:, 0]]
    return {
        "nodes": nodes,
        "edges": edges - first[own][:, None],
        "edge_counts": np.bincount(own, minlength=len(nodes)),
        "labels": read("graph_labels"),
    }


def timed(name, build, measure, repetitions, numbered=False):
    """Atoms of the last repetition, and the seconds of all but a first one that does not count."""
    whole, last = [], []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        complex = build()
        middle = time.perf_counter()
        found = measure(complex)
        end = time.perf_counter()
        whole.append(end - start)
        last.append(end - middle)
    result = {f"{name}_whole": np.array(whole[1:]), f"{name}_measure": np.array(last[1:])}
    if numbered:
        result[f"{name}_points"] = np.concatenate(
            [np.insert(p, 0, i, axis=1) for i, (p, _) in enumerate(found)]
        )
        result[f"{name}_weights"] = np.concatenate([w for _, w in found])
    else:
        for i, (points, weights) in enumerate(found):
            key = name if len(found) == 1 else f"{name}{i}"
            result |= {f"{key}_points": points, f"{key}_weights": weights}
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
