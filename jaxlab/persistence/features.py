"""Features of fixed length for any classifier, in the manner of scikit-learn: fitted to training samples.

Signed measures of every sample on one grid, rescaled to the unit cube by the training samples, then vectorised by
convolution or by the sliced Wasserstein embedding. Beside these stand the Hilbert function and the Euler surface
themselves, and multiparameter landscapes. Reference: arXiv:2306.03801; for landscapes Vipond, "Multiparameter
persistence landscapes", 2020.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.persistence.convolution import convolve
from jaxlab.persistence.grids import Grid, Strategy, make_grid, nearest_thresholds
from jaxlab.persistence.measures import DenseMeasure, balance_mass, integrate, rescale
from jaxlab.persistence.samples import Read, over_samples
from jaxlab.persistence.sliced_wasserstein import random_directions, sw_embedding
from jaxlab.persistence.sources import Source

Invariant = Literal["hilbert", "euler"]
Rounding = Literal["up", "nearest"]
Vectorize = Literal["convolution", "sliced-wasserstein", "hilbert", "euler", "landscape"]
_WAYS: dict[str, tuple[str, ...]] = {
    "hilbert": ("convolution", "sliced-wasserstein", "hilbert", "euler", "landscape"),
    "euler": ("convolution", "sliced-wasserstein", "euler"),
}
_CORNER = 1.1
"""Where masses are balanced, in units of the training range."""


class SignedMeasureFeatures:
    """Transformer with `fit`, `transform`, `get_params` and `set_params`; scikit-learn itself is not needed."""

    def __init__(
        self,
        source: Source,
        *,
        invariant: Invariant = "hilbert",
        degrees: Sequence[int] = (0, 1),
        strategy: Strategy = "quantile",
        resolution: int = 20,
        rounding: Rounding = "up",
        vectorize: Vectorize = "convolution",
        bandwidth: float = 0.1,
        out_resolution: int = 20,
        directions: int = 50,
        count: int = 3,
        seed: int = 0,
    ) -> None:
        """Keeps the options; they are checked when it is fitted.

        Args:
          source: what samples are, and their filtration; see `jaxlab.persistence.sources`.
          invariant: whose signed measures; "euler" needs no homology and takes any number of parameters.
          degrees: of homology; features of one follow those of the other. Not looked at for Euler measures.
          strategy: of the grid, see `make_grid`; not "exact".
          resolution: lines of the grid in each parameter, at least 2.
          rounding: "up", to the first line at or above a value, as the paper does; or "nearest", as multipers does.
            Landscapes round nothing.
          vectorize: "convolution" with a Gaussian; "sliced-wasserstein", whose L1 distances are the transport
            distances; "hilbert" or "euler", the Hilbert function or Euler surface itself; or "landscape", of small
            complexes, straight from the filtrations.
          bandwidth: of the Gaussian, in units of the training range, > 0.
          out_resolution: samples of the convolution, or of landscapes, in each parameter.
          directions: of the sliced Wasserstein distance.
          count: of landscapes lambda_1, lambda_2, ..., at least 1.
          seed: of the directions.
        """
        self.source = source
        self.invariant = invariant
        self.degrees = degrees
        self.strategy = strategy
        self.resolution = resolution
        self.rounding = rounding
        self.vectorize = vectorize
        self.bandwidth = bandwidth
        self.out_resolution = out_resolution
        self.directions = directions
        self.count = count
        self.seed = seed

    def fit(self, samples: Any, labels: Any = None) -> "SignedMeasureFeatures":
        """Learns the source's constants and the grid; labels are not looked at.

        Raises:
          InputError: samples that the source cannot read, or an option out of range.
        """
        if self.invariant not in _WAYS:
            raise InputError(f"invariant is {self.invariant!r}; it must be hilbert or euler")
        if self.vectorize not in _WAYS[self.invariant]:
            ways = ", ".join(_WAYS[self.invariant])
            raise InputError(
                f"vectorize is {self.vectorize!r}; for the invariant {self.invariant} it must be one of {ways}"
            )
        if self.rounding not in get_args(Rounding):
            raise InputError(f"rounding is {self.rounding!r}; it must be up or nearest")
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

    def transform(self, samples: Any, *, mesh: Mesh | None = None) -> Float[np.ndarray, "samples features"]:
        """Features, float32.

        Args:
          samples: as for `fit`.
          mesh: devices of this process to spread the samples over, by its axis "data"; None for one device.

        Raises:
          InputError: it is not fitted, or the samples cannot be read.
        """
        if self.vectorize == "landscape":
            return self._landscapes(self._read(samples), mesh)
        return self.vectors(self.measures(samples, mesh=mesh), mesh=mesh)

    def fit_transform(self, samples: Any, labels: Any = None) -> Float[np.ndarray, "samples features"]:
        """`fit` and `transform`."""
        return self.fit(samples, labels).transform(samples)

    def measures(self, samples: Any, *, mesh: Mesh | None = None) -> list[Int[np.ndarray, "samples *lines"]]:
        """Weights on `grid_`, one array a degree, or one of Euler measures."""
        read = self._read(samples)
        grid = nearest_thresholds(self.grid_) if self.rounding == "nearest" else self.grid_
        if "euler" in (self.invariant, self.vectorize):
            return [np.asarray(read.euler(grid, mesh=mesh))]
        return [np.asarray(read.weights(grid, degree, mesh=mesh)) for degree in self.degrees]

    def vectors(
        self, measures: Sequence[Int[np.ndarray, "samples *lines"]], *, mesh: Mesh | None = None
    ) -> Float[np.ndarray, "samples features"]:
        """Features of `measures`, for trying several ways on measures that are counted once.

        Raises:
          InputError: for landscapes, which are not made of measures.
        """
        if self.vectorize == "landscape":
            raise InputError("landscapes are not made of signed measures; call transform")
        return np.concatenate([self._of_measures(weights, mesh) for weights in measures], axis=1)

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
        lows, highs = (jnp.stack([lines[i] for lines in self.grid_.coords]) for i in (0, -1))
        nothing = DenseMeasure(jnp.zeros(self.grid_.shape, jnp.int32), self.grid_)
        return _dense(rescale(nothing, lows, highs)).grid

    def _read(self, samples: Any) -> Read:
        if not hasattr(self, "grid_"):
            raise InputError("SignedMeasureFeatures is not fitted; call fit with training samples")
        known, read = self._training
        return read if samples is known else self.source_.read(samples)

    def _out_grid(self) -> Grid:
        return Grid((jnp.linspace(0.0, 1.0, self.out_resolution),) * len(self.grid_.coords))

    def _landscapes(self, read: Read, mesh: Mesh | None) -> np.ndarray:
        lines = self._out_grid().coords
        points = jnp.stack([one.reshape(-1) for one in jnp.meshgrid(*lines, indexing="ij")], -1)
        found = [
            np.asarray(read.landscapes(self.grid_, points, degree=degree, count=self.count, mesh=mesh))
            for degree in self.degrees
        ]
        return np.concatenate([one.reshape(len(one), -1) for one in found], axis=1).astype(np.float32)

    def _of_measures(self, weights: np.ndarray, mesh: Mesh | None) -> np.ndarray:
        grid = self.unit_grid()
        if self.vectorize == "convolution":
            if not self.bandwidth > 0:
                raise InputError(f"bandwidth is {self.bandwidth}, but must be > 0")
            shared = (grid, self._out_grid(), jnp.asarray(self.bandwidth))
            found = over_samples(_convolved, weights, *shared, mesh=mesh, side_by_side=True)
        elif self.vectorize == "sliced-wasserstein":
            along = random_directions(jax.random.key(self.seed), len(grid.coords), count=self.directions)
            found = over_samples(_transported, weights, grid, along, mesh=mesh, side_by_side=True)
        else:
            found = over_samples(integrate, weights, mesh=mesh, side_by_side=True)
        return np.asarray(found, np.float32).reshape(len(weights), -1)


def _convolved(weights: Array, grid: Grid, out: Grid, bandwidth: Array) -> Array:
    return convolve(DenseMeasure(weights, grid), out, bandwidth=bandwidth)


def _transported(weights: Array, grid: Grid, directions: Array) -> Array:
    corner = jnp.full(len(grid.coords), _CORNER)
    balanced = _dense(balance_mass(DenseMeasure(weights, grid), corner))
    # Of all grid points, also those without an atom: measures must share one support, which vmap sorts once.
    points = jnp.stack([one.reshape(-1) for one in jnp.meshgrid(*balanced.grid.coords, indexing="ij")], -1)
    return sw_embedding(points, balanced.weights.reshape(1, -1), directions)[0]


def _dense(measure: Any) -> DenseMeasure:
    assert isinstance(measure, DenseMeasure)
    return measure


def _option_names() -> list[str]:
    return [name for name in inspect.signature(SignedMeasureFeatures.__init__).parameters if name != "self"]
