"""Writing a model as a Hugging Face directory that `transformers` opens, in one of three layouts.

`masked`: the shapes of the model before pruning, zeros where something was removed. `uniform`: layers that differ in
width are padded with zeros to the widest. `compact`: every matrix as small as it is, with code that reads it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_directory
from jaxlab.models.compact import compact_config, index_buffers, write_sources
from jaxlab.models.config import ModelConfig
from jaxlab.models.gathered import Gathered
from jaxlab.models.huggingface import NOTES, config_to_hf
from jaxlab.models.layer_norm_families import LAYER_NORM_FAMILIES
from jaxlab.models.linear import dense
from jaxlab.models.safetensors_weights import WEIGHTS
from jaxlab.models.tensor_layouts import make_tensor, tensor_name
from jaxlab.models.validation import layer_shapes, top_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("masked", "uniform", "compact")


def save_hf(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokenizer: "PreTrainedTokenizerFast",
    directory: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    layout: str = "masked",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model with `config.json`, `model.safetensors` and its tokenizer.

    Every leaf is written as the dense matrix that it stands for, but a `Gathered` one under the layout "compact".
    A directory that is already there is replaced whole, and stays as it is when anything fails.

    Args:
      params: parameters, layers stacked or as a tuple.
      cfg: the model; it must be expressible in its family of transformers.
      tokenizer: saved beside the weights.
      directory: where to.
      dtype: float32, bfloat16 or float16.
      layout: "masked" has the sizes of `cfg`, "uniform" those of its widest layer: what a layer lacks is filled with
        zeros. "compact" stores each layer as it is; `load` gives the same parameters back, layers as a tuple.
      notes: for `config.json`, under the key "jaxlab".

    Raises:
      InputError: unsupported `dtype`, `layout` or `cfg`, or a leaf has another shape than `cfg` says, holds NaN,
        or is `Gathered` under the layout "uniform".
      ResourceError: the disk is full, or the directory cannot be written.
    """
    dtype = checked_dtype(dtype)
    _check_layout(layout)
    layers = params["layers"]
    if isinstance(layers, tuple) and len(layers) != cfg.num_layers:
        raise InputError(f"params['layers'] has {len(layers)} layers; cfg.num_layers is {cfg.num_layers}")
    compact = layout == "compact"
    stored = widest(cfg) if layout == "uniform" else dataclasses.replace(cfg, layer_widths=None)
    config = compact_config(params, cfg) if compact else config_to_hf(stored)
    tensors = named_tensors(params, cfg, dtype, layout=layout, stored=stored)
    with atomic_directory(directory) as temporary:
        noted = {NOTES: dict(notes)} if notes else {}
        write_config_and_tokenizer(temporary, config | noted | {"dtype": dtype.name}, tokenizer)
        write_safetensors(temporary / WEIGHTS, tensors)
        if compact:
            write_sources(temporary, cfg.family)


def layout_note(layout: str) -> str:
    """One sentence on who opens a directory of this layout, to be shown to whoever exports one.

    Raises:
      InputError: an unknown layout.
    """
    _check_layout(layout)
    lacking = "stock transformers and vLLM do not accept per-layer widths"
    return {
        "masked": f"layout masked: zeros stand where weights were removed, since {lacking}.",
        "uniform": f"layout uniform: narrower layers are padded with zeros to the widest, since {lacking}.",
        "compact": f"layout compact: {lacking}, so that this opens with jaxlab, or with "
        "AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True), which runs the code in the directory.",
    }[layout]


def widest(cfg: ModelConfig) -> ModelConfig:
    """A model of equal layers into which every layer of `cfg` fits.

    The number of query heads must divide the hidden size where it did before: transformers checks it for some
    families, although `head_dim` is explicit; others have no explicit one and keep their heads.
    """
    widths = [cfg.widths(layer) for layer in range(cfg.num_layers)]
    group = cfg.num_heads // cfg.num_kv_heads
    needed = max(1, *(one.num_kv_heads for one in widths))
    candidates = range(needed, cfg.num_kv_heads) if cfg.family not in LAYER_NORM_FAMILIES else ()
    kv_heads = next((n for n in candidates if cfg.hidden_size % (n * group) == 0), cfg.num_kv_heads)
    return dataclasses.replace(
        cfg,
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        mlp_size=max(1, *(one.mlp_size for one in widths)),
        layer_widths=None,
    )


def named_tensors(
    params: dict[str, Any], cfg: ModelConfig, dtype: Any, *, layout: str, stored: ModelConfig
) -> dict[str, np.ndarray]:
    """All parameters as numpy arrays under their Hugging Face names; a tied head is left out.

    Args:
      params: the model.
      cfg: its configuration.
      dtype: of the arrays.
      layout: see `save_hf`.
      stored: the sizes to which matrices are padded, unless the layout is "compact".

    Raises:
      InputError: a leaf has another shape than `cfg` says, or holds NaN or infinity (also after rounding to
        `dtype`), or cannot be had in this layout.
    """
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {}  # of a tensor that holds several leaves

    def check_shape(tensor: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise InputError(f"{tensor} has shape {list(found)}, but cfg asks for {list(shape)}")

    def add(name: str, layer: int | None, leaf: Any, shape: tuple[int, ...], room: tuple[int, ...]) -> None:
        tensor = tensor_name(cfg, name, layer)
        if isinstance(leaf, Gathered) and layout == "uniform":
            raise InputError(
                f"{tensor} has rows and columns left that do not line up with those of other matrices, which layout "
                "'uniform' cannot express: use 'compact', or 'masked'"
            )
        if isinstance(leaf, Gathered) and layout == "compact":
            check_shape(tensor, (leaf.size, leaf.width), shape)
            tensors[tensor] = finite_array(tensor, leaf.weight, dtype)
            tensors.update(index_buffers(tensor, leaf))
            return
        array = finite_array(tensor, leaf, dtype)
        check_shape(tensor, array.shape, shape)
        lacking = [(0, most - size) for most, size in zip(room, shape, strict=True)]
        parts.setdefault(tensor, []).append(array if room == shape else np.pad(array, lacking))
        tensors[tensor] = make_tensor(cfg, name, layer, parts[tensor])

    for name, shape in top_shapes(cfg).items():
        add(name, None, params[name], shape, shape)
    layers = params["layers"]
    for index in range(cfg.num_layers):
        one = (
            layers[index]
            if isinstance(layers, tuple)
            else jax.tree.map(lambda leaf, i=index: leaf[i], layers)
        )
        shapes = layer_shapes(cfg, index)
        room = shapes if layout == "compact" else layer_shapes(stored)
        for name, shape in shapes.items():
            add(name, index, one[name], shape, room[name])
    return tensors


def finite_array(tensor: str, leaf: Any, dtype: Any) -> np.ndarray:
    """The matrix that a leaf stands for, rounded to `dtype`.

    Raises:
      InputError: it holds NaN or infinity, `tensor` says where.
    """
    with np.errstate(over="ignore"):  # said below, with the tensor's name
        array = np.asarray(dense(leaf)).astype(dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{tensor} holds NaN or infinity in {dtype}; nothing was saved")
    return np.ascontiguousarray(array)


def checked_dtype(dtype: Any) -> Any:
    """One of `DTYPES`.

    Raises:
      InputError: it is another one.
    """
    dtype = jnp.dtype(dtype)
    if dtype.name not in DTYPES:
        raise InputError(f"dtype is {dtype.name}; it must be one of {', '.join(DTYPES)}")
    return dtype


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


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
