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
    command = [sys.executable, *run_command(system, config, out)]
    kill_at(milestone, [subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)])


def run_command(system, config, out):
    """What to give to Python so that it runs a recipe into `out`."""
    options = []
    for field in dataclasses.fields(config):
        option, value = field.name.replace("_", "-"), getattr(config, field.name)
        if isinstance(value, tuple):
            options += [f"--{option}", *map(str, value)] if value != field.default else []
        elif not isinstance(value, bool):
            options.append(f"--{option}={value}")
        elif value != field.default:
            options.append(f"--{option}" if value else f"--no-{option}")
    return ["-c", _MAIN, "run", system, *options, "--out", str(out)]


def kill_at(milestone, processes):
    """Kills processes once the path `milestone` exists."""
    deadline = time.monotonic() + 240

    def running():
        return all(process.poll() is None for process in processes)

    while not milestone.exists() and running() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert running(), "the run ended before it could be killed"
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
