"""Structures that leave a smaller dense model behind: hidden units of the MLP, and groups of heads.

A hidden unit is a row of gate and of up and a column of down; a key-value group is the rows of a k and v head, the q
rows of all query heads that read it and the o columns behind them. Without its columns of the last matrix (down, o) a
structure has no influence, so that they alone decide what it costs, and the rest goes for free. Reference: optimal
brain surgeon on blocks of columns (arXiv:2312.17244, section 3.2, with whole structures as the constraint).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlab.errors import InputError
from jaxlab.models.config import LayerWidths, ModelConfig
from jaxlab.models.gathered import part
from jaxlab.models.linear import LINEARS, dense
from jaxlab.models.stacking import unstack_layers
from jaxlab.models.validation import check_params, layer_shapes
from jaxlab.pruning.costs import Factor, column_costs, quadratic_loss
from jaxlab.pruning.inverse import Inverses, damped_inverse
from jaxlab.pruning.masks import Lines


class Units(NamedTuple):
    """Pruned hidden units and key-value groups of all layers; None for none."""

    mlp: Bool[Array, "layers units"] | None = None
    kv: Bool[Array, "layers kv_heads"] | None = None


def mlp_unit_costs(
    down: Float[Array, "hidden columns"], A: Factor, G: Factor, inverses: Inverses | None
) -> Float[Array, " columns"]:
    """Removal costs of hidden units: of their columns of the down projection.

    Args:
      down: weights of one layer; a bias may stand behind the units as a last column.
      A: input factor, undamped: matrix, diagonal, or None for the identity.
      G: output-gradient factor, likewise.
      inverses: damped inverses for costs with an optimal update, None for costs without.

    Returns:
      Costs >= 0, one a column.
    """
    return column_costs(down, A, G, inverses)


def kv_group_costs(
    o: Float[Array, "hidden columns"],
    A: Factor,
    G: Factor,
    inverses: Inverses | None,
    *,
    group_columns: int,
) -> Float[Array, " kv_heads"]:
    """1/2 tr(G W_c ([A^-1]_cc)^-1 W_c^T) of the o columns c of each group; without inverses 1/2 tr(G W_c A_cc W_c^T).

    Dead columns (zero on the diagonal of the inverse) add nothing.

    Args:
      o: weights of one layer's o projection; a bias may stand behind the groups as a last column.
      A: input factor, undamped: matrix, diagonal, or None for the identity.
      G: output-gradient factor, likewise.
      inverses: damped inverses for costs with an optimal update, None for costs without.
      group_columns: columns of a group, query heads of a key-value head times the width of a head.

    Returns:
      Costs >= 0.

    Raises:
      InputError: `group_columns` is not from 1 to the number of columns.
    """
    columns = o.shape[1]
    if not 1 <= group_columns <= columns:
        raise InputError(
            f"group_columns is {group_columns}; o has {columns} columns, so it must be 1 to that"
        )

    def block(of: Array, start: Array, axes: tuple[int, ...]) -> Array:
        for axis in axes:
            of = jax.lax.dynamic_slice_in_dim(of, start, group_columns, axis)
        return of

    def cost(start: Array) -> Array:
        curvature = None if A is None else block(A, start, tuple(range(A.ndim)))
        if inverses is not None:
            curvature = None
            if inverses.A is not None:
                inverse = block(inverses.A, start, (0, 1))
                # `!= 0`, not `> 0`, so that a NaN stays one.
                curvature = damped_inverse(inverse, jnp.diagonal(inverse) != 0, 0.0)
        return quadratic_loss(block(o, start, (1,)), curvature, G)

    starts = jnp.arange(columns // group_columns) * group_columns
    return jnp.maximum(jax.vmap(cost)(starts), 0)


def unit_sizes(cfg: ModelConfig) -> dict[str, int]:
    """Parameters, biases included, that leave with one hidden unit ("mlp") and with one key-value group ("kv")."""
    heads = cfg.num_heads // cfg.num_kv_heads
    return {
        "mlp": 2 * (cfg.hidden_size + cfg.mlp_bias) + cfg.hidden_size,
        "kv": cfg.head_dim * ((heads + 2) * (cfg.hidden_size + cfg.qkv_bias) + heads * cfg.hidden_size),
    }


def expand_units(cfg: ModelConfig, units: Units) -> dict[str, Lines]:
    """The rows and columns of all matrices that pruned units and groups consist of.

    Args:
      cfg: the model before pruning.
      units: what is pruned.

    Raises:
      InputError: a mask has the wrong shape.
    """
    mlp, kv = _masks(cfg, units)
    hidden = jnp.zeros((cfg.num_layers, cfg.hidden_size), bool)
    head = jnp.repeat(kv, cfg.head_dim, axis=-1)
    heads = jnp.repeat(kv, _group_columns(cfg), axis=-1)
    return {
        "q": Lines(heads, hidden),
        "k": Lines(head, hidden),
        "v": Lines(head, hidden),
        "o": Lines(hidden, heads),
        "gate": Lines(mlp, hidden),
        "up": Lines(mlp, hidden),
        "down": Lines(hidden, mlp),
    }


def units_of(masks: dict[str, Lines], cfg: ModelConfig) -> Units:
    """The units and groups of which every row and column is pruned.

    Args:
      masks: pruned rows and columns, by matrix.
      cfg: the model before pruning.
    """

    def whole(lines: Array, size: int) -> Array:
        return lines.reshape(*lines.shape[:-1], -1, size).all(axis=-1)

    heads = whole(masks["q"].rows & masks["o"].columns, _group_columns(cfg))
    head = whole(masks["k"].rows & masks["v"].rows, cfg.head_dim)
    return Units(masks["gate"].rows & masks["up"].rows & masks["down"].columns, heads & head)


def remove_units(
    params: dict[str, Any],
    cfg: ModelConfig,
    mlp: Bool[Array, "layers units"] | None,
    kv: Bool[Array, "layers kv_heads"] | None,
) -> tuple[dict[str, Any], ModelConfig]:
    """A smaller model without some hidden units and key-value groups.

    Its logits are those of the model in which all their rows (with biases) and columns are zero.

    Args:
      params: the model, layers stacked or a tuple; not changed.
      cfg: its configuration, all layers of the same widths.
      mlp: pruned hidden units, not traced, since shapes depend on them; None for none.
      kv: pruned key-value groups, likewise.

    Returns:
      Parameters with a tuple of layers, and the configuration with their widths.

    Raises:
      InputError: a mask has the wrong shape, or `cfg` does not describe `params` or gives layers widths of their own.
    """
    check_params(params, cfg)
    if cfg.layer_widths is not None:
        raise InputError("cfg.layer_widths is set; remove units from a model whose layers have all of theirs")
    units = jax.device_get(_masks(cfg, Units(mlp, kv)))
    lines = jax.device_get(expand_units(cfg, Units(*units)))
    shapes = layer_shapes(cfg)

    def kept(layer: dict[str, Any], index: int) -> dict[str, Any]:
        smaller = dict(layer)
        for name in LINEARS:
            matrix = dense(layer[name])
            if matrix.shape != shapes[name]:
                raise InputError(f"{name} of layer {index} is {matrix.shape}; cfg makes it {shapes[name]}")
            rows, columns = (np.flatnonzero(~mask[index]) for mask in lines[name])
            smaller[name] = part(matrix, rows, columns)
            if f"{name}_bias" in layer:
                smaller[f"{name}_bias"] = layer[f"{name}_bias"][rows]
        return smaller

    layers = unstack_layers(params)["layers"]
    left = (np.sum(~mask, axis=1).tolist() for mask in units)
    widths = tuple(LayerWidths(*one) for one in zip(*left, strict=True))
    smaller = {**params, "layers": tuple(kept(layer, index) for index, layer in enumerate(layers))}
    return smaller, dataclasses.replace(cfg, layer_widths=widths)


def _group_columns(cfg: ModelConfig) -> int:
    """Query heads of a key-value head times the width of a head."""
    return cfg.num_heads // cfg.num_kv_heads * cfg.head_dim


def _masks(cfg: ModelConfig, units: Units) -> tuple[Array, Array]:
    """Both masks, all False where there was none."""

    def mask(name: str, given: Array | None, count: int) -> Array:
        shape = (cfg.num_layers, count)
        found = jnp.zeros(shape, bool) if given is None else jnp.asarray(given)
        if found.shape != shape or found.dtype != bool:
            raise InputError(f"the mask {name!r} is {found.dtype} {found.shape}; it must be bool {shape}")
        return found

    return mask("mlp", units.mlp, cfg.mlp_size), mask("kv", units.kv, cfg.num_kv_heads)
