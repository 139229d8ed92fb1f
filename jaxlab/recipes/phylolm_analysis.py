"""What the phylolm recipe makes of alleles: distances, a tree with supports, and how near it is to the truth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.phylogeny.identities import Estimator, distance, gene_identities, jackknife_errors, similarity
from jaxlab.phylogeny.resampling import Bootstrap, bootstrap
from jaxlab.phylogeny.trees import Phylogeny, phylogeny, robinson_foulds, with_supports
from jaxlab.recipes.phylolm_options import Config


class Analysis(NamedTuple):
    """One estimator's view."""

    similarity: np.ndarray
    distances: np.ndarray
    errors: np.ndarray
    identities: jax.Array
    boot: Bootstrap
    tree: Phylogeny
    replicates: list[Phylogeny]


def figures_of(
    kind: str, one: Analysis, families_of: dict[str, str], truth: Phylogeny | None
) -> dict[str, Any]:
    """Figures of one analysis for the summary."""
    upper = np.triu_indices(len(one.errors), 1)
    figures = {
        f"mean_support_{kind}": float(np.mean(np.asarray(one.boot.supports))),
        f"mean_error_{kind}": float(one.errors[upper].mean()),
    }
    if truth is None:
        return figures
    supported = with_supports(truth, one.replicates)
    supports = supported.supports[~np.isnan(supported.supports)]
    figures |= {
        f"rf_{kind}": int(robinson_foulds(one.tree, truth)),
        f"lowest_true_support_{kind}": float(supports.min()),
        f"mean_true_support_{kind}": float(supports.mean()),
    }
    of_family: dict[str, set[str]] = {}
    for name, family in families_of.items():
        of_family.setdefault(family, set()).add(name)
    taxa = set(truth.taxa)
    clades = [below & taxa for below in of_family.values()]
    between = [
        float(support)
        for below, support in zip(_taxa_below(truth), supported.supports, strict=True)
        if not np.isnan(support) and (below in clades or taxa - below in clades)
    ]
    figures[f"roots_support_{kind}"] = min(between, default=1.0)
    return figures


def _taxa_below(tree: Phylogeny) -> list[set[str]]:
    """Names of the taxa below every node."""
    below = [{name} for name in tree.taxa] + [set[str]() for _ in tree.names[len(tree.taxa) :]]
    for node, parent in enumerate(tree.parents[:-1]):
        below[parent] |= below[node]
    return below


def analyzed(
    config: Config, table: np.ndarray, estimator: Estimator, names: Sequence[str], leaves: np.ndarray
) -> Analysis:
    """Similarities of all models, and the tree of those that are leaves.

    Args:
      config: the recipe's options.
      table: of alleles [models, genes, alleles].
      estimator: see `gene_identities`.
      names: of the models.
      leaves: which of them stand in the tree.
    """
    identities = gene_identities(jnp.asarray(table), estimator=estimator)
    similarities = similarity(identities)
    own = np.flatnonzero(leaves)
    boot = bootstrap(
        jax.random.fold_in(jax.random.key(config.seed), 2),
        identities[:, own][:, :, own],
        replicates=config.replicates,
        floor=config.floor,
    )
    taxa = [names[int(m)] for m in own]
    replicates = jax.tree.map(np.asarray, boot.replicates)
    return Analysis(
        np.asarray(similarities),
        np.asarray(distance(similarities, floor=config.floor)),
        np.asarray(jackknife_errors(identities, floor=config.floor)),
        identities,
        boot,
        phylogeny(boot.tree, taxa, np.asarray(boot.supports)),
        [phylogeny(jax.tree.map(lambda x, b=b: x[b], replicates), taxa) for b in range(config.replicates)],
    )
