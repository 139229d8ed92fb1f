"""Graphs and their cuts, for QAOA."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError, ResourceError
from jaxlab.quantum.pauli_sums import PauliSum, from_masks

MOST_NODES = 24
"""More amplitudes than 2^24 take minutes on a laptop."""


class Graph(NamedTuple):
    """An undirected graph; node i is wire i."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    """Each once, the smaller node first, sorted."""
    weights: tuple[float, ...]
    """One for each edge."""

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.nodes)


_NAMED = {
    "petersen": "petersen_graph",
    "florentine": "florentine_families_graph",
    "heawood": "heawood_graph",
    "frucht": "frucht_graph",
    "dodecahedral": "dodecahedral_graph",
    "krackhardt": "krackhardt_kite_graph",
}


def graph(source: str, *, seed: int = 0) -> Graph:
    """A graph by name, drawn at random, or from a file.

    Args:
      source: petersen, florentine (marriages between families of Florence), heawood, frucht, dodecahedral, krackhardt;
        `regular:DEGREE,NODES`, drawn at random; or the path of a file with `NODE NODE [WEIGHT]` on each line.
      seed: of a random graph.

    Raises:
      InputError: an unknown name, impossible numbers, a file that cannot be read, no edges, or more than 24 nodes.
      ResourceError: networkx is not installed.
    """
    if source in _NAMED:
        return _from_networkx(getattr(_networkx(), _NAMED[source])())
    if source.startswith("regular:"):
        try:
            degree, nodes = (int(part) for part in source.removeprefix("regular:").split(","))
            drawn = _networkx().random_regular_graph(degree, nodes, seed=seed)
        except (ValueError, _networkx().NetworkXError) as error:
            raise InputError(f"graph is {source!r}; it must be regular:DEGREE,NODES: {error}") from error
        return _from_networkx(drawn)
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"graph is {source!r}; it must be one of {', '.join(_NAMED)}, regular:DEGREE,NODES or a file of edges"
        )
    return _from_file(path)


def from_edges(edges: dict[tuple[Any, Any], float]) -> Graph:
    """A graph from its edges and their weights; nodes are sorted by name where they sort, else in order of appearance.

    Raises:
      InputError: no edges, a loop, an edge twice, a weight that is not finite, or more than 24 nodes.
    """
    names = list(dict.fromkeys(itertools.chain.from_iterable(edges)))
    try:
        names.sort()
    except TypeError:
        pass
    place = {name: i for i, name in enumerate(names)}
    found: dict[tuple[int, int], float] = {}
    for (a, b), weight in edges.items():
        if a == b:
            raise InputError(f"edge {a} - {b} joins a node to itself")
        key = (min(place[a], place[b]), max(place[a], place[b]))
        if key in found:
            raise InputError(f"edge {a} - {b} stands twice")
        if not np.isfinite(weight):
            raise InputError(f"edge {a} - {b} has the weight {weight}; it must be finite")
        found[key] = float(weight)
    if not found:
        raise InputError("the graph has no edges")
    if len(names) > MOST_NODES:
        raise InputError(f"the graph has {len(names)} nodes; there may be up to {MOST_NODES}")
    ordered = sorted(found)
    return Graph(tuple(map(str, names)), tuple(ordered), tuple(found[edge] for edge in ordered))


def cut_hamiltonian(of: Graph) -> PauliSum:
    """C = sum over edges of weight (1 - Z Z) / 2: the weight of the edges between ones and zeros."""
    masks = [sum(1 << (of.n - 1 - node) for node in edge) for edge in of.edges]
    weights = np.array(of.weights)
    c = np.concatenate([-weights / 2, [weights.sum() / 2]])
    return from_masks(np.zeros(len(c), np.int64), np.array([*masks, 0]), c, of.n)


def cut_values(of: Graph) -> Float[np.ndarray, " 2^n"]:
    """The weight of every cut, by the bits of its index: wire 0 is the most significant."""
    index = np.arange(1 << of.n, dtype=np.int64)
    total = np.zeros(1 << of.n)
    for (a, b), weight in zip(of.edges, of.weights, strict=True):
        total += weight * ((index >> (of.n - 1 - a) ^ index >> (of.n - 1 - b)) & 1)
    return total


def one_layer_expectation(of: Graph, gamma: Any, beta: Any) -> Float[Array, ""]:
    """<C> of QAOA with one layer, in closed form. Reference: Wang et al., arXiv:1706.02998, theorem 1.

    Args:
      of: weights must be 1.
      gamma: real scalar, radians.
      beta: real scalar, radians.

    Raises:
      InputError: a weight is not 1.
    """
    if set(of.weights) != {1.0}:
        raise InputError("the closed form holds for weights of 1 alone")
    neighbours: list[set[int]] = [set() for _ in of.nodes]
    for a, b in of.edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    total = jnp.zeros(())
    cosine = jnp.cos(gamma)
    for a, b in of.edges:
        d, e = (len(neighbours[node]) - 1 for node in (a, b))
        triangles = len(neighbours[a] & neighbours[b])
        single = jnp.sin(4 * beta) * jnp.sin(gamma) * (cosine**d + cosine**e) / 4
        double = (
            jnp.sin(2 * beta) ** 2
            * cosine ** (d + e - 2 * triangles)
            * (1 - jnp.cos(2 * gamma) ** triangles)
            / 4
        )
        total += 0.5 + single - double
    return total


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise ResourceError(f"graphs need networkx: pip install 'jaxlab[quantum]' ({error})") from error
    return networkx


def _from_networkx(source: Any) -> Graph:
    # Names are unique, but may be of several types.
    return from_edges(dict.fromkeys(source.edges(), 1.0))


def _from_file(path: Path) -> Graph:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    edges: dict[tuple[str, str], float] = {}
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        try:
            a, b, weight = parts[0], parts[1], float(parts[2]) if len(parts) > 2 else 1.0
        except (IndexError, ValueError) as error:
            raise InputError(f"{path}, line {number} is {line!r}; it must be NODE NODE [WEIGHT]") from error
        if (a, b) in edges or (b, a) in edges:
            raise InputError(f"{path}, line {number}: edge {a} - {b} stands twice")
        edges[a, b] = weight
    return from_edges(edges)
