"""Probes against scikit-learn, and measures of collapse in closed form."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jaxlab.errors import InputError
from jaxlab.selfsupervised import knn_accuracy, linear_probe, mean_cosine, spread


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    classes = rng.integers(0, 4, 900)
    rows = (centres[classes] + 0.9 * rng.normal(size=(900, 6))).astype(np.float32)
    return rows[:600], classes[:600], rows[600:], classes[600:]


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_neighbours_vote_as_scikit_learns(blobs, temperature):
    rows, classes, test_rows, test_classes = blobs

    def votes(distances):
        return np.ones_like(distances) if temperature is None else np.exp(-distances / temperature)

    theirs = KNeighborsClassifier(9, metric="cosine", weights=votes).fit(rows, classes)
    found = knn_accuracy(*blobs, neighbours=9, temperature=temperature)
    assert float(found) == pytest.approx(theirs.score(test_rows, test_classes), abs=0.004)


def test_the_linear_probe_comes_near_logistic_regression(blobs):
    rows, classes, test_rows, test_classes = blobs
    theirs = LogisticRegression(C=100).fit(rows, classes).score(test_rows, test_classes)
    assert 0.6 < theirs < 0.95
    found = linear_probe(*blobs, jax.random.key(0), epochs=30, batch=100)
    assert float(found) == pytest.approx(theirs, abs=0.02)
    shuffled = np.random.default_rng(1).permutation(test_classes)
    assert float(linear_probe(rows, classes, test_rows, shuffled, jax.random.key(0), batch=100)) < 0.4


def test_cosines_and_ranks_in_closed_form():
    # A simplex: cosines -1 / (n - 1), and n - 1 equal singular values.
    corners = np.eye(5, dtype=np.float32) - 0.2
    found = spread(corners)
    assert float(found.mean_cosine) == pytest.approx(-0.25, abs=1e-6)
    assert float(found.effective_rank) == pytest.approx(4, abs=1e-3)
    assert float(found.deviation) == pytest.approx(0.4, abs=1e-6)
    collapsed = spread(np.ones((7, 3), np.float32))
    assert float(collapsed.mean_cosine) == pytest.approx(1) and float(
        collapsed.effective_rank
    ) == pytest.approx(1)


def test_mean_cosine_equals_all_pairs():
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = units @ units.T
    assert float(mean_cosine(rows)) == pytest.approx(pairs[~np.eye(9, dtype=bool)].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, b, c, d: knn_accuracy(a, b[:-1], c, d),
            r"classes has shape \(599,\); it must be \(600,\)",
        ),
        (lambda a, b, c, d: knn_accuracy(a, b, c[:, :3], d), "test_features has width 3"),
        (lambda a, b, c, d: knn_accuracy(a, b, c, d, neighbours=601), "neighbours is 601"),
        (lambda a, b, c, d: linear_probe(a, b, c, d, jax.random.key(0), batch=601), "batch 601"),
        (lambda a, b, c, d: spread(a[:1]), "n >= 2"),
    ],
)
def test_wrong_input_is_an_input_error(blobs, call, message):
    with pytest.raises(InputError, match=message):
        call(*blobs)
