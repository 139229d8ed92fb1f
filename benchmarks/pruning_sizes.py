"""SmolLM2 at 90 to 50 % of its blocks' parameters, by every method (claim: the Surgeon with full correlations leads).

Rows and columns, 10 shots of 5 % with 16 fresh windows of 512 tokens each, read off at every second shot. Every shot of
a Surgeon tries the dampings 0.01, 0.03 and 0.1 and goes on with what four further calibration windows like best; the
other methods look at nothing that is damped. Perplexity on texts of later years than the calibration text, and out of
domain (`moby`). Every whole run is kept (see `pruning_quality`): an interrupted benchmark goes on.
"""

from typing import Any

from benchmarks import harness
from benchmarks.pruning_quality import TEXTS, Lab, row
from jaxlab.files import atomic_file
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.low_rank import LowRank

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
_DAMPED: dict[str, Any] = {"damp_a": 0.03, "damp_g": 0.03, "damp_factors": (1 / 3, 1.0, 10 / 3)}
VARIANTS: dict[str, dict[str, Any]] = {
    "surgeon": _DAMPED,
    "surgeon + low rank": _DAMPED | {"low_rank": LowRank(share=0.125, final_epochs=0)},
    "surgeon, sum": _DAMPED | {"joint": "sum"},
    "surgeon, m=1": _DAMPED | {"max_correlate": 1},
    "k-obd": {"method": "k-obd"},
    "l-obd": {"method": "l-obd"},
    "magnitude": {"method": "magnitude"},
}


def run(quick: bool) -> list[dict[str, Any]]:
    """A row for each method and size; the figure goes to `results/pruning_sizes.png`."""
    lab = Lab()
    shots, count = (2, 1) if quick else (10, 16)
    sizes = (0.95, 0.9) if quick else SIZES
    rows = []
    for name, options in {"surgeon": _DAMPED}.items() if quick else VARIANTS.items():
        config = SurgeonConfig(sparsity=1 - sizes[-1], shots=shots, **options)
        found = lab.shots(config, count, tuple(TEXTS), every=shots // len(sizes))
        rows += [{"size": size, "method": name, **row(one)} for size, one in zip(sizes, found, strict=True)]
    if not quick:
        _figure(rows)
    return rows


def _figure(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for axis, text in zip(axes, ("test", "moby"), strict=True):
        for method in VARIANTS:
            points = [(row["size"], row[text]) for row in rows if row["method"] == method]
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
        axis.set(xlabel="share of the blocks' parameters left", yscale="log", title=f"SmolLM2-135M, {text}")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("perplexity")
    axes[0].set_ylim(top=1e4)
    axes[0].legend()
    with atomic_file(harness.RESULTS / "pruning_sizes.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
