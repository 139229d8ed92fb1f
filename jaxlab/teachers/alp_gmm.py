"""ALP-GMM: tasks drawn from Gaussians in proportion to the learning progress found there.

The absolute learning progress (ALP) of an episode is the change in return since the most similar earlier task. It is
needed only at the next fit, so it is computed there, a block of episodes at once; the result is that of computing it
with every episode. Reference: arXiv:1910.07224, section 4 and algorithm 1; github.com/flowersteam/teachDeepRL.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.gaussian_mixtures import Criterion, fit_mixtures
from jaxlab.kernels.nearest_neighbor import nearest_neighbor
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

_FIRST_WITH_PROGRESS = 6
"""Episodes before this one have ALP 0: the reference asks for more than five in its history."""


@dataclasses.dataclass(frozen=True)
class ALPGMMConfig:
    """Options of ALP-GMM, by default teachDeepRL's; `TEACHMYAGENT_ALP_GMM` has the tuned ones of TeachMyAgent."""

    fit_rate: int = 250
    """Episodes between fits, which see as many; also the uniform episodes at the start."""
    components: tuple[int, ...] = tuple(range(2, 11))
    """Candidate numbers of Gaussians."""
    criterion: Criterion = "aic"
    """Chooses among them."""
    aicc_reference: bool = False
    """Count the parameters in "aicc" as the reference does, with a dimension too few."""
    random_task_ratio: float = 0.2
    """Share of uniform tasks; the state holds it, so that a sweep can set it under jit."""
    history: int = 100_000
    """Episodes in which similar tasks are sought; older ones are forgotten one by one. At least `fit_rate`."""
    normalise_tasks: bool = False
    """Divide tasks by the extent of the space before distances and fits. The reference does not."""
    return_range: tuple[float, float] | None = None
    """Map returns from here to [0, 1] and clip: (-150, 350) in teachDeepRL. None leaves them, as TeachMyAgent does."""
    initial: TaskGaussian | None = None
    """Bootstrap tasks come from here rather than uniformly (TeachMyAgent, expert knowledge "high")."""
    specialise_k: bool = True
    """See `fit_mixtures`."""

    def __post_init__(self) -> None:
        check_mixture_config(self.fit_rate, self.components, self.random_task_ratio)
        if self.history < self.fit_rate:
            raise InputError(f"history is {self.history}; it must be >= fit_rate = {self.fit_rate}")


TEACHMYAGENT_ALP_GMM = ALPGMMConfig(fit_rate=150, components=tuple(range(2, 10)), random_task_ratio=0.05)


class ALPGMMState(NamedTuple):
    """The last episodes in the order in which they came, and the mixture fitted last."""

    space: TaskSpace
    tasks: Float[Array, "slots dim"]
    returns: Float[Array, " slots"]
    forgotten: Int[Array, ""]
    """Episodes moved out at the front: episode e stands in slot e - forgotten."""
    episodes: Int[Array, ""]
    """Episodes seen; the same for all seeds under vmap."""
    alps: Float[Array, " fit_rate"]
    """Those of the last fit."""
    mixture: TaskMixture
    random_task_ratio: Float[Array, ""]
    key: jax.Array
    faults: Int[Array, ""]


def alp_gmm_teacher(config: ALPGMMConfig | None = None) -> Teacher:
    """The teacher ALP-GMM; see `ALPGMMConfig`."""
    options = config or ALPGMMConfig()
    fit_rate = options.fit_rate
    slots = fit_rate * (-(-options.history // fit_rate) + 1)

    def init(key: jax.Array, space: TaskSpace) -> ALPGMMState:
        check_fit_rate(fit_rate, space.dimensions + 1)
        check_gaussian(space, options.initial)
        return ALPGMMState(
            space=space,
            tasks=jnp.zeros((slots, space.dimensions)),
            returns=jnp.zeros(slots),
            forgotten=jnp.int32(0),
            episodes=jnp.int32(0),
            alps=jnp.zeros(fit_rate),
            mixture=no_mixture(space.dimensions, max(options.components)),
            random_task_ratio=jnp.float32(options.random_task_ratio),
            key=key,
            faults=jnp.int32(0),
        )

    def record(state: ALPGMMState, feedback: Feedback) -> ALPGMMState:
        mask = feedback.mask
        slot = state.episodes - state.forgotten + jnp.cumsum(mask) - 1
        slot = jnp.where(mask, slot, slots)
        return state._replace(
            tasks=state.tasks.at[slot].set(feedback.task, mode="drop"),
            returns=state.returns.at[slot].set(feedback.ret, mode="drop"),
            episodes=state.episodes + jnp.sum(mask, dtype=jnp.int32),
        )

    def scale(space: TaskSpace) -> Float[Array, " dim"]:
        return space.extent if options.normalise_tasks else jnp.ones_like(space.extent)

    def refit(state: ALPGMMState) -> ALPGMMState:
        size = state.episodes - state.forgotten
        unit = scale(state.space)
        alps = learning_progress(
            state.tasks / unit,
            state.returns,
            size=size,
            count=fit_rate,
            window=options.history,
            forgotten=state.forgotten,
        )
        block = jax.lax.dynamic_slice_in_dim(state.tasks, size - fit_rate, fit_rate) / unit
        key, fit_key = jax.random.split(state.key)
        selection = fit_mixtures(
            fit_key,
            jnp.concatenate([block, alps[:, None]], axis=1),
            components=options.components,
            criterion=options.criterion,
            aicc_reference=options.aicc_reference,
            specialise_k=options.specialise_k,
        )
        mixture = task_mixture(selection, selection.mixture.means[:, -1], state.space, unit)
        return _make_room(state._replace(alps=alps, mixture=mixture, key=key), fit_rate)

    def metrics(state: ALPGMMState) -> dict[str, Array]:
        age = state.episodes - state.forgotten - jnp.arange(slots)
        recent = (age > 0) & (age <= fit_rate)
        figures = sampler_metrics(state, state.tasks, recent, bootstrap=fit_rate)
        return {**figures, "mean_alp": state.alps.mean()}

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


def learning_progress(
    tasks: Float[Array, "slots dim"],
    returns: Float[Array, " slots"],
    *,
    size: Int[Array, ""],
    count: int,
    window: int,
    forgotten: Int[Array, ""] | int = 0,
) -> Float[Array, " count"]:
    """|return - return of the nearest earlier task| of the last `count` episodes, each as if computed when it came.

    The oldest of equally near tasks counts. The first six episodes have progress 0. Reference: arXiv:1910.07224,
    section 4.

    Args:
      tasks: in the order in which they came.
      returns: theirs.
      size: slots in use, >= count.
      count: how many episodes.
      window: an episode is compared with so many before it, at most.
      forgotten: episodes before the first slot.
    """
    start = size - count
    block = jax.lax.dynamic_slice_in_dim(tasks, start, count)
    block_returns = jax.lax.dynamic_slice_in_dim(returns, start, count)
    within = jnp.arange(count)
    oldest = start + within - window
    before, before_distance = nearest_neighbor(block, tasks, size=start, first=oldest)
    among, among_distance = nearest_neighbor(block, block, first=oldest - start, stop=within)
    similar = jnp.where(
        before_distance <= among_distance,
        returns[jnp.maximum(before, 0)],
        block_returns[jnp.maximum(among, 0)],
    )
    return jnp.where(start + within + forgotten < _FIRST_WITH_PROGRESS, 0, jnp.abs(block_returns - similar))


def _make_room(state: ALPGMMState, fit_rate: int) -> ALPGMMState:
    """Moves the oldest `fit_rate` episodes out once all slots are in use; no later episode looks at them."""

    def move(state: ALPGMMState) -> ALPGMMState:
        return state._replace(
            tasks=jnp.roll(state.tasks, -fit_rate, axis=0),
            returns=jnp.roll(state.returns, -fit_rate),
            forgotten=state.forgotten + fit_rate,
        )

    full = state.episodes - state.forgotten == state.tasks.shape[0]
    return jax.lax.cond(full, move, lambda state: state, state)
