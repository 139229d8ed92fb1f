"""SmolLM2 at 90 to 50 % of its blocks' parameters, by every method (claim: the Surgeon with full correlations leads).

Rows and columns, 10 shots of 5 % with 16 fresh windows of 512 tokens each, read off at every second shot. Every Surgeon
is tried with three dampings, and the best on the validation text counts, size by size. Perplexity on texts of later
years than the calibration text, and out of domain (`moby`). Every whole run is kept in the user's cache (delete it when
the code changes): an interrupted benchmark goes on.
"""

from typing import Any

from benchmarks.pruning_quality import TEXTS, Lab, row
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.low_rank import LowRank

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
DEFAULT_DAMPING = 0.03
"""First, so that an interrupted run has one table; the only one for methods that look at nothing that is damped."""
DAMPINGS = (DEFAULT_DAMPING, 0.1, 0.01)
VARIANTS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "l-obd": {"method": "l-obd"},
    "k-obd": {"method": "k-obd"},
    "surgeon": {},
    "surgeon, sum": {"joint": "sum"},
    "surgeon, m=1": {"max_correlate": 1},
    "surgeon + low rank": {"low_rank": LowRank(share=0.125, final_epochs=0)},
}


def run(quick: bool) -> list[dict[str, Any]]:
    """A row for each method and size."""
    lab = Lab()
    shots, count = (2, 1) if quick else (10, 16)
    sizes = (0.95, 0.9) if quick else SIZES
    variants = {"surgeon": VARIANTS["surgeon"]} if quick else VARIANTS
    tried: dict[str, dict[float, list[dict[str, Any]]]] = {name: {} for name in variants}
    for damping in (DEFAULT_DAMPING,) if quick else DAMPINGS:
        for name, options in variants.items():
            if damping != DEFAULT_DAMPING and "surgeon" not in name:
                continue
            config = SurgeonConfig(
                sparsity=1 - sizes[-1], shots=shots, damp_a=damping, damp_g=damping, **options
            )
            tried[name][damping] = lab.shots(config, count, tuple(TEXTS), every=shots // len(sizes))
    rows = []
    for name, runs in tried.items():
        for index, size in enumerate(sizes):
            best = min(runs, key=lambda damping: runs[damping][index]["valid"])
            rows.append({"size": size, "method": name, "damping": best, **row(runs[best][index])})
    return rows
