"""The compact layout of a Hugging Face directory: every matrix is stored with the widths that pruning left it.

`config.json` has a list `layer_widths`, and the directory brings the modelling code with which `transformers` opens
it (`trust_remote_code=True`). A `Gathered` matrix is stored with the buffers `rows` and `cols`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.models.assembly import read_leaf
from jaxlab.models.config import LayerWidths, ModelConfig
from jaxlab.models.gathered import Gathered, checked_indices
from jaxlab.models.huggingface import config_from_hf, config_to_hf
from jaxlab.models.linear import LINEARS
from jaxlab.models.safetensors_weights import stored_tensors
from jaxlab.models.tensor_layouts import tensor_name
from jaxlab.models.validation import layer_shapes, top_shapes

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Families that the bundled modelling code covers, and the prefix of their classes in transformers."""

ROWS, COLUMNS = ".rows", ".cols"
INDICES = (ROWS, COLUMNS)
"""Endings of the buffers' names, which stand in place of `.weight`."""

_PREFIX = "jaxlab_pruned_"
_SOURCES = Path(__file__).parent / "compact_hf"


def is_compact(config: Mapping[str, Any]) -> bool:
    """Whether the contents of a `config.json` are those of a compact directory."""
    return str(config.get("model_type")).startswith(_PREFIX)


def compact_config(params: dict[str, Any], cfg: ModelConfig) -> dict[str, Any]:
    """Contents of the `config.json`.

    Raises:
      InputError: a family that is not in `FAMILIES`; see also `config_to_hf`.
    """
    if cfg.family not in FAMILIES:
        raise InputError(
            f"layout 'compact' is for {', '.join(FAMILIES)}; this is a {cfg.family}: use 'masked'"
        )
    layers = params["layers"]
    module, cls = f"{_PREFIX}{cfg.family}", f"JaxlabPruned{FAMILIES[cfg.family]}"
    return config_to_hf(dataclasses.replace(cfg, layer_widths=None)) | {
        "architectures": [f"{cls}ForCausalLM"],
        "model_type": module,
        "auto_map": {
            "AutoConfig": f"configuration_{module}.{cls}Config",
            "AutoModelForCausalLM": f"modeling_{module}.{cls}ForCausalLM",
        },
        "layer_widths": [
            _entry(layers[layer] if isinstance(layers, tuple) else layers, cfg, layer)
            for layer in range(cfg.num_layers)
        ],
    }


def write_sources(directory: Path, family: str) -> None:
    """The modelling code that `transformers` runs; it is Llama's with the names of another family."""
    for source in _SOURCES.glob("*.py.txt"):
        text = source.read_text(encoding="utf-8")
        for llama, name in (("Llama", FAMILIES[family]), ("llama", family)):
            text = text.replace(llama, name)
        name = source.name.removesuffix(".txt").replace("llama", family)
        (directory / name).write_text(text, encoding="utf-8")


def index_buffers(tensor: str, leaf: Gathered) -> dict[str, np.ndarray]:
    """The buffers that stand beside the weight `tensor` of a gathered matrix.

    Raises:
      InputError: indices that are not increasing or out of range, or not as many as the weight has.
    """
    buffers = {}
    ends = ((ROWS, leaf.rows, leaf.size), (COLUMNS, leaf.columns, leaf.width))
    for axis, (ending, values, length) in enumerate(ends):
        name = tensor.removesuffix(".weight") + ending
        try:
            buffers[name] = checked_indices(values, length).astype(np.int64)
        except InputError as error:
            raise InputError(f"{name} {error}") from error
        if buffers[name].shape != (leaf.weight.shape[axis],):
            raise InputError(
                f"{name} has shape {list(buffers[name].shape)}, but the weight has shape {list(leaf.weight.shape)}"
            )
    return buffers


def config_from_compact(
    config: Mapping[str, Any], *, source: str, generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The model that the `config.json` of a compact directory describes; arguments as for `config_from_hf`.

    Raises:
      InputError: as `config_from_hf`, or `layer_widths` is damaged.
    """
    family = str(config["model_type"]).removeprefix(_PREFIX)
    if family not in FAMILIES:
        known = ", ".join(_PREFIX + name for name in FAMILIES)
        raise InputError(
            f"{source}: model_type {config['model_type']!r} is not supported; supported are {known}"
        )
    cfg = config_from_hf({**config, "model_type": family}, source=source, generation=generation)
    entries = _entries(config, source)
    try:
        widths = tuple(LayerWidths(one["intermediate_size"], one["num_key_value_heads"]) for one in entries)
        cfg = dataclasses.replace(cfg, layer_widths=widths)
    except InputError as error:
        raise InputError(f"{source}: layer_widths: {error}") from error
    for layer, entry in enumerate(entries):
        shapes = layer_shapes(cfg, layer)
        for name in LINEARS:
            (n_in, n_out), (full_out, full_in) = entry[_hf_name(name)], shapes[name]
            fits = n_in <= full_in and n_out <= full_out
            if not fits or (_hf_name(name) not in entry["gathered"] and (n_out, n_in) != shapes[name]):
                raise InputError(
                    f"{source}: layer_widths[{layer}][{_hf_name(name)!r}] is {[n_in, n_out]}; the heads and hidden "
                    f"units of the layer make it {[full_in, full_out]}, or less where it is gathered"
                )
    return cfg


def params_from_compact(
    directory: Path, config: Mapping[str, Any], cfg: ModelConfig, *, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """The parameters of a compact directory, layers as a tuple, gathered matrices as `Gathered`.

    Args:
      directory: holds the safetensors.
      config: contents of its `config.json`.
      cfg: the same as `config_from_compact` reads it.
      dtype: of the returned weights.

    Raises:
      InputError: a tensor or a buffer is missing, has another shape than `config` says, holds NaN, or an index
        that is out of range.
    """
    source = str(directory)
    entries = _entries(config, source)
    with stored_tensors(directory) as stored:
        read = stored.reader(cfg)

        def indices(stem: str, ending: str, count: int, length: int) -> Any:
            values = stored.get(stem + ending, (count,))
            try:
                return jnp.asarray(checked_indices(values, length), jnp.int32)
            except InputError as error:
                raise InputError(
                    f"{stored.file_of(stem + ending)}: tensor {stem + ending!r} {error}"
                ) from error

        def leaf(name: str, layer: int, shape: tuple[int, ...]) -> Any:
            if name not in LINEARS or _hf_name(name) not in entries[layer]["gathered"]:
                return read_leaf(read, name, layer, shape, source=source, dtype=dtype)
            n_in, n_out = entries[layer][_hf_name(name)]
            stem = tensor_name(cfg, name, layer).removesuffix(".weight")
            return Gathered(
                read_leaf(read, name, layer, (n_out, n_in), source=source, dtype=dtype),
                indices(stem, ROWS, n_out, shape[0]),
                indices(stem, COLUMNS, n_in, shape[1]),
                *shape,
            )

        top = {
            name: read_leaf(read, name, None, shape, source=source, dtype=dtype)
            for name, shape in top_shapes(cfg).items()
        }
        layers = tuple(
            {name: leaf(name, layer, shape) for name, shape in layer_shapes(cfg, layer).items()}
            for layer in range(cfg.num_layers)
        )
    return top | {"layers": layers}


def _entry(leaves: dict[str, Any], cfg: ModelConfig, layer: int) -> dict[str, Any]:
    """What `layer_widths` says about one layer."""
    shapes, gathered = layer_shapes(cfg, layer), {}
    for name in LINEARS:
        if isinstance(leaves[name], Gathered):
            gathered[name] = leaves[name].weight.shape[-2:]
    mlp_size, kv_heads = cfg.widths(layer)
    return {
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp_size,
        "gathered": [_hf_name(name) for name in gathered],
        **{_hf_name(name): list(reversed(gathered.get(name, shapes[name]))) for name in LINEARS},
    }


def _entries(config: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """`layer_widths` of a `config.json`, with all its fields of the right types."""
    entries = config.get("layer_widths")
    if not isinstance(entries, list):
        raise InputError(f"{source}: layer_widths is {entries!r}, expected a list of one entry a layer")

    def is_size(value: Any) -> bool:
        return isinstance(value, int) and value >= 0

    for layer, entry in enumerate(entries):
        pairs = [entry.get(_hf_name(name)) for name in LINEARS] if isinstance(entry, dict) else [None]
        if not (
            all(isinstance(pair, list) and len(pair) == 2 and all(map(is_size, pair)) for pair in pairs)
            and is_size(entry.get("num_key_value_heads"))
            and is_size(entry.get("intermediate_size"))
            and isinstance(entry.get("gathered"), list)
        ):
            raise InputError(
                f"{source}: layer_widths[{layer}] is {entry!r}, expected num_key_value_heads, intermediate_size, "
                f"a list gathered, and [inputs, outputs] of {', '.join(map(_hf_name, LINEARS))}"
            )
    return entries


def _hf_name(name: str) -> str:
    return f"{name}_proj"
