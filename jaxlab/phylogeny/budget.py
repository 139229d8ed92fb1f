"""How many genes and probes a similarity matrix needs: its spread and its error, cut from one large set of probes.

Reference: arXiv:2404.04671, appendix on the choice of the numbers of genes and probes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import allele_counts
from jaxlab.phylogeny.identities import Estimator, gene_identities, similarity


class Budget(NamedTuple):
    """Root mean squares over pairs of models, for every number of genes and of probes."""

    spread: Float[np.ndarray, "genes probes"]
    """Of the matrices of disjoint sets of genes around their mean."""
    error: Float[np.ndarray, "genes probes"]
    """Of the same matrices around the one of high precision."""


def budget_analysis(
    codes: Int[np.ndarray, "models genes probes"],
    *,
    alleles: int,
    genes: Sequence[int] = (16, 32, 64, 128, 256),
    probes: Sequence[int] = (8, 16, 32, 64, 128),
    blocks: int = 8,
    estimator: Estimator = "plugin",
) -> Budget:
    """Spread and error of similarity by the numbers of genes and probes.

    The second half of the genes with all probes gives the matrix of high precision; the first half is cut into at most
    `blocks` sets of genes. The mean over these sets is reported.

    Args:
      codes: see `EncodedAlleles`; the first probes of a gene serve for the smaller numbers.
      alleles: see `allele_counts`.
      genes: numbers, each at most a quarter of all, so that there are two sets.
      probes: numbers, each at most as many as there are.
      blocks: at least 2.
      estimator: see `gene_identities`; the paper's is "plugin".

    Raises:
      InputError: a number out of its range.
    """
    models, all_genes, all_probes = np.shape(codes)
    half = all_genes // 2
    if models < 2:
        raise InputError(f"codes has {models} models; it must have at least 2")
    for name, numbers, most in (("genes", genes, half // 2), ("probes", probes, all_probes)):
        wrong = [number for number in numbers if not 1 <= number <= most]
        if wrong:
            raise InputError(
                f"{name} holds {wrong[0]}; each must be in 1..{most} for codes of shape {np.shape(codes)}"
            )
    if blocks < 2:
        raise InputError(f"blocks is {blocks}; it must be at least 2")

    def identities(part: Int[np.ndarray, "models genes probes"]) -> Float[Array, "genes models models"]:
        return gene_identities(allele_counts(part, alleles=alleles), estimator=estimator)

    precise = similarity(identities(codes[:, half:]))
    found = np.zeros((2, len(genes), len(probes)))
    for p, number_of_probes in enumerate(probes):
        per_gene = identities(codes[:, :half, :number_of_probes])
        for g, number in enumerate(genes):
            cut = min(blocks, half // number)
            sets = per_gene[: cut * number].reshape(cut, number, models, models)
            matrices = jax.vmap(similarity)(sets)
            found[0, g, p] = _root_mean_square(matrices - matrices.mean(0))
            found[1, g, p] = _root_mean_square(matrices - precise)
    return Budget(*found)


def _root_mean_square(matrices: Float[Array, "blocks models models"]) -> float:
    """Over the pairs of models, then the mean over the blocks."""
    pairs = np.triu_indices(matrices.shape[-1], 1)
    return float(jnp.sqrt((matrices[:, *pairs] ** 2).mean(1)).mean())
