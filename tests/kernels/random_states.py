"""States that tests look at."""

import numpy as np


def random_state(n, seed=0):
    """A normalised state of n wires."""
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=1 << n) + 1j * rng.normal(size=1 << n)
    return psi / np.linalg.norm(psi)
