"""The LLM Surgeon: curvature, costs, one threshold for the whole model, updates of what stays; in several shots.

Every shot estimates the curvature at the current weights and prunes to the next of evenly spaced sparsities. The same
frame holds the methods it is compared with (`METHODS` of `jaxlab.pruning.costs`, and Wanda). Reference:
arXiv:2312.17244, section 3 and algorithm 1.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.pruning.costs import (
    METHODS,
    Costs,
    Method,
    check_finite,
    cost_model,
    lowest,
    n_of_m,
    wanda_scores,
)
from jaxlab.pruning.costs import costs as removal_costs
from jaxlab.pruning.coupled import Units, expand_units, kv_group_costs, mlp_unit_costs, unit_sizes
from jaxlab.pruning.elements import update_elements
from jaxlab.pruning.factors import Factors, Fisher, Products, curvature, mean_factors
from jaxlab.pruning.inverse import Inverses, alive_structures, robust_inverse_factors
from jaxlab.pruning.low_rank import LowRank, correct
from jaxlab.pruning.masks import (
    Lines,
    Masks,
    augmented,
    empty_elements,
    empty_lines,
    linear_parameters,
    removed_parameters,
    sparsity_of,
    stacked_layers,
    widened,
    with_matrix,
)
from jaxlab.pruning.threshold import element_threshold, group_threshold, structured_threshold, unit_threshold
from jaxlab.pruning.update import update

STRUCTURES = ("rowcol", "rows", "cols", "element", "mlp_units", "kv_groups", "units")
"""And n:m, such as 2:4. "units" is mlp_units and kv_groups together."""
_BOUND_STEP = 64  # sizes of systems are multiples of this, so that few programs are compiled
UNITS = {"mlp_units": ("mlp",), "kv_groups": ("kv",), "units": ("mlp", "kv")}


@dataclasses.dataclass(frozen=True)
class SurgeonConfig:
    """How a model is pruned; hashable.

    Raises:
        InputError: a value out of range; the message says which.
    """

    sparsity: float = 0.2
    """Share of the parameters of the blocks' matrices (biases included) that is pruned in the end, in [0, 1)."""
    shots: int = 4
    """Steps, each with its own curvature, >= 1."""
    structure: str = "rowcol"
    """'rowcol', 'rows', 'cols', 'element', 'n:m' (such as 2:4), 'mlp_units', 'kv_groups' or 'units' (both)."""
    method: str = "surgeon"
    """'surgeon', 'k-obd', 'l-obd', 'magnitude', 'sparsegpt' or 'wanda' (the last two for elements and n:m)."""
    damp_a: float = 0.1
    """Share of the mean diagonal that is added to the input factors before they are inverted, > 0."""
    damp_g: float = 0.1
    """The same for the output-gradient factors."""
    joint: Literal["exact", "sum"] = "exact"
    """Rows and columns together: the optimum, or the sum of the two updates as in the authors' code."""
    max_correlate: int = 0
    """Pruned rows (and columns) that are updated together; 0 is all."""
    max_chunk: int = 1
    """Pruned elements that are updated together, at least those of a row; 1 is row by row."""
    add_update: bool = True
    """Each group or chunk starts from what those before it left."""
    update_scale: float = 1.0
    """Multiplies the updates, >= 0."""
    allocation: Literal["global", "uniform"] = "global"
    """Elements and n:m: one threshold for all matrices, or the same share of each (always so for Wanda)."""
    fisher: Fisher = "empirical"
    """Labels of the curvature: the text's own, or ("mc") drawn from the model."""
    draws: int = 1
    """With "mc", labels drawn for every token."""
    products: Products = "bfloat16"
    """Of the passes that gather curvature and train the correction."""
    fresh: bool = True
    """Each shot takes calibration windows of its own; False: all shots take all of them."""
    low_rank: LowRank | None = None
    """Low-rank first-order correction after every shot; None is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is {self.sparsity}; it must be in [0, 1)")
        for name, least in (("shots", 1), ("max_correlate", 0), ("max_chunk", 1), ("draws", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("damp_a", "damp_g"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be > 0")
        if not self.update_scale >= 0:
            raise InputError(f"update_scale is {self.update_scale}; it must be >= 0")
        for name, known in (("joint", ("exact", "sum")), ("allocation", ("global", "uniform"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.method not in (*METHODS, "wanda"):
            raise InputError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}, wanda")
        if self.structure not in STRUCTURES and self.n_of_m is None:
            raise InputError(
                f"structure is {self.structure!r}; it must be one of {', '.join(STRUCTURES)}, or n:m such as 2:4 "
                "with 0 < n <= m"
            )
        if self.method in ("sparsegpt", "wanda") and not self.elementwise:
            raise InputError(f"method {self.method!r} prunes elements; structure is {self.structure!r}")
        if self.n_of_m is not None and self.sparsity > self.n_of_m[0] / self.n_of_m[1]:
            n, m = self.n_of_m
            raise InputError(f"sparsity is {self.sparsity}; {n}:{m} pruning reaches at most {n / m:g}")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of an n:m structure, else None."""
        found = re.fullmatch(r"(\d+):(\d+)", self.structure)
        if found is None:
            return None
        n, m = int(found[1]), int(found[2])
        return (n, m) if 0 < n <= m else None

    @property
    def elementwise(self) -> bool:
        """Whether single weights are pruned."""
        return self.structure == "element" or self.n_of_m is not None

    @property
    def needs_factors(self) -> bool:
        """Whether the method looks at curvature."""
        return self.method != "magnitude"

    def target(self, shot: int) -> float:
        """Sparsity after the shots 1 .. `shot`."""
        return self.sparsity * shot / self.shots


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


Callback = Callable[[SurgeonState, ShotReport], None]


def init(params: dict[str, Any], cfg: ModelConfig, config: SurgeonConfig, key: jax.Array) -> SurgeonState:
    """The state before the first shot.

    Args:
        params: the model, layers stacked and dense.
        cfg: static.
        config: how it will be pruned.
        key: PRNG key.

    Raises:
        InputError: the layers are not dense arrays of one shape, or an n:m pattern does not fit a width.
    """
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
        progress: called with a stage ("curvature", "correction"), the windows done and their total.

    Raises:
        InputError: too few windows, a factor or a cost that is not finite; see also `init` and `curvature`.
    """
    if config.fresh and len(windows) < config.shots:
        raise InputError(
            f"windows has {len(windows)} rows; {config.shots} shots with fresh windows need one each"
        )
    state = init(params, cfg, config, key) if state is None else state
    for shot in range(int(state.shot) + 1, config.shots + 1):
        here = np.array_split(windows, config.shots)[shot - 1] if config.fresh else windows
        state, report = run_shot(state, cfg, here, config, progress=progress)
        callback(state, report)
    return state


def run_shot(
    state: SurgeonState,
    cfg: ModelConfig,
    windows: Int[np.ndarray, "windows context"],
    config: SurgeonConfig,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[SurgeonState, ShotReport]:
    """Curvature on the windows, one pruning step, and the low-rank correction if there is one."""
    shot = int(state.shot) + 1
    factors = None
    if config.needs_factors:
        factors = curvature(
            state.params,
            cfg,
            jnp.asarray(windows),
            fisher=config.fisher,
            draws=config.draws,
            key=jax.random.fold_in(state.key, 0),
            products=config.products,
            progress=lambda done: progress("curvature", done, len(windows)),
        )
    state, report = prune_shot(state, factors, cfg, config, config.target(shot))
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


def prune_shot(
    state: SurgeonState,
    factors: Factors | None,
    cfg: ModelConfig,
    config: SurgeonConfig,
    sparsity: float,
) -> tuple[SurgeonState, ShotReport]:
    """One pruning step to a sparsity: costs, threshold, masks, updates.

    Args:
        state: what is there.
        factors: curvature at its weights; None for magnitude pruning.
        cfg: static.
        config: how; its `sparsity` and `shots` are not looked at.
        sparsity: share that is pruned afterwards, at most (ties are not cut).

    Raises:
        InputError: factors missing or not finite, or costs not finite.
    """
    if config.needs_factors and factors is None:
        raise InputError(f"factors is None; method {config.method!r} needs them")
    if config.structure in UNITS:
        shot = _prune_units(state, cfg, config, factors, sparsity)
    elif config.elementwise:
        shot = _prune_elements(state, config, factors, sparsity)
    else:
        shot = _prune_lines(state, config, factors, sparsity)
    loss = None if factors is None else float(factors.loss / factors.predictions)
    params = state.params | {"layers": shot.layers}
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


class _Shot(NamedTuple):
    layers: dict[str, Any]
    masks: Masks
    threshold: float
    damping: dict[str, tuple[float, float]]


class _Matrix(NamedTuple):
    """One matrix of all layers, and what its costs and updates use."""

    weight: Float[Array, "layers rows columns"]
    A: Array | None
    G: Array | None
    inverses: Inverses | None


def _prune_lines(
    state: SurgeonState, config: SurgeonConfig, factors: Factors | None, sparsity: float
) -> _Shot:
    layers, masks = state.params["layers"], state.masks
    matrices, damping, found = {}, {}, {}
    for name in LINEARS:
        matrices[name], damping[name] = _matrix(layers, name, config, factors)
        found[name] = _line_costs(matrices[name], structure=config.structure)
        matrices[name] = matrices[name]._replace(A=None, G=None)  # only costs look at them
    rows = {name: one.rows for name, one in found.items() if one.rows is not None}
    columns = {}
    for name, one in found.items():
        if one.columns is not None:
            biased = f"{name}_bias" in layers
            columns[name] = one.columns.at[:, -1].set(jnp.inf) if biased else one.columns
    check_finite(rows)
    check_finite({name: one[:, : masks[name].columns.shape[1]] for name, one in columns.items()})
    shapes = {name: _size(matrices[name].weight) for name in LINEARS}
    threshold = structured_threshold(rows or None, columns or None, shapes, sparsity)
    new: dict[str, Lines] = {}
    for name in LINEARS:
        row_mask, column_mask = masks[name]
        if rows:
            row_mask = row_mask | (rows[name] <= threshold)
        if columns:
            column_mask = column_mask | (columns[name] <= threshold)[:, : column_mask.shape[1]]
        new[name] = Lines(row_mask, column_mask)
        wide = Lines(row_mask, widened(column_mask, f"{name}_bias" in layers))
        changed = _lines_removed(matrices.pop(name), wide, config, config.joint)
        layers = with_matrix(layers, name, changed)
    return _Shot(layers, new, float(threshold), damping)


def _prune_elements(
    state: SurgeonState, config: SurgeonConfig, factors: Factors | None, sparsity: float
) -> _Shot:
    layers, masks = state.params["layers"], state.masks
    matrices, damping, found = {}, {}, {}
    for name in LINEARS:
        matrices[name], damping[name] = _matrix(layers, name, config, factors)
        width = masks[name].shape[-1]
        found[name] = _element_costs(matrices[name], wanda=config.method == "wanda")[..., :width]
        matrices[name] = matrices[name]._replace(A=None, G=None)  # only costs look at them
    check_finite(found)
    new, threshold = _element_masks(found, masks, config, sparsity)
    for name in LINEARS:
        mask = new[name] = masks[name] | new[name]
        changed = _update_elements(
            matrices.pop(name),
            widened(mask, f"{name}_bias" in layers),
            config.max_chunk,
            config.add_update,
            config.update_scale,
        )
        layers = with_matrix(layers, name, changed)
    return _Shot(layers, new, threshold, damping)


def _element_masks(
    found: Mapping[str, Float[Array, "layers rows columns"]],
    pruned: Mapping[str, Bool[Array, "layers rows columns"]],
    config: SurgeonConfig,
    sparsity: float,
) -> tuple[dict[str, Array], float]:
    """Pruned elements by their costs (or scores), and the common threshold if there is one."""
    uniform = config.allocation == "uniform" or config.method == "wanda"
    if config.n_of_m is None:
        if not uniform:
            limit = element_threshold(found, sparsity)
            return {name: one <= limit for name, one in found.items()}, float(limit)
        wanda = config.method == "wanda"
        return {name: _lowest(one, sparsity, by_row=wanda) for name, one in found.items()}, float("nan")
    n, m = config.n_of_m
    chosen, groups = {}, {}
    for name, one in found.items():
        chosen[name], groups[name] = _cheapest_of_groups(one, pruned[name], n, m)
    if uniform:
        converted = {name: _lowest(one, sparsity * m / n, by_row=False) for name, one in groups.items()}
        threshold = float("nan")
    else:
        limit = group_threshold(groups, sparsity, n=n, m=m)
        converted, threshold = {name: one <= limit for name, one in groups.items()}, float(limit)
    return {name: chosen[name] & jnp.repeat(converted[name], m, axis=-1) for name in found}, threshold


@functools.partial(jax.jit, static_argnames=("n", "m"))
def _cheapest_of_groups(
    costs: Float[Array, "layers rows columns"], pruned: Bool[Array, "layers rows columns"], n: int, m: int
) -> tuple[Bool[Array, "layers rows columns"], Float[Array, "layers rows groups"]]:
    """The n cheapest of m, those that are pruned already before any other, and what they cost."""
    pick = jax.vmap(functools.partial(n_of_m, n=n, m=m))
    chosen, _ = pick(jnp.where(pruned, -1, costs))
    return chosen, jnp.where(chosen, costs, 0).reshape(*costs.shape[:2], -1, m).sum(axis=-1)


@functools.partial(jax.jit, static_argnames=("share", "by_row"))
def _lowest(
    scores: Float[Array, "layers rows columns"], share: float, by_row: bool
) -> Bool[Array, "layers rows columns"]:
    """The lowest scores of every layer, or of every row."""
    return jax.vmap(functools.partial(lowest, share=share))(
        scores if by_row else scores.reshape(len(scores), 1, -1)
    ).reshape(scores.shape)


def _prune_units(
    state: SurgeonState,
    cfg: ModelConfig,
    config: SurgeonConfig,
    factors: Factors | None,
    sparsity: float,
) -> _Shot:
    params, layers, masks = state.params, state.params["layers"], state.masks
    kinds = UNITS[config.structure]
    reader = {"mlp": "down", "kv": "o"}
    matrices, damping, found = {}, {}, {}
    for kind in kinds:
        name = reader[kind]
        matrices[kind], damping[name] = _matrix(layers, name, config, factors)
        groups = cfg.mlp_size if kind == "mlp" else cfg.num_kv_heads
        found[kind] = _unit_costs(matrices[kind], groups, masks[name].columns.shape[-1] // groups)
    check_finite(found)
    sizes = unit_sizes(cfg)
    target = int(sparsity * linear_parameters(params))
    threshold = unit_threshold(found, {kind: sizes[kind] for kind in kinds}, target)
    pruned = {kind: one <= threshold for kind, one in found.items()}
    new = expand_units(cfg, Units(pruned.get("mlp"), pruned.get("kv")))
    joined = {name: Lines(*(a | b for a, b in zip(masks[name], new[name], strict=True))) for name in LINEARS}
    for kind in kinds:
        name = reader[kind]
        wide = Lines(joined[name].rows, widened(joined[name].columns, f"{name}_bias" in layers))
        matrix = matrices[kind]
        if matrix.inverses is not None:  # a unit's columns go; no row of its matrix does
            matrix = matrix._replace(inverses=Inverses(matrix.inverses.A, None))
        changed = _lines_removed(matrix, wide, config, "exact")
        layers = with_matrix(layers, name, changed)
    for name in LINEARS:
        keep = ~joined[name].rows
        weight = jnp.where(keep[..., None], augmented(layers, name), 0)
        layers = with_matrix(layers, name, weight)
    return _Shot(layers, joined, float(threshold), damping)


def _matrix(
    layers: dict[str, Any], name: str, config: SurgeonConfig, factors: Factors | None
) -> tuple[_Matrix, tuple[float, float]]:
    """What costs and updates of a matrix use by the method, and the largest damping that was needed."""
    weight = augmented(layers, name)
    A, G = (None, None) if factors is None else mean_factors(factors, name)
    if config.method == "wanda":
        return _Matrix(weight, A, None, None), (0.0, 0.0)
    method = cast(Method, config.method)
    needs = METHODS[method]
    inverses, used = None, (0.0, 0.0)
    if needs.updates and A is not None:
        G = G if needs.G == "full" else None
        alive_rows, alive_columns = _alive(weight, A, G)
        inverses, damping = robust_inverse_factors(
            A, G, alive_columns, alive_rows, damp_a=config.damp_a, damp_g=config.damp_g, name=name
        )
        used = _largest(damping.A), _largest(damping.G)
    return _Matrix(weight, *cost_model(method, A, G, inverses)), used


def _largest(damping: np.ndarray | None) -> float:
    return 0.0 if damping is None else float(np.max(damping))


def _size(weight: Float[Array, "layers rows columns"]) -> tuple[int, int]:
    _, rows, columns = weight.shape
    return rows, columns


@jax.jit
def _alive(weight: Array, A: Array, G: Array | None) -> tuple[Array, Array]:
    if G is None:
        return jax.vmap(lambda W, A: alive_structures(W, A))(weight, A)
    return jax.vmap(alive_structures)(weight, A, G)


@functools.partial(jax.jit, static_argnames="structure")
def _line_costs(matrix: _Matrix, structure: Any) -> Costs:
    return jax.lax.map(lambda one: removal_costs(one.weight, one.A, one.G, one.inverses, structure), matrix)


@functools.partial(jax.jit, static_argnames="wanda")
def _element_costs(matrix: _Matrix, wanda: bool) -> Float[Array, "layers rows columns"]:
    if wanda:
        return jax.vmap(wanda_scores)(matrix.weight, matrix.A)
    return jax.lax.map(
        lambda one: removal_costs(one.weight, one.A, one.G, one.inverses, "element").elements, matrix
    )


@functools.partial(jax.jit, static_argnames=("groups", "width"))
def _unit_costs(matrix: _Matrix, groups: int, width: int) -> Float[Array, "layers groups"]:
    def one(layer: _Matrix) -> Array:
        inverses = None if layer.inverses is None else Inverses(layer.inverses.A, None)
        if width == 1:
            return mlp_unit_costs(layer.weight, layer.A, layer.G, inverses)[:groups]
        return kv_group_costs(layer.weight, layer.A, layer.G, inverses, group_columns=width)[:groups]

    return jax.lax.map(one, matrix)


def _lines_removed(
    matrix: _Matrix, mask: Lines, config: SurgeonConfig, joint: Literal["exact", "sum"]
) -> Float[Array, "layers rows columns"]:
    """The updated matrices; systems are made as large as the layer with the most new pruned lines needs."""
    bounds: list[int | None] = [None, None]
    if matrix.inverses is not None:
        for axis, (lines, inverse) in enumerate(
            ((mask.rows, matrix.inverses.G), (mask.columns, matrix.inverses.A))
        ):
            if inverse is not None:
                alive = jnp.diagonal(inverse, axis1=1, axis2=2) > 0
                most = int(jnp.max(jnp.sum(lines & alive, axis=1)))
                bounds[axis] = max(1, -(-most // _BOUND_STEP)) * _BOUND_STEP
    return _update_lines(
        matrix,
        mask,
        config.update_scale,
        joint=joint,
        max_correlate=config.max_correlate,
        add_update=config.add_update,
        row_bound=bounds[0],
        column_bound=bounds[1],
    )


@functools.partial(
    jax.jit, static_argnames=("joint", "max_correlate", "add_update", "row_bound", "column_bound")
)
def _update_lines(
    matrix: _Matrix, mask: Lines, update_scale: float, **static: Any
) -> Float[Array, "layers rows columns"]:
    def one(layer: tuple[Array, Inverses | None, Lines]) -> Array:
        weight, inverses, mask = layer
        return update(weight, mask.rows, mask.columns, inverses, update_scale=update_scale, **static)

    return jax.lax.map(one, (matrix.weight, matrix.inverses, mask))


@functools.partial(jax.jit, static_argnames=("max_chunk", "add_update"))
def _update_elements(
    matrix: _Matrix,
    mask: Bool[Array, "layers rows columns"],
    max_chunk: int,
    add_update: bool,
    update_scale: float,
) -> Float[Array, "layers rows columns"]:
    def one(layer: tuple[Array, Array, Inverses | None]) -> Array:
        weight, mask, inverses = layer
        return update_elements(
            weight, mask, inverses, max_chunk=max_chunk, add_update=add_update, update_scale=update_scale
        )

    return jax.lax.map(one, (matrix.weight, mask, matrix.inverses))
