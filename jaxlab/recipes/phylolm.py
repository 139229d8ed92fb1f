"""Finds the family tree of language models from what they say next after a few characters of text.

Without models of yours it makes a family whose history is known, from two real models: fine-tuned over two generations,
rounded and pruned. It then says how near the tree that it finds comes to the truth.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.phylogeny.ancestry import ancestor_test
from jaxlab.phylogeny.identities import gene_identities, plugin_self_similarity, require_related, similarity
from jaxlab.phylogeny.trees import Phylogeny, majority_consensus
from jaxlab.progress import Progress
from jaxlab.recipes import phylolm_report
from jaxlab.recipes.phylolm_analysis import Analysis, analyzed, figures_of
from jaxlab.recipes.phylolm_answers import (
    Alleles,
    asked,
    encoded,
    family_of,
    genes_of,
    given_models,
    made_models,
    write_json,
)
from jaxlab.recipes.phylolm_family import true_tree
from jaxlab.recipes.phylolm_genomes import read_completions
from jaxlab.recipes.phylolm_options import Config
from jaxlab.recipes.phylolm_report import table
from jaxlab.recipes.phylolm_scores import predict_scores, read_scores
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]

PRESETS = {
    "smoke": Config(
        roots=("pkg:smollm2",),
        generations=(1,),
        learning_rate=(1e-3,),
        steps=2,
        genes=6,
        threshold=0.02,
        replicates=100,
    ),
    "cpu": Config(),
    "gpu": Config(genes=128, threshold=1e-4, batch=16, context=256),
}


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/phylolm-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`); what models answered is not asked again.
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: supports, errors, and Robinson-Foulds distances where the truth is known.

    Raises:
      InputError: an option, a model or a file cannot be used.
      ResourceError: a package, a server, the network or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="phylolm") as folder:
        if folder.summary is not None:
            return folder.summary
        if config.genomes:
            gathered = read_completions(Path(config.genomes).expanduser())
            names, genes = gathered.models, gathered.genes
            families, leaves, truth = (
                tuple(family_of(name) for name in names),
                np.ones(len(names), bool),
                None,
            )
            alleles = encoded(config, gathered)
        else:
            sources = made_models(config, progress) if not config.models else given_models(config)
            genes = genes_of(config, sources, folder)
            names, families = tuple(one.name for one in sources), tuple(one.family for one in sources)
            leaves = np.array([one.leaf for one in sources])
            truth = None if config.models else true_tree(config.family())
            alleles = asked(config, sources, genes, folder, progress)
        if leaves.sum() < 4:
            raise InputError(f"there are {leaves.sum()} models; a tree must have at least 4")
        return _reported(config, names, families, leaves, truth, genes, alleles, folder, progress)


def _reported(
    config: Config,
    names: tuple[str, ...],
    families: tuple[str, ...],
    leaves: np.ndarray,
    truth: Phylogeny | None,
    genes: Sequence[str],
    alleles: Alleles,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, Any]:
    """Analyses, files, figures and the summary."""
    summary: dict[str, Any] = {
        "models": len(names),
        "genes": len(genes),
        "probes": int(alleles.counts.sum(-1).max()),
        "temperature": config.temperature,
    }
    analyses: dict[str, Analysis] = {}
    with progress.stage("bootstrap", config.replicates, unit="trees"):
        if alleles.exact is not None:
            analyses["exact"] = analyzed(config, alleles.exact, "exact", names, leaves)
            summary["mean_pruned"] = alleles.pruned
        analyses["sampled"] = analyzed(config, alleles.counts, "unbiased", names, leaves)
    for kind, one in analyses.items():
        summary |= figures_of(kind, one, dict(zip(names, families, strict=True)), truth)
    plugin = np.asarray(similarity(gene_identities(jnp.asarray(alleles.counts), estimator="plugin")))
    summary["plugin_bias"] = float(np.abs(plugin - analyses["sampled"].similarity).max())
    selves = np.asarray(plugin_self_similarity(jnp.asarray(alleles.counts)))
    summary["plugin_self_similarity"] = float(selves.mean())
    if summary["plugin_bias"] > 0.02:
        progress.note(
            f"warning: the paper's plug-in estimate is up to {summary['plugin_bias']:.3f} away from the unbiased one "
            f"with {summary['probes']} probes (of a model and itself it says {summary['plugin_self_similarity']:.3f}); "
            "compare it only with runs of as many"
        )
    best = analyses.get("exact", analyses["sampled"])
    require_related(jnp.asarray(best.similarity), names)
    ancestors = np.asarray(ancestor_test(best.identities, floor=config.floor).candidates)
    summary["ancestor_pairs"] = int(ancestors.sum())
    if config.scores:
        scores = read_scores(Path(config.scores).expanduser(), names, families)
        figures, everything = predict_scores(scores, best.distances, names, seed=config.seed)
        summary |= figures
        write_json(folder.artefact("predictions.json"), everything)
    found = phylolm_report.Findings(
        names,
        families,
        best.similarity,
        best.distances,
        best.errors,
        best.tree,
        majority_consensus(best.replicates),
        ancestors,
        truth,
    )
    phylolm_report.write_files(folder, found)
    phylolm_report.draw(folder, found)
    write_json(
        folder.artefact("plugin_self_similarity.json"), dict(zip(names, map(float, selves), strict=True))
    )
    write_json(folder.artefact("genes.json"), list(genes))
    return folder.finish(summary)
