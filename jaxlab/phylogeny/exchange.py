"""Files for other programs: trees as NEXUS, distances as PHYLIP matrices and CSV tables.

References: Maddison, Swofford and Maddison, "NEXUS: an extensible file format for systematic information", 1997;
Felsenstein, "PHYLIP", programs that read distances.
"""

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.phylogeny.checks import require_names, require_square
from jaxlab.phylogeny.newick import label, to_newick
from jaxlab.phylogeny.trees import Phylogeny


def to_nexus(trees: Mapping[str, Phylogeny]) -> str:
    """A NEXUS text with a block of the taxa and one of the trees.

    A tree whose top has two children is marked as rooted, others as unrooted.

    Args:
      trees: names to trees, at least one, all of the same taxa.

    Raises:
      InputError: no trees, or taxa that differ.
    """
    if not trees:
        raise InputError("trees is empty; it must hold at least one")
    taxa = next(iter(trees.values())).taxa
    for name, tree in trees.items():
        if set(tree.taxa) != set(taxa):
            raise InputError(
                f"trees[{name!r}] has the taxa {', '.join(tree.taxa)}; they must be {', '.join(taxa)}"
            )
    lines = ["#NEXUS", "BEGIN TAXA;", f"  DIMENSIONS NTAX={len(taxa)};", "  TAXLABELS"]
    lines += [f"    {label(name)}" for name in taxa]
    lines += ["  ;", "END;", "BEGIN TREES;"]
    for name, tree in trees.items():
        mark = "R" if len(tree.children[-1]) == 2 else "U"
        lines.append(f"  TREE {label(name)} = [&{mark}] {to_newick(tree)}")
    return "\n".join([*lines, "END;", ""])


def to_phylip(distances: Float[np.ndarray, "taxa taxa"], names: Sequence[str]) -> str:
    """A square PHYLIP matrix in the relaxed form: a name without blanks, then the numbers of its row.

    Blanks in names become underscores, as programs that read the format take a blank for the end of a name.

    Args:
      distances: symmetric and finite.
      names: of the taxa.

    Raises:
      InputError: a matrix or names that do not fit, or names that differ in nothing but blanks and underscores.
    """
    require_square("distances", distances)
    require_names(names, taxa=len(distances))
    plain = ["_".join(name.split()) for name in names]
    require_names(plain)
    rows = (
        " ".join([name, *(repr(float(value)) for value in row)])
        for name, row in zip(plain, np.asarray(distances), strict=True)
    )
    return "\n".join([str(len(plain)), *rows, ""])


def write_matrix(
    path: str | os.PathLike[str], matrix: Float[np.ndarray, "taxa taxa"], names: Sequence[str]
) -> None:
    """A CSV table with names above and beside the numbers.

    Raises:
      InputError: names that do not fit the matrix.
      ResourceError: the file cannot be written.
    """
    require_names(names, taxa=len(matrix))
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["", *names])
        for name, row in zip(names, np.asarray(matrix), strict=True):
            writer.writerow([name, *(repr(float(value)) for value in row)])
