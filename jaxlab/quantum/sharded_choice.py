"""Which functionals number the devices next: such that the exchange after that is late, and for few wires.

Functionals are in the way of a block of matrices where they depend on a wire that it mixes, and of a gate in pair form
where they change with its flip. See `jaxlab.quantum.frames` for the terms.
"""

import functools
import itertools
from collections.abc import Sequence

from jaxlab.quantum.frames import Span, annihilators, inverse, is_odd, pulled
from jaxlab.quantum.lowering import Block, Dense, Monomial, Segment, mask_of

HORIZON = 256
"""Segments, and gates in pair form, that are looked ahead to."""


def fixed_wires(block: Block) -> dict[int, int]:
    """Wires that a block does not mix, with a value at which its matrix shows what it does to the others.

    They are those that no gate is on, and the controls of a gate that is alone.
    """
    touched = {wire for gate in block.gates for wire in gate.controls + gate.wires}
    fixed = {wire: 0 for wire in block.wires if wire not in touched}
    if len(block.gates) == 1:
        fixed |= dict(zip(block.gates[0].controls, block.gates[0].values, strict=True))
    return fixed


def mixed_wires(block: Block, n: int) -> int:
    """The other wires of a block, as a mask: those that must be local."""
    return mask_of(set(block.wires) - set(fixed_wires(block)), n)


def room_for(demands: Sequence[int], local: int) -> int:
    """The union of as many of the first masks of wires as fit on a device."""
    taken = 0
    for demand in demands:
        if (taken | demand).bit_count() <= local:
            taken |= demand
    return taken


def path(now: list[int], vectors: Sequence[int], ahead: Sequence[Segment], n: int) -> list[list[int]]:
    """Functionals for the devices after one exchange, or after two, the last ones 0 on some vectors.

    Args:
      now: the functionals that number the devices now; no exchange keeps any of their XORs.
      vectors: what must not lead to another device.
      ahead: what follows, what needs the vectors included.
      n: wires.
    """
    basis = annihilators(vectors, n)
    target = best(now, basis, ahead, n, len(now))
    if target is not None:
        return [target]
    target = best([], basis, ahead, n, len(now))
    assert target is not None, "there are fewer wires than twice those on the devices"
    return [between(now, target, n), target]


def best(now: list[int], basis: list[int], ahead: Sequence[Segment], n: int, count: int) -> list[int] | None:
    """The most promising `count` functionals of a basis that are independent of those that there are now, if any."""
    size = len(basis)
    # Gates of a layer often join wires at one distance, so that those at this distance go together well.
    orders = [
        [basis[(first + step * i) % size] for i in range(size)]
        for step in range(1, max(2, size // 2 + 1))
        for first in range(size)
    ]
    orders.append(sorted(basis, key=lambda one: _score([one], ahead, n, count), reverse=True))
    found: tuple[tuple[float, ...], list[int]] | None = None
    for order in orders:
        span = Span(now)
        chosen: list[int] = []
        for one in order:
            if len(chosen) < count and span.add(one):
                chosen.append(one)
        if len(chosen) == count:
            score = _score(chosen, ahead, n, count)
            if found is None or score > found[0]:
                found = score, chosen
    return found and found[1]


def between(now: list[int], target: list[int], n: int) -> list[int]:
    """As many functionals, independent of those that there are now and also of the target."""
    spans = Span(now), Span(target)
    single = [1 << bit for bit in range(n)]
    chosen: list[int] = []
    for one in [*single, *(a ^ b for a, b in itertools.combinations(single, 2))]:
        # While there are too few, neither span is everything, so that one of these lies in neither.
        if len(chosen) < len(now) and all(span.rest(one) for span in spans):
            chosen.append(one)
            for span in spans:
                span.add(one)
    return chosen


def _score(functionals: list[int], ahead: Sequence[Segment], n: int, count: int) -> tuple[float, ...]:
    """When the functionals are first in the way, whether one exchange helps then, and of how few wires they are."""
    left = HORIZON
    for time, segment in enumerate(ahead):
        if isinstance(segment, Monomial):
            if segment.columns is not None:
                functionals = [pulled(one, inverse(segment.columns)) for one in functionals]
        elif isinstance(segment, Dense):
            support = functools.reduce(int.__or__, functionals, 0)
            mixed = [mixed_wires(block, n) for block in segment.blocks if block.gates]
            wires = functools.reduce(int.__or__, (one for one in mixed if one & support), 0).bit_count()
            if wires:
                return time, wires <= n - count, -wires
        else:
            for gate in segment.gates[:left]:
                left -= 1
                if any(is_odd(one & gate.flip) for one in functionals):
                    return time + 1 - left / HORIZON, 1, 0
    return len(ahead), 1, 0
