"""From gates to few passes over the state: three classes of segments.

- `Monomial`: a diagonal and then an affine map of the index over GF(2). X, CNOT, SWAP, RZ, CZ, MultiRZ, ... come
  together in one gather and one multiplication, since a diagonal of parities passes through any affine map.
- `Dense`: small unitary matrices on disjoint sets of wires. Real ones are several times as fast, so that gates are
  also tried as products of diagonal and of real ones.
- `Pairs`: gates that mix an amplitude with one other (excitations, Pauli rotations, many controls), one after the
  other, their masks as data, so that any number of them is one compiled loop.

Masks count amplitudes' indices: wire q of n is bit n - 1 - q.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.errors import InputError
from jaxlab.kernels.statevector import blocks
from jaxlab.quantum.expansions import expanded
from jaxlab.quantum.gates import GateType, Pair, Parity, gate_type, pair_of_matrix
from jaxlab.quantum.recording import UNITARY, Body, Gate

_MOST_DENSE_WIRES = 10
TPU_BLOCK = 7
"""Wires of a block that fills a TPU's 128 by 128 multiplier."""
_MOST_EXPANDED_CONTROLS = 2
"""A diagonal with c controls becomes 2^c as many parities."""


class Term(NamedTuple):
    """(constant + sum of slope * angle) (-1)^(number of ones under `mask`), of a phase."""

    mask: int
    constant: float
    slopes: tuple[tuple[int, float], ...]
    """Place of the angle in the body's angles, and its factor."""


class Monomial(NamedTuple):
    """psi'[A x XOR offset] = exp(i phase(x)) psi[x]."""

    columns: tuple[int, ...] | None
    """Column b of A (as a mask) is where bit b of x goes; None where A is the identity."""
    offset: int
    terms: tuple[Term, ...]


class Block(NamedTuple):
    """One matrix on `wires` (ascending; the first is its most significant): the product of the gates, first to last."""

    wires: tuple[int, ...]
    gates: tuple[Gate, ...]


class Dense(NamedTuple):
    """Blocks on disjoint wires, by their first wire."""

    blocks: tuple[Block, ...]

    @property
    def is_real(self) -> bool:
        """Whether all matrices are real."""
        return all(is_real(gate) for block in self.blocks for gate in block.gates)


class PairGate(NamedTuple):
    """A gate in pair form (see `jaxlab.quantum.gates.Pair`), its masks on amplitudes' indices."""

    gate: Gate
    flip: int
    signs: int
    where: int
    value: int


class Pairs(NamedTuple):
    """Gates in pair form, first to last."""

    gates: tuple[PairGate, ...]


Segment = Monomial | Dense | Pairs


@functools.lru_cache(maxsize=512)
def lower(body: Body, n: int, block: int) -> tuple[Segment, ...]:
    """The segments of a body on n wires, with blocks of up to `block` wires; the cheapest of several ways."""
    plans: list[tuple[list[Gate], tuple[Segment, ...]]] = []
    for most in (0, 1, 2):
        gates = [factor for gate in body.gates for factor in (expanded(gate, most) if most else (gate,))]
        if most and gates == plans[-1][0]:
            continue
        for policy in _POLICIES:
            plans.append((gates, _Plan(n, block, policy).lowered(gates)))
    return min((segments for _, segments in plans), key=lambda plan: sum(_cost(one, n) for one in plan))


def alike(plans: Sequence[tuple[Segment, ...]]) -> bool:
    """Whether plans differ in the permutations of their monomials only."""
    plain = [
        tuple(one._replace(columns=None, offset=0) if isinstance(one, Monomial) else one for one in plan)
        for plan in plans
    ]
    return all(plan == plain[0] for plan in plain)


def _cost(segment: Segment, n: int) -> float:
    """Roughly how long a segment takes: milliseconds of 20 wires in complex128 on two cores of a server's CPU."""
    if isinstance(segment, Monomial):
        crossing = any(_crosses(term.mask, n) for term in segment.terms)
        moved = segment.columns is not None or segment.offset != 0
        return 1.5 * moved + 1.5 * bool(segment.terms) + 3 * crossing
    if isinstance(segment, Pairs):
        return 3.0 * len(segment.gates)
    if segment.is_real and covers(segment, n):
        return _cost_of_turns([len(one.wires) for one in segment.blocks])
    return sum(
        4 + 2 ** len(one.wires) / 5 + 3 * (not is_run(one.wires)) + 2 * (not covers(segment, n))
        for one in segment.blocks
    )


def _cost_of_turns(sizes: Sequence[int]) -> float:
    return 3 + sum(1.2 + 2**size / 32 for size in sizes)


def _crosses(mask: int, n: int) -> bool:
    low = (1 << (n - n // 2)) - 1
    return bool(mask & low) and bool(mask & ~low)


def is_run(wires: Sequence[int]) -> bool:
    """Whether the wires are a, a + 1, ..., b."""
    return list(wires) == list(range(wires[0], wires[0] + len(wires)))


def covers(segment: Dense, n: int) -> bool:
    """Whether the blocks follow each other from the first wire to the last."""
    return blocks.covers([block.wires for block in segment.blocks], n)


def mask_of(wires: Iterable[int], n: int) -> int:
    """The bits of an amplitude's index that belong to the wires."""
    return sum(1 << (n - 1 - wire) for wire in wires)


class _OpenMonomial:
    """A `Monomial` that gates are still added to."""

    def __init__(self, n: int):
        self.n, self.offset = n, 0
        self.columns = [1 << bit for bit in range(n)]
        self.terms: dict[int, dict[int | None, float]] = {}

    def wires(self) -> set[int]:
        touched = self.offset | functools.reduce(int.__or__, self.terms, 0)
        for bit, column in enumerate(self.columns):
            if column != 1 << bit:
                touched |= column | 1 << bit
        return {self.n - 1 - bit for bit in range(self.n) if touched >> bit & 1}

    def add_affine(self, gate: Gate) -> None:
        bits = [self.n - 1 - wire for wire in gate.controls + gate.wires]
        if gate.kind == "SWAP":
            a, b = bits
            swapped = {a: b, b: a}
            self.columns = [_moved(column, swapped) for column in self.columns]
            self.offset = _moved(self.offset, swapped)
        elif len(bits) == 1:
            self.offset ^= 1 << bits[0]
        else:
            control, target = bits
            if gate.values == (0,):
                self.offset ^= 1 << target
            self.columns = [column ^ ((column >> control & 1) << target) for column in self.columns]
            # the offset passes through the gate like any index
            self.offset ^= (self.offset >> control & 1) << target

    def add_term(self, mask: int, constant: float, slopes: dict[int, float]) -> None:
        """A phase of the index after the affine map, moved in front of it."""
        if bin(mask & self.offset).count("1") % 2:
            constant, slopes = -constant, {slot: -slope for slot, slope in slopes.items()}
        before = sum((bin(column & mask).count("1") % 2) << bit for bit, column in enumerate(self.columns))
        term = self.terms.setdefault(before, {})
        term[None] = term.get(None, 0.0) + constant
        for slot, slope in slopes.items():
            term[slot] = term.get(slot, 0.0) + slope

    def closed(self) -> Monomial:
        identity = all(column == 1 << bit for bit, column in enumerate(self.columns))
        terms = []
        for mask, parts in sorted(self.terms.items()):
            slopes = tuple((slot, slope) for slot, slope in parts.items() if slot is not None and slope)
            if slopes or parts[None]:
                terms.append(Term(mask, parts[None], slopes))
        return Monomial(None if identity else tuple(self.columns), self.offset, tuple(terms))


def _moved(mask: int, swapped: dict[int, int]) -> int:
    return sum(1 << swapped.get(bit, bit) for bit in range(mask.bit_length()) if mask >> bit & 1)


class _OpenDense:
    """A `Dense` that gates are still added to; blocks as pairs of wires and gates."""

    def __init__(self, only_real: bool) -> None:
        self.only_real = only_real
        self.blocks: list[tuple[set[int], list[Gate]]] = []

    def wires(self) -> set[int]:
        return set().union(*(wires for wires, _ in self.blocks))

    def touching(self, wires: set[int]) -> list[tuple[set[int], list[Gate]]]:
        return [one for one in self.blocks if one[0] & wires]

    def add(self, gate: Gate, wires: set[int]) -> None:
        touched = self.touching(wires) or self.blocks[:1] * (not wires)
        united = set(wires).union(*(one for one, _ in touched))
        gates = [other for _, gates in touched for other in gates]
        self.blocks = [one for one in self.blocks if not any(one is other for other in touched)]
        self.blocks.append((united, [*gates, gate]))

    def closed(self, n: int, block: int) -> Dense:
        """Neighbouring runs of wires joined up to `block` wires; real blocks filled up to all wires if that pays."""
        plain = Dense(_joined(self.blocks, block))
        if not plain.is_real or covers(plain, n):
            return plain
        idle = set(range(n)) - self.wires()
        filled = Dense(_joined([*self.blocks, *(({wire}, []) for wire in idle)], block))
        return filled if covers(filled, n) and _cost(filled, n) < _cost(plain, n) else plain


def _joined(blocks: Sequence[tuple[set[int], list[Gate]]], block: int) -> tuple[Block, ...]:
    # From the last wire on where a TPU's kernel wants the last 7 wires in blocks of their own.
    from_end = block >= TPU_BLOCK
    joined: list[tuple[list[int], list[Gate]]] = []
    for wires, gates in sorted(blocks, key=lambda one: min(one[0]), reverse=from_end):
        ordered = sorted(wires)
        if joined:
            first, second = (ordered, joined[-1][0]) if from_end else (joined[-1][0], ordered)
            adjacent = is_run(first) and is_run(second) and first[-1] + 1 == second[0]
            if adjacent and len(first) + len(second) <= block:
                joined[-1] = (first + second, joined[-1][1] + gates)
                continue
        joined.append((ordered, gates))
    return tuple(Block(tuple(wires), tuple(gates)) for wires, gates in (joined[::-1] if from_end else joined))


class _OpenPairs:
    """A `Pairs` that gates are still added to."""

    def __init__(self) -> None:
        self.gates: list[PairGate] = []
        self.touched: set[int] = set()

    def wires(self) -> set[int]:
        return self.touched


class _Policy(NamedTuple):
    """How gates are sorted into segments."""

    merge: bool
    """Whether permutations and diagonals may join blocks of a dense segment, not only lie within one."""
    keep_real: bool
    """Whether a dense segment of real gates takes no others."""
    prefer_pairs: bool = False
    """Whether gates of several wires that have a pair form go there, and not to blocks."""


_POLICIES = (
    *(_Policy(merge, keep_real) for merge in (False, True) for keep_real in (False, True)),
    _Policy(merge=False, keep_real=True, prefer_pairs=True),
)


class _Plan:
    """Puts each gate into the first segment that it can reach and that takes it, or into a new one."""

    def __init__(self, n: int, block: int, policy: _Policy):
        self.n, self.block, self.policy = n, block, policy
        self.segments: list[_OpenMonomial | _OpenDense | _OpenPairs] = []

    def lowered(self, gates: Sequence[Gate]) -> tuple[Segment, ...]:
        for gate in gates:
            self._place(gate)
        closed: list[Segment] = []
        for segment in self.segments:
            if isinstance(segment, _OpenMonomial):
                closed.append(segment.closed())
            elif isinstance(segment, _OpenDense):
                closed.append(segment.closed(self.n, self.block))
            else:
                closed.append(Pairs(tuple(segment.gates)))
        return tuple(closed)

    def _place(self, gate: Gate) -> None:
        wires = set(gate.controls + gate.wires)
        monomial = is_affine(gate) or parities(gate) is not None
        pair = None if monomial or len(wires) == 1 else pair_form(gate, self.n)
        chosen: _OpenMonomial | _OpenDense | _OpenPairs | None = None
        for segment in reversed(self.segments):
            if isinstance(segment, _OpenDense):
                takes = self._fits(segment, gate, wires, monomial)
                takes = takes and not (pair is not None and self.policy.prefer_pairs)
            elif isinstance(segment, _OpenMonomial):
                takes = monomial
            else:
                takes = pair is not None
            if takes:
                chosen = segment
            if segment.wires() & wires:
                break
        if chosen is None:
            chosen = self._new_segment(gate, wires, monomial, pair)
            self.segments.append(chosen)
        if isinstance(chosen, _OpenDense):
            chosen.add(gate, wires)
        elif isinstance(chosen, _OpenMonomial):
            self._add_monomial(chosen, gate)
        else:
            assert pair is not None
            chosen.gates.append(pair)
            chosen.touched |= wires

    def _new_segment(
        self, gate: Gate, wires: set[int], monomial: bool, pair: PairGate | None
    ) -> "_OpenMonomial | _OpenDense | _OpenPairs":
        if monomial:
            return _OpenMonomial(self.n)
        if pair is not None and (len(wires) > self.block or self.policy.prefer_pairs):
            return _OpenPairs()
        if len(wires) > _MOST_DENSE_WIRES:
            raise InputError(
                f"{gate.kind} acts on {len(wires)} wires, its controls included; at most {_MOST_DENSE_WIRES} "
                "are possible for a gate without a simpler form"
            )
        return _OpenDense(self.policy.keep_real and is_real(gate))

    def _fits(self, segment: _OpenDense, gate: Gate, wires: set[int], monomial: bool) -> bool:
        if segment.only_real and not is_real(gate):
            return False
        touched = segment.touching(wires)
        if not wires or any(wires <= one for one, _ in touched):
            return True
        united = wires.union(*(one for one, _ in touched))
        if monomial and not self.policy.merge:
            return False
        near = is_run(sorted(united)) or not self.policy.merge or len(touched) <= 1
        return len(united) <= self.block and near

    def _add_monomial(self, segment: _OpenMonomial, gate: Gate) -> None:
        if is_affine(gate):
            segment.add_affine(gate)
            return
        places = gate.controls + gate.wires
        sign = -1 if gate.adjoint else 1
        for term in parities(gate) or ():
            mask = mask_of(
                [wire for i, wire in enumerate(places) if term.mask >> (len(places) - 1 - i) & 1], self.n
            )
            slopes = {gate.slot: sign * term.slope} if term.slope else {}
            segment.add_term(mask, sign * term.constant, slopes)


def is_affine(gate: Gate) -> bool:
    """Whether the gate permutes indices by an affine map over GF(2)."""
    return (gate.kind == "PauliX" and len(gate.controls) <= 1) or (gate.kind == "SWAP" and not gate.controls)


def parities(gate: Gate) -> tuple[Parity, ...] | None:
    """Phases of a diagonal gate on its controls and wires, if it is one and has few controls."""
    known = known_type(gate)
    if known is None or known.parities is None or len(gate.controls) > _MOST_EXPANDED_CONTROLS:
        return None
    terms = known.parities
    for place, value in enumerate(reversed(gate.values)):
        bit, sign = 1 << (known.wires + place), -1.0 if value else 1.0
        halves = [(Parity(mask, slope / 2, constant / 2), sign) for mask, slope, constant in terms]
        terms = tuple(half for half, _ in halves) + tuple(
            Parity(mask | bit, sign * slope, sign * constant) for (mask, slope, constant), sign in halves
        )
    return terms


def is_real(gate: Gate) -> bool:
    """Whether the gate's matrix is real whatever its angles."""
    known = known_type(gate)
    return known is not None and known.is_real


def known_type(gate: Gate) -> GateType | None:
    """What is known of the gate; None of one that is given by its matrix."""
    return None if gate.kind == UNITARY else gate_type(gate.kind)


def pair_of(gate: Gate) -> Pair | None:
    """The pair form on the gate's own wires, if it has one."""
    known = known_type(gate)
    if known is None:
        return pair_of_matrix(lambda matrix: matrix) if len(gate.wires) == 1 else None
    return known.pair


def pair_form(gate: Gate, n: int) -> PairGate | None:
    """The pair form on the circuit's n wires, if the gate has one."""
    pair = pair_of(gate)
    if pair is None:
        return None

    def place(mask: int) -> int:
        last = len(gate.wires) - 1
        return mask_of([wire for i, wire in enumerate(gate.wires) if mask >> (last - i) & 1], n)

    chosen = [wire for wire, value in zip(gate.controls, gate.values, strict=True) if value]
    where = place(pair.where) | mask_of(gate.controls, n)
    value = place(pair.value) | mask_of(chosen, n)
    return PairGate(gate, place(pair.flip), place(pair.signs), where, value)


def inverse_columns(columns: Sequence[int], n: int) -> tuple[int, ...]:
    """Columns of the inverse of an affine map's matrix over GF(2)."""
    matrix = np.array([[column >> row & 1 for column in columns] for row in range(n)], np.uint8)
    joint = np.concatenate([matrix, np.eye(n, dtype=np.uint8)], axis=1)
    for i in range(n):
        pivot = i + int(np.argmax(joint[i:, i]))
        joint[[i, pivot]] = joint[[pivot, i]]
        others = joint[:, i].astype(bool)
        others[i] = False
        joint[others] ^= joint[i]
    return tuple(sum(int(joint[row, n + column]) << row for row in range(n)) for column in range(n))
