"""Meshes, sharding rules and row-wise work on 8 virtual CPU devices, in one process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("on_eight_devices.py")
PROPERTIES = re.findall(r"^def (test_\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def report():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", PROPERTIES)
def test_on_eight_devices(report, name):
    assert re.search(rf"^PASSED .*::{name}$", report, re.MULTILINE), report
