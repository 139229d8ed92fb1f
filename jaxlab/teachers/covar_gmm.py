"""Covar-GMM: tasks drawn from Gaussians in proportion to the covariance of return and time found there.

Reference: Moulin-Frier, Nguyen and Oudeyer, "Self-organization of early vocal development in infants and machines",
2013 (IGMM); as a baseline in arXiv:1910.07224.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.kernels.gaussian_mixtures import fit_mixtures
from jaxlab.teachers.protocol import Feedback, Teacher, periodic_teacher
from jaxlab.teachers.spaces import TaskGaussian, TaskSpace, check_gaussian
from jaxlab.teachers.task_mixtures import (
    TaskMixture,
    check_fit_rate,
    check_mixture_config,
    draw_log_density,
    draw_task,
    no_mixture,
    sampler_metrics,
    task_mixture,
)


@dataclasses.dataclass(frozen=True)
class CovarGMMConfig:
    """Options of Covar-GMM, by default teachDeepRL's."""

    fit_rate: int = 250
    """Episodes between fits, which see as many; also the uniform episodes at the start."""
    components: tuple[int, ...] = tuple(range(2, 11))
    """Candidate numbers of Gaussians; Akaike's criterion chooses."""
    random_task_ratio: float = 0.2
    """Share of uniform tasks; the state holds it, so that a sweep can set it under jit."""
    absolute_lp: bool = False
    """Count falling returns as progress too."""
    return_range: tuple[float, float] | None = None
    """Map returns from here to [0, 1] and clip; None leaves them."""
    initial: TaskGaussian | None = None
    """Bootstrap tasks come from here rather than uniformly."""
    specialise_k: bool = True
    """See `fit_mixtures`."""

    def __post_init__(self) -> None:
        check_mixture_config(self.fit_rate, self.components, self.random_task_ratio)


class CovarGMMState(NamedTuple):
    """The episodes of the period that runs, and the mixture fitted last."""

    space: TaskSpace
    rows: Float[Array, "fit_rate columns"]
    """Task, time in the period from 0 to 1, return."""
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    mixture: TaskMixture
    random_task_ratio: Float[Array, ""]
    key: jax.Array
    faults: Int[Array, ""]


def covar_gmm_teacher(config: CovarGMMConfig | None = None) -> Teacher:
    """The teacher Covar-GMM; see `CovarGMMConfig`."""
    options = config or CovarGMMConfig()
    fit_rate = options.fit_rate

    def init(key: jax.Array, space: TaskSpace) -> CovarGMMState:
        check_fit_rate(fit_rate, space.dimensions + 2)
        check_gaussian(space, options.initial)
        return CovarGMMState(
            space=space,
            rows=jnp.zeros((fit_rate, space.dimensions + 2)),
            episodes=jnp.int32(0),
            mixture=no_mixture(space.dimensions, max(options.components)),
            random_task_ratio=jnp.float32(options.random_task_ratio),
            key=key,
            faults=jnp.int32(0),
        )

    def record(state: CovarGMMState, feedback: Feedback) -> CovarGMMState:
        mask = feedback.mask
        place = state.episodes % fit_rate + jnp.cumsum(mask) - 1
        rows = jnp.concatenate([feedback.task, (place / fit_rate)[:, None], feedback.ret[:, None]], axis=1)
        return state._replace(
            rows=state.rows.at[jnp.where(mask, place, fit_rate)].set(rows, mode="drop"),
            episodes=state.episodes + jnp.sum(mask, dtype=jnp.int32),
        )

    def refit(state: CovarGMMState) -> CovarGMMState:
        key, fit_key = jax.random.split(state.key)
        selection = fit_mixtures(
            fit_key, state.rows, components=options.components, specialise_k=options.specialise_k
        )
        progress = selection.mixture.covariances[:, -2, -1]
        progress = jnp.abs(progress) if options.absolute_lp else progress
        unit = jnp.ones_like(state.space.low)
        return state._replace(mixture=task_mixture(selection, progress, state.space, unit), key=key)

    def metrics(state: CovarGMMState) -> dict[str, Array]:
        recent = jnp.arange(fit_rate) < state.episodes
        figures = sampler_metrics(state, state.rows[:, :-2], recent, bootstrap=fit_rate)
        progress = state.mixture.scores.sum() / jnp.maximum(state.mixture.components, 1)
        return {**figures, "mean_progress": progress}

    return periodic_teacher(
        period=fit_rate,
        init=init,
        sample=functools.partial(draw_task, bootstrap=fit_rate, initial=options.initial),
        record=record,
        refit=refit,
        density=functools.partial(draw_log_density, bootstrap=fit_rate, initial=options.initial),
        metrics=metrics,
        return_range=options.return_range,
    )
