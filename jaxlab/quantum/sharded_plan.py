"""Which amplitudes move when, for a program on several devices: settled before anything runs.

Permutations only change the frame (see `jaxlab.quantum.frames`), and phases need no more than the parity of the
device's number. A block of matrices must find its wires in local bits: those that do act at once; then one exchange
makes other functionals the global ones, and the rest act. Which ones, is picked so that the next exchange is as late as
possible, and needed for as few wires as possible. A layer that is repeated is planned until its frame comes back,
mostly after two layers, which then are one loop.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

from jaxlab.errors import InputError
from jaxlab.quantum.frames import (
    Condition,
    Frame,
    annihilators,
    bits,
    image,
    independent,
    is_odd,
    move_between,
)
from jaxlab.quantum.lowering import Block, Dense, Monomial, PairGate, Pairs, Segment, lower, mask_of
from jaxlab.quantum.recording import Program
from jaxlab.quantum.sharded_choice import HORIZON, best, between, fixed_wires, mixed_wires, path, room_for
from jaxlab.quantum.sharded_steps import (
    BlockStep,
    BlockSteps,
    Exchange,
    PairStep,
    PairSteps,
    PartPlan,
    Phases,
    Plan,
    Stage,
    Step,
)

_MOST_IDLE = 4
"""Local bits without a block that are worth it to take the others' real blocks together."""
_LONGEST_CYCLE = 8
"""Layers after which the frame must have come back, or is brought back after each."""


@functools.lru_cache(maxsize=128)
def plan(program: Program, block: int, local: int, start: Frame | None, end: Frame | None = None) -> Plan:
    """How to run a program on devices with `local` wires each.

    Args:
      program: rolled, without channels.
      block: most wires of a dense block.
      local: at least half of the wires.
      start: of the state that it begins with; None picks.
      end: what the frame is brought to at last, if given.

    Raises:
      InputError: a gate needs more wires than a device has.
    """
    n = program.n
    lowered = [
        tuple(lower(body, n, block) for body in part.variants or (part.body,)) for part in program.parts
    ]
    ahead = itertools.chain.from_iterable(
        itertools.chain.from_iterable(layers * (2 if part.times else 1))
        for part, layers in zip(program.parts, lowered, strict=True)
    )
    planner = _Planner(n, local)
    planner.start = start or planner.picked(ahead)
    planner.frame = planner.start
    parts = []
    for index, part in enumerate(program.parts):
        layers, later = lowered[index], [one for others in lowered[index + 1 :] for one in others[0]]
        if part.times is None:
            stages: tuple[Stage, ...] = (Stage(0, (planner.layer(layers[0], later),), 1),)
        else:
            stages = planner.repeated(layers, part.times, movable=start is None and index == 0)
        parts.append(PartPlan(layers[0], part.times is not None, stages))
    if end is not None:
        planner.go_to(end)
        parts.append(PartPlan((), False, (Stage(0, (planner.taken(),), 1),)))
    return Plan(planner.start, tuple(parts), planner.frame)


class _Planner:
    """Takes steps and keeps the frame that they lead to."""

    frame: Frame
    start: Frame

    def __init__(self, n: int, local: int):
        self.n, self.local, self.count = n, local, n - local
        self._steps: list[Step] = []

    def taken(self) -> tuple[Step, ...]:
        """The steps since this was last asked."""
        steps, self._steps = tuple(self._steps), []
        return steps

    def picked(self, ahead: Iterator[Segment]) -> Frame:
        """A frame to start in."""
        everything = annihilators((), self.n)
        found = best([], everything, list(itertools.islice(ahead, HORIZON)), self.n, self.count)
        assert found is not None
        plain = Frame(self.local, tuple(1 << bit for bit in range(self.n)))
        others = [1 << bit for bit in range(self.n) if 1 << bit not in found]
        rows = [*others, *found]
        columns = [sum((row >> bit & 1) << place for place, row in enumerate(rows)) for bit in range(self.n)]
        return plain._replace(columns=tuple(columns))

    def repeated(
        self, layers: Sequence[tuple[Segment, ...]], times: int, *, movable: bool
    ) -> tuple[Stage, ...]:
        """The stages of a part that is repeated; if `movable` it may start in a frame that suits it better."""
        period = next(
            p
            for p in range(1, len(layers) + 1)
            if all(a == b for a, b in zip(layers, layers[p:], strict=False))
        )
        most = period + _LONGEST_CYCLE
        frames, done = self._cycle(layers, times, period, most)
        if len(done) == most < times and frames[-1] not in frames[-1 - period :: -period]:
            self.frame = frames[0]
            frames, done = self._cycle(layers, times, period, most, closed=True)
        first = next(k for k in range(len(done) % period, len(frames), period) if frames[k] == frames[-1])
        length = len(done) - first
        if not length:  # the frame did not come back
            return (Stage(0, tuple(done), 1),)
        if movable and first % period == 0:
            self.start, frames, done, first = frames[first], frames[first:], done[first:], 0
        loops, rest = divmod(times - first, length)
        self.frame = frames[first + rest]
        stages = (
            Stage(0, tuple(done[:first]), 1),
            Stage(first, tuple(done[first:]), loops),
            Stage(times - rest, tuple(done[first : first + rest]), 1),
        )
        return tuple(stage for stage in stages if stage.layers)

    def _cycle(
        self,
        layers: Sequence[tuple[Segment, ...]],
        times: int,
        period: int,
        most: int,
        closed: bool = False,
    ) -> tuple[list[Frame], list[tuple[Step, ...]]]:
        """Frames before and after layers, and the layers' steps, until a frame comes back or `most` layers are done.

        With `closed` the frame is brought back after each period.
        """
        frames = [self.frame]
        done: list[tuple[Step, ...]] = []
        while len(done) < min(times, most):
            k = len(done)
            ahead = itertools.chain.from_iterable(layers[later % period] for later in itertools.count(k + 1))
            steps = self.layer(layers[k % period], ahead)
            if closed and (k + 1) % period == 0:
                self.go_to(frames[0])
                steps += self.taken()
            done.append(steps)
            came_back = self.frame in frames[(k + 1) % period :: period]
            frames.append(self.frame)
            if came_back:
                break
        return frames, done

    def layer(
        self, segments: Sequence[Segment], later: Iterator[Segment] | list[Segment]
    ) -> tuple[Step, ...]:
        """The steps of all segments; `later` are those that follow."""
        later = list(itertools.islice(later, HORIZON))
        for index, segment in enumerate(segments):
            ahead = [*segments[index + 1 :], *later]
            if isinstance(segment, Monomial):
                self._monomial(index, segment)
            elif isinstance(segment, Dense):
                self._dense(index, segment, ahead)
            else:
                self._pairs(index, segment, ahead)
        return self.taken()

    def go_to(self, end: Frame) -> None:
        """Brings the amplitudes into another frame."""
        now, high = self.frame, self.local
        if (now.on_devices, now.offset >> high) != (end.on_devices, end.offset >> high):
            target = end.on_devices
            if not independent([*now.on_devices, *target]):
                self._exchange(between(now.on_devices, target, self.n))
            arranged = self.frame.arranged(target)
            turned = end.offset >> high << (high - self.count)
            self._move(arranged._replace(offset=arranged.offset | turned))
            self._exchange(target)
        self._move(end)

    def _move(self, frame: Frame) -> None:
        if frame != self.frame:
            self._steps.append(move_between(self.frame, frame))
            self.frame = frame

    def _exchange(self, target: list[int]) -> None:
        """Makes the functionals, independent of those that are global now, the global ones."""
        if self._on_top() != target:
            self._move(self.frame.arranged(target))
        self._steps.append(Exchange())
        self.frame = self.frame.exchanged()

    def _on_top(self) -> list[int]:
        return self.frame.rows[self.local - self.count : self.local]

    def _monomial(self, index: int, segment: Monomial) -> None:
        if segment.terms:
            masks, devices, flipped = zip(
                *(self.frame.split(term.mask) for term in segment.terms), strict=True
            )
            self._steps.append(Phases(index, masks, devices, flipped))
        self.frame = self.frame.after(segment.columns, segment.offset)

    def _dense(self, index: int, segment: Dense, ahead: list[Segment]) -> None:
        places = {block: place for place, block in enumerate(segment.blocks)}
        left = [block for block in segment.blocks if block.gates]
        for block in left:
            self._check(block)
        while left:
            support = functools.reduce(int.__or__, self.frame.on_devices, 0)
            able = [block for block in left if not mixed_wires(block, self.n) & support]
            left = [block for block in left if block not in able]
            way: list[list[int]] = []
            if left:
                wires = room_for([mixed_wires(block, self.n) for block in left], self.local)
                vectors = [1 << bit for bit in bits(wires)]
                way = path(self.frame.on_devices, vectors, [Dense(tuple(left)), *ahead], self.n)
            leading = way[0] if len(way) == 1 else []
            together = [block for block in able if len(block.gates) > 1 or not block.gates[0].controls]
            idle = self._settle(together, leading, segment.is_real)
            if together:
                steps = (self._block_step(index, places[block], block) for block in together)
                self._steps.append(BlockSteps(index, tuple(sorted(steps, key=_topmost, reverse=True)), idle))
            for block in able:
                if block in together:
                    continue
                if not self._fits(block):
                    self._move(self.frame.arranged((), mask_of(block.wires, self.n)))
                self._steps.append(self._block_step(index, places[block], block))
            for target in way:
                self._exchange(target)

    def _settle(self, together: list[Block], leading: list[int], is_real: bool) -> int:
        """Moves amplitudes so that the blocks can act, and if possible `leading` is on top for the next exchange.

        Real blocks are to follow each other from the topmost local bit on, if few other local bits are left; their
        number is returned, else 0.
        """
        mixed = [mixed_wires(block, self.n) for block in together]
        idle = self.local - sum(one.bit_count() for one in mixed)
        first = functools.reduce(int.__or__, leading, 0)
        plain = all(one.bit_count() == 1 for one in leading)
        within = not leading or any(first & ~one == 0 for one in mixed)
        if is_real and len(together) > 1 and idle <= _MOST_IDLE and plain and within:
            mixed.sort(key=lambda one: not one & first)
            wires = [1 << bit for one in mixed for bit in reversed(bits(one & ~first))]
            self._move(self.frame.arranged([*reversed(wires), *leading]))
            return idle
        if not all(map(self._fits, together)) or (leading and self._on_top() != leading):
            self._move(self.frame.arranged(leading))
        if not all(map(self._fits, together)):
            self._move(self.frame.arranged())
        return 0

    def _check(self, block: Block) -> None:
        needed = mixed_wires(block, self.n).bit_count()
        if needed > self.local:
            largest = max(block.gates, key=lambda gate: len(gate.controls + gate.wires))
            raise InputError(
                f"{largest.kind} acts on {needed} wires, but a device holds {self.local} of the {self.n}: "
                "use fewer devices"
            )

    def _fits(self, block: Block) -> bool:
        plain = all(self.frame.place_of(bit) is not None for bit in bits(mixed_wires(block, self.n)))
        return plain and self._block_conditions(block) is not None

    def _block_conditions(self, block: Block) -> list[Condition] | None:
        gate = block.gates[0]
        if len(block.gates) > 1:
            return []
        chosen = [wire for wire, value in zip(gate.controls, gate.values, strict=True) if value]
        return self.frame.conditions(mask_of(gate.controls, self.n), mask_of(chosen, self.n))

    def _block_step(self, index: int, place: int, block: Block) -> BlockStep:
        fixed = fixed_wires(block)
        found = [self.frame.place_of(self.n - 1 - wire) for wire in block.wires if wire not in fixed]
        return BlockStep(
            index,
            place,
            tuple(bit for bit in found if bit is not None),
            tuple((i, fixed[wire]) for i, wire in enumerate(block.wires) if wire in fixed),
            tuple(self._block_conditions(block) or ()),
        )

    def _pairs(self, index: int, segment: Pairs, ahead: list[Segment]) -> None:
        run: list[PairStep] = []
        first = 0
        for place, gate in enumerate(segment.gates):
            blocked = any(is_odd(one & gate.flip) for one in self.frame.on_devices)
            # Whatever controls are asked of a plain frame, they can be said in it.
            if blocked or self.frame.conditions(gate.where, gate.value) is None:
                if run:
                    self._steps.append(PairSteps(index, first, tuple(run)))
                run, first = [], place
                if blocked:
                    later = [Pairs(segment.gates[place:]), *ahead]
                    for target in path(self.frame.on_devices, [gate.flip], later, self.n):
                        self._exchange(target)
                if self.frame.conditions(gate.where, gate.value) is None:
                    self._move(self.frame.arranged((), gate.where))
            run.append(self._pair_step(gate))
        self._steps.append(PairSteps(index, first, tuple(run)))

    def _pair_step(self, gate: PairGate) -> PairStep:
        conditions = self.frame.conditions(gate.where, gate.value)
        assert conditions is not None
        return PairStep(
            image(self.frame.columns, gate.flip), *self.frame.split(gate.signs), tuple(conditions)
        )


def _topmost(step: BlockStep) -> int:
    return max(step.places)
