"""Three extensions of pyramid codes that cost nearly nothing: with a near-exact search none gains what was hoped.

`magnitudes`: at decoding, integer m is replaced by t_m, fitted by least squares on other weights; hoped for at 3 bits
were 0.11 to 0.14 dB. `E8`: points of E8 of L1 norm K (integers, and halves of odd integers with an even sum) in place
of integers alone, beside the integer code's error interpolated to as many bits; hoped for were 0.65 dB at most.
`halves`: 32 weights as two halves of 16 with one gain, the pulses of the left half stored, so that indices keep to 64
bits; what that takes beyond one index of all 32, in decibels at 6.02 a bit, and the share of directions it can say.
Gaussian weights, and rows of SmolLM2 after rotation; gains in full precision.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.models import load
from jaxlab.quantization import count, rotate, search
from jaxlab.quantization.rotation import random_signs

MODEL = "pkg:smollm2"
_FITS = 12
_SCALINGS = 24
_CANDIDATES = 16


def run(quick: bool) -> list[dict[str, Any]]:
    """One row an extension and code."""
    groups = 1 << (13 if quick else 17)
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((2, groups, 16))
    rows = [_magnitudes("Gaussian", *gaussian, k) for k in ((23,) if quick else (6, 11, 14, 16, 23, 28, 48))]
    if not quick:
        real = _rotated_rows()
        rows += [_magnitudes("SmolLM2, up", *real, k) for k in (14, 23, 28)]
    pulses = range(6, 21, 2) if quick else range(4, 37, 2)
    rows += _e8(rng.standard_normal((1 << (11 if quick else 14), 8)), pulses)
    return rows + [_halves(k, bits) for k in (48, 56, 68, 96) for bits in (4, 5)]


def _magnitudes(who: str, fitted_on: np.ndarray, x: np.ndarray, k: int) -> dict[str, Any]:
    """Integers against fitted magnitudes."""
    table = _fitted_magnitudes(fitted_on, k)
    y = _search(x, k)
    plain, fitted = (_distortion(x, values) for values in (y, np.sign(y) * table[np.abs(y)]))
    return {
        "extension": "magnitudes",
        "weights": who,
        "code": f"n=16 k={k}",
        "direction bits": math.log2(count(16, k)) / 16,
        "D": plain,
        "D extended": fitted,
        "gain dB": 10 * math.log10(plain / fitted),
        "t": ", ".join(f"{value:.2f}" for value in table[1:6]),
    }


def _fitted_magnitudes(x: np.ndarray, k: int) -> np.ndarray:
    """t with least squares of |x| - s t[|y|], s each group's best scale; t_1 = 1."""
    size, a = np.abs(_search(x, k)), np.abs(x)
    table = np.arange(k + 1, dtype=np.float64)
    for _ in range(_FITS):
        values = table[size]
        scale = np.sum(a * values, axis=1, keepdims=True) / np.sum(values**2, axis=1, keepdims=True)
        weights = np.broadcast_to(scale**2, size.shape)
        product = np.bincount(size.ravel(), (scale * a).ravel(), minlength=k + 1)
        square = np.bincount(size.ravel(), weights.ravel(), minlength=k + 1)
        table = np.where(square > 0, product / np.maximum(square, 1e-300), np.arange(k + 1))
        table[0] = 0
        table /= table[1]
    return table


def _search(x: np.ndarray, k: int) -> np.ndarray:
    return np.asarray(search(jnp.asarray(x, jnp.float32), k=k, candidates=_CANDIDATES)).astype(int)


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def _distortion(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error over the mean square, each group's gain the best."""
    square = np.sum(x**2, axis=1)
    return float(np.sum(square * (1 - _cosine(x, y) ** 2)) / square.sum())


def _rotated_rows() -> np.ndarray:
    """Two sets of groups of 16 from rotated matrices of different layers."""
    up = load(MODEL).params["layers"]["up"]
    signs = random_signs(jax.random.key(0), up.shape[-1])
    sets = [rotate(jnp.concatenate(list(up[layers])), signs) for layers in (slice(0, 30, 6), slice(3, 30, 6))]
    return np.stack([np.asarray(part, np.float64).reshape(-1, 16) for part in sets])


def _e8(x: np.ndarray, pulses: range) -> list[dict[str, Any]]:
    """Pyramids of E8 beside those of integers."""
    found = []
    for k in pulses:
        integers, halves = _search(x, k).astype(float), _nearest_halves(x, k)
        nearer = _cosine(x, halves) > _cosine(x, integers)
        points = count(8, k), 2**7 * math.comb(k + 3, 7)
        both = np.where(nearer[:, None], halves, integers)
        found.append((k, points, _distortion(x, integers), _distortion(x, both)))
    bits = np.array([math.log2(points[0]) for _, points, _, _ in found])

    def law(wanted: float) -> float:
        """Distortion of plain integers at so many bits."""
        return float(np.exp(np.interp(wanted, bits, np.log([plain for _, _, plain, _ in found]))))

    rows = []
    for k, points, _, extended in found:
        wanted = math.log2(sum(points))
        if wanted <= bits[-1]:
            rows.append(
                {
                    "extension": "E8",
                    "weights": "Gaussian",
                    "code": f"n=8 k={k}",
                    "direction bits": wanted / 8,
                    "D": law(wanted),
                    "D extended": extended,
                    "gain dB": 10 * math.log10(law(wanted) / extended),
                }
            )
    return rows


def _nearest_halves(x: np.ndarray, k: int) -> np.ndarray:
    """Vectors of halves of odd integers, L1 norm k and even sum, of the largest cosine over scalings (as `search`)."""
    a, signs, target = np.abs(x), np.where(x < 0, -1.0, 1.0), k - x.shape[1] // 2
    best, best_cosine = np.zeros_like(x), np.full(len(x), -np.inf)
    for scaling in range(_SCALINGS):
        wanted = a * k / a.sum(1, keepdims=True) * (0.7 + 1.1 * (scaling + 0.5) / _SCALINGS) - 0.5
        size = _allocate(wanted, target) + 0.5
        y = signs * size
        odd = np.abs(np.round(y.sum(1))) % 2 == 1
        smallest = (a * size).argmin(1)
        y[odd, smallest[odd]] *= -1
        cosine = _cosine(x, y)
        better = cosine > best_cosine
        best[better], best_cosine[better] = y[better], cosine[better]
    return best


def _allocate(wanted: np.ndarray, target: int) -> np.ndarray:
    """Whole numbers m >= 0 of this sum, nearest to `wanted`: floor(wanted + mu), the rest where it costs least."""
    low, high = -wanted.max(1) - 1, np.full(len(wanted), float(target + 1))
    for _ in range(40):
        middle = (low + high) / 2
        above = np.maximum(0, np.floor(wanted + middle[:, None])).sum(1) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    m = np.maximum(0, np.floor(wanted + low[:, None]))
    while (missing := m.sum(1) < target).any():
        cheapest = (m + 1 - wanted).argmin(1)
        m[missing, cheapest[missing]] += 1
    return m


def _halves(k: int, left_bits: int) -> dict[str, Any]:
    """Fixed widths: the pulses of the left half, and the longest pair of indices."""
    lefts = range(k // 2 - 2 ** (left_bits - 1), k // 2 + 2 ** (left_bits - 1))
    pairs = [(count(16, left), count(16, k - left)) for left in lefts if 0 <= left <= k]
    bits = max((one - 1).bit_length() + (other - 1).bit_length() for one, other in pairs) + left_bits
    whole = (count(32, k) - 1).bit_length()
    return {
        "extension": "halves",
        "code": f"n=32 k={k}, {left_bits} bits of pulses",
        "direction bits": bits / 32,
        "gain dB": -20 * math.log10(2) * (bits - whole) / 32,
        "share of directions": sum(one * other for one, other in pairs) / count(32, k),
    }
