"""Finding layers in a long list of gates, so that they become one loop and compile in constant time.

Two stretches of gates are the same layer if they have the same gates on the same wires; of X, CNOT and SWAP, whose
permutations a loop can take as data, only the number must agree: layers of entangling gates often change their range.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.kernels.statevector.monomials import pick
from jaxlab.quantum.lowering import alike, is_affine, known_type, lower
from jaxlab.quantum.recording import Body, BodySlots, Gate, Part, Program, Slots

_LEAST_TIMES = 3
_SHORT = 48
"""Bodies of fewer gates stay as they are: they compile fast, and run without a loop."""


class _Layers(NamedTuple):
    """`times` stretches of `period` gates, from gate `first` on."""

    first: int
    period: int
    times: int


def rolled(program: Program, slots: Slots, block: int) -> tuple[Program, Slots]:
    """The same circuit with repeated layers as parts of their own.

    Args:
      program: see `trace`.
      slots: its arrays.
      block: most wires of a dense block, with which the parts will be lowered.
    """
    parts: list[Part] = []
    arrays: list[BodySlots] = []
    for part, own in zip(program.parts, slots, strict=True):
        for piece in _pieces(part, program.n, block):
            parts.append(piece.part)
            arrays.append(own if piece.gates is None else _stacked(piece, own))
    return Program(program.n, tuple(parts)), tuple(arrays)


class _Piece(NamedTuple):
    """A part, and of layers the gates that they were, first to last."""

    part: Part
    gates: tuple[Gate, ...] | None


@functools.lru_cache(maxsize=256)
def _pieces(part: Part, n: int, block: int) -> tuple[_Piece, ...]:
    gates = part.body.gates
    layers = _find(gates) if part.times is None and len(gates) >= _SHORT else None
    if layers is None:
        return (_Piece(part, None),)
    first, period, times = layers
    end = first + period * times
    bodies = tuple(_own_body(gates[at : at + period]) for at in range(first, end, period))
    variants = bodies if len(set(bodies)) > 1 else None
    if variants and not alike([lower(body, n, block) for body in variants]):
        return (_Piece(part, None),)
    found = [_Piece(Part(bodies[0], times, variants), gates[first:end])]
    if first:
        found = [*_pieces(Part(Body(gates[:first])), n, block), *found]
    if end < len(gates):
        found += _pieces(Part(Body(gates[end:])), n, block)
    return tuple(found)


def _find(gates: Sequence[Gate]) -> _Layers | None:
    """The layers that cover most gates; of those that cover equally many the shortest."""
    numbers: dict[tuple[Any, ...], int] = {}
    ids = np.array([numbers.setdefault(_signature(gate), len(numbers)) for gate in gates])
    best, covered = None, _SHORT // 2
    for period in range(1, len(ids) // _LEAST_TIMES + 1):
        differs = np.flatnonzero(ids[:-period] != ids[period:])
        starts = np.concatenate([[0], differs + 1])
        runs = np.concatenate([differs, [len(ids) - period]]) - starts
        longest = int(np.argmax(runs))
        times = int(runs[longest]) // period + 1
        if times >= _LEAST_TIMES and times * period > covered:
            best, covered = _Layers(int(starts[longest]), period, times), times * period
    return best


def _signature(gate: Gate) -> tuple[Any, ...]:
    if is_affine(gate):
        return (gate.kind, len(gate.controls))
    return gate._replace(slot=0)


def _own_body(gates: Sequence[Gate]) -> Body:
    """With places counted in what the gates themselves need."""
    angles = matrices = 0
    own = []
    for gate in gates:
        known = known_type(gate)
        own.append(gate._replace(slot=matrices if known is None else angles if known.angles else 0))
        angles, matrices = angles + (known.angles if known else 0), matrices + (known is None)
    return Body(tuple(own))


def _places(gates: Sequence[Gate]) -> list[int]:
    """Where the angles of the gates stand, in the order of `_own_body`."""
    known = [(gate, known_type(gate)) for gate in gates]
    return [gate.slot + i for gate, one in known if one is not None for i in range(one.angles)]


def _stacked(piece: _Piece, own: BodySlots) -> BodySlots:
    """The slots of all layers; angles and matrices are taken in the order of the gates."""
    times, gates = piece.part.times, piece.gates
    assert times is not None and gates is not None
    given = [own.matrices[gate.slot] for gate in gates if known_type(gate) is None]
    per_layer = len(given) // times
    matrices = tuple(jnp.stack(given[i::per_layer]) for i in range(per_layer))
    return BodySlots(pick(own.angles, _places(gates)).reshape(times, -1), matrices)
