"""Several processes on one or more hosts, joined into one set of devices."""

import json
import math
import os
import socket
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab.errors import InputError, ResourceError

# What job launchers set; jax.distributed reads address and rank from them itself.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


class Hosts(NamedTuple):
    """This process among all of them."""

    process: int
    processes: int
    local_devices: int
    devices: int


def initialize(
    coordinator: str | None = None,
    *,
    processes: int | None = None,
    process: int | None = None,
    timeout_s: float = 120,
) -> Hosts:
    """Joins this process to the others; does nothing when there are no others.

    Call it once in every process, before the first computation. What is not given is read from the
    environment (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), or from Slurm, Open MPI
    or a TPU pod. On CPU the processes talk through gloo.

    Args:
      coordinator: `HOST:PORT` of process 0, reachable from all.
      processes: how many processes there are.
      process: number of this one, in [0, processes).
      timeout_s: seconds to wait for the others.

    Returns:
      Which process this is, and the devices here and everywhere.

    Raises:
      InputError: the three values are incomplete or contradict each other, or jax has already started
        computing.
      ResourceError: process 0 did not answer in time. (Process 0 itself is ended by jax, with a message that
        says so, if another one does not come.)
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _from_environment(processes, "processes", "JAX_NUM_PROCESSES")
    process = _from_environment(process, "process", "JAX_PROCESS_ID")
    if jax.distributed.is_initialized():
        return _hosts()
    if coordinator is None and processes is None and process is None:
        if _launched_together():
            _join(timeout_s)
        return _hosts()
    if processes is None or process is None:
        raise InputError(
            f"processes is {processes} and process is {process}: give both, or set "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    if processes < 1 or not 0 <= process < processes:
        raise InputError(f"process is {process}, but must lie in [0, {processes}) for processes={processes}")
    if processes == 1:
        return _hosts()
    if coordinator is None:
        raise InputError(
            "coordinator is missing: give HOST:PORT of process 0, or set JAX_COORDINATOR_ADDRESS"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise InputError(f"coordinator is {coordinator!r}, but must be HOST:PORT, for instance 10.0.0.1:1234")
    if process > 0:
        _wait_for(host, int(port), timeout_s)
    _join(timeout_s, coordinator_address=coordinator, num_processes=processes, process_id=process)
    return _hosts()


def joined() -> tuple[int, int]:
    """Number of this process, and how many have joined; starts no backend where `initialize` joined none."""
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def from_first(value: Any) -> Any:
    """What process 0 calls this with, in every process; all of them must call it.

    Args:
      value: anything that JSON can hold; that of the other processes is not looked at.
    """
    process, processes = joined()
    if processes == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = np.frombuffer(json.dumps(value).encode() if process == 0 else b"", np.uint8)
    size = int(broadcast_one_to_all(np.int32(text.size)))
    sent = broadcast_one_to_all(text if process == 0 else np.zeros(size, np.uint8))
    return json.loads(np.asarray(sent, np.uint8).tobytes())


def wait_for_all(what: str) -> None:
    """Returns once every process has called it with the same words."""
    if joined()[1] > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def to_host(tree: Any) -> Any:
    """The same tree with NumPy arrays for arrays; parts that other processes hold are fetched, and all must call it.

    Every process then has all of it in its own memory.
    """

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def _wait_for(host: str, port: int, timeout_s: float) -> None:
    """Returns once something listens there: jax itself would end this process without an exception."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1)).close()
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"process 0 did not answer at {host}:{port} within {timeout_s} s: {error}. "
                    "Is it running there, and does the network let this host reach it?"
                ) from error
            time.sleep(0.2)


def _join(timeout_s: float, **arguments: str | int) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=math.ceil(timeout_s), **arguments)  # type: ignore[arg-type]
    except RuntimeError as error:
        if "before any JAX" in str(error):
            raise InputError("initialize() must be called before the first computation of jax") from error
        where = arguments.get("coordinator_address", "the launcher's address")
        raise ResourceError(f"the processes did not meet at {where} within {timeout_s} s: {error}") from error


def _launched_together() -> bool:
    counts = [os.environ.get(name, "1") for name in _LAUNCHERS]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(workers) > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def _from_environment(value: int | None, argument: str, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise InputError(f"{variable} is {text!r}, but {argument} must be a whole number")
    return int(text)


def _hosts() -> Hosts:
    return Hosts(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())
