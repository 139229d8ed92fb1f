"""Scaling to the plane against points that are known, scikit-learn's SMACOF, and a float64 eigendecomposition."""

import jax
import numpy as np
import pytest
from joining_oracle import random_distances
from scipy.spatial.distance import cdist
from sklearn.manifold import smacof as sklearn_smacof

from jaxlab.errors import InputError
from jaxlab.phylogeny.scaling import classical_scaling, smacof


def test_points_in_the_plane_come_back_up_to_a_motion():
    points = np.random.default_rng(0).normal(size=(9, 2))
    found = jax.jit(classical_scaling)(cdist(points, points).astype(np.float32))
    np.testing.assert_allclose(cdist(found.points, found.points), cdist(points, points), atol=1e-5)
    assert float(found.shares.sum()) == pytest.approx(1, abs=1e-5)
    for axis in np.asarray(found.points).T:
        assert axis[np.abs(axis).argmax()] > 0


def test_shares_are_eigenvalues_over_the_sum_of_their_sizes():
    distances = random_distances(8, np.random.default_rng(1))
    centring = np.eye(8) - 1 / 8
    values = np.linalg.eigvalsh(-centring @ distances**2 @ centring / 2)[::-1]
    assert values.min() < 0
    found = classical_scaling(distances, dimensions=3)
    np.testing.assert_allclose(found.shares, values[:3] / np.abs(values).sum(), atol=1e-6)


def test_steps_of_smacof_are_those_of_scikit_learn(double_precision):
    distances = random_distances(8, np.random.default_rng(2))
    start = np.random.default_rng(3).normal(size=(8, 2))
    found = jax.jit(lambda d, s: smacof(d, s, steps=20))(distances, start)
    expected, stress = sklearn_smacof(
        distances, n_components=2, init=start, n_init=1, max_iter=20, eps=0, normalized_stress=False
    )
    assert float(found.stress) == pytest.approx(stress, rel=1e-9)
    np.testing.assert_allclose(found.points, expected, atol=1e-9)


def test_no_step_of_smacof_raises_the_stress():
    distances = random_distances(8, np.random.default_rng(4)).astype(np.float32)
    start = classical_scaling(distances).points
    stresses = [float(smacof(distances, start, steps=steps).stress) for steps in (0, 1, 2, 10, 100)]
    assert stresses == sorted(stresses, reverse=True) and stresses[-1] < stresses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classical_scaling(np.zeros((3, 2))), r"distances has shape \(3, 2\)"),
        (lambda: classical_scaling(np.zeros((3, 3)), dimensions=4), r"dimensions is 4; it must be in 1..3"),
        (
            lambda: smacof(np.zeros((3, 3)), np.zeros((2, 2))),
            r"start has shape \(2, 2\); it must be \(3, dimensions\)",
        ),
        (lambda: smacof(np.zeros((3, 3)), np.zeros((3, 2)), steps=-1), "steps is -1; it must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
