"""What a run of the persistence-autoencoder recipe says in the end: its table, figures and animation."""

from typing import Any

import numpy as np

from jaxlab.recipes.animation import save_gif
from jaxlab.recipes.persistence_autoencoder_metrics import METRICS
from jaxlab.runs import RunFolder


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end: metrics by method, and what the paired tests say."""
    rows = []
    for metric, better in METRICS.items():
        row = {"metric": f"{metric.replace('_', ' ')} ({'more' if better > 0 else 'less'} is better)"}
        for method in ("plain", "one_parameter", "two_parameters"):
            mean, spread = summary[f"{method}_{metric}"], summary[f"{method}_{metric}_std"]
            row[method.replace("_", " ")] = f"{mean:.4f} +- {spread:.4f}"
        row["two against one"] = f"{summary[f'two_parameters_wins_{metric}']} of {summary['seeds']} seeds"
        p = summary[f"p_{metric}"]
        row["p"] = "" if p is None else f"{p:.3g}"
        rows.append(row)
    return rows


def figures(
    folder: RunFolder,
    tracks: dict[str, np.ndarray],
    classes: np.ndarray,
    tested: dict[str, dict[str, np.ndarray]],
    every: int,
) -> None:
    """Codes in the end, all metrics of all seeds, and `figures/codes.gif`.

    Args:
      folder: of the run.
      tracks: by method codes of test images at every checkpoint, [checkpoints, images, 2].
      classes: of these images.
      tested: by method and metric, a figure a seed.
      every: epochs between checkpoints.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import animation
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(tracks), figsize=(4.5 * len(tracks), 4.5), squeeze=False)
    scatters = []
    for (name, track), axis in zip(tracks.items(), axes[0], strict=True):
        low, high = track.min((0, 1)), track.max((0, 1))
        scatters.append(axis.scatter(*track[-1].T, c=classes, cmap="tab10", s=8))
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=name.replace("_", " "))

    def show(frame: int) -> list[Any]:
        figure.suptitle(f"epoch {frame * every}")
        for scatter, track in zip(scatters, tracks.values(), strict=True):
            scatter.set_offsets(track[frame])
        return scatters

    frames = len(next(iter(tracks.values())))
    save_gif(folder, "codes", animation.FuncAnimation(figure, show, frames=frames))
    show(frames - 1)
    figure.colorbar(scatters[0], ax=axes[0].tolist(), label="class")
    folder.save_figure("codes", figure)
    plt.close(figure)

    figure, axes = plt.subplots(1, len(METRICS), figsize=(3 * len(METRICS), 3.5))
    for metric, axis in zip(METRICS, axes, strict=True):
        values = np.array([own[metric] for own in tested.values()])
        axis.plot(values, color="gray", alpha=0.5)
        axis.plot(values, "k.")
        axis.plot(values.mean(1), "_", color="tab:red", markersize=24)
        names = [name.replace("_", "\n") for name in tested]
        axis.set(xticks=range(len(names)), xticklabels=names, title=metric.replace("_", " "))
    figure.tight_layout()
    folder.save_figure("metrics", figure)
    plt.close(figure)
