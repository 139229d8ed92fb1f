"""Layers that learn a filtration of graphs and what is read off its signed measures, for flax nnx.

`LowerStarFiltration` gives vertices p functions by a graph network, and the graph its lower-star filtration by them;
`SignedMeasureConv` sees a signed measure through Gaussians whose places and shapes are learned. Gradients pass through
the lines of the grid, weights are constant. Reference: arXiv:2406.07224, section 5; for the network Kipf and Welling,
"Semi-supervised classification with graph convolutional networks", 2017.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.persistence.checks import require_shape
from jaxlab.persistence.complexes import Complex
from jaxlab.persistence.convolution import convolve_at
from jaxlab.persistence.filtrations import lower_star
from jaxlab.persistence.grids import make_grid
from jaxlab.persistence.hilbert import hilbert_planar
from jaxlab.persistence.measures import DenseMeasure, SparseMeasure, atoms_of, mobius, sparsify


class SignedMeasureConv(nnx.Module):
    """sum_j w_j exp(-|R (z - x_j)|^2 / 2) at learned points z, R learned: one R and some points a channel."""

    def __init__(
        self, parameters: int, *, rngs: nnx.Rngs, channels: int = 1, samples: int = 16, bandwidth: float = 0.2
    ):
        """Draws points uniformly in the unit cube; all R begin as identity / bandwidth.

        Args:
          parameters: p of the measures, at least 1.
          rngs: for the points, by the key of `params`.
          channels: how many R, at least 1.
          samples: points of each channel, at least 1.
          bandwidth: standard deviation of the Gaussians at the beginning, > 0.

        Raises:
          InputError: a size or the bandwidth is out of range.
        """
        _require_sizes(parameters=parameters, channels=channels, samples=samples)
        if not bandwidth > 0:
            raise InputError(f"bandwidth is {bandwidth}, but must be > 0")
        self.points = nnx.Param(jax.random.uniform(rngs.params(), (channels, samples, parameters)))
        self.roots = nnx.Param(jnp.tile(jnp.eye(parameters) / bandwidth, (channels, 1, 1)))

    def __call__(self, measure: DenseMeasure | SparseMeasure) -> Float[Array, " features"]:
        """The values at all points, channel after channel; vmap over measures.

        Raises:
          InputError: the measure has another number of parameters.
        """
        parameters = (
            len(measure.grid.coords) if isinstance(measure, DenseMeasure) else measure.points.shape[-1]
        )
        if parameters != self.points.shape[-1]:
            raise InputError(
                f"measure has {parameters} parameters, but must have {self.points.shape[-1]}, as the layer was made for"
            )

        def channel(points: Array, root: Array) -> Array:
            return convolve_at(measure, points, jnp.matmul(root.T, root, precision="highest"))

        return jax.vmap(channel)(self.points[...], self.roots[...]).reshape(-1)


class LowerStarFiltration(nnx.Module):
    """Signed measures of a graph in H_0 and H_1, filtered by p learned functions with values in (0, 1)."""

    def __init__(
        self,
        features: int,
        parameters: int,
        *,
        rngs: nnx.Rngs,
        width: int = 16,
        depth: int = 2,
        resolution: int | None = None,
    ):
        """Draws the weights of the network.

        Args:
          features: of each vertex, at least 1.
          parameters: p, at least 1.
          rngs: for the weights, by the key of `params`.
          width: of the hidden layers.
          depth: graph convolutions: a vertex sees others up to so many edges away; at least 1.
          resolution: see `lower_star_measures`.

        Raises:
          InputError: a size is out of range.
        """
        _require_sizes(features=features, parameters=parameters, width=width, depth=depth)
        sizes = [features] + depth * [width]
        self.hidden = nnx.List([nnx.Linear(size, width, rngs=rngs) for size in sizes[:-1]])
        self.last = nnx.Linear(width, parameters, rngs=rngs)
        self.resolution = resolution

    def values(
        self, features: Float[Array, "vertices features"], complex: Complex
    ) -> Float[Array, "vertices p"]:
        """The functions on the vertices; those of padding are of no meaning."""
        neighbours = _normalised_adjacency(complex, features.dtype)
        x = features
        for layer in self.hidden:
            x = nnx.relu(jnp.matmul(neighbours, layer(x), precision="highest"))
        return nnx.sigmoid(self.last(x))

    def __call__(
        self, features: Float[Array, "vertices features"], complex: Complex
    ) -> tuple[DenseMeasure, DenseMeasure]:
        """Measures in degrees 0 and 1; vmap over stacked graphs.

        Args:
          features: finite, also on padding.
          complex: a graph, possibly padded (`pad_complex`, `stack_complexes`).

        Raises:
          InputError: not a graph, or features of another shape.
        """
        width = self.hidden[0].in_features
        _require_graph(complex)
        require_shape("features", features, (complex.sizes[0], width))
        return lower_star_measures(complex, self.values(features, complex), resolution=self.resolution)


def lower_star_measures(
    complex: Complex, values: Float[Array, "vertices p"], *, resolution: int | None = None
) -> tuple[DenseMeasure, DenseMeasure]:
    """Hilbert signed measures of a graph's lower-star filtration in degrees 0 and 1, on a grid of their own.

    Args:
      complex: a graph, possibly padded.
      values: p functions on the vertices; those of padding may be anything.
      resolution: lines of a grid of quantiles in each parameter, at least 2; None is the exact grid, with one line a
        vertex: the measure has vertices^p places.

    Raises:
      InputError: not a graph, a wrong shape, or a resolution below 2.
    """
    _require_graph(complex)
    filtration = lower_star(complex, values)
    # Edges enter with a vertex, so the vertices' values are all lines there are.
    grid = make_grid(
        filtration.grades[0], strategy="exact" if resolution is None else "quantile", resolution=resolution
    )
    components, cycles = hilbert_planar(filtration, grid)
    return DenseMeasure(mobius(components), grid), DenseMeasure(mobius(cycles), grid)


def graph_atoms(
    complex: Complex, measures: tuple[DenseMeasure, DenseMeasure]
) -> tuple[SparseMeasure, SparseMeasure]:
    """The atoms of `lower_star_measures`, in room that is always enough; differentiable in the grids.

    By two parameters H_1 is free, on at most as many generators as there are edges, and H_0 has a minimal resolution by
    at most the vertices, the edges, and once more the edges: so few atoms instead of vertices^2 places. By one or three
    parameters every place of the grid is kept.
    """
    if measures[0].weights.ndim != 2:
        return atoms_of(measures[0]), atoms_of(measures[1])
    vertices, edges = complex.sizes
    rooms = vertices + 2 * edges, max(edges, 1)
    components, cycles = (
        sparsify(measure, max_atoms=min(room, measure.weights.size))[0]
        for measure, room in zip(measures, rooms, strict=True)
    )
    return components, cycles


def _normalised_adjacency(complex: Complex, dtype: jnp.dtype) -> Float[Array, "vertices vertices"]:
    """D^(-1/2) (A + I) D^(-1/2)."""
    vertices = complex.sizes[0]
    # Products of one-hot rows instead of a scatter; masked edges have rows of zeros.
    first, second = jax.nn.one_hot(
        jnp.where(complex.masks[1][:, None], complex.faces[1], -1).T, vertices, dtype=dtype
    )
    half = jnp.matmul(first.T, second)
    adjacency = half + half.T + jnp.eye(vertices, dtype=dtype)
    scale = jax.lax.rsqrt(jnp.sum(adjacency, axis=1))
    return scale[:, None] * adjacency * scale


def _require_graph(complex: Complex) -> None:
    if complex.kind != "simplicial" or complex.dimension != 1:
        raise InputError(
            f"complex is {complex.kind} of dimension {complex.dimension}, but must be a graph: simplicial_complex of "
            "vertices and edges"
        )


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}, but must be at least 1")
