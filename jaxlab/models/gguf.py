"""Reader of GGUF files, the single-file format of llama.cpp: metadata, and tensors that stay on disk until
asked for.

A file is a header (magic, version, counts), typed key-value pairs, one record a tensor (name, dimensions
fastest first, type, offset), and after padding the tensors themselves. Versions 2 and 3, little-endian.
Reference: the GGUF specification in the ggml repository, docs/gguf.md.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.gguf_blocks import BLOCK_FORMATS, dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 8

# GGUF value type -> (struct letter, numpy type); 8 is a string, 9 an array.
_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("B", np.uint8),
    1: ("b", np.int8),
    2: ("H", np.uint16),
    3: ("h", np.int16),
    4: ("I", np.uint32),
    5: ("i", np.int32),
    6: ("f", np.float32),
    7: ("?", np.bool_),
    10: ("Q", np.uint64),
    11: ("q", np.int64),
    12: ("d", np.float64),
}
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """Where a tensor lies: `shape` in numpy order (slowest first), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file; `data` is the memory-mapped file: tensors are read when `tensor` is called."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: np.ndarray

    def tensor(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """The tensor as float32, written into `out` (contiguous, same shape) when that is given.

        Raises:
          InputError: the file has no tensor of that name, or `out` has another shape.
        """
        info = self.tensors.get(name)
        if info is None:
            raise InputError(f"{self.path}: tensor {name!r} is missing")
        if out is None:
            out = np.empty(info.shape, np.float32)
        elif out.shape != info.shape:
            raise InputError(
                f"{self.path}: tensor {name!r} has shape {list(info.shape)}, expected {list(out.shape)}"
            )
        dequantize(self.data[info.offset : info.offset + info.nbytes], info.kind, out=out.reshape(-1))
        return out

    def blocks(self, name: str) -> np.ndarray:
        """The tensor as it is stored: uint8 [..., bytes of a row].

        Raises:
          InputError: the file has no tensor of that name.
        """
        info = self.tensors.get(name)
        if info is None:
            raise InputError(f"{self.path}: tensor {name!r} is missing")
        return self.data[info.offset : info.offset + info.nbytes].reshape(*info.shape[:-1], -1)


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Opens a GGUF file and reads everything but the tensors' contents.

    Args:
      path: the file.

    Returns:
      `GGUFFile`. Arrays in the metadata are numpy arrays, arrays of strings are lists.

    Raises:
      InputError: the file does not exist, is no GGUF file, is of an unknown version, is cut short, or holds a
        tensor
        of a type that we cannot dequantize.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path}: the file is empty, expected a GGUF file")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be opened as a GGUF file: {error.strerror}") from error

    cursor = _Cursor(path, buffer)
    tensor_count, pair_count = _read_header(cursor)
    metadata = {}
    for _ in range(pair_count):
        key = cursor.string("a metadata key")
        metadata[key] = cursor.value(cursor.scalar(4, f"the type of metadata {key!r}"), f"metadata {key!r}")
    records = [_read_record(cursor) for _ in range(tensor_count)]

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise InputError(f"{path}: general.alignment is {alignment!r}, expected a positive integer")
    start = -(-cursor.position // alignment) * alignment
    tensors = {record.name: _locate(record, start, alignment, path, len(buffer)) for record in records}
    return GGUFFile(path, metadata, tensors, np.frombuffer(buffer, np.uint8))


def _read_header(cursor: "_Cursor") -> tuple[int, int]:
    """Number of tensors and of metadata pairs."""
    path = cursor.path
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        raise InputError(f"{path}: is not a GGUF file: begins with {magic!r}, expected {MAGIC!r}")
    version = cursor.scalar(4, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        why = " (a big-endian file)" if swapped in VERSIONS else ""
        raise InputError(
            f"{path}: GGUF version {version}{why} is not supported, expected one of {list(VERSIONS)}"
        )
    return cursor.scalar(10, "the number of tensors"), cursor.scalar(10, "the number of metadata pairs")


def _read_record(cursor: "_Cursor") -> TensorInfo:
    name = cursor.string("a tensor name")
    what = f"the record of tensor {name!r}"
    dimensions = cursor.scalar(4, what)
    if dimensions > MAX_DIMENSIONS:
        raise InputError(
            f"{cursor.path}: tensor {name!r} has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}"
        )
    shape = tuple(cursor.scalar(10, what) for _ in range(dimensions))[::-1]
    number, offset = cursor.scalar(4, what), cursor.scalar(10, what)
    known = next((kind for kind, spec in BLOCK_FORMATS.items() if spec.number == number), None)
    if known is None:
        raise InputError(
            f"{cursor.path}: tensor {name!r} is of GGML type {number}, which is not supported; supported are "
            + ", ".join(f"{kind} ({spec.number})" for kind, spec in BLOCK_FORMATS.items())
        )
    return TensorInfo(name, shape, known, offset, 0)


def _locate(record: TensorInfo, start: int, alignment: int, path: Path, size: int) -> TensorInfo:
    """The record with its offset counted from the file's start, checked against the file's size."""
    spec = BLOCK_FORMATS[record.kind]
    row = record.shape[-1] if record.shape else 1
    if row % spec.values:
        raise InputError(
            f"{path}: rows of tensor {record.name!r} have {row} values, expected a multiple of {spec.values}"
            f" ({record.kind})"
        )
    count = 1
    for length in record.shape:
        count *= length
    nbytes = count // spec.values * spec.nbytes
    if record.offset % alignment:
        raise InputError(
            f"{path}: tensor {record.name!r} begins at {record.offset}, expected a multiple of {alignment}"
        )
    end = start + record.offset + nbytes
    if end > size:
        raise InputError(
            f"{path}: tensor {record.name!r} ends at byte {end}, but the file has {size} bytes:"
            " it is cut short, get it again"
        )
    return record._replace(offset=start + record.offset, nbytes=nbytes)


class _Cursor:
    """Reads typed values one after another, and says what it was looking for when the file ends."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path = path
        self.position = 0
        self._buffer = buffer

    def take(self, count: int, what: str) -> bytes:
        end = self.position + count
        if end > len(self._buffer):
            raise InputError(
                f"{self.path}: the file ends inside {what} (byte {len(self._buffer)}, {end} needed):"
                " it is cut short, get it again"
            )
        value = self._buffer[self.position : end]
        self.position = end
        return value

    def scalar(self, kind: int, what: str) -> Any:
        letter = _SCALARS[kind][0]
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def string(self, what: str) -> str:
        length = self.scalar(10, what)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {what} is not valid UTF-8: {error.reason}") from error

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        if kind not in _SCALARS:
            raise InputError(f"{self.path}: {what} has value type {kind}, expected 0 to 12")
        return self.scalar(kind, what)

    def _array(self, what: str) -> Any:
        kind, count = self.scalar(4, what), self.scalar(10, what)
        # Every element takes at least one byte (a string at least its length field), so this bounds a damaged
        # count.
        if count > len(self._buffer):
            raise InputError(f"{self.path}: {what} claims {count} elements: the file is damaged")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind][1]).newbyteorder("<")
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        return [self.value(kind, what) for _ in range(count)]
