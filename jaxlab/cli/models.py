"""`jaxlab models list | info MODEL | convert SRC DIR`."""

import dataclasses
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxlab import info
from jaxlab.cli.options import no_options, parse
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError
from jaxlab.progress import Progress

_USAGE = """usage: jaxlab models list | info MODEL | convert SRC DIR

  list             models that load by name
  info MODEL       configuration, tensors, dtypes, parameter count
  convert SRC DIR  write any model that loads as a Hugging Face directory

MODEL and SRC: pkg:smollm2, a Hugging Face directory, a .gguf file, hf:ORG/NAME.
"""


def models(argv: list[str]) -> int:
    """Lists, describes or converts language models."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    actions = {"list": _list, "info": _info, "convert": _convert}
    if argv[0] not in actions:
        close = difflib.get_close_matches(argv[0], actions, n=1)
        hint = f"did you mean `jaxlab models {close[0]}`?" if close else f"actions are {', '.join(actions)}"
        raise InputError(f"unknown action {argv[0]!r}: {hint}")
    info.require(("models",), purpose="jaxlab models")
    actions[argv[0]](argv[1:])
    return 0


@dataclass(frozen=True)
class InfoOptions:
    """Which model to describe."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """pkg:NAME, a Hugging Face directory, a .gguf file, or hf:ORG/NAME."""
    tensors: bool = False
    """List every tensor, not only how many there are of each dtype."""


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and where to."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """pkg:NAME, a Hugging Face directory, a .gguf file, or hf:ORG/NAME."""
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """New directory for config.json, model.safetensors and the tokenizer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights that are written."""


def _list(argv: list[str]) -> None:
    from jaxlab.models import known_models

    no_options("models list", "models that load by name", argv)
    print_table(
        [
            {
                "model": known.source,
                "what": known.summary,
                "licence": known.licence,
                "here": "yes" if known.available else f"no, fetches {known.megabytes} MB",
            }
            for known in known_models()
        ]
    )


def _info(argv: list[str]) -> None:
    from jaxlab.models import describe

    description = "Configuration, tensors, dtypes and parameter count of a model."
    options = parse(InfoOptions, argv, command="models info", description=description)
    found = describe(options.model)
    stored = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    rows: list[dict[str, object]] = [
        {"what": "model", "value": found.source},
        {"what": "file", "value": f"{found.path} ({found.file_format})"},
        {"what": "bytes", "value": f"{found.file_bytes:,}"},
        {"what": "parameters", "value": f"{found.parameters:,}"},
        {"what": "tensors", "value": f"{len(found.tensors)}: {stored}"},
    ]
    for field in dataclasses.fields(found.cfg):
        value = getattr(found.cfg, field.name)
        if isinstance(value, tuple) and len(set(value)) == 1 and len(value) > 1:
            value = f"{value[0]} (all {len(value)})"
        elif field.name == "layer_widths" and value is not None:
            names_and_sizes = zip(value[0]._fields, zip(*value, strict=True), strict=True)
            value = ", ".join(f"{name} {min(sizes)} to {max(sizes)}" for name, sizes in names_and_sizes)
        rows.append({"what": field.name, "value": str(value)})
    print_table(rows)
    if options.tensors:
        sys.stdout.write("\n")
        print_table(
            [
                {"tensor": name, "shape": str(list(shape)), "dtype": dtype}
                for name, shape, dtype in found.tensors
            ]
        )


def _convert(argv: list[str]) -> None:
    description = "Writes any model that loads as a Hugging Face directory that transformers opens."
    options = parse(ConvertOptions, argv, command="models convert", description=description)
    target = options.directory
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty: choose a new directory")
    import jax.numpy as jnp

    from jaxlab.models import load, save_hf

    progress = Progress()
    with progress.stage(f"loading {options.source}"):
        model = load(options.source)
    with progress.stage(f"writing {target}"):
        save_hf(model.params, model.cfg, model.tokenizer, target, dtype=jnp.dtype(options.dtype))
    total = sum(file.stat().st_size for file in target.iterdir())
    sys.stdout.write(f"{target}: {total:,} bytes in {options.dtype}\n")
