"""Labelled time series of the UCR archive: those that the package `aeon` ships, or `.ts` files.

Dau et al., "The UCR time series archive", 2018, arXiv:1810.07758. Nothing is shipped with us.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxlab.errors import InputError
from jaxlab.models.packages import cached_wheel

UCR = ("ACSF1", "ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf")
"""Names that `ucr` knows: of all these, series of one length, without gaps."""

_AEON_VERSION = "1.6.0"
_AEON_SHA256 = "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"


class TimeSeries(NamedTuple):
    """Series of one length, and the class of each, 0 to classes - 1."""

    series: Float[np.ndarray, "count length"]
    classes: Int[np.ndarray, " count"]


def ucr(name: str) -> tuple[TimeSeries, TimeSeries]:
    """Training and test set as the archive splits them; every sample of every series.

    Args:
      name: one of `UCR`.

    Raises:
      InputError: unknown name.
      ResourceError: the package cannot be fetched, or has the wrong checksum.
    """
    if name not in UCR:
        raise InputError(f"series {name!r} are not known; known are {', '.join(UCR)}")
    folder = zipfile.Path(cached_wheel("aeon", _AEON_VERSION, _AEON_SHA256), f"aeon/datasets/data/{name}/")
    parts = [folder / f"{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    read = [_parsed(part.read_text(encoding="utf-8"), part.name) for part in parts]
    labels = sorted({label for part in read for label in part[1]})
    train, test = (
        TimeSeries(series, np.array([labels.index(label) for label in own], np.int32)) for series, own in read
    )
    return train, test


def read_ts(path: str | Path) -> TimeSeries:
    """A `.ts` file with class labels; classes are numbered in the order of the sorted labels.

    Raises:
      InputError: the file is missing, has several channels, series of different lengths, gaps or no labels.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: is not a file; expected a .ts file")
    series, labels = _parsed(path.read_text(encoding="utf-8"), str(path))
    classes = np.unique(labels, return_inverse=True)[1]
    return TimeSeries(series, classes.astype(np.int32))


def _parsed(content: str, name: str) -> tuple[np.ndarray, list[str]]:
    head, found, body = content.partition("@data")
    if not found:
        raise InputError(f"{name}: has no @data line; it is not a .ts file, or is cut short")
    if "@classlabel true" not in head.lower():
        raise InputError(f"{name}: has no class labels (@classLabel true ...)")
    rows: list[np.ndarray] = []
    labels: list[str] = []
    for number, line in enumerate(filter(None, map(str.strip, body.splitlines())), start=1):
        values, colon, label = line.rpartition(":")
        if not colon or ":" in values:
            raise InputError(f"{name}: series {number} must be one channel and a label, VALUES:LABEL")
        try:
            row = np.array(values.split(","), np.float64)
        except ValueError as error:
            raise InputError(f"{name}: series {number} holds what is not a number: {error}") from error
        if not np.isfinite(row).all():
            raise InputError(f"{name}: series {number} has gaps; fill them first")
        if rows and len(row) != len(rows[0]):
            raise InputError(
                f"{name}: series {number} has {len(row)} samples, the first {len(rows[0])}; one length is needed"
            )
        rows.append(row)
        labels.append(label)
    if not rows:
        raise InputError(f"{name}: holds no series")
    return np.stack(rows), labels
