"""`jaxlab sweep SYSTEM`: a recipe's training over a grid of options and several seeds, as one table."""

import os
import shlex
import sys
from typing import Any

from jaxlab import info, parallel, recipes, runs
from jaxlab.cli.compilation import keep_compiled_programs
from jaxlab.cli.recipe_options import Option, recipe_options, words_without_out
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError
from jaxlab.progress import Progress
from jaxlab.sweeps.protocol import Sweepable
from jaxlab.sweeps.running import sweep

_OPTIONS = (
    Option(
        "grid",
        tuple[str, ...],
        (),
        "Options to vary, each NAME=VALUE,VALUE,...: --grid rate=0.1,0.2 p=1,2 runs all four combinations.",
    ),
    Option("seeds", int, 1, "Runs of each combination, with the seeds from --seed on."),
    Option(
        "lanes",
        int | None,
        None,
        "Runs side by side on a device; None is what suits the system and the memory.",
    ),
    Option(
        "chunk", int | None, None, "Runs from one kept result to the next; None is an eighth of a program's."
    ),
)


def sweep_system(argv: list[str]) -> int:
    """Runs a sweep, or goes on with an interrupted one."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(
            "usage: jaxlab sweep SYSTEM --grid NAME=VALUE,VALUE ... [--seeds N] [--preset P] [--out DIR] [--resume] "
            "[its own options]\n\nWrites results.csv and results.parquet (a row a run and step) and figures into DIR.\n"
            "`jaxlab sweep SYSTEM --help` explains the options of each system.\n"
        )
        return 0
    if argv[0].startswith("-"):
        raise InputError(f"the system comes before its options: jaxlab sweep SYSTEM {argv[0]} ...")
    name, words = argv[0], argv[1:]
    system = recipes.find(name)
    if system.module is not None:
        info.require((*system.extras, "sweeps"), purpose=f"jaxlab sweep {name}")
    recipe = recipes.load(name)
    common, config = recipe_options(system, recipe, words, command="sweep", more=_OPTIONS)
    if isinstance(getattr(recipe, "SWEEP", None), Sweepable) and recipe.SWEEP.lanes == 1:
        _one_device_a_core()
    parallel.initialize()
    keep_compiled_programs()
    out: Any = common.out
    if out is None and not common.resume:
        out = runs.default_out(f"sweep-{name}")
    try:
        summary = sweep(
            recipe,
            config,
            common.grid,
            seeds=common.seeds,
            out=out,
            resume=common.resume,
            lanes=common.lanes,
            chunk=common.chunk,
            progress=Progress(),
            name=name,
        )
    except KeyboardInterrupt:
        again = shlex.join(["jaxlab", "sweep", name, *words_without_out(words)])
        again += "" if "--resume" in words else " --resume"
        again += "" if out is None else f" --out {shlex.quote(str(out))}"
        sys.stderr.write(f"\ninterrupted; what was done is kept. Continue with:\n  {again}\n")
        return 130
    if parallel.joined()[0] == 0:
        print_table(summary["combinations"])
        sys.stdout.write(f"{summary['runs']} runs, {summary['rows']} rows; folder: {summary['folder']}\n")
    return 0


def _one_device_a_core() -> None:
    """Lets runs that go one after the other share the cores of a processor; accelerators stay as they are.

    Runs under `vmap` use all cores as they are.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # devices are in use already, in a process that does more than this command
        return
