"""Labelled graphs in the format of the TU Dortmund collection: those that the package `grakel` ships, or a folder.

Morris et al., "TUDataset: a collection of benchmark datasets for learning with graphs", arXiv:2007.08663; MUTAG is of
Debnath et al., 1991, Cuneiform of Kriege et al., arXiv:1802.05908. Nothing is shipped with us.
"""

import hashlib
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import cache_dir
from jaxlab.models.packages import fetched_wheel

_GRAKEL_VERSION = "0.1.11"
# SHA-256 of all files, one after the other by name: the wheel itself differs from platform to platform.
TU = {
    "MUTAG": "7e02aca6050a6f38f9318819b2a7ac4269131a1b5548de5481c699a55fa149bb",
    "Cuneiform": "097b036d71d855d9d59e71a369364a46194aeae8da1aa82639f23f0059ad636b",
}
"""Names that `tu_graphs` knows."""


class LabelledGraph(NamedTuple):
    """An undirected graph without loops, every edge once."""

    vertices: int
    edges: Int[np.ndarray, "edges 2"]
    """Smaller end first, in lexicographic order."""
    label: int
    """Class, 0 to classes - 1."""
    vertex_labels: Int[np.ndarray, "vertices k"]
    """k may be 0."""
    vertex_attributes: Float[np.ndarray, "vertices d"]
    """d may be 0."""


def tu_graphs(name: str | Path) -> list[LabelledGraph]:
    """All graphs of a set.

    Args:
      name: "MUTAG" (188 molecules), "Cuneiform" (267 signs), or a folder NAME with NAME_A.txt and so on.

    Raises:
      InputError: unknown name, or a file of the folder is missing or damaged.
      ResourceError: the package cannot be fetched, or has the wrong checksum.
    """
    if str(name) in TU:
        folder = _cached(str(name))
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"graphs {str(name)!r} are not known; known are {', '.join(TU)}, or give a folder"
            )
    return _read(folder)


def _cached(name: str) -> Path:
    folder = cache_dir("data") / name
    if not folder.exists():
        root = f"grakel/tests/data/{name}/"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            fetched_wheel("grakel", _GRAKEL_VERSION) as wheel,
            zipfile.ZipFile(wheel) as archive,
            tempfile.TemporaryDirectory(dir=folder.parent) as directory,
        ):
            whole = Path(directory, name)
            whole.mkdir()
            for member in archive.namelist():
                if member.startswith(f"{root}{name}_"):
                    (whole / member.removeprefix(root)).write_bytes(archive.read(member))
            try:
                whole.rename(folder)  # all files or none
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    found = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob(f"{name}_*.txt"))))
    if found.hexdigest() != TU[name]:
        raise ResourceError(
            f"{folder}: has the wrong checksum {found.hexdigest()}; delete the folder and run again to fetch it anew"
        )
    return folder


def _read(folder: Path) -> list[LabelledGraph]:
    edges = _table(folder, "A", int) - 1
    graph_of = _table(folder, "graph_indicator", int)[:, 0] - 1
    labels = np.unique(_table(folder, "graph_labels", int)[:, 0], return_inverse=True)[1]
    n = len(graph_of)
    marks, attributes = (
        _table(folder, what, kind, rows=n)
        for what, kind in (("node_labels", int), ("node_attributes", float))
    )
    if edges.shape[1] != 2 or (edges.size and not 0 <= edges.min() <= edges.max() < n):
        raise InputError(f"{folder}: {folder.name}_A.txt names vertices beyond the {n} that there are")
    if len(labels) <= graph_of.max(initial=0) or np.any(np.diff(graph_of) < 0):
        raise InputError(
            f"{folder}: {folder.name}_graph_indicator.txt must rise from 1 to the {len(labels)} graphs that have labels"
        )
    if len(edges) and np.any(graph_of[edges[:, 0]] != graph_of[edges[:, 1]]):
        raise InputError(f"{folder}: {folder.name}_A.txt has an edge between two graphs")
    ends = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    first = np.searchsorted(graph_of, np.arange(len(labels) + 1))
    edge_first = np.searchsorted(
        graph_of[ends[:, 0]] if len(ends) else ends[:, 0], np.arange(len(labels) + 1)
    )
    return [
        LabelledGraph(
            int(last - start),
            ends[edge_first[i] : edge_first[i + 1]] - start,
            int(labels[i]),
            marks[start:last],
            attributes[start:last],
        )
        for i, (start, last) in enumerate(zip(first[:-1], first[1:], strict=True))
    ]


def _table(folder: Path, what: str, kind: type[int] | type[float], rows: int | None = None) -> np.ndarray:
    """Rows of numbers; with `rows` the file may be missing, and there is nothing in them then."""
    path = folder / f"{folder.name}_{what}.txt"
    if not path.is_file():
        if rows is not None:
            return np.zeros((rows, 0), kind)
        raise InputError(f"{path}: is missing")
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        found = [[kind(value) for value in line.split(",")] for line in lines if line.strip()]
        table = np.array(found, kind)
    except ValueError as error:
        raise InputError(f"{path}: does not hold rows of numbers of one length: {error}") from error
    if table.ndim != 2 or (rows is not None and len(table) != rows):
        raise InputError(f"{path}: holds {len(table)} rows; {rows} are needed")
    return table
