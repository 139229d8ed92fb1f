"""Options of a recipe's commands: those that all recipes share, and those of its `Config`."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from jaxlab import recipes
from jaxlab.cli.options import parse
from jaxlab.errors import InputError

_DEFAULT_PRESET = "cpu"


class Option(NamedTuple):
    """An option of a command itself, beside --preset, --out and --resume."""

    name: str
    kind: Any
    default: Any
    text: str


def recipe_options(
    system: recipes.System, recipe: ModuleType, words: list[str], *, command: str, more: Sequence[Option] = ()
) -> tuple[Any, Any]:
    """The options of the command, and the recipe's own, with the chosen preset's defaults.

    Args:
      system: of the recipe.
      recipe: its module.
      words: after the system's name.
      command: "run" or "sweep".
      more: options that the command has beside those of every command.
    """
    presets = recipe.PRESETS
    preset = _chosen_preset(words, presets)
    folder = {"run": "", "sweep": "sweep-"}[command] + system.name
    options = [
        Option(
            "preset",
            Literal[tuple(presets)],
            preset,
            "Settings to start from; the options below override them and show its values as defaults.",
        ),
        *more,
        Option("out", Path | None, None, f"Folder of the {command}; None means runs/{folder}-TIMESTAMP."),
        Option(
            "resume",
            bool,
            False,
            f"Go on with the {command} in --out; without --out, with the latest unfinished one of these options.",
        ),
    ]
    common = dataclasses.make_dataclass(
        "Common",
        [(one.name, one.kind, dataclasses.field(default=one.default)) for one in options],
        frozen=True,
    )
    explained = "\n".join(f"        {one.name}: {one.text}" for one in options)
    common.__doc__ = f"Options of every {command}.\n\n    Args:\n{explained}\n"
    both = dataclasses.make_dataclass("Both", [("run", common), ("config", recipe.Config)], frozen=True)
    description = f"{system.title} (arXiv:{system.arxiv}). {(recipe.__doc__ or '').strip()}"
    parsed: Any = parse(
        both,
        words,
        command=f"{command} {system.name}",
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


def words_without_out(words: list[str]) -> list[str]:
    """The words of a command but --out and its value, for a command that goes on with the run."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out="):
            kept.append(word)
    return kept
