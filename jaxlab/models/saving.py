"""Writing a model as a Hugging Face directory that `transformers` opens."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_directory
from jaxlab.models.config import ModelConfig
from jaxlab.models.huggingface import config_to_hf
from jaxlab.models.linear import dense
from jaxlab.models.safetensors_weights import WEIGHTS, tensor_name
from jaxlab.models.validation import layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")


def save_hf(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokenizer: "PreTrainedTokenizerFast",
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
) -> None:
    """Saves a dense model with `config.json`, `model.safetensors` and its tokenizer.

    Every leaf is written as the dense matrix that it stands for. A directory that is already there is
    replaced whole, and stays as it is when anything fails.

    Args:
      params: parameters, layers stacked or as a tuple.
      cfg: the model; it must be expressible in its family of transformers.
      tokenizer: saved beside the weights.
      directory: where to.
      dtype: float32, bfloat16 or float16.

    Raises:
      InputError: unsupported `dtype` or `cfg`, or a leaf has another shape than `cfg` says or holds NaN.
      ResourceError: the disk is full, or the directory cannot be written.
    """
    dtype = jnp.dtype(dtype)
    if dtype.name not in DTYPES:
        raise InputError(f"dtype is {dtype.name}; it must be one of {', '.join(DTYPES)}")
    config = config_to_hf(cfg) | {"dtype": dtype.name}
    tensors = named_tensors(params, cfg, dtype)
    with atomic_directory(directory) as temporary:
        write_config_and_tokenizer(temporary, config, tokenizer)
        write_safetensors(temporary / WEIGHTS, tensors)


def named_tensors(params: dict[str, Any], cfg: ModelConfig, dtype: Any) -> dict[str, np.ndarray]:
    """All parameters as dense numpy arrays under their Hugging Face names; a tied head is left out.

    Raises:
      InputError: a leaf has another shape than `cfg` says, or holds NaN or infinity (also after rounding to
        `dtype`).
    """
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, layer: int | None, leaf: Any, shape: tuple[int, ...]) -> None:
        tensor = tensor_name(cfg, name, layer)
        with np.errstate(over="ignore"):  # said below, with the tensor's name
            array = np.asarray(dense(leaf)).astype(dtype)
        if array.shape != shape:
            raise InputError(f"{tensor} has shape {list(array.shape)}, but cfg asks for {list(shape)}")
        if not np.isfinite(array).all():
            raise InputError(f"{tensor} holds NaN or infinity in {dtype}; nothing was saved")
        tensors[tensor] = np.ascontiguousarray(array)

    vocabulary = (cfg.vocab_size, cfg.hidden_size)
    add("embed", None, params["embed"], vocabulary)
    add("final_norm", None, params["final_norm"], (cfg.hidden_size,))
    if not cfg.tie_embeddings:
        add("head", None, params["head"], vocabulary)
    layers = params["layers"]
    for index in range(cfg.num_layers):
        one = (
            layers[index]
            if isinstance(layers, tuple)
            else jax.tree.map(lambda leaf, i=index: leaf[i], layers)
        )
        for name, shape in layer_shapes(cfg).items():
            add(name, index, one[name], shape)
    return tensors


def write_config_and_tokenizer(
    directory: Path, config: dict[str, Any], tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Everything of a Hugging Face directory but the weights.

    Args:
      directory: exists; usually the temporary one of `atomic_directory`.
      config: contents of `config.json`, made by `config_to_hf` and possibly extended.
      tokenizer: saved as `tokenizer.json` with its settings and chat template.
    """
    _write_json(directory / "config.json", config)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(
        directory / "generation_config.json",
        {name: value for name, value in ids.items() if value is not None},
    )
    tokenizer.save_pretrained(directory)
    # The name of the class that transformers 4 knows too.
    settings = directory / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    _write_json(settings, written | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_safetensors(
    file: Path, tensors: dict[str, np.ndarray], *, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, readable by whom the umask allows.

    Raises:
      ResourceError: the disk is full, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        # transformers refuses files without a format
        save_file(tensors, file, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        raise ResourceError(f"cannot write {file}: {error}") from error
    file.chmod(mode)  # it replaces the file by one for its owner alone


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
