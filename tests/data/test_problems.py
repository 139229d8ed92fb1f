"""The problems against the counts of their authors' paper, and a copy that is damaged."""

import collections
import json
import zipfile

import pytest

from jaxlab.data import competition_problems, theorems_and_hints
from jaxlab.errors import ResourceError
from jaxlab.files import cache_dir


def test_there_are_as_many_of_each_kind_as_the_paper_says():
    """arXiv:2401.06961; the names hold the category too."""
    found = competition_problems()
    assert len(found) == 270 and len({problem.name for problem in found}) == 270
    kinds = collections.Counter(problem.category for problem in found)
    assert kinds == {
        "Number-Theory": 80,
        "Inequality": 50,
        "Polynomial": 50,
        "Sequence": 50,
        "Combinatorics": 40,
    }
    for problem in found:
        assert problem.name.startswith(f"P_{problem.category}_")
        assert problem.statement.strip() and problem.steps and all(problem.steps)


def test_formulae_are_those_of_the_raw_text_without_its_marks():
    competition_problems()
    with zipfile.ZipFile(next(cache_dir("wheels").glob("champ-dataset-*.whl"))) as archive:
        raw = json.loads(archive.read("champ_dataset/dataset_files/v0.json"))["problems"]
    for problem in competition_problems():
        assert problem.statement == raw[problem.name]["_raw_text"].replace("@@", "")
        steps = [step["_raw_text"].replace("@@", "") for step in raw[problem.name]["solution"]["steps"]]
        assert problem.solution.split("\n") == steps


def test_theorems_and_hints_are_all_there_and_none_is_a_statement_or_solution():
    found = theorems_and_hints()
    assert len(found) == 89 + 456 and all(text.strip() for text in found)
    whole = {text for problem in competition_problems() for text in (problem.statement, problem.solution)}
    assert not whole & set(found)


def test_a_damaged_copy_in_the_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    path = cache_dir("wheels") / "champ-dataset-1.0.0.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK")
    with pytest.raises(ResourceError, match=r"champ-dataset-1\.0\.0\.whl.*delete the file and run again"):
        competition_problems()
