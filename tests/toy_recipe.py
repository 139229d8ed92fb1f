"""A recipe small enough to be killed and resumed in a test: gradient descent on a quadratic."""

import time
from dataclasses import dataclass

import numpy as np

from jaxlab.errors import InputError
from jaxlab.progress import Progress
from jaxlab.runs import RunFolder


@dataclass(frozen=True)
class Config:
    """Options of the toy."""

    steps: int = 20
    """Number of gradient steps."""
    rate: float = 0.1
    """Step size, between 0 and 1."""
    pause: float = 0.0
    """Seconds slept after each step."""
    noisy: bool = False
    """Add noise to the gradient."""
    seed: int = 0
    """Seed of the starting point."""

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise InputError(f"rate is {self.rate}, but must lie between 0 and 1")


PRESETS = {"smoke": Config(steps=3), "cpu": Config()}


def run(config, *, out=None, resume=False, progress=None):
    if config.steps < 1:
        raise InputError(f"steps is {config.steps}, but must be at least 1")
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="toy") as folder:
        if folder.summary is not None:
            return folder.summary
        state = {"x": np.random.default_rng(config.seed).normal(size=3), "momentum": np.zeros(3)}
        restored = folder.restore(like=state)
        first = 0
        if restored is not None:
            first, state = restored
        with progress.stage("descending", config.steps, unit="steps") as stage:
            stage.skip(first)
            for step in range(first + 1, config.steps + 1):
                momentum = 0.9 * state["momentum"] - config.rate * state["x"]
                state = {"x": state["x"] + momentum, "momentum": momentum}
                loss = float(np.sum(state["x"] ** 2))
                folder.log(step=step, loss=loss)
                stage.advance(loss=loss)
                if step % 5 == 0:
                    folder.checkpoint(step, state)
                time.sleep(config.pause)
        return folder.finish({"loss": float(np.sum(state["x"] ** 2)), "steps": config.steps})


def main(argv):
    """The command line with the toy among its systems."""
    from jaxlab import cli, recipes

    recipes.SYSTEMS["toy"] = recipes.System("toy", "A toy", "0000.00000", "runs", "toy_recipe")
    return cli.main(argv)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
