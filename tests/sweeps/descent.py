"""A recipe small enough for sweeps in tests: noisy descent on a quadratic, then on until it is near."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.errors import InputError
from jaxlab.sweeps import Sweepable


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the descent."""

    rate: float = 0.1
    """Step size, between 0 and 1."""
    noise: float = 0.1
    """Of the gradient."""
    dimension: int = 3
    """Of the space."""
    flavour: str = "plain"
    """A word."""
    steps: int = 20
    """Most steps."""
    seed: int = 0
    """First seed."""

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise InputError(f"rate is {self.rate}, but must lie between 0 and 1")


PRESETS = {"smoke": Config(steps=4), "cpu": Config()}


def train(config):
    def one(options, key):
        start, noise = jax.random.split(key)
        x = jax.random.normal(start, (config.dimension,))

        def step(x, key):
            gradient = x + options["noise"] * jax.random.normal(key, x.shape)
            return x - options["rate"] * gradient, jnp.sum(x**2)

        x, losses = jax.lax.scan(step, x, jax.random.split(noise, config.steps))
        near = jax.lax.while_loop(
            lambda s: jnp.sum(s[0] ** 2) > 1e-3, lambda s: (s[0] * 0.9, s[1] + 1), (x, 0)
        )
        return {"loss": losses, "more": near[1]}

    return one


SWEEP = Sweepable(train, traced=("rate", "noise"), steps=lambda config: np.arange(config.steps), lanes=4)


def main(argv):
    """The command line with this recipe among its systems."""
    from jaxlab import cli, recipes

    recipes.SYSTEMS["descent"] = recipes.System("descent", "Descent", "0000.00000", "sweeps", "descent")
    return cli.main(argv)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
