"""From samples (clouds, graphs, images) to filtrations by two or more functions, many samples at a time.

A source is fitted to training samples, reads samples, and counts: signed measures of all of them on one grid. The
filtrations are those of arXiv:2306.03801, section 4.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import require_no_nan, require_shape
from jaxlab.persistence.complexes import Complex, simplicial_complex, stack_complexes
from jaxlab.persistence.euler import euler_measure, euler_rips_measure
from jaxlab.persistence.filtrations import Filtration, lower_star
from jaxlab.persistence.graphs import adjacency_matrix, closeness, heat_kernel_signature, inverse_degree
from jaxlab.persistence.grids import Grid
from jaxlab.persistence.gudhi_slices import hilbert_rips_callback
from jaxlab.persistence.hilbert import signed_measure
from jaxlab.persistence.images import image_filtration
from jaxlab.persistence.measures import mobius
from jaxlab.persistence.points import codensity, pairwise_distance
from jaxlab.persistence.rips import function_rips, hilbert_h0_dense
from jaxlab.persistence.samples import Kind, Read, over_samples, require_few


class Source(Protocol):
    """What `SignedMeasureFeatures` needs."""

    def fit(self, samples: Any) -> "Source":
        """The source with what it learns from training samples."""
        ...

    def read(self, samples: Any) -> Read:
        """The filtrations of samples."""
        ...


@dataclasses.dataclass(frozen=True)
class CodensityRips:
    """Clouds of equally many points, [samples, points, coordinates], by distance and -log density."""

    bandwidth: float = -0.1
    """Of the density, in units of the points; if < 0, so many times the largest distance in a training cloud."""

    def fit(self, samples: Float[np.ndarray, "samples points d"]) -> "CodensityRips":
        """With an absolute bandwidth."""
        if self.bandwidth > 0:
            return self
        if not self.bandwidth < 0:
            raise InputError(f"bandwidth is {self.bandwidth}, but must not be 0")
        largest = float(jnp.max(_distances(samples)))
        if not largest > 0:
            raise InputError("all points of the training clouds are one: no bandwidth can be a share of 0")
        return CodensityRips(-self.bandwidth * largest)

    def read(self, samples: Float[np.ndarray, "samples points d"]) -> Read:
        """See `Source`."""
        distances = _distances(samples)
        functions = jax.lax.map(functools.partial(codensity, bandwidth=self.bandwidth), distances)
        i, j = np.triu_indices(distances.shape[1], 1)
        scale = np.append(0, np.asarray(distances[:, i, j]).reshape(-1))

        return Read((scale, np.asarray(functions).reshape(-1)), (distances, functions[..., None]), _CLOUDS)


def _cloud_hilbert(cloud: tuple[Array, Array], grid: Grid, *, degree: int) -> Array:
    if degree == 0:
        return mobius(hilbert_h0_dense(*cloud, grid))
    return mobius(hilbert_rips_callback(*cloud, grid, degree=degree))


def _cloud_euler(cloud: tuple[Array, Array], grid: Grid) -> Array:
    return euler_rips_measure(*cloud, grid).weights


def _cloud_filtration(cloud: tuple[Array, Array], *, degree: int) -> Filtration:
    require_few(math.comb(len(cloud[0]), degree + 2), degree)
    return function_rips(*cloud, max_dim=degree + 1)


_CLOUDS = Kind(_cloud_hilbert, _cloud_euler, _cloud_filtration)


def _distances(samples: Any) -> Array:
    clouds = jnp.asarray(samples)
    require_shape("samples", clouds, (None, None, None))
    require_no_nan("samples", clouds)
    return jax.lax.map(pairwise_distance, clouds)


_BATCH = 64

FUNCTIONS: dict[str, Callable[[Array, float], Array]] = {
    "degree": lambda adjacency, _: inverse_degree(adjacency),
    "closeness": lambda adjacency, _: closeness(adjacency),
    "hks": lambda adjacency, time: heat_kernel_signature(adjacency, time=time),
}
"""On the vertices of a graph; "hks:10" gives the number behind the colon."""


@dataclasses.dataclass(frozen=True)
class GraphFunctions:
    """Graphs (with `vertices` and `edges`, as `jaxlab.data.tu_graphs` gives them) by functions on their vertices."""

    functions: tuple[str, ...] = ("hks:10", "degree")
    """One a parameter: "degree" (1 / degree), "closeness", or "hks:TIME" (heat kernel signature)."""

    def fit(self, samples: Sequence[Any]) -> "GraphFunctions":
        """Nothing is learnt."""
        return self

    def read(self, samples: Sequence[Any]) -> Read:
        """See `Source`."""
        if not len(samples):
            raise InputError("samples is empty; at least one graph is needed")
        room = _bucket(max(graph.vertices for graph in samples))
        edges = _bucket(max(len(graph.edges) for graph in samples))
        adjacency = np.zeros((len(samples), room, room), np.float32)
        for matrix, graph in zip(adjacency, samples, strict=True):
            matrix[: graph.vertices, : graph.vertices] = adjacency_matrix(graph.vertices, graph.edges)
        there = np.arange(room) < np.array([graph.vertices for graph in samples])[:, None]
        found = [self._values(name, adjacency, samples) for name in self.functions]
        values = np.where(there[..., None], np.stack(found, -1), np.inf).astype(np.float32)
        complexes = stack_complexes(
            [simplicial_complex(graph.vertices, graph.edges) for graph in samples], sizes=(room, edges)
        )

        return Read(tuple(one[there] for one in found), (complexes, values), _GRAPHS)

    def _values(self, name: str, adjacency: np.ndarray, samples: Sequence[Any]) -> np.ndarray:
        kind, _, number = name.partition(":")
        if kind not in FUNCTIONS or (kind == "hks") != bool(number):
            raise InputError(f"function {name!r} is not known; known are degree, closeness and hks:TIME")
        try:
            time = float(number) if number else 0.0
        except ValueError as error:
            raise InputError(f"function {name!r} needs a number behind the colon") from error
        # Vertices that are padding have no edges: they change nothing but closeness's number of vertices.
        values = np.asarray(over_samples(_on_vertices, adjacency, batch=_BATCH, kind=kind, time=time))
        if kind != "closeness":
            return values
        others = np.array([max(graph.vertices - 1, 1) for graph in samples])[:, None]
        return values * (adjacency.shape[1] - 1) / others


def _on_vertices(adjacency: Array, *, kind: str, time: float) -> Array:
    return FUNCTIONS[kind](adjacency, time)


def _graph_filtration(graph: tuple[Complex, Array], *, degree: int = 0) -> Filtration:
    return lower_star(*graph)


def _graph_hilbert(graph: tuple[Complex, Array], grid: Grid, *, degree: int) -> Array:
    return signed_measure(_graph_filtration(graph), grid, degree=degree).weights


def _graph_euler(graph: tuple[Complex, Array], grid: Grid) -> Array:
    return euler_measure(_graph_filtration(graph), grid).weights


_GRAPHS = Kind(_graph_hilbert, _graph_euler, _graph_filtration, batch=_BATCH)


def _bucket(size: int) -> int:
    """The next power of two, so that few programs are compiled for sets of many sizes."""
    return 1 << max(size - 1, 0).bit_length()


@dataclasses.dataclass(frozen=True)
class ImageChannels:
    """Images [samples, height, width, parameters] by their channels, one a parameter."""

    def fit(self, samples: Float[np.ndarray, "samples height width p"]) -> "ImageChannels":
        """Nothing is learnt."""
        return self

    def read(self, samples: Float[np.ndarray, "samples height width p"]) -> Read:
        """See `Source`."""
        images = jnp.asarray(samples)
        require_shape("samples", images, (None, None, None, None))
        require_no_nan("samples", images)

        flat = tuple(np.asarray(images[..., i]).reshape(-1) for i in range(images.shape[-1]))
        return Read(flat, images, _IMAGES)


def _image_filtration(image: Array, *, degree: int = 0) -> Filtration:
    height, width, _ = image.shape
    require_few((height - 1) * (width - 1), degree)
    return image_filtration(image)


def _image_hilbert(image: Array, grid: Grid, *, degree: int) -> Array:
    return signed_measure(image_filtration(image), grid, degree=degree).weights


def _image_euler(image: Array, grid: Grid) -> Array:
    return euler_measure(_image_filtration(image), grid).weights


_IMAGES = Kind(_image_hilbert, _image_euler, _image_filtration)


def delay_embedding(
    series: Float[np.ndarray, "samples length"], *, dimension: int = 3, delay: int = 1
) -> Float[np.ndarray, "samples points dimension"]:
    """Time series as clouds: point t is (x[t], x[t + delay], ...); every sample is used.

    Reference: Takens, "Detecting strange attractors in turbulence", 1981.

    Raises:
      InputError: a wrong shape, or series too short for a point.
    """
    series = np.asarray(series)
    require_shape("series", series, (None, None))
    points = series.shape[1] - (dimension - 1) * delay
    if dimension < 1 or delay < 1 or points < 1:
        raise InputError(
            f"dimension is {dimension} and delay {delay}; both must be at least 1, and series of length "
            f"{series.shape[1]} leave {points} points"
        )
    return np.stack([series[:, i * delay : i * delay + points] for i in range(dimension)], -1)
