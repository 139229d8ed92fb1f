"""Leave-one-family-out against loops with scikit-learn and Adam written out in NumPy."""

import jax
import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA, FastICA
from sklearn.linear_model import Ridge

from jaxlab.errors import InputError
from jaxlab.phylogeny.regression import (
    RegressionConfig,
    initial_weights,
    leave_family_out,
    prediction_report,
)

SIZES = [16, 12, 20]
FAMILIES = ["a"] * 16 + ["b"] * 12 + ["c"] * 20
CONFIG = RegressionConfig(components=4)


@pytest.fixture(scope="module")
def models():
    """Distances of points in space, and scores that depend on where the points are."""
    rng = np.random.default_rng(0)
    points = rng.laplace(size=(48, 5)) + np.repeat(rng.normal(size=(3, 5)), SIZES, axis=0)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    return distances, 1 / (1 + np.exp(-points[:, 0] - 0.3 * rng.normal(size=48)))


def numpy_sigmoid_layer(weights, features, scores, config):
    """torch's Linear, Sigmoid, MSELoss and Adam(weight_decay=...)."""
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    inputs = np.hstack([features, np.ones((len(features), 1))])
    for t in range(1, config.steps + 1):
        out = 1 / (1 + np.exp(-inputs @ weights))
        gradient = (
            inputs.T @ (2 * (out - scores) * out * (1 - out)) / len(scores) + config.weight_decay * weights
        )
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weights = weights - config.learning_rate * (first / (1 - 0.9**t)) / (
            np.sqrt(second / (1 - 0.999**t)) + 1e-8
        )
    return weights


def test_predictions_are_those_of_a_loop_over_families(models, double_precision):
    distances, scores = models
    key = jax.random.key(0)
    found = leave_family_out(key, distances, scores, FAMILIES, config=CONFIG)
    start_key, weights_key = jax.random.split(key)
    start = np.asarray(jax.random.normal(start_key, (4, 4)))
    weights = np.asarray(initial_weights(weights_key, components=4, dtype=float))
    assert np.abs(weights[:-1]).max() < np.sqrt(6 / 5) and weights[-1] == 0
    for family in "abc":
        test = np.array([name == family for name in FAMILIES])
        train = ~test
        known, new = distances[np.ix_(train, train)], distances[np.ix_(test, train)]
        ica = FastICA(4, w_init=start, whiten="unit-variance").fit(known)
        fitted = numpy_sigmoid_layer(weights, ica.transform(known), scores[train], CONFIG)
        expected = 1 / (1 + np.exp(-ica.transform(new) @ fitted[:-1] - fitted[-1]))
        np.testing.assert_allclose(np.asarray(found.network)[test], expected, atol=1e-4)

        pca = PCA(4, whiten=True, svd_solver="full").fit(known)
        scale = np.sqrt(train.sum() / (train.sum() - 1))  # it divides by one less than the rows
        ridge = Ridge(alpha=1.0).fit(pca.transform(known) * scale, scores[train])
        expected = ridge.predict(pca.transform(new) * scale)
        np.testing.assert_allclose(np.asarray(found.ridge)[test], expected, atol=1e-6)


def test_a_family_is_predicted_without_its_own_scores(models):
    distances, scores = models
    changed = scores.copy()
    changed[:16] = 1 - changed[:16]
    before, after = (
        leave_family_out(jax.random.key(1), distances, values, FAMILIES, config=CONFIG)
        for values in (scores, changed)
    )
    np.testing.assert_array_equal(before.network[:16], after.network[:16])
    np.testing.assert_array_equal(before.ridge[:16], after.ridge[:16])
    assert (np.asarray(before.ridge)[16:] != np.asarray(after.ridge)[16:]).any()


def test_report_has_signed_correlations_of_scipy():
    predicted = np.array([0.1, 0.2, 0.4, 0.3, 0.2, 0.9, 0.5, 0.5])
    scores = np.array([0.2, 0.3, 0.6, 0.5, 0.6, 0.1, 0.2, 0.3])
    families = ["up"] * 3 + ["down"] * 3 + ["flat"] * 2
    report = prediction_report(predicted, scores, families)
    assert report.correlation == pytest.approx(pearsonr(predicted, scores)[0])
    assert report.mean_absolute_error == pytest.approx(np.abs(predicted - scores).mean())
    assert report.family_correlations["up"] == pytest.approx(pearsonr(predicted[:3], scores[:3])[0])
    assert report.family_correlations["down"] == pytest.approx(pearsonr(predicted[3:6], scores[3:6])[0])
    assert report.family_correlations["down"] < 0 and np.isnan(report.family_correlations["flat"])


def test_prediction_lists_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="predicted has 2 entries, scores 3 and families 3"):
        prediction_report(np.zeros(2), np.zeros(3), ["a"] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": np.zeros((48, 3))}, r"distances has shape \(48, 3\)"),
        ({"scores": np.zeros(3)}, r"scores has shape \(3,\) and families 48 entries; both must have 48"),
        (
            {"scores": np.r_[np.nan, 2, np.zeros(46)]},
            r"scores\[0\] = nan, scores\[1\] = 2.0 \(2 such models\)",
        ),
        ({"families": ["a"] * 48}, "families holds 1 families"),
        ({"families": ["a"] * 40 + ["b"] * 7 + ["c"]}, "one model alone of c; each must have at least 2"),
        ({"config": RegressionConfig(components=28)}, "components is 28; it must be below 28"),
    ],
)
def test_data_that_do_not_fit_are_refused(models, change, message):
    arguments = {"distances": models[0], "scores": models[1], "families": FAMILIES, "config": CONFIG} | change
    with pytest.raises(InputError, match=message):
        leave_family_out(jax.random.key(0), **arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"components": 0}, "components is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must not be negative"),
        ({"ridge": float("nan")}, "ridge is nan; it must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        RegressionConfig(**option)
