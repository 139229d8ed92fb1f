"""Parameters from the safetensors files of a Hugging Face directory, and the tensors' names there."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.assembly import Read, assemble_params
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
    with stored_tensors(directory) as stored:
        read = stored.reader(cfg, prefix=stored.prefix())
        return assemble_params(cfg, read, source=str(directory), dtype=dtype)


class StoredTensors:
    """The tensors of a directory's safetensors files, read one by one while the files are open."""

    def __init__(self, directory: Path, opened: dict[Path, Any]):
        self.directory = directory
        self._file_of = {name: file for file, tensors in opened.items() for name in tensors.keys()}
        self._opened = opened

    def get(self, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor, in the dtype in which it is stored.

        Raises:
          InputError: it is missing, or has another shape.
        """
        file = self.file_of(tensor)
        found = tuple(self._opened[file].get_slice(tensor).get_shape())
        if found != shape:
            raise InputError(
                f"{file}: tensor {tensor!r} has shape {list(found)}, but config.json asks for {list(shape)}"
            )
        return self._opened[file].get_tensor(tensor)

    def file_of(self, tensor: str) -> Path:
        """The file that holds a tensor.

        Raises:
          InputError: none does.
        """
        if tensor not in self._file_of:
            files = ", ".join(file.name for file in self._opened)
            raise InputError(f"{self.directory}: tensor {tensor!r} is missing from {files}")
        return self._file_of[tensor]

    def reader(self, cfg: ModelConfig, *, prefix: str = "model.") -> Read:
        """Reads the leaves of a model by their names here; `prefix` stands before their names there."""

        def read(name: str, layer: int | None, out: np.ndarray) -> str:
            tensor = tensor_name(cfg, name, layer, prefix=prefix)
            out[...] = self.get(tensor, out.shape)
            return tensor

        return read

    def prefix(self) -> str:
        """What stands before `embed_tokens.weight`: "model.", or longer inside a model that also sees images."""
        found = [name for name in self._file_of if name.endswith(_EMBED)]
        if len(found) != 1:
            raise InputError(
                f"{self.directory}: expected one tensor named ...{_EMBED}, found {found or 'none'}"
            )
        return found[0].removesuffix(_EMBED)


@contextlib.contextmanager
def stored_tensors(directory: Path) -> Iterator[StoredTensors]:
    """Opens the safetensors files of a directory.

    Raises:
      InputError: there are none, or one is cut short or damaged.
    """
    with contextlib.ExitStack() as stack:
        files = weight_files(directory)
        yield StoredTensors(directory, {file: stack.enter_context(open_safetensors(file)) for file in files})


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
