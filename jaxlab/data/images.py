"""Labelled images: Fashion-MNIST from Debian's package, or any data set in MNIST's IDX files.

Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747 (MIT licence). Nothing is shipped with us.
"""

import gzip
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_directory, cache_dir, require_sha256

FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""What the classes 0 to 9 of Fashion-MNIST are."""

_DEBIAN = "dataset-fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_HOW_TO = (
    f"install the Debian package {_DEBIAN} (apt-get install {_DEBIAN}), or put {', '.join(_SHA256)} into a folder and "
    "name that"
)
_SECONDS = 120
_UNSIGNED_BYTES = 8


class Images(NamedTuple):
    """Grey images of one size, and the class of each, 0 to classes - 1."""

    pixels: UInt8[np.ndarray, "count height width"]
    classes: Int[np.ndarray, " count"]


def fashion_mnist(folder: str | Path | None = None) -> tuple[Images, Images]:
    """60,000 training and 10,000 test images of 28 x 28 pixels in ten classes (`FASHION_CLASSES`).

    Args:
      folder: with the four `-ubyte.gz` files (those of MNIST, KMNIST and others have the same names). Default: where
        Debian's package puts them, else the cache directory, which is filled with `apt-get download`; that needs no
        rights, but Debian or a system made from it.

    Raises:
      InputError: the folder lacks a file, or a file is damaged.
      ResourceError: no folder is given, the package is not installed, and it cannot be fetched.
    """
    if folder is not None:
        return _read(Path(folder).expanduser())
    if all((_INSTALLED / name).is_file() for name in _SHA256):
        return _read(_INSTALLED)
    cached = cache_dir("data") / "fashion-mnist"
    if not cached.is_dir():
        _fetch(cached)
    for name, expected in _SHA256.items():
        require_sha256(cached / name, expected, f"delete the folder {cached} and run again to fetch it anew")
    return _read(cached)


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """An array of unsigned bytes in the IDX format, gzipped or not.

    Raises:
      InputError: the file is missing, damaged, or holds other numbers.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; {_HOW_TO}") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}; fetch it anew") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES:
        raise InputError(f"{path}: is not an IDX file of unsigned bytes; it begins with {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + int(np.prod(shape)):
        raise InputError(
            f"{path}: has {len(content)} bytes; for shape {shape} it must have {start + np.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(folder: Path) -> tuple[Images, Images]:
    parts = []
    for part in ("train", "t10k"):
        pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        classes = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
        if pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
            raise InputError(
                f"{folder}: {part} has images {pixels.shape} and labels {classes.shape}; they must be [count, height, "
                "width] and [count]"
            )
        parts.append(Images(pixels, classes.astype(np.int32)))
    return parts[0], parts[1]


def _fetch(target: Path) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        raise ResourceError(f"Fashion-MNIST is not here, and there is no apt-get to fetch it with; {_HOW_TO}")
    with tempfile.TemporaryDirectory(prefix="jaxlab-") as directory:
        try:
            finished = subprocess.run(
                [apt, "download", _DEBIAN],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"apt-get download {_DEBIAN} took over {_SECONDS} s; {_HOW_TO}") from error
        packages = list(Path(directory).glob("*.deb"))
        if finished.returncode or not packages:
            raise ResourceError(
                f"apt-get cannot download {_DEBIAN} (exit status {finished.returncode}); {_HOW_TO}"
            )
        with atomic_directory(target) as temporary:
            unpack_deb(packages[0], temporary, tuple(_SHA256))
            for name, expected in _SHA256.items():
                require_sha256(temporary / name, expected, f"{_DEBIAN} is not the package that we know")


def unpack_deb(package: Path, target: Path, names: tuple[str, ...]) -> None:
    """Put the files of a Debian package with these names into a folder.

    A package is an `ar` archive whose member data.tar.* holds the files. Reference: manual page deb(5).

    Raises:
      ResourceError: the package is damaged, or lacks one of them.
    """
    content = package.read_bytes()
    at, found = 8, set()
    while content.startswith(b"!<arch>\n") and at + 60 <= len(content):
        name, size = content[at : at + 16].decode("latin-1").rstrip(" /"), content[at + 48 : at + 58]
        length = int(size) if size.strip().isdigit() else len(content)
        if name.startswith("data.tar"):
            try:
                with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + length])) as tar:
                    for member in tar:
                        short = Path(member.name).name
                        stream = tar.extractfile(member) if short in names else None
                        if stream is not None:
                            (target / short).write_bytes(stream.read())
                            found.add(short)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise ResourceError(
                    f"{package.name}: {name} cannot be read: {error}; fetch it anew"
                ) from error
        at += 60 + length + length % 2
    missing = [name for name in names if name not in found]
    if missing:
        raise ResourceError(
            f"{package.name}: holds no {', '.join(missing)}; it is not the package that we know"
        )
