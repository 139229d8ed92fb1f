"""What a pyramid code is: its sizes, and how many bits it takes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

from jaxlab.errors import InputError
from jaxlab.kernels.pyramid_index import MAX_PULSES, count
from jaxlab.kernels.pyramid_search import MAX_CANDIDATES

RowMap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Wraps a function `f(rows, *replicated) -> rows`, for instance to shard the rows over devices.

For the same code and shapes it is given the same `f`, so that `functools.cache` makes one program serve many matrices.
"""

Grid = Literal["lloyd", "companded", "quantile"]
GRIDS: tuple[Grid, ...] = ("lloyd", "companded", "quantile")
MAX_INDEX_BITS = 128
MAX_GAIN_BITS = 6
SCALE_BITS = 16
WORD_BITS = 32


@dataclasses.dataclass(frozen=True)
class PVQSpec:
    """A pyramid vector quantizer with gain: groups of `n` weights, directions of L1 norm `k`.

    Reference: Fischer, "A pyramid vector quantizer", 1986; arXiv:2410.16926.
    """

    n: int
    """Weights per group, 1 to 64."""
    k: int
    """Pulses: the L1 norm of the integer direction, 1 to 127."""
    gain_bits: int
    """Bits of the group's gain code, 0 to 6."""
    grid: Grid = "lloyd"
    """Placement of the 2**gain_bits gain levels on the Beta law of a group's norm."""
    candidates: int = 8
    """Scalings that the direction search tries, 1 to 16 (8 is within 0.005 dB of the exact search)."""

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range or the index is too long."""
        _between("n", self.n, 1, 64)
        _between("k", self.k, 1, MAX_PULSES)
        _between("gain_bits", self.gain_bits, 0, MAX_GAIN_BITS)
        _between("candidates", self.candidates, 1, MAX_CANDIDATES)
        if self.grid not in GRIDS:
            raise InputError(f"grid is {self.grid!r}; it must be one of {', '.join(GRIDS)}")
        if self.index_bits > MAX_INDEX_BITS:
            largest = max(k for k in range(1, self.k) if index_bits(self.n, k) <= MAX_INDEX_BITS)
            raise InputError(
                f"k={self.k}, n={self.n} needs {self.index_bits} bits an index, the most is {MAX_INDEX_BITS}: "
                f"use k <= {largest} or a smaller n"
            )

    @property
    def index_bits(self) -> int:
        """Bits of a direction's index: ceil(log2 V(n, k))."""
        return index_bits(self.n, self.k)

    @property
    def group_bits(self) -> int:
        """Bits of one group: index and gain."""
        return self.index_bits + self.gain_bits

    @property
    def rate(self) -> float:
        """Bits a weight, without the row's scale and padding."""
        return self.group_bits / self.n

    def row_words(self, columns: int) -> int:
        """32-bit words that a row of `columns` weights takes (groups packed, the row padded to a word)."""
        return -(-self.groups(columns) * self.group_bits // WORD_BITS)

    def groups(self, columns: int) -> int:
        """Groups in a row; `columns` must be a multiple of `n`.

        Raises:
          InputError: it is not.
        """
        if columns % self.n:
            divisors = [d for d in range(2, 65) if columns % d == 0]
            raise InputError(
                f"in_features {columns} is not divisible by the group size {self.n}: "
                + (f"use a group size among {divisors}, or " if divisors else "")
                + "pad=True to fill the last group with zeros"
            )
        return columns // self.n

    def stored_bits(self, columns: int) -> float:
        """Bits a weight on disk for rows of `columns` weights: words, padding and the row's fp16 scale."""
        padded = columns + -columns % self.n
        return (self.row_words(padded) * WORD_BITS + SCALE_BITS) / columns


def index_bits(n: int, k: int) -> int:
    """ceil(log2 V(n, k)), exactly."""
    return (count(n, k) - 1).bit_length()


@functools.lru_cache(maxsize=256)
def bind(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """`functools.partial`, but the same object for the same arguments."""
    return functools.partial(function, **static)


def _between(name: str, value: int, low: int, high: int) -> None:
    if not (isinstance(value, int) and low <= value <= high):
        raise InputError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
