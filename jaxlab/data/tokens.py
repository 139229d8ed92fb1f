"""Token streams of whole texts, and windows cut from them."""

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from jaxlab.data.corpora import text
from jaxlab.errors import InputError
from jaxlab.files import atomic_file, cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_ids(name: str | os.PathLike[str], tokenizer: "PreTrainedTokenizerFast") -> Int32[np.ndarray, " n"]:
    """Tokens of a text, encoded as a whole and without special tokens.

    Args:
      name: as for `text`.
      tokenizer: of the model.

    Returns:
      int32[n]. Kept in `cache_dir("tokens")`, under a key of text and tokenizer.

    Raises:
      InputError, ResourceError: as `text`.
    """
    content = text(name)
    backend = tokenizer.backend_tokenizer
    key = hashlib.sha256(content.encode("utf-8"))
    key.update(b"\0" + backend.to_str().encode("utf-8"))
    path = cache_dir("tokens") / f"{key.hexdigest()}.npy"
    if path.exists():
        return np.load(path)
    ids = np.array(backend.encode(content, add_special_tokens=False).ids, np.int32)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, ids)
    return ids


def calibration_windows(
    ids: Int32[np.ndarray, " n"], *, context: int, count: int, seed: int, bos_id: int | None = None
) -> Int32[np.ndarray, "count context"]:
    """Windows at offsets drawn uniformly, which may overlap.

    Args:
      ids: int32[n], the tokens of a text.
      context: tokens a window, >= 1 (2 with `bos_id`).
      count: number of windows, >= 1.
      seed: of the offsets.
      bos_id: put in front of every window, as one of its `context` tokens; for models that need it (Gemma).

    Returns:
      int32[count, context].

    Raises:
      InputError: `context` or `count` out of range, or the text has fewer tokens than one window.
    """
    lead = 0 if bos_id is None else 1
    if context < 1 + lead:
        raise InputError(f"context is {context}, expected at least {1 + lead}")
    if count < 1:
        raise InputError(f"count is {count}, expected at least 1")
    length = context - lead
    if ids.size < length:
        raise InputError(
            f"the text has {ids.size} tokens, fewer than one window of {length}; use a shorter context"
        )
    starts = np.random.default_rng(seed).integers(0, ids.size - length, size=count, endpoint=True)
    windows = ids[starts[:, None] + np.arange(length)].astype(np.int32)
    return windows if bos_id is None else np.insert(windows, 0, bos_id, axis=1)


def byte_count(ids: Int32[np.ndarray, "..."], tokenizer: "PreTrainedTokenizerFast") -> int:
    """UTF-8 bytes of the text that `ids` stand for, special tokens not counted: what bits per byte divide by."""
    decoded = tokenizer.backend_tokenizer.decode(ids.reshape(-1).tolist(), skip_special_tokens=True)
    return len(decoded.encode("utf-8"))
