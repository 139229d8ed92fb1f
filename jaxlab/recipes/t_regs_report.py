"""What the t-regs recipe shows at the end: its table and figures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.runs import RunFolder
from jaxlab.selfsupervised import mst_dimension, mst_of_points, spread

_SHOWN = 1000
_SIZES = (64, 128, 256, 512, 1024)


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the command line."""
    percent = {
        "linear probe": summary["linear_accuracy"],
        "the same on raw pixels": summary["pixels_linear_accuracy"],
        "20 nearest neighbours": summary["knn_accuracy"],
        "neighbours of raw pixels": summary["pixels_knn_accuracy"],
    }
    rows = [{"measure": name, "value": f"{100 * value:.1f} %"} for name, value in percent.items()]
    measures = {
        "mean cosine of embeddings": f"{summary['mean_cosine']:.3f}",
        "effective rank": f"{summary['effective_rank']:.1f}",
        "mean norm": f"{summary['radius']:.2f}",
        "seconds a step": f"{summary['step_seconds']:.3f}",
    }
    return [*rows, *({"measure": name, "value": value} for name, value in measures.items())]


def figures(folder: RunFolder, embeddings: np.ndarray, classes: np.ndarray) -> None:
    """Cosines, singular values, a tree on a plane, and the growth of trees with the number of points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    few = embeddings[:_SHOWN]

    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    units = few / np.maximum(np.linalg.norm(few, axis=1, keepdims=True), 1e-12)
    pairs = (units @ units.T)[np.triu_indices(len(few), 1)]
    axes.hist(pairs, bins=100, density=True)
    axes.set(xlabel="cosine of two images' embeddings", ylabel="density", xlim=(-1, 1))
    _close(folder, pyplot, figure, "cosines")

    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    values = np.asarray(spread(jnp.asarray(embeddings)).singular_values)
    axes.semilogy(np.arange(1, len(values) + 1), values / values[0])
    axes.set(xlabel="number of the singular value", ylabel="size, relative to the first")
    _close(folder, pyplot, figure, "singular_values")

    figure, axes = pyplot.subplots(figsize=(6, 6))
    centred = few - few.mean(0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    tree = mst_of_points(jnp.asarray(few))
    ends = np.stack([np.asarray(tree.a), np.asarray(tree.b)])[:, np.asarray(tree.valid)]
    axes.plot(*(plane[ends][..., axis] for axis in (0, 1)), color="0.7", linewidth=0.6, zorder=0)
    axes.scatter(plane[:, 0], plane[:, 1], c=classes[: len(few)], cmap="tab10", s=8)
    axes.set(xlabel="first principal component", ylabel="second", title="minimum spanning tree of embeddings")
    _close(folder, pyplot, figure, "tree")

    sizes = [size for size in _SIZES if size <= len(embeddings)]
    if len(sizes) > 1:
        estimate = mst_dimension(jnp.asarray(embeddings), jax.random.key(0), sizes=sizes)
        figure, axes = pyplot.subplots(figsize=(5, 3.5))
        logs = np.asarray(estimate.log_lengths)
        line = logs.mean() + float(estimate.slope) * (np.log(sizes) - np.log(sizes).mean())
        axes.loglog(sizes, np.exp(logs), "o")
        axes.loglog(sizes, np.exp(line), label=f"dimension {float(estimate.dimension):.1f}")
        axes.set(xlabel="points", ylabel="length of their tree")
        axes.legend()
        _close(folder, pyplot, figure, "dimension")


def _close(folder: RunFolder, pyplot: Any, figure: Any, name: str) -> None:
    folder.save_figure(name, figure)
    pyplot.close(figure)
