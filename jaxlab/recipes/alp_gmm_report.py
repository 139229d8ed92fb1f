"""What a run of the alp-gmm recipe says in the end: its table, its curves, and the curriculum as an animation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.environments import HypercubeWorld
from jaxlab.recipes.animation import save_gif
from jaxlab.runs import RunFolder

_FRAMES = 40
"""Most of the animation."""


def summary(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mastered cells over students, at the end and at every point of the curve."""
    mastered = arrays["mastered"]
    last = mastered[:, -1].astype(float)
    return {
        "teacher": config.teacher,
        "students": len(mastered),
        "episodes": int(arrays["episodes"][-1]),
        "mastered": last.mean(),
        "mastered_std": last.std(ddof=1) if len(last) > 1 else 0.0,
        "mastered_lowest": last.min(),
        "mastered_highest": last.max(),
        "curve_episodes": arrays["episodes"],
        "curve_mastered": mastered.mean(axis=0, dtype=float),
    }


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    return [
        {
            "teacher": summary["teacher"],
            "episodes": summary["episodes"],
            "students": summary["students"],
            "mastered cells, %": f"{summary['mastered']:.1f} +- {summary['mastered_std']:.1f}",
            "lowest": f"{summary['mastered_lowest']:.0f}",
            "highest": f"{summary['mastered_highest']:.0f}",
        }
    ]


def figures(folder: RunFolder, config: Any, world: HypercubeWorld, arrays: Mapping[str, np.ndarray]) -> None:
    """`mastered.png`, and in two dimensions `curriculum.gif`: tasks of the first student over its competence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    low, middle, high = np.quantile(arrays["mastered"], [0.25, 0.5, 0.75], axis=0)
    axis.fill_between(arrays["episodes"], low, high, alpha=0.25, linewidth=0, label="quartiles")
    axis.plot(arrays["episodes"], middle, label="median")
    axis.set(
        xlabel="episodes", ylabel="mastered cells, %", title=f"{config.teacher}, {config.students} students"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    folder.save_figure("mastered", figure)
    plt.close(figure)
    if config.dimensions == 2:
        _curriculum(folder, config, world, arrays["tasks"])


def competence_after_blocks(world: HypercubeWorld, tasks: np.ndarray) -> np.ndarray:
    """Competence [blocks, cells] after each block of tasks [blocks, block, dim], played again."""

    @jax.jit
    def play(tasks: jax.Array) -> jax.Array:
        key = jax.random.key(0)

        def block(state: Any, own: jax.Array) -> tuple[Any, jax.Array]:
            state, _ = jax.lax.scan(
                lambda state, task: (world.episode(state, key, task)[0], None), state, own
            )
            return state, state.competence

        return jax.lax.scan(block, world.init(key), tasks)[1]

    return np.asarray(play(jnp.asarray(tasks)))


def _curriculum(folder: RunFolder, config: Any, world: HypercubeWorld, tasks: np.ndarray) -> None:
    from matplotlib import animation
    from matplotlib import pyplot as plt

    competence = competence_after_blocks(world, tasks).reshape(-1, config.cells, config.cells)
    shown = np.unique(np.linspace(0, len(tasks) - 1, _FRAMES).astype(int))
    figure, axis = plt.subplots(figsize=(5.5, 5))
    image = axis.imshow(
        competence[0].T, origin="lower", extent=(0, 1, 0, 1), vmin=0, vmax=100, cmap="viridis", aspect="equal"
    )
    points = axis.scatter(tasks[0, :, 0], tasks[0, :, 1], s=5, color="white", alpha=0.7)
    figure.colorbar(image, label="competence")

    def show(frame: int) -> list[Any]:
        block = shown[frame]
        image.set_data(competence[block].T)
        points.set_offsets(tasks[block, :, :2])
        axis.set_title(
            f"{config.teacher}: episodes {block * tasks.shape[1]} to {(block + 1) * tasks.shape[1]}"
        )
        return [image, points]

    save_gif(folder, "curriculum", animation.FuncAnimation(figure, show, frames=len(shown)))
    plt.close(figure)
