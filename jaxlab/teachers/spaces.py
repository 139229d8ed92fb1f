"""Spaces of tasks: boxes whose coordinates belong to named blocks."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError

Bounds = Mapping[str, tuple[float, float] | tuple[float, float, int]] | Sequence[tuple[float, float]]
"""`{name: (low, high)}`, `{name: (low, high, dimensions)}`, or a (low, high) for each dimension."""

BOUNDARY_TOLERANCE = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskSpace:
    """A box of tasks."""

    low: Float[Array, " dim"]
    high: Float[Array, " dim"]
    blocks: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})
    """(name, number of dimensions) of each block, in the order of the coordinates."""

    @property
    def dimensions(self) -> int:
        """Length of a task."""
        return self.low.shape[-1]

    @property
    def extent(self) -> Float[Array, " dim"]:
        """high - low."""
        return self.high - self.low


def task_space(bounds: Bounds) -> TaskSpace:
    """The box with these bounds; see `Bounds`. Without names the one block is called "task".

    Raises:
      InputError: no dimension, a bound that is not finite, low >= high, or a block without a dimension.
    """
    named = (
        bounds.items() if isinstance(bounds, Mapping) else [(f"task[{i}]", b) for i, b in enumerate(bounds)]
    )
    low: list[float] = []
    high: list[float] = []
    blocks = []
    for name, bound in named:
        if len(bound) not in (2, 3):
            raise InputError(
                f"bounds of {name} are {bound}; they must be (low, high) or (low, high, dimensions)"
            )
        dimensions = bound[2] if len(bound) == 3 else 1
        if not (isinstance(dimensions, int) and dimensions >= 1):
            raise InputError(f"dimensions of {name} is {dimensions}; it must be an integer >= 1")
        if not (np.isfinite(bound[0]) and np.isfinite(bound[1]) and bound[0] < bound[1]):
            raise InputError(
                f"bounds of {name} are low = {bound[0]}, high = {bound[1]}; low must be below high"
            )
        low += [bound[0]] * dimensions
        high += [bound[1]] * dimensions
        blocks.append((name, dimensions))
    if not blocks:
        raise InputError("bounds is empty; a space of tasks needs at least one dimension")
    if not isinstance(bounds, Mapping):
        blocks = [("task", len(low))]
    return TaskSpace(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32), tuple(blocks))


def split_task(space: TaskSpace, task: Float[Array, "*batch dim"]) -> dict[str, Float[Array, "*batch block"]]:
    """The coordinates of each named block."""
    parts, start = {}, 0
    for name, dimensions in space.blocks:
        parts[name] = task[..., start : start + dimensions]
        start += dimensions
    return parts


def uniform_task(space: TaskSpace, key: jax.Array) -> Float[Array, " dim"]:
    """A task drawn uniformly from the box."""
    return clip_task(space, space.low + space.extent * jax.random.uniform(key, space.low.shape))


def clip_task(space: TaskSpace, task: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """The nearest task of the box."""
    return jnp.clip(task, space.low, space.high)


def contains_task(space: TaskSpace, task: Float[Array, "*batch dim"]) -> Bool[Array, "*batch"]:
    """Whether a task lies in the box, up to 1e-6; false for NaN."""
    tolerance = BOUNDARY_TOLERANCE
    return jnp.all((task >= space.low - tolerance) & (task <= space.high + tolerance), axis=-1)


def uniform_log_density(space: TaskSpace, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
    """Log-density of the uniform distribution over the box, -inf outside."""
    return jnp.where(contains_task(space, tasks), -jnp.sum(jnp.log(space.extent)), -jnp.inf)


@dataclasses.dataclass(frozen=True)
class TaskGaussian:
    """A Gaussian over tasks with independent coordinates: what an expert knows about easy tasks."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s >= 0 for s in self.std):
            raise InputError(f"mean is {self.mean}, std is {self.std}; they must be as long, and std >= 0")


def gaussian_task(space: TaskSpace, gaussian: TaskGaussian, key: jax.Array) -> Float[Array, " dim"]:
    """A task drawn from the Gaussian and clipped to the box."""
    noise = jax.random.normal(key, space.low.shape)
    return clip_task(space, jnp.asarray(gaussian.mean) + jnp.asarray(gaussian.std) * noise)


def check_gaussian(space: TaskSpace, gaussian: TaskGaussian | None) -> None:
    """Raises `InputError` where a Gaussian has other dimensions than the space."""
    if gaussian is not None and len(gaussian.mean) != space.dimensions:
        raise InputError(
            f"initial has {len(gaussian.mean)} dimensions; it must have {space.dimensions}, as the space of tasks"
        )
