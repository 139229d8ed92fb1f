"""Measures and features of samples spread over 8 virtual CPU devices, in one process of its own."""

from pathlib import Path

import pytest
from eight_devices import check_passed, properties, report_of

SCRIPT = Path(__file__).with_name("measures_on_eight_devices.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    return report_of(SCRIPT)


@pytest.mark.parametrize("name", properties(SCRIPT))
def test_on_eight_devices(report, name):
    check_passed(report, name)
