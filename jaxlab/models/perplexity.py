"""Perplexity of a text by the protocol that all benchmarks here share.

The text is encoded once, without special tokens, and cut into consecutive windows that do not overlap; the
tail is dropped, and every position of a window but its first is scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.logprobs import token_logprobs
from jaxlab.models.transformer import Params
from jaxlab.parallel.hosts import to_host

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Evaluation:
    """Negative log-likelihoods in nats of every scored token, window by window."""

    nll: Float[np.ndarray, "windows time-1"]

    @property
    def mean_nll(self) -> float:
        """Mean over all scored tokens."""
        return float(self.nll.mean(dtype=np.float64))

    @property
    def ppl(self) -> float:
        """Perplexity, exp(mean_nll)."""
        return float(np.exp(self.mean_nll))

    @property
    def window_nll(self) -> Float[np.ndarray, " windows"]:
        """Mean of each window, the unit of paired comparisons between models."""
        return self.nll.mean(axis=1, dtype=np.float64)

    @property
    def scored_tokens(self) -> int:
        """How many tokens were scored."""
        return self.nll.size

    def bits_per_byte(self, byte_count: int) -> float:
        """Total bits over UTF-8 bytes; unlike perplexity comparable across tokenizers.

        Args:
            byte_count: bytes of the text that the windows cover, at least 1.

        Raises:
            InputError: a byte count below 1.
        """
        if byte_count < 1:
            raise InputError(f"byte_count is {byte_count}; it must be the UTF-8 length of the text scored")
        return float(self.nll.sum(dtype=np.float64)) / (float(np.log(2.0)) * byte_count)


def windows(
    ids: Int[np.ndarray, " tokens"], context: int, *, bos_id: int | None = None
) -> Int[np.ndarray, "windows context"]:
    """Consecutive windows of `context` tokens; the tail that fills none is dropped.

    Args:
        ids: the whole text without special tokens.
        context: tokens a window, at least 2.
        bos_id: put in front of every window, which then has context - 1 tokens of text (Gemma needs it).

    Raises:
        InputError: ids of a wrong rank or dtype, a context below 2, or a text too short for one window.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"ids has shape {ids.shape} and dtype {ids.dtype}; it must be a row of token ids")
    if context < 2:
        raise InputError(f"context is {context}; a window needs at least 2 tokens")
    span = context if bos_id is None else context - 1
    count = len(ids) // span
    if count == 0:
        raise InputError(f"ids holds {len(ids)} tokens, too few for one window of {span}: lower context")
    cut = ids[: count * span].reshape(count, span).astype(np.int32)
    return cut if bos_id is None else np.pad(cut, ((0, 0), (1, 0)), constant_values=bos_id)


def evaluate(
    params: Params,
    cfg: ModelConfig,
    windows: Int[np.ndarray, "windows time"],
    *,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score all windows.

    Args:
        params: the model.
        cfg: static.
        windows: what the function `windows` returns.
        batch_size: windows a forward pass, at least 1; the last batch is filled up to share the program.
        progress: called after every batch with the windows done, their total, and the perplexity so far.

    Raises:
        InputError: no windows, or a batch size below 1; see also `forward`.
    """
    total = len(windows)
    if total < 1 or batch_size < 1:
        raise InputError(f"{total} windows in batches of {batch_size}: both must be at least 1")
    batch_size = min(batch_size, total)
    scored: list[np.ndarray] = []
    for start in range(0, total, batch_size):
        batch = np.asarray(windows[start : start + batch_size])
        rows = len(batch)
        batch = np.pad(batch, ((0, batch_size - rows), (0, 0)), mode="edge")
        scored.append(-to_host(token_logprobs(params, cfg, jnp.asarray(batch)))[:rows])
        if progress is not None:
            done = Evaluation(np.concatenate(scored))
            progress(start + rows, total, done.ppl)
    return Evaluation(np.concatenate(scored))
