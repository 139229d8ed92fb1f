"""Filtrations and measures to and from other programs: scc2020 text, `.npz` lists of atoms, networkx graphs.

scc2020 is the text that mpfree, multi_chunk and multipers read: the name, the number of parameters, how many cells each
dimension has, the highest first, and a line a cell, its grade, a semicolon and its faces by their place among the cells
one dimension lower; # starts a comment. Sizes of presentations end with a 0, of a dimension below the generators.
Reference: Kerber and Lesnick, "scc2020: a file format for sparse chain complexes in TDA", 2021.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlab.data.graphs import LabelledGraph
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file
from jaxlab.persistence.complexes import cell_complex
from jaxlab.persistence.filtrations import Filtration, require_filtration
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, atoms_of

_NAME = "scc2020"


def to_scc(filtration: Filtration) -> str:
    """The text of a filtration by any number of parameters; cells that never enter are left out.

    Grades are written with as many digits as give the same numbers back.

    Raises:
      InputError: a filtration that is not monotone or has NaN.
    """
    require_filtration(filtration)
    complex = filtration.complex
    grades = [np.asarray(own) for own in filtration.grades]
    there = [
        np.isfinite(own).all(1) & np.asarray(mask) for own, mask in zip(grades, complex.masks, strict=True)
    ]
    lines = [_NAME, str(filtration.parameters), " ".join(str(int(own.sum())) for own in there[::-1])]
    for dimension in range(complex.dimension, -1, -1):
        place = np.cumsum(there[dimension - 1]) - 1 if dimension else np.zeros(0, int)
        for cell in np.flatnonzero(there[dimension]):
            faces = np.asarray(complex.faces[dimension])[cell]
            grade = " ".join(str(value) for value in grades[dimension][cell])
            lines.append(" ".join([grade, ";", *(str(place[face]) for face in faces if face >= 0)]))
    return "\n".join(lines) + "\n"


def from_scc(text: str, *, dtype: Any = np.float32) -> Filtration:
    """The filtration of a text, over Z/2, as a chain complex (`cell_complex`).

    Args:
      text: with at least one generator; dimensions below the lowest one that has any are left out, so that it is 0.
      dtype: of the grades.

    Raises:
      InputError: not such a text, with the line that is wrong; coefficients other than 1; grades that are not finite or
        not monotone; or boundaries that are not closed.
    """
    lines = [(i, own) for i, line in enumerate(text.splitlines(), 1) if (own := line.split("#")[0].strip())]
    if len(lines) < 3 or lines[0][1].lower() != _NAME:
        raise InputError(f"the text must begin with {_NAME}, the number of parameters, and sizes")
    (parameters,), sizes = _numbers(*lines[1], count=1), _numbers(*lines[2])
    while len(sizes) > 1 and sizes[-1] == 0:
        sizes.pop()
    if parameters < 1 or min(sizes) < 0 or sum(sizes) != len(lines) - 3:
        raise InputError(
            f"the text has {len(lines) - 3} cells by {parameters} parameters, but its sizes are {sizes}"
        )
    rest, faces, grades = iter(lines[3:]), [], []
    for size in sizes:
        cells = [_cell(*next(rest), parameters) for _ in range(size)]
        width = max((len(own) for _, own in cells), default=0)
        faces.append(
            np.array([own + [-1] * (width - len(own)) for _, own in cells], int).reshape(size, width)
        )
        grades.append(np.array([grade for grade, _ in cells], dtype).reshape(size, parameters))
    complex = cell_complex(faces[::-1])
    filtration = Filtration(complex, tuple(jnp.asarray(own) for own in grades[::-1][: len(complex.faces)]))
    require_filtration(filtration)
    return filtration


def _cell(number: int, line: str, parameters: int) -> tuple[list[float], list[int]]:
    grade, semicolon, faces = line.partition(";")
    try:
        values = [float(value) for value in grade.split()]
    except ValueError as error:
        raise InputError(f"line {number} is {line!r}; its grade must be numbers") from error
    if not semicolon or len(values) != parameters or not np.isfinite(values).all():
        raise InputError(f"line {number} is {line!r}; it must be {parameters} finite numbers, ; and faces")
    return values, _numbers(number, faces)


def _numbers(number: int, line: str, count: int | None = None) -> list[int]:
    words = line.split()
    if not all(word.isdigit() for word in words) or count not in (None, len(words)):
        raise InputError(
            f"line {number} has {line.strip()!r}, but must have whole numbers there, without coefficients"
        )
    return [int(word) for word in words]


def write_measures(path: str | Path, measures: Sequence[DenseMeasure | SparseMeasure]) -> None:
    """Atoms of measures, often one a degree of homology, as `points_0`, `weights_0`, `points_1`, ... of an `.npz` file.

    `points_i` is [atoms, p] and `weights_i` int[atoms], as multipers has signed measures; places without an atom are
    left out.

    Raises:
      ResourceError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, measure in enumerate(measures):
        atoms = atoms_of(measure)
        there = np.asarray(atoms.mask) & (np.asarray(atoms.weights) != 0)
        arrays[f"points_{i}"], arrays[f"weights_{i}"] = (np.asarray(a)[there] for a in atoms[:2])
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stubs see a keyword of savez


def read_measures(path: str | Path) -> list[SparseMeasure]:
    """What `write_measures` has written, or another program in the same form.

    Raises:
      InputError: not such a file.
      ResourceError: it cannot be read.
    """
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error}") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npz file of arrays: {error}") from error
    count = sum(name.startswith("points_") for name in arrays)
    expected = {f"{kind}_{i}" for kind in ("points", "weights") for i in range(count)}
    if set(arrays) != expected:
        raise InputError(f"{path} has arrays {sorted(arrays)}, but must have {sorted(expected)}")
    measures = []
    for i in range(count):
        points, weights = arrays[f"points_{i}"], arrays[f"weights_{i}"]
        if points.ndim != 2 or weights.shape != points.shape[:1] or (weights % 1).any():
            raise InputError(
                f"{path}: points_{i} has shape {points.shape} and weights_{i} {weights.shape}; they must be "
                "(atoms, p) and (atoms,), weights being whole numbers"
            )
        mask = np.ones(len(points), bool)
        own = SparseMeasure(jnp.asarray(points), jnp.asarray(weights, jnp.int32), jnp.asarray(mask))
        measures.append(own)
    return measures


def from_networkx(
    graph: Any, *, label: int = 0, attributes: Sequence[str] = ()
) -> tuple[LabelledGraph, list[Any]]:
    """A networkx graph as `GraphFunctions` takes it, and its nodes in the order of the vertices.

    Directions, weights and parallel edges are not looked at.

    Args:
      graph: without loops.
      label: class of the graph.
      attributes: names of numeric attributes that every node has, to be `vertex_attributes`.

    Raises:
      InputError: a loop, or a node without one of the attributes.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    edges = sorted({tuple(sorted((place[a], place[b]))) for a, b in graph.edges()})
    loops = [nodes[a] for a, b in edges if a == b]
    if loops:
        raise InputError(f"the graph has a loop at node {loops[0]!r}; remove it")
    for node in nodes:
        missing = [name for name in attributes if name not in graph.nodes[node]]
        if missing:
            raise InputError(f"node {node!r} has no attribute {missing[0]!r}")
    rows: Float[np.ndarray, "vertices d"] = np.array(
        [[graph.nodes[node][name] for name in attributes] for node in nodes], float
    ).reshape(len(nodes), len(attributes))
    found = np.array(edges, int).reshape(-1, 2)
    return LabelledGraph(len(nodes), found, label, np.zeros((len(nodes), 0), int), rows), nodes
