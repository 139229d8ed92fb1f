"""Learning-progress teachers on the hypercube: many students at once, each taught its own curriculum.

The hypercube's cells must be practised in order, so that a teacher who proposes tasks at random wastes nearly all of
them. Shown are the cells that are mastered after so many episodes, over all seeds, and the curriculum of the first.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.environments import HypercubeConfig, HypercubeWorld, hypercube_world
from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.progress import Progress
from jaxlab.recipes.alp_gmm_report import figures, summary, table
from jaxlab.recipes.alp_gmm_teachers import TeacherName, teacher_of
from jaxlab.recipes.options import require_at_least
from jaxlab.runs import RunFolder
from jaxlab.sweeps.protocol import Sweepable, Train
from jaxlab.teachers import TaskSpace, run_teacher_student, task_space

__all__ = ["PRESETS", "SWEEP", "Config", "run", "table"]

_WITH_RATIO = ("alp-gmm", "covar-gmm")
_CHUNKS = 8
"""Of all students: after each the run is kept."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the alp-gmm recipe."""

    teacher: TeacherName = "alp-gmm"
    """Who proposes tasks. adr, oracle, spdl, spdl-v2, goal-gan and reverse-curriculum know where easy tasks are (the
    origin); goal-gan, setter-solver, sfl, skew-fit and reverse-curriculum know what success is; the others know bounds
    alone."""
    dimensions: int = 2
    """Of the tasks that matter."""
    cells: int = 10
    """In each of these dimensions."""
    distractors: int = 0
    """Further dimensions of a task, which do nothing."""
    episodes: int = 20_000
    """Of each student; rounded up to whole blocks."""
    students: int = 64
    """Students, each with a teacher and a seed of its own, the first with --seed."""
    random_task_ratio: float = 0.2
    """Share of uniform tasks of alp-gmm and covar-gmm."""
    fit_rate: int = 250
    """Episodes between fits of alp-gmm and covar-gmm; of the others the length of a block."""
    most_components: int = 10
    """Largest number of Gaussians that is tried, from 2 on."""
    absolute_progress: bool = False
    """covar-gmm also counts what is getting worse as progress."""
    split_score: Literal["paper", "reference"] = "paper"
    """How riac rates splits: as the paper says, or as the reference's code does."""
    every: int = 2000
    """Episodes between points of the curves; rounded to whole blocks."""
    seed: int = 0
    """Of the first student."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, dimensions=1, cells=1, distractors=0, episodes=1, students=1, every=1)
        require_at_least(self, fit_rate=1, most_components=2)
        if not 0 <= self.random_task_ratio <= 1:
            raise InputError(f"random_task_ratio is {self.random_task_ratio}; it must lie between 0 and 1")


PRESETS = {
    "smoke": Config(episodes=5000, students=8),
    "cpu": Config(),
    "gpu": Config(episodes=100_000, students=1000, every=5000),
}


class _Blocks(NamedTuple):
    """How a run is cut up: blocks of so many episodes, and a point of the curves after every `stride` blocks."""

    number: int
    length: int
    stride: int

    @property
    def ends(self) -> np.ndarray:
        """Episodes at the points of the curves."""
        return np.arange(self.stride, self.number + 1, self.stride) * self.length


def _blocks(config: Config) -> _Blocks:
    length = teacher_of(config).period or config.fit_rate
    count = -(-config.episodes // length)
    return _Blocks(count, length, min(max(1, round(config.every / length)), count))


def world_of(config: Config) -> tuple[HypercubeWorld, TaskSpace]:
    """The hypercube, and the space of its tasks."""
    size = HypercubeConfig(config.dimensions, config.cells, config.distractors)
    bounds: list[tuple[float, float]] = [(0.0, 1.0)] * size.task_dimensions
    return hypercube_world(size), task_space(bounds)


def _student(config: Config) -> Callable[[Any, jax.Array], tuple[dict[str, jax.Array], jax.Array]]:
    """From the share of uniform tasks and a key to the curves of one student, and its tasks [blocks, block, dim]."""
    teacher, (world, space), blocks = teacher_of(config), world_of(config), _blocks(config)

    def one(ratio: Any, key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        own = teacher
        if config.teacher in _WITH_RATIO:
            own = teacher._replace(
                init=lambda key, space: teacher.init(key, space)._replace(
                    random_task_ratio=jnp.float32(ratio)
                )
            )
        _, _, log = run_teacher_student(key, own, world, space, blocks=blocks.number, block=blocks.length)
        points = len(blocks.ends)
        returns = log.returns[: points * blocks.stride].reshape(points, -1)
        return {
            "mastered": log.score[blocks.stride - 1 :: blocks.stride],
            "mean_return": jnp.mean(returns, axis=1),
        }, log.tasks

    return one


def _train(config: Config) -> Train:
    one = _student(config)
    return lambda options, key: one(options["random_task_ratio"], key)[0]


SWEEP = Sweepable(
    _train,
    traced=("random_task_ratio",),
    steps=lambda config: _blocks(config).ends,
    step_name="episodes",
    lanes=1,
    shown=("mastered",),
)


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last checkpoint, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/alp-gmm-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: mastered cells in percent over students, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="alp-gmm") as folder:
        if folder.summary is not None:
            return folder.summary
        curves, tasks = _all_students(config, folder, progress)
        arrays: dict[str, Any] = {"episodes": _blocks(config).ends, "tasks": tasks, **curves}
        with atomic_file(folder.artefact("curves.npz")) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
        with progress.stage("figures"):
            figures(folder, config, world_of(config)[0], arrays)
        return folder.finish(summary(config, arrays))


def _all_students(
    config: Config, folder: RunFolder, progress: Progress
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Curves of all students, [students, points], a few students at a time; and the tasks of the first."""
    chunk, blocks = -(-config.students // _CHUNKS), _blocks(config)
    width = config.dimensions + config.distractors
    curves = {
        name: np.zeros((config.students, len(blocks.ends)), np.float32)
        for name in ("mastered", "mean_return")
    }
    tasks = np.zeros((blocks.number, blocks.length, width), np.float32)
    restored, done = folder.restore_leaves(like=(curves, tasks)), 0
    if restored is not None:
        done, (curves, tasks) = restored
        curves, tasks = {name: np.array(own) for name, own in curves.items()}, np.array(tasks)
    one = _student(config)

    @jax.jit
    def play(seeds: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        # On a CPU one after the other, where each fit stops by itself.
        together = 1 if jax.default_backend() == "cpu" else chunk
        return jax.lax.map(
            lambda seed: one(config.random_task_ratio, jax.random.key(seed)),
            seeds,
            batch_size=None if together == 1 else together,
        )

    with progress.stage(config.teacher, config.students, unit="students") as stage:
        stage.skip(done)
        while done < config.students:
            last = min(done + chunk, config.students)
            seeds = np.minimum(np.arange(done, done + chunk), config.students - 1) + config.seed
            found, played = play(jnp.asarray(seeds, jnp.uint32))
            for name, own in found.items():
                curves[name][done:last] = own[: last - done]
            if done == 0:
                tasks = np.asarray(played[0])
            stage.advance(last - done, mastered=float(found["mastered"][:, -1].mean()))
            done = last
            folder.log(step=done, mastered=curves["mastered"][:done, -1])
            folder.checkpoint_leaves(done, (curves, tasks))
    return curves, tasks
