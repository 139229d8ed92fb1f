"""Finds the family tree of language models from what they say next after a few characters of text.

Without models of yours it makes a family whose history is known, from two real models: fine-tuned over two generations,
rounded and pruned. It then says how near the tree that it finds comes to the truth.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.models import Model, load
from jaxlab.phylogeny.alleles import allele_counts, encode_alleles
from jaxlab.phylogeny.ancestry import ancestor_test
from jaxlab.phylogeny.exact import ExactOptions, exact_alleles, exact_table
from jaxlab.phylogeny.genes import require_genes
from jaxlab.phylogeny.identities import (
    Estimator,
    distance,
    gene_identities,
    jackknife_errors,
    require_related,
    similarity,
)
from jaxlab.phylogeny.probing import ProbeOptions, probe, write_genes
from jaxlab.phylogeny.resampling import Bootstrap, bootstrap
from jaxlab.phylogeny.trees import Phylogeny, majority_consensus, phylogeny, robinson_foulds, with_supports
from jaxlab.progress import Progress
from jaxlab.recipes import phylolm_report
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.recipes.phylolm_endpoint import Client, is_endpoint, parse_endpoint
from jaxlab.recipes.phylolm_family import FamilyConfig, make_member, members, true_tree
from jaxlab.recipes.phylolm_genomes import Gathered, genome, read_completions
from jaxlab.recipes.phylolm_report import table
from jaxlab.recipes.phylolm_scores import predict_scores, read_scores
from jaxlab.recipes.phylolm_store import ProbeStore
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the phylolm recipe."""

    models: tuple[str, ...] = ()
    """Models to compare, at least 4: pkg:NAME, hf:ORG/NAME, a Hugging Face directory, a .gguf file,
    http://HOST/v1#MODEL of an OpenAI-compatible server (chat+http://... for a chat model). None: a family of known
    history is made."""
    families: tuple[str, ...] = ()
    """Of each of the models, for colours and predictions; none: what comes before the first - or . of the name."""
    genomes: str = ""
    """File of completions gathered elsewhere, JSON lines with "model", "gene" and "completions", instead of models."""
    genome: str = "code"
    """Genes: code, prose, human-eval, models (they write them), or a file of genes or texts."""
    genes: int = 48
    """Number of genes."""
    mode: Literal["exact", "sampled"] = "exact"
    """Probabilities of all alleles (models on this machine alone; probes are then drawn from them), or probes."""
    probes: int = 32
    """Completions of each gene by each model."""
    temperature: float = 0.7
    """Of sampling. Only models asked at the same one can be compared."""
    tokens: int = 5
    """Of a completion."""
    length: int = 4
    """Characters of an allele."""
    strip: bool = True
    """Leave out leading spaces, then newlines, of a completion."""
    threshold: float = 1e-3
    """Exact mode: beginnings of alleles less likely than this are not followed."""
    replicates: int = 1000
    """Bootstrap trees."""
    floor: float = 1e-10
    """Similarities below this count as this."""
    scores: str = ""
    """CSV file with the columns model, perhaps family, and benchmarks whose scores to predict."""
    roots: tuple[str, ...] = ("pkg:smollm2", "pkg:gemma3-270m")
    """The made family: models from which the others descend."""
    generations: tuple[int, ...] = (2, 1)
    """The made family: rounds of fine-tuning below each root, 1 or 2."""
    steps: int = 10
    """The made family: steps of fine-tuning in the first generation, half of them in the second."""
    learning_rate: float = 1e-3
    """The made family: of fine-tuning."""
    rank: int = 8
    """The made family: of the trained increments."""
    batch: int = 4
    """The made family: windows a step."""
    context: int = 64
    """The made family: tokens of a window."""
    pruned: float = 0.1
    """The made family: share of weights that pruning takes."""
    tries: int = 6
    """Of each request to a server, before the run stops (it can be resumed)."""
    per_second: float = 0.0
    """Requests to a server a second, at most; 0 is no limit."""
    seed: int = 0
    """Seed of genes, probes, bootstrap and fine-tuning."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, genes=2, probes=2, tokens=1, length=1, replicates=1, tries=1, per_second=0)
        require_at_least(self, steps=1, rank=1, batch=1, context=4)
        require_positive(self, "temperature", "learning_rate")
        for name in ("threshold", "floor"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 <= self.pruned < 1:
            raise InputError(f"pruned is {self.pruned}; it must be in [0, 1)")
        if self.models and self.genomes:
            raise InputError("models and genomes are both given; give the one or the other")
        if 0 < len(self.models) < 4:
            raise InputError(f"models holds {len(self.models)}; a tree must have at least 4")
        if self.families and len(self.families) != len(self.models):
            raise InputError(
                f"families holds {len(self.families)}; it must hold one for each of {len(self.models)} models"
            )
        remote = [source for source in self.models if is_endpoint(source)]
        for source in remote:
            parse_endpoint(source)
        if remote and self.mode == "exact":
            raise InputError(
                f"mode is 'exact', but {remote[0]} shows no probabilities; it must be 'sampled' with servers"
            )
        if remote and self.genome == "models":
            raise InputError(f"genome is 'models', but {remote[0]} cannot write genes; choose another genome")
        self.family()

    def family(self) -> FamilyConfig:
        """The options of the made family."""
        shared = {field.name for field in dataclasses.fields(FamilyConfig)}
        return FamilyConfig(**{name: getattr(self, name) for name in shared})


PRESETS = {
    "smoke": Config(
        roots=("pkg:smollm2",), generations=(1,), steps=2, genes=6, threshold=0.02, replicates=100
    ),
    "cpu": Config(),
    "gpu": Config(genes=128, threshold=1e-4, batch=16, context=256),
}


class _Source(NamedTuple):
    """A model to ask."""

    name: str
    family: str
    opened: Callable[[], contextlib.AbstractContextManager[Any]]
    """A local model or a client of a server."""
    leaf: bool
    """Whether it stands in the known tree; always, where none is known."""


class _Alleles(NamedTuple):
    """What is known of the alleles of all models."""

    exact: np.ndarray | None
    """Probabilities [models, genes, alleles]."""
    counts: np.ndarray
    """Of probes."""
    pruned: float
    """Mean mass that exact mode left out."""


class _Analysis(NamedTuple):
    """One estimator's view."""

    similarity: np.ndarray
    distances: np.ndarray
    errors: np.ndarray
    identities: jax.Array
    boot: Bootstrap
    tree: Phylogeny
    replicates: list[Phylogeny]


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
            families, leaves, truth = tuple(_family(name) for name in names), np.ones(len(names), bool), None
            alleles = _encoded(config, gathered)
        else:
            sources = _made(config, progress) if not config.models else _given(config)
            genes = _genes(config, sources, folder)
            names, families = tuple(one.name for one in sources), tuple(one.family for one in sources)
            leaves = np.array([one.leaf for one in sources])
            truth = None if config.models else true_tree(config.family())
            alleles = _asked(config, sources, genes, folder, progress)
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
    alleles: _Alleles,
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
    analyses: dict[str, _Analysis] = {}
    with progress.stage("bootstrap", config.replicates, unit="trees"):
        if alleles.exact is not None:
            analyses["exact"] = _analysed(config, alleles.exact, "exact", names, leaves)
            summary["mean_pruned"] = alleles.pruned
        analyses["sampled"] = _analysed(config, alleles.counts, "unbiased", names, leaves)
    for kind, one in analyses.items():
        summary |= _figures_of(kind, one, dict(zip(names, families, strict=True)), truth)
    plugin = np.asarray(similarity(gene_identities(jnp.asarray(alleles.counts), estimator="plugin")))
    summary["plugin_bias"] = float(np.abs(plugin - analyses["sampled"].similarity).max())
    if summary["plugin_bias"] > 0.02:
        progress.note(
            f"warning: the paper's plug-in estimate is up to {summary['plugin_bias']:.3f} away from the unbiased one "
            f"with {summary['probes']} probes; compare it only with runs of as many"
        )
    best = analyses.get("exact", analyses["sampled"])
    require_related(jnp.asarray(best.similarity), names)
    ancestors = np.asarray(ancestor_test(best.identities, floor=config.floor).candidates)
    summary["ancestor_pairs"] = int(ancestors.sum())
    if config.scores:
        scores = read_scores(Path(config.scores).expanduser(), names, families)
        figures, everything = predict_scores(scores, best.distances, names, seed=config.seed)
        summary |= figures
        _write_json(folder.artefact("predictions.json"), everything)
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
    _write_json(folder.artefact("genes.json"), list(genes))
    return folder.finish(summary)


def _figures_of(
    kind: str, one: _Analysis, families_of: dict[str, str], truth: Phylogeny | None
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


def _analysed(
    config: Config, table: np.ndarray, estimator: Estimator, names: Sequence[str], leaves: np.ndarray
) -> _Analysis:
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
    return _Analysis(
        np.asarray(similarities),
        np.asarray(distance(similarities, floor=config.floor)),
        np.asarray(jackknife_errors(identities, floor=config.floor)),
        identities,
        boot,
        phylogeny(boot.tree, taxa, np.asarray(boot.supports)),
        [phylogeny(jax.tree.map(lambda x, b=b: x[b], replicates), taxa) for b in range(config.replicates)],
    )


def _given(config: Config) -> list[_Source]:
    """The models that the user names."""
    names = [_name(source) for source in config.models]
    twice = {name for name in names if names.count(name) > 1}
    names = [source if name in twice else name for source, name in zip(config.models, names, strict=True)]
    families = config.families or tuple(_family(name) for name in names)

    def opened(source: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        if is_endpoint(source):
            endpoint = parse_endpoint(source, tries=config.tries, per_second=config.per_second)
            return lambda: Client(endpoint)
        return lambda: contextlib.nullcontext(load(source))

    return [
        _Source(name, family, opened(source), True)
        for name, family, source in zip(names, families, config.models, strict=True)
    ]


def _made(config: Config, progress: Progress) -> list[_Source]:
    """The family of known history."""
    family = config.family()
    return [
        _Source(
            one.name,
            one.family,
            lambda one=one: contextlib.nullcontext(make_member(one, family, progress)),  # type: ignore[misc]  # default
            one.leaf,
        )
        for one in members(family)
    ]


def _name(source: str) -> str:
    """What a model is called in the tree."""
    if is_endpoint(source):
        return parse_endpoint(source).model
    return Path(source.rpartition(":")[2].rstrip("/")).name.removesuffix(".gguf")


def _family(name: str) -> str:
    last = name.rpartition("/")[2]
    return last.replace(".", "-").partition("-")[0] or name


def _genes(config: Config, sources: Sequence[_Source], folder: RunFolder) -> tuple[str, ...]:
    """The genome, from the file of an interrupted run if there is one."""
    file = folder.artefact("genes.json")
    if file.exists():
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    rng = np.random.default_rng(config.seed)
    if config.genome == "models":
        found = _written_genes(config, sources, rng)
    else:
        found = genome(config.genome, rng, genes=config.genes)
    require_genes(found)
    _write_json(file, list(found))
    return found


def _written_genes(config: Config, sources: Sequence[_Source], rng: np.random.Generator) -> tuple[str, ...]:
    """Each gene by a model drawn at random; a few more are written, since some are blank or the same."""
    authors = rng.integers(0, len(sources), 2 * config.genes)
    written: list[str] = []
    for number, source in enumerate(sources):
        share = int((authors == number).sum())
        if share:
            with source.opened() as model:
                key = jax.random.fold_in(jax.random.key(config.seed), 1000 + number)
                written += write_genes(model, key, genes=share, temperature=config.temperature)
    rng.shuffle(written)
    distinct = list(dict.fromkeys(gene for gene in written if gene.strip()))
    if len(distinct) < config.genes:
        raise InputError(
            f"genes is {config.genes}; the models wrote only {len(distinct)} that differ: ask for fewer, or choose "
            "another genome"
        )
    return tuple(distinct[: config.genes])


def _asked(
    config: Config, sources: Sequence[_Source], genes: Sequence[str], folder: RunFolder, progress: Progress
) -> _Alleles:
    """Every model's answers, each on disk before the next block of genes is asked for."""
    exact = config.mode == "exact"
    settings = {
        name: getattr(config, name)
        for name in (
            "mode",
            "temperature",
            "tokens",
            *(("threshold", "length", "strip") if exact else ("probes",)),
        )
    }
    store = ProbeStore(folder.artefact("probes"), genes, settings | {"seed": config.seed})
    answers = []
    with progress.stage("probe", len(sources) * len(genes), unit="genes") as stage:
        for number, source in enumerate(sources):
            stage.show(model=source.name)
            with contextlib.ExitStack() as stack:
                ask = _Asker(config, source, number, stack)
                answers.append(store.collect(source.name, ask, stage.advance))
    if not exact:
        return _encoded(config, Gathered(tuple(one.name for one in sources), tuple(genes), answers))
    table = exact_table([[gene["alleles"] for gene in one] for one in answers])
    rng = np.random.default_rng([config.seed, 1])
    shares = table.astype(np.float64) / table.sum(-1, keepdims=True, dtype=np.float64)
    counts = rng.multinomial(config.probes, shares).astype(np.float32)
    pruned = float(np.mean([gene["pruned"] for one in answers for gene in one]))
    return _Alleles(table, counts, pruned)


class _Asker:
    """Asks one model; it is opened when it is first needed, and not at all if everything is on disk."""

    def __init__(self, config: Config, source: _Source, number: int, stack: contextlib.ExitStack) -> None:
        self.config, self.source, self.stack = config, source, stack
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), number)
        self.model: Any = None

    def __call__(self, start: int, genes: Sequence[str]) -> list[Any]:
        if self.model is None:
            self.model = self.stack.enter_context(self.source.opened())
        config = self.config
        if isinstance(self.model, Client):
            return [
                self.model.complete(
                    gene, probes=config.probes, tokens=config.tokens, temperature=config.temperature
                )
                for gene in genes
            ]
        model: Model = self.model
        if config.mode == "exact":
            options = ExactOptions(
                config.tokens, config.temperature, config.threshold, config.length, config.strip
            )
            found = exact_alleles(model, genes, options=options)
            return [
                {"alleles": alleles, "pruned": pruned}
                for alleles, pruned in zip(found.probabilities, found.pruned, strict=True)
            ]
        return probe(
            model,
            genes,
            jax.random.fold_in(self.key, start),
            options=ProbeOptions(config.probes, config.tokens, config.temperature),
        )


def _encoded(config: Config, gathered: Gathered) -> _Alleles:
    encoded = encode_alleles(gathered.completions, gathered.models, length=config.length, strip=config.strip)
    counts = np.asarray(allele_counts(encoded.codes, alleles=encoded.largest_vocabulary))
    return _Alleles(None, counts, 0.0)


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
