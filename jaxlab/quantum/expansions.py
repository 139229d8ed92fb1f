"""Gates as products of diagonal and of real ones, which both have cheaper kernels than complex matrices.

Every gate on one wire is a diagonal, a real rotation and a diagonal (Nielsen and Chuang, theorem 4.1); diagonals then
join what stands before and after. The products are exact, global phases included.
"""

from typing import NamedTuple

from jaxlab.quantum.recording import Gate


class _Factor(NamedTuple):
    """A gate on some of the expanded gate's wires, with one of its angles if it takes one."""

    kind: str
    wires: tuple[int, ...] = (0,)
    angle: int = 0
    adjoint: bool = False


_EIGHTH_PHASE = (_Factor("T"), _Factor("PauliX"), _Factor("T"), _Factor("PauliX"))
"""exp(i pi / 4)."""
_QUARTER_PHASE = (_Factor("S"), _Factor("PauliX"), _Factor("S"), _Factor("PauliX"))
"""exp(i pi / 2)."""
_BOTH = (_Factor("Hadamard"), _Factor("Hadamard", (1,)))
_TURNS = (_Factor("S"), _Factor("S", (1,)))
_TURNS_BACK = tuple(one._replace(adjoint=True) for one in _TURNS)

_ONE_WIRE: dict[str, tuple[_Factor, ...]] = {
    "RX": (_Factor("S"), _Factor("RY"), _Factor("S", adjoint=True)),
    "Rot": (_Factor("RZ"), _Factor("RY", angle=1), _Factor("RZ", angle=2)),
    "U3": (_Factor("PhaseShift", angle=2), _Factor("RY"), _Factor("PhaseShift", angle=1)),
    "U2": (
        _Factor("PhaseShift", angle=1),
        _Factor("PauliZ"),
        _Factor("Hadamard"),
        _Factor("PhaseShift"),
    ),
}
_ONE_WIRE_FREE: dict[str, tuple[_Factor, ...]] = {
    "PauliY": (_Factor("PauliZ"), _Factor("PauliX"), *_QUARTER_PHASE),
    "SX": (
        _Factor("S"),
        _Factor("PauliZ"),
        _Factor("Hadamard"),
        _Factor("S", adjoint=True),
        *_EIGHTH_PHASE,
    ),
}
"""Without controls: their phases are not affine with several."""
_TWO_WIRES: dict[str, tuple[_Factor, ...]] = {
    "IsingXX": (*_BOTH, _Factor("IsingZZ", (0, 1)), *_BOTH),
    "IsingYY": (*_TURNS_BACK, *_BOTH, _Factor("IsingZZ", (0, 1)), *_BOTH, *_TURNS),
    "IsingXY": (_Factor("S", adjoint=True), _Factor("SingleExcitation", (0, 1)), _Factor("S")),
}


def expanded(gate: Gate, wires: int) -> tuple[Gate, ...]:
    """The gate's factors, first to last; the gate itself where it has no such form.

    Args:
      gate: with at most one control; gates with more stay.
      wires: the most that the gate may have without controls, 1 or 2.
    """
    factors = _ONE_WIRE.get(gate.kind)
    if factors is None and not gate.controls:
        factors = _ONE_WIRE_FREE.get(gate.kind) or (_TWO_WIRES.get(gate.kind) if wires == 2 else None)
    if factors is None or len(gate.controls) > 1:
        return (gate,)
    if gate.adjoint:
        factors = tuple(one._replace(adjoint=not one.adjoint) for one in reversed(factors))
    return tuple(
        gate._replace(
            kind=one.kind,
            wires=tuple(gate.wires[wire] for wire in one.wires),
            slot=gate.slot + one.angle,
            adjoint=one.adjoint,
        )
        for one in factors
    )
