"""Pyramid codes on Gaussian weights: within 0.05 dB of the reference table, 1.2 dB (n = 32, 3 bits) over Lloyd-Max.

Every contestant quantizes the same weights, rows of 4096. `D` is the mean squared error over the mean square of
the weights, `gap_db` how far the SQNR lies below Shannon's bound at `rate` (for real weights: below the bound of
Gaussian ones); for pyramid codes `rate` counts index and gain bits, for the others all they store. `real_bits` counts
everything: padding, scales, zero points, levels. Beside the table: codes with ideal gains, grids of gain levels,
what the search loses to the exact one, Laplacian weights, matrices of a real model, rotated and as they are.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxlab.files import atomic_file
from jaxlab.models import LINEARS, load
from jaxlab.quantization import (
    PVQSpec,
    ScalarSpec,
    dequantize,
    dequantize_scalar,
    gain_levels,
    quantize,
    quantize_scalar,
    rotate,
    search,
    search_exact,
)
from jaxlab.quantization.planner import predicted_distortion
from jaxlab.quantization.pvq import levels_for
from jaxlab.quantization.rotation import random_signs
from jaxlab.quantization.rows import code_of, quantize_groups, row_scale

COLUMNS = 4096
CANDIDATES = 12
TOLERANCE_DB = 0.05
_GROUPS_AT_ONCE = 1 << 14

# Rate: {group size: (pulses, gain bits, D)}: the reference table, measured by an independent numpy search.
TABLE = {
    2.00: {8: (6, 1, 0.1065), 16: (11, 1, 0.1048), 32: (21, 2, 0.1004)},
    2.25: {8: (7, 1, 0.0869), 16: (14, 1, 0.0737), 32: (27, 1, 0.0706)},
    2.50: {8: (8, 2, 0.0592), 16: (16, 2, 0.0534), 32: (32, 2, 0.0503)},
    3.00: {8: (13, 2, 0.0281), 16: (23, 3, 0.0267), 32: (48, 2, 0.02476)},
    3.25: {8: (14, 3, 0.0205), 16: (28, 3, 0.01867), 32: (56, 3, 0.01767)},
    3.50: {8: (17, 3, 0.0147), 16: (33, 4, 0.01313), 32: (68, 3, 0.01232)},
    4.00: {8: (24, 4, 0.00701), 16: (48, 4, 0.00646), 32: (96, 4, 0.00617)},
}
SHAPES = {(8, 8): 0.0523, (8, 16): 0.01423, (16, 16): 0.04955, (16, 32): 0.0136, (32, 32): 0.0480}
LLOYD_MAX = {2: 0.11748, 3: 0.03455, 4: 0.00950}
UNIFORM = {2: 0.11885, 3: 0.03744, 4: 0.01154}
RTN = {("minmax", 2): 0.250, ("minmax", 3): 0.0457, ("minmax", 4): 0.0099} | {
    ("midrise", 2): 0.1160,
    ("midrise", 3): 0.0351,
    ("midrise", 4): 0.0099,
}
GAINS = {
    "quantile": (1.16e-2, 4.4e-3, 1.7e-3, 7.0e-4, 2.9e-4, 1.2e-4),
    "companded": (1.50e-2, 4.4e-3, 1.17e-3, 3.0e-4, 7.8e-5, 1.95e-5),
    "lloyd": (1.11e-2, 3.6e-3, 1.04e-3, 2.8e-4, 7.5e-5, 2e-5),
}
SEARCHES = ((8, 4), (8, 16), (16, 8), (16, 16), (16, 32), (32, 32), (64, 32))
# Shannon's lower bound of a Laplacian law of unit variance is that of the Gaussian times e / pi.
_LAPLACE_DB = -10 * math.log10(math.e / math.pi)

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """All rows; `quick` takes an eighth of the weights, fewer cells and no real model."""
    rows_of_weights = 32 if quick else 256
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((rows_of_weights, COLUMNS)).astype(np.float32)
    laplacian = (rng.laplace(size=gaussian.shape) / math.sqrt(2)).astype(np.float32)
    sizes = (8, 16) if quick else (8, 16, 32)
    table = [row for n in sizes for row in _pyramid_table(gaussian, n)]
    table += [*_stored(gaussian, sizes[1:]), *_scalars(gaussian, quick)]
    if not quick:
        _figure(table)
    table += _margins(table)
    rows = [*table, *_shape_only(gaussian, sizes), *_gain_grids(gaussian), *_searches(quick)]
    rows += _laplacian(laplacian)
    if not quick:
        rows += _real()
    for row in rows:
        if row.get("within") is False:
            sys.stdout.write(f"OUT OF TOLERANCE: {row['part']}, {row['who']} {row['code']}\n")
    return rows


def _row(part: str, who: str, code: str, distortion: float, rate: float, **more: Any) -> Row:
    """A row of rate, distortion and the gap to the Gaussian's bound, less `bound_db`."""
    sqnr = -10 * math.log10(distortion)
    bound = 20 * math.log10(2) * rate + more.pop("bound_db", 0.0)
    expected = more.pop("expected", None)
    row: Row = {"part": part, "who": who, "code": code, "rate": round(rate, 4), "real_bits": None}
    row |= {"D": float(f"{distortion:.5g}"), "sqnr_db": round(sqnr, 3), "gap_db": round(bound - sqnr, 3)}
    if expected:
        row |= {"reference_D": expected, "off_db": round(10 * math.log10(distortion / expected), 3)}
    return row | more


# Pyramid codes


def _pyramid_table(w: np.ndarray, n: int) -> Iterator[Row]:
    for rate, cells in TABLE.items():
        k, gain_bits, expected = cells[n]
        spec = PVQSpec(n, k, gain_bits, candidates=CANDIDATES)
        if spec.rate != rate:
            raise AssertionError(f"the table says {rate} bits for n={n}, k={k}, not {spec.rate}")
        row = _row("table", f"PVQ n={n}", f"k={k} gain={gain_bits}", _error(w, spec), rate, expected=expected)
        predicted = 10 * math.log10(predicted_distortion(spec, COLUMNS) / row["D"])
        row |= {"real_bits": _pyramid_bits(spec, w), "within": abs(row["off_db"]) <= TOLERANCE_DB}
        yield row | {"planner_off_db": round(predicted, 3)}


def _stored(w: np.ndarray, sizes: tuple[int, ...]) -> Iterator[Row]:
    """The same through packed words and back, its bits counted from the arrays."""
    for n in sizes:
        k, gain_bits, expected = TABLE[3.25][n]
        spec = PVQSpec(n, k, gain_bits, candidates=CANDIDATES)
        tensor = quantize(jnp.asarray(w), spec, jax.random.key(0), rotated=False)
        distortion = _relative(w, np.asarray(dequantize(tensor)))
        row = _row(
            "packed", f"PVQ n={n}", f"k={k} gain={gain_bits}", distortion, spec.rate, expected=expected
        )
        yield row | {
            "real_bits": round(8 * tensor.nbytes / w.size, 5),
            "within": abs(row["off_db"]) <= TOLERANCE_DB,
        }


def _shape_only(w: np.ndarray, sizes: tuple[int, ...]) -> Iterator[Row]:
    for (n, k), expected in SHAPES.items():
        if n in sizes:
            spec = PVQSpec(n, k, 0, candidates=CANDIDATES)
            distortion = _error(w, spec, ideal_gain=True)
            row = _row("ideal gain", f"PVQ n={n}", f"k={k}", distortion, spec.rate, expected=expected)
            yield row | {"gap_db": None}  # its rate lacks the gain


def _laplacian(w: np.ndarray) -> Iterator[Row]:
    turned = np.asarray(rotate(jnp.asarray(w), random_signs(jax.random.key(1), COLUMNS)))
    for rate in (2.00, 3.25, 4.00):
        k, gain_bits, _ = TABLE[rate][16]
        spec = PVQSpec(16, k, gain_bits, candidates=CANDIDATES)
        bits = _pyramid_bits(spec, w)
        for who, weights, ideal in (
            ("as they are", w, False),
            ("ideal gain", w, True),
            ("rotated", turned, False),
        ):
            distortion = _error(weights, spec, ideal_gain=ideal)
            row = _row(
                "laplacian",
                f"PVQ n=16, {who}",
                f"k={k} gain={gain_bits}",
                distortion,
                rate,
                bound_db=_LAPLACE_DB,
            )
            yield row | ({"gap_db": None} if ideal else {"real_bits": bits})
    for name, quantizer in _rtn(128, (3,)):
        restored, bits = quantizer(w)
        yield _row(
            "laplacian", name, "3 bits", _relative(w, restored), bits, bound_db=_LAPLACE_DB, real_bits=bits
        )


def _error(w: np.ndarray, spec: PVQSpec, *, ideal_gain: bool = False) -> float:
    """Squared error over squared weights, without rotation, from the parts of `quantize`."""
    groups = w.reshape(-1, spec.n)
    scale = np.repeat(np.asarray(row_scale(jnp.asarray(w))), w.shape[1] // spec.n)
    code = code_of(spec, jnp.asarray(levels_for(spec, w.shape[1])))
    total = 0.0
    for start in range(0, len(groups), _GROUPS_AT_ONCE):
        part, its_scale = groups[start : start + _GROUPS_AT_ONCE], scale[start : start + _GROUPS_AT_ONCE]
        missing = _GROUPS_AT_ONCE - len(part)  # all-zero groups of scale 0 add no error
        part, its_scale = np.pad(part, ((0, missing), (0, 0))), np.pad(its_scale, (0, missing))
        total += float(
            _squared_error(part, its_scale, code, candidates=spec.candidates, ideal_gain=ideal_gain)
        )
    return total / float(np.sum(np.square(w, dtype=np.float64)))


@functools.partial(jax.jit, static_argnames=("candidates", "ideal_gain"))
def _squared_error(w: jax.Array, scale: jax.Array, code: Any, *, candidates: int, ideal_gain: bool) -> Any:
    y, _, restored = quantize_groups(w, scale, code, candidates=candidates)
    if ideal_gain:
        y = y.astype(w.dtype)
        restored = y * jnp.sum(w * y, -1, keepdims=True) / jnp.sum(y * y, -1, keepdims=True)
    return jnp.sum(jnp.square(w - restored))


def _pyramid_bits(spec: PVQSpec, w: np.ndarray) -> float:
    """Stored bits a weight, with the levels that the rows share."""
    return round(spec.stored_bits(w.shape[1]) + 32 * 2**spec.gain_bits / w.size, 5)


def _relative(w: np.ndarray, restored: np.ndarray) -> float:
    return float(np.sum(np.square(w - restored, dtype=np.float64)) / np.sum(np.square(w, dtype=np.float64)))


# Scalars and peers: name, then a function from weights to restored weights and stored bits a weight

Quantizer = Callable[[np.ndarray], tuple[np.ndarray, float]]


def _scalars(w: np.ndarray, quick: bool) -> Iterator[Row]:
    for who, levels_of, expected in (
        ("Lloyd-Max scalar", _lloyd_max, LLOYD_MAX),
        ("best uniform", _best_uniform, UNIFORM),
    ):
        for bits, reference in expected.items():
            levels = levels_of(bits)
            scale = np.asarray(row_scale(jnp.asarray(w)), np.float32)[:, None]
            restored = scale * levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, w / scale)]
            row = _row("scalar", who, f"{bits} bits", _relative(w, restored), bits, expected=reference)
            real = bits + 16 / w.shape[1] + 32 * len(levels) / w.size
            yield row | {"real_bits": round(real, 5), "within": abs(row["off_db"]) <= TOLERANCE_DB}
    contestants: list[tuple[str, int, float | None, Quantizer]] = []
    for bits in (2, 3, 4):
        names = zip(("minmax", "midrise"), _rtn(128, (bits,)), strict=True)
        contestants += [(name, bits, RTN[grid, bits], quantizer) for grid, (name, quantizer) in names]
    contestants += [(name, bits, None, quantizer) for name, bits, quantizer in _peers(quick)]
    for name, bits, reference, quantizer in contestants:
        restored, real = quantizer(w)
        row = _row("scalar", name, f"{bits} bits", _relative(w, restored), real, expected=reference)
        yield row | {"real_bits": round(real, 5)}


def _margins(table: list[Row]) -> Iterator[Row]:
    """By how much pyramid codes beat scalars at the same rate; the targets are for n = 32."""
    sqnr = {(row["who"], row["rate"]): row["sqnr_db"] for row in table if row["part"] != "packed"}
    for who, rate, target in (("Lloyd-Max scalar", 3.0, 1.2), ("RTN min-max g128", 3.25, 2.9)):
        for n in (16, 32):
            if (f"PVQ n={n}", rate) in sqnr:
                margin = round(sqnr[f"PVQ n={n}", rate] - sqnr[who, rate], 3)
                code = f"target {target}" if n == 32 else None
                row: Row = {"part": "margin", "who": f"PVQ n={n} over {who}", "code": code, "rate": rate}
                yield row | {"margin_db": margin, "within": margin >= target if code else None}


@functools.lru_cache
def _normal_points() -> np.ndarray:
    from scipy import special

    return special.ndtri((np.arange(1 << 18) + 0.5) / (1 << 18))


def _lloyd_max(bits: int) -> np.ndarray:
    """Levels of the least squared error on N(0, 1), by Lloyd's iteration."""
    points = _normal_points()
    prefix = np.concatenate([[0.0], np.cumsum(points)])
    levels = np.linspace(-2, 2, 2**bits)
    for _ in range(2000):
        edges = np.concatenate([[0], np.searchsorted(points, (levels[1:] + levels[:-1]) / 2), [len(points)]])
        levels = np.diff(prefix[edges]) / np.diff(edges)
    return levels.astype(np.float32)


def _best_uniform(bits: int) -> np.ndarray:
    """Evenly spaced levels of the least squared error on N(0, 1)."""
    from scipy import optimize

    points, steps = _normal_points(), np.arange(2**bits) - (2**bits - 1) / 2

    def error(step: float) -> float:
        code = np.clip(np.floor(points / step) + 0.5, steps[0], steps[-1])
        return float(np.mean(np.square(points - step * code)))

    return (optimize.minimize_scalar(error, bounds=(0.05, 2), method="bounded").x * steps).astype(np.float32)


def _rtn(group: int, widths: tuple[int, ...]) -> Iterator[tuple[str, Quantizer]]:
    """Round-to-nearest between minimum and maximum, and symmetric with the range of the least squared error."""

    def quantizer(w: np.ndarray, spec: ScalarSpec) -> tuple[np.ndarray, float]:
        tensor = quantize_scalar(jnp.asarray(w), spec=spec)
        return np.asarray(dequantize_scalar(tensor)), 8 * tensor.nbytes / w.size

    for bits in widths:
        minmax, clipped = ScalarSpec(bits, group), ScalarSpec(bits, group, "midrise", clip=True)
        yield f"RTN min-max g{group}", functools.partial(quantizer, spec=minmax)
        yield f"RTN MSE-clipped g{group}", functools.partial(quantizer, spec=clipped)


def _peers(quick: bool) -> Iterator[tuple[str, int, Quantizer]]:
    """The peers that are installed; the others are named on the output."""
    try:
        import qwix
    except ImportError as error:
        sys.stdout.write(f"qwix cannot run: {error} (pip install 'jaxlab[peers]')\n")
    else:

        def by_qwix(w: np.ndarray, kind: Any, bits: int, group: int) -> tuple[np.ndarray, float]:
            options: dict[str, Any] = {"channelwise_axes": (0,), "tiled_axes": {1: group}}
            tensor = qwix.quantize(jnp.asarray(w), kind, scale_dtype=jnp.bfloat16, **options)
            stored = bits + 16 * tensor.scale.size / w.size
            exact = dataclasses.replace(tensor, scale=tensor.scale.astype(jnp.float32))
            return np.asarray(qwix.dequantize(exact)), stored

        # qwix keeps 3-bit codes in 4-bit containers; the bits below are those of a packed file.
        for kind, name, bits in ((jnp.int4, "int4", 4), ("nf4", "nf4", 4), ("int3", "int3", 3)):
            for group in (32, 64, 128):
                how = functools.partial(by_qwix, kind=kind, bits=bits, group=group)
                yield f"qwix {name} g{group}", bits, how
    try:
        import torch
        from hqq.core.quantize import Quantizer as Hqq
    except ImportError as error:
        sys.stdout.write(f"HQQ cannot run: {error} (pip install 'jaxlab[peers]')\n")
        return

    def by_hqq(w: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
        options: dict[str, Any] = {"nbits": bits, "group_size": 64, "axis": 1, "device": "cpu"}
        packed, meta = Hqq.quantize(torch.from_numpy(np.array(w)), compute_dtype=torch.float16, **options)
        side = {name: meta[name].half() for name in ("scale", "zero")}  # as HQQ's layer keeps them
        stored = 8 * (packed.nbytes + sum(part.nbytes for part in side.values())) / w.size
        exact = {name: part.float() for name, part in side.items()}
        return Hqq.dequantize(packed, {**meta, **exact, "compute_dtype": torch.float32}).numpy(), stored

    for bits in (4,) if quick else (3, 4):
        yield "HQQ 0.2.8 g64", bits, functools.partial(by_hqq, bits=bits)


# Gains, searches, real weights


def _gain_grids(w: np.ndarray) -> Iterator[Row]:
    """Squared error a weight of a group's norm alone, n = 16."""
    norm = np.linalg.norm(w.reshape(len(w), -1, 16), axis=-1)
    norm /= np.sqrt(np.mean(np.square(w), axis=1, keepdims=True))
    for grid, expected in GAINS.items():
        for bits, reference in enumerate(expected, start=1):
            levels = gain_levels(16, COLUMNS, bits, grid)  # type: ignore[arg-type]
            nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, norm)]
            distortion = float(np.mean(np.square(norm - nearest)) / 16)
            row = _row("gain grid", grid, f"gain={bits}", distortion, bits / 16, expected=reference)
            yield row | {"gap_db": None}


def _searches(quick: bool) -> Iterator[Row]:
    """Distortion lost to the exact search, with ideal gains, on the same groups."""
    for n, k in SEARCHES[:2] if quick else SEARCHES:
        groups = 2000 if n < 64 else 500
        x = np.random.default_rng(n + k).standard_normal((groups, n)).astype(np.float32)
        exact = _residual(x, search_exact(x, k))
        found = {"L1 projection": l1_projection(x, k), "greedy": greedy(x, k)}
        found |= {
            f"search S={s}": np.asarray(search(x, k=k, candidates=s))
            for s in ((8,) if quick else (4, 8, 12, 16))
        }
        for who, y in found.items():
            loss = 10 * math.log10(_residual(x, y) / exact)
            yield {"part": "search", "who": who, "code": f"n={n} k={k}", "loss_db": round(loss, 4)}


def _residual(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.sum(np.square(x)) - np.sum(np.square((x * y).sum(-1)) / np.square(y).sum(-1)))


def l1_projection(x: np.ndarray, k: int) -> np.ndarray:
    """Floor of k |x| / ||x||_1, what is missing to the largest fractional parts: the nearest in Euclidean distance."""
    target = k * np.abs(x, dtype=np.float64) / np.abs(x, dtype=np.float64).sum(-1, keepdims=True)
    y = np.floor(target)
    place = np.argsort(np.argsort(y - target, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.copysign(y + (place < k - y.sum(-1, keepdims=True)), x)


def greedy(x: np.ndarray, k: int) -> np.ndarray:
    """Pulse by pulse to the best angle, from a low rounding where k > n / 2: the search of Opus (CELT)."""
    a = np.abs(x, dtype=np.float64)
    n, rows = a.shape[-1], np.arange(len(a))
    y = np.floor((k + 0.8) * a / a.sum(-1, keepdims=True)) if 2 * k > n else np.zeros_like(a)
    for _ in range(k):
        along, energy = (a * y).sum(-1, keepdims=True), (y * y).sum(-1, keepdims=True)
        best = np.argmax(np.square(along + a) / (energy + 2 * y + 1), axis=-1)
        y[rows, best] += y.sum(-1) < k
    return np.copysign(y, x)


def _real() -> Iterator[Row]:
    """All matrices of three layers of SmolLM2 at 3.25 bits a weight, row scales not counted."""
    layers = load("pkg:smollm2").params["layers"]
    middle = len(layers["q"]) // 2
    matrices = {
        f"{name} {i}": np.asarray(layers[name][i], np.float32) for name in LINEARS for i in (0, middle, -1)
    }
    turned = {
        name: np.asarray(rotate(jnp.asarray(w), random_signs(jax.random.key(2), w.shape[1])))
        for name, w in matrices.items()
    }
    k, gain_bits, _ = TABLE[3.25][16]
    spec = PVQSpec(16, k, gain_bits, candidates=CANDIDATES)

    def pyramid(w: np.ndarray) -> tuple[float, float]:
        return _error(w, spec), _pyramid_bits(spec, w)

    def scalar(quantizer: Quantizer) -> Callable[[np.ndarray], tuple[float, float]]:
        def measure(w: np.ndarray) -> tuple[float, float]:
            restored, bits = quantizer(w)
            return _relative(w, restored), bits

        return measure

    contestants = {"PVQ n=16": (f"k={k} gain={gain_bits}", pyramid)}
    contestants |= {name: ("3 bits", scalar(quantizer)) for name, quantizer in _rtn(64, (3,))}
    three = {
        name: ("3 bits", scalar(how)) for name, bits, how in _peers(False) if bits == 3 and "g64" in name
    }
    for who, (code, measure) in (contestants | three).items():
        for how, weights in (("rotated", turned), ("as they are", matrices)):
            energy = {name: float(np.sum(np.square(w, dtype=np.float64))) for name, w in weights.items()}
            measured = {name: measure(w) for name, w in weights.items()}
            distortion = sum(energy[name] * measured[name][0] for name in weights) / sum(energy.values())
            size = sum(w.size for w in weights.values())
            bits = sum(measured[name][1] * w.size for name, w in weights.items()) / size
            rate = spec.rate if who.startswith("PVQ") else bits
            row = _row("SmolLM2", f"{who}, {how}", code, distortion, rate)
            worst = max(weights, key=lambda name: measured[name][0])
            worst_db = round(-10 * math.log10(measured[worst][0]), 3)
            yield row | {"real_bits": round(bits, 5), "worst": worst, "worst_db": worst_db}


def _figure(rows: list[Row]) -> None:
    """Gap to Shannon's bound against real bits, one line a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8))
    families: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] != "packed":
            who = row["who"].rsplit(" g", 1)[0] if row["who"].startswith("qwix") else row["who"]
            families.setdefault(who, []).append(row)
    for who, points in families.items():
        points = sorted(points, key=lambda row: row["real_bits"])
        style = "o-" if who.startswith("PVQ") else "s--"
        gaps = [20 * math.log10(2) * row["real_bits"] - row["sqnr_db"] for row in points]
        axes.plot([row["real_bits"] for row in points], gaps, style, markersize=4, linewidth=1, label=who)
    axes.axhline(1.953, color="grey", linewidth=0.8)
    axes.annotate("limit of fixed-rate pyramid codes", (2.0, 1.75), color="grey", fontsize=7)
    axes.set(xlabel="stored bits a weight", ylabel="dB below Shannon's bound", ylim=(1.5, 8))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Gaussian weights, rows of 4096", fontsize=9)
    with atomic_file(harness.RESULTS / "pvq_rate_distortion.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
