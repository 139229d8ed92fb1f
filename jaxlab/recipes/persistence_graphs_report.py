"""What a run of the persistence-graphs recipe says in the end: its table and figures."""

from typing import Any

import numpy as np

from jaxlab.runs import RunFolder


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    groups = [key.removeprefix("epochs_") for key in summary if key.startswith("epochs_")]
    rows = [
        {
            "filtration": name_of(group),
            "accuracy": f"{summary[f'accuracy_{group}']:.3f}",
            "over folds": f"+- {summary[f'accuracy_{group}_std']:.3f}",
            "after all epochs": f"{summary[f'accuracy_{group}_all_epochs']:.3f}",
            "most often chosen": f"{summary[f'method_{group}']}, {summary[f'epochs_{group}']:.0f} epochs",
        }
        for group in groups
    ]
    return [*rows, {"filtration": "always the largest class", "accuracy": f"{summary['largest_class']:.3f}"}]


def name_of(group: str) -> str:
    """What a group is called."""
    kind, _, parameters = group.partition("_")
    if not parameters:
        return "fixed functions"
    return f"{kind}, {parameters} parameter{'s' if int(parameters) > 1 else ''}"


def figures(
    folder: RunFolder,
    tested: dict[str, list[float]],
    inner: dict[str, np.ndarray],
    epochs: np.ndarray,
    largest_class: float,
    examples: dict[str, Any],
) -> None:
    """Accuracy of the folds and by epochs, and the measures of a learned filtration.

    Args:
      folder: of the run.
      tested: accuracy of every fold, by group.
      inner: accuracy on the inner folds after so many epochs, by method.
      epochs: how many.
      largest_class: share of the largest class.
      examples: by class a graph's atoms in H_0 and H_1 with the points of the Gaussians: (points [atoms, 2],
        weights [atoms], samples [samples, 2]) each; empty where nothing was learned by two parameters.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for place, accuracies in enumerate(tested.values()):
        spread = np.linspace(-0.15, 0.15, len(accuracies))
        left.bar(place, np.mean(accuracies), width=0.6, alpha=0.4)
        left.plot(place + spread, accuracies, "k.", markersize=5)
    left.axhline(largest_class, color="gray", linestyle="--", label="always the largest class")
    names = [name_of(group).replace(" ", "\n", 1) for group in tested]
    left.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 1.05), ylabel="accuracy of each fold")
    left.legend(loc="lower right")
    for name, shares in inner.items():
        right.plot(epochs, shares, marker=".", label=name)
    right.set(xlabel="epochs", ylabel="accuracy on inner folds")
    right.legend()
    right.grid(alpha=0.3)
    folder.save_figure("accuracy", figure)
    plt.close(figure)

    if not examples:
        return
    figure, axes = plt.subplots(len(examples), 2, figsize=(9, 4.2 * len(examples)), squeeze=False)
    for (name, measures), line in zip(examples.items(), axes, strict=True):
        for degree, (axis, (points, weights, samples)) in enumerate(zip(line, measures, strict=True)):
            for sign, colour in ((1, "tab:red"), (-1, "tab:blue")):
                of_sign = weights * sign > 0
                axis.scatter(*points[of_sign].T, s=25 * np.abs(weights[of_sign]), color=colour, alpha=0.6)
            axis.scatter(*samples.T, marker="+", color="gray", s=20)
            axis.set(xlabel="first function", ylabel="second function", title=f"{name}, H{degree}")
    figure.tight_layout()
    folder.save_figure("measures", figure)
    plt.close(figure)
