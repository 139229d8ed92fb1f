"""The tidy table of a sweep: a row for each run and step, as CSV and as parquet."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file

Table = dict[str, np.ndarray]
"""Columns of one length, by name."""


def require_parquet() -> Any:
    """pyarrow.

    Raises:
      ResourceError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ResourceError(
            f"sweeps write parquet by pyarrow: pip install 'jaxlab[sweeps]' ({error})"
        ) from error
    return pyarrow


def tidy(
    points: list[dict[str, Any]],
    seeds: np.ndarray,
    results: Mapping[str, np.ndarray],
    steps: np.ndarray | None,
    step_name: str,
) -> Table:
    """A row for each run and step: the grid's options, the seed, the step, then the results.

    Args:
      points: options of every combination of the grid.
      seeds: of each run, [combinations x seeds], seeds fastest.
      results: [runs] or [runs, steps]; numbers are repeated at every step.
      steps: of curves; None if there are none.
      step_name: their column.
    """
    runs = len(seeds)
    rows = 1 if steps is None else len(steps)
    each = runs // len(points)
    table: Table = {}
    for name in points[0]:
        values = np.array([point[name] for point in points], dtype=_dtype([point[name] for point in points]))
        table[name] = np.repeat(values, each * rows)
    table["seed"] = np.repeat(seeds.astype(np.int64), rows)
    if steps is not None:
        table[step_name] = np.tile(steps, runs)
    for name, own in results.items():
        table[name] = np.repeat(own, rows) if own.ndim == 1 else own.reshape(-1)
    return table


def _dtype(values: list[Any]) -> Any:
    kinds = {type(value) for value in values}
    if kinds <= {bool} or kinds <= {int} or kinds <= {int, float}:
        return None
    return object


def write_table(table: Table, stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """STEM.csv and STEM.parquet; each is whole or absent.

    Raises:
      ResourceError: pyarrow is missing, or the disk is full.
    """
    arrow = require_parquet()
    import pyarrow.parquet

    columns = {name: _plain(own) for name, own in table.items()}
    written = Path(f"{os.fspath(stem)}.csv"), Path(f"{os.fspath(stem)}.parquet")
    with atomic_file(written[0]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(_words(own) for own in columns.values()), strict=True))
    with atomic_file(written[1]) as temporary:
        pyarrow.parquet.write_table(
            arrow.table({name: arrow.array(own) for name, own in columns.items()}), temporary
        )
    return written


def read_table(path: str | os.PathLike[str]) -> Table:
    """A table that `write_table` wrote, from its parquet file.

    Raises:
      InputError: the file is missing or damaged.
      ResourceError: pyarrow is missing.
    """
    arrow = require_parquet()
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_table(os.fspath(path))
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is no whole parquet file: {error}") from error
    return {name: found.column(name).to_numpy(zero_copy_only=False) for name in found.column_names}


def _plain(column: np.ndarray) -> Any:
    """Words as a list, as arrow wants them; None stays."""
    if column.dtype == object:
        return [None if value is None else str(value) for value in column]
    return column


def _words(column: Any) -> list[str]:
    """The shortest text that gives each number back."""
    if isinstance(column, list):
        return ["" if value is None else value for value in column]
    if column.dtype.kind == "f":
        return [repr(value) if value == value else "" for value in map(_as_float, column)]
    return [str(value) for value in column.tolist()]


def _as_float(value: Any) -> Any:
    """A float whose repr is as short as the number's own precision allows."""
    return float(str(value))
