"""Benchmark scores from a table of the user's, and how well distances predict them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab.errors import InputError
from jaxlab.phylogeny.regression import RegressionConfig, leave_family_out, prediction_report


class Scores(NamedTuple):
    """A table of scores; NaN where a model has none."""

    benchmarks: tuple[str, ...]
    values: np.ndarray
    """[models, benchmarks], in [0, 1]."""
    families: tuple[str, ...]


def read_scores(path: Path, names: Sequence[str], families: Sequence[str]) -> Scores:
    """A CSV file with the columns "model", perhaps "family", and one for each benchmark.

    Scores of a benchmark that go beyond 1 are taken as per cent. Rows of other models are passed over.

    Args:
      path: of the file.
      names: of the models.
      families: of the models, where the file has no such column.

    Raises:
      InputError: the file is missing, has no column "model" or no benchmark, or a score is no number.
    """
    if not path.is_file():
        raise InputError(f"{path}: is not there; scores must be a CSV file")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    benchmarks = tuple(name for name in columns if name not in ("model", "family"))
    if "model" not in columns or not benchmarks:
        raise InputError(
            f'{path}: has the columns {columns}; it must have "model" and at least one benchmark'
        )
    found = {row["model"]: row for row in rows}
    values = np.full((len(names), len(benchmarks)), np.nan)
    for m, name in enumerate(names):
        for b, benchmark in enumerate(benchmarks):
            text = (found.get(name, {}).get(benchmark) or "").strip()
            try:
                values[m, b] = float(text) if text else np.nan
            except ValueError as error:
                raise InputError(
                    f"{path}: {benchmark} of {name!r} is {text!r}; it must be a number"
                ) from error
    with np.errstate(invalid="ignore"):
        values /= np.where(np.nanmax(np.nan_to_num(values), axis=0) > 1, 100, 1)
    given = "family" in columns
    return Scores(
        benchmarks,
        values,
        tuple(
            (found.get(name, {}).get("family") or family) if given else family
            for name, family in zip(names, families, strict=True)
        ),
    )


def predict_scores(
    scores: Scores, distances: np.ndarray, names: Sequence[str], *, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave-one-family-out predictions of every benchmark.

    Returns:
      Flat figures for the summary, and everything: predictions, signed correlations, models without a score.

    Raises:
      InputError: too few models or families have a score.
    """
    figures, everything = {}, {}
    for b, benchmark in enumerate(scores.benchmarks):
        there = np.flatnonzero(~np.isnan(scores.values[:, b]))
        families = [scores.families[m] for m in there]
        largest = max((families.count(name) for name in set(families)), default=0)
        config = RegressionConfig(components=min(15, max(1, len(there) - largest - 1)))
        wanted = scores.values[there, b]
        found = leave_family_out(
            jax.random.key(seed), distances[np.ix_(there, there)], wanted, families, config=config
        )
        record: dict[str, Any] = {
            "models": [names[int(m)] for m in there],
            "without a score": [name for m, name in enumerate(names) if m not in there],
            "scores": wanted.tolist(),
        }
        for kind, predicted in found._asdict().items():
            report = prediction_report(np.asarray(predicted), wanted, families)
            figures[f"{benchmark}_{kind}_r"] = report.correlation
            figures[f"{benchmark}_{kind}_mae"] = report.mean_absolute_error
            record[kind] = {"predictions": np.asarray(predicted).tolist(), **report._asdict()}
        everything[benchmark] = record
    return figures, everything
