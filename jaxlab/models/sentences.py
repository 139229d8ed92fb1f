"""Sentence embeddings: the mean of an encoder's hidden states over a text's tokens, at length one.

The cosine of two texts is then the product of their embeddings. Reference: Sentence-BERT, arXiv:1908.10084, section 3.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.transformer import Params, forward
from jaxlab.models.validation import check_params, check_tokens, concrete

if TYPE_CHECKING:
    from jaxlab.models.loading import Model

_SMALLEST = 16  # tokens a row; longer ones are filled up to powers of two, so that few programs are compiled


def sentence_embeddings(
    params: Params, cfg: ModelConfig, tokens: Int[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch hidden"]:
    """Embeddings of tokenized texts, each of Euclidean length 1.

    Args:
        params: of an encoder, as `load("pkg:minilm")` gives them; the states of a causal model are averaged the same.
        cfg: static.
        tokens: int32, with the special tokens that the model expects.
        mask: which tokens are the text's and not padding; at least one a row.

    Raises:
        InputError: see `forward`; a mask of another shape, or (unless traced) without any token in a row.
    """
    check_params(params, cfg)
    check_tokens(tokens, cfg, mask=mask)
    marked = concrete(mask)
    if marked is not None and not marked.any(axis=1).all():
        raise InputError("mask is False for a whole row; each row needs at least one token")
    return _sentence_embeddings(params, cfg, jnp.asarray(tokens), jnp.asarray(mask))


def embed_sentences(
    model: "Model", texts: Sequence[str], *, context: int = 256, batch_size: int = 32
) -> Float[np.ndarray, "texts hidden"]:
    """Embeddings of texts, in their order; texts of like length are embedded together.

    Args:
        model: an encoder with its tokenizer.
        texts: any number of texts.
        context: tokens of a text that are read, special ones included, the rest is cut off; 2 to cfg.max_positions.
        batch_size: texts a forward pass, at least 1.

    Raises:
        InputError: no texts or an option out of range.
    """
    params, cfg, tokenizer = model
    if isinstance(texts, str) or len(texts) < 1:
        raise InputError(f"texts is {texts!r}; it must be a list of at least one text")
    if not 2 <= context <= cfg.max_positions:
        raise InputError(f"context is {context}; it must be 2 to {cfg.max_positions}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    ids = tokenizer(list(texts), truncation=True, max_length=context)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    found = np.zeros((len(ids), cfg.hidden_size), np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(1, *(len(ids[row]) for row in rows))
        width = min(max(_SMALLEST, 1 << (longest - 1).bit_length()), cfg.max_positions)
        tokens = np.full((min(batch_size, len(ids)), width), cfg.pad_id or 0, np.int32)
        mask = np.zeros(tokens.shape, bool)
        mask[:, 0] = True  # also in the rows that fill up the last batch
        for slot, row in enumerate(rows):
            tokens[slot, : len(ids[row])], mask[slot, : len(ids[row])] = ids[row], True
        found[rows] = np.asarray(sentence_embeddings(params, cfg, jnp.asarray(tokens), jnp.asarray(mask)))[
            : len(rows)
        ]
    return found


@partial(jax.jit, static_argnames="cfg")
def _sentence_embeddings(params: Params, cfg: ModelConfig, tokens: Array, mask: Array) -> Array:
    hidden = forward(params, cfg, tokens, segment_ids=mask.astype(jnp.int32)).hidden.astype(jnp.float32)
    # The mean's denominator would cancel in the normalisation.
    total = jnp.sum(hidden * mask[..., None], axis=1)
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)
