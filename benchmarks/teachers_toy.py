"""Teachers on the hypercube of 10 x 10 cells, 20,000 episodes: parity with the reference, and speed beside its loop.

Ours by `jaxlab sweep alp-gmm`, whole command with a warm compilation cache; the peer (`peers/numpy_teachers.py`, NumPy,
SciPy and scikit-learn, one episode after the other) in an environment of its own, one seed after the other. Parity:
percentage of mastered cells over 64 seeds against what the reference's own code gave (`reference`, mean at the end,
and its curve at every 2,000 episodes), and the peer's. Speed: microseconds of an episode, wall and CPU. Last, 1,000
seeds of ALP-GMM. All other teachers of the recipe play as well, without a peer; their sweeps are kept in the cache
directory, where an interrupted run goes on. The figure is `results/teachers_toy.png`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab.errors import ResourceError
from jaxlab.files import atomic_file, cache_dir
from jaxlab.recipes.alp_gmm_teachers import TeacherName

_CHUNK = 16
"""Runs of a program, whatever the number of seeds: compiled once."""


class _Reference(NamedTuple):
    """What the reference's code gave, over a few seeds."""

    final: float
    tolerance: float
    curve: tuple[float, ...]
    """At 2,000, 4,000, ..., 20,000 episodes."""


_REFERENCE = {
    "alp-gmm": _Reference(34, 1.5, (2.3, 3.9, 6.8, 9.7, 13.5, 17.3, 21.2, 25.3, 29.5, 34.3)),
    "covar-gmm": _Reference(67, 2, (4.0, 9.8, 16.3, 23.2, 29.8, 37.0, 44.1, 51.8, 58.8, 66.6)),
    "riac": _Reference(49, 4, (3, 7.5, 11.5, 18.5, 23, 28.5, 32, 39, 43, 49)),
    "random": _Reference(4, 1, (0, 0, 0, 0, 1, 1.5, 2, 2.5, 3, 4)),
}
_TARGET = {"alp-gmm": 32.0, "covar-gmm": 32.0}
_OTHERS = tuple(name for name in get_args(TeacherName) if name not in _REFERENCE)


class Swept(NamedTuple):
    """Curves of a sweep, and what it took."""

    curves: np.ndarray
    """[seeds, points]"""
    episodes: np.ndarray
    wall: float
    cpu: float


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of parity, speed and the 1,000 seeds."""
    episodes, seeds, peer_seeds = (2000, 16, 1) if quick else (20_000, 64, 3)
    rows, curves = [], {}
    for teacher in (*_REFERENCE, *_OTHERS):
        if teacher in _REFERENCE:
            run_sweep(teacher, episodes, _CHUNK)
            ours = run_sweep(teacher, episodes, seeds)
        else:
            ours = _kept(teacher, episodes, seeds)
        curves[teacher] = ours
        rows.append(_parity(teacher, ours))
        if teacher in _REFERENCE:
            rows += _speed(teacher, ours, episodes, seeds, peer_seeds)
    if not quick:
        many = run_sweep("alp-gmm", episodes, 1000)
        rows.append(
            {
                "what": "1,000 seeds of 20,000 episodes, whole command",
                "teacher": "alp-gmm",
                "minutes": round(many.wall / 60, 2),
                "target": 8,
                "mastered": round(float(many.curves[:, -1].mean()), 2),
            }
        )
        _figure(curves)
    return rows


def run_sweep(
    teacher: str, episodes: int, seeds: int, *options: str, out: Path | None = None, chunk: int = _CHUNK
) -> Swept:
    """Run `jaxlab sweep alp-gmm` as a whole command.

    Args:
      teacher: its name on the command line.
      episodes: of each student.
      seeds: students.
      options: further ones of the command.
      out: folder to keep, where an interrupted sweep goes on; None is one that goes away.
      chunk: runs of a program.

    Raises:
      ResourceError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "sweep" if out is None else out
        jaxlab = str(Path(sys.executable).with_name("jaxlab"))
        command = [jaxlab, "sweep", "alp-gmm", "--preset", "cpu", "--out", str(kept)]
        command += ["--teacher", teacher, "--episodes", str(episodes), "--seeds", str(seeds)]
        command += ["--split-score", "reference", "--chunk", str(chunk), *options]
        command += ["--resume"] if kept.exists() else []
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise ResourceError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        table = np.genfromtxt(kept / "results.csv", delimiter=",", names=True)
    points = np.unique(table["episodes"])
    curves = table["mastered"].reshape(seeds, len(points))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Swept(curves, points.astype(int), wall, cpu)


def _kept(teacher: str, episodes: int, seeds: int) -> Swept:
    """A sweep without a clock: some of these teachers take minutes, so that they are kept in the cache directory."""
    out = cache_dir("benchmarks", "teachers_toy") / f"{teacher}-{episodes}-{seeds}"
    return run_sweep(teacher, episodes, seeds, out=out)


def _parity(teacher: str, ours: Swept) -> dict[str, Any]:
    mean = ours.curves.mean(0)
    row = {
        "what": "parity, % mastered",
        "teacher": teacher,
        "seeds": len(ours.curves),
        "mastered": round(float(mean[-1]), 2),
        "standard_error": round(float(ours.curves[:, -1].std(ddof=1) / np.sqrt(len(ours.curves))), 2),
        "curve": np.round(mean, 1).tolist(),
    }
    reference = _REFERENCE.get(teacher)
    if reference is None or len(mean) != len(reference.curve):
        return row
    return row | {
        "reference": f"{reference.final} +- {reference.tolerance}",
        "largest_difference_of_curves": round(float(np.abs(mean - reference.curve).max()), 2),
    }


def _speed(teacher: str, ours: Swept, episodes: int, seeds: int, peer_seeds: int) -> list[dict[str, Any]]:
    given = {"teacher": teacher, "dimensions": 2, "cells": 10, "episodes": episodes, "every": 2000}
    inputs = {name: np.asarray(value) for name, value in given.items()} | {"seeds": np.arange(peer_seeds)}
    peer = run_peer("numpy_teachers", inputs)
    played = episodes * seeds
    mine = {"us": 1e6 * ours.wall / played, "cpu_us": 1e6 * ours.cpu / played}
    theirs = {
        "us": 1e6 * float(np.mean(peer["seconds"])) / episodes,
        "cpu_us": 1e6 * float(np.mean(peer["cpu"])) / episodes,
    }
    target = {"target": _TARGET[teacher]} if teacher in _TARGET else {}
    rows = []
    for who, own in (("ours", mine), ("NumPy, SciPy, scikit-learn", theirs)):
        rows.append(
            {
                "what": "speed of an episode",
                "teacher": teacher,
                "who": who,
                **{name: float(f"{value:.4g}") for name, value in own.items()},
                "ours_is_x_faster": round(own["us"] / mine["us"], 1),
                "x_less_cpu": round(own["cpu_us"] / mine["cpu_us"], 1),
                **target,
            }
        )
    rows[1] |= {"mastered": np.round(peer["curves"][:, -1], 1).tolist()}
    return rows


def _figure(curves: dict[str, Swept]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5))
    best_first = sorted(curves.items(), key=lambda item: -item[1].curves[:, -1].mean())
    for number, (teacher, own) in enumerate(best_first):
        color = plt.get_cmap("tab20")(number)
        low, middle, high = np.quantile(own.curves, [0.25, 0.5, 0.75], axis=0)
        axis.plot(own.episodes, middle, label=teacher, color=color)
        axis.fill_between(own.episodes, low, high, color=color, alpha=0.2, linewidth=0)
    for reference in _REFERENCE.values():
        axis.plot(np.arange(2000, 20_001, 2000), reference.curve, "k:", linewidth=1)
    axis.set(
        xlabel="episodes",
        ylabel="mastered cells, %",
        title="median and quartiles over seeds; dotted: the reference's code",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    with atomic_file(harness.RESULTS / "teachers_toy.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
