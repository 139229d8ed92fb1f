"""Perplexity of real models at 3.25 real bits a weight: PVQ, GPTQ with the same rotation, round-to-nearest.

Every model is one run of the recipe `pvq` in the user's cache, so that an interrupted benchmark goes on where it was.
RTN (min-max) and GPTQ (clipped, symmetric) use the scalar code of the nearest real rate that is not below the
budget. Differences are paired over the same test windows, with their standard error.
"""

import dataclasses
import hashlib
import json
import shutil
from typing import Any

from jaxlab.files import cache_dir
from jaxlab.progress import Progress
from jaxlab.recipes import pvq

BITS = 3.25
_CALIBRATION = {"bits": BITS, "calib_windows": 128, "tuning_windows": 128}


def run(quick: bool) -> list[dict[str, Any]]:
    """Three rows a model."""
    if quick:
        return rows_of([summary_of(dataclasses.replace(pvq.PRESETS["smoke"], bits=BITS))])
    configs = [
        pvq.Config(windows=50, **_CALIBRATION),  # 51,200 test tokens
        pvq.Config(model="pkg:gemma3-270m", **_CALIBRATION),
    ]
    return rows_of([summary_of(config) for config in configs])


def summary_of(config: pvq.Config) -> dict[str, Any]:
    """The recipe's summary, from an earlier run of the same configuration and code if there is one."""
    described = json.dumps(dataclasses.asdict(config), sort_keys=True)
    folder = cache_dir("benchmarks", "pvq_models") / hashlib.sha256(described.encode()).hexdigest()[:16]
    summary = pvq.run(config, out=folder, resume=True, progress=Progress())
    shutil.rmtree(folder / "quantized", ignore_errors=True)
    return summary | {"budget": config.bits}


def rows_of(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method of each summary."""
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
