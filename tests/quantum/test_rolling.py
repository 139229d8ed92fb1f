"""Layers found in lists of gates: what is found, and that the state and its gradient stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.quantum.recording import Program, record
from jaxlab.quantum.rolling import rolled
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")

BLOCK = 4
UNITARY = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)) + 0.5j)[0]


def hardware_efficient(c, params):
    """Equal layers, between a beginning and an end of their own."""
    c.h(range(c.n))
    for own in params:
        for wire in range(c.n):
            c.ry(own[wire, 0], wire)
            c.rx(own[wire, 1], wire)
        for wire in range(c.n - 1):
            c.cnot(wire, wire + 1)
    c.rz(params[0, 0, 0], 0)


def strongly_entangling(c, params):
    """Layers whose CNOTs reach further each time; their wires differ, their angles come in order."""
    for index, own in enumerate(params):
        for wire in range(c.n):
            c.rot(own[wire, 0], own[wire, 1], 0.3, wire)
        reach = index % (c.n - 1) + 1
        for wire in range(c.n):
            c.cnot(wire, (wire + reach) % c.n)


def with_matrices(c, params):
    """Layers with a matrix each, an excitation and one angle twice."""
    for own in params:
        c.unitary(UNITARY, (0, 2))
        c.double_excitation(own[0, 0], 0, 1, 2, 3)
        for wire in range(c.n):
            c.rx(own[wire, 1], wire)
            c.x(wire)
            c.rz(own[wire, 1], wire)


CIRCUITS = {one.__name__: one for one in (hardware_efficient, strongly_entangling, with_matrices)}


def unrolled(program, slots):
    """The same gates in pieces too short to be rolled."""
    ((part,), (own,)) = program.parts, slots
    gates = part.body.gates
    pieces = [gates[at : at + 20] for at in range(0, len(gates), 20)]
    parts = tuple(part._replace(body=part.body._replace(gates=piece)) for piece in pieces)
    return Program(program.n, parts), (own,) * len(parts)


@pytest.mark.parametrize("name", CIRCUITS)
def test_state_and_gradient_stay_the_same(name):
    fn, params = CIRCUITS[name], np.random.default_rng(0).uniform(-3, 3, (5, 5, 2))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=32))
    program, slots = record(fn, 5, params)
    found, _ = rolled(program, slots, BLOCK)
    assert [part.times for part in found.parts if part.times]
    psi = simulate(program, slots)
    assert np.linalg.norm(psi) == pytest.approx(1)
    np.testing.assert_allclose(simulate(*unrolled(program, slots)), psi, atol=1e-12)

    def loss(params, way, diff):
        program, slots = way(*record(fn, 5, params))
        return jnp.sum(weights * jnp.abs(simulate(program, slots, diff=diff)) ** 2)

    expected = jax.grad(loss)(params, unrolled, "adjoint")
    for diff in ("adjoint", "backprop"):
        np.testing.assert_allclose(jax.grad(loss)(params, lambda *same: same, diff), expected, atol=1e-12)


def test_what_is_found():
    params = np.ones((6, 5, 2))
    found, slots = rolled(*record(hardware_efficient, 5, params), BLOCK)
    assert [part.times for part in found.parts] == [None, 6, None]
    assert [len(part.body.gates) for part in found.parts] == [5, 14, 1]
    assert slots[1].angles.shape == (6, 10)
    assert found.parts[1].variants is None
    found, _ = rolled(*record(strongly_entangling, 5, params), BLOCK)
    assert [part.times for part in found.parts] == [6]
    assert len(set(found.parts[0].variants)) == 4
    program, slots = record(hardware_efficient, 5, params[:2])  # not worth a loop
    assert rolled(program, slots, BLOCK) == (program, slots)


@pytest.mark.parametrize("name", ["hardware_efficient", "strongly_entangling"])
def test_programs_do_not_grow_with_depth(name):
    def lines(layers):
        program, slots = record(CIRCUITS[name], 5, np.ones((layers, 5, 2)))
        probability = jax.grad(lambda slots: jnp.abs(simulate(program, slots)[0]) ** 2)
        return len(jax.jit(probability).lower(slots).as_text().splitlines())

    assert lines(24) == lines(12)
