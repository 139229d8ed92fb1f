"""The LLM Surgeon: curvature, costs, one threshold for the whole model, updates of what stays; in several shots.

Every shot estimates the curvature at the current weights and prunes to the next of evenly spaced sparsities. The same
frame holds the methods it is compared with (`METHODS` of `jaxlab.pruning.costs`, and Wanda). Reference:
arXiv:2312.17244, section 3 and algorithm 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.models.perplexity import evaluate
from jaxlab.models.validation import require_gated_blocks
from jaxlab.pruning.config import UNITS, SurgeonConfig
from jaxlab.pruning.coupled import unit_sizes
from jaxlab.pruning.factors import Factors, curvature
from jaxlab.pruning.low_rank import correct
from jaxlab.pruning.masks import (
    Masks,
    empty_elements,
    empty_lines,
    linear_parameters,
    removed_parameters,
    sparsity_of,
    stacked_layers,
)
from jaxlab.pruning.nearest_kronecker import nearest_factors
from jaxlab.pruning.steps import prune_elements, prune_lines, prune_units


class SurgeonState(NamedTuple):
    """A model on its way; a pytree of arrays."""

    params: dict[str, Any]
    """Layers stacked; pruned weights are exactly 0."""
    masks: Masks
    """What is pruned, by matrix."""
    shot: Int[Array, ""]
    """Shots done."""
    key: jax.Array
    """PRNG key of the next shot."""


class ShotReport(NamedTuple):
    """What one shot did."""

    shot: int
    threshold: float
    """Largest removal cost that was pruned; NaN where there is no common threshold."""
    sparsity: float
    removed: dict[str, Int[np.ndarray, " layers"]]
    """Pruned parameters, by matrix and layer, of all shots so far."""
    damping: dict[str, tuple[float, float]]
    """By matrix the largest damping of A and G that a layer needed."""
    loss: float | None
    """Mean -log p on the calibration text before the shot, nats; None without curvature."""
    low_rank_losses: list[float]
    """Of the low-rank correction, step by step."""
    held_out_losses: dict[float, float] = {}
    """By multiple of the dampings, where several were tried: mean -log p on the held-out text after pruning, nats."""


Callback = Callable[[SurgeonState, ShotReport], None]


def init(params: dict[str, Any], cfg: ModelConfig, config: SurgeonConfig, key: jax.Array) -> SurgeonState:
    """The state before the first shot.

    Args:
        params: the model, layers stacked and dense.
        cfg: static.
        config: how it will be pruned.
        key: PRNG key.

    Raises:
        InputError: the family's blocks are of another kind, the layers are not dense arrays of one shape, or an n:m
            pattern does not fit a width.
    """
    require_gated_blocks(cfg, "pruning")
    layers = stacked_layers(params)
    if config.n_of_m is not None:
        for name in LINEARS:
            if layers[name].shape[-1] % config.n_of_m[1]:
                raise InputError(
                    f"structure is {config.structure!r}; {name} has {layers[name].shape[-1]} inputs, which "
                    f"{config.n_of_m[1]} does not divide"
                )
    if config.structure in UNITS:
        sizes, total = unit_sizes(cfg), linear_parameters(params)
        there = {"mlp": cfg.mlp_size * sizes["mlp"], "kv": cfg.num_kv_heads * sizes["kv"]}
        reach = cfg.num_layers * sum(there[kind] for kind in UNITS[config.structure]) / total
        if config.sparsity > reach:
            raise InputError(
                f"sparsity is {config.sparsity}; {config.structure} hold only {reach:.3f} of the parameters of the "
                "blocks' matrices: lower it, or use structure 'units'"
            )
    masks = empty_elements(params) if config.elementwise else empty_lines(params)
    return SurgeonState(params, masks, jnp.zeros((), jnp.int32), key)


def prune(
    params: dict[str, Any],
    cfg: ModelConfig,
    windows: Int[np.ndarray, "windows context"],
    config: SurgeonConfig,
    key: jax.Array,
    *,
    state: SurgeonState | None = None,
    callback: Callback = lambda state, report: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    held_out: Int[np.ndarray, "windows context"] | None = None,
    mesh: Mesh | None = None,
) -> SurgeonState:
    """All shots; with `state` those that are left.

    Args:
        params: the model, layers stacked and dense; not changed.
        cfg: static.
        windows: calibration text. With `config.fresh` they are shared out over the shots in order.
        config: how.
        key: PRNG key of sampled labels and adapters.
        state: from a callback of an interrupted run with the same arguments; `params` and `key` are not used then.
        callback: called after every shot; what it is given can be kept and passed as `state`.
        progress: called with a stage ("curvature", "correction"), the windows (or half steps) done and their total.
        held_out: text that `windows` does not hold; needed where `config.damp_factors` are several.
        mesh: devices; its axis 'data' shares out the windows of the curvature, and the layers when pruning.

    Raises:
        InputError: too few windows, no held-out text, a factor or a cost that is not finite; see also `init` and
            `curvature`.
    """
    if config.fresh and len(windows) < config.shots:
        raise InputError(
            f"windows has {len(windows)} rows; {config.shots} shots with fresh windows need one each"
        )
    state = init(params, cfg, config, key) if state is None else state
    for shot in range(int(state.shot) + 1, config.shots + 1):
        here = np.array_split(windows, config.shots)[shot - 1] if config.fresh else windows
        state, report = run_shot(state, cfg, here, config, progress=progress, held_out=held_out, mesh=mesh)
        callback(state, report)
    return state


def run_shot(
    state: SurgeonState,
    cfg: ModelConfig,
    windows: Int[np.ndarray, "windows context"],
    config: SurgeonConfig,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    held_out: Int[np.ndarray, "windows context"] | None = None,
    mesh: Mesh | None = None,
) -> tuple[SurgeonState, ShotReport]:
    """Curvature on the windows, one pruning step, and the low-rank correction if there is one; see `prune`."""
    if len(config.damp_factors) > 1 and (held_out is None or not len(held_out)):
        raise InputError(
            f"held_out is empty; text is needed to choose between damp_factors {config.damp_factors}"
        )
    shot = int(state.shot) + 1
    factors = None
    if config.needs_factors and config.half_steps:
        factors = nearest_factors(
            state.params,
            cfg,
            jnp.asarray(windows),
            half_steps=config.half_steps,
            products=config.products,
            progress=lambda done: progress("curvature", done, config.half_steps),
        )
    elif config.needs_factors:
        factors = curvature(
            state.params,
            cfg,
            jnp.asarray(windows),
            fisher=config.fisher,
            draws=config.draws,
            key=jax.random.fold_in(state.key, 0),
            products=config.products,
            progress=lambda done: progress("curvature", done, len(windows)),
            mesh=mesh,
        )
    state, report = _best_of(state, factors, cfg, config, held_out, mesh)
    del factors  # a gigabyte and more
    if config.low_rank is not None:
        params, losses = correct(
            state.params,
            cfg,
            state.masks,
            windows,
            jax.random.fold_in(state.key, 1),
            config.low_rank,
            last=shot == config.shots,
            products=config.products,
            progress=lambda done, total: progress("correction", done, total),
        )
        state, report = state._replace(params=params), report._replace(low_rank_losses=losses)
    return state._replace(key=jax.random.fold_in(state.key, 2)), report


def _best_of(
    state: SurgeonState,
    factors: Factors | None,
    cfg: ModelConfig,
    config: SurgeonConfig,
    held_out: Int[np.ndarray, "windows context"] | None,
    mesh: Mesh | None,
) -> tuple[SurgeonState, ShotReport]:
    """The pruning step with the damping that the held-out text likes best."""
    sparsity, losses = config.target(int(state.shot) + 1), {}
    best: tuple[SurgeonState, ShotReport] | None = None
    for factor in config.damp_factors:
        damped = dataclasses.replace(config, damp_a=factor * config.damp_a, damp_g=factor * config.damp_g)
        found = prune_shot(state, factors, cfg, damped, sparsity, mesh=mesh)
        if len(config.damp_factors) == 1:
            return found
        assert held_out is not None
        losses[factor] = evaluate(found[0].params, cfg, held_out).mean_nll
        if best is None or losses[factor] == min(losses.values()):
            best = found
    assert best is not None
    return best[0], best[1]._replace(held_out_losses=losses)


def prune_shot(
    state: SurgeonState,
    factors: Factors | None,
    cfg: ModelConfig,
    config: SurgeonConfig,
    sparsity: float,
    *,
    mesh: Mesh | None = None,
) -> tuple[SurgeonState, ShotReport]:
    """One pruning step to a sparsity: costs, threshold, masks, updates.

    Args:
        state: what is there.
        factors: curvature at its weights; None for magnitude pruning.
        cfg: static.
        config: how; its `sparsity` and `shots` are not looked at.
        sparsity: share that is pruned afterwards, at most (ties are not cut).
        mesh: devices; its axis 'data' shares out the layers.

    Raises:
        InputError: factors missing or not finite, or costs not finite.
    """
    if config.needs_factors and factors is None:
        raise InputError(f"factors is None; method {config.method!r} needs them")
    if config.structure in UNITS:
        shot = prune_units(state.params, state.masks, cfg, config, factors, sparsity, mesh)
    elif config.elementwise:
        shot = prune_elements(state.params, state.masks, config, factors, sparsity, mesh)
    else:
        shot = prune_lines(state.params, state.masks, config, factors, sparsity, mesh)
    loss = None if factors is None else float(factors.loss / factors.predictions)
    params = state.params | {"layers": shot.layers}
    if mesh is not None:  # the next pass over the text wants all layers on every device
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    report = ShotReport(
        int(state.shot) + 1,
        shot.threshold,
        sparsity_of(params, shot.masks),
        removed_parameters(params, shot.masks),
        shot.damping,
        loss,
        [],
    )
    return state._replace(params=params, masks=shot.masks, shot=state.shot + 1), report
