"""Pyramid codes on this machine: search at 6 M weights/s and unrank at 20 M weights/s on two idle CPU cores.

Search (8 candidates), rank and unrank of Gaussian groups, at two sizes of code. `best` is the fastest of the
repetitions and `median` their median; `load` is the machine's run queue over the last minute, read before the turns
begin: above about 1 somebody else was at work, and the figures are too low.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from jaxlab.quantization import rank, rank_tables, search, unrank

SIZES = ((16, 28), (8, 6))
TARGETS = {"search": 6.0, "unrank": 20.0}


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a function and size, millions of weights a second."""
    weights = 1 << (19 if quick else 21)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    work = {}
    for n, k in SIZES:
        x = jax.random.normal(jax.random.key(n), (weights // n, n))
        tables = jnp.asarray(rank_tables(n, k))
        find = jax.jit(functools.partial(search, k=k))
        number, restore = jax.jit(rank), jax.jit(unrank)
        y = find(x)
        index = number(y, tables)
        if not bool(jnp.all(restore(index, tables) == y)):
            raise AssertionError(f"unrank is not the inverse of rank at n={n}, k={k}")
        # Fresh wrappers, so that the first timed call includes compilation.
        work["search", n, k] = functools.partial(jax.jit(lambda x, k=k: search(x, k=k)), x)
        work["rank", n, k] = functools.partial(jax.jit(lambda y, tables: rank(y, tables)), y, tables)
        work["unrank", n, k] = functools.partial(jax.jit(lambda i, tables: unrank(i, tables)), index, tables)
    rows = []
    for (name, n, k), function in work.items():
        timing = harness.compare({name: function}, 3 if quick else 7)[name]
        best = weights / min(timing.seconds) / 1e6
        row = {"what": name, "n": n, "k": k, "best_Mweights_per_s": round(best, 2)}
        row |= {"median_Mweights_per_s": round(weights / timing.median / 1e6, 2), "target": TARGETS.get(name)}
        row["met"] = best >= TARGETS[name] if name in TARGETS and jax.default_backend() == "cpu" else None
        row |= {"compile_s": round(timing.compilation, 2), "repetitions": len(timing.seconds)}
        rows.append(row | {"weights": weights, "cores": os.cpu_count(), "load": load and round(load, 2)})
    return rows
