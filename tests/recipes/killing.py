"""Killing a run in the middle, as a power cut would."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

_MAIN = "import sys; from jaxlab.cli import main; sys.exit(main(sys.argv[1:]))"


def run_until_killed(system, config, out, milestone):
    """Runs a recipe by the command line into `out`, and kills it once the path `milestone` exists."""
    options = []
    for field in dataclasses.fields(config):
        option, value = field.name.replace("_", "-"), getattr(config, field.name)
        if isinstance(value, tuple):
            options += [f"--{option}", *map(str, value)] if value != field.default else []
        elif not isinstance(value, bool):
            options.append(f"--{option}={value}")
        elif value != field.default:
            options.append(f"--{option}" if value else f"--no-{option}")
    command = [sys.executable, "-c", _MAIN, "run", system, *options, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not milestone.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
