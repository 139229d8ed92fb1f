"""A teacher that keeps its own state, for training loops outside JAX: PyTorch, stable-baselines, gymnasium.

Each method runs one compiled program; arrays go in and come out as NumPy's.
"""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.teachers.protocol import (
    NO_STUDENT_VALUES,
    RETURN_NOT_FINITE,
    SCORE_NOT_FINITE,
    TASK_OUT_OF_BOUNDS,
    VALUE_NOT_FINITE,
    Feedback,
    State,
    StepFeedback,
    Teacher,
)
from jaxlab.teachers.spaces import TaskSpace

_MAGIC = b"jaxlab teacher 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_KIND = "kind"


class TeacherSnapshot(NamedTuple):
    """All that a `StatefulTeacher` knows: from here it goes on alike."""

    teacher: State
    key: jax.Array


class StatefulTeacher:
    """A teacher with its state and its random key: `sample` a task, play it, `update` with its return.

    Feedback that cannot be raises `InputError` and leaves the state as it was.
    """

    def __init__(self, teacher: Teacher, space: TaskSpace, seed: int) -> None:
        """Starts a teacher.

        Args:
          teacher: such as `alp_gmm_teacher()`.
          space: of the tasks.
          seed: of all that is drawn.

        Raises:
          InputError: the teacher cannot work on this space.
        """
        self.space = space
        init_key, key = jax.random.split(jax.random.key(seed))
        self._snapshot = _strong(TeacherSnapshot(teacher.init(init_key, space), key))
        self._sample = jax.jit(_sampling(teacher))
        self._update = jax.jit(_noting_faults(lambda state, key, task, ret: teacher.update(state, task, ret)))
        self._update_batch = jax.jit(_noting_faults(teacher.update_batch))
        self._on_step = jax.jit(_noting_faults(teacher.on_step))
        self._density = jax.jit(teacher.density)
        self._metrics = jax.jit(teacher.metrics)

    def sample(self) -> Float[np.ndarray, " dim"]:
        """The next task."""
        task, self._snapshot = self._sample(self._snapshot)
        return np.array(task)

    def update(
        self,
        task: Float[np.ndarray, " dim"],
        ret: float,
        *,
        success: bool | None = None,
        length: int | None = None,
        score: float | None = None,
    ) -> None:
        """Learns from a finished episode.

        Args:
          task: that was played.
          ret: its return.
          success: of the episode. None: it follows from the return, by the teacher's own threshold.
          length: steps, 1 by default. Only together with `success`.
          score: what a replay teacher ranks tasks by, 0 by default. Only together with `success`.

        Raises:
          InputError: the return is not finite, the task has another shape or lies outside the space, or `length` or
            `score` is given without `success`.
        """
        if success is not None:
            values = (task, ret, success, 1 if length is None else length, True, score or 0.0)
            rows: Any = [np.asarray(value)[None] for value in values]
            self.update_batch(Feedback(*rows))
            return
        for name, value in (("length", length), ("score", score)):
            if value is not None:
                raise InputError(f"success is None; it must be True or False where {name} is given")
        tasks, returns = self._floats(task), self._floats(ret)
        self._learn(self._update, tasks, returns, shown={"task": tasks, "ret": returns})

    def update_batch(self, feedback: Feedback) -> None:
        """Learns from the finished ones of B episodes, in their order. Each B compiles once.

        Args:
          feedback: as `returns_feedback` makes it; arrays of any library that NumPy understands.

        Raises:
          InputError: a return is not finite, a task lies outside the space, or the shapes do not fit.
        """
        real = self.space.low.dtype
        kinds: Any = (real, real, bool, np.int32, bool, real)
        arrays: Any = [np.asarray(value, kind) for value, kind in zip(feedback, kinds, strict=True)]
        told = Feedback(*arrays)
        seen = {name: getattr(told, name)[told.mask] for name in ("task", "ret", "score")}
        self._learn(self._update_batch, told, shown=seen)

    def on_step(self, step: StepFeedback) -> None:
        """Notes a step of B students, for teachers that look inside episodes. Each B compiles once.

        Args:
          step: arrays of any library that NumPy understands.

        Raises:
          InputError: a value is not finite.
        """
        real = self.space.low.dtype
        kinds: Any = (real, real, bool)
        arrays: Any = [np.asarray(value, kind) for value, kind in zip(step, kinds, strict=True)]
        self._learn(self._on_step, StepFeedback(*arrays), shown={"value": arrays[1]})

    def density(self, tasks: Float[np.ndarray, "m dim"]) -> Float[np.ndarray, " m"]:
        """Log-density of the current sampler, up to what clipping to the box moves. Each m compiles once."""
        return np.array(self._density(self._snapshot.teacher, self._floats(tasks)))

    def metrics(self) -> dict[str, Any]:
        """The teacher's figures, as NumPy's numbers."""
        figures = self._metrics(self._snapshot.teacher)
        return {name: np.asarray(value)[()] for name, value in figures.items()}

    @property
    def state(self) -> TeacherSnapshot:
        """All that it knows. What is set must come from a teacher of the same configuration and space."""
        return self._snapshot

    @state.setter
    def state(self, snapshot: TeacherSnapshot) -> None:
        own, given = _leaves(self._snapshot), _leaves(snapshot)
        if own.keys() != given.keys():
            raise InputError(
                f"state is one of {type(snapshot.teacher).__name__} with other fields; it must be one of "
                f"{type(self._snapshot.teacher).__name__}, as this teacher's"
            )
        for name, leaf in own.items():
            _check_leaf(f"state{name}", given[name], leaf)
        self._snapshot = _strong(snapshot)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file, whole or not at all.

        Raises:
          ResourceError: the disk is full, or the directory cannot be written.
        """
        arrays = {name: _plain(leaf) for name, leaf in _leaves(self._snapshot).items()}
        payload = io.BytesIO()
        arrays[_KIND] = np.asarray(type(self._snapshot.teacher).__name__)
        np.savez_compressed(payload, **arrays)  # type: ignore[arg-type]  # no leaf is called allow_pickle
        content = payload.getvalue()
        with atomic_file(path) as temporary:
            temporary.write_bytes(_MAGIC + hashlib.sha256(content).digest() + content)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a file of `save`, of a teacher of the same configuration and space.

        Raises:
          InputError: there is no such file, it is damaged or no file of `save`, or of another teacher or space.
        """
        content = _read(Path(path))
        with np.load(io.BytesIO(content)) as stored:
            arrays = dict(stored)
        kind, expected = str(arrays.pop(_KIND)), type(self._snapshot.teacher).__name__
        own = _leaves(self._snapshot)
        if kind != expected or arrays.keys() != own.keys():
            raise InputError(f"{path} holds a state of {kind}; it must hold one of this teacher, {expected}")
        for name, leaf in own.items():
            _check_leaf(f"{path}: {name}", arrays[name], _plain(leaf))
            if name.startswith(".teacher.space") and not np.array_equal(arrays[name], np.asarray(leaf)):
                raise InputError(
                    f"{path}: {name} is {arrays[name].tolist()}; it must be {np.asarray(leaf).tolist()}, "
                    "as the space of this teacher"
                )
        leaves = [_as_leaf(arrays[name], leaf) for name, leaf in own.items()]
        self._snapshot = jax.tree.unflatten(jax.tree.structure(self._snapshot), leaves)

    def _floats(self, values: Any) -> Any:
        """In the precision of the space."""
        return np.asarray(values, self.space.low.dtype)

    def _learn(
        self, program: Callable[..., tuple[TeacherSnapshot, Array]], *told: Any, shown: dict[str, np.ndarray]
    ) -> None:
        """Takes over what the program learnt, unless it found fault with what it was told."""
        snapshot, found = program(self._snapshot, *told)
        if faults := int(found):
            low, high = np.asarray(self.space.low).tolist(), np.asarray(self.space.high).tolist()
            messages = {
                RETURN_NOT_FINITE: ("ret", "returns must be finite"),
                TASK_OUT_OF_BOUNDS: ("task", f"it must lie between {low} and {high}"),
                SCORE_NOT_FINITE: ("score", "scores must be finite"),
                VALUE_NOT_FINITE: ("value", "values must be finite"),
            }
            for bit, (name, rule) in messages.items():
                if faults & bit:
                    value = shown[name].tolist() if name in shown else "not finite"
                    raise InputError(f"{name} is {value}; {rule}")
            if faults & NO_STUDENT_VALUES:
                raise InputError(
                    "this teacher learns from values of the student: tell them by on_step beforehand"
                )
            raise InputError(f"the teacher finds fault with the feedback: bits {faults}")
        self._snapshot = snapshot


def _sampling(teacher: Teacher) -> Callable[[TeacherSnapshot], tuple[Array, TeacherSnapshot]]:
    def sample(snapshot: TeacherSnapshot) -> tuple[Array, TeacherSnapshot]:
        key, own = jax.random.split(snapshot.key)
        task, state = teacher.sample(snapshot.teacher, own)
        return task, _strong(TeacherSnapshot(state, key))

    return sample


def _noting_faults(
    learn: Callable[..., State],
) -> Callable[..., tuple[TeacherSnapshot, Int[Array, ""]]]:
    """A program that also returns the faults of this feedback alone."""

    def program(snapshot: TeacherSnapshot, *told: Any) -> tuple[TeacherSnapshot, Int[Array, ""]]:
        key, own = jax.random.split(snapshot.key)
        before = snapshot.teacher.faults
        state = learn(snapshot.teacher._replace(faults=jnp.zeros_like(before)), own, *told)
        after = TeacherSnapshot(state._replace(faults=before | state.faults), key)
        return _strong(after), state.faults

    return program


def _strong(snapshot: TeacherSnapshot) -> TeacherSnapshot:
    """Without weak types, so that each call finds the program of the first."""
    return jax.tree.map(
        lambda leaf: leaf if _is_key(leaf) else jax.lax.convert_element_type(leaf, leaf.dtype), snapshot
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(snapshot: TeacherSnapshot) -> dict[str, Any]:
    """Leaves by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(snapshot)}


def _plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _as_leaf(values: np.ndarray, like: Any) -> jax.Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(values), impl=jax.random.key_impl(like))
    return jnp.asarray(values)


def _check_leaf(name: str, found: Any, own: Any) -> None:
    if found.shape != own.shape or found.dtype != own.dtype:
        raise InputError(
            f"{name} is {found.dtype}{list(found.shape)}; it must be {own.dtype}{list(own.shape)}, "
            "as in a teacher of this configuration"
        )


def _read(path: Path) -> bytes:
    """What `save` put behind the digest."""
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise InputError(f"path is {path}; it must be a file of StatefulTeacher.save ({error})") from error
    if not whole.startswith(_MAGIC):
        raise InputError(f"{path} was not written by StatefulTeacher.save, or its beginning is damaged")
    start = len(_MAGIC) + _DIGEST_BYTES
    if hashlib.sha256(whole[start:]).digest() != whole[len(_MAGIC) : start]:
        raise InputError(f"{path} is damaged or cut off: its checksum is wrong")
    return whole[start:]
