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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.draws import draw
from jaxlab.models.fast_products import FastMatrix, fast_head, with_fast_products
from jaxlab.models.linear import LINEARS, linear, matrix_shape
from jaxlab.models.taps import (
    Carry,
    Kept,
    Precision,
    add_to_layer,
    columns,
    outer_sum,
    run_and_keep,
    sweep_back,
)
from jaxlab.models.transformer import INPUT_SITES, SITE_OF, Taps, rms_norm
from jaxlab.models.validation import check_params, check_tokens

Fisher = Literal["empirical", "mc"]
Products = Literal["float32", "bfloat16"]
Shown = list[dict[str, Array]]
"""By backward pass and matrix; see `Tapped`."""
_CHUNK = 512  # positions whose scores over the vocabulary exist at the same time
_TOKENS_AT_ONCE = 512  # twice that is no faster and needs another gigabyte


class Factors(NamedTuple):
    """Sums over tokens; `means` divides them. `L` layers; a biased matrix's inputs end with a constant 1."""

    A: dict[str, Float[Array, "L columns columns"]]
    """By input site (`INPUT_SITES`): sum of a a^T. From `nearest_factors` by matrix (`LINEARS`)."""
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
        layers, rows, columns = matrix_shape(params["layers"][name])
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
    return factors.A[inputs_of(factors, name)] / factors.token_count, factors.G[name] / factors.token_count


def inputs_of(factors: Factors, name: str) -> str:
    """Under which name `factors.A` has what a matrix reads; the same for matrices that share it."""
    return name if name in factors.A else SITE_OF[name]


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

    Raises:
        InputError: a shape, range or dtype is wrong, or "mc" without a key.
    """
    check_params(params, cfg)
    model = _prepared(params, products)
    return _accumulate(model, cfg, tokens, factors, mask, _checked_key(fisher, draws, key), draws)


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
    mesh: Mesh | None = None,
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
        mesh: devices; its axis 'data' shares out the windows. Every device holds the model and the factors.

    Raises:
        InputError: see `accumulate`; there are no windows.
    """
    check_params(params, cfg)
    model, factors = _prepared(params, products), init_factors(params)
    key = _checked_key(fisher, draws, key)
    if mesh is not None:
        model, factors = jax.device_put((model, factors), NamedSharding(mesh, PartitionSpec()))
    for part, done in batches(windows, devices=1 if mesh is None else mesh.shape["data"]):
        if mesh is not None:
            # The last windows, where they are too few to be shared out, go to every device.
            spread = len(part) % mesh.shape["data"] == 0
            part = jax.device_put(part, NamedSharding(mesh, PartitionSpec("data" if spread else None)))
        here = None if key is None else jax.random.fold_in(key, done)
        factors = _accumulate(model, cfg, part, factors, None, here, draws)
        jax.block_until_ready(factors.token_count)
        progress(done)
    return factors


def batches(
    windows: Int[Array, "windows context"], *, devices: int = 1
) -> Iterator[tuple[Int[Array, "batch context"], int]]:
    """Batches of about five hundred tokens for each device, and how many windows are done after each.

    Raises:
        InputError: there are no windows.
    """
    if windows.ndim != 2 or not len(windows):
        raise InputError(f"windows has shape {windows.shape}; it must be [windows, context], at least one")
    size = devices * max(1, _TOKENS_AT_ONCE // windows.shape[1])
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
    return _token_taps(_prepared(params, products), cfg, jnp.asarray(tokens))


class _Prepared(NamedTuple):
    """The model, and the matrix that makes scores of its hidden states."""

    params: dict[str, Any]
    head: Any


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
) -> Factors:
    _check_tokens(tokens, cfg, mask)
    return _add(factors, model, cfg, jnp.asarray(tokens), mask, key, draws)


@functools.partial(jax.jit, static_argnames=("cfg", "draws"), donate_argnums=0)
def _add(
    factors: Factors,
    model: _Prepared,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None,
    key: jax.Array | None,
    draws: int,
) -> Factors:
    # Gradients are those of the loss summed over a sequence's predictions; the factors want those of the mean.
    scale = 1 / ((tokens.shape[1] - 1) ** 2 * draws)

    def visit(
        sums: tuple[dict[str, Array], dict[str, Array]], index: Array, inputs: dict[str, Array], shown: Shown
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        A, G = sums
        A = {site: add_to_layer(total, index, outer_sum(inputs[site])) for site, total in A.items()}
        for moments in shown:
            G = {name: add_to_layer(total, index, scale * moments[name]) for name, total in G.items()}
        return A, G

    (A, G), found = _sweep(model, cfg, tokens, mask, key, draws, "moment", visit, (factors.A, factors.G))
    return Factors(
        A,
        G,
        factors.token_count + found.token_count,
        factors.loss + jnp.sum(found.losses),
        factors.predictions + found.predictions,
    )


@functools.partial(jax.jit, static_argnames="cfg")
def _token_taps(model: _Prepared, cfg: ModelConfig, tokens: Int[Array, "batch time"]) -> TokenTaps:
    def visit(
        stacks: tuple[dict[str, Array], dict[str, Array]],
        index: Array,
        inputs: dict[str, Array],
        shown: Shown,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        a, g = stacks
        a = {site: add_to_layer(stack, index, inputs[site]) for site, stack in a.items()}
        return a, {name: add_to_layer(stack, index, shown[0][name]) for name, stack in g.items()}

    shapes = jax.eval_shape(init_factors, model.params)
    precision = _precision(model)
    a, g = (
        {name: jnp.zeros((*moment.shape[:2], tokens.size), precision) for name, moment in of.items()}
        for of in (shapes.A, shapes.G)
    )
    (inputs, gradients), found = _sweep(model, cfg, tokens, None, None, 1, "tokens", visit, (a, g))
    return TokenTaps(inputs, gradients, found.losses)


class _Found(NamedTuple):
    token_count: Array
    losses: Array
    predictions: Array


def _sweep(
    model: _Prepared,
    cfg: ModelConfig,
    tokens: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"] | None,
    key: jax.Array | None,
    draws: int,
    kept: Kept,
    visit: Callable[[Carry, Array, dict[str, Array], Shown], Carry],
    carry: Carry,
) -> tuple[Carry, _Found]:
    """Forward, then `sweep_back`; `visit` gets the inputs of each site with their constants, tokens last."""
    params, precision = model.params, _precision(model)
    counts = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask, bool)
    scored = counts[:, :-1] & counts[:, 1:]

    def with_inputs(carry: Carry, index: Array, taps: Taps, shown: Shown) -> Carry:
        inputs = {}
        for site, x in taps.items():
            if f"{INPUT_SITES[site][0]}_bias" in params["layers"]:
                x = jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], axis=-1)
            inputs[site] = columns(x if mask is None else x * counts[..., None], precision)
        return visit(carry, index, inputs, shown)

    last, states = run_and_keep(params, cfg, tokens)
    hidden, norm_back = jax.vjp(lambda last: rms_norm(last, params["final_norm"], cfg), last)
    losses, cotangents = _loss(model.head, hidden, tokens, scored, key, draws)
    carry = sweep_back(
        params,
        cfg,
        states,
        [norm_back(cotangent)[0] for cotangent in cotangents],
        with_inputs,
        carry,
        kept=kept,
        precision=precision,
        counted=mask if mask is None else counts,
    )
    return carry, _Found(jnp.sum(counts, dtype=jnp.float32), losses, jnp.sum(scored, dtype=jnp.float32))


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


def _precision(model: _Prepared) -> Precision:
    return "bfloat16" if isinstance(model.params["layers"]["q"], FastMatrix) else "float32"
