"""Curvature of the language-modelling loss: Kronecker factors of the Fisher information of every matrix.

For a matrix with inputs a and gradients g at its outputs the Fisher information is taken as G (x) A, with A = E[a a^T],
G = E[g g^T] over the tokens. Matrices that read the same input share A. One forward and one backward pass give
both, and no weight gradient is computed. Reference: The LLM Surgeon (arXiv:2312.17244), section 3.1; K-FAC
(arXiv:1503.05671), with every token a term of its own ("expand", arXiv:2311.00636).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.syrk import syrk_accumulate
from jaxlab.models.config import ModelConfig
from jaxlab.models.draws import draw
from jaxlab.models.fast_products import (
    FastMatrix,
    fast_head,
    fast_transposed_product,
    with_fast_products,
)
from jaxlab.models.linear import LINEARS, linear
from jaxlab.models.taps import Kept, Tapped
from jaxlab.models.transformer import INPUT_SITES, SITE_OF, Taps, embed, rms_norm, run_layers
from jaxlab.models.validation import check_params, check_tokens

Fisher = Literal["empirical", "mc"]
Products = Literal["float32", "bfloat16"]
_CHUNK = 512  # positions whose scores over the vocabulary exist at the same time
_TOKENS_AT_ONCE = 512  # twice that is no faster and needs another gigabyte


class Factors(NamedTuple):
    """Sums over tokens; `means` divides them. `L` layers; a biased matrix's inputs end with a constant 1."""

    A: dict[str, Float[Array, "L columns columns"]]
    """By input site (`INPUT_SITES`): sum of a a^T."""
    G: dict[str, Float[Array, "L rows rows"]]
    """By matrix (`LINEARS`): sum of g g^T, g the gradient of a sequence's mean loss over its predictions."""
    token_count: Float[Array, ""]
    """Tokens."""
    loss: Float[Array, ""]
    """Sum of -log p(next token) over all predictions, nats."""
    predictions: Float[Array, ""]


class TokenTaps(NamedTuple):
    """What every token shows at every matrix, tokens last."""

    inputs: dict[str, Float[Array, "L columns tokens"]]
    gradients: dict[str, Float[Array, "L rows tokens"]]
    """Of the sum, not the mean, of the losses of a sequence's predictions: no underflow in bfloat16."""
    losses: Float[Array, "batch time-1"]
    """-log p(next token), nats."""


def init_factors(params: dict[str, Any]) -> Factors:
    """Zeros.

    Args:
        params: the model, layers stacked.

    Raises:
        InputError: the layers are a tuple.
    """
    if isinstance(params["layers"], tuple):
        raise InputError("params['layers'] is a tuple; curvature needs stacked layers (stack_layers)")
    A, G = {}, {}
    for name in LINEARS:
        layers, rows, columns = params["layers"][name].shape
        bias = f"{name}_bias" in params["layers"]
        A[SITE_OF[name]] = jnp.zeros((layers, columns + bias, columns + bias))
        G[name] = jnp.zeros((layers, rows, rows))
    return Factors(A, G, *(jnp.zeros(()) for _ in range(3)))


def means(factors: Factors) -> tuple[dict[str, Array], dict[str, Array]]:
    """A and G of all matrices, both by matrix (`LINEARS`); see `mean_factors`."""
    found = {name: mean_factors(factors, name) for name in LINEARS}
    return {name: A for name, (A, _) in found.items()}, {name: G for name, (_, G) in found.items()}


def mean_factors(
    factors: Factors, name: str
) -> tuple[Float[Array, "L columns columns"], Float[Array, "L rows rows"]]:
    """A and G of one matrix as means over the tokens.

    Raises:
        InputError: no tokens were accumulated.
    """
    if float(factors.token_count) <= 0:
        raise InputError("factors: no tokens were accumulated")
    return factors.A[SITE_OF[name]] / factors.token_count, factors.G[name] / factors.token_count


def accumulate(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    factors: Factors,
    *,
    mask: Bool[Array, "batch time"] | None = None,
    fisher: Fisher = "empirical",
    draws: int = 1,
    key: jax.Array | None = None,
    products: Products = "float32",
    keep_tokens: bool | None = None,
) -> Factors:
    """Adds the factors of a batch of sequences: one forward pass, and one backward pass a draw.

    Args:
        params: the model, layers stacked.
        cfg: static.
        tokens: int32; every row is a sequence.
        factors: what to add to, from `init_factors`; donated.
        mask: tokens that count; padding is False. None is all.
        fisher: "empirical" takes the gradient of the text's own next tokens; "mc" of tokens drawn from the model,
            the Fisher information proper.
        draws: with "mc", how many, >= 1; each has a backward pass of its own, and outer products are averaged.
        key: with "mc", PRNG key.
        products: in what matrix products are taken ("bfloat16": rounded factors, sums in float32; see
            `jaxlab.models.fast_products`). The loss is that of the forward pass in the same products, to the bit.
        keep_tokens: take the gradients of all tokens out of the backward pass and multiply them in a program of their
            own, or (False, and no mask) multiply them inside, where they never exist for more than one layer. None:
            True on CPU, where XLA multiplies faster so, and with a mask, else False.

    Raises:
        InputError: a shape, range or dtype is wrong, or "mc" without a key.
    """
    check_params(params, cfg)
    model = _prepared(params, products)
    return _accumulate(
        model, cfg, tokens, factors, mask, _checked_key(fisher, draws, key), draws, keep_tokens
    )


def curvature(
    params: dict[str, Any],
    cfg: ModelConfig,
    windows: Int[Array, "windows context"],
    *,
    fisher: Fisher = "empirical",
    draws: int = 1,
    key: jax.Array | None = None,
    products: Products = "float32",
    progress: Callable[[int], None] = lambda windows: None,
) -> Factors:
    """Factors over many windows of text, about five hundred tokens at a time.

    Args:
        params: the model, layers stacked.
        cfg: static.
        windows: text; all of one length.
        fisher: see `accumulate`.
        draws: see `accumulate`.
        key: see `accumulate`.
        products: see `accumulate`.
        progress: called with the number of windows done.

    Raises:
        InputError: see `accumulate`; there are no windows.
    """
    check_params(params, cfg)
    model, factors = _prepared(params, products), init_factors(params)
    key = _checked_key(fisher, draws, key)
    for part, done in batches(windows):
        here = None if key is None else jax.random.fold_in(key, done)
        factors = _accumulate(model, cfg, part, factors, None, here, draws, None)
        jax.block_until_ready(factors.token_count)
        progress(done)
    return factors


def batches(windows: Int[Array, "windows context"]) -> Iterator[tuple[Int[Array, "batch context"], int]]:
    """Batches of about five hundred tokens, and how many windows are done after each.

    Raises:
        InputError: there are no windows.
    """
    if windows.ndim != 2 or not len(windows):
        raise InputError(f"windows has shape {windows.shape}; it must be [windows, context], at least one")
    size = max(1, _TOKENS_AT_ONCE // windows.shape[1])
    for start in range(0, len(windows), size):
        part = jnp.asarray(windows[start : start + size])
        yield part, start + len(part)


def token_taps(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    *,
    products: Products = "float32",
) -> TokenTaps:
    """Inputs and gradients of every token at every matrix, for what needs both (see `nearest_kronecker`).

    Args:
        params: the model, layers stacked.
        cfg: static.
        tokens: int32; every row is a sequence.
        products: see `accumulate`.
    """
    check_params(params, cfg)
    _check_tokens(tokens, cfg, None)
    captured = _capture(_prepared(params, products), cfg, jnp.asarray(tokens), None, None, 1, "tokens")
    return TokenTaps(captured.inputs, captured.gradients[0], captured.losses)


class _Prepared(NamedTuple):
    """The model, and the matrix that makes scores of its hidden states."""

    params: dict[str, Any]
    head: Any


class _Captured(NamedTuple):
    inputs: dict[str, Array]
    gradients: list[dict[str, Array]]
    token_count: Array
    losses: Array
    predictions: Array


def _prepared(params: dict[str, Any], products: Products) -> _Prepared:
    if products == "bfloat16":
        return _Prepared(params | {"layers": with_fast_products(params["layers"])}, fast_head(params))
    if products != "float32":
        raise InputError(f"products is {products!r}; it must be 'float32' or 'bfloat16'")
    return _Prepared(params, params["head"] if "head" in params else params["embed"])


def _checked_key(fisher: Fisher, draws: int, key: jax.Array | None) -> jax.Array | None:
    """The key where labels are drawn, else None."""
    if fisher not in ("empirical", "mc"):
        raise InputError(f"fisher is {fisher!r}; it must be 'empirical' or 'mc'")
    if draws < 1 or (fisher == "mc" and key is None):
        raise InputError(f"draws is {draws} and key is {key}; 'mc' needs at least one draw and a key")
    return key if fisher == "mc" else None


def _check_tokens(tokens: Array, cfg: ModelConfig, mask: Array | None) -> None:
    check_tokens(tokens, cfg, mask=mask)
    if tokens.shape[1] < 2:
        raise InputError(f"tokens has shape {tokens.shape}; a sequence needs two for one to be predicted")


def _accumulate(
    model: _Prepared,
    cfg: ModelConfig,
    tokens: Array,
    factors: Factors,
    mask: Array | None,
    key: jax.Array | None,
    draws: int,
    keep_tokens: bool | None,
) -> Factors:
    _check_tokens(tokens, cfg, mask)
    if keep_tokens is None:
        keep_tokens = jax.default_backend() == "cpu" or mask is not None
    if mask is not None and not keep_tokens:
        raise InputError("keep_tokens is False, which takes no mask: leave it None")
    kept: Kept = "tokens" if keep_tokens else "moment"
    captured = _capture(model, cfg, jnp.asarray(tokens), mask, key, draws, kept)
    return _add(factors, captured, tokens.shape[1] - 1, kept)


@functools.partial(jax.jit, static_argnames=("cfg", "draws", "kept"))
def _capture(
    model: _Prepared,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None,
    key: jax.Array | None,
    draws: int,
    kept: Kept,
) -> _Captured:
    layers = model.params["layers"]
    counts = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask, bool)
    scored = counts[:, :-1] & counts[:, 1:]
    dtype = jnp.bfloat16 if isinstance(layers["q"], FastMatrix) else jnp.float32

    def columns(x: Float[Array, "batch time size"]) -> Float[Array, "size tokens"]:
        x = x if mask is None else x * counts[..., None]
        return x.reshape(-1, x.shape[-1]).T.astype(dtype)

    def inputs(taps: Taps) -> dict[str, Array]:
        found = {}
        for site, x in taps.items():
            if f"{INPUT_SITES[site][0]}_bias" in layers:
                x = jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], axis=-1)
            found[site] = columns(x) if kept == "tokens" else syrk_accumulate(None, columns(x))
        return found

    def hidden_states(dummies: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        tapped = {name: Tapped(layers[name], dummies[name], kept) for name in LINEARS}
        params = model.params | {"layers": layers | tapped}
        hidden, _, found = run_layers(params, cfg, embed(params, cfg, tokens), collect=inputs)
        return rms_norm(hidden, params["final_norm"], cfg), found

    dummies = {}
    for name in LINEARS:
        count, rows = _matrix(layers[name]).shape[:2]
        size, of = (tokens.size, dtype) if kept == "tokens" else (rows, jnp.float32)
        dummies[name] = jnp.zeros((count, rows, size), of)
    hidden, pull_back, found = jax.vjp(hidden_states, dummies, has_aux=True)
    losses, cotangents = _loss(model.head, hidden, tokens, scored, key, draws)
    gradients = [pull_back(cotangent)[0] for cotangent in cotangents]
    if mask is not None:
        gradients = [
            {name: g * counts.reshape(-1).astype(dtype) for name, g in one.items()} for one in gradients
        ]
    return _Captured(
        found, gradients, jnp.sum(counts, dtype=jnp.float32), losses, jnp.sum(scored, dtype=jnp.float32)
    )


def _loss(
    head: Any,
    hidden: Float[Array, "batch time hidden"],
    tokens: Int[Array, "batch time"],
    scored: Bool[Array, "batch time-1"],
    key: jax.Array | None,
    draws: int,
) -> tuple[Float[Array, "batch time-1"], list[Float[Array, "batch time hidden"]]]:
    """The loss of every prediction, and for each draw the gradient of its loss with respect to the hidden states."""
    batch, time = tokens.shape
    # Sequences with fewer predictions count as much as full ones: their mean loss is what is differentiated.
    weights = scored * ((time - 1) / jnp.maximum(jnp.sum(scored, axis=1, keepdims=True), 1))
    size = min(_CHUNK, batch * (time - 1))
    chunks = -(-batch * (time - 1) // size)

    def split(x: Array) -> Array:
        flat = x.reshape(batch * (time - 1), *x.shape[2:])
        padded = jnp.pad(flat, [(0, chunks * size - len(flat))] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(chunks, size, *flat.shape[1:])

    def one(part: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        index, rows, target, weight, counted = part
        scores, pull_back = jax.vjp(lambda rows: linear(rows, head).astype(jnp.float32), rows)
        total = jax.nn.logsumexp(scores, axis=-1)
        p = jnp.exp(scores - total[:, None])
        place = jnp.arange(size)
        if key is None:
            labels = [target]
        else:
            labels = [draw(jax.random.fold_in(jax.random.fold_in(key, i), index), p) for i in range(draws)]
        cotangents = [p.at[place, label].add(-1.0) * weight[:, None] for label in labels]
        losses = jnp.where(counted, total - scores[place, target], 0.0)
        return losses, tuple(pull_back(cotangent)[0] for cotangent in cotangents)

    parts = (split(hidden[:, :-1]), split(tokens[:, 1:]), split(weights), split(scored))
    losses, gradients = lax.map(one, (jnp.arange(chunks), *parts))
    whole = [
        g.reshape(chunks * size, -1)[: batch * (time - 1)].reshape(batch, time - 1, -1) for g in gradients
    ]
    losses = losses.reshape(-1)[: batch * (time - 1)].reshape(batch, time - 1)
    return losses, [jnp.pad(g, ((0, 0), (0, 1), (0, 0))) for g in whole]


@functools.partial(jax.jit, static_argnames=("predictions", "kept"), donate_argnums=0)
def _add(factors: Factors, captured: _Captured, predictions: int, kept: Kept) -> Factors:
    """Gradients were those of the loss summed over `predictions` positions; the factors want those of the mean."""
    draws = len(captured.gradients)
    scale = 1 / (predictions**2 * draws)

    def moments(total: Array, new: Array, scale: float = 1.0) -> Array:
        if kept == "moment":
            return total + scale * new

        # A loop that writes into the donated array: a map would allocate and fill another gigabyte every time.
        def add(layer: Array, total: Array) -> Array:
            x = lax.dynamic_index_in_dim(new, layer, keepdims=False)
            # In bfloat16 mirroring one half costs more than computing it.
            fast = x.dtype == jnp.bfloat16
            product = scale * (fast_transposed_product(x, x) if fast else syrk_accumulate(None, x))
            here = lax.dynamic_index_in_dim(total, layer, keepdims=False)
            return lax.dynamic_update_index_in_dim(total, here + product, layer, 0)

        return lax.fori_loop(0, len(total), add, total)

    A = {site: moments(total, captured.inputs[site]) for site, total in factors.A.items()}
    G = factors.G
    for gradients in captured.gradients:
        G = {name: moments(total, gradients[name], scale) for name, total in G.items()}
    return Factors(
        A,
        G,
        factors.token_count + captured.token_count,
        factors.loss + jnp.sum(captured.losses),
        factors.predictions + captured.predictions,
    )


def _matrix(leaf: Any) -> Array:
    return leaf.weight if isinstance(leaf, FastMatrix) else leaf
