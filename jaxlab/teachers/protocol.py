"""What a teacher is: pure functions that choose the next task and learn from the returns of finished episodes.

A teacher whose sampler only changes every `period` episodes says so. Then a loop can draw a whole period of tasks at
once and call `refit` between periods without a condition, which under `vmap` would become a fit at every episode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.spaces import TaskSpace, contains_task

State = Any
"""A teacher's state: a NamedTuple of arrays with at least the fields `space` and `faults`."""

RETURN_NOT_FINITE = 1
TASK_OUT_OF_BOUNDS = 2
NO_STUDENT_VALUES = 4
VALUE_NOT_FINITE = 8
SCORE_NOT_FINITE = 16
"""Bits of `faults`, and of the metric "error": what was wrong with feedback under jit, where nothing can raise."""


class Feedback(NamedTuple):
    """Episodes of B parallel students, finished or not, in the order in which they count."""

    task: Float[Array, "B dim"]
    ret: Float[Array, " B"]
    """Return of the episode."""
    success: Bool[Array, " B"]
    length: Int[Array, " B"]
    """Steps."""
    mask: Bool[Array, " B"]
    """Whether the episode has finished; the others are passed over."""
    score: Float[Array, " B"]
    """What a replay teacher ranks tasks by; 0 where nothing does."""


class Episode(NamedTuple):
    """One finished episode, as a teacher learns from it; see `Feedback`."""

    task: Float[Array, " dim"]
    ret: Float[Array, ""]
    success: Bool[Array, ""]
    length: Int[Array, ""]
    score: Float[Array, ""]


class StepFeedback(NamedTuple):
    """One step of B parallel students, for teachers that look inside episodes."""

    context: Float[Array, "B dim"]
    value: Float[Array, " B"]
    """The student's value of the first state of the episode."""
    start: Bool[Array, " B"]
    """Whether an episode starts here."""


class Teacher(NamedTuple):
    """A teacher as pure functions; every one works under jit and vmap."""

    init: Callable[[jax.Array, TaskSpace], State]
    """(key, space) -> state."""
    sample: Callable[[State, jax.Array], tuple[Float[Array, " dim"], State]]
    """(state, key) -> (task, state)."""
    update: Callable[[State, Float[Array, " dim"], Float[Array, ""]], State]
    """(state, task, return) -> state. What counts as success follows from the return, the length is 1, the score 0."""
    sample_batch: Callable[[State, jax.Array, int], tuple[Float[Array, "n dim"], State]]
    """(state, key, n) -> (tasks, state): as `sample` with each key of `jax.random.split(key, n)` in turn."""
    update_batch: Callable[[State, jax.Array, Feedback], State]
    """(state, key, feedback) -> state: as `update` with each finished episode in turn."""
    on_step: Callable[[State, jax.Array, StepFeedback], State]
    """(state, key, step) -> state, after each step of the students; most teachers do nothing."""
    density: Callable[[State, Float[Array, "m dim"]], Float[Array, " m"]]
    """(state, tasks) -> log-density of the current sampler, up to what clipping to the box moves."""
    metrics: Callable[[State], dict[str, Array]]
    """state -> figures to show; "error" is not 0 after bad feedback under jit."""
    period: int
    """The sampler changes after every so many episodes; 0 if any episode may change it."""
    record: Callable[[State, Feedback], State]
    """(state, feedback) -> state: notes episodes that cross no period. Only where `period` > 0."""
    refit: Callable[[State], State]
    """state -> state at the end of a period. Only where `period` > 0."""


def returns_feedback(
    tasks: Float[Array, "B dim"],
    rets: Float[Array, " B"],
    mask: Bool[Array, " B"] | None = None,
    *,
    success_return: float | None = None,
) -> Feedback:
    """Feedback of which only tasks and returns are known.

    Args:
      tasks: of the episodes.
      rets: theirs.
      mask: which have finished; all by default.
      success_return: a return above this is a success; None: nothing is.
    """
    rets = jnp.asarray(rets)
    finished = jnp.ones(rets.shape, bool) if mask is None else mask
    success = jnp.zeros(rets.shape, bool) if success_return is None else rets > success_return
    return Feedback(
        tasks, rets, success, jnp.ones(rets.shape, jnp.int32), finished, jnp.zeros(rets.shape, jnp.float32)
    )


def _nothing(state: State, key: jax.Array, step: StepFeedback) -> State:
    del key, step
    return state


def every_episode_teacher(
    *,
    init: Callable[[jax.Array, TaskSpace], State],
    sample: Callable[[State, jax.Array], tuple[Float[Array, " dim"], State]],
    learn: Callable[[State, Episode], State],
    density: Callable[[State, Float[Array, "m dim"]], Float[Array, " m"]],
    metrics: Callable[[State], dict[str, Array]],
    return_range: tuple[float, float] | None = None,
    success_return: float | None = None,
    on_step: Callable[[State, jax.Array, StepFeedback], State] = _nothing,
) -> Teacher:
    """A teacher that may change its sampler with every episode.

    Args:
      init: see `Teacher`.
      sample: see `Teacher`.
      learn: (state, episode) -> state for checked episodes with scaled returns.
      density: see `Teacher`.
      metrics: see `Teacher`, without "error".
      return_range: see `scaled_return`.
      success_return: to `update`, a return (not scaled) above this is a success; `update_batch` is told.
      on_step: see `Teacher`.
    """
    check_return_range(return_range)

    def update(state: State, task: Float[Array, " dim"], ret: Float[Array, ""]) -> State:
        only = returns_feedback(
            jnp.asarray(task)[None], jnp.asarray(ret)[None], success_return=success_return
        )
        return learn(_checked(state, only), _episode(jax.tree.map(lambda x: x[0], only), return_range))

    def sample_batch(state: State, key: jax.Array, n: int) -> tuple[Float[Array, "n dim"], State]:
        def one(state: State, key: jax.Array) -> tuple[State, Float[Array, " dim"]]:
            task, state = sample(state, key)
            return state, task

        state, tasks = jax.lax.scan(one, state, jax.random.split(key, n))
        return tasks, state

    def update_batch(state: State, key: jax.Array, feedback: Feedback) -> State:
        del key

        def one(state: State, row: Feedback) -> tuple[State, None]:
            learnt = learn(state, _episode(row, return_range))
            return jax.tree.map(lambda a, b: jnp.where(row.mask, a, b), learnt, state), None

        return jax.lax.scan(one, _checked(state, feedback), feedback)[0]

    return Teacher(
        init=init,
        sample=sample,
        update=update,
        sample_batch=sample_batch,
        update_batch=update_batch,
        on_step=on_step,
        density=density,
        metrics=lambda state: {**metrics(state), "error": state.faults},
        period=0,
        record=_has_no_period,
        refit=_has_no_period,
    )


def periodic_teacher(
    *,
    period: int,
    init: Callable[[jax.Array, TaskSpace], State],
    sample: Callable[[State, jax.Array], Float[Array, " dim"]],
    record: Callable[[State, Feedback], State],
    refit: Callable[[State], State],
    density: Callable[[State, Float[Array, "m dim"]], Float[Array, " m"]],
    metrics: Callable[[State], dict[str, Array]],
    return_range: tuple[float, float] | None = None,
    success_return: float | None = None,
    on_step: Callable[[State, jax.Array, StepFeedback], State] = _nothing,
) -> Teacher:
    """A teacher whose sampler changes every `period` episodes; its state counts them in `episodes`.

    Under `vmap` keep `episodes` unbatched (all seeds in step, no masks that differ between seeds): then the fit of
    `update` stays conditional.

    Args:
      period: episodes between fits.
      init: see `Teacher`.
      sample: (state, key) -> task.
      record: notes checked episodes with scaled returns, those under the mask; they cross no period.
      refit: see `Teacher`.
      density: see `Teacher`.
      metrics: see `Teacher`, without "error".
      return_range: see `scaled_return`.
      success_return: to `update`, a return (not scaled) above this is a success; the rest is told.
      on_step: see `Teacher`.
    """
    check_return_range(return_range)

    def checked_record(state: State, feedback: Feedback) -> State:
        scaled = feedback._replace(ret=scaled_return(feedback.ret, return_range))
        return record(_checked(state, feedback), scaled)

    def update(state: State, task: Float[Array, " dim"], ret: Float[Array, ""]) -> State:
        only = returns_feedback(
            jnp.asarray(task)[None], jnp.asarray(ret)[None], success_return=success_return
        )
        state = checked_record(state, only)
        return jax.lax.cond(state.episodes % period == 0, refit, lambda state: state, state)

    def update_batch(state: State, key: jax.Array, feedback: Feedback) -> State:
        del key
        left = feedback.mask
        for _ in range(left.shape[0] // period + 1):
            now = left & (jnp.cumsum(left) <= period - state.episodes % period)
            state = checked_record(state, feedback._replace(mask=now))
            ended = jnp.any(now) & (state.episodes % period == 0)
            state = jax.lax.cond(ended, refit, lambda state: state, state)
            left = left & ~now
        return state

    return Teacher(
        init=init,
        sample=lambda state, key: (sample(state, key), state),
        update=update,
        sample_batch=lambda state, key, n: (
            jax.vmap(sample, in_axes=(None, 0))(state, jax.random.split(key, n)),
            state,
        ),
        update_batch=update_batch,
        on_step=on_step,
        density=density,
        metrics=lambda state: {**metrics(state), "error": state.faults},
        period=period,
        record=checked_record,
        refit=refit,
    )


def _episode(row: Feedback, return_range: tuple[float, float] | None) -> Episode:
    """A row of feedback with its return scaled."""
    return Episode(row.task, scaled_return(row.ret, return_range), row.success, row.length, row.score)


def _has_no_period(*arguments: Any) -> State:
    raise InputError("this teacher has period 0: call update or update_batch")


def check_return_range(return_range: tuple[float, float] | None) -> None:
    """Raises `InputError` unless it is None or (low, high) with low < high."""
    if return_range is not None and not return_range[0] < return_range[1]:
        raise InputError(f"return_range is {return_range}; it must be None or (low, high) with low < high")


def scaled_return(
    ret: Float[Array, "*batch"], return_range: tuple[float, float] | None
) -> Float[Array, "*batch"]:
    """Returns mapped linearly from `return_range` to [0, 1] and clipped there, or as they are for None.

    teachDeepRL maps (-150, 350); TeachMyAgent leaves them by default.
    """
    if return_range is None:
        return jnp.asarray(ret)
    low, high = return_range
    return jnp.clip((jnp.asarray(ret) - low) / (high - low), 0, 1)


def _checked(state: State, feedback: Feedback) -> State:
    """Raises where feedback is concrete and wrong, else notes it in `faults`."""
    tasks, rets, mask = feedback.task, feedback.ret, feedback.mask
    space: TaskSpace = state.space
    if tasks.ndim != 2 or tasks.shape[1] != space.dimensions:
        raise InputError(
            f"task has shape {tasks.shape[1:]}; it must be ({space.dimensions},), as the space of tasks has"
        )
    for name in ("ret", "success", "length", "mask", "score"):
        shape = getattr(feedback, name).shape
        if shape != tasks.shape[:1]:
            raise InputError(f"{name} has shape {shape}; it must be {tasks.shape[:1]}, one for each task")
    bad_return = jnp.any(mask & ~jnp.isfinite(rets))
    bad_task = jnp.any(mask & ~contains_task(space, tasks))
    if not isinstance(bad_return, jax.core.Tracer) and bool(bad_return):
        raise InputError(f"ret is {np.asarray(rets)[np.asarray(mask)].tolist()}; returns must be finite")
    if not isinstance(bad_task, jax.core.Tracer) and bool(bad_task):
        raise InputError(
            f"task is {np.asarray(tasks)[np.asarray(mask)].tolist()}; it must lie between "
            f"{np.asarray(space.low).tolist()} and {np.asarray(space.high).tolist()}"
        )
    faults = RETURN_NOT_FINITE * bad_return + TASK_OUT_OF_BOUNDS * bad_task
    return state._replace(faults=state.faults | faults.astype(jnp.int32))
