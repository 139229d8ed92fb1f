"""A whole sweep: programs one after the other, each in chunks that are kept, then one table and its figures."""

import dataclasses
import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.parallel import from_first, make_mesh
from jaxlab.progress import Progress, Stage
from jaxlab.runs import RunFolder
from jaxlab.sweeps.figures import figures
from jaxlab.sweeps.grids import Grid, parse_grid
from jaxlab.sweeps.programs import Call, Program, compile_program, plan, traced_defaults
from jaxlab.sweeps.protocol import Sweepable
from jaxlab.sweeps.statistics import interval_estimate
from jaxlab.sweeps.tables import Table, require_parquet, tidy, write_table

_CHUNKS = 8
"""Of each program, where no chunk is asked for."""


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What makes two sweeps the same."""

    config: Any
    grid: Mapping[str, Sequence[Any]]
    seeds: int
    lanes: int


class _Work(NamedTuple):
    sweepable: Sweepable
    programs: list[Program]
    lanes: int
    chunk: int | None
    devices: int


def sweep(
    recipe: Any,
    config: Any,
    grid: Sequence[str] | Mapping[str, Sequence[Any]],
    *,
    seeds: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    lanes: int | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """All runs of a grid and of several seeds, as a table in `out`: `results.csv`, `results.parquet`, `figures/`.

    On several hosts call it in every process, after `jaxlab.parallel.initialize`; process 0 writes.

    Args:
      recipe: a module (or object) with `SWEEP`, a `Sweepable`.
      config: all options that the grid does not name; its seed is the first.
      grid: see `parse_grid`; may be empty.
      seeds: runs of each combination.
      out: the folder; None is `runs/sweep-NAME-TIMESTAMP`.
      resume: go on after the last chunk that was kept in `out`.
      lanes: runs side by side on a device; None is what the recipe says, fewer if they do not fit into memory.
      chunk: runs from one kept result to the next; None is an eighth of a program's runs.
      progress: where to show how far it is; None shows nothing.
      name: of the system; None is the module's.

    Returns:
      The summary: programs, runs, seconds, and the interquartile mean of each result at the last step by combination.

    Raises:
      InputError: a recipe that cannot be swept, or an option that cannot be used.
      ResourceError: a package, the memory or the disk failed.
    """
    sweepable = getattr(recipe, "SWEEP", None)
    name = name or getattr(recipe, "__name__", "").rpartition(".")[2].replace("_", "-")
    if not isinstance(sweepable, Sweepable):
        raise InputError(f"{name} cannot be swept: its recipe has no SWEEP (see jaxlab.sweeps.Sweepable)")
    for what, value in (("lanes", lanes), ("chunk", chunk)):
        if value is not None and value < 1:
            raise InputError(f"{what} is {value}; it must be at least 1")
    require_parquet()
    points = parse_grid(config, grid)
    programs = plan(sweepable, points, getattr(config, "seed", 0), seeds)
    work = _Work(sweepable, programs, lanes or sweepable.lanes, chunk, len(jax.devices()))
    asked = _Asked(config, dict(points.values), seeds, work.lanes)
    with _Folder(out, asked, resume, f"sweep-{name}") as folder:
        if folder.summary is not None:
            return folder.summary
        table = _all_programs(work, points, folder, progress or Progress(quiet=True))
        return folder.finish(table, points, sweepable)


class _Folder:
    """The run folder that all processes share; process 0 alone reads and writes what is kept of chunks."""

    def __init__(self, out: str | Path | None, asked: _Asked, resume: bool, system: str) -> None:
        self.first = jax.process_index() == 0
        self.folder = RunFolder(out, asked, resume, system=system)
        self.summary = self.folder.summary

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.folder.__exit__(*failure)

    def kept(self, key: str) -> dict[str, np.ndarray] | None:
        """Results of a chunk that were kept; in other processes {} if there are some."""
        found = _read_chunk(self.folder.path / "chunks" / f"{key}.npz") if self.first else None
        return (found or {}) if from_first(found is not None) else None

    def keep(self, key: str, results: Mapping[str, np.ndarray]) -> None:
        """Writes the results of a chunk."""
        if self.first:
            arrays: dict[str, Any] = dict(results)
            with (
                atomic_file(self.folder.artefact(f"chunks/{key}.npz")) as temporary,
                open(temporary, "wb") as file,
            ):
                np.savez(file, **arrays)

    def finish(self, table: Table | None, points: Grid, sweepable: Sweepable) -> dict[str, Any]:
        """Table, figures and summary; the chunks go."""
        if table is None:
            return self.folder.finish({})
        write_table(table, self.folder.artefact("results"))
        names = [name for name in sweepable.shown or _results(table, points, sweepable) if name in table]
        figures(self.folder, table, points, sweepable, names)
        summary = {
            "runs": len(points.configs) * len(np.unique(table["seed"])),
            "rows": len(table["seed"]),
            "folder": str(self.folder.path),
            "combinations": _last_figures(table, points, sweepable),
        }
        finished = self.folder.finish(summary)
        shutil.rmtree(self.folder.path / "chunks", ignore_errors=True)
        return finished


def _all_programs(work: _Work, points: Grid, folder: _Folder, progress: Progress) -> Table | None:
    """The table, in process 0."""
    total = sum(len(program.runs) for program in work.programs)
    seeds = np.zeros(total, np.uint32)
    results: dict[str, np.ndarray] = {}
    steps = None
    with progress.stage("runs", total, unit="runs") as stage:
        for number, program in enumerate(work.programs):
            seeds[program.runs] = program.seeds
            with jax.enable_x64(work.sweepable.double(program.config)):
                parts = _chunks(work, number, program, folder, stage)
            own_steps = (
                None if work.sweepable.steps is None else np.asarray(work.sweepable.steps(program.config))
            )
            if number and not np.array_equal(own_steps, steps):  # type: ignore[arg-type]  # None equals None
                raise InputError(
                    "the grid's programs take their curves at different steps, which one table cannot hold: "
                    "sweep them one by one"
                )
            steps = own_steps
            for name in parts[0] if folder.first else ():
                own = np.concatenate([part[name] for part in parts])[: len(program.runs)]
                whole = results.setdefault(name, np.zeros((total, *own.shape[1:]), own.dtype))
                whole[program.runs] = own
    if not folder.first:
        return None
    return tidy(
        [points.point(i) for i in range(len(points.configs))], seeds, results, steps, work.sweepable.step_name
    )


def _chunks(
    work: _Work, number: int, program: Program, folder: _Folder, stage: Stage
) -> list[dict[str, np.ndarray]]:
    """Results of all chunks of a program; the last is filled up with copies of its last run."""
    options = traced_defaults(work.sweepable, program)
    runs = len(program.runs)
    unit = work.lanes * work.devices
    wanted = work.chunk or math.ceil(runs / _CHUNKS)
    size = min(math.ceil(wanted / unit), math.ceil(runs / unit)) * unit
    call: Call | None = None
    parts = []
    for start in range(0, runs, size):
        key, own = f"{number:03d}-{start:06d}-{size}", min(size, runs - start)
        found = folder.kept(key)
        if found is not None:
            stage.skip(own)
        else:
            if call is None:
                mesh = make_mesh({"data": work.devices}) if work.devices > 1 else None
                train = work.sweepable.train(program.config)
                call, _ = compile_program(train, options, mesh=mesh, lanes=work.lanes, chunk=size)
            places = np.minimum(np.arange(start, start + size), runs - 1)
            found = call({name: values[places] for name, values in options.items()}, program.seeds[places])
            folder.keep(key, found)
            stage.advance(own)
        parts.append(found)
    return parts


def _read_chunk(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is no whole file."""
    if not path.exists():
        return None
    try:
        with np.load(path) as found:
            return dict(found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and its chunk is run again") from error


def _results(table: Table, points: Grid, sweepable: Sweepable) -> list[str]:
    return [name for name in table if name not in (*points.names, "seed", sweepable.step_name)]


def _last_figures(table: Table, points: Grid, sweepable: Sweepable) -> list[dict[str, Any]]:
    """Of every combination the interquartile mean over seeds with its interval, at the last step."""
    seeds = len(np.unique(table["seed"]))
    rows = []
    for i in range(len(points.configs)):
        row = dict(points.point(i))
        for name in sweepable.shown or _results(table, points, sweepable):
            last = table[name].reshape(len(points.configs), seeds, -1)[i, :, -1]
            if last.dtype.kind not in "fiub":
                continue
            value, low, high = (float(own) for own in interval_estimate(last.astype(float)))
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows
