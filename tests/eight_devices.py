"""Runs a test file under pytest in a process of its own with 8 virtual CPU devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def properties(script: Path, *, slow: bool = False) -> list[str]:
    """Names of a file's tests, without or of those marked slow."""
    named = re.findall(r"^((?:@.*\n)*)def (test_\w+)", script.read_text(), re.MULTILINE)
    return [name for marks, name in named if ("pytest.mark.slow" in marks) == slow]


def report_of(script: Path, *options: str) -> str:
    """What pytest prints of a file's tests."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *options, str(script)], env=environment, capture_output=True, text=True, timeout=900
    )
    return done.stdout + done.stderr


def check_passed(report: str, name: str) -> None:
    """Fails unless a test, with all of its parameters, passed."""
    outcomes = re.findall(rf"^(\w+) .*::{name}(?:\[.*\])?(?: - .*)?$", report, re.MULTILINE)
    if set(outcomes) != {"PASSED"}:
        pytest.fail(report, pytrace=False)
