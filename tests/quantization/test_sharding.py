"""Quantization with its rows spread over 8 virtual CPU devices gives the bytes of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("rows_on_eight_devices.py")


@pytest.fixture(scope="module")
def agreement():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_process_has_eight_devices(agreement):
    assert agreement["devices"] == 8


@pytest.mark.parametrize("what", ["pyramid", "scalar", "model"])
def test_bytes_are_those_of_one_device(agreement, what):
    """One matrix with feedback and refitted gains, one under GPTQ, and the matrices of a model in order."""
    assert agreement[what]
