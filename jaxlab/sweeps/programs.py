"""Runs that differ in traced options and seeds, as one compiled program over all devices of all hosts.

Runs go through a device in blocks of `lanes`, each under `vmap`. A block has the same size everywhere, so that a run
gives the same bytes on one device, on eight, and on those of several hosts.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.errors import InputError, ResourceError
from jaxlab.parallel import shard_rows
from jaxlab.sweeps.grids import Grid
from jaxlab.sweeps.protocol import Sweepable, Train

_SHARE_OF_MEMORY = 0.5

Call = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
"""From traced options and seeds of a chunk of runs to their results, whole on every host."""


class Program(NamedTuple):
    """Runs that share one program."""

    config: Any
    """Static options; of traced ones those of the first run."""
    runs: np.ndarray
    """Their numbers in the whole sweep: grid combinations times seeds, seeds fastest."""
    traced: dict[str, np.ndarray]
    """Of every traced option in the grid the value of each run."""
    seeds: np.ndarray
    """uint32, of each run."""


def plan(sweepable: Sweepable, grid: Grid, first_seed: int, seeds: int) -> list[Program]:
    """The programs of a sweep, in the order of the grid.

    Raises:
      InputError: fewer than one seed, or a seed that is no unsigned 32-bit number.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; it must be at least 1")
    if first_seed < 0 or first_seed + seeds > 1 << 32:
        raise InputError(f"seed is {first_seed}; seeds must lie between 0 and 2^32")
    static = [name for name in grid.names if name not in sweepable.traced]
    members: dict[tuple[Any, ...], list[int]] = {}
    for number, config in enumerate(grid.configs):
        members.setdefault(tuple(getattr(config, name) for name in static), []).append(number)
    own_seeds = np.arange(first_seed, first_seed + seeds, dtype=np.uint32)
    programs = []
    for numbers in members.values():
        traced = {
            name: np.repeat([getattr(grid.configs[number], name) for number in numbers], seeds)
            for name in grid.names
            if name in sweepable.traced
        }
        runs = (np.array(numbers)[:, None] * seeds + np.arange(seeds)).reshape(-1)
        programs.append(Program(grid.configs[numbers[0]], runs, traced, np.tile(own_seeds, len(numbers))))
    return programs


def traced_defaults(sweepable: Sweepable, program: Program) -> dict[str, np.ndarray]:
    """All traced options of every run: those of the grid, and the config's for the others."""
    runs = len(program.runs)
    found = {}
    for name in sweepable.traced:
        values = program.traced.get(name, np.full(runs, getattr(program.config, name)))
        found[name] = np.asarray(values, np.int32 if values.dtype.kind == "i" else jnp.result_type(float))
    return found


def compile_program(
    train: Train, options: Mapping[str, np.ndarray], *, mesh: Mesh | None, lanes: int, chunk: int
) -> tuple[Call, int]:
    """The function from traced options and seeds of `chunk` runs to their results, compiled.

    Args:
      train: see `Train`; arrays of a `jax.tree_util.Partial` are arguments of the program, those that a closure holds
        are constants in it.
      options: traced options, of at least one run.
      mesh: with an axis "data"; None: the first device.
      lanes: runs side by side on a device, fewer if they do not fit into its memory.
      chunk: runs of a call, a multiple of lanes times devices.

    Returns:
      The function, and the lanes it has.

    Raises:
      InputError: results that are neither numbers nor curves of one length.
      ResourceError: a single run does not fit into memory.
    """
    devices = 1 if mesh is None else mesh.shape["data"]
    spread = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))
    shapes = {
        name: jax.ShapeDtypeStruct((chunk,), own.dtype, sharding=spread) for name, own in options.items()
    }
    rows = (shapes, jax.ShapeDtypeStruct((chunk,), np.uint32, sharding=spread))
    if not isinstance(train, jax.tree_util.Partial):
        train = jax.tree_util.Partial(train)
    if mesh is not None:
        train = jax.device_put(train, NamedSharding(mesh, PartitionSpec()))
    while True:
        function: Any = shard_rows(_block(lanes), mesh, block=lanes)
        compiled = function.lower(rows, train).compile()
        memory = compiled.memory_analysis()
        needed = (memory.temp_size_in_bytes + memory.output_size_in_bytes) if memory else 0
        limit = _memory_limit(mesh)
        if limit is None or needed <= limit or lanes == 1:
            break
        lanes = max(fewer for fewer in range(1, lanes) if lanes % fewer == 0)
    if limit is not None and needed > limit:
        raise ResourceError(
            f"one run needs {needed / 2**30:,.1f} GiB of memory on a device, and {limit / 2**30:,.1f} may be used"
        )
    _check_results(jax.eval_shape(function, rows, train), chunk)

    def call(options: Mapping[str, np.ndarray], seeds: np.ndarray) -> dict[str, np.ndarray]:
        given: Any = (dict(options), seeds)
        if spread is not None:
            given = jax.tree.map(
                lambda x: jax.make_array_from_callback(x.shape, spread, lambda index: x[index]), given
            )
        found = compiled(given, train)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = multihost_utils.process_allgather(found, tiled=True)
        return {name: np.asarray(own) for name, own in found.items()}

    assert chunk % (lanes * devices) == 0
    return call, lanes


def _block(lanes: int) -> Callable[[Any, Train], Any]:
    def one(row: tuple[dict[str, jax.Array], jax.Array], train: Train) -> Mapping[str, jax.Array]:
        options, seed = row
        return {name: jnp.asarray(value) for name, value in train(options, jax.random.key(seed)).items()}

    if lanes > 1:
        return jax.vmap(one, (0, None))
    # Not under vmap, where every `cond` would do both of its branches.
    return lambda rows, train: jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], rows), train))


def _check_results(results: Mapping[str, Any], chunk: int) -> None:
    wrong = {name: own.shape[1:] for name, own in results.items() if len(own.shape) > 2}
    lengths = {own.shape[1] for own in results.values() if len(own.shape) == 2}
    if not results or wrong or len(lengths) > 1:
        shapes = {name: own.shape[1:] for name, own in results.items()}
        raise InputError(
            f"train gives results of shapes {shapes}; they must be numbers or curves of one length"
        )


def _memory_limit(mesh: Mesh | None) -> int | None:
    """Bytes of a device that a program may use."""
    device: Sequence[jax.Device] = jax.local_devices()
    if device[0].platform != "cpu":
        limit = (device[0].memory_stats() or {}).get("bytes_limit")
        return None if limit is None else int(_SHARE_OF_MEMORY * limit)
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None
    sharing = 1 if mesh is None else max(1, len(device))
    return int(_SHARE_OF_MEMORY * whole / sharing)
