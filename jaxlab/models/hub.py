"""Models named `hf:ORG/NAME`, through `huggingface_hub`: from its cache if there, else from the hub."""

import json
import re
from pathlib import Path
from typing import cast

from jaxlab.errors import InputError, ResourceError

# Only what loading reads: no pickled weights, no other frameworks' copies.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]
_TIMEOUT_S = 15
_NEEDED = ("config.json", "tokenizer.json")
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def snapshot(name: str) -> Path:
    """Directory of a model of the hub, downloaded only if it is not whole in the local cache.

    Args:
      name: `ORG/NAME` or `ORG/NAME@REVISION` (branch, tag or commit).

    Raises:
      InputError: the name has another form.
      ResourceError: huggingface_hub is missing, the hub cannot be reached and nothing is cached, or it has no
        such
        model for this user.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"hf:{name} is not of the form hf:ORG/NAME or hf:ORG/NAME@REVISION")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ResourceError("huggingface_hub is not installed; run: pip install 'jaxlab[models]'") from error
    repository, revision = match["repository"], match["revision"]

    def directory(*, local_files_only: bool) -> Path:
        path = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=_PATTERNS, local_files_only=local_files_only
        )
        return Path(path)

    try:
        cached = directory(local_files_only=True)
        if _is_whole(cached):
            return cached
    except errors.LocalEntryNotFoundError:
        pass  # nothing cached
    except errors.HFValidationError as error:
        raise InputError(f"hf:{name}: {error}") from error
    # Versions of the client differ in the transport library, whose errors are the base of the client's own.
    transport_error = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])
    try:
        # Asked first, since without network the download quietly returns what an interrupted one left.
        huggingface_hub.model_info(repository, revision=revision, timeout=_TIMEOUT_S)
        return directory(local_files_only=False)
    except errors.GatedRepoError as error:
        raise ResourceError(
            f"hf:{name}: access must be granted on its page, then run: hf auth login"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ResourceError(f"hf:{name}: the hub has no such model or revision, or it is private") from error
    except (transport_error, OSError) as error:
        raise ResourceError(
            f"hf:{name}: is not in the local cache and the hub cannot be reached (no network?):"
            f" {type(error).__name__}"
        ) from error


def _is_whole(directory: Path) -> bool:
    """Whether an earlier download finished; the hub's cache does not record that."""
    weights = any(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weights = all((directory / file).is_file() for file in _shards(index))
    return weights and all((directory / file).is_file() for file in _NEEDED)


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
