"""`jaxlab run SYSTEM`: options from the recipe's `Config`, a run folder, a table at the end."""

import dataclasses
import difflib
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from jaxlab import info, recipes, runs
from jaxlab.cli.compilation import keep_compiled_programs
from jaxlab.cli.options import parse
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError
from jaxlab.progress import Progress

_DEFAULT_PRESET = "cpu"


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
    common, config = _options(system, recipe, words)
    out = common.out
    if out is None:
        out = runs.latest_unfinished(name, config) if common.resume else runs.default_out(name)
    command = shlex.join(["jaxlab", "run", name, *_without_out(words)])
    keep_compiled_programs()
    try:
        summary = recipe.run(config, out=out, resume=common.resume, progress=Progress())
    except KeyboardInterrupt:
        again = f"{command}{'' if '--resume' in words else ' --resume'} --out {shlex.quote(str(out))}"
        sys.stderr.write(f"\ninterrupted; what was done is kept. Continue with:\n  {again}\n")
        return 130
    rows = recipe.table(summary) if hasattr(recipe, "table") else _two_columns(summary)
    print_table(rows)
    sys.stdout.write(f"run folder: {out}\n")
    return 0


def _options(system: recipes.System, recipe: ModuleType, words: list[str]) -> tuple[Any, Any]:
    """The options that every system shares, and the recipe's own, with the chosen preset's defaults."""
    presets = recipe.PRESETS
    preset = _chosen_preset(words, presets)
    common = dataclasses.make_dataclass(
        "Common",
        [
            ("preset", Literal[tuple(presets)], dataclasses.field(default=preset)),
            ("out", Path | None, dataclasses.field(default=None)),
            ("resume", bool, dataclasses.field(default=False)),
        ],
        frozen=True,
    )
    common.__doc__ = f"""Options of every run.

    Args:
        preset: Settings to start from; the options below override them and show its values as defaults.
        out: Folder of the run; None means runs/{system.name}-TIMESTAMP.
        resume: Go on with the run in --out; without --out, with the latest unfinished run of these options.
    """
    both = dataclasses.make_dataclass("Both", [("run", common), ("config", recipe.Config)], frozen=True)
    description = f"{system.title} (arXiv:{system.arxiv}). {(recipe.__doc__ or '').strip()}"
    parsed: Any = parse(
        both,
        words,
        command=f"run {system.name}",
        description=description,
        default=both(common(preset=preset), presets[preset]),
    )
    return parsed.run, parsed.config


def _chosen_preset(words: list[str], presets: dict[str, Any]) -> str:
    chosen = _DEFAULT_PRESET if _DEFAULT_PRESET in presets else next(iter(presets))
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == "--preset":
            chosen = following
        elif word.startswith("--preset="):
            chosen = word.removeprefix("--preset=")
    if chosen not in presets:
        close = difflib.get_close_matches(chosen, presets, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown preset {chosen!r}{hint} Known presets: {', '.join(presets)}")
    return chosen


def _without_out(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


def _two_columns(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"figure": key, "value": value} for key, value in summary.items()]
