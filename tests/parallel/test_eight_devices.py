"""Meshes, sharding rules and row-wise work on 8 virtual CPU devices, in one process of their own."""

from pathlib import Path

import pytest
from eight_devices import check_passed, properties, report_of

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("on_eight_devices.py")


@pytest.fixture(scope="module")
def report():
    return report_of(SCRIPT)


@pytest.mark.parametrize("name", properties(SCRIPT))
def test_on_eight_devices(report, name):
    check_passed(report, name)
