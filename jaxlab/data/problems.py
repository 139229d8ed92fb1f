"""Competition mathematics: problems with their solutions, theorems and hints, which the package `champ-dataset` ships.

Mao, Kim and Zhou, "CHAMP: a competition-level dataset for fine-grained analyses of LLMs' mathematical reasoning
capabilities", arXiv:2401.06961; MIT licence. Nothing is shipped with us, and the package is not imported.
"""

import json
import zipfile
from typing import Any, NamedTuple

from jaxlab.models.packages import cached_wheel

_VERSION = "1.0.0"
_SHA256 = "aa59df5ae28e2ec76a401a46faf3d6395920be8009a01ce451f7d5c131d82201"
_MEMBER = "champ_dataset/dataset_files/v0.json"


class Problem(NamedTuple):
    """One problem; formulae are plain characters, such as x^2 and sqrt(3)."""

    name: str
    """Of the set, such as "P_Combinatorics_6"."""
    category: str
    """Combinatorics, Inequality, Number-Theory, Polynomial or Sequence."""
    statement: str
    steps: tuple[str, ...]
    """Of the solution, a sentence or a few each."""
    answer: str

    @property
    def solution(self) -> str:
        """All steps, one a line."""
        return "\n".join(self.steps)


def competition_problems() -> list[Problem]:
    """All 270 problems in the order of the set.

    Raises:
      ResourceError: the package cannot be fetched, or has the wrong checksum.
    """
    return [
        Problem(
            name,
            problem["category"],
            problem["_text"],
            tuple(step["_text"] for step in problem["solution"]["steps"]),
            problem["_answer"],
        )
        for name, problem in _content()["problems"].items()
    ]


def theorems_and_hints() -> list[str]:
    """The 89 theorems that the problems need and the 456 hints to them: mathematics too, in other sentences.

    Raises:
      ResourceError: as `competition_problems`.
    """
    content = _content()
    return [entry["_text"] for kind in ("concepts", "hints") for entry in content[kind].values()]


def _content() -> dict[str, dict[str, dict[str, Any]]]:
    with zipfile.ZipFile(cached_wheel("champ-dataset", _VERSION, _SHA256)) as archive:
        found: dict[str, dict[str, dict[str, Any]]] = json.loads(archive.read(_MEMBER))
    return found
