"""How the amplitudes of a state lie on several devices: a frame is an affine map over GF(2) from index to place.

Amplitude x of n wires lies at place y = B x XOR offset. The upper bits of y, the global ones, number the device, the
lower ones the place on it. A bit of y is then a parity of bits of x, so that X, CNOT and SWAP change the frame and move
nothing. Masks of amplitudes' indices are called functionals where they are parities, and vectors where they are flips:
wire q of n is bit n - 1 - q of both.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxlab.quantum.lowering import inverse_columns


def is_odd(mask: int) -> int:
    """Number of ones modulo 2."""
    return mask.bit_count() & 1


def bits(mask: int) -> list[int]:
    """Places of the ones, from the lowest."""
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def image(columns: Sequence[int], vector: int) -> int:
    """Where a linear map, given by the images of single bits, takes a vector."""
    return functools.reduce(int.__xor__, (columns[bit] for bit in bits(vector)), 0)


def pulled(functional: int, columns: Sequence[int]) -> int:
    """The functional after a linear map, as one before it."""
    return sum(is_odd(functional & column) << bit for bit, column in enumerate(columns))


class Span:
    """The linear span of masks."""

    def __init__(self, masks: Iterable[int] = ()):
        self._by_top: dict[int, int] = {}
        for mask in masks:
            self.add(mask)

    def rest(self, mask: int) -> int:
        """The mask reduced by the span; 0 if it lies in it."""
        for top in sorted(self._by_top, reverse=True):
            if mask >> top & 1:
                mask ^= self._by_top[top]
        return mask

    def add(self, mask: int) -> bool:
        """Takes one more mask in; False if it was in the span."""
        rest = self.rest(mask)
        if rest:
            self._by_top[rest.bit_length() - 1] = rest
        return bool(rest)


def independent(masks: Iterable[int]) -> bool:
    """Whether no mask is the XOR of others."""
    span = Span()
    return all(span.add(mask) for mask in masks)


def annihilators(vectors: Iterable[int], n: int) -> list[int]:
    """A basis of the functionals that are 0 on the vectors; those of one wire first, by wire."""
    reduced: dict[int, int] = {}
    for vector in vectors:
        for pivot, row in reduced.items():
            vector ^= row * (vector >> pivot & 1)
        if vector:
            pivot = vector.bit_length() - 1
            reduced = {p: row ^ vector * (row >> pivot & 1) for p, row in reduced.items()}
            reduced[pivot] = vector
    found = [
        1 << bit | sum((row >> bit & 1) << pivot for pivot, row in reduced.items())
        for bit in reversed(range(n))
        if bit not in reduced
    ]
    return sorted(found, key=lambda mask: mask.bit_count() > 1)


class Condition(NamedTuple):
    """That (parity under `local`) XOR (parity of the device under `device`) is `value`; `local` has at most one bit."""

    local: int
    device: int
    value: int


class Frame(NamedTuple):
    """y = B x XOR offset, of which the lower `local` bits are the place on a device."""

    local: int
    columns: tuple[int, ...]
    """Column b of B, as a mask of places, is where bit b of x goes."""
    offset: int = 0

    @property
    def n(self) -> int:
        """Number of wires."""
        return len(self.columns)

    @property
    def rows(self) -> list[int]:
        """The functional in each bit of y."""
        return [
            sum((column >> bit & 1) << i for i, column in enumerate(self.columns)) for bit in range(self.n)
        ]

    @property
    def on_devices(self) -> list[int]:
        """The functionals that number the device."""
        return self.rows[self.local :]

    def functional(self, mask: int) -> tuple[int, int]:
        """A functional of x as one of y, and the bit to XOR to it."""
        placed = pulled(mask, inverse(self.columns))
        return placed, is_odd(placed & self.offset)

    def split(self, mask: int) -> tuple[int, int, int]:
        """A functional of x as one of the place on the device, one of the device, and the bit to XOR."""
        placed, flipped = self.functional(mask)
        return placed & ((1 << self.local) - 1), placed >> self.local, flipped

    def after(self, columns: Sequence[int] | None, offset: int) -> "Frame":
        """Of the same amplitudes once they are called A x XOR offset, A None being the identity."""
        own = self.columns
        if columns is not None:
            own = tuple(image(own, column) for column in inverse(tuple(columns)))
        return Frame(self.local, own, self.offset ^ image(own, offset))

    def exchanged(self) -> "Frame":
        """After the global bits have changed places with the topmost local ones, in order."""
        count = self.n - self.local
        low, high = self.local - count, self.local
        kept = (1 << low) - 1

        def swapped(mask: int) -> int:
            top, upper = mask >> low & ((1 << count) - 1), mask >> high
            return mask & kept | upper << low | top << high

        return Frame(self.local, tuple(map(swapped, self.columns)), swapped(self.offset))

    def arranged(self, leading: Sequence[int] = (), preferred: int = 0) -> "Frame":
        """With the same global bits, and single wires in the local ones as far as there is room.

        Args:
          leading: functionals for the topmost local bits, the last one on top; independent of the global ones.
          preferred: wires to put into local bits before others, as a mask.
        """
        span = Span([*self.on_devices, *leading])
        wires = sorted((bit for bit in reversed(range(self.n))), key=lambda bit: not preferred >> bit & 1)
        chosen = sorted(bit for bit in wires if span.add(1 << bit))
        rows = [1 << bit for bit in chosen] + list(leading) + self.on_devices
        columns = tuple(
            sum((row >> bit & 1) << place for place, row in enumerate(rows)) for bit in range(self.n)
        )
        return Frame(self.local, columns, self.offset >> self.local << self.local)

    def place_of(self, bit: int) -> int | None:
        """The local bit that is wire `bit` of x and nothing else, neither flipped nor part of another."""
        column = self.columns[bit]
        if column.bit_count() == 1 and not column >> self.local and self.functional(1 << bit) == (column, 0):
            return column.bit_length() - 1
        return None

    def conditions(self, where: int, value: int) -> list[Condition] | None:
        """That the bits of x under `where` are those of `value`, each on one local bit; None if that cannot be said."""
        found: list[Condition] = []
        for bit in bits(where):
            local, device, flipped = self.split(1 << bit)
            new = Condition(local, device, flipped ^ (value >> bit & 1))
            for other in found:
                new = _reduced(new, other)
            if new.local:
                new_top = 1 << (new.local.bit_length() - 1)
                found = [_reduced(other, new) if other.local & new_top else other for other in found]
            found.append(new)
        return found if all(one.local.bit_count() <= 1 for one in found) else None


def _reduced(one: Condition, by: Condition) -> Condition:
    if by.local and one.local >> (by.local.bit_length() - 1) & 1:
        return Condition(*(a ^ b for a, b in zip(one, by, strict=True)))
    return one


@functools.lru_cache(maxsize=4096)
def inverse(columns: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of a linear map, by columns."""
    return inverse_columns(columns, len(columns))


class LocalMove(NamedTuple):
    """A permutation of the amplitudes of every device: place y comes from S y XOR shift, S and its inverse by columns.

    The shifts are one for each device.
    """

    ahead: tuple[int, ...]
    ahead_shifts: tuple[int, ...]
    back: tuple[int, ...]
    back_shifts: tuple[int, ...]


def move_between(start: Frame, end: Frame) -> LocalMove:
    """What takes amplitudes from one frame to another with the same global bits."""
    return LocalMove(*_sources(end, start), *_sources(start, end))


def _sources(taker: Frame, giver: Frame) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each place in the frame `taker` is in the frame `giver`: columns, and a shift for each device."""
    back = inverse(taker.columns)
    columns = [image(giver.columns, column) for column in back]
    constant = image(columns, taker.offset) ^ giver.offset
    low = (1 << taker.local) - 1
    shifts = []
    for device in range(1 << (taker.n - taker.local)):
        source = image(columns, device << taker.local) ^ constant
        assert source >> taker.local == device, "the frames differ in their global bits"
        shifts.append(source & low)
    return tuple(columns[: taker.local]), tuple(shifts)
