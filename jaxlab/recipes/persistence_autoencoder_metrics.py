"""How well codes keep classes, neighbours and densities of what they stand for.

Reference: Moor, Horn, Rieck, Borgwardt, "Topological autoencoders", 2020, section 5; Venna and Kaski, "Visualizing gene
interaction graphs with local multidimensional scaling", 2006, for trustworthiness and continuity.
"""

import numpy as np

from jaxlab.recipes.options import optional_module

METRICS = {
    "accuracy_1nn": 1,
    "accuracy_10nn": 1,
    "trustworthiness": 1,
    "continuity": 1,
    "density_kl": -1,
    "mse": -1,
}
"""1 where more is better, -1 where less is."""
_NEIGHBOURS = 10
_SIGMA = 0.1


def measure(
    inputs: np.ndarray,
    codes: np.ndarray,
    classes: np.ndarray,
    train_codes: np.ndarray,
    train_classes: np.ndarray,
) -> dict[str, float]:
    """All of `METRICS` but the reconstruction's error.

    Args:
      inputs: [n, pixels], n > 20.
      codes: [n, 2].
      classes: [n].
      train_codes: among which nearest neighbours are looked for.
      train_classes: theirs.
    """
    neighbours = optional_module("sklearn.neighbors", extra="persistence")
    trustworthiness = optional_module("sklearn.manifold", extra="persistence").trustworthiness
    accuracy = {}
    for k in (1, _NEIGHBOURS):
        fitted = neighbours.KNeighborsClassifier(k).fit(train_codes, train_classes)
        accuracy[f"accuracy_{k}nn"] = float(fitted.score(codes, classes))
    return accuracy | {
        "trustworthiness": float(trustworthiness(inputs, codes, n_neighbors=_NEIGHBOURS)),
        # The same with the roles changed: neighbours of inputs that are none of codes.
        "continuity": float(trustworthiness(codes, inputs, n_neighbors=_NEIGHBOURS)),
        "density_kl": density_kl(inputs, codes),
    }


def density_kl(inputs: np.ndarray, codes: np.ndarray, *, sigma: float = _SIGMA) -> float:
    """Divergence of the codes' density from the inputs', both at the points themselves, nats.

    Densities are sums of exp(-d^2 / sigma), with the largest distance scaled to 1, divided by their total.

    Args:
      inputs: [n, pixels], not all equal.
      codes: [n, 2], not all equal.
      sigma: > 0.
    """
    p, q = (_density(points, sigma) for points in (inputs, codes))
    return float(np.sum(p * np.log(p / q)))


def _density(points: np.ndarray, sigma: float) -> np.ndarray:
    distances = optional_module("scipy.spatial.distance", extra="persistence").cdist(points, points)
    density = np.exp(-((distances / distances.max()) ** 2) / sigma).sum(1)
    return density / density.sum()
