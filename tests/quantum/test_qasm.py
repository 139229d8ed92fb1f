"""OpenQASM there and back, against states and a text by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.errors import InputError
from jaxlab.quantum.qasm import from_qasm, to_qasm
from jaxlab.quantum.recording import record
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")


def state(circuit, n):
    return simulate(*record(circuit, n))


def everything(c):
    c.h((0, 1, 2))
    c.repeat(lambda c, x: [c.rx(x, 0), c.crz(x, 1, 2)], jnp.asarray([0.3, -0.4]))
    c.gate("S", 1, adjoint=True)
    c.gate("RY", 2, 0.7, adjoint=True)
    c.gate("U3", 0, 0.1, 0.2, 0.3, adjoint=True)
    c.gate("U2", 1, 0.5, -0.2)
    c.gate("PauliX", 2, controls=(0, 1), values=(0, 1))
    c.gate("IsingYY", (0, 2), 0.8)
    c.cphase(0.4, 2, 0)
    c.cswap(0, 1, 2)


def test_a_program_comes_back_from_its_text():
    program, slots = record(everything, 3)
    n, circuit = from_qasm(to_qasm(program, slots))
    assert n == 3
    np.testing.assert_allclose(state(circuit, 3), simulate(program, slots), atol=1e-12)


TEXT = """OPENQASM 2.0;
include "qelib1.inc";
qreg a[2];  // two registers
qreg b[1];
creg c[3];
h a;
rz(-pi/4 + 2*0.1) b[0];
cx a, b[0];
barrier a;
sdg a[1];
"""


def test_text_by_hand_is_what_it_says():
    n, circuit = from_qasm(TEXT)

    def expected(c):
        c.h((0, 1))
        c.rz(-np.pi / 4 + 0.2, 2)
        c.cnot(0, 2)
        c.cnot(1, 2)
        c.gate("S", 1, adjoint=True)

    assert n == 3
    np.testing.assert_allclose(state(circuit, 3), state(expected, 3), atol=1e-14)


def test_version_three_declares_qubits_in_another_way():
    n, circuit = from_qasm(
        'OPENQASM 3;\ninclude "stdgates.inc";\nqubit[2] q;\nU(0.1, 0.2, pi) q[1];\ncp(tau/8) q[0], q[1];'
    )
    assert n == 2
    assert abs(np.linalg.norm(state(circuit, 2)) - 1) < 1e-14


def test_wrong_text_is_named_with_its_line():
    for match, text in (
        ("line 2: 'foo q' is not understood", "qreg q[1];\nfoo q;"),
        (r"line 2: 'q\[3\]' is out of range; q has 2", "qreg q[2];\nx q[3];"),
        ("line 2: 'r' is no declared qubit", "qreg q[2];\nx r;"),
        ("line 2: the angle 'sin' is not understood", "qreg q[2];\nrx(sin) q[0];"),
        ("declares no qubits", "OPENQASM 2.0;"),
    ):
        with pytest.raises(InputError, match=match):
            from_qasm(text)
    _, circuit = from_qasm("qreg q[2];\nrx(1, 2) q[0];")
    with pytest.raises(InputError, match="line 2: .*takes 1"):
        record(circuit, 2)
    with pytest.raises(InputError, match="has no name in OpenQASM 2"):
        to_qasm(*record(lambda c: c.iswap(0, 1), 2))
