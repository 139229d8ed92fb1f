"""Which models a run of the phylolm recipe asks, which genes, and what they answer."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.models import Model, load
from jaxlab.phylogeny.alleles import allele_counts, encode_alleles
from jaxlab.phylogeny.exact import ExactOptions, exact_alleles, exact_table
from jaxlab.phylogeny.genes import require_genes
from jaxlab.phylogeny.probing import ProbeOptions, encode_genes, probe, write_genes
from jaxlab.progress import Progress
from jaxlab.recipes.phylolm_endpoint import Client, is_endpoint, parse_endpoint
from jaxlab.recipes.phylolm_family import Member, make_member, members
from jaxlab.recipes.phylolm_genomes import Gathered, genome
from jaxlab.recipes.phylolm_options import Config
from jaxlab.recipes.phylolm_store import ProbeStore
from jaxlab.runs import RunFolder


class Source(NamedTuple):
    """A model to ask."""

    name: str
    family: str
    opened: Callable[[], contextlib.AbstractContextManager[Any]]
    """A local model or a client of a server."""
    leaf: bool
    """Whether it stands in the known tree; always, where none is known."""


class Alleles(NamedTuple):
    """What is known of the alleles of all models."""

    exact: np.ndarray | None
    """Probabilities [models, genes, alleles]."""
    counts: np.ndarray
    """Of probes."""
    pruned: float
    """Mean mass that exact mode left out."""


def given_models(config: Config) -> list[Source]:
    """The models that the user names."""
    names = [_name(source) for source in config.models]
    twice = {name for name in names if names.count(name) > 1}
    names = [source if name in twice else name for source, name in zip(config.models, names, strict=True)]
    families = config.families or tuple(family_of(name) for name in names)

    def opened(source: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        if is_endpoint(source):
            endpoint = parse_endpoint(source, tries=config.tries, per_second=config.per_second)
            return lambda: Client(endpoint)
        return lambda: contextlib.nullcontext(load(source))

    return [
        Source(name, family, opened(source), True)
        for name, family, source in zip(names, families, config.models, strict=True)
    ]


def made_models(config: Config, progress: Progress) -> list[Source]:
    """The family of known history."""
    family = config.family()

    def opened(one: Member) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        return lambda: contextlib.nullcontext(make_member(one, family, progress))

    return [Source(one.name, one.family, opened(one), one.leaf) for one in members(family)]


def _name(source: str) -> str:
    """What a model is called in the tree."""
    if is_endpoint(source):
        return parse_endpoint(source).model
    return Path(source.rpartition(":")[2].rstrip("/")).name.removesuffix(".gguf")


def family_of(name: str) -> str:
    """What comes before the first - or . of a model's name, without its owner."""
    last = name.rpartition("/")[2]
    return last.replace(".", "-").partition("-")[0] or name


def genes_of(config: Config, sources: Sequence[Source], folder: RunFolder) -> tuple[str, ...]:
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
    write_json(file, list(found))
    return found


def _written_genes(config: Config, sources: Sequence[Source], rng: np.random.Generator) -> tuple[str, ...]:
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


def asked(
    config: Config, sources: Sequence[Source], genes: Sequence[str], folder: RunFolder, progress: Progress
) -> Alleles:
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
                ask = _Asker(config, source, number, genes, stack)
                answers.append(store.collect(source.name, ask, stage.advance))
    if not exact:
        return encoded(config, Gathered(tuple(one.name for one in sources), tuple(genes), answers))
    table = exact_table([[gene["alleles"] for gene in one] for one in answers])
    rng = np.random.default_rng([config.seed, 1])
    shares = table.astype(np.float64) / table.sum(-1, keepdims=True, dtype=np.float64)
    counts = rng.multinomial(config.probes, shares).astype(np.float32)
    pruned = float(np.mean([gene["pruned"] for one in answers for gene in one]))
    return Alleles(table, counts, pruned)


class _Asker:
    """Asks one model; it is opened when it is first needed, and not at all if everything is on disk."""

    def __init__(
        self,
        config: Config,
        source: Source,
        number: int,
        genes: Sequence[str],
        stack: contextlib.ExitStack,
    ) -> None:
        self.config, self.source, self.genes, self.stack = config, source, genes, stack
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 3), number)
        self.model: Any = None
        self.width = 0
        """Of the prompts; the same for all blocks, so that they share their programs."""

    def __call__(self, start: int, genes: Sequence[str]) -> list[Any]:
        if self.model is None:
            self.model = self.stack.enter_context(self.source.opened())
            if isinstance(self.model, Model):
                self.width = encode_genes(self.model.tokenizer, self.genes).tokens.shape[1]
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
            found = exact_alleles(model, genes, options=options, width=self.width)
            return [
                {"alleles": alleles, "pruned": pruned}
                for alleles, pruned in zip(found.probabilities, found.pruned, strict=True)
            ]
        return probe(
            model,
            genes,
            jax.random.fold_in(self.key, start),
            options=ProbeOptions(config.probes, config.tokens, config.temperature),
            width=self.width,
        )


def encoded(config: Config, gathered: Gathered) -> Alleles:
    """Counts of the alleles of completions."""
    codes, vocabularies = encode_alleles(
        gathered.completions, gathered.models, length=config.length, strip=config.strip
    )
    counts = np.asarray(allele_counts(codes, alleles=max(map(len, vocabularies))))
    return Alleles(None, counts, 0.0)


def write_json(path: Path, content: Any) -> None:
    """The whole file or none."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
