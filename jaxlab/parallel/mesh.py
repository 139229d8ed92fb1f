"""Device meshes with named axes."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxlab.errors import InputError


def parse_mesh(text: str) -> dict[str, int]:
    """The shape of a mesh as it is written on a command line: `data=4,model=2` is `{"data": 4, "model": 2}`.

    Raises:
      InputError: the text is written otherwise, or names an axis twice.
    """
    shape: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (word.strip() for word in part.partition("="))
        if not (name.isidentifier() and equals and size.removeprefix("-").isdigit()) or name in shape:
            raise InputError(f"mesh is {text!r}; it must be AXIS=SIZE,AXIS=SIZE such as data=4,model=2")
        shape[name] = int(size)
    return shape


def make_mesh(shape: Mapping[str, int], *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices, laid out so that neighbours on the last axis are close to each other.

    Args:
      shape: axis name to size, for instance `{"data": 4, "model": 2}`; one size may be -1, which takes what
        is left.
      devices: which devices to use; None means all of all processes, or on a single process the first that
        suffice.

    Raises:
      InputError: a size is not positive, or the product does not fit the devices.
    """
    available = list(jax.devices() if devices is None else devices)
    if not shape:
        raise InputError("shape is empty: a mesh needs at least one axis, for instance {'data': 8}")
    sizes = dict(shape)
    open_axes = [name for name, size in sizes.items() if size == -1]
    wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
    if wrong or len(open_axes) > 1:
        raise InputError(f"shape is {sizes}: sizes must be positive, and at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if len(available) % fixed:
            raise InputError(f"shape is {sizes}: {len(available)} devices are not a multiple of {fixed}")
        sizes[open_axes[0]] = len(available) // fixed
    needed = math.prod(sizes.values())
    may_leave_out = devices is None and jax.process_count() == 1
    if needed > len(available) or (needed < len(available) and not may_leave_out):
        raise InputError(f"shape {sizes} is {needed} devices, but there are {len(available)}")
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=available[:needed],
    )
