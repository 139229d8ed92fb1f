"""One way to a model from wherever it is: a package, a directory, a GGUF file, the hub."""

import importlib
import json
import math
import operator
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlab.errors import InputError
from jaxlab.models.compact import INDICES, config_from_compact, is_compact, params_from_compact
from jaxlab.models.config import LayerWidths, ModelConfig
from jaxlab.models.gguf import read_gguf
from jaxlab.models.gguf_weights import config_from_gguf, params_from_gguf
from jaxlab.models.hub import snapshot
from jaxlab.models.huggingface import NOTES, config_from_hf
from jaxlab.models.packages import PACKAGES, is_available, model_path
from jaxlab.models.placement import place
from jaxlab.models.safetensors_weights import (
    open_safetensors,
    params_from_safetensors,
    params_on_mesh,
    weight_files,
)
from jaxlab.models.tokenizers import tokenizer_from_directory, tokenizer_from_gguf
from jaxlab.models.validation import layer_shapes, top_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG, GENERATION = "config.json", "generation_config.json"


class Model(NamedTuple):
    """A language model: parameters (pytree of jax arrays), static configuration, tokenizer."""

    params: dict[str, Any]
    cfg: ModelConfig
    tokenizer: "PreTrainedTokenizerFast"


Loader = Callable[[Path, Any], Model]

_LOADERS: dict[str, Loader] = {}
# Who registers a quantization method, imported when a directory asks for it.
_FORMAT_MODULES = {"pvq": "jaxlab.quantization.format"}


def load(
    source: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    packed: bool = False,
    mesh: Mesh | None = None,
) -> Model:
    """A pretrained language model.

    Args:
      source: `pkg:NAME` (weights inside a Python package, see `known_models`), a Hugging Face directory, a
        `.gguf`
        file, `hf:ORG/NAME[@REVISION]`, or a directory that this library quantized.
      dtype: of the parameters; weights are dequantized to it.
      packed: keep the matrices of a GGUF file as they are stored, in 4 or 8 bits (`PackedMatrix`), where their
        format allows it; decoding then reads far fewer bytes a token.
      mesh: put the parameters on these devices, of one or more processes, as `jaxlab.parallel.model_rules` says (its
        axis `model`; all whole without one). Of a Hugging Face directory that is neither quantized nor compact a
        process reads its own devices' part alone; anything else it reads whole first.

    Returns:
      `Model(params, cfg, tokenizer)`.

    Raises:
      InputError: the source is none of these, or cannot be used as it is, is no GGUF file and to stay packed, or the
        mesh cannot share a matrix out.
      ResourceError: a package or a file cannot be fetched, or has the wrong checksum.
    """
    path = resolve(source)
    if path.is_dir() and packed:
        raise InputError(f"{path}: packed is True; it must be False but for GGUF files")
    if mesh is not None and path.is_dir() and _is_stock(read_json(path / CONFIG)):
        weight_files(path)
        cfg, tokenizer = config_and_tokenizer(path)
        return Model(params_on_mesh(path, cfg, mesh, dtype=dtype), cfg, tokenizer)
    model = _load_directory(path, dtype) if path.is_dir() else _load_gguf(path, dtype, packed)
    return model if mesh is None else model._replace(params=place(model.params, model.cfg, mesh))


def _is_stock(config: dict[str, Any]) -> bool:
    """Whether weights are stored as transformers stores them."""
    return not config.get("quantization_config") and not is_compact(config)


def resolve(source: str | os.PathLike[str]) -> Path:
    """Local path of a model's directory or GGUF file, fetched if need be; otherwise as `load`."""
    name = os.fspath(source)
    kind, _, rest = name.partition(":")
    if kind == "pkg":
        return model_path(rest)
    if kind == "hf":
        return snapshot(rest)
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(f"pkg:{known}" for known in PACKAGES)
        raise InputError(
            f"model {name!r} is not known; accepted are {known}, a Hugging Face directory, a .gguf file,"
            " hf:ORG/NAME"
        )
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: give the directory that holds it, with its {CONFIG} and tokenizer")
    return path


def register_format(quant_method: str, loader: Loader) -> None:
    """Lets `load` open directories whose `config.json` has `quantization_config.quant_method ==
    quant_method`.

    Args:
      quant_method: name of the method.
      loader: `loader(directory, dtype) -> Model`.
    """
    _LOADERS[quant_method] = loader


def config_and_tokenizer(directory: Path) -> tuple[ModelConfig, "PreTrainedTokenizerFast"]:
    """Configuration and tokenizer of a Hugging Face directory, whatever its weights are stored as.

    Raises:
      InputError: a file is missing or damaged, or the model is not supported.
    """
    cfg = _read_config(directory)
    tokenizer = tokenizer_from_directory(directory, vocab_size=cfg.vocab_size)
    return replace(
        cfg, add_bos=cfg.bos_id is not None and tokenizer("")["input_ids"][:1] == [cfg.bos_id]
    ), tokenizer


class KnownModel(NamedTuple):
    """A model that ships inside a package: `available` when nothing needs to be fetched."""

    source: str
    summary: str
    licence: str
    megabytes: int
    available: bool


def known_models() -> list[KnownModel]:
    """The models that `load` knows by name."""
    return [
        KnownModel(f"pkg:{name}", package.summary, package.licence, package.megabytes, is_available(name))
        for name, package in PACKAGES.items()
    ]


class TensorDescription(NamedTuple):
    """A tensor as it is stored."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """What a model is and how it is stored; `parameters` counts the model's own, not the stored numbers."""

    source: str
    path: Path
    file_format: str
    file_bytes: int
    parameters: int
    cfg: ModelConfig
    tensors: tuple[TensorDescription, ...]

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each stored dtype, most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())


def describe(source: str | os.PathLike[str]) -> Description:
    """Describes a model without loading its weights; arguments and errors as for `load`."""
    path = resolve(source)
    if path.is_dir():
        files = weight_files(path)
        config, cfg, file_format = read_json(path / CONFIG), _read_config(path), "safetensors"
        parameters = parameter_count(cfg)
        tensors = [tensor for file in files for tensor in _stored(file)]
        method = (config.get("quantization_config") or {}).get("quant_method")
        if method:
            file_format += f", {method}"
        if is_compact(config):
            file_format += ", compact"
            parameters = sum(math.prod(one.shape) for one in tensors if not one.name.endswith(INDICES))
    else:
        file, files = read_gguf(path), [path]
        cfg, file_format = config_from_gguf(file), "GGUF"
        parameters = parameter_count(cfg)
        tensors = [TensorDescription(info.name, info.shape, info.kind) for info in file.tensors.values()]
    return Description(
        source=os.fspath(source),
        path=path,
        file_format=file_format,
        file_bytes=sum(file.stat().st_size for file in files),
        parameters=parameters,
        cfg=cfg,
        tensors=tuple(tensors),
    )


def parameter_count(cfg: ModelConfig) -> int:
    """Number of parameters of a dense model, a tied head counted once."""
    shapes = [*top_shapes(cfg).values()]
    for layer in range(cfg.num_layers):
        shapes += layer_shapes(cfg, layer).values()
    return sum(math.prod(shape) for shape in shapes)


def _load_gguf(path: Path, dtype: Any, packed: bool) -> Model:
    file = read_gguf(path)
    cfg = config_from_gguf(file)
    tokenizer = tokenizer_from_gguf(file.metadata, source=str(path))
    if len(tokenizer) > cfg.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, but the model's embedding has"
            f" {cfg.vocab_size} rows"
        )
    return Model(params_from_gguf(file, cfg, dtype=dtype, packed=packed), cfg, tokenizer)


def _load_directory(directory: Path, dtype: Any) -> Model:
    config = read_json(directory / CONFIG)
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        return _loader(method, directory)(directory, dtype)
    weight_files(directory)  # the most basic thing to miss, so it is said first
    cfg, tokenizer = config_and_tokenizer(directory)
    if is_compact(config):
        return Model(params_from_compact(directory, config, cfg, dtype=dtype), cfg, tokenizer)
    return Model(params_from_safetensors(directory, cfg, dtype=dtype), cfg, tokenizer)


def _loader(method: str, directory: Path) -> Loader:
    if method not in _LOADERS and method in _FORMAT_MODULES:
        importlib.import_module(_FORMAT_MODULES[method])
    if method not in _LOADERS:
        supported = ", ".join(sorted({*_LOADERS, *_FORMAT_MODULES}))
        raise InputError(
            f"{directory / CONFIG}: quantization method {method!r} is not supported;"
            f" supported are {supported}, and weights that are not quantized"
        )
    return _LOADERS[method]


def _read_config(directory: Path) -> ModelConfig:
    generation = read_json(directory / GENERATION) if (directory / GENERATION).is_file() else None
    config = read_json(directory / CONFIG)
    read = config_from_compact if is_compact(config) else config_from_hf
    cfg = read(config, source=str(directory / CONFIG), generation=generation)
    widths = (config.get("quantization_config") or {}).get("layer_widths")  # of a pruned and quantized model
    if widths is None:
        return cfg
    try:
        return replace(cfg, layer_widths=tuple(LayerWidths(*map(operator.index, pair)) for pair in widths))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{directory / CONFIG}: quantization_config.layer_widths is damaged: {error}"
        ) from error


def pruned_from(source: str | os.PathLike[str]) -> str | None:
    """The model from which a directory was pruned, as `load` takes it; None where that is not on record.

    Args:
      source: as for `load`.
    """
    path = resolve(source)
    notes = read_json(path / CONFIG).get(NOTES) if path.is_dir() else None
    return notes.get("pruned_from") if isinstance(notes, dict) else None


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
      InputError: it is missing or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file}: is missing; a model directory needs it") from error
    except ValueError as error:
        raise InputError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _stored(file: Path) -> list[TensorDescription]:
    with open_safetensors(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        return [TensorDescription(name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]
