"""Features of fixed length for any classifier, in the manner of scikit-learn: fitted to training samples.

Signed measures of every sample on one grid, rescaled to the unit cube by the training samples, then vectorised by
convolution or by the sliced Wasserstein embedding. Reference: arXiv:2306.03801.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.persistence.convolution import convolve
from jaxlab.persistence.grids import Grid, Strategy, make_grid
from jaxlab.persistence.measures import DenseMeasure, balance_mass
from jaxlab.persistence.sliced_wasserstein import random_directions, sw_embedding
from jaxlab.persistence.sources import Source

Vectorize = Literal["convolution", "sliced-wasserstein", "hilbert"]
_CORNER = 1.1
"""Where masses are balanced, in units of the training range."""


class SignedMeasureFeatures:
    """Transformer with `fit`, `transform`, `get_params` and `set_params`; scikit-learn itself is not needed."""

    def __init__(
        self,
        source: Source,
        *,
        degrees: Sequence[int] = (0, 1),
        strategy: Strategy = "quantile",
        resolution: int = 20,
        vectorize: Vectorize = "convolution",
        bandwidth: float = 0.1,
        out_resolution: int = 20,
        directions: int = 50,
        seed: int = 0,
    ) -> None:
        """Keeps the options; they are checked when it is fitted.

        Args:
          source: what samples are, and their filtration; see `jaxlab.persistence.sources`.
          degrees: of homology; features of one follow those of the other.
          strategy: of the grid, see `make_grid`; not "exact".
          resolution: lines of the grid in each parameter, at least 2.
          vectorize: "convolution" with a Gaussian; "sliced-wasserstein", whose L1 distances are the transport
            distances; or "hilbert", the Hilbert function itself.
          bandwidth: of the Gaussian, in units of the training range, > 0.
          out_resolution: samples of the convolution in each parameter.
          directions: of the sliced Wasserstein distance.
          seed: of the directions.
        """
        self.source = source
        self.degrees = degrees
        self.strategy = strategy
        self.resolution = resolution
        self.vectorize = vectorize
        self.bandwidth = bandwidth
        self.out_resolution = out_resolution
        self.directions = directions
        self.seed = seed

    def fit(self, samples: Any, labels: Any = None) -> "SignedMeasureFeatures":
        """Learns the source's constants and the grid; labels are not looked at.

        Raises:
          InputError: samples that the source cannot read, or an option out of range.
        """
        if self.vectorize not in ("convolution", "sliced-wasserstein", "hilbert"):
            raise InputError(
                f"vectorize is {self.vectorize!r}; it must be convolution, sliced-wasserstein or hilbert"
            )
        if not len(self.degrees):
            raise InputError("degrees is empty; name at least one degree of homology")
        self.source_ = self.source.fit(samples)
        self._training = (samples, self.source_.read(samples))
        self.grid_ = make_grid(
            [jnp.asarray(own) for own in self._training[1].values],
            strategy=self.strategy,
            resolution=self.resolution,
        )
        return self

    def transform(self, samples: Any) -> Float[np.ndarray, "samples features"]:
        """Features, float32.

        Raises:
          InputError: it is not fitted, or the samples cannot be read.
        """
        return self.vectors(self.measures(samples))

    def fit_transform(self, samples: Any, labels: Any = None) -> Float[np.ndarray, "samples features"]:
        """`fit` and `transform`."""
        return self.fit(samples, labels).transform(samples)

    def measures(self, samples: Any) -> list[Int[np.ndarray, "samples *lines"]]:
        """Weights on `grid_`, one array a degree."""
        if not hasattr(self, "grid_"):
            raise InputError("SignedMeasureFeatures is not fitted; call fit with training samples")
        known, read = self._training
        if samples is not known:
            read = self.source_.read(samples)
        return [np.asarray(read.weights(self.grid_, degree)) for degree in self.degrees]

    def vectors(
        self, measures: Sequence[Int[np.ndarray, "samples *lines"]]
    ) -> Float[np.ndarray, "samples features"]:
        """Features of `measures`, for trying several ways on measures that are counted once."""
        return np.concatenate([self._of_degree(weights) for weights in measures], axis=1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Options by name."""
        return {name: getattr(self, name) for name in _option_names()}

    def set_params(self, **options: Any) -> "SignedMeasureFeatures":
        """Changes options.

        Raises:
          InputError: an unknown name.
        """
        for name, value in options.items():
            if name not in _option_names():
                raise InputError(f"option {name!r} is not known; known are {', '.join(_option_names())}")
            setattr(self, name, value)
        return self

    def unit_grid(self) -> Grid:
        """`grid_` rescaled to the unit cube, as vectors see it."""
        coords = []
        for lines in self.grid_.coords:
            low, high = lines[0], lines[-1]
            coords.append((lines - low) / jnp.where(high > low, high - low, 1))
        return Grid(tuple(coords))

    def _of_degree(self, weights: np.ndarray) -> Float[np.ndarray, "samples features"]:
        grid = self.unit_grid()
        if self.vectorize == "hilbert":
            values = weights
            for axis in range(1, weights.ndim):
                values = np.cumsum(values, axis=axis)
            return values.reshape(len(values), -1).astype(np.float32)
        if self.vectorize == "convolution":
            out = Grid(tuple(jnp.linspace(0.0, 1.0, self.out_resolution) for _ in grid.coords))
            images = jax.vmap(lambda w: convolve(DenseMeasure(w, grid), out, bandwidth=self.bandwidth))(
                weights
            )
            return np.asarray(images, np.float32).reshape(len(weights), -1)
        corner = jnp.full(len(grid.coords), _CORNER)

        def balanced(weights: Array) -> DenseMeasure:
            found = balance_mass(DenseMeasure(weights, grid), corner)
            assert isinstance(found, DenseMeasure)
            return found

        lines = balanced(jnp.asarray(weights[0])).grid.coords
        points = jnp.stack([one.reshape(-1) for one in jnp.meshgrid(*lines, indexing="ij")], -1)
        along = random_directions(jax.random.key(self.seed), len(grid.coords), count=self.directions)
        flat = jax.vmap(lambda own: balanced(own).weights)(weights).reshape(len(weights), -1)
        return np.asarray(sw_embedding(points, flat, along), np.float32)


def _option_names() -> list[str]:
    return [name for name in inspect.signature(SignedMeasureFeatures.__init__).parameters if name != "self"]
