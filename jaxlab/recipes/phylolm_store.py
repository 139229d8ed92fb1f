"""What models answered, kept on disk block of genes by block, so that nothing that was asked is asked again.

A block is one file, whole or absent, with a checksum of its content.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.phylogeny.genes import genome_hash


class ProbeStore:
    """The answers of all models to one genome under one set of options, in one folder."""

    def __init__(
        self, folder: Path, genes: Sequence[str], settings: Mapping[str, Any], *, block: int = 16
    ) -> None:
        """Opens the folder; nothing is written yet.

        Args:
          folder: where files are, or will be.
          genes: all of them.
          settings: whatever else the answers depend on; JSON can hold it.
          block: genes a file, at least 1.
        """
        self.folder = folder
        self.genes = tuple(genes)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.block = block

    def collect(
        self,
        model: str,
        ask: Callable[[int, Sequence[str]], list[Any]],
        progress: Callable[[int], None] = lambda genes: None,
    ) -> list[Any]:
        """The answers of a model to all genes; blocks that are not on disk are asked for, and are on disk then.

        Args:
          model: its name.
          ask: (number of the first gene, genes) -> an answer a gene, which JSON can hold.
          progress: called with the number of genes of each block.

        Raises:
          InputError: a file is damaged or of another genome or options, or `ask` gave too few answers.
        """
        answers = []
        for start in range(0, len(self.genes), self.block):
            genes = self.genes[start : start + self.block]
            found = self.read(model, start)
            if found is None:
                found = ask(start, genes)
                if len(found) != len(genes):
                    raise InputError(f"model {model!r} gave {len(found)} answers to {len(genes)} genes")
                self.write(model, start, found)
            answers += found
            progress(len(genes))
        return answers

    def path(self, model: str, start: int) -> Path:
        """File of the block that begins with this gene; names of models that differ have different ones."""
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", model)[-60:]
        return self.folder / f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}" / f"{start:06d}.json"

    def write(self, model: str, start: int, answers: Sequence[Any]) -> None:
        """Puts a block on disk."""
        content = json.dumps(self._label(model, start) | {"answers": list(answers)})
        record = {"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content}
        with atomic_file(self.path(model, start)) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def read(self, model: str, start: int) -> list[Any] | None:
        """A block, None if it has not been asked for.

        Raises:
          InputError: the file is damaged, or of another genome or other options.
        """
        path = self.path(model, start)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            content = record["content"]
            whole = hashlib.sha256(content.encode()).hexdigest() == record["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}): {_ADVICE}") from error
        if not whole:
            raise InputError(f"{path} is damaged (its content does not fit its checksum): {_ADVICE}")
        found = json.loads(content)
        label = self._label(model, start)
        for name, value in label.items():
            if found.get(name) != value:
                raise InputError(
                    f"{path} holds probes of another {name} ({found.get(name)}); it must be {value}: use another folder"
                )
        return list(found["answers"])

    def _label(self, model: str, start: int) -> dict[str, Any]:
        genes = self.genes[start : start + self.block]
        return {"model": model, "genome": genome_hash(genes), "settings": self.settings}


_ADVICE = "delete it and run again with --resume, and only its genes are asked for anew"
