"""Mixtures of Gaussians over tasks, each drawn in proportion to a score of its own: what ALP- and Covar-GMM sample."""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.gaussian_mixtures import MixtureSelection, cholesky_factors
from jaxlab.teachers.spaces import (
    TaskGaussian,
    TaskSpace,
    clip_task,
    gaussian_task,
    uniform_log_density,
    uniform_task,
)


class TaskMixture(NamedTuple):
    """At most K Gaussians over tasks. The weights of the fit play no part in sampling."""

    scores: Float[Array, " K"]
    """Interest of each, >= 0, and 0 behind `components`."""
    means: Float[Array, "K dim"]
    lower: Float[Array, "K dim dim"]
    """Cholesky factors of the covariances of the task alone."""
    components: Int[Array, ""]
    """How many there are; 0 before the first fit."""


def no_mixture(dimensions: int, most: int) -> TaskMixture:
    """The mixture before the first fit."""
    eye = jnp.broadcast_to(jnp.eye(dimensions), (most, dimensions, dimensions))
    return TaskMixture(jnp.zeros(most), jnp.zeros((most, dimensions)), eye, jnp.int32(0))


def task_mixture(
    selection: MixtureSelection, scores: Float[Array, " K"], space: TaskSpace, scale: Float[Array, " dim"]
) -> TaskMixture:
    """The fitted mixture's marginals over tasks.

    Args:
      selection: fitted to rows that begin with task / scale.
      scores: interest of each component.
      space: of the tasks.
      scale: by which the tasks were divided.
    """
    d = space.dimensions
    there = jnp.arange(scores.shape[0]) < selection.components
    lower = cholesky_factors(selection.mixture.covariances)[:, :d, :d]
    return TaskMixture(
        jnp.where(there, jnp.maximum(scores, 0), 0),
        selection.mixture.means[:, :d] * scale,
        lower * scale[:, None],
        selection.components.astype(jnp.int32),
    )


def component_probabilities(mixture: TaskMixture) -> Float[Array, " K"]:
    """In proportion to the scores; the same for all components where every score is 0."""
    total = mixture.scores.sum()
    there = jnp.arange(mixture.scores.shape[0]) < mixture.components
    uniform = there / jnp.maximum(mixture.components, 1)
    return jnp.where(total > 0, mixture.scores / jnp.where(total > 0, total, 1), uniform)


class MixtureState(Protocol):
    """What the states of teachers that sample mixtures have in common."""

    @property
    def space(self) -> TaskSpace:
        """The tasks are clipped to it."""

    @property
    def episodes(self) -> Int[Array, ""]:
        """Episodes seen."""

    @property
    def mixture(self) -> TaskMixture:
        """Fitted last."""

    @property
    def random_task_ratio(self) -> Float[Array, ""]:
        """Share of uniform tasks."""


def draw_task(
    state: MixtureState, key: jax.Array, *, bootstrap: int, initial: TaskGaussian | None
) -> Float[Array, " dim"]:
    """A task of the mixture, or, with the probability in the state, a uniform one.

    Args:
      state: of the teacher.
      key: PRNG key.
      bootstrap: the first so many episodes are drawn from `initial` instead.
      initial: uniform where None.
    """
    choice_key, component_key, noise_key, uniform_key, initial_key = jax.random.split(key, 5)
    mixture, space = state.mixture, state.space
    cumulative = jnp.cumsum(component_probabilities(mixture))
    below = cumulative <= jax.random.uniform(component_key) * cumulative[-1]
    component = jnp.minimum(below.sum(), jnp.maximum(mixture.components - 1, 0))
    noise = jax.random.normal(noise_key, space.low.shape)
    drawn = mixture.means[component] + jnp.sum(mixture.lower[component] * noise, axis=-1)
    uniform = uniform_task(space, uniform_key)
    first = uniform if initial is None else gaussian_task(space, initial, initial_key)
    random = jax.random.uniform(choice_key) < state.random_task_ratio
    task = jnp.where(random, uniform, clip_task(space, drawn))
    return jnp.where(state.episodes < bootstrap, first, task)


def draw_log_density(
    state: MixtureState, tasks: Float[Array, "m dim"], *, bootstrap: int, initial: TaskGaussian | None
) -> Float[Array, " m"]:
    """Log-density of `draw_task` before clipping."""
    uniform = uniform_log_density(state.space, tasks)
    gaussians = jax.vmap(lambda mean, lower: gaussian_log_density(tasks, mean, lower))(
        state.mixture.means, state.mixture.lower
    )
    drawn = jax.nn.logsumexp(gaussians, axis=0, b=component_probabilities(state.mixture)[:, None])
    ratio = state.random_task_ratio
    density = jnp.logaddexp(jnp.log(ratio) + uniform, jnp.log1p(-ratio) + drawn)
    first = uniform
    if initial is not None:
        first = gaussian_log_density(tasks, jnp.asarray(initial.mean), jnp.diag(jnp.asarray(initial.std)))
    return jnp.where(state.episodes < bootstrap, first, density)


def sampler_metrics(
    state: MixtureState, tasks: Float[Array, "m dim"], recent: Bool[Array, " m"], *, bootstrap: int
) -> dict[str, Array]:
    """Figures of the sampler; the tasks under `recent` were the last ones played."""
    clipped = jnp.any((tasks == state.space.low) | (tasks == state.space.high), axis=1)
    return {
        "episodes": state.episodes,
        "components": state.mixture.components,
        "component_entropy": jax.scipy.special.entr(component_probabilities(state.mixture)).sum(),
        "random_share": jnp.where(state.episodes < bootstrap, 1.0, state.random_task_ratio),
        "clipped_share": jnp.sum(recent & clipped) / jnp.maximum(recent.sum(), 1),
    }


def forward_substitution(
    lower: Float[Array, "dim dim"], columns: Float[Array, "dim k"]
) -> Float[Array, "dim k"]:
    """lower^-1 columns, for the few dimensions that tasks have.

    Written out: LAPACK's call costs more than the work, and in programs over several CPU devices XLA may wait for it
    for ever.
    """
    rows: list[Array] = []
    for i in range(lower.shape[0]):
        known = [lower[i, j] * rows[j] for j in range(i)]
        rows.append((columns[i] - sum(known, jnp.zeros_like(columns[i]))) / lower[i, i])
    return jnp.stack(rows)


def gaussian_log_density(
    tasks: Float[Array, "m dim"], mean: Float[Array, " dim"], lower: Float[Array, "dim dim"]
) -> Float[Array, " m"]:
    """log N(task; mean, lower lower^T)."""
    whitened = forward_substitution(lower, (tasks - mean).T)
    log_determinant = jnp.sum(jnp.log(jnp.diag(lower)))
    return -0.5 * jnp.sum(whitened**2, axis=0) - log_determinant - mean.shape[0] / 2 * math.log(2 * math.pi)


def check_mixture_config(fit_rate: int, components: tuple[int, ...], random_task_ratio: float) -> None:
    """Raises `InputError` where an option of a teacher that fits mixtures is out of range."""
    if not components or min(components) < 1:
        raise InputError(f"components is {components}; numbers of components are >= 1")
    if fit_rate < max(components):
        raise InputError(f"fit_rate is {fit_rate}; it must be >= {max(components)}, the most components")
    if not 0 <= random_task_ratio <= 1:
        raise InputError(f"random_task_ratio is {random_task_ratio}; it must lie in [0, 1]")


def check_fit_rate(fit_rate: int, columns: int) -> None:
    """Raises `InputError` where a fit has no more rows than columns."""
    if fit_rate <= columns:
        raise InputError(f"fit_rate is {fit_rate}; it must be above {columns}, the columns that are fitted")
