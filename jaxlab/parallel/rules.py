"""Sharding rules: which axis of which leaf lies on which axis of the mesh.

A rule is a regular expression on the leaf's path (`layers/q`, `layers/3/down`) and a `PartitionSpec`; the
first rule that is found in the path wins.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.errors import InputError

Rules = Sequence[tuple[str, PartitionSpec]]

REPLICATED = PartitionSpec()


def model_rules(mesh: Mesh, *, num_heads: int, num_kv_heads: int, axis: str = "model") -> Rules:
    """Tensor parallelism for the parameters of `jaxlab.models`.

    Embedding and head are split over the vocabulary; q, k, v, gate and up over their outputs; o and down
    over their inputs. Attention is split only in whole heads: q and o stay whole where the number of heads
    is no multiple of the axis, k and v where the number of key-value heads is not. Adapters beside a matrix
    are split on the side that they share with it. All else is replicated.

    Args:
      mesh: has an axis named `axis`.
      num_heads: query heads of the model.
      num_kv_heads: key-value heads of the model.
      axis: the mesh axis to split over.
    """
    size = _axis_size(mesh, axis, "axis")
    out_of = {True: (axis, None), False: (None, None)}
    into = {True: (None, axis), False: (None, None)}
    splits = {
        "(cross_)?q": out_of[num_heads % size == 0],
        "(cross_)?o": into[num_heads % size == 0],
        "(cross_)?[kv]": out_of[num_kv_heads % size == 0],
        "(gate|up)": out_of[True],
        "down": into[True],
    }
    matrix = "(/weight|/bits)*"  # itself, or inside an adapter or in low precision
    rules = [(f"^(embed|head){matrix}$", PartitionSpec(axis, None))]
    for name, (out, inside) in splits.items():
        for part, spec in ((matrix, (out, inside)), ("/a", (None, inside)), ("/b", (out, None))):
            rules.append((f"(^|/)layers/{name}{part}$", PartitionSpec(None, *spec)))
            rules.append((f"(^|/)layers/[0-9]+/{name}{part}$", PartitionSpec(*spec)))
    return (*rules, ("", REPLICATED))


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """A tree of `NamedSharding` with the structure of `tree`.

    Args:
      tree: arrays, or anything with a shape, such as the result of `jax.eval_shape`.
      mesh: where to.
      rules: tried in order; end with `("", PartitionSpec())` to replicate the rest.

    Raises:
      InputError: no rule matches a leaf, or the first that does asks for axes that the leaf or the mesh
        does not have, or a size that the mesh axis does not divide.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                _check_fits(name, jax.numpy.shape(leaf), pattern, spec, mesh)
                return NamedSharding(mesh, spec)
        raise InputError(f"no sharding rule matches {name!r}: end the rules with ('', PartitionSpec())")

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def shard(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Puts every leaf of a tree where the rules say."""
    return jax.device_put(tree, shardings(tree, mesh, rules))


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as rules see it: `layers/3/down`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_fits(name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise InputError(
            f"rule {pattern!r} gives {spec} to {name}, which has only {len(shape)} axes: {shape}"
        )
    for position, names in enumerate(spec):
        parts = 1
        for axis in () if names is None else (names,) if isinstance(names, str) else names:
            parts *= _axis_size(mesh, axis, f"rule {pattern!r}")
        if shape[position] % parts:
            raise InputError(
                f"rule {pattern!r} cuts axis {position} of {name} (size {shape[position]}) into {parts}: "
                "choose a mesh whose axis divides it, or replicate this leaf"
            )


def _axis_size(mesh: Mesh, axis: str, what: str) -> int:
    if axis not in mesh.shape:
        raise InputError(f"{what} names the mesh axis {axis!r}, but the mesh has {', '.join(mesh.shape)}")
    return mesh.shape[axis]
