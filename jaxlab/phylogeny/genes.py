"""Genes: short prompts that are the beginnings of real texts, or that models wrote themselves.

Reference: arXiv:2404.04671, section 2.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxlab.errors import InputError

SHORTEST, LONGEST = 20, 99
"""Characters of a gene in the paper."""


def cut_genes(
    texts: Sequence[str],
    rng: np.random.Generator,
    *,
    genes: int,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
) -> tuple[str, ...]:
    """Beginnings of texts drawn without replacement, cut at a random character, often inside a word.

    Texts too short for the longest gene are left out, and so is one whose gene has been cut already.

    Args:
      texts: code or prose, with nothing before their beginning.
      rng: for the choice of texts and lengths.
      genes: how many, at least 1.
      shortest: characters, at least 1.
      longest: characters; lengths are uniform from shortest to this.

    Raises:
      InputError: a number out of its range, or too few texts.
    """
    if genes < 1:
        raise InputError(f"genes is {genes}; it must be at least 1")
    if not 1 <= shortest <= longest:
        raise InputError(
            f"shortest is {shortest} and longest {longest}; they must be in 1 <= shortest <= longest"
        )
    found: dict[str, None] = {}
    usable = [text for text in texts if len(text) >= longest and text[:shortest].strip()]
    for at in rng.permutation(len(usable)):
        if len(found) == genes:
            break
        found.setdefault(usable[at][: int(rng.integers(shortest, longest + 1))])
    if len(found) < genes:
        raise InputError(
            f"genes is {genes}; it must be at most {len(found)}, as many as differ among {len(usable)} texts of at "
            f"least {longest} characters"
        )
    return tuple(found)


def passages(text: str, *, characters: int = 400) -> list[str]:
    """A long text cut into pieces that begin where a paragraph does, each of at least so many characters.

    Args:
      text: paragraphs with blank lines between them.
      characters: at least 1.
    """
    pieces, piece = [], ""
    for paragraph in text.split("\n\n"):
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph.strip()
        if len(piece) >= characters:
            pieces.append(piece)
            piece = ""
    return pieces


def require_genes(genes: Sequence[str]) -> None:
    """Raises InputError unless there are genes, all of them different and none empty."""
    if not genes:
        raise InputError("genes is empty; it must hold at least one")
    if "" in genes:
        raise InputError(f"genes[{list(genes).index('')}] is empty; a gene must have at least one character")
    seen: dict[str, int] = {}
    for i, gene in enumerate(genes):
        if gene in seen:
            raise InputError(
                f"genes[{i}] is the same as genes[{seen[gene]}] ({gene[:30]!r}); genes must be distinct"
            )
        seen[gene] = i


def genome_hash(genes: Sequence[str]) -> str:
    """Sixteen hexadecimal digits by which two lists of genes are told apart."""
    digest = hashlib.sha256()
    for gene in genes:
        encoded = gene.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()[:16]
