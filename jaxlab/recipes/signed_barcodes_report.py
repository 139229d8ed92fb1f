"""What a run of the signed-barcodes recipe says in the end: its table and figures."""

from typing import Any

import numpy as np

from jaxlab.runs import RunFolder


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    spread = summary["accuracy_std"]
    return [
        {
            "classifier": f"signed barcodes, {summary['vectorize']}",
            "accuracy": f"{summary['accuracy']:.3f}",
            "over folds": "" if spread is None else f"+- {spread:.3f}",
            "most often chosen": summary["source"],
        },
        {"classifier": "always the largest class", "accuracy": f"{summary['largest_class']:.3f}"},
    ]


def figures(folder: RunFolder, name: str, rows: list[dict[str, Any]], example: dict[str, Any]) -> None:
    """Accuracy of the folds, and signed measures and Hilbert functions of a sample of each of two classes.

    Args:
      folder: of the run.
      name: of the data.
      rows: of the folds.
      example: lines of the grid, degrees, and weights of each degree by sample.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.bar([row["step"] for row in rows], [row["accuracy"] for row in rows])
    axes.axhline(np.mean([row["accuracy"] for row in rows]), color="black", linewidth=0.8)
    axes.set(xlabel="fold", ylabel="accuracy", title=name, ylim=(0, 1))
    folder.save_figure("folds", figure)
    plt.close(figure)

    degrees, samples = example["degrees"], example["samples"]
    figure, grid = plt.subplots(
        len(samples), 2 * len(degrees), figsize=(7 * len(degrees), 3.2 * len(samples)), squeeze=False
    )
    x, y = example["lines"]
    for (sample, measures), line in zip(samples.items(), grid, strict=True):
        for number, (degree, weights) in enumerate(zip(degrees, measures, strict=True)):
            points, surface = line[2 * number], line[2 * number + 1]
            i, j = np.nonzero(weights)
            sizes, signs = np.abs(weights[i, j]), np.where(weights[i, j] > 0, "tab:red", "tab:blue")
            points.scatter(x[i], y[j], s=15 * sizes, c=signs, alpha=0.7)
            points.set(title=f"{sample}, signed measure, H{degree}")
            values = np.cumsum(np.cumsum(weights, 0), 1)
            shown = surface.pcolormesh(x, y, values.T, shading="nearest")
            surface.set(title=f"Hilbert function, H{degree}")
            figure.colorbar(shown, ax=surface)
    figure.tight_layout()
    folder.save_figure("measures", figure)
    plt.close(figure)
