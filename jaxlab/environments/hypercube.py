"""The hypercube: a toy world whose cells must be practised in order, student included.

The task space is cut into cells; an episode in a cell raises the student's competence there, if the cell is unlocked.
The origin cell is, the others are as soon as a neighbour towards the origin is nearly mastered.
Reference: arXiv:1910.07224, appendix on the toy environment; teachDeepRL, `toy_env.py`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError

COMPETENCE_CAP = 100
UNLOCKS_AT = 75
"""A cell with at least this competence unlocks its neighbours; one with more counts as mastered."""


@dataclasses.dataclass(frozen=True)
class HypercubeConfig:
    """Size of the world.

    `cells` ** `dimensions` competences are kept. teachDeepRL's own bins are one too many for 6, 9 and 30 cells.
    """

    dimensions: int = 2
    """Coordinates of a task that choose the cell, >= 1."""
    cells: int = 10
    """Cells in each dimension, >= 1."""
    distractors: int = 0
    """Further coordinates of a task, which do nothing, >= 0."""

    def __post_init__(self) -> None:
        for name, least in (("dimensions", 1), ("cells", 1), ("distractors", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= {least}")
        if self.cells**self.dimensions >= 2**31:
            raise InputError(f"cells ** dimensions is {self.cells**self.dimensions}; it must be below 2^31")

    @property
    def task_dimensions(self) -> int:
        """Length of a task."""
        return self.dimensions + self.distractors


class HypercubeState(NamedTuple):
    """What the student has learnt."""

    competence: Int[Array, " cells"]
    """0 to 100, cells in row-major order."""
    out_of_range: Bool[Array, ""]
    """Whether a task outside [0, 1] was ever played under jit, where it cannot raise."""


class HypercubeWorld(NamedTuple):
    """A world and its student as pure functions."""

    init: Callable[[jax.Array], HypercubeState]
    """key -> state."""
    episode: Callable[
        [HypercubeState, jax.Array, Float[Array, " dim"]], tuple[HypercubeState, Float[Array, ""]]
    ]
    """(state, key, task in [0, 1]^dim) -> (state, return in [0, 1]). The world draws nothing: the key is not read."""
    score: Callable[[HypercubeState], Float[Array, ""]]
    """Percentage of cells with a competence above 75."""


def hypercube_world(config: HypercubeConfig) -> HypercubeWorld:
    """The world of a size; see `HypercubeConfig`.

    `episode` raises `InputError` for a task of another length, and for one outside [0, 1] where it is concrete; under
    jit such a task is clipped and `out_of_range` set.
    """
    size, dimensions = config.cells, config.dimensions
    strides = np.asarray([size ** (dimensions - 1 - k) for k in range(dimensions)], np.int32)
    steps = np.asarray(list(itertools.product((0, 1), repeat=dimensions))[1:], np.int32)

    def init(key: jax.Array) -> HypercubeState:
        del key
        return HypercubeState(jnp.zeros(size**dimensions, jnp.int32), jnp.asarray(False))

    def episode(
        state: HypercubeState, key: jax.Array, task: Float[Array, " dim"]
    ) -> tuple[HypercubeState, Float[Array, ""]]:
        del key
        _check(task, config)
        outside = jnp.any((task[:dimensions] < 0) | (task[:dimensions] > 1))
        cell = jnp.clip(jnp.floor(task[:dimensions] * size).astype(jnp.int32), 0, size - 1)
        here = jnp.sum(cell * strides)
        neighbours = jnp.sum(jnp.maximum(cell - steps, 0) * strides, axis=1)
        open_neighbours = (state.competence[neighbours] >= UNLOCKS_AT) & (neighbours != here)
        unlocked = (here == 0) | jnp.any(open_neighbours)
        level = jnp.minimum(state.competence[here] + unlocked, COMPETENCE_CAP)
        competence = state.competence.at[here].set(level)
        return HypercubeState(competence, state.out_of_range | outside), level / COMPETENCE_CAP

    def score(state: HypercubeState) -> Float[Array, ""]:
        return 100 * jnp.mean(state.competence > UNLOCKS_AT)

    return HypercubeWorld(init, episode, score)


def _check(task: Float[Array, " dim"], config: HypercubeConfig) -> None:
    if task.shape != (config.task_dimensions,):
        raise InputError(f"task has shape {task.shape}; it must be ({config.task_dimensions},)")
    if not isinstance(task, jax.core.Tracer):
        values = np.asarray(task)
        if not np.all((values[: config.dimensions] >= 0) & (values[: config.dimensions] <= 1)):
            raise InputError(f"task is {values.tolist()}; its coordinates must lie in [0, 1]")
