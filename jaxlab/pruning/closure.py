"""What else is dead once rows and columns are pruned: structures that can go without any change of the output.

With a row pruned (and its bias, which is part of it) an output is exactly 0, and with a column an input is not looked
at. So a hidden unit whose gate, up or down line is pruned needs none of the three, since silu(0) = gelu(0) = 0; a value
that is 0 needs no columns of o, and one that no column of o reads needs no row; queries and keys that never meet in a
score need not be computed. They meet in rotary pairs (i, i + head_dim / 2): within a pair every query entry meets both
key entries at some distance between tokens, so that a pair goes only as a whole. With norms over the heads (`qk_norm`:
Qwen 3, Gemma 3) an entry also scales the others of its head, so that queries and keys go only by whole heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxlab.errors import InputError
from jaxlab.models.config import ModelConfig
from jaxlab.models.gathered import gather
from jaxlab.models.linear import LINEARS
from jaxlab.models.stacking import unstack_layers
from jaxlab.models.validation import check_params, layer_shapes
from jaxlab.pruning.masks import Lines, removed_parameters


def close(masks: dict[str, Lines], cfg: ModelConfig) -> dict[str, Lines]:
    """The masks with all rows and columns that lost their influence: the fixed point of the rules of this module.

    The output of the model does not change, whatever its weights are.

    Args:
      masks: pruned rows and columns, by matrix; a pruned row includes its bias.
      cfg: the model; all layers of the same widths.

    Returns:
      Masks that include the given ones.

    Raises:
      InputError: names or shapes are not those of `cfg`.
    """
    _check(masks, cfg)

    def again(state: tuple[dict[str, Lines], Array]) -> tuple[dict[str, Lines], Array]:
        before = state[0]
        after = _attention(_mlp(_emptied(before, cfg)), cfg)
        changed = jax.tree.map(lambda one, other: jnp.any(one != other), before, after)
        return after, jnp.stack(jax.tree.leaves(changed)).any()

    given = {name: Lines(*map(jnp.asarray, masks[name])) for name in LINEARS}
    return jax.lax.while_loop(lambda state: state[1], again, (given, jnp.array(True)))[0]


def closure_gain(
    params: dict[str, Any], before: dict[str, Lines], after: dict[str, Lines]
) -> dict[str, Int[np.ndarray, " layers"]]:
    """Parameters, biases included, that `after` removes and `before` does not, by matrix and layer.

    Args:
      params: the model, layers stacked; only shapes are looked at.
      before: masks.
      after: masks that include them.
    """
    removed = removed_parameters(params, after)
    return {name: removed[name] - count for name, count in removed_parameters(params, before).items()}


def gather_model(params: dict[str, Any], cfg: ModelConfig, masks: dict[str, Lines]) -> dict[str, Any]:
    """The model with every matrix cut down to its kept rows and columns, and pruned rows' biases zero.

    Its logits are those of the model with zeros in the pruned rows and columns. Close the masks first.

    Args:
      params: the model, layers stacked or a tuple; not changed.
      cfg: its configuration, which describes the result too.
      masks: pruned rows and columns, by matrix; not traced, since shapes depend on them.

    Returns:
      Parameters with a tuple of layers; matrices of which something is pruned are `Gathered`.

    Raises:
      InputError: `cfg` does not describe `params`, or names or shapes of the masks are not those of `cfg`.
    """
    check_params(params, cfg)
    _check(masks, cfg)
    lines = {name: jax.device_get(masks[name]) for name in LINEARS}

    def kept(layer: dict[str, Any], index: int) -> dict[str, Any]:
        smaller = dict(layer)
        for name in LINEARS:
            rows, columns = (~mask[index] for mask in lines[name])
            if not (rows.all() and columns.all()):
                smaller[name] = gather(layer[name], rows, columns)
            if f"{name}_bias" in layer:
                smaller[f"{name}_bias"] = jnp.where(rows, layer[f"{name}_bias"], 0)
        return smaller

    layers = unstack_layers(params)["layers"]
    return {**params, "layers": tuple(kept(layer, index) for index, layer in enumerate(layers))}


def _emptied(masks: dict[str, Lines], cfg: ModelConfig) -> dict[str, Lines]:
    """A matrix without rows looks at no input; one without columns and without a bias has no output but 0."""
    shapes, found = layer_shapes(cfg), {}
    for name, (rows, columns) in masks.items():
        empty = columns.all(axis=-1, keepdims=True) & (f"{name}_bias" not in shapes)
        found[name] = Lines(rows | empty, columns | rows.all(axis=-1, keepdims=True))
    return found


def _mlp(masks: dict[str, Lines]) -> dict[str, Lines]:
    """One line of a unit takes the others along."""
    gate, up, down = masks["gate"], masks["up"], masks["down"]
    dead = gate.rows | up.rows | down.columns
    lines = {
        "gate": gate._replace(rows=dead),
        "up": up._replace(rows=dead),
        "down": down._replace(columns=dead),
    }
    return masks | lines


def _attention(masks: dict[str, Lines], cfg: ModelConfig) -> dict[str, Lines]:
    """Values and the columns of o that read them; queries and keys that meet in no score, or in none that is used."""
    half, groups = cfg.head_dim // 2, cfg.num_kv_heads

    def heads(lines: Bool[Array, "layers width"]) -> Bool[Array, "layers groups heads 2 half"]:
        return lines.reshape(len(lines), groups, -1, 2, half)

    def flat(lines: Bool[Array, "layers groups heads 2 half"]) -> Bool[Array, "layers width"]:
        return lines.reshape(len(lines), -1)

    q, k, v = (heads(masks[name].rows) for name in ("q", "k", "v"))
    read = heads(masks["o"].columns)
    read = read | v
    v = v | read.all(axis=2, keepdims=True)

    unused = read.all(axis=(3, 4), keepdims=True)
    apart = q.all(axis=3, keepdims=True) | k.all(axis=3, keepdims=True)
    if cfg.qk_norm:
        apart = apart.all(axis=4, keepdims=True)
    apart = apart | unused
    q, k = q | apart, k | apart.all(axis=2, keepdims=True)
    rows = {name: masks[name]._replace(rows=flat(lines)) for name, lines in {"q": q, "k": k, "v": v}.items()}
    return masks | rows | {"o": masks["o"]._replace(columns=flat(read))}


def _check(masks: dict[str, Lines], cfg: ModelConfig) -> None:
    if cfg.layer_widths is not None:
        raise InputError("cfg.layer_widths is set; masks are for models whose layers have all of their units")
    if set(masks) != set(LINEARS):
        raise InputError(f"masks are of {sorted(masks)}; they must be of {', '.join(LINEARS)}")
    shapes = layer_shapes(cfg)
    for name in LINEARS:
        for axis, part in enumerate(Lines._fields):
            mask, expected = masks[name][axis], (cfg.num_layers, shapes[name][axis])
            if mask.shape != expected or mask.dtype != bool:
                raise InputError(
                    f"masks[{name!r}].{part} is {mask.dtype} {mask.shape}; it must be bool {expected}"
                )
