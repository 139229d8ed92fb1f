"""Alleles: the first characters of a completion, and how often each follows a gene.

A gene is a prompt, a probe one completion of it by one model. Reference: Yax et al., "PhyloLM", arXiv:2404.04671,
section 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.phylogeny.checks import is_concrete, require_names


class EncodedAlleles(NamedTuple):
    """Probes of M models at G genes as numbers, and the alleles that the numbers stand for."""

    codes: Int[np.ndarray, "models genes probes"]
    """Position in the gene's vocabulary; -1 where a probe is missing."""
    vocabularies: tuple[tuple[str, ...], ...]
    """The alleles of each gene, in the order of their first appearance."""

    @property
    def largest_vocabulary(self) -> int:
        """How many alleles the richest gene has."""
        return max(len(vocabulary) for vocabulary in self.vocabularies)


def allele_of(text: str, *, length: int = 4, strip: bool = True) -> str:
    r"""The allele of a completion; "" is one too. Reference: arXiv:2404.04671, section 2.

    Leading spaces go first, then leading newlines, each once: "\n  x" keeps its two spaces. A character that the last
    token left incomplete (U+FFFD at the end) is dropped.

    Args:
      text: the completion, decoded as a whole.
      length: how many characters to keep, at least 1.
      strip: False keeps leading spaces and newlines.

    Raises:
      InputError: `length` is below 1.
    """
    if length < 1:
        raise InputError(f"length is {length}; it must be at least 1")
    text = text.rstrip("\ufffd")
    if strip:
        text = text.lstrip(" ").lstrip("\n")
    return text[:length]


def encode_alleles(
    completions: Sequence[Sequence[Sequence[str | None]]],
    names: Sequence[str],
    *,
    length: int = 4,
    strip: bool = True,
    most_empty: float = 0.5,
) -> EncodedAlleles:
    """Alleles of all models with one vocabulary a gene, exact: no two alleles share a number.

    Args:
      completions: of each model, of each gene; None where a probe is missing. Numbers of probes may differ.
      names: of the models.
      length: see `allele_of`.
      strip: see `allele_of`.
      most_empty: a model that answers with more empty alleles than this share is refused, in [0, 1].

    Raises:
      InputError: no models, no genes, unequal numbers of genes, names that do not fit, an option out of its range, or a
        model that answers with next to nothing.
    """
    if not completions or not completions[0]:
        raise InputError("completions is empty; it must hold at least one model with one gene")
    require_names(names, taxa=len(completions))
    if not 0 <= most_empty <= 1:
        raise InputError(f"most_empty is {most_empty}; it must be in [0, 1]")
    genes = len(completions[0])
    for name, model in zip(names, completions, strict=True):
        if len(model) != genes:
            raise InputError(
                f"model {name!r} has {len(model)} genes; it must have {genes}, as {names[0]!r} has"
            )
    probes = max(len(texts) for model in completions for texts in model)
    codes = np.full((len(completions), genes, probes), -1, np.int32)
    numbers: list[dict[str, int]] = [{} for _ in range(genes)]
    for m, model in enumerate(completions):
        empty = []
        for g, texts in enumerate(model):
            for n, text in enumerate(texts):
                if text is None:
                    continue
                allele = allele_of(text, length=length, strip=strip)
                codes[m, g, n] = numbers[g].setdefault(allele, len(numbers[g]))
                if not allele:
                    empty.append(text)
        valid = int((codes[m] >= 0).sum())
        if len(empty) > most_empty * valid:
            raise InputError(
                f"model {names[m]!r} has {len(empty)} empty alleles among {valid} probes, such as {empty[:3]}; at most "
                f"most_empty = {most_empty} of them may be: look at its prompts, or raise most_empty"
            )
    return EncodedAlleles(codes, tuple(tuple(vocabulary) for vocabulary in numbers))


def allele_counts(
    codes: Int[Array, "models genes probes"] | Int[np.ndarray, "models genes probes"], *, alleles: int
) -> Float[Array, "models genes alleles"]:
    """How many probes gave each allele.

    Args:
      codes: see `EncodedAlleles`; entries that are negative are left out.
      alleles: room for the richest gene, `EncodedAlleles.largest_vocabulary` or more.

    Raises:
      InputError: a code is `alleles` or above.
    """
    if is_concrete(codes) and np.size(codes) and np.max(codes) >= alleles:
        raise InputError(f"codes holds {np.max(codes)}; it must be below alleles = {alleles}")
    codes = jnp.asarray(codes)
    models, genes, _ = codes.shape
    at = jnp.where(codes < 0, alleles, codes)
    rows = (jnp.arange(models)[:, None, None], jnp.arange(genes)[:, None], at)
    return jnp.zeros((models, genes, alleles)).at[rows].add(1, mode="drop")


def frequencies(counts: Float[Array, "models genes alleles"]) -> Float[Array, "models genes alleles"]:
    """Counts divided by their sum for every model and gene; zeros where there are no probes."""
    probes = counts.sum(-1, keepdims=True)
    return counts / jnp.where(probes > 0, probes, 1)


def resampled_counts(
    key: jax.Array, counts: Float[Array, "models genes alleles"]
) -> Float[Array, "models genes alleles"]:
    """As many probes drawn anew from the observed frequencies: the noise of probing, for a second level of bootstrap.

    The plug-in estimator is biased a second time by this; see `gene_identities`.
    """
    return jax.random.multinomial(key, counts.sum(-1), frequencies(counts))
