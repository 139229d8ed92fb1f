"""Perplexity of SmolLM2 against real bits a weight, 2 to 4.5: PVQ, GPTQ with the same rotation, round-to-nearest.

Every point is one run of the recipe `pvq`, as in `pvq_models`; an interrupted benchmark goes on where it was.
"""

import dataclasses
from typing import Any

from benchmarks import harness
from benchmarks.pvq_models import rows_of, summary_of
from jaxlab.files import atomic_file
from jaxlab.recipes import pvq

BUDGETS = (2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 4.5)
_QUICK = (2.5, 3.5)


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all points; the figure goes to `results/pvq_curve.png`."""
    if quick:
        return rows_of([summary_of(dataclasses.replace(pvq.PRESETS["smoke"], bits=bits)) for bits in _QUICK])
    summaries = [summary_of(pvq.Config(bits=bits)) for bits in BUDGETS]
    _figure(summaries)
    return rows_of(summaries)


def _figure(summaries: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method in pvq.METHODS:
        points = sorted((s[f"bits_{method}"], s[f"ppl_{method}"] / s["ppl_base"]) for s in summaries)
        axes.plot(*zip(*points, strict=True), marker="o", label=method)
    axes.set(
        xlabel="real bits per weight (codes, scales, levels, signs, padding)",
        ylabel="perplexity over that of the unquantized model",
        yscale="log",
        title="SmolLM2-135M, State of the Union 2010-2024",
    )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(harness.RESULTS / "pvq_curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
