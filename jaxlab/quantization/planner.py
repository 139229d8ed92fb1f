"""Which code for which matrix: the best predicted quality within a budget of real bits.

Real bits are those on disk: index and gain codes, a row's padding to a word, its fp16 scale. The prediction
is for Gaussian weights: the direction's distortion follows V(n, k)^(-2 / (n - 1)), the law of a code with V
points on a sphere of n - 1 dimensions, times a measured factor; the gain's is that of its levels on the Beta law.
"""

import functools
import heapq
import math
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import special

from jaxlab.errors import InputError
from jaxlab.kernels.pyramid_index import count
from jaxlab.quantization.gains import gain_levels
from jaxlab.quantization.scalar import ScalarGrid, ScalarSpec
from jaxlab.quantization.spec import Grid, PVQSpec, index_bits

MAX_PLANNED_INDEX_BITS = 64
_MAX_GAIN_BITS = 5


Name = TypeVar("Name", bound=Hashable)


class Candidate(NamedTuple):
    """A code, its real bits a weight for rows of a given length, and its predicted error."""

    spec: PVQSpec
    bits: float
    distortion: float
    """Mean squared error a weight, on weights of unit variance."""

    @property
    def sqnr(self) -> float:
        """Signal over noise, dB."""
        return -10 * math.log10(self.distortion)


def predicted_distortion(spec: PVQSpec, columns: int) -> float:
    """Mean squared error a weight on unit-variance Gaussian rows of `columns` weights, without feedback."""
    direction = _direction_distortion(spec.n, spec.k)
    return direction + (1 - direction) * _gain_distortion(spec.n, columns, spec.gain_bits, spec.grid)


def candidates(bits: float, columns: int, *, n: int = 16) -> list[Candidate]:
    """Codes of group size `n` that take at most `bits` real bits a weight in rows of `columns`, best first.

    For each number of gain bits the largest number of pulses that fits is listed.

    Args:
      bits: budget, bits a weight, > 0.
      columns: weights per row.
      n: weights per group.

    Raises:
      InputError: no code fits.
    """
    found = []
    for gain_bits in range(_MAX_GAIN_BITS + 1):
        k = _most_pulses(n, gain_bits, columns, bits)
        if k:
            found.append(_candidate(PVQSpec(n, k, gain_bits), columns))
    if not found:
        least = PVQSpec(n, 1, 0).stored_bits(columns)
        raise InputError(
            f"bits = {bits} is too few for rows of {columns} weights in groups of {n}: at least {least:.3f} are needed"
        )
    return sorted(found, key=lambda candidate: candidate.distortion)


def plan(
    shapes: Mapping[Name, tuple[int, int]],
    bits: float,
    *,
    n: int = 16,
    costs: Mapping[Name, float] | None = None,
) -> dict[Name, PVQSpec]:
    """One code a matrix, such that all matrices together take at most `bits` real bits a weight.

    Spends the budget where a bit lowers the predicted total error most (greedy on the error's slope).

    Args:
      shapes: rows and columns of each matrix.
      bits: budget over all weights, bits a weight.
      n: weights per group.
      costs: how much a matrix's error matters: the total is the sum of cost * distortion, where distortion is
        per
        weight and relative to the weights' variance. None weighs every weight the same.

    Raises:
      InputError: there is no matrix, `n` does not divide a width, or the budget is too small.
    """
    if not shapes:
        raise InputError("shapes is empty: there is nothing to plan")
    for _, columns in shapes.values():
        PVQSpec(n, 1, 0).groups(columns)  # refuses widths that the groups do not divide
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    costs = weights if costs is None else costs
    ladders = {name: _ladder(n, columns) for name, (_, columns) in shapes.items()}
    steps = dict.fromkeys(shapes, 0)

    def next_step(name: Name) -> tuple[float, float] | None:
        """Slope of the error and bits of the next code of a matrix."""
        ladder, step = ladders[name], steps[name]
        if step + 1 == len(ladder):
            return None
        here, there = ladder[step], ladder[step + 1]
        extra = weights[name] * (there.bits - here.bits)
        return costs[name] * (here.distortion - there.distortion) / extra, extra

    budget = bits * sum(weights.values())
    used = sum(weights[name] * ladders[name][0].bits for name in shapes)
    if used > budget:
        least = used / sum(weights.values())
        raise InputError(f"bits = {bits} is too few: {least:.3f} is the least for groups of {n}")
    # Ties are broken by the order of `shapes`, so that names need no order of their own.
    queue = [(-step[0], order, name) for order, name in enumerate(shapes) if (step := next_step(name))]
    heapq.heapify(queue)
    while queue:
        _, order, name = heapq.heappop(queue)
        step = next_step(name)
        if step is None or used + step[1] > budget:
            continue
        used += step[1]
        steps[name] += 1
        following = next_step(name)
        if following is not None:
            heapq.heappush(queue, (-following[0], order, name))
    return {name: ladders[name][steps[name]].spec for name in shapes}


def nearest_scalar_codes(
    shapes: Collection[tuple[int, int]], bits: float, grid: ScalarGrid
) -> dict[int, ScalarSpec]:
    """Scalar codes of one bit width whose real rate over all matrices is the nearest that is not below `bits`.

    "minmax" is the usual round-to-nearest, which keeps outliers; on rotated weights, which have none, the clipped
    symmetric "midrise" code is better at every rate.

    Args:
      shapes: rows and columns of every matrix.
      bits: rate, bits a weight.
      grid: of the codes.

    Returns:
      By number of columns the code. All have groups of one size where a size of 32 or more (smaller ones spend more on
      scales than on codes) divides every width; else each width has groups of its divisor nearest to that size.

    Raises:
      InputError: no code has so many bits.
    """
    common = math.gcd(*(columns for _, columns in shapes))
    weights = sum(rows * columns for rows, columns in shapes)
    sizes = [size for size in range(32, 257) if common % size == 0] or list(range(32, 257))

    def code(columns: int, width: int, size: int) -> ScalarSpec:
        divisors = [d for d in range(1, min(columns, 256) + 1) if columns % d == 0]
        group = min(divisors, key=lambda d: abs(math.log(d / size)))
        return ScalarSpec(width, group, grid, clip=grid != "minmax")

    def rate(codes: dict[int, ScalarSpec]) -> float:
        return sum(rows * columns * codes[columns].stored_bits(columns) for rows, columns in shapes) / weights

    widths = {columns for _, columns in shapes}
    every = [
        {columns: code(columns, width, size) for columns in widths} for width in range(1, 9) for size in sizes
    ]
    fitting = [codes for codes in every if rate(codes) >= bits - 1e-9]
    if not fitting:
        raise InputError(f"no scalar code of up to 8 bits a weight takes {bits} bits or more")
    return min(fitting, key=rate)


@functools.lru_cache(maxsize=64)
def _ladder(n: int, columns: int) -> tuple[Candidate, ...]:
    """Codes by rising rate on the lower convex hull of error against rate, so that slopes only fall."""
    every = [
        _candidate(PVQSpec(n, k, gain_bits), columns)
        for gain_bits in range(_MAX_GAIN_BITS + 1)
        for k in range(1, 128)
        if index_bits(n, k) <= MAX_PLANNED_INDEX_BITS
    ]
    every.sort(key=lambda candidate: (candidate.bits, candidate.distortion))
    hull: list[Candidate] = []
    for candidate in every:
        if hull and candidate.distortion >= hull[-1].distortion:
            continue
        while hull and hull[-1].bits == candidate.bits:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], candidate):
            hull.pop()
        hull.append(candidate)
    return tuple(hull)


def _slope(here: Candidate, there: Candidate) -> float:
    """Error saved for each bit spent."""
    return (here.distortion - there.distortion) / (there.bits - here.bits)


def _candidate(spec: PVQSpec, columns: int) -> Candidate:
    return Candidate(spec, spec.stored_bits(columns), predicted_distortion(spec, columns))


def _most_pulses(n: int, gain_bits: int, columns: int, bits: float) -> int:
    best = 0
    for k in range(1, 128):
        if index_bits(n, k) > MAX_PLANNED_INDEX_BITS or PVQSpec(n, k, gain_bits).stored_bits(columns) > bits:
            break
        best = k
    return best


# Decibels that 1 - E[cos^2] lies above V(n, k)^(-2 / (n - 1)): the sum of c[i][j] (R / 4)^i n^-j, R = log2 V / n.
# Least squares on 250 points, n = 2 to 64, k = 1 to 127, 3 * 10^5 Gaussian weights or more each: off by at most
# 0.11 dB, and by 0.07 dB for n >= 4 at R = 1 to 4.7.
_DIRECTION_LAW = (
    (-0.251, 2.422, 2.305),
    (11.660, -23.075, 73.306),
    (-22.647, 57.796, -151.501),
    (18.568, -57.479, 139.519),
    (-5.526, 20.497, -48.445),
)


def _direction_distortion(n: int, k: int) -> float:
    """1 - E[cos^2] between a Gaussian group and its nearest direction."""
    if n == 1:
        return 0.0
    bits = math.log2(count(n, k))
    excess = sum(
        c * (bits / n / 4) ** i / n**j for i, row in enumerate(_DIRECTION_LAW) for j, c in enumerate(row)
    )
    return 10 ** (excess / 10) * 2 ** (-2 * bits / (n - 1))


@functools.lru_cache(maxsize=1024)
def _gain_distortion(n: int, columns: int, bits: int, grid: Grid) -> float:
    """Mean squared error a weight of the norm's levels on the Beta law."""
    if columns <= n:
        return 0.0
    middle = (np.arange(4096) + 0.5) / 4096
    norm = np.sqrt(columns * special.betaincinv(n / 2, (columns - n) / 2, middle))
    levels = gain_levels(n, columns, bits, grid)
    return float(np.mean(np.min(np.abs(norm[:, None] - levels), axis=1) ** 2) / n)
