"""Checks at the public boundary; only shapes and static numbers, so that they cost nothing under a trace."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises InputError unless the value is one of the choices."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def require_number(
    name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf
) -> None:
    """Raises InputError unless the number is finite and in range."""
    if not (math.isfinite(value) and above < value < below and value >= at_least):
        bounds = [f" > {above}"] * (above > -math.inf) + [f" >= {at_least}"] * (at_least > -math.inf)
        bounds += [f" < {below}"] * (below < math.inf)
        raise InputError(f"{name} is {value}; it must be a finite number{' and'.join(bounds)}")


def require_count(name: str, value: int, *, at_least: int, at_most: int | None = None) -> None:
    """Raises InputError unless the integer is in range."""
    if value < at_least or (at_most is not None and value > at_most):
        most = "" if at_most is None else f" and at most {at_most}"
        raise InputError(f"{name} is {value}; it must be at least {at_least}{most}")


def require_outputs(name: str, outputs: Any) -> None:
    """Raises InputError unless the array has shape [examples, outputs], neither of them zero."""
    shape = jnp.shape(outputs)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{name} has shape {shape}; it must be [examples, outputs], at least one of each")


def require_natural(outputs: Any) -> None:
    """Raises InputError unless there are two outputs, natural parameters; concrete ones must have eta2 < 0."""
    if jnp.ndim(outputs) != 2 or jnp.shape(outputs)[1] != 2:
        raise InputError(f"outputs has shape {jnp.shape(outputs)}; natural parameters must be [examples, 2]")
    if not isinstance(outputs, jax.core.Tracer):
        most = float(np.max(np.asarray(outputs)[:, 1]))
        if not most < 0:
            raise InputError(
                f"outputs has second natural parameters up to {most}; they must be < 0, see natural_parameters"
            )


def require_labels(labels: Any, outputs: Any) -> None:
    """Raises InputError unless there is an integer for every row of outputs; concrete ones must name an output."""
    shape, (examples, classes) = jnp.shape(labels), jnp.shape(outputs)
    if shape != (examples,) or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise InputError(
            f"targets has shape {shape} and dtype {jnp.result_type(labels)}; it must be {examples} integers"
        )
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels)
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= classes:
            raise InputError(f"targets lie in {least}..{most}; labels must lie in 0..{classes - 1}")


def require_independent(apply: Callable[[Any, Any], Any], params: Any, inputs: Any) -> None:
    """Raises InputError where an example's outputs depend on the examples beside it; runs the model on three."""
    few = jax.tree.map(lambda x: jnp.asarray(x)[:3], inputs)
    together = np.asarray(apply(params, few))
    alone = [
        np.asarray(apply(params, jax.tree.map(lambda x, n=n: x[n : n + 1], few)))
        for n in range(len(together))
    ]
    if not np.allclose(np.concatenate(alone), together, rtol=1e-2, atol=1e-3 * np.abs(together).max()):
        raise InputError(
            "apply gives an example other outputs beside others than on its own; pass a deterministic apply: batch "
            "statistics and dropout couple examples"
        )


def require_finite(grams: Any) -> None:
    """Raises InputError with the leaves whose Gram matrices, concrete ones, are not finite."""
    wrong = [
        jax.tree_util.keystr(path)
        for path, G in jax.tree.leaves_with_path(grams)
        if not np.isfinite(np.asarray(G)).all()
    ]
    if wrong:
        raise InputError(
            f"the Jacobian is not finite at params{', params'.join(wrong)}; the parameters must be"
        )
