"""The file format of quantized models: a Hugging Face directory whose safetensors hold packed codes.

A quantized matrix X of `model.safetensors` is `X.pvq_words` (uint32), `X.pvq_scale` (float16), `X.pvq_levels`
(float32) and, where rotated, `X.pvq_signs` (bits), or, for scalar codes, `X.scalar_words`, `X.scalar_scale`,
`X.scalar_minimum` and `X.scalar_signs`. Where only a part of X is left, `X.kept_rows` and `X.kept_columns` say which
(bits), and the others are those of the part. The file's metadata says `format=jaxlab-pvq`, `version=1`,
`index_order=fischer-1`, and holds a JSON map from X to the code's parameters. Everything else has its usual
name. Layers of different widths stand in `config.json` as `quantization_config.layer_widths`, a pair of hidden units
and key-value heads a layer.
"""

import dataclasses
import json
import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.files import atomic_directory
from jaxlab.models.config import ModelConfig
from jaxlab.models.gathered import Gathered, checked_indices
from jaxlab.models.huggingface import NOTES, config_to_hf
from jaxlab.models.linear import dense
from jaxlab.models.loading import Model, config_and_tokenizer, register_format
from jaxlab.models.safetensors_weights import WEIGHTS, open_safetensors, tensor_name
from jaxlab.models.saving import write_config_and_tokenizer, write_safetensors
from jaxlab.models.stacking import unstack_layers
from jaxlab.models.validation import layer_shapes
from jaxlab.quantization.expansion import expand, is_quantized, stack_where_alike
from jaxlab.quantization.pvq import PVQTensor
from jaxlab.quantization.scalar import ScalarSpec, ScalarTensor
from jaxlab.quantization.spec import PVQSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT, VERSION, INDEX_ORDER = "jaxlab-pvq", "1", "fischer-1"
_SPECS: dict[str, type] = {"pvq": PVQSpec, "scalar": ScalarSpec}
_FIELDS = {"pvq": ("words", "scale", "levels", "signs"), "scalar": ("words", "scale", "minimum", "signs")}
_OPTIONAL = ("minimum", "signs")
_DTYPES = {
    "words": np.uint32,
    "scale": np.float16,
    "minimum": np.float16,
    "levels": np.float32,
    "signs": np.uint8,
}
_KEPT = ("kept_rows", "kept_columns")


class _Description(NamedTuple):
    """What the metadata says about one quantized matrix."""

    kind: str
    spec: Any
    rows: int
    columns: int
    rotated: bool
    full: tuple[int, int] | None
    """Rows and columns of the matrix of which this is a part; None where it is all of it."""


def save_quantized(
    params: dict[str, Any],
    cfg: ModelConfig,
    tokenizer: "PreTrainedTokenizerFast",
    directory: str | os.PathLike[str],
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model whose matrices are `PVQTensor`s or `ScalarTensor`s; the rest is stored in float32.

    Args:
      params: any of the matrices, the embedding and the head may be quantized, or `Gathered` with quantized weights.
      cfg: the model.
      tokenizer: saved beside it.
      directory: replaced whole, and left as it is if anything fails.
      notes: for `config.json`, as in `save_hf`.

    Raises:
      InputError: an array is not finite, or a leaf has another shape than `cfg` says.
      ResourceError: the disk is full.
    """
    leaves = _named_leaves(params, cfg)
    bits = block_bits({name: leaf for name, (layer, leaf) in leaves.items() if layer is not None})
    quantization = {"quant_method": "pvq", "bits": round(bits, 4), "version": VERSION}
    if cfg.layer_widths is not None:
        quantization["layer_widths"] = [list(one) for one in cfg.layer_widths]
    config = config_to_hf(dataclasses.replace(cfg, layer_widths=None)) | (
        {NOTES: dict(notes)} if notes else {}
    )
    config |= {"dtype": "float32", "quantization_config": quantization}
    with atomic_directory(directory) as temporary:
        write_config_and_tokenizer(temporary, config, tokenizer)
        write_tensors(temporary / WEIGHTS, {name: leaf for name, (_, leaf) in leaves.items()})


def write_tensors(
    file: str | os.PathLike[str], leaves: Mapping[str, Any], *, notes: Mapping[str, str] | None = None
) -> None:
    """Writes quantized matrices and arrays (in float32) to one safetensors file of our format.

    Args:
      file: where to; not atomic, so give the temporary path of `jaxlab.files.atomic_file`.
      leaves: by name; those of quantized matrices end in ".weight".
      notes: further strings for the file's metadata.

    Raises:
      InputError: an array is not finite.
      ResourceError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        stem = name.removesuffix(".weight")
        gathered = leaf if isinstance(leaf, Gathered) and is_quantized(leaf.weight) else None
        if gathered is not None:
            leaf = gathered.weight
            kept = ((gathered.rows, gathered.size), (gathered.columns, gathered.width))
            for field, (indices, size) in zip(_KEPT, kept, strict=True):
                there = np.zeros(size, bool)
                there[checked_indices(indices, size)] = True
                arrays[f"{stem}.{field}"] = np.packbits(there, bitorder="little")
        if is_quantized(leaf):
            kind = "pvq" if isinstance(leaf, PVQTensor) else "scalar"
            described[stem] = {"kind": kind, "shape": list(leaf.shape), **dataclasses.asdict(leaf.spec)}
            if gathered is not None:
                described[stem]["full_shape"] = [gathered.size, gathered.width]
            described[stem]["rotation"] = "none" if leaf.signs is None else "hadamard"
            arrays |= {f"{stem}.{kind}_{field}": value for field, value in _arrays_of(leaf, kind).items()}
        else:
            arrays[name] = np.asarray(dense(leaf), np.float32)
            if not np.isfinite(arrays[name]).all():
                raise InputError(f"{name} holds NaN or infinity; nothing was saved")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "index_order": INDEX_ORDER,
        "tensors": json.dumps(described),
    }
    write_safetensors(Path(file), arrays, metadata={**(notes or {}), **metadata})


def load_quantized(
    directory: str | os.PathLike[str], *, dtype: Any = jnp.float32, packed: bool = False
) -> Model:
    """Reads what `save_quantized` has written.

    Args:
      directory: the folder.
      dtype: of all dense arrays.
      packed: keep the matrices as `PVQTensor`s and `ScalarTensor`s, with layers as a tuple; otherwise they
        are
        expanded to dense arrays and the layers are stacked, unless they differ in width or matrices are `Gathered`.

    Raises:
      InputError: another format or version, sizes that do not fit the code, a damaged file.
    """
    directory = Path(directory)
    cfg, tokenizer = config_and_tokenizer(directory)
    tensors, _ = read_tensors(directory / WEIGHTS)
    expected = _expected(cfg)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise InputError(f"{directory / WEIGHTS}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    for tensor, (_, _, shape) in expected.items():
        found = _full_shape(tensors[tensor])
        if found != shape:
            raise InputError(
                f"{directory / WEIGHTS}: tensor {tensor!r} has shape {list(found)}, but config.json "
                f"asks for {list(shape)}"
            )
    if not packed:
        tensors = expand(tensors, dtype=dtype)
    params: dict[str, Any] = {}
    layers: list[dict[str, Any]] = [{} for _ in range(cfg.num_layers)]
    for tensor, (name, layer, _) in expected.items():
        leaf = tensors[tensor]
        whole = is_quantized(leaf) or isinstance(leaf, Gathered)
        (params if layer is None else layers[layer])[name] = leaf if whole else jnp.asarray(leaf, dtype)
    params["layers"] = tuple(layers)
    return Model(params if packed else stack_where_alike(params), cfg, tokenizer)


def read_tensors(file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors of a file of our format, and the notes in its metadata.

    Returns:
      Quantized matrices (`Gathered` where only a part is left) under the name of the matrix they stand for, other
      arrays under their own; and the metadata.

    Raises:
      InputError: not our format, an unknown version or index order, or sizes that do not fit the code.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file} is missing")
    with open_safetensors(file) as opened:
        metadata = opened.metadata() or {}
        described = _checked_metadata(file, metadata)
        stored = set(opened.keys())
        tensors = {
            f"{stem}.weight": _read_quantized(file, opened, stored, stem, description)
            for stem, description in described.items()
        }
        taken = {f"{stem}.{d.kind}_{field}" for stem, d in described.items() for field in _DTYPES}
        taken |= {f"{stem}.{field}" for stem in described for field in _KEPT}
        tensors |= {name: opened.get_tensor(name) for name in stored - taken}
    return tensors, metadata


def block_bits(leaves: Mapping[str, Any]) -> float:
    """Real bits a weight of the quantized matrices, or parts of matrices, among `leaves`."""
    weights = [leaf.weight if isinstance(leaf, Gathered) else leaf for leaf in leaves.values()]
    tensors = [leaf for leaf in weights if is_quantized(leaf)]
    return 8 * sum(t.nbytes for t in tensors) / max(sum(math.prod(t.shape) for t in tensors), 1)


def bits_on_disk(directory: str | os.PathLike[str]) -> float:
    """Bits a weight of the blocks' quantized matrices, from the bytes that the file holds for them.

    Codes, padding, scales, levels, signs, and which rows and columns are kept count; the embedding, the norms and the
    file's header do not. Weights are those that are coded.
    """
    file = Path(directory) / WEIGHTS
    stored_bytes = weights = 0
    with open_safetensors(file) as opened:
        for stem, description in _checked_metadata(file, opened.metadata() or {}).items():
            if ".layers." not in stem:
                continue
            weights += description.rows * description.columns
            arrays = {f"{stem}.{description.kind}_{field}": dtype for field, dtype in _DTYPES.items()}
            for name, dtype in (arrays | {f"{stem}.{field}": np.uint8 for field in _KEPT}).items():
                if name in opened.keys():
                    stored_bytes += math.prod(opened.get_slice(name).get_shape()) * np.dtype(dtype).itemsize
    return 8 * stored_bytes / max(weights, 1)


def _named_leaves(params: dict[str, Any], cfg: ModelConfig) -> dict[str, tuple[int | None, Any]]:
    layers = unstack_layers(params)["layers"]
    leaves: dict[str, tuple[int | None, Any]] = {}
    for tensor, (name, layer, shape) in _expected(cfg).items():
        leaf = params[name] if layer is None else layers[layer][name]
        found = _full_shape(leaf)
        if found != shape:
            raise InputError(f"{tensor} has shape {list(found)}, but cfg asks for {list(shape)}")
        leaves[tensor] = (layer, leaf)
    return leaves


def _expected(cfg: ModelConfig) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Leaf, layer (or None) and shape of every matrix and vector of a model, by its name in the file."""
    vocabulary = (cfg.vocab_size, cfg.hidden_size)
    top: dict[str, tuple[int, ...]] = {"embed": vocabulary, "final_norm": (cfg.hidden_size,)}
    if not cfg.tie_embeddings:
        top["head"] = vocabulary
    expected: dict[str, tuple[str, int | None, tuple[int, ...]]] = {
        tensor_name(cfg, name, None): (name, None, shape) for name, shape in top.items()
    }
    for layer in range(cfg.num_layers):
        for name, shape in layer_shapes(cfg, layer).items():
            expected[tensor_name(cfg, name, layer)] = (name, layer, shape)
    return expected


def _arrays_of(leaf: PVQTensor | ScalarTensor, kind: str) -> dict[str, np.ndarray]:
    arrays = {}
    for field in _FIELDS[kind]:
        value = getattr(leaf, field)
        if value is not None:
            value = np.asarray(value)
            arrays[field] = np.packbits(value, bitorder="little") if field == "signs" else value
    return arrays


def _checked_metadata(file: Path, metadata: dict[str, str]) -> dict[str, _Description]:
    for key, known in (("format", FORMAT), ("version", VERSION), ("index_order", INDEX_ORDER)):
        if metadata.get(key) != known:
            raise InputError(
                f"{file}: {key} is {metadata.get(key)!r}, this version of jaxlab reads {known!r}: "
                "the file is not a quantized model, or a newer jaxlab wrote it"
            )
    try:
        described = json.loads(metadata["tensors"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file}: the list of quantized tensors in the metadata is damaged ({error})"
        ) from error
    if not isinstance(described, dict):
        raise InputError(f"{file}: the list of quantized tensors in the metadata is damaged (not a map)")
    return {stem: _checked_description(file, stem, description) for stem, description in described.items()}


def _checked_description(file: Path, stem: str, description: Any) -> _Description:
    """What the metadata says about one quantized matrix."""
    try:
        kind = description["kind"]
        if kind not in _SPECS:
            raise InputError(f"kind is {kind!r}; known are {', '.join(_SPECS)}")
        spec = _SPECS[kind](**{f.name: description[f.name] for f in dataclasses.fields(_SPECS[kind])})
        rows, columns = (operator.index(size) for size in description["shape"])
        if min(rows, columns) < 1:
            raise InputError(f"shape is {description['shape']}; sizes are at least 1")
        rotated = {"none": False, "hadamard": True}[description["rotation"]]
        full = description.get("full_shape")
        if full is not None:
            full = (operator.index(full[0]), operator.index(full[1]))
            if full[0] < rows or full[1] < columns:
                raise InputError(f"full_shape is {list(full)}; the part that is kept has {[rows, columns]}")
        if kind == "scalar":
            spec.groups(columns)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: the description of {stem} in the metadata is damaged: {error}") from error
    return _Description(kind, spec, rows, columns, rotated, full)


def _read_quantized(
    file: Path, opened: Any, stored: set[str], stem: str, description: _Description
) -> PVQTensor | ScalarTensor | Gathered:
    kind, spec, rows, columns, rotated, full = description
    expected: dict[str, tuple[int, ...]] = {}
    if kind == "pvq":
        padded = columns + -columns % spec.n
        expected = {"words": (rows, spec.row_words(padded)), "scale": (rows,), "levels": (2**spec.gain_bits,)}
    else:
        expected = {"words": (rows, spec.row_words(columns)), "scale": (rows, spec.groups(columns))}
        if spec.grid == "minmax":
            expected["minimum"] = expected["scale"]
    if rotated:
        expected["signs"] = (-(-columns // 8),)
    arrays: dict[str, Any] = {field: None for field in _OPTIONAL if field in _FIELDS[kind]}
    for field, shape in expected.items():
        name = f"{stem}.{kind}_{field}"
        if name not in stored:
            raise InputError(f"{file}: tensor {name!r} is missing")
        array = opened.get_tensor(name)
        if array.shape != shape or array.dtype != _DTYPES[field]:
            raise InputError(
                f"{file}: {name} is {array.dtype}{list(array.shape)}, but the code {spec} of a matrix "
                f"{[rows, columns]} needs {np.dtype(_DTYPES[field])}{list(shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{file}: {name} holds values that are not finite: the file is damaged")
        arrays[field] = array
    if rotated:
        arrays["signs"] = np.unpackbits(arrays["signs"], count=columns, bitorder="little").astype(bool)
    of_kind = PVQTensor if kind == "pvq" else ScalarTensor
    tensor = jax.tree.map(jnp.asarray, of_kind(**arrays, spec=spec, columns=columns))
    if full is None:
        return tensor
    kept = []
    for field, size, count in zip(_KEPT, full, (rows, columns), strict=True):
        name = f"{stem}.{field}"
        bits = opened.get_tensor(name) if name in stored else None
        if bits is None or bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
            what = "missing" if bits is None else f"{bits.dtype}{list(bits.shape)}"
            raise InputError(f"{file}: {name} is {what}; {size} bits, uint8{[-(-size // 8)]}, are needed")
        indices = np.flatnonzero(np.unpackbits(bits, count=size, bitorder="little")).astype(np.int32)
        if len(indices) != count:
            raise InputError(f"{file}: {name} keeps {len(indices)} of {size}, but the code has {count}")
        kept.append(jnp.asarray(indices))
    return Gathered(tensor, kept[0], kept[1], full[0], full[1])


def _full_shape(leaf: Any) -> tuple[int, ...]:
    return (leaf.size, leaf.width) if isinstance(leaf, Gathered) else tuple(leaf.shape)


register_format("pvq", lambda directory, dtype: load_quantized(directory, dtype=dtype))
