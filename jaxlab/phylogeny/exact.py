"""Probabilities of all alleles of a local model, without sampling: as if there were infinitely many probes.

After a gene the model says how likely every next token is. A token that makes an allele complete adds to it; the others
begin paths that are followed token by token, as long as they are likely enough to matter.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.cache import Cache
from jaxlab.models.config import ModelConfig
from jaxlab.models.loading import Model
from jaxlab.models.transformer import Params, forward, logits
from jaxlab.phylogeny.probing import (
    Prompts,
    encode_genes,
    read_genes,
    repeat_genes,
    require_options,
    require_room,
)
from jaxlab.phylogeny.token_texts import TokenTexts, token_pieces, token_texts

_ROWS = (16, 64)
"""Paths that are followed at the same time: few, or many."""
_NEGLIGIBLE = 1e-7
"""Alleles less likely than this at the end of one path count as pruned."""


@dataclasses.dataclass(frozen=True)
class ExactOptions:
    """What counts as a completion, and which paths are followed."""

    tokens: int = 5
    """A completion has so many, at most: an allele that they leave shorter is one too."""
    temperature: float = 0.7
    threshold: float = 1e-4
    """Paths that are less likely than this are pruned, in (0, 1)."""
    length: int = 4
    """Characters of an allele."""
    strip: bool = True
    """See `allele_of`."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require_options(self, "tokens", "length")
        if not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}; it must be in (0, 1)")


class ExactAlleles(NamedTuple):
    """Of every gene: the probability of each allele, summing to 1, and what had been pruned before that."""

    probabilities: list[dict[str, float]]
    pruned: list[float]


class _Path(NamedTuple):
    gene: int
    tokens: tuple[int, ...]
    chance: float


def exact_alleles(
    model: Model,
    genes: Sequence[str],
    *,
    options: ExactOptions = ExactOptions(),
    block: int = 16,
    width: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> ExactAlleles:
    """Probability of every allele after every gene, as `probe` would find it with infinitely many probes.

    Args:
      model: with a causal language model.
      genes: distinct.
      options: see `ExactOptions`.
      block: genes that are looked at together, at least 1; changes nothing but memory.
      width: of the prompts, at least; see `encode_genes`.
      progress: called with the number of genes done so far.

    Raises:
      InputError: `block` is below 1, genes that do not fit, or a kind of tokenizer that is not known.
    """
    if block < 1:
        raise InputError(f"block is {block}; it must be at least 1")
    prompts = encode_genes(model.tokenizer, genes, width=width)
    require_room(prompts, model.cfg, options.tokens)
    pieces = token_pieces(model.tokenizer, vocabulary=model.cfg.vocab_size)
    texts = token_texts(pieces, tuple(model.cfg.eos_ids), length=options.length, strip=options.strip)
    found = ExactAlleles([], [])
    for start in range(0, len(genes), block):
        numbers = np.minimum(np.arange(start, start + block), len(genes) - 1)
        part = Prompts(prompts.tokens[numbers], prompts.lengths[numbers])
        masses = _block(model, part, texts, options, min(block, len(genes) - start))
        for mass in masses:
            total = sum(mass.values())
            found.probabilities.append({allele: chance / total for allele, chance in mass.items()})
            found.pruned.append(1 - total)
        progress(len(found.pruned))
    return found


def _block(
    model: Model, prompts: Prompts, texts: TokenTexts, options: ExactOptions, genes: int
) -> list[dict[str, float]]:
    """What remains of the probability of each allele once paths have been pruned."""
    hidden, cache = _read(model.params, model.cfg, prompts, room=options.tokens)
    masses: list[dict[str, float]] = [{} for _ in range(genes)]
    paths = [_Path(gene, (), 1.0) for gene in range(genes)]
    for depth in range(options.tokens):
        last = depth == options.tokens - 1
        following = []
        for at in range(0, len(paths), _ROWS[-1]):
            some = paths[at : at + _ROWS[-1]]
            chances = _next_chances(model, hidden, cache, some, depth, options.temperature)
            for path, row in zip(some, chances, strict=False):
                following += _follow(path, row, texts, masses[path.gene], options.threshold, last)
        paths = following
    return masses


def _follow(
    path: _Path,
    chances: Float[np.ndarray, " vocabulary"],
    texts: TokenTexts,
    mass: dict[str, float],
    threshold: float,
    last: bool,
) -> list[_Path]:
    """Adds the alleles that end here to the mass, and returns the paths that go on."""
    begun, continuation = texts.after(b"".join(texts.pieces[token] for token in path.tokens))
    chances = chances.astype(float) * path.chance
    ends = np.ones_like(continuation.complete) if last else continuation.complete
    sums = np.bincount(
        continuation.text_of, weights=np.where(ends, chances, 0), minlength=len(continuation.texts)
    )
    for i in np.flatnonzero(sums > _NEGLIGIBLE):
        allele = begun + continuation.texts[i]
        mass[allele] = mass.get(allele, 0.0) + float(sums[i])
    onward = np.flatnonzero(~ends & (chances >= threshold))
    return [_Path(path.gene, (*path.tokens, int(token)), float(chances[token])) for token in onward]


def _next_chances(
    model: Model, hidden: Array, cache: Cache, paths: list[_Path], depth: int, temperature: float
) -> Float[np.ndarray, "paths vocabulary"]:
    """Probabilities of the next token after every path; the last rows are of no path."""
    size = next(rows for rows in _ROWS if len(paths) <= rows)
    rows = np.zeros(size, np.int32)
    rows[: len(paths)] = [path.gene for path in paths]
    tokens = np.zeros((size, depth), np.int32)
    for i, path in enumerate(paths):
        tokens[i] = path.tokens
    return np.asarray(_score(model.params, model.cfg, hidden, cache, rows, tokens, temperature))


@functools.partial(jax.jit, static_argnames=("cfg", "room"))
def _read(params: Params, cfg: ModelConfig, prompts: Prompts, *, room: int) -> tuple[Array, Cache]:
    return read_genes(params, cfg, prompts, room=room)


@functools.partial(jax.jit, static_argnames="cfg")
def _score(
    params: Params,
    cfg: ModelConfig,
    hidden: Array,
    cache: Cache,
    rows: Int[Array, " rows"],
    tokens: Int[Array, "rows depth"],
    temperature: float,
) -> Float[Array, "rows vocabulary"]:
    """The few tokens of a path are read again after the gene, so that no cache of paths has to be kept."""
    last, caches = repeat_genes(hidden, cache, rows)
    if tokens.shape[1]:
        last = forward(params, cfg, tokens, cache=caches).hidden[:, -1]
    return jax.nn.softmax(logits(params, cfg, last).astype(jnp.float32) / temperature)


def exact_table(
    models: Sequence[Sequence[dict[str, float]]],
) -> Float[np.ndarray, "models genes alleles"]:
    """Probabilities of several models as one array, for `gene_identities(..., estimator="exact")`.

    Args:
      models: `ExactAlleles.probabilities` of each, of the same genes.

    Raises:
      InputError: no models, or numbers of genes that differ.
    """
    if not models:
        raise InputError("models is empty; it must hold at least one")
    genes = len(models[0])
    for m, one in enumerate(models):
        if len(one) != genes:
            raise InputError(f"models[{m}] has {len(one)} genes; it must have {genes}, as models[0] has")
    places: list[dict[str, int]] = [{} for _ in range(genes)]
    for one in models:
        for place, alleles in zip(places, one, strict=True):
            for allele in alleles:
                place.setdefault(allele, len(place))
    table = np.zeros((len(models), genes, max(len(place) for place in places)), np.float32)
    for m, one in enumerate(models):
        for g, alleles in enumerate(one):
            for allele, chance in alleles.items():
                table[m, g, places[g][allele]] = chance
    return table
