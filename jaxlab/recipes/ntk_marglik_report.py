"""What the ntk-marglik recipe shows: a line an epoch, its table, its figures."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.evidence import Bound, FitState, Hyper, make_partition, partition_evidence, weight_decay
from jaxlab.evidence.likelihoods import Likelihood
from jaxlab.files import atomic_file
from jaxlab.runs import RunFolder

_RANGES = ("shift x", "shift y", "rotation", "scale x", "scale y", "shear")
_MOST_ROWS = 2500
"""Of one determinant in the figure of bounds: seconds on a CPU."""
_WIDEST = 1500
"""Parameters of a leaf whose whole block is decomposed for that figure."""


def leaf_names(params: Any) -> list[str]:
    """Path of every leaf, `convolutions.0.kernel`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(params)
    ]


def epoch_line(epoch: int, row: dict[str, Any]) -> str:
    """What a person reads after an epoch."""
    parts = [f"epoch {epoch}: loss {row['loss']:.4g}"]
    if "bound" in row:
        parts.append(f"bound {row['bound']:.4g} nats an example ({row['indices']} rows)")
    deltas = [f"{name.removeprefix('delta ')} {row[name]:.3g}" for name in row if name.startswith("delta ")]
    parts.append("delta " + ", ".join(deltas))
    if "sigma" in row:
        parts.append(f"sigma {row['sigma']:.3g}")
    if "eta" in row:
        parts.append("eta " + " ".join(f"{value:.2f}" for value in row["eta"]))
    return "; ".join(parts)


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the command line."""
    measure = "rms error" if summary["values"] else "accuracy"
    named = {
        "": f"evidence ({summary['estimator']}, {summary['indices']} rows)",
        "map_": "weight decay as usual",
        "tuned_": "weight decay tuned on a validation set",
    }
    rows = []
    for start, name in named.items():
        if f"{start}nll" not in summary:
            continue
        seconds = summary[f"{start}seconds" if start else "train_seconds"]
        score = summary[f"{start}accuracy"]
        rows.append(
            {
                "run": name,
                measure: f"{score:.2f}" if summary["values"] else f"{100 * score:.2f} %",
                "nats an example": f"{summary[f'{start}nll']:.4f}",
                "seconds": f"{seconds:.0f}",
            }
        )
    return rows


def slack_grid(
    apply: Callable[[Any, Any], jax.Array],
    params: Any,
    inputs: np.ndarray,
    targets: np.ndarray,
    hyper: Hyper,
    *,
    likelihood: Likelihood,
) -> list[dict[str, Any]]:
    """Bounds of the family at one place, nats an example, by rows of their largest determinant.

    Args:
      apply: the model.
      params: its parameters.
      inputs: N examples.
      targets: labels or values.
      hyper: where to take the bounds.
      likelihood: of the targets.

    Returns:
      Rows with `family`, `indices` and `bound`; those of parameter space have `indices` None.
    """
    examples = len(targets)
    outputs = jax.eval_shape(apply, params, inputs).shape[1]

    def value(bound: Bound, block: int, kind: Any) -> float:
        labels = jnp.asarray(targets) if kind == "label" else None
        partition = make_partition(jax.random.key(0), examples, block=block, kind=kind, labels=labels)
        found = _bound(apply, bound, params, inputs, targets, hyper, partition)
        return float(found) / examples

    rows: list[dict[str, Any]] = []
    kinds = ("random", "label") if targets.ndim == 1 else ("random",)
    for family in (*kinds, "classes"):
        joint = family != "classes"
        for block in sorted({max(examples // parts, 1) for parts in (1, 3, 10, 30, 100)}):
            indices = block * outputs if joint else block
            if indices > _MOST_ROWS:
                continue
            bound = Bound(likelihood=likelihood, rows="joint" if joint else "classes")
            kind = family if joint else "random"
            rows.append({"family": family, "indices": indices, "bound": value(bound, block, kind)})
    widest = max(leaf.size for leaf in jax.tree.leaves(params))
    for space in ("tensor", "kron", "diag"):
        if space != "tensor" or widest <= _WIDEST:
            found = value(Bound(likelihood=likelihood, space=space, batch=100), examples, "random")
            rows.append({"family": space, "indices": None, "bound": found})
    return rows


@jax.jit(static_argnums=(0, 1))
def _bound(
    apply: Any, bound: Bound, params: Any, inputs: Any, targets: Any, hyper: Hyper, partition: jax.Array
) -> jax.Array:
    return partition_evidence(
        jax.random.key(0), apply, params, inputs, targets, hyper, partition, config=bound
    ).value


def save_model(folder: RunFolder, state: FitState, *, examples: int) -> None:
    """Weights, log delta of each leaf, and weight decay of each leaf as an optimizer takes it."""
    from safetensors.numpy import save_file

    log_delta = state.marglik.hyper.log_delta
    decay = weight_decay(log_delta, state.params, examples=examples)
    tensors = {}
    for kind, tree in (("params", state.params), ("weight_decay", decay)):
        for name, leaf in zip(leaf_names(state.params), jax.tree.leaves(tree), strict=True):
            tensors[f"{kind}/{name}"] = np.asarray(leaf)
    if state.ranges is not None:
        tensors["eta"] = np.asarray(state.ranges.eta)
    with atomic_file(folder.artefact("model.safetensors")) as temporary:
        save_file(tensors, temporary)


def figures(folder: RunFolder, grid: list[dict[str, Any]]) -> None:
    """The bound and the loss by epoch, precisions, ranges, and bounds by the size of their determinants."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in folder.metrics() if "loss" in row]
    steps = [row["step"] for row in rows]
    bounded = [row for row in rows if "bound" in row]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.5))
    left.plot(steps, [row["loss"] for row in rows])
    left.set(xlabel="epoch", ylabel="loss with the prior, nats an example")
    right.plot([row["step"] for row in bounded], [row["bound"] for row in bounded], ".-")
    label = f"bound of the evidence, {bounded[-1]['indices']} rows" if bounded else "no update yet"
    right.set(xlabel="epoch", ylabel=label)
    _close(folder, pyplot, figure, "bound")

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in [name for name in rows[-1] if name.startswith("delta ")]:
        axes.semilogy(steps, [row[name] for row in rows], label=name.removeprefix("delta "))
    axes.set(xlabel="epoch", ylabel="prior precision")
    axes.legend(fontsize=7)
    _close(folder, pyplot, figure, "delta")

    if "eta" in rows[-1]:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        axes.plot(steps, np.array([row["eta"] for row in rows]), label=_RANGES)
        axes.set(xlabel="epoch", ylabel="range (half widths, radians, log scales)")
        axes.legend(fontsize=7)
        _close(folder, pyplot, figure, "eta")

    if grid:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        names = {
            "random": "random blocks",
            "label": "blocks of alike labels",
            "classes": "random blocks, outputs apart",
        }
        for family, name in names.items():
            own = [row for row in grid if row["family"] == family]
            if own:
                axes.semilogx(
                    [row["indices"] for row in own], [row["bound"] for row in own], ".-", label=name
                )
        for row, style in zip(
            [row for row in grid if row["indices"] is None], ("--", "-.", ":"), strict=False
        ):
            axes.axhline(row["bound"], linestyle=style, color="0.4", label=row["family"])
        axes.set(xlabel="rows of a determinant", ylabel="evidence or its bound, nats an example")
        axes.legend(fontsize=7)
        _close(folder, pyplot, figure, "bounds")


def _close(folder: RunFolder, pyplot: Any, figure: Any, name: str) -> None:
    folder.save_figure(name, figure)
    pyplot.close(figure)
