"""Peers that cannot share our environment: each runs in a virtual environment of its own.

`peers/NAME.txt` pins what goes into it (one requirement a line), `peers/NAME.py` is a script that reads the
arrays of `sys.argv[1]` (.npz), runs the peer, and writes its results to `sys.argv[2]` (.npz): by convention
`seconds`, the time of each repetition after a warm-up, beside whatever is to be compared. The environment
is made on first use in the user's cache, and made anew when the pins change. A script may be named like the
package that it runs: its own folder is not on its path.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import cache_dir

FOLDER = Path(__file__).parent
_INSTALL_TIMEOUT_S = 1800


def run_peer(
    name: str,
    inputs: Mapping[str, np.ndarray],
    *,
    script: str | None = None,
    folder: Path = FOLDER,
    timeout_s: float = 1800,
) -> dict[str, np.ndarray]:
    """Runs a peer's script in the environment of `peers/NAME.txt`.

    Args:
      name: of the peer.
      inputs: arrays for the script.
      script: file name of the script; None means NAME.py.
      folder: where pins and script are.
      timeout_s: longest time for the script.

    Returns:
      The arrays that the script wrote.

    Raises:
      InputError: no such peer.
      ResourceError: the environment cannot be made, or the script failed; the message ends with what it said.
    """
    pins, program = folder / f"{name}.txt", folder / (script or f"{name}.py")
    for file in (pins, program):
        if not file.exists():
            raise InputError(f"peer {name!r} is missing {file}")
    python = environment(name, pins)
    with tempfile.TemporaryDirectory() as exchange:
        given, written = Path(exchange) / "inputs.npz", Path(exchange) / "outputs.npz"
        np.savez(given, **{key: np.asarray(value) for key, value in inputs.items()})
        # -P: a script that is named like the package it runs must not import itself.
        _run([str(python), "-P", str(program), str(given), str(written)], f"peer {name}", timeout_s)
        if not written.exists():
            raise ResourceError(f"peer {name} ended well but wrote no results to its second argument")
        with np.load(written) as outputs:
            return dict(outputs)


def environment(name: str, pins: Path) -> Path:
    """Python of the peer's virtual environment, made if it is not there yet.

    Raises:
      ResourceError: the packages cannot be installed; nothing half-made stays behind.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(f"{version}\n{pins.read_text()}".encode()).hexdigest()[:16]
    home = cache_dir("peers") / f"{name}-{digest}"
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = home / "ready"
    if ready.exists():
        return python
    sys.stderr.write(f"making the environment of peer {name} in {home}\n")
    shutil.rmtree(home, ignore_errors=True)
    try:
        venv.create(home, with_pip=True)
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(pins),
        ]
        _run(install, f"installing peer {name}", _INSTALL_TIMEOUT_S)
        ready.touch()
    finally:
        if not ready.exists():
            shutil.rmtree(home, ignore_errors=True)
    return python


def _run(command: list[str], what: str, timeout_s: float) -> None:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"{what} took more than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ResourceError(f"{what} failed with exit code {done.returncode}:\n{tail}")
