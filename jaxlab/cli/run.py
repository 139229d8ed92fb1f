"""`jaxlab run SYSTEM`: options from the recipe's `Config`, a run folder, a table at the end."""

import shlex
import sys
from typing import Any

from jaxlab import info, recipes, runs
from jaxlab.cli.compilation import keep_compiled_programs
from jaxlab.cli.recipe_options import recipe_options, words_without_out
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError
from jaxlab.progress import Progress


def run_system(argv: list[str]) -> int:
    """Runs one system's recipe, or goes on with an interrupted run."""
    if not argv or argv[0] in ("-h", "--help"):
        there = ", ".join(system.name for system in recipes.SYSTEMS.values() if system.module)
        sys.stdout.write(
            "usage: jaxlab run SYSTEM [--preset P] [--out DIR] [--resume] [--seed N] [its own options]\n\n"
            f"Systems: {there}. `jaxlab run SYSTEM --help` explains the options of each.\n"
        )
        return 0
    if argv[0].startswith("-"):
        raise InputError(f"the system comes before its options: jaxlab run SYSTEM {argv[0]} ...")
    name, words = argv[0], argv[1:]
    system = recipes.find(name)
    if system.module is not None:
        info.require(system.extras, purpose=f"jaxlab run {name}")
    recipe = recipes.load(name)
    common, config = recipe_options(system, recipe, words, command="run")
    out = common.out
    if out is None:
        out = runs.latest_unfinished(name, config) if common.resume else runs.default_out(name)
    command = shlex.join(["jaxlab", "run", name, *words_without_out(words)])
    keep_compiled_programs()
    try:
        summary = recipe.run(config, out=out, resume=common.resume, progress=Progress())
    except KeyboardInterrupt:
        again = f"{command}{'' if '--resume' in words else ' --resume'} --out {shlex.quote(str(out))}"
        sys.stderr.write(f"\ninterrupted; what was done is kept. Continue with:\n  {again}\n")
        return 130
    from jaxlab.parallel import joined

    if joined()[0] == 0:  # of several processes the first one says what all have found
        rows = recipe.table(summary) if hasattr(recipe, "table") else _two_columns(summary)
        print_table(rows)
        sys.stdout.write(f"run folder: {out}\n")
    return 0


def _two_columns(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"figure": key, "value": value} for key, value in summary.items()]
