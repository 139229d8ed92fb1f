"""Perplexity of real models against real bits a weight: PVQ, GPTQ with the same rotation, round-to-nearest.

Every point is one run of the recipe `pvq` in the user's cache, so that an interrupted benchmark goes on where it was.
RTN (min-max) and GPTQ (clipped, symmetric) use the scalar code of the nearest real rate that is not below the
budget. Differences are paired over the same test windows, with their standard error.
"""

import dataclasses
import hashlib
import json
import shutil
from typing import Any

from benchmarks import harness
from jaxlab.files import atomic_file, cache_dir
from jaxlab.progress import Progress
from jaxlab.recipes import pvq

BUDGETS = (2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 4.5)
HEADLINE = 3.25
_GEMMA = {"model": "pkg:gemma3-270m", "calib_windows": 32}


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of all points; the figure goes to `results/pvq_models.png`."""
    if quick:
        return _rows([_summary(dataclasses.replace(pvq.PRESETS["smoke"], bits=HEADLINE))])
    headline = [
        pvq.Config(bits=HEADLINE, calib_windows=128, tuning_windows=128, windows=50),  # 51,200 test tokens
        pvq.Config(bits=HEADLINE, windows=16, **_GEMMA),
    ]
    curve = [pvq.Config(bits=bits) for bits in BUDGETS]
    summaries = [_summary(config) for config in headline + curve]
    rows = _rows(summaries)
    _figure(summaries[len(headline) :])
    return rows


def _summary(config: pvq.Config) -> dict[str, Any]:
    """The recipe's summary, from an earlier run of the same configuration and code if there is one."""
    described = json.dumps(dataclasses.asdict(config), sort_keys=True)
    folder = cache_dir("benchmarks", "pvq_models") / hashlib.sha256(described.encode()).hexdigest()[:16]
    summary = pvq.run(config, out=folder, resume=True, progress=Progress())
    shutil.rmtree(folder / "quantized", ignore_errors=True)
    return summary | {"budget": config.bits}


def _rows(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "model": summary["model"],
            "budget": summary["budget"],
            "method": method,
            "bits": summary[f"bits_{method}"],
            "test tokens": summary["test_tokens"],
            "base ppl": summary["ppl_base"],
            "ppl": summary[f"ppl_{method}"],
            "x base": summary[f"ppl_{method}"] / summary["ppl_base"],
            "KL": summary[f"kl_{method}"],
            "NLL increase": summary[f"nll_increase_{method}"],
            "standard error": summary[f"nll_increase_standard_error_{method}"],
            "NLL over PVQ": summary.get(f"nll_over_pvq_{method}"),
            "its standard error": summary.get(f"nll_over_pvq_standard_error_{method}"),
        }
        for summary in summaries
        for method in pvq.METHODS
    ]


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
    with atomic_file(harness.RESULTS / "pvq_models.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
