"""Moves a cloud of points by the gradient of two-parameter persistence, and shows how it goes.

"modes" makes rings around the three modes of a fixed density; "circle" closes a noisy ring without losing its density,
beside the loss of one parameter that lets points escape. Settings are those of the authors' notebooks.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.files import atomic_file
from jaxlab.persistence.optimisation import (
    Loss,
    density_loss,
    modes_loss,
    persistence_loss,
    point_step,
    start,
)
from jaxlab.progress import Progress
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.recipes.persistence_optimisation_report import figures, table
from jaxlab.runs import RunFolder

__all__ = ["PRESETS", "Config", "run", "table"]

CENTRES = ((0.2, 0.2), (0.8, 0.4), (0.4, 0.7))


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the persistence-optimisation recipe."""

    experiment: Literal["modes", "circle"] = "modes"
    """modes: points uniform in a square, rings around the modes of a density. circle: a noisy ring with a blob of
    outliers, by distance and density, and by distance alone."""
    points: int = 500
    """Points; circle puts a quarter of them into the blob."""
    steps: int = 101
    """Steps of Adam."""
    rate: float = 0.01
    """Learning rate at the beginning."""
    decay: float = 0.0
    """Steps after which the rate has halved, as rate / (1 + step / decay), which convergence theorems ask for; 0 keeps
    it."""
    bandwidth: float = 0.2
    """Of the density in circle, in units of the points."""
    every: int = 10
    """Steps from one checkpoint and picture to the next."""
    seed: int = 0
    """Seed of the points."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, points=8, steps=1, every=1, decay=0)
        require_positive(self, "rate", "bandwidth")


PRESETS = {
    "smoke": Config(points=60, steps=12, every=4),
    "cpu": Config(),
    "gpu": Config(points=2000, steps=501),
}


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last checkpoint, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/persistence-optimisation-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: losses before and after, atoms, how far points went, seconds.

    Raises:
      InputError: an option cannot be used, or the loss is not finite.
      ResourceError: a package or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="persistence-optimisation") as folder:
        if folder.summary is not None:
            return folder.summary
        tracks = _tracks(config, folder, progress)
        arrays: dict[str, Any] = {_key(name): track for name, track in tracks.items()}
        with atomic_file(folder.artefact("trajectory.npz")) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
        rows = folder.metrics()
        figures(folder, config.experiment, tracks, rows, config.every)
        return folder.finish(_summary(config, tracks, rows))


def losses_of(config: Config) -> dict[str, Loss]:
    """What is lowered, by name; the first is the experiment's, others are there to compare."""
    if config.experiment == "modes":
        return {"two parameters": modes_loss(np.array(CENTRES))}
    return {
        "two parameters": density_loss(bandwidth=config.bandwidth),
        "one parameter": persistence_loss(),
    }


def cloud(config: Config) -> np.ndarray:
    """The points before the first step, float32 [points, 2]."""
    rng = np.random.default_rng(config.seed)
    if config.experiment == "modes":
        return rng.uniform(size=(config.points, 2)).astype(np.float32)
    blob = config.points // 4
    angles = rng.uniform(0, 2 * np.pi, config.points - blob)
    # Uniform in the area between radii 0.85 and 1.
    radii = np.sqrt(rng.uniform(0.85**2, 1, config.points - blob))
    ring = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    return np.concatenate([rng.uniform(-0.1, 0.2, (blob, 2)), ring]).astype(np.float32)


def _tracks(config: Config, folder: RunFolder, progress: Progress) -> dict[str, np.ndarray]:
    """Of every loss the points at every checkpoint, [checkpoints, points, 2]; the first are those before step 1."""
    optimizer = optax.adam(_rate(config))
    losses = losses_of(config)
    points = jnp.asarray(cloud(config))
    frames = 1 + -(-config.steps // config.every)
    states = {name: start(points, optimizer) for name in losses}
    tracks = {name: np.zeros((frames, *points.shape), np.float32) for name in losses}
    for track in tracks.values():
        track[0] = points
    done = 0
    restored = folder.restore_leaves(like=(states, tracks))
    if restored is not None:
        done, (states, tracks) = restored
        states = {name: one._replace(step=int(one.step)) for name, one in states.items()}
        tracks = {name: np.array(one) for name, one in tracks.items()}
    steps = {name: point_step(loss, optimizer) for name, loss in losses.items()}
    with progress.stage(config.experiment, config.steps, unit="steps") as stage:
        stage.skip(done)
        while done < config.steps:
            found: dict[str, float] = {}
            for name, step in steps.items():
                states[name], shown = step(states[name])
                found |= {f"{_key(name)}_{what}": value for what, value in shown.items()}
            done += 1
            folder.log(step=done, **found)
            if done % config.every == 0 or done == config.steps:
                for name, track in tracks.items():
                    track[-(-done // config.every)] = states[name].points
                folder.checkpoint_leaves(done, (states, tracks))
            stage.advance(1, loss=found[f"{_key(next(iter(losses)))}_loss"])
    return tracks


def _rate(config: Config) -> float | Callable[[Any], Any]:
    if not config.decay:
        return config.rate

    def rate(count: Any) -> Any:
        return config.rate / (1 + count / config.decay)

    return rate


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _summary(config: Config, tracks: dict[str, np.ndarray], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Losses are those before the first and before the last step."""
    summary: dict[str, Any] = {
        "experiment": config.experiment,
        "points": config.points,
        "steps": config.steps,
    }
    for name, track in tracks.items():
        key = _key(name)
        reach = np.linalg.norm(track - track[0].mean(0), axis=-1).max(axis=1)
        summary |= {
            f"{key}_loss_first": rows[0][f"{key}_loss"],
            f"{key}_loss_last": rows[-1][f"{key}_loss"],
            f"{key}_atoms_last": rows[-1][f"{key}_atoms"],
            f"{key}_reach_first": float(reach[0]),
            f"{key}_reach_last": float(reach[-1]),
        }
    return summary
