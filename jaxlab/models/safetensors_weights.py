"""Parameters from the safetensors files of a Hugging Face directory, and the tensors' names there."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.assembly import assemble_params
from jaxlab.models.config import ModelConfig

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
_SANDWICH_TENSORS = {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
_EMBED, _HEAD = "embed_tokens.weight", "lm_head.weight"


def tensor_name(cfg: ModelConfig, name: str, layer: int | None, *, prefix: str = "model.") -> str:
    """What the leaf `name` (of layer `layer`, or None) is called in a Hugging Face checkpoint."""
    if layer is not None:
        layer_tensors = _LAYER_TENSORS | _SANDWICH_TENSORS if cfg.sandwich_norms else _LAYER_TENSORS
        return f"{prefix}layers.{layer}.{layer_tensors[name]}"
    if name == "head":
        # Beside the model, not inside: "model." -> "", "language_model.model." -> "language_model.".
        return prefix.removesuffix("model.") + _HEAD
    return prefix + {"embed": _EMBED, "final_norm": "norm.weight"}[name]


def params_from_safetensors(directory: Path, cfg: ModelConfig, *, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameters of a Hugging Face directory, in the stacked layout.

    Args:
      directory: holds `model.safetensors`, or an index with its shards, in float32, float16 or bfloat16.
      cfg: the model, from the directory's `config.json`.
      dtype: of the returned arrays.

    Raises:
      InputError: there are no safetensors, one is cut short, or a tensor is missing, has another shape than
        `cfg` says, or holds NaN.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in weight_files(directory):
            opened = stack.enter_context(open_safetensors(file))
            tensors |= dict.fromkeys(opened.keys(), opened)
        prefix = _prefix(directory, tensors)

        def read(name: str, layer: int | None, out: np.ndarray) -> str:
            tensor = tensor_name(cfg, name, layer, prefix=prefix)
            if tensor not in tensors:
                raise InputError(f"{directory}: tensor {tensor!r} is missing from the safetensors")
            shape = tensors[tensor].get_slice(tensor).get_shape()
            if tuple(shape) != out.shape:
                raise InputError(
                    f"{directory}: tensor {tensor!r} has shape {list(shape)}, but config.json asks for"
                    f" {list(out.shape)}"
                )
            out[...] = tensors[tensor].get_tensor(tensor)
            return tensor

        return assemble_params(cfg, read, source=str(directory), dtype=dtype)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory.

    Raises:
      InputError: there are none, or the index names one that is absent.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index}: is not an index of safetensors: {error}") from error
    else:
        names = (
            [WEIGHTS]
            if (directory / WEIGHTS).is_file()
            else sorted(p.name for p in directory.glob("*.safetensors"))
        )
    if not names:
        others = sorted(p.name for p in directory.glob("*.bin"))
        found = (
            f"only {', '.join(others)}, which may run code when opened: convert it to safetensors"
            if others
            else "none"
        )
        raise InputError(
            f"{directory}: no safetensors file, found {found}; expected {WEIGHTS}, or {INDEX} and its shards"
        )
    for name in names:
        if not (directory / name).is_file():
            raise InputError(f"{directory / name}: is missing, though {INDEX} names it")
    return [directory / name for name in names]


def open_safetensors(file: Path) -> Any:
    """The opened file, to be used as a context manager.

    Raises:
      InputError: it is cut short or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except SafetensorError as error:
        raise InputError(
            f"{file}: cannot be read as safetensors ({error}): it is cut short or damaged, get it again"
        ) from error


def _prefix(directory: Path, tensors: dict[str, Any]) -> str:
    """What stands before `embed_tokens.weight`: "model.", or longer inside a model that also sees images."""
    found = [name for name in tensors if name.endswith(_EMBED)]
    if len(found) != 1:
        raise InputError(f"{directory}: expected one tensor named ...{_EMBED}, found {found or 'none'}")
    return found[0].removesuffix(_EMBED)
