"""What a run of the persistence-optimisation recipe says in the end: its table, figures and animation."""

from typing import Any

import numpy as np

from jaxlab.recipes.animation import save_gif
from jaxlab.runs import RunFolder


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    names = [key.removesuffix("_loss_first") for key in summary if key.endswith("_loss_first")]
    return [
        {
            "loss of": name.replace("_", " "),
            "before": f"{summary[f'{name}_loss_first']:.4f}",
            "after": f"{summary[f'{name}_loss_last']:.4f}",
            "farthest point, before": f"{summary[f'{name}_reach_first']:.2f}",
            "after all steps": f"{summary[f'{name}_reach_last']:.2f}",
        }
        for name in names
    ]


def figures(
    folder: RunFolder,
    experiment: str,
    tracks: dict[str, np.ndarray],
    rows: list[dict[str, Any]],
    every: int,
) -> None:
    """Loss by step, points before and after, and `figures/points.gif`.

    Args:
      folder: of the run.
      experiment: its name.
      tracks: points at every checkpoint by loss, [checkpoints, points, 2].
      rows: of the steps.
      every: steps between checkpoints.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import animation
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(tracks), figsize=(5 * len(tracks), 3.5), squeeze=False)
    for name, axis in zip(tracks, axes[0], strict=True):
        axis.plot([row["step"] - 1 for row in rows], [row[f"{name.replace(' ', '_')}_loss"] for row in rows])
        axis.set(xlabel="steps done", ylabel="loss", title=f"{experiment}, {name}")
        axis.grid(alpha=0.3)
    folder.save_figure("loss", figure)
    plt.close(figure)

    figure, axes = plt.subplots(len(tracks), 2, figsize=(9, 4.5 * len(tracks)), squeeze=False)
    for (name, track), line in zip(tracks.items(), axes, strict=True):
        for axis, points, when in zip(line, (track[0], track[-1]), ("before", "after"), strict=True):
            axis.scatter(*points.T, s=6)
            axis.set(title=f"{name}, {when}", aspect="equal")
    folder.save_figure("points", figure)
    plt.close(figure)

    figure, axes = plt.subplots(1, len(tracks), figsize=(4.5 * len(tracks), 4.5), squeeze=False)
    scatters = []
    for (name, track), axis in zip(tracks.items(), axes[0], strict=True):
        low, high = track.min((0, 1)), track.max((0, 1))
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", title=name)
        scatters.append(axis.scatter(*track[0].T, s=6))

    def show(frame: int) -> list[Any]:
        figure.suptitle(f"step {frame * every}")
        for scatter, track in zip(scatters, tracks.values(), strict=True):
            scatter.set_offsets(track[frame])
        return scatters

    frames = len(next(iter(tracks.values())))
    film = animation.FuncAnimation(figure, show, frames=frames)
    save_gif(folder, "points", film)
    plt.close(figure)
