"""Nearest codeword by angle: the integer vector y with sum |y_i| = k that maximises <x, y> / ||y||.

Method. If y is optimal and alpha = ||y||^2 / <x, y>, then |y| also minimises ||alpha |x| - y||^2 over the
non-negative vectors of sum k, and for a given alpha that is a separable allocation ("water filling"):
y_i = max(0, floor(alpha |x_i| + mu)) at the one level mu where the sum is k. So:

1. alpha_0: the scale at which rounding at the usual level of a Gaussian group gives about k pulses.
2. The codeword of alpha_0 gives alpha_1 = ||y||^2 / <x, y>: never a worse angle, and usually the optimum.
3. `candidates` scales around alpha_1, spaced by about one exchanged pulse, each with its own level; the best angle
   is kept. The level is found by a few counts and then exactly, from the largest fractional parts.
4. The codeword at the kept (alpha, mu), with single pulses added or taken where ties or rounding left a wrong sum.

Groups lie along the minor axis and the loop over a group's weights is unrolled, so that each step is one fused
loop over groups in registers. References: Fischer, "A pyramid vector quantizer", IEEE Trans. IT 1986;
arXiv:2410.16926.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_PULSES = 127  # y is int8
MAX_CANDIDATES = 16

Rows = list[jax.Array]
"""One array [groups] for each of the n weights of a group."""


def search(
    x: jax.Array, *, k: int | jax.Array, candidates: int = 8, implementation: str | None = None
) -> jax.Array:
    """Codeword of (nearly) the smallest angle to each group.

    Against the exact search it loses about 0.001 dB of distortion on Gaussian groups at 8 candidates and up to
    0.004 dB at 3. Signs are those of x; larger magnitudes never get fewer pulses; ties go to the lowest index. A
    group of zeros, or one with a NaN or an infinity (callers check for these), gives (k, 0, ..., 0). Compile time
    grows with n: seconds up to n = 32, a minute at 128.

    Args:
      x: floating point [..., n], n >= 1; any scale.
      k: pulses, 1 to 127; may be a traced integer (then its range is not checked), so that one program serves all.
      candidates: scales tried, 1 to 16.
      implementation: "xla" (also None: the only one that has been timed) or "pallas", one kernel that keeps a
        group in registers from the first step to the last, for GPU and TPU (interpreted, slowly, on CPU).

    Returns:
      int8[..., n] with sum |y| = k, always.

    Raises:
      ValueError: an argument is out of range.
    """
    n = _check(x, k)
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(f"candidates = {candidates}; it must lie between 1 and {MAX_CANDIDATES}")
    if implementation not in (None, "xla", "pallas"):
        raise ValueError(f"implementation = {implementation!r}; it must be None, 'xla' or 'pallas'")
    flat = _flat_search(candidates, implementation == "pallas")
    return flat(x.reshape(-1, n), jnp.asarray(k, jnp.int32)).reshape(x.shape)


@functools.lru_cache
def _flat_search(candidates: int, pallas: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The search of [groups, n]. A batch of them is more groups: one axis more in the program would cost time, and
    jax 0.12 does not end compiling it.
    """

    @jax.custom_batching.custom_vmap
    def flat(x: jax.Array, k: jax.Array) -> jax.Array:
        return _search(x, k, candidates, pallas)

    @flat.def_vmap
    def _(size: int, batched: list[bool], x: jax.Array, k: jax.Array) -> tuple[jax.Array, bool]:
        if not batched[1]:
            return flat(x.reshape(-1, x.shape[-1]), k).reshape(x.shape), True
        x = x if batched[0] else jnp.broadcast_to(x, (size, *x.shape))
        return jax.lax.map(lambda pair: flat(*pair), (x, k)), True

    return flat


@functools.partial(jax.jit, static_argnames=("candidates", "pallas"))
def _search(x: jax.Array, k: int | jax.Array, candidates: int, pallas: bool) -> jax.Array:
    a, distinct = _normalise(jnp.abs(x.astype(jnp.float32)).T)
    if pallas:
        from jaxlab.kernels.pyramid_search_pallas import search_planar

        y = search_planar(a, k, usual_start(len(a), k), candidates)
    else:
        y = _repair(a, *_best_scale(a, distinct, k, candidates), k)
    y = y.astype(jnp.int8).T
    return jnp.where(x < 0, -y, y)


def _check(x: jax.Array, k: int | jax.Array) -> int:
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(
            f"x has shape {x.shape}; groups of at least 1 weight are expected along the last axis"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}; it must be floating point")
    if not isinstance(k, jax.core.Tracer) and not 1 <= k <= MAX_PULSES:
        raise ValueError(f"k = {k}: pulses must lie between 1 and {MAX_PULSES}, since y is int8")
    return x.shape[-1]


def _normalise(magnitude: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each group over its maximum, (1, 0, ..., 0) where it is zero or not finite; and the same with ties broken."""
    n, limits = magnitude.shape[0], jnp.finfo(jnp.float32)
    rows = list(magnitude)
    peak = functools.reduce(jnp.maximum, rows)
    finite = functools.reduce(jnp.logical_and, [row <= limits.max for row in rows])
    usable = finite & (peak >= limits.tiny)

    def scale(magnitude: jax.Array, peak: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = magnitude / peak
        return a, a - jnp.arange(n, dtype=a.dtype)[:, None] * tie_gap(n)

    def mend(magnitude: jax.Array, peak: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.arange(n)[:, None] == 0
        shrink = jnp.where(peak < 2.0**64, 1, 2.0**-64)  # 1 / peak would be subnormal, hence 0, above 2^126
        magnitude = jnp.where(usable, magnitude * shrink, jnp.where(first, 1, 0))
        return scale(magnitude, jnp.where(usable, peak * shrink, 1))

    # Also a wall: without it XLA:CPU computes a anew, strided from x, within each of the fused loops that follow.
    return jax.lax.cond(jnp.all(usable & (peak < 2.0**64)), scale, mend, magnitude, peak)


def tie_gap(n: int) -> float:
    """Weight i is lowered by i times this, which shifts alpha a_i by a few units in the last place of k."""
    return 0.4 * n * 2.0**-20


def _best_scale(
    a: jax.Array, distinct: jax.Array, k: int | jax.Array, candidates: int
) -> tuple[jax.Array, jax.Array]:
    """The scale alpha and the level mu of the best of the candidates, both [groups].

    The search runs on `distinct`, where a level with the right sum exists; the level that is returned is for `a`.
    """
    usual = usual_start(len(a), k)
    sweep = plan_sweep(list(distinct), k, usual, candidates)

    def keep_better(j: jax.Array, best: jax.Array) -> jax.Array:
        return jnp.maximum(best, sweep.word(_rows_within_loop(distinct, j), k, usual.density, j))

    alpha, mu = sweep.best(jax.lax.fori_loop(0, candidates, keep_better, sweep.none_yet()))

    def unsolved(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows = _rows_within_loop(a, state[0])
        return (state[0] < 2) & jnp.any(total(fill(rows, alpha, state[1])) != k)

    def solve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows = _rows_within_loop(a, state[0])
        return state[0] + 1, solve_level(rows, alpha, state[1], k, usual.density, trials=4)

    return alpha, jax.lax.while_loop(unsolved, solve, (jnp.int32(0), mu))[1]


def _rows_within_loop(a: jax.Array, counter: jax.Array) -> Rows:
    """list(a), tied to a loop counter below 16 so that XLA does not copy each row out of the loop first."""
    return [jax.lax.dynamic_index_in_dim(a, (counter >> 4) + i, keepdims=False) for i in range(a.shape[0])]


class Usual(NamedTuple):
    """What is usual in a Gaussian group: where the search starts."""

    level: jax.Array
    ratio: jax.Array
    """alpha sum(a) / k."""
    density: jax.Array
    """Pulses gained per unit of level."""


class Sweep(NamedTuple):
    """The scales to try, centre * (first + step j), and where their levels are expected."""

    centre: jax.Array
    start: jax.Array
    slope: jax.Array
    first: jax.Array
    step: jax.Array
    candidates: int

    def guess(self, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scale and expected level of candidate j."""
        relative = self.first + self.step * j.astype(jnp.float32)
        return self.centre * relative, self.start - self.slope * relative

    def word(self, a: Rows, k: int | jax.Array, density: jax.Array, j: jax.Array) -> jax.Array:
        """Candidate j's cosine and number in one integer that grows with the cosine; one word, so one fusion."""
        scale, mu = self.guess(j)
        mu = solve_level(a, scale, mu, k, density)
        pulses, along, energy = _moments(a, scale, mu)
        cosine = jnp.where(pulses == k, along * jax.lax.rsqrt(energy), 0)
        return (jax.lax.bitcast_convert_type(cosine, jnp.int32) & -MAX_CANDIDATES) | (MAX_CANDIDATES - 1 - j)

    def none_yet(self) -> jax.Array:
        """The word of no success: the middle candidate."""
        return jnp.full(self.centre.shape, MAX_CANDIDATES - 1 - self.candidates // 2, jnp.int32)

    def best(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scale and expected level of the candidate in the word."""
        return self.guess(MAX_CANDIDATES - 1 - (word & (MAX_CANDIDATES - 1)))


def plan_sweep(a: Rows, k: int | jax.Array, usual: Usual, candidates: int) -> Sweep:
    """Steps 1 and 2 of the method: centres the candidates on the scale that the first codeword asks for."""
    n, level, density = len(a), usual.level, usual.density
    alpha = k * usual.ratio / total(a)
    for _ in range(2):
        alpha = alpha * jnp.clip(1 + 0.9 / k * (k - total(fill(a, alpha, level))), 0.8, 1.25)
    mu = solve_level(a, alpha, jnp.zeros_like(alpha) + (level - 1.5 / density), k, density)
    pulses, along, energy = _moments(a, alpha, mu)
    centre = jnp.where(pulses > 0, energy / along * (k / pulses), alpha)
    reach = jnp.minimum(0.28 * math.sqrt((candidates - 1) * n) / k, 0.6)
    return Sweep(
        centre=centre,
        start=mu + ((k - pulses) + k - 1.5) / density,
        slope=centre / alpha * (k / density),
        first=1 - reach,
        step=2 * reach / max(candidates - 1, 1),
        candidates=candidates,
    )


def usual_start(n: int, k: int | jax.Array) -> Usual:
    """`Usual` for n weights and k pulses."""
    level, ratio, density = jnp.asarray(_start_table(n))[k]
    return Usual(level, ratio, density)


@functools.lru_cache(maxsize=64)
def _start_table(n: int) -> np.ndarray:
    """Float32 [128, 3]: level, ratio and density for every number of pulses (row 0 is not used)."""
    levels = [max(0.5 - 0.1 * n / k, 0.33) for k in range(1, MAX_PULSES + 1)]
    rows = [(level, *_gaussian_start(n, k, level)) for k, level in enumerate(levels, start=1)]
    return np.asarray([rows[0], *rows], np.float32)


@functools.lru_cache(maxsize=256)
def _gaussian_start(n: int, k: int, level: float) -> tuple[float, float]:
    """For |a| half-normal: alpha sum(a) / k at which `level` gives k pulses, and pulses gained per unit of level."""
    steps = [j - level for j in range(1, k + 2)]
    low, high = 1e-3, 1e3
    for _ in range(60):
        sigma = math.sqrt(low * high)
        pulses = n * sum(math.erfc(step / sigma / math.sqrt(2)) for step in steps)
        low, high = (sigma, high) if pulses < k else (low, sigma)
    density = n * math.sqrt(2 / math.pi) * sum(math.exp(-((step / sigma) ** 2) / 2) for step in steps) / sigma
    return sigma * math.sqrt(2 / math.pi) * n / k, density


def solve_level(
    a: Rows, alpha: jax.Array, mu: jax.Array, k: int | jax.Array, density: jax.Array, trials: int = 2
) -> jax.Array:
    """The level at which `alpha` gives k pulses, from a guess; a few in a hundred groups end one pulse off."""
    low, high = jnp.full_like(mu, -jnp.inf), jnp.full_like(mu, jnp.inf)
    for _ in range(trials):  # until 0 to 3 pulses are missing
        missing = k - total(fill(a, alpha, mu))
        low, high = jnp.where(missing >= 0, mu, low), jnp.where(missing < 0, mu, high)
        guess = mu + (missing - 1.5) / density
        guess = jnp.where((guess > low) & (guess < high), guess, (low + high) / 2)
        mu = jnp.where((missing >= 0) & (missing <= 3), mu, guess)
    first = second = third = pulses = jnp.zeros_like(mu)  # the three largest fractional parts
    for row in a:
        t = jnp.maximum(alpha * row + mu, 0)
        y = jnp.floor(t)
        pulses = pulses + y
        part = t - y
        first, part = jnp.maximum(first, part), jnp.minimum(first, part)
        second, part = jnp.maximum(second, part), jnp.minimum(second, part)
        third = jnp.maximum(third, part)
    missing = k - pulses
    part = jnp.where(missing == 1, (first + second) / 2, jnp.where(missing == 2, (second + third) / 2, third))
    rise = jnp.where(missing > 0, 1 - part, jnp.minimum(missing, 0) / density)
    return mu + rise + jnp.where(missing >= 3, k * 2.0**-22 + (missing - 3) / density, 0)


def fill(a: Rows, alpha: jax.Array, mu: jax.Array | float) -> Rows:
    """The water filling of `alpha` at level `mu`."""
    return [jnp.maximum(jnp.floor(alpha * row + mu), 0) for row in a]


def _moments(a: Rows, alpha: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """sum y, <a, y> and ||y||^2 of the filled y."""
    y = fill(a, alpha, mu)
    return total(y), total([row * v for row, v in zip(a, y, strict=True)]), total([v * v for v in y])


def total(rows: Sequence[jax.Array]) -> jax.Array:
    """Sum over a group's weights."""
    return functools.reduce(jnp.add, rows)


def _repair(a: jax.Array, alpha: jax.Array, mu: jax.Array, k: int | jax.Array) -> jax.Array:
    """The codeword [n, groups] at (alpha, mu), with pulses added or taken one by one until the sum is k."""
    t, y = first_codeword(a, alpha, mu, k)

    def change(y: jax.Array) -> jax.Array:
        return cheapest_change(list(y), list(t), list(a), k)

    def apply(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, pending = state
        hit = jnp.arange(1, len(a) + 1)[:, None] == jnp.abs(pending)
        y = y + jnp.where(hit, jnp.sign(pending), 0).astype(y.dtype)
        return y, change(y)

    return jax.lax.while_loop(lambda state: jnp.any(state[1] != 0), apply, (y, change(y)))[0]


def first_codeword(
    a: jax.Array, alpha: jax.Array, mu: jax.Array, k: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """alpha a + mu and its floor within 0 and k, finite whatever alpha and mu are."""
    sound = jnp.isfinite(alpha) & jnp.isfinite(mu)
    t = jnp.where(sound, alpha, k) * a + jnp.where(sound, mu, 0)
    return t, jnp.clip(jnp.floor(t), 0, k)


def cheapest_change(y: Rows, t: Rows, a: Rows, k: int | jax.Array) -> jax.Array:
    """+-(i + 1) for the weight i where adding or taking a pulse costs least, 0 where the sum is k.

    Of equal costs the larger weight is added to and the smaller taken from, so that order is kept.
    """
    lack = k - total(y)
    adding = lack > 0
    chosen, least, least_a = jnp.zeros_like(lack, jnp.int32), jnp.full_like(lack, jnp.inf), a[0]
    for i, (pulses, target, weight) in enumerate(zip(y, t, a, strict=True)):
        cost = jnp.where(adding, pulses - target, jnp.where(pulses > 0, target - pulses, jnp.inf))
        better = (cost < least) | ((cost == least) & jnp.where(adding, weight > least_a, weight <= least_a))
        chosen = jnp.where(better, i + 1, chosen)
        least, least_a = jnp.where(better, cost, least), jnp.where(better, weight, least_a)
    return chosen * jnp.clip(lack, -1, 1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="k")
def projection_search(x: jax.Array, *, k: int) -> jax.Array:
    """Codeword nearest to k x / ||x||_1 in the Euclidean sense: the search most papers describe.

    Not the smallest angle: loses 0.08 to 0.36 dB of distortion on Gaussian groups. For comparison; arguments, result
    and errors as for `search`.
    """
    n = _check(x, k)
    a = _unit_peak(x)
    target = k * a / jnp.sum(a, -1, keepdims=True)
    y = jnp.clip(jnp.floor(target), 0, k)
    missing = k - jnp.sum(y, -1, keepdims=True)  # rounding can leave it a pulse too many, too
    place = jnp.argsort(jnp.argsort(y - target, -1), -1)
    excess = (jnp.arange(n) == jnp.argmax(y, -1, keepdims=True)) * jnp.minimum(missing, 0)
    y = (y + (place < missing) + excess).astype(jnp.int8)
    return jnp.where(x < 0, -y, y)


@functools.partial(jax.jit, static_argnames="k")
def greedy_search(x: jax.Array, *, k: int) -> jax.Array:
    """Codeword built pulse by pulse, each where the angle then is smallest: the search of the Opus codec.

    Loses up to 0.11 dB of distortion on Gaussian groups. For comparison; arguments, result and errors as for
    `search`. Reference: RFC 6716, section 5.3.8.1.
    """
    n = _check(x, k)
    a = _unit_peak(x)
    y = jnp.zeros_like(a)
    if 2 * k > n:
        y = jnp.floor((k + 0.8) * a / jnp.sum(a, -1, keepdims=True))

    def add(y: jax.Array) -> jax.Array:
        along = jnp.sum(a * y, -1, keepdims=True) + a
        energy = jnp.sum(y * y, -1, keepdims=True) + 2 * y + 1
        chosen = jnp.argmax(along * along / energy, -1, keepdims=True)
        return y + ((jnp.arange(n) == chosen) & (jnp.sum(y, -1, keepdims=True) < k))

    y = jax.lax.while_loop(lambda y: jnp.any(jnp.sum(y, -1) < k), add, y).astype(jnp.int8)
    return jnp.where(x < 0, -y, y)


def _unit_peak(x: jax.Array) -> jax.Array:
    a, _ = _normalise(jnp.abs(x.reshape(-1, x.shape[-1]).astype(jnp.float32)).T)
    return a.T.reshape(x.shape)
