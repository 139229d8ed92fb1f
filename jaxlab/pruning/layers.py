"""The same work for every layer of a stack, one after the other, or spread over devices."""

from collections.abc import Callable
from typing import Any

from jax import lax
from jax.sharding import Mesh

from jaxlab.parallel.rows import shard_rows


def over_layers(
    function: Callable[[Any], Any], stacked: Any, mesh: Mesh | None = None, *, together: int = 1
) -> Any:
    """`function` of each layer, stacked; one layer's work space at a time on every device. For use under `jit`.

    Args:
        function: of one layer's arrays.
        stacked: a pytree whose leaves have a leading layer axis.
        mesh: its axis 'data' shares out the layers; None is one device.
        together: layers whose programs may overlap.
    """

    def in_turn(part: Any) -> Any:
        return lax.scan(lambda _, layer: (None, function(layer)), None, part, unroll=together)[1]

    return in_turn(stacked) if mesh is None else shard_rows(in_turn, mesh)(stacked)
