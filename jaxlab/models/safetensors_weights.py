"""Parameters from the safetensors files of a Hugging Face directory."""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxlab.errors import InputError
from jaxlab.models.assembly import Read, ReadPart, assemble_on_mesh, assemble_params
from jaxlab.models.config import ModelConfig
from jaxlab.models.tensor_layouts import Part, layout_of, stored_shape, take_leaf, take_part, tensor_names
from jaxlab.models.tensor_layouts import tensor_name as tensor_name  # looked for here by those who read files

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


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
        read = stored.reader(cfg, prefix=stored.prefix(cfg))
        return assemble_params(cfg, read, source=str(directory), dtype=dtype)


def params_on_mesh(
    directory: Path, cfg: ModelConfig, mesh: Mesh, *, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """`params_from_safetensors`, each leaf where `model_shardings` says, of which each process reads only its part.

    Args:
      directory: see `params_from_safetensors`; every process must see it.
      cfg: the model.
      mesh: devices of one or more processes.
      dtype: of the returned arrays.

    Raises:
      InputError: as `params_from_safetensors`, or a size that the mesh cannot share out.
    """
    with stored_tensors(directory) as stored:
        read = stored.part_reader(cfg, prefix=stored.prefix(cfg))
        return assemble_on_mesh(cfg, read, mesh, source=str(directory), dtype=dtype)


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
        return self.part(tensor, shape, (slice(None),) * len(shape))

    def part(self, tensor: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor of this shape; no more of the file is read.

        Raises:
          InputError: it is missing, or has another shape.
        """
        file = self.file_of(tensor)
        stored = self._opened[file].get_slice(tensor)
        found = tuple(stored.get_shape())
        if found != shape:
            raise InputError(
                f"{file}: tensor {tensor!r} has shape {list(found)}, but config.json asks for {list(shape)}"
            )
        if 0 in found:  # which the library cannot slice
            return self._opened[file].get_tensor(tensor)[index]
        return stored[index]

    def file_of(self, tensor: str) -> Path:
        """The file that holds a tensor.

        Raises:
          InputError: none does.
        """
        if tensor not in self._file_of:
            files = ", ".join(file.name for file in self._opened)
            raise InputError(f"{self.directory}: tensor {tensor!r} is missing from {files}")
        return self._file_of[tensor]

    def reader(self, cfg: ModelConfig, *, prefix: str | None = None) -> Read:
        """Reads the leaves of a model by their names here; `prefix` stands before their names there."""

        def read(name: str, layer: int | None, out: np.ndarray) -> str:
            tensor = self._known(tensor_names(cfg, name, layer, prefix=prefix))
            stored = self.get(tensor, stored_shape(cfg, name, layer, out.shape))
            out[...] = take_leaf(cfg, name, layer, stored)
            return tensor

        return read

    def part_reader(self, cfg: ModelConfig, *, prefix: str | None = None) -> ReadPart:
        """`reader` of parts of leaves."""

        def read(name: str, layer: int | None, shape: tuple[int, ...], part: Part, out: np.ndarray) -> str:
            tensor = self._known(tensor_names(cfg, name, layer, prefix=prefix))
            whole = stored_shape(cfg, name, layer, shape)
            get = functools.partial(self.part, tensor, whole)
            out[...] = take_part(cfg, name, layer, shape, part, get)
            return tensor

        return read

    def _known(self, names: list[str]) -> str:
        """The one of these names that is stored, or the first."""
        return next((name for name in names if name in self._file_of), names[0])

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._file_of

    def prefix(self, cfg: ModelConfig) -> str:
        """What stands before the name of the embedding: "model.", or longer inside a model that also sees images, or
        nothing where the model was saved without its head.
        """
        embed = layout_of(cfg).top["embed"]
        found = [name for name in self._file_of if f".{name}".endswith(f".{embed}")]
        if len(found) != 1:
            raise InputError(
                f"{self.directory}: expected one tensor named ...{embed}, found {found or 'none'}"
            )
        return found[0].removesuffix(embed)


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
