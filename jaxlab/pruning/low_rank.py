"""Low-rank first-order correction: between shots, adapters learn what the quadratic model of pruning misses.

The gradient of a real model is not zero, and pruning leaves it larger. A rank-r increment B A of every matrix, zero
where the matrix is pruned, is trained on a little of the calibration text and folded in; masks do not move. Reference:
arXiv:2312.17244, section 3.6.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.cross_entropy import cross_entropy
from jaxlab.models.adapters import Adapter, LoRA, adapters_of, init_lora, merge_lora, with_adapters
from jaxlab.models.config import ModelConfig
from jaxlab.models.fast_products import fast_head, with_fast_products
from jaxlab.models.linear import LINEARS, dense, linear, register_linear
from jaxlab.models.transformer import forward
from jaxlab.pruning.factors import Products
from jaxlab.pruning.masks import Lines, Masks

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class LowRank:
    """How the correction is trained.

    Raises:
        InputError: a value out of range.
    """

    rank: int = 8
    """Of the increments, >= 1."""
    learning_rate: float = 1e-4
    """Of Adam, > 0."""
    share: float = 0.025
    """Of a shot's windows that its correction is trained on, in (0, 1]; at least one window."""
    final_epochs: int = 5
    """Passes over all windows after the last shot, with a rate that falls to 0; 0 treats it like the others."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.final_epochs < 0:
            raise InputError(
                f"rank is {self.rank} and final_epochs {self.final_epochs}; they must be at least 1 and 0"
            )
        if not (self.learning_rate > 0 and 0 < self.share <= 1):
            raise InputError(
                f"learning_rate is {self.learning_rate} and share {self.share}; they must be > 0 and in (0, 1]"
            )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight", "a", "b", "kept"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Masked:
    """The matrix weight + kept * (b @ a): an increment with the pattern of single pruned weights."""

    weight: Any
    a: Float[Array, "rank inputs"]
    b: Float[Array, "outputs rank"]
    kept: Bool[Array, "outputs inputs"]


def _apply_masked(x: Array, leaf: _Masked) -> Array:
    increment = jnp.where(leaf.kept, leaf.b @ leaf.a, 0)
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    return linear(x, leaf.weight) + lax.dot_general(x, increment.astype(x.dtype), contract_last)


register_linear(
    _Masked, _apply_masked, lambda leaf: dense(leaf.weight) + jnp.where(leaf.kept, leaf.b @ leaf.a, 0)
)


def correct(
    params: dict[str, Any],
    cfg: ModelConfig,
    masks: Masks,
    windows: Int[np.ndarray, "windows context"],
    key: jax.Array,
    config: LowRank,
    *,
    last: bool = False,
    products: Products = "bfloat16",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], list[float]]:
    """Trains the increments, one window a step, and folds them in.

    Args:
        params: the pruned model, layers stacked.
        cfg: static.
        masks: what is pruned; stays exactly 0.
        windows: the shot's calibration text.
        key: PRNG key of the adapters and of the choice of windows.
        config: how.
        last: after the last shot: `final_epochs` over all windows.
        products: with the frozen matrices (see `jaxlab.models.fast_products`).
        progress: called with the steps done and their total.

    Returns:
        The model, and the mean loss of each step before its update, nats a token.

    Raises:
        InputError: there are no windows.
    """
    if windows.ndim != 2 or not len(windows):
        raise InputError(f"windows has shape {windows.shape}; it must be [windows, context], at least one")
    epochs = config.final_epochs if last else 0
    count = len(windows) if epochs else max(1, round(config.share * len(windows)))
    order = [
        np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), len(windows)))[:count]
        for epoch in range(max(epochs, 1))
    ]
    steps = np.concatenate(order)
    frozen = with_fast_products(params["layers"]) if products == "bfloat16" else params["layers"]
    head = fast_head(params) if products == "bfloat16" else params.get("head", params["embed"])
    adapted = init_lora(jax.random.fold_in(key, len(steps)), {**params, "layers": frozen}, rank=config.rank)
    adapters = adapters_of(adapted)
    state = optax.scale_by_adam().init(adapters)
    losses = []
    for step, index in enumerate(steps):
        rate = config.learning_rate * (1 - step / len(steps) if epochs else 1)
        adapters, state, loss = _step(
            adapters, state, adapted, head, cfg, masks, jnp.asarray(windows[index][None]), jnp.float32(rate)
        )
        losses.append(float(loss))
        progress(step + 1, len(steps))
    exact = init_lora(jax.random.key(0), params, rank=config.rank)
    trained = with_adapters(exact, _masked_adapters(adapters, masks))
    kept = {
        name: (~mask.rows, ~mask.columns) if isinstance(mask, Lines) else ~mask
        for name, mask in masks.items()
    }
    return merge_lora(trained, masks=kept), losses


@functools.partial(jax.jit, static_argnames="cfg")
def _step(
    adapters: dict[str, Adapter],
    state: optax.OptState,
    adapted: dict[str, Any],
    head: Any,
    cfg: ModelConfig,
    masks: Masks,
    tokens: Int[Array, "batch time"],
    rate: Array,
) -> tuple[dict[str, Adapter], optax.OptState, Array]:
    def loss(adapters: dict[str, Adapter]) -> Array:
        masked = _masked_adapters(adapters, masks)
        layers = dict(adapted["layers"])
        for name in LINEARS:
            leaf, mask = layers[name], masks[name]
            a, b = masked[name]
            if isinstance(mask, Lines):
                layers[name] = LoRA(leaf.weight, a, b, leaf.scale)
            else:
                layers[name] = _Masked(leaf.weight, a, b, ~mask)
        hidden = forward({**adapted, "layers": layers}, cfg, tokens).hidden[:, :-1]
        flat = hidden.reshape(-1, hidden.shape[-1])
        return cross_entropy(_scores, head, flat, tokens[:, 1:].reshape(-1), chunk=_CHUNK).mean()

    value, gradient = jax.value_and_grad(loss)(adapters)
    change, state = optax.scale_by_adam().update(gradient, state)
    return jax.tree.map(lambda x, d: x - rate * d, adapters, change), state, value


def _masked_adapters(adapters: dict[str, Adapter], masks: Masks) -> dict[str, Adapter]:
    """Zero for pruned rows and columns."""
    masked = {}
    for name, (a, b) in adapters.items():
        mask = masks[name]
        if isinstance(mask, Lines):
            a = jnp.where(mask.columns[:, None, :], 0, a)
            b = jnp.where(mask.rows[:, :, None], 0, b)
        masked[name] = Adapter(a, b)
    return masked


def _scores(head: Any, hidden: Float[Array, "positions hidden"]) -> Float[Array, "positions vocabulary"]:
    return linear(hidden, head)
