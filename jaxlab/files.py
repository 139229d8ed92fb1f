"""Files that are either whole or absent: the cache directory, atomic writes, checksums."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxlab.errors import ResourceError


def cache_dir(*parts: str) -> Path:
    """Directory for what can be fetched or computed again; created if absent.

    `JAXLAB_CACHE` if set, else `XDG_CACHE_HOME/jaxlab`, else `~/.cache/jaxlab`, followed by `parts`.
    """
    root = os.environ.get("JAXLAB_CACHE")
    if root:
        base = Path(root)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlab"
    path = base.joinpath(*parts)
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it replaces `path` when the block ends well, and is removed otherwise.

    Raises:
      ResourceError: the disk is full, or the directory cannot be written.
    """
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush_to_disk(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary directory beside `path`; it takes the place of `path` when the block ends well.

    A directory that is already at `path` is replaced whole, and stays untouched if the block fails.

    Raises:
      ResourceError: the disk is full, or the directory cannot be written.
    """
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            os.chmod(temporary, 0o777 & ~_umask())
            if path.exists():
                old = temporary.with_suffix(".old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_sha256(path: str | os.PathLike[str], expected: str, advice: str, *, name: str = "") -> None:
    """Raises ResourceError unless the file has this checksum; the message ends with the advice.

    Args:
      path: the file.
      expected: hexadecimal.
      advice: what to do about it.
      name: what to call the file; its path by default.
    """
    found = sha256_of(path) if Path(path).is_file() else "no such file"
    if found != expected:
        raise ResourceError(f"{name or path}: wrong sha256, expected {expected}, found {found}; {advice}")


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"disk full while writing {path}: free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EROFS) and error.filename is not None:
            raise ResourceError(f"cannot write {error.filename}: {error.strerror}") from error
        raise


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
