"""What devices do to run a program: steps, of which `jaxlab.quantum.sharded_plan` makes a plan."""

from typing import NamedTuple

from jaxlab.quantum.frames import Condition, Frame, LocalMove
from jaxlab.quantum.lowering import Segment


class Phases(NamedTuple):
    """Of a monomial: a term on every parity of the place, the device and a constant bit."""

    segment: int
    masks: tuple[int, ...]
    device_masks: tuple[int, ...]
    flipped: tuple[int, ...]


class BlockStep(NamedTuple):
    """A block of a dense segment, on amplitudes for which conditions hold."""

    segment: int
    block: int
    places: tuple[int, ...]
    """Local bits of the wires that it acts on, in the order of its matrix."""
    fixed: tuple[tuple[int, int], ...]
    """Other wires of the matrix, and the value of each where the matrix is looked at; see `fixed_wires`."""
    conditions: tuple[Condition, ...]


class BlockSteps(NamedTuple):
    """Blocks of one segment without conditions, from the topmost local bits on; `idle` local bits may follow them."""

    segment: int
    blocks: tuple[BlockStep, ...]
    idle: int
    """As many if the blocks then follow each other from the topmost local bit on, else 0."""


class PairStep(NamedTuple):
    """A gate in pair form."""

    flip: int
    signs: int
    device_signs: int
    flipped: int
    conditions: tuple[Condition, ...]


class PairSteps(NamedTuple):
    """Some gates of a segment in pair form, from gate `first` on."""

    segment: int
    first: int
    gates: tuple[PairStep, ...]


class Exchange(NamedTuple):
    """Global bits change places with the topmost local ones."""


Step = Phases | BlockStep | BlockSteps | PairSteps | LocalMove | Exchange


class Stage(NamedTuple):
    """Layers of a part, `times` times over: a loop."""

    first: int
    """Which of the part's layers is the first one."""
    layers: tuple[tuple[Step, ...], ...]
    times: int


class PartPlan(NamedTuple):
    """The stages of a part, which is `repeated` if it has several layers."""

    segments: tuple[Segment, ...]
    repeated: bool
    stages: tuple[Stage, ...]


class Plan(NamedTuple):
    """Of a program: the frame that it starts in, its parts, and the frame that it ends in."""

    start: Frame
    parts: tuple[PartPlan, ...]
    end: Frame
