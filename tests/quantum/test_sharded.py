"""State vectors on 8 virtual CPU devices, in a process of their own, and when their amplitudes move."""

from pathlib import Path

import numpy as np
import pytest
from eight_devices import check_passed, properties, report_of

from jaxlab.quantum.ansatze import hardware_efficient
from jaxlab.quantum.recording import record
from jaxlab.quantum.sharded_plan import plan
from jaxlab.quantum.sharded_steps import Exchange
from jaxlab.quantum.simulation import default_block

SCRIPT = Path(__file__).with_name("sharded_on_eight_devices.py")


@pytest.fixture(scope="module")
def report():
    return report_of(SCRIPT)


@pytest.mark.slow
@pytest.mark.parametrize("name", properties(SCRIPT))
def test_on_eight_devices(report, name):
    check_passed(report, name)


@pytest.fixture(scope="module")
def slow_report():
    return report_of(SCRIPT, "-m", "slow")


@pytest.mark.slow
@pytest.mark.parametrize("name", properties(SCRIPT, slow=True))
def test_slow_on_eight_devices(slow_report, name):
    check_passed(slow_report, name)


def stages(circuit, n, shared, *args):
    """Of the circuit's plan on 2^shared devices."""
    program, _ = record(circuit, n, *args)
    found = plan(program, min(default_block(n), n - shared), n - shared, None)
    return [stage for part in found.parts for stage in part.stages]


def exchanges(steps):
    return sum(isinstance(step, Exchange) for step in steps)


@pytest.mark.parametrize(
    ("n", "shared"), [(8, 1), (9, 2), (8, 3), (12, 3), (16, 3), (18, 3), (20, 4), (28, 5), (27, 2)]
)
def test_layers_are_exchanged_once_and_soon_come_back(n, shared):
    ansatz = hardware_efficient(n, 12)
    (stage,) = stages(ansatz, n, shared, np.zeros(ansatz.shape))
    assert len(stage.layers) * stage.times == 12 and len(stage.layers) <= 3
    assert all(exchanges(steps) == 1 for steps in stage.layers)


def test_what_commutes_with_the_devices_number_needs_no_exchange():
    n = 8

    def circuit(c, angles):
        c.h((0, 1, 2, 3, 4))
        for wire in range(n):  # permutations, phases and controls may be anywhere
            c.cnot(wire, (wire + 3) % n)
            c.ccz(wire, (wire + 1) % n, (wire + 2) % n)
            c.swap(wire, (wire + 5) % n)
            c.rz(angles[wire], wire)

    def step(c, angles):  # n - 3 wires are mixed, and 3 number the devices
        c.h((0, 1, 2, 3, 4))
        c.ry(angles[0], 0, controls=(5, 6, 7), values=(1, 0, 1))
        c.gate("IsingXY", (0, 1), angles[1], controls=(6, 7))

    for one in (circuit, step):
        assert (
            sum(exchanges(steps) for stage in stages(one, n, 3, np.zeros(n)) for steps in stage.layers) == 0
        )


@pytest.mark.parametrize("seed", range(6))
def test_layers_are_few_in_a_program_even_if_their_frames_do_not_come_back(seed):
    n, times, rng = 13, 40, np.random.default_rng(seed)
    pairs = [rng.permutation(n)[:2].tolist() for _ in range(30)]

    def layer(c, angle):
        c.rx(angle, 12)
        for control, target in pairs:  # a permutation of long order
            c.cnot(control, target)

    found = stages(lambda c, angles: c.repeat(layer, angles), n, 3, np.zeros(times))
    assert sum(len(stage.layers) * stage.times for stage in found) == times
    assert sum(len(stage.layers) for stage in found) <= 12
    assert all(exchanges(steps) <= 2 for stage in found for steps in stage.layers)
