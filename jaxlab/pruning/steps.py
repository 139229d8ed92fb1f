"""One pruning step for each kind of structure: what goes, by one threshold for the whole model, and what the rest does.

Reference: arXiv:2312.17244, sections 3.2 to 3.4.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from jaxlab.models.config import ModelConfig
from jaxlab.models.linear import LINEARS
from jaxlab.pruning.config import UNITS, SurgeonConfig
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
from jaxlab.pruning.factors import Factors, inputs_of, mean_factors
from jaxlab.pruning.inverse import Inverses, alive_structures, robust_inverse_factors
from jaxlab.pruning.layers import over_layers
from jaxlab.pruning.masks import (
    Lines,
    Masks,
    augmented,
    linear_parameters,
    widened,
    with_matrix,
)
from jaxlab.pruning.threshold import element_threshold, group_threshold, structured_threshold, unit_threshold
from jaxlab.pruning.update import update


class Step(NamedTuple):
    """What a step leaves behind."""

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


def prune_lines(
    params: dict[str, Any],
    masks: Masks,
    config: SurgeonConfig,
    factors: Factors | None,
    sparsity: float,
    mesh: Mesh | None = None,
) -> Step:
    """Rows and columns: costs, one threshold, updates."""
    layers = params["layers"]
    matrices, damping, found = {}, {}, {}
    shared = _Shared(config, factors, mesh)
    for name in LINEARS:
        matrices[name], damping[name] = shared.matrix(layers, name)
        found[name] = _line_costs(matrices[name], structure=config.structure, mesh=mesh)
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
        changed = _lines_removed(matrices.pop(name), wide, config, config.joint, mesh)
        layers = with_matrix(layers, name, changed)
    return Step(layers, new, float(threshold), damping)


def prune_elements(
    params: dict[str, Any],
    masks: Masks,
    config: SurgeonConfig,
    factors: Factors | None,
    sparsity: float,
    mesh: Mesh | None = None,
) -> Step:
    """Single weights, or n of m: costs, thresholds, updates."""
    layers = params["layers"]
    matrices, damping, found = {}, {}, {}
    shared = _Shared(config, factors, mesh)
    for name in LINEARS:
        matrices[name], damping[name] = shared.matrix(layers, name)
        width = masks[name].shape[-1]
        found[name] = _element_costs(matrices[name], wanda=config.method == "wanda", mesh=mesh)[..., :width]
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
            mesh,
        )
        layers = with_matrix(layers, name, changed)
    return Step(layers, new, threshold, damping)


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


def prune_units(
    params: dict[str, Any],
    masks: Masks,
    cfg: ModelConfig,
    config: SurgeonConfig,
    factors: Factors | None,
    sparsity: float,
    mesh: Mesh | None = None,
) -> Step:
    """Hidden units and key-value groups: costs, one threshold, updates of the matrices that read them."""
    layers = params["layers"]
    kinds = UNITS[config.structure]
    reader = {"mlp": "down", "kv": "o"}
    matrices, damping, found = {}, {}, {}
    shared = _Shared(config, factors, mesh)
    for kind in kinds:
        name = reader[kind]
        matrices[kind], damping[name] = shared.matrix(layers, name)
        groups = cfg.mlp_size if kind == "mlp" else cfg.num_kv_heads
        found[kind] = _unit_costs(matrices[kind], groups, masks[name].columns.shape[-1] // groups, mesh)
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
        changed = _lines_removed(matrix, wide, config, "exact", mesh)
        layers = with_matrix(layers, name, changed)
    for name in LINEARS:
        keep = ~joined[name].rows
        weight = jnp.where(keep[..., None], augmented(layers, name), 0)
        layers = with_matrix(layers, name, weight)
    return Step(layers, joined, float(threshold), damping)


class _Shared:
    """Factors and inverses on the inputs' side, kept for the next matrix that reads the same input."""

    def __init__(self, config: SurgeonConfig, factors: Factors | None, mesh: Mesh | None) -> None:
        self._config, self._factors, self._mesh = config, factors, mesh
        self._site: str | None = None
        self._A: Array | None = None
        self._inverse: tuple[np.ndarray, Array | None, np.ndarray | None] | None = None

    def matrix(self, layers: dict[str, Any], name: str) -> tuple[_Matrix, tuple[float, float]]:
        """What costs and updates of a matrix use by the method, and the largest damping that was needed."""
        weight, config = augmented(layers, name), self._config
        A, G = (None, None) if self._factors is None else self._means(self._factors, name)
        if config.method == "wanda":
            return _Matrix(weight, A, None, None), (0.0, 0.0)
        method = cast(Method, config.method)
        needs = METHODS[method]
        inverses, used = None, (0.0, 0.0)
        if needs.updates and A is not None:
            G = G if needs.G == "full" else None
            alive_rows, alive_columns = _alive(weight, A, G)
            inverse_A, damping_A = self._inverse_of_inputs(A, alive_columns, alive_rows, name)
            of_G, damping = robust_inverse_factors(
                None,
                G,
                alive_columns,
                alive_rows,
                damp_a=config.damp_a,
                damp_g=config.damp_g,
                name=name,
                mesh=self._mesh,
            )
            inverses = Inverses(inverse_A, of_G.G)
            used = _largest(damping_A), _largest(damping.G)
        return _Matrix(weight, *cost_model(method, A, G, inverses)), used

    def _means(self, factors: Factors, name: str) -> tuple[Array, Array]:
        site = inputs_of(factors, name)
        if site != self._site:
            self._site, self._inverse = site, None
            self._A, G = mean_factors(factors, name)
            return self._A, G
        assert self._A is not None
        return self._A, mean_factors(factors, name)[1]

    def _inverse_of_inputs(
        self, A: Array, alive_columns: Array, alive_rows: Array, name: str
    ) -> tuple[Array | None, np.ndarray | None]:
        """As the matrix before had it, where the same columns are alive."""
        alive = np.asarray(alive_columns)
        if self._inverse is None or not np.array_equal(self._inverse[0], alive):
            found, damping = robust_inverse_factors(
                A,
                None,
                alive_columns,
                alive_rows,
                damp_a=self._config.damp_a,
                damp_g=0.0,
                name=name,
                mesh=self._mesh,
            )
            self._inverse = alive, found.A, damping.A
        return self._inverse[1:]


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


@functools.partial(jax.jit, static_argnames=("structure", "mesh"))
def _line_costs(matrix: _Matrix, structure: Any, mesh: Mesh | None) -> Costs:
    def one(layer: _Matrix) -> Costs:
        return removal_costs(layer.weight, layer.A, layer.G, layer.inverses, structure)

    return over_layers(one, matrix, mesh)


@functools.partial(jax.jit, static_argnames=("wanda", "mesh"))
def _element_costs(matrix: _Matrix, wanda: bool, mesh: Mesh | None) -> Float[Array, "layers rows columns"]:
    def one(layer: _Matrix) -> Array | None:
        if wanda:
            return wanda_scores(layer.weight, layer.A)
        return removal_costs(layer.weight, layer.A, layer.G, layer.inverses, "element").elements

    return over_layers(one, matrix, mesh)


@functools.partial(jax.jit, static_argnames=("groups", "width", "mesh"))
def _unit_costs(matrix: _Matrix, groups: int, width: int, mesh: Mesh | None) -> Float[Array, "layers groups"]:
    def one(layer: _Matrix) -> Array:
        inverses = None if layer.inverses is None else Inverses(layer.inverses.A, None)
        if width == 1:
            return mlp_unit_costs(layer.weight, layer.A, layer.G, inverses)[:groups]
        return kv_group_costs(layer.weight, layer.A, layer.G, inverses, group_columns=width)[:groups]

    return over_layers(one, matrix, mesh)


def _lines_removed(
    matrix: _Matrix, mask: Lines, config: SurgeonConfig, joint: Literal["exact", "sum"], mesh: Mesh | None
) -> Float[Array, "layers rows columns"]:
    """The updated matrices."""
    return _update_lines(
        matrix,
        mask,
        config.update_scale,
        joint=joint,
        max_correlate=config.max_correlate,
        add_update=config.add_update,
        mesh=mesh,
    )


@functools.partial(jax.jit, static_argnames=("joint", "max_correlate", "add_update", "mesh"))
def _update_lines(
    matrix: _Matrix, mask: Lines, update_scale: float, mesh: Mesh | None, **static: Any
) -> Float[Array, "layers rows columns"]:
    def one(layer: tuple[Array, Inverses | None, Lines, Array]) -> Array:
        weight, inverses, mask, scale = layer
        return update(weight, mask.rows, mask.columns, inverses, update_scale=scale, **static)

    return over_layers(one, (matrix.weight, matrix.inverses, mask, _for_each(matrix, update_scale)), mesh)


@functools.partial(jax.jit, static_argnames=("max_chunk", "add_update", "mesh"))
def _update_elements(
    matrix: _Matrix,
    mask: Bool[Array, "layers rows columns"],
    max_chunk: int,
    add_update: bool,
    update_scale: float,
    mesh: Mesh | None,
) -> Float[Array, "layers rows columns"]:
    def one(layer: tuple[Array, Array, Inverses | None, Array]) -> Array:
        weight, mask, inverses, scale = layer
        return update_elements(
            weight, mask, inverses, max_chunk=max_chunk, add_update=add_update, update_scale=scale
        )

    return over_layers(one, (matrix.weight, mask, matrix.inverses, _for_each(matrix, update_scale)), mesh)


def _for_each(matrix: _Matrix, value: float) -> Float[Array, " layers"]:
    return jnp.full(len(matrix.weight), value, matrix.weight.dtype)
