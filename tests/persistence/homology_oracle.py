"""Homology of sublevel complexes by plain elimination over Z/2, and random filtrations to try it on."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from jaxlab import persistence


def rank_z2(matrix):
    matrix = np.array(matrix, bool)
    rank = 0
    for column in range(matrix.shape[1]):
        rows = np.flatnonzero(matrix[rank:, column]) + rank
        if not len(rows):
            continue
        matrix[[rank, rows[0]]] = matrix[[rows[0], rank]]
        others = np.flatnonzero(matrix[:, column])
        matrix[others[others != rank]] ^= matrix[rank]
        rank += 1
        if rank == len(matrix):
            break
    return rank


def null_space(matrix):
    """A basis of the vectors that a matrix over Z/2 sends to zero, as columns."""
    rows, size = matrix.shape
    work = np.concatenate([matrix.T, np.eye(size, dtype=bool)], axis=1)
    done = 0
    for column in range(rows):
        pivots = np.flatnonzero(work[done:, column]) + done
        if not len(pivots):
            continue
        work[[done, pivots[0]]] = work[[pivots[0], done]]
        others = np.flatnonzero(work[:, column])
        work[others[others != done]] ^= work[done]
        done += 1
    return work[done:, rows:].T


def boundary_matrix(faces, rows):
    matrix = np.zeros((rows, len(faces)), bool)
    for column, own in enumerate(faces):
        matrix[own[own >= 0], column] = True
    return matrix


def betti_numbers(filtration, point):
    """dim H_i(K_x; Z/2) for every i, and the Euler characteristic."""
    complex, grades = filtration
    there = [
        np.asarray((g <= np.asarray(point)).all(-1)) & np.asarray(m)
        for g, m in zip(grades, complex.masks, strict=True)
    ]
    ranks = [0]
    for k in range(1, complex.dimension + 1):
        matrix = boundary_matrix(np.asarray(complex.faces[k]), complex.sizes[k - 1])
        ranks.append(rank_z2(matrix[there[k - 1]][:, there[k]]) if there[k].any() else 0)
    ranks.append(0)
    counts = [int(t.sum()) for t in there]
    betti = [counts[k] - ranks[k] - ranks[k + 1] for k in range(complex.dimension + 1)]
    return betti, sum((-1) ** k * count for k, count in enumerate(counts))


def hilbert_functions(filtration, grid):
    """[degree, *lines] and the Euler surface, at every point of a grid."""
    lines = [np.asarray(c) for c in grid.coords]
    found = [betti_numbers(filtration, point) for point in itertools.product(*lines)]
    betti = np.array([b for b, _ in found]).T.reshape(-1, *grid.shape)
    return betti, np.array([e for _, e in found]).reshape(grid.shape)


def random_filtration(seed, parameters, *, vertices=6, dimension=3, levels=4):
    """A random simplicial complex with random monotone grades, many of them equal."""
    rng = np.random.default_rng(seed)
    simplices, below = [], {(i,) for i in range(vertices)}
    for d in range(1, dimension + 1):
        own = [
            s
            for s in itertools.combinations(range(vertices), d + 1)
            if all(f in below for f in itertools.combinations(s, d)) and rng.random() < 0.75
        ]
        simplices.append(np.array(own).reshape(-1, d + 1))
        below = set(own)
    complex = persistence.simplicial_complex(vertices, *simplices)
    # In NumPy: JAX would compile a program for every size that occurs.
    grades = [rng.integers(0, levels, (size, parameters)) / 2 for size in complex.sizes]
    for k in range(1, len(grades)):
        grades[k] = np.maximum(grades[k], grades[k - 1][np.asarray(complex.faces[k])].max(1))
    return persistence.Filtration(complex, tuple(jnp.asarray(own, jnp.float32) for own in grades))


def padded(filtration, sizes=(6, 15, 20, 15)):
    """The filtration with masked cells that never enter, so that one program does for many complexes."""
    complex = persistence.pad_complex(filtration.complex, sizes)
    grades = []
    for k, size in enumerate(complex.sizes):
        own = np.full((size, filtration.parameters), np.inf, filtration.grades[0].dtype)
        if k < len(filtration.grades):
            own[: len(filtration.grades[k])] = filtration.grades[k]
        grades.append(jnp.asarray(own))
    return persistence.Filtration(dataclasses.replace(complex, no_two_cycles=False), tuple(grades))


def exact_grid(filtration):
    return persistence.distinct_lines(persistence.make_grid(filtration.values))


def atoms(measure):
    """{point: weight} of a measure, from its dense or sparse form."""
    if hasattr(measure, "grid"):
        weights = np.asarray(measure.weights)
        where = np.argwhere(weights)
        points = [tuple(float(measure.grid.coords[a][i]) for a, i in enumerate(w)) for w in where]
        return {point: int(weights[tuple(w)]) for point, w in zip(points, where, strict=True)}
    found = {}
    for point, weight in zip(
        measure.points[measure.mask].tolist(), measure.weights[measure.mask].tolist(), strict=True
    ):
        found[tuple(point)] = found.get(tuple(point), 0) + weight
    return {point: weight for point, weight in found.items() if weight}
