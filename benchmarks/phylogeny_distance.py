"""The similarity matrix of 156 models with 128 genes and 32 probes, at least 100 times faster than dictionary loops.

The loop is of the reference's kind: a dictionary of allele frequencies for each model and gene, and for every pair of
models a sum over the alleles that both have. It is run on some rows of the matrix, and its time scaled to all pairs;
these rows are compared with ours. Both start from the counts of coded alleles. All in turns in one process.
"""

import math
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.phylogeny_bootstrap import random_counts
from jaxlab.phylogeny import gene_identities, similarity

_TARGET = 100.0


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of both."""
    models, rows = (24, 2) if quick else (156, 4)
    counts = random_counts(models)
    found = {"ours": np.zeros((models, models)), "loop": np.zeros((rows, models))}
    matrix = jax.jit(lambda c: similarity(gene_identities(c, estimator="plugin")))

    def ours() -> None:
        found["ours"] = np.asarray(matrix(counts))

    def loop() -> None:
        found["loop"] = dictionary_rows(counts, rows)

    timings = harness.compare({"ours": ours, "dictionary loop": loop}, 3)
    # The loop does every pair once, and each model with itself.
    pairs = models * (models + 1) / 2
    done = rows * models + models
    seconds = {
        "ours": timings["ours"].median,
        "dictionary loop": timings["dictionary loop"].median * pairs / done,
    }
    error = float(np.abs(found["ours"][:rows] - found["loop"]).max())
    return [
        {
            "who": who,
            "models": models,
            "seconds": float(f"{value:.4g}"),
            "ours_is_x_faster": round(value / seconds["ours"], 1),
            "target": _TARGET,
            "largest_difference": error,
        }
        for who, value in seconds.items()
    ]


def dictionary_rows(counts: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of the similarity matrix, by loops over dictionaries."""
    models, genes, _ = counts.shape
    tables = [
        [{a: float(c) / float(row.sum()) for a, c in enumerate(row) if c} for row in model]
        for model in counts
    ]

    def shared(x: int, y: int) -> float:
        total = 0.0
        for g in range(genes):
            other = tables[y][g]
            for allele, share in tables[x][g].items():
                if allele in other:
                    total += share * other[allele]
        return total

    own = [shared(m, m) for m in range(models)]
    return np.array([[shared(x, y) / math.sqrt(own[x] * own[y]) for y in range(models)] for x in range(rows)])
