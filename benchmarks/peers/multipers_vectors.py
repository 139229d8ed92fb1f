"""Sliced Wasserstein matrices and convolutions of signed measures by multipers; the latter by KeOps, which compiles."""

import sys
import time

import numpy as np


def main(given: str, written: str) -> None:
    """Reads `task` and its arrays; writes `values`, `seconds` and `first`, the seconds of the call before them.

    The measures are `points` and `weights` of all of them, `counts` atoms each.
    """
    inputs = dict(np.load(given))
    ends = np.cumsum(inputs["counts"])[:-1]
    measures = list(
        zip(np.split(inputs["points"], ends), np.split(inputs["weights"].astype(np.int64), ends), strict=True)
    )
    tasks = {"sliced-wasserstein": sliced_wasserstein, "convolution": convolution}
    np.savez(written, **timed(tasks[str(inputs["task"])](measures, inputs), int(inputs["repetitions"])))


def sliced_wasserstein(measures, inputs):
    """Distances of all pairs, each pair once, on one thread: more threads wait for one another in Python."""
    from multipers.ml.sliced_wasserstein import pairwise_signed_measure_distances

    count = int(inputs["directions"])
    return lambda: pairwise_signed_measure_distances(
        measures, metric="sliced_wasserstein", num_directions=count, scales=None, n_jobs=1
    )


def convolution(measures, inputs):
    """Images on the grid (lines0, lines1)."""
    from multipers.filtrations.density import convolution_signed_measures

    grid = [inputs["lines0"], inputs["lines1"]]
    return lambda: convolution_signed_measures(
        [[own] for own in measures], grid, float(inputs["bandwidth"]), flatten=False, n_jobs=1
    )


def timed(function, repetitions):
    """The values, the seconds of the first call, and those of the others."""
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        values = function()
        seconds.append(time.perf_counter() - start)
    return {"values": values, "first": np.array(seconds[0]), "seconds": np.array(seconds[1:])}


if __name__ == "__main__":
    main(*sys.argv[1:])
