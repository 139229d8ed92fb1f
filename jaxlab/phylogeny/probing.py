"""Probes of a local model: each gene is read once, and all its completions are sampled from there under one jit."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxlab.errors import InputError
from jaxlab.models.cache import Cache, init_cache
from jaxlab.models.config import ModelConfig
from jaxlab.models.generation import Sampling, checked_sampling, decode_loop
from jaxlab.models.linear import dense
from jaxlab.models.loading import Model
from jaxlab.models.transformer import Params, forward, logits
from jaxlab.phylogeny.genes import require_genes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WIDTH = 16
"""Prompts are as wide as the longest gene rounded up to a multiple of this."""


class Prompts(NamedTuple):
    """Tokens of genes, right-padded; NumPy's until they are traced."""

    tokens: Any
    """int32[genes, width]."""
    lengths: Any
    """int32[genes]."""


def encode_genes(tokenizer: "PreTrainedTokenizerFast", genes: Sequence[str], *, width: int = 0) -> Prompts:
    """Tokens of genes, with whatever the tokenizer puts in front of a text (Gemma's begin of sequence; SmolLM2: none).

    Args:
      tokenizer: of the model.
      genes: distinct.
      width: tokens that a row has, at least: blocks of genes of one width share a program. Rows are as wide as the
        longest gene where that is more.

    Raises:
      InputError: no genes, an empty one, or two that are the same.
    """
    require_genes(genes)
    rows = [tokenizer(gene)["input_ids"] for gene in genes]
    lengths = np.array([len(row) for row in rows], np.int32)
    width = -(-max(width, int(lengths.max())) // _WIDTH) * _WIDTH
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Prompts(tokens, lengths)


def read_genes(params: Params, cfg: ModelConfig, prompts: Prompts, *, room: int) -> tuple[Array, Cache]:
    """Hidden states that predict the token after each gene, and a cache with room for more tokens; under jit.

    Args:
      params: the model.
      cfg: static.
      prompts: of genes.
      room: tokens to come.
    """
    genes, width = prompts.tokens.shape
    dtype = jax.eval_shape(dense, params["embed"]).dtype
    hidden, cache = forward(
        params, cfg, prompts.tokens, cache=init_cache(cfg, genes, width + room, dtype=dtype)
    )
    assert cache is not None
    last = jnp.take_along_axis(hidden, (prompts.lengths - 1)[:, None, None], axis=1)[:, 0]
    return last, cache._replace(length=jnp.asarray(prompts.lengths, jnp.int32))


def repeat_genes(hidden: Array, cache: Cache, rows: Int[Array, " rows"]) -> tuple[Array, Cache]:
    """Hidden states and cache with a row for each entry of `rows`, the gene that it goes on from."""
    return hidden[rows], Cache(cache.keys[:, rows], cache.values[:, rows], cache.length[rows])


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """How completions are sampled; the defaults are the paper's."""

    probes: int = 32
    """Completions of each gene."""
    tokens: int = 5
    """Tokens of each, at most."""
    temperature: float = 0.7

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require_options(self, "probes", "tokens")


def require_options(options: Any, *numbers: str) -> None:
    """Raises InputError unless the named options are at least 1 and the temperature is above 0."""
    for name in numbers:
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}; it must be at least 1")
    if not options.temperature > 0:
        raise InputError(f"temperature is {options.temperature}; it must be above 0")


def probe(
    model: Model,
    genes: Sequence[str],
    key: Key[Array, ""],
    *,
    options: ProbeOptions = ProbeOptions(),
    rows: int = 256,
    width: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[str]]:
    """Sampled completions of every gene. They do not depend on `rows`, nor on what other genes come after.

    Args:
      model: with a causal language model.
      genes: distinct.
      key: PRNG key; completion n of gene g belongs to fold_in(fold_in(key, g), n).
      options: see `ProbeOptions`.
      rows: completions that are sampled at the same time, at most (at least those of one gene).
      width: of the prompts, at least; see `encode_genes`.
      progress: called with the number of genes done so far.

    Raises:
      InputError: genes that do not fit, or one that is too long for the model.
    """
    prompts = encode_genes(model.tokenizer, genes, width=width)
    require_room(prompts, model.cfg, options.tokens)
    sampling, choice = checked_sampling(options.temperature, 0, 1.0, 0.0)
    block = min(len(genes), max(1, rows // options.probes))
    found: list[list[str]] = []
    decoded: dict[tuple[int, ...], str] = {}
    while len(found) < len(genes):
        # The last block is filled with copies of the last gene, so that there is one program.
        numbers = np.minimum(np.arange(len(found), len(found) + block), len(genes) - 1)
        part = Prompts(prompts.tokens[numbers], prompts.lengths[numbers])
        tokens, lengths = _sample(
            model.params,
            model.cfg,
            part,
            numbers,
            key,
            sampling,
            choice=choice,
            probes=options.probes,
            max_new=options.tokens,
        )
        for row, sizes in zip(np.asarray(tokens), np.asarray(lengths), strict=True):
            if len(found) == len(genes):
                break
            found.append(
                [
                    _decoded(model.tokenizer, tuple(ids[:size].tolist()), decoded)
                    for ids, size in zip(row, sizes, strict=True)
                ]
            )
        progress(len(found))
    return found


def write_genes(
    model: Model,
    key: Key[Array, ""],
    *,
    genes: int,
    tokens: int = 16,
    temperature: float = 0.7,
) -> list[str]:
    """Genes that the model writes itself, from nothing but the token that begins a text; it never ends one.

    Args:
      model: with a causal language model.
      key: PRNG key.
      genes: how many, at least 1. Two may be the same.
      tokens: of each, at least 1.
      temperature: above 0.

    Raises:
      InputError: an option out of its range, or a model without a token to begin or end a text with.
    """
    options = ProbeOptions(probes=genes, tokens=tokens, temperature=temperature)
    first = [*([] if model.cfg.bos_id is None else [model.cfg.bos_id]), *model.cfg.eos_ids]
    if not first:
        raise InputError("the model has no token to begin or to end a text with; it cannot write genes")
    sampling, choice = checked_sampling(options.temperature, 0, 1.0, 0.0)
    written, lengths = _sample(
        model.params,
        model.cfg,
        Prompts(np.array([[first[0]]], np.int32), np.array([1], np.int32)),
        np.zeros(1, np.int32),
        key,
        sampling,
        choice=choice,
        probes=options.probes,
        max_new=options.tokens,
        endless=True,
    )
    return [
        _decoded(model.tokenizer, tuple(ids[:size].tolist()), {})
        for ids, size in zip(np.asarray(written)[0], np.asarray(lengths)[0], strict=True)
    ]


def require_room(prompts: Prompts, cfg: ModelConfig, tokens: int) -> None:
    """Raises InputError if a gene and what follows it are longer than the model can read."""
    if prompts.tokens.shape[1] + tokens > cfg.max_positions:
        g = int(prompts.lengths.argmax())
        raise InputError(
            f"genes[{g}] has {prompts.lengths[g]} tokens; with {tokens} more, rounded up, it must fit into the model's "
            f"{cfg.max_positions} positions"
        )


def _decoded(
    tokenizer: "PreTrainedTokenizerFast", ids: tuple[int, ...], known: dict[tuple[int, ...], str]
) -> str:
    """Text of whole sequences, never of single tokens, as some hold only a part of a character."""
    if ids not in known:
        known[ids] = str(
            tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
    return known[ids]


@functools.partial(jax.jit, static_argnames=("cfg", "choice", "probes", "max_new", "endless"))
def _sample(
    params: Params,
    cfg: ModelConfig,
    prompts: Prompts,
    numbers: Int[Array, " genes"],
    key: Key[Array, ""],
    sampling: Sampling,
    *,
    choice: str,
    probes: int,
    max_new: int,
    endless: bool = False,
) -> tuple[Int[Array, "genes probes max_new"], Int[Array, "genes probes"]]:
    genes = prompts.tokens.shape[0]
    hidden, cache = read_genes(params, cfg, prompts, room=max_new)
    hidden, cache = repeat_genes(hidden, cache, jnp.repeat(jnp.arange(genes), probes))
    of_gene = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    keys = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(probes)))(of_gene)

    def advance(cache: Cache, newest: Array) -> tuple[Array, Cache]:
        hidden, after = forward(params, cfg, newest, cache=cache)
        assert after is not None
        return hidden[:, 0], after

    def score(hidden: Array) -> Array:
        scores = logits(params, cfg, hidden)
        return scores.at[..., jnp.asarray(cfg.eos_ids, int)].set(-jnp.inf) if endless else scores

    written = decode_loop(
        hidden,
        cache,
        score,
        advance,
        keys.reshape(-1),
        sampling,
        max_new=max_new,
        choice=choice,
        padding=0,
        stop_ids=cfg.eos_ids,
        with_logprobs=False,
    )
    return written.tokens.reshape(genes, probes, max_new), written.lengths.reshape(genes, probes)
