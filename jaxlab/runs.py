"""The folder that every run writes: what was asked, what happened step by step, what came out.

A run folder holds `config.json`, `metrics.jsonl` (a line a step), `summary.json` (the final figures; there
only once the run has finished), `figures/`, the run's artefacts and, while it is unfinished, `checkpoints/`.
Each file is whole or absent at every moment, so that a run killed at any point goes on with `resume=True`.

Processes that `jaxlab.parallel.initialize` joined share one folder, which all of them must see: each opens it, process
0 writes it, and checkpoints are written by all.
"""

import contextlib
import dataclasses
import enum
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

import jaxlab
from jaxlab.errors import InputError, ResourceError
from jaxlab.files import atomic_file

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import orbax.checkpoint
    from matplotlib.figure import Figure

_RESERVED = ("config.json", "metrics.jsonl", "summary.json", "figures", "checkpoints", ".lock")


class Restored(NamedTuple):
    """A checkpoint read back: the step it was saved under, and the saved tree."""

    step: int
    tree: Any


class RunFolder:
    """One run's folder, open for writing by this process.

    Use it as a context manager, or call `finish` at the end:

        with RunFolder(out, config, resume) as folder:
            if folder.summary is not None:
                return folder.summary
            restored = folder.restore(like=state)
            start, state = (0, state) if restored is None else (restored.step, restored.tree)
            for step in range(start + 1, config.steps + 1):
                state, loss = update(state)
                folder.log(step=step, loss=loss)
                if step % 100 == 0:
                    folder.checkpoint(step, state)
            return folder.finish({"loss": loss})

    Attributes:
      path: the folder.
      system: name of the system on the command line.
      summary: the final figures if the run has finished, else None.
      resumed: True if the folder already held a part of this run.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        config: Any,
        resume: bool = False,
        *,
        system: str | None = None,
    ) -> None:
        """Creates the folder, or with `resume` opens the one that an interrupted run left.

        Args:
          out: the folder; None means `runs/SYSTEM-TIMESTAMP`, or with `resume` the latest unfinished run of
            the same system and configuration under `runs/`.
          config: the recipe's `Config`, a dataclass.
          resume: go on with the run in `out`; one that is not there yet starts from the beginning.
          system: name of the system; None means the name of the module that defines `config`.

        Raises:
          InputError: the folder holds something else, another configuration, or a run while `resume` is
            False; or another process is writing to it.
        """
        self.system = system or type(config).__module__.rpartition(".")[2].replace("_", "-")
        self._first, self._alone = _first_and_alone()
        self._lock: int | None = None
        self._manager: orbax.checkpoint.CheckpointManager | None = None
        opened = self._opened(out, config, resume)
        self.path, self.resumed = Path(opened["path"]), opened["resumed"]
        self.summary = opened["summary"]
        self._rows = rows = opened["rows"]  # what processes that do not write have seen
        self._seconds_before = float(rows[-1].get("seconds", 0.0)) if rows else 0.0
        self._started = time.monotonic()

    def _opened(self, out: str | os.PathLike[str] | None, config: Any, resume: bool) -> dict[str, Any]:
        """Path of the folder, and what it holds; of several processes the first one opens it for all."""
        if self._alone:
            return self._open(out, config, resume)
        from jaxlab.parallel.hosts import from_first

        opened: dict[str, Any] = {}
        if self._first:
            try:
                opened = self._open(out, config, resume)
            except (InputError, ResourceError) as error:
                opened = {"error": str(error), "kind": type(error).__name__}
        opened = from_first(opened)
        if "error" in opened:
            raise (InputError if opened["kind"] == "InputError" else ResourceError)(opened["error"])
        return opened

    def _open(self, out: str | os.PathLike[str] | None, config: Any, resume: bool) -> dict[str, Any]:
        if out is None:
            out = latest_unfinished(self.system, config) if resume else default_out(self.system)
        self.path = Path(out)
        recorded = read_config(self.path)
        if recorded is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"{self.path} is not empty and holds no run: choose another --out")
        elif not resume:
            state = "a finished" if (self.path / "summary.json").exists() else "an unfinished"
            raise InputError(
                f"{self.path} already holds {state} run of {recorded['system']}: "
                "choose another --out, or pass --resume to go on with it"
            )
        else:
            _check_same_run(self.path, recorded, self.system, config)
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from error
        self._lock = _lock(self.path)
        if recorded is None:
            record = {"system": self.system, "jaxlab": jaxlab.__version__, "config": config_as_json(config)}
            _write_json(self.path / "config.json", record)
        _drop_torn_line(self.path / "metrics.jsonl")
        return {
            "path": os.fspath(self.path),
            "resumed": recorded is not None,
            "summary": read_json(self.path / "summary.json"),
            "rows": read_metrics(self.path),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if not self.resumed and kind is not None and issubclass(kind, InputError | ResourceError):
            self._drop_if_empty()

    def _drop_if_empty(self) -> None:
        """Options that cannot be used leave no folder that would be in the way of the right ones."""
        if not self._first:
            return
        found = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        if found <= {"config.json", "figures", ".lock"}:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, with those before an interruption up to its last metrics line."""
        return self._seconds_before + time.monotonic() - self._started

    def log(self, **values: Any) -> None:
        """Appends one line to `metrics.jsonl`: `values` (numbers, strings, arrays) and `seconds`."""
        line = json.dumps(_as_json({**values, "seconds": round(self.seconds, 3)}), allow_nan=False) + "\n"
        if not self._first:
            self._rows.append(json.loads(line))
            return
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(f"disk full while writing {self.path / 'metrics.jsonl'}") from error
            raise

    def metrics(self) -> list[dict[str, Any]]:
        """All lines logged so far."""
        return read_metrics(self.path) if self._first else list(self._rows)

    def save_figure(self, name: str, figure: "Figure", *, dpi: int = 150) -> Path:
        """Writes a matplotlib figure to `figures/NAME.png` and returns its path."""
        path = self.path / "figures" / f"{name.removesuffix('.png')}.png"
        if not self._first:
            return path
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight")
        return path

    def artefact(self, name: str) -> Path:
        """Path of an artefact inside the folder; the caller writes it, atomically (`jaxlab.files`).

        Raises:
          InputError: the name leaves the folder or belongs to the folder's own files.
        """
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0] in _RESERVED:
            raise InputError(
                f"artefact name {name!r} must be a relative path, none of {', '.join(_RESERVED)}"
            )
        return self.path / path

    def checkpoint(self, step: int, tree: Any) -> None:
        """Saves a pytree of arrays and numbers; once whole, it replaces the checkpoint of an earlier step.

        Of several processes all must call it; each writes its own part of arrays that lie on the devices of all.
        """
        import orbax.checkpoint as ocp

        self._checkpoints().save(step, args=ocp.args.StandardSave(tree), force=True)

    def restore(self, like: Any = None) -> Restored | None:
        """Reads the latest whole checkpoint, and drops the metrics logged after it.

        Args:
          like: a tree of the same structure, shapes and dtypes; without it named tuples come back as dicts
            and tuples as lists.

        Returns:
          The step and the tree; None if nothing was saved, in which case all metrics are dropped.
        """
        import orbax.checkpoint as ocp

        there = not self._alone or (self.path / "checkpoints").exists()
        step = self._checkpoints().latest_step() if there else None
        self._drop_metrics_after(step)
        if step is None:
            return None
        return Restored(step, self._checkpoints().restore(step, args=ocp.args.StandardRestore(like)))

    def checkpoint_leaves(self, step: int, tree: Any) -> None:
        """Saves the leaves of any pytree of arrays, such as an optimizer's state; see `restore_leaves`."""
        import jax

        leaves = enumerate(jax.tree.leaves(tree))
        self.checkpoint(
            step, {f"{i:04d}": leaf if _is_spread(leaf) else np.asarray(leaf) for i, leaf in leaves}
        )

    def restore_leaves(self, like: Any) -> Restored | None:
        """Reads what `checkpoint_leaves` saved, and drops the metrics logged after it.

        Args:
          like: a tree of the same structure, shapes and dtypes.

        Returns:
          The step and the tree, its leaves NumPy arrays, or where other processes hold a part of them those of `like`;
          None if nothing was saved.
        """
        import jax

        leaves, structure = jax.tree.flatten(like)
        restored = self.restore(
            like={f"{i:04d}": leaf if _is_spread(leaf) else np.asarray(leaf) for i, leaf in enumerate(leaves)}
        )
        if restored is None:
            return None
        found = [restored.tree[f"{i:04d}"] for i in range(len(leaves))]
        return Restored(restored.step, jax.tree.unflatten(structure, found))

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Writes `summary.json`, removes the checkpoints, closes the folder.

        Args:
          summary: the final figures, flat; `seconds` is added unless given.

        Returns:
          What was written.
        """
        nested = [key for key, value in summary.items() if isinstance(value, Mapping)]
        if nested:
            raise TypeError(f"summary must be flat, but {', '.join(nested)} hold mappings")
        self.summary = _as_json({**summary, "seconds": summary.get("seconds", round(self.seconds, 2))})
        if self._first:
            _write_json(self.path / "summary.json", self.summary)
        self.close()
        if not self._alone:
            from jaxlab.parallel.hosts import from_first

            self.summary = from_first(self.summary)
        if self._first:
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        assert self.summary is not None
        return self.summary

    def close(self) -> None:
        """Lets go of the folder, finished or not; called again it does nothing."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _checkpoints(self) -> "orbax.checkpoint.CheckpointManager":
        if self._manager is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager((self.path / "checkpoints").absolute(), options=options)
        return self._manager

    def _drop_metrics_after(self, step: int | None) -> None:
        rows = self.metrics()
        kept = [] if step is None else [row for row in rows if row.get("step", step) <= step]
        self._rows = kept
        if self._first and len(kept) < len(rows):
            with atomic_file(self.path / "metrics.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _first_and_alone() -> tuple[bool, bool]:
    """Whether this is process 0, and whether it is the only one."""
    from jaxlab.parallel.hosts import joined

    process, processes = joined()
    return process == 0, processes == 1


def _is_spread(leaf: Any) -> bool:
    """Whether other processes hold a part of an array."""
    return not (getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated)


def default_out(system: str, root: str | os.PathLike[str] = "runs") -> Path:
    """`ROOT/SYSTEM-TIMESTAMP`, a folder that does not exist yet."""
    stem = f"{system}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = Path(root) / stem, 1
    while path.exists():
        number += 1
        path = Path(root) / f"{stem}-{number}"
    return path


def latest_unfinished(system: str, config: Any, root: str | os.PathLike[str] = "runs") -> Path:
    """The newest run under `root` of this system and configuration that has no summary yet.

    Raises:
      InputError: there is none; the message names unfinished runs of other configurations.
    """
    unfinished = []
    for path in Path(root).glob("*/config.json"):
        record = read_config(path.parent)
        if record is not None and record["system"] == system and not (path.parent / "summary.json").exists():
            unfinished.append((path.stat().st_mtime, path.parent, record["config"]))
    unfinished.sort(key=lambda item: item[:2], reverse=True)
    wanted = config_as_json(config)
    for _, path, recorded in unfinished:
        if recorded == wanted:
            return path
    message = f"no unfinished run of {system} with this configuration under {root}/"
    for _, path, recorded in unfinished[:3]:
        message += f"\n  {path} was started with {_differences(recorded, wanted)}"
    raise InputError(message)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`config.json` of a run folder, `{"system": ..., "jaxlab": version, "config": {...}}`; None if absent.

    Raises:
      InputError: the file is not a run's.
    """
    record = read_json(Path(path) / "config.json")
    if record is not None and not {"system", "config"} <= record.keys():
        raise InputError(f"{Path(path) / 'config.json'} was not written by a run: choose another --out")
    return record


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run folder's `metrics.jsonl`; a torn last line (of a killed run) is passed over."""
    file = Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{file} has a line that is not JSON: {error}") from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """A JSON object from a file, None if the file is absent.

    Raises:
      InputError: the file is no JSON object.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, not a JSON object")
    return value


def config_as_json(config: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back: tuples as lists, paths as strings, enums as their values."""
    return _as_json(dataclasses.asdict(config))


def _check_same_run(path: Path, recorded: dict[str, Any], system: str, config: Any) -> None:
    if recorded["system"] != system:
        raise InputError(f"{path} holds a run of {recorded['system']}, not of {system}: choose another --out")
    wanted = config_as_json(config)
    if recorded["config"] != wanted:
        raise InputError(
            f"cannot resume {path}: it was started with {_differences(recorded['config'], wanted)}. "
            "Repeat the options it was started with, or choose another --out"
        )


def _differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> str:
    """`bits=3.25 (now 4.0), seed=0 (now 1)`."""
    absent = object()
    parts = []
    for key in dict.fromkeys([*recorded, *wanted]):
        then, now = recorded.get(key, absent), wanted.get(key, absent)
        if then != now:
            parts.append(
                f"{key}={'nothing' if then is absent else then} (now {'nothing' if now is absent else now})"
            )
    return ", ".join(parts)


def _lock(path: Path) -> int | None:
    """Marks the folder as in use until the file is closed or the process dies, however it dies."""
    if fcntl is None:
        return None
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(handle, 32).decode(errors="replace").strip()
        os.close(handle)
        # In one process, an interrupted run that a notebook's traceback keeps alive may be taken over.
        if holder == str(os.getpid()):
            return None
        raise InputError(
            f"{path} is in use by process {holder or 'unknown'}: wait for it, or choose another --out"
        ) from error
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _drop_torn_line(path: Path) -> None:
    """Cuts what follows the last newline: a line that a killed process was still writing."""
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(_as_json(value), indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _as_json(value: Any) -> Any:
    """Plain JSON values; numbers that are not finite become null, since JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return _as_json(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return _as_json(np.asarray(value).tolist())
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
