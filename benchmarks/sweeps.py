"""`jaxlab.sweeps` beside what one would write by hand: at most 5 % slower, with its chunks kept and its table written.

QAOA of four layers on Petersen's graph, a grid of learning rates and seeds, and ALP-GMM on the hypercube.
By hand: one jitted function of all runs, called once: `lax.map` over blocks of as many runs as the sweep takes side by
side and, where these are several, `vmap` over all runs. "whole" is a whole sweep, from options to CSV, parquet and
figures, less the seconds that its compilation takes, after a first one that imports what tables and figures need and
is not counted; "calls" its compiled program alone, chunk by chunk. All on one device, in turns, results equal.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxlab.recipes import alp_gmm, qaoa
from jaxlab.sweeps import programs
from jaxlab.sweeps.grids import parse_grid
from jaxlab.sweeps.running import sweep

_CHUNKS = 8
_TARGET_PERCENT = 5.0


class _Case(NamedTuple):
    recipe: Any
    config: Any
    grid: Mapping[str, tuple[Any, ...]]
    seeds: int
    tolerance: float


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of both systems."""
    rates = {"rate": (0.01, 0.02, 0.05, 0.1)}
    ratios = {"random_task_ratio": (0.1, 0.2)}
    circuits = qaoa.Config(graph="petersen", starts=1, steps=20 if quick else 100)
    cases = [
        _Case(qaoa, circuits, rates, 8 if quick else 64, 1e-6),
        _Case(alp_gmm, alp_gmm.Config(episodes=1000 if quick else 20_000), ratios, 8 if quick else 32, 0.0),
    ]
    return [row for case in cases for row in _rows(case, quick)]


def _rows(case: _Case, quick: bool) -> list[dict[str, Any]]:
    swept = case.recipe.SWEEP
    with jax.enable_x64(swept.double(case.config)):
        (program,) = programs.plan(swept, parse_grid(case.config, case.grid), 0, case.seeds)
        options = programs.traced_defaults(swept, program)
        train = swept.train(program.config)
        chunk = len(program.seeds) // _CHUNKS
        call, lanes = programs.compile_program(train, options, mesh=None, lanes=swept.lanes, chunk=chunk)
        ours = functools.partial(_calls, call, options, program.seeds, chunk)
        by_hand = {
            name: functools.partial(compiled, {k: jnp.asarray(v) for k, v in options.items()}, program.seeds)
            for name, compiled in _by_hand(train, lanes, options, program.seeds).items()
        }
        timings = harness.compare({"calls": ours, **by_hand}, 2 if quick else 5)
        expected = jax.tree.leaves(ours())
        for other in by_hand.values():
            harness.require_equal(jax.tree.leaves(other()), expected, case.tolerance)
    whole = [_whole(case) for _ in range(2 if quick else 4)][1:]
    name = case.recipe.__name__.rpartition(".")[2]
    best = min(timings[other].median for other in by_hand)
    found = {"whole": float(np.median(whole)), **{who: timing.median for who, timing in timings.items()}}
    return [
        {
            "system": name,
            "runs": len(program.seeds),
            "lanes": lanes,
            "who": who,
            "seconds": round(seconds, 3),
            "percent_over_fastest_by_hand": round(100 * (seconds / best - 1), 2),
            **({"target_percent": _TARGET_PERCENT} if who in ("whole", "calls") else {}),
        }
        for who, seconds in found.items()
    ]


def _calls(
    call: programs.Call, options: Mapping[str, np.ndarray], seeds: np.ndarray, chunk: int
) -> dict[str, np.ndarray]:
    parts = [
        call(
            {name: own[start : start + chunk] for name, own in options.items()}, seeds[start : start + chunk]
        )
        for start in range(0, len(seeds), chunk)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _by_hand(
    train: Any, lanes: int, options: Mapping[str, np.ndarray], seeds: np.ndarray
) -> dict[str, Callable[..., Any]]:
    def one(options: Mapping[str, jax.Array], seed: jax.Array) -> Any:
        return dict(train(options, jax.random.key(seed)))

    def mapped(options: Mapping[str, jax.Array], seeds: jax.Array) -> Any:
        size = None if lanes == 1 else lanes
        return jax.lax.map(lambda row: one(*row), (options, seeds), batch_size=size)

    written: dict[str, Callable[..., Any]] = {"lax.map": mapped}
    if lanes > 1:
        written["vmap"] = jax.vmap(one)
    return {name: jax.jit(function).lower(options, seeds).compile() for name, function in written.items()}


def _whole(case: _Case) -> float:
    """Seconds of a sweep without those of its compilation."""
    compiling = 0.0
    compile_program = programs.compile_program

    def timed(*args: Any, **options: Any) -> Any:
        nonlocal compiling
        began = time.perf_counter()
        found = compile_program(*args, **options)
        compiling += time.perf_counter() - began
        return found

    import jaxlab.sweeps.running as running

    running.compile_program = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            sweep(case.recipe, case.config, case.grid, seeds=case.seeds, out=Path(folder) / "sweep")
            return time.perf_counter() - began - compiling
    finally:
        running.compile_program = compile_program
