"""Measuring two things side by side, and keeping what was seen.

A benchmark is a module in this folder with a docstring that states the claim and a function

    def run(quick: bool) -> list[dict]

that returns the rows of its table. `quick` means small sizes, under a minute, for a check that it works.
"""

import importlib
import json
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import info
from jaxlab.errors import ResourceError
from jaxlab.files import atomic_file

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
_REST_S = 0.3
_NO_BENCHMARKS = ("harness", "__main__", "peers")


class Timing(NamedTuple):
    """Seconds of one contestant: its first call (compilation included), and the calls after it.

    `cpu` is what all threads of this process took for the same calls.
    """

    first: float
    seconds: tuple[float, ...]
    first_cpu: float = 0.0
    cpu: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median seconds of a call after the first."""
        return statistics.median(self.seconds)

    @property
    def compilation(self) -> float:
        """What the first call took beyond a later one."""
        return max(self.first - self.median, 0.0)


def kept(name: str, config: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` returned for this config, now or at an earlier time, in `results/NAME.json`.

    Long benchmarks consist of such pieces, so that they go on after an interruption, also on another machine.

    Args:
      name: of the piece, with its folder: "t_regs_runs/mse-0".
      config: all that the piece depends on, as JSON takes it; what another config gave is measured anew.
      measure: makes it, as JSON takes it.
    """
    file, wanted = RESULTS / f"{name}.json", json.loads(json.dumps(config))
    if file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["config"] == wanted:
            return record["found"]
    found = measure()
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps({"config": wanted, "found": found}, indent=1), encoding="utf-8")
    return found


def compare(
    contestants: Mapping[str, Callable[[], Any]],
    repetitions: int = 5,
    *,
    minimum_s: float = 0.0,
    turn_s: float = 0.0,
) -> dict[str, Timing]:
    """Times several functions in turns, so that whatever else the machine does hits all of them alike.

    Args:
      contestants: name to a function without arguments; what it returns is waited for (`block_until_ready`).
      repetitions: timed calls of each, at least 1, after one call that is reported apart.
      minimum_s: go on in turns until each contestant has been timed for this many seconds in total.
      turn_s: if positive, a turn is as many calls as take so long, after a rest and a call that does not count: threads
        that another contestant left spinning (OpenMP's do for a while) have gone to sleep by then.

    Returns:
      A `Timing` a contestant.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}, but must be at least 1")
    first = {name: _seconds(function) for name, function in contestants.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    rounds = 0
    while rounds < repetitions or min(sum(wall for wall, _ in calls) for calls in taken.values()) < minimum_s:
        # Odd rounds in reverse order: nobody always runs just after the same other one.
        for name in contestants if rounds % 2 == 0 else reversed(contestants):
            if turn_s:
                time.sleep(_REST_S)
                _seconds(contestants[name])
            began = time.perf_counter()
            taken[name].append(_seconds(contestants[name]))
            while time.perf_counter() - began < turn_s:
                taken[name].append(_seconds(contestants[name]))
        rounds += 1
    found = {}
    for name, calls in taken.items():
        wall, cpu = zip(*calls, strict=True)
        found[name] = Timing(first[name][0], wall, first[name][1], cpu)
    return found


def timing_rows(
    timings: Mapping[str, Timing], *, work: float | None = None, unit: str = "items", ours: str = "ours"
) -> list[dict[str, Any]]:
    """Table rows of `compare`: median milliseconds, work per second, how many times faster `ours` is.

    Args:
      timings: from `compare`.
      work: units done in one call, for a rate; None leaves it out.
      unit: what is counted.
      ours: the contestant that the others are compared with; must be among them.
    """
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"who": name, "median_ms": round(1e3 * timing.median, 3)}
        if work is not None:
            row[f"{unit}_per_s"] = float(f"{work / timing.median:.4g}")
        row["ours_is_x_faster"] = round(timing.median / timings[ours].median, 2)
        row["compile_s"] = round(timing.compilation, 2)
        row["repetitions"] = len(timing.seconds)
        rows.append(row)
    return rows


def cpu_rows(what: str, timings: Mapping[str, Timing], target: float | None = None) -> list[dict[str, Any]]:
    """Table rows of `compare` with CPU seconds beside the wall's, and ratios of both to "ours".

    Args:
      what: was measured.
      timings: from `compare`, "ours" among them.
      target: of the ratios, if there is one.
    """
    base = timings["ours"]
    rows = []
    for who, timing in timings.items():
        cpu = float(np.median(timing.cpu))
        row: dict[str, Any] = {
            "what": what,
            "who": who,
            "median_ms": round(1e3 * timing.median, 3),
            "cpu_ms": round(1e3 * cpu, 3),
            "ours_is_x_faster": round(timing.median / base.median, 2),
            "x_less_cpu": round(cpu / float(np.median(base.cpu)), 2),
            "first_cpu_s": round(timing.first_cpu, 2),
            "repetitions": len(timing.seconds),
        }
        rows.append(row | ({"target": target} if target else {}))
    return rows


def require_equal(mine: Sequence[Any], theirs: Sequence[Any], tolerance: float) -> None:
    """Raises ResourceError where two sequences of arrays differ by more than the tolerance."""
    for a, b in zip(mine, theirs, strict=True):
        error = float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        if not error <= tolerance:
            raise ResourceError(f"values differ by {error:.2g}, more than {tolerance:g}: nothing to compare")


def names() -> list[str]:
    """All benchmarks in this folder."""
    found = [module.name for module in pkgutil.iter_modules([str(FOLDER)])]
    return sorted(name for name in found if name not in _NO_BENCHMARKS)


def load(name: str) -> ModuleType:
    """The module of one benchmark.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in names():
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(names()) or 'none'}")
    return importlib.import_module(f"benchmarks.{name}")


def save(name: str, rows: Sequence[Mapping[str, Any]], *, quick: bool, seconds: float) -> Path:
    """Writes a benchmark's rows with device, versions and date to `results/NAME.json` (`NAME-quick.json`)."""
    environment = info.environment()
    del environment["cache"], environment["extras"]
    record = {
        "benchmark": name,
        "quick": quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "environment": environment,
        "rows": [dict(row) for row in rows],
    }
    path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - start, time.process_time() - start_cpu


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers for JSON."""
    return value.tolist()
