"""Mixtures against scikit-learn: EM from one start, the whole fit from one set of labels, criteria, choice."""

import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from jaxlab.kernels.gaussian_mixtures import GaussianMixture, expectation_maximisation, fit_mixtures
from jaxlab.kernels.kmeans import lloyd, seeds
from jaxlab.kernels.lanes import pad_to_lanes

I = np.arange(60)
WAVES = np.stack([np.sin(1.3 * I), np.cos(0.7 * I), np.abs(np.sin(0.4 * I))], axis=1)
START = (np.array([0.5, 0.5]), np.array([[-0.5, 0, 0.5], [0.5, 0, 0.5]]), np.stack([4 * np.eye(3)] * 2))


def blobs(seed, n=250):
    """Three groups, one thin, so that candidates differ."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.2, 0.2, 0.1], [0.8, 0.3, 0.6], [0.4, 0.9, 0.3]])
    spread = np.array([[0.05, 0.1, 0.02], [0.1, 0.03, 0.1], [0.02, 0.02, 0.2]])
    which = rng.integers(0, 3, n)
    return centres[which] + spread[which] * rng.normal(size=(n, 3))


def sklearn_em(points, iterations, tolerance=0.0):
    weights, means, precisions = START
    model = SklearnMixture(
        2,
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
        max_iter=iterations,
        tol=tolerance,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(points)


def our_em(points, iterations, tolerance=0.0):
    weights, means, precisions = (jnp.asarray(part) for part in START)
    start = GaussianMixture(weights, means, jnp.asarray(np.linalg.inv(precisions)))
    run = jax.jit(
        lambda points, start, n: expectation_maximisation(
            points, start, tolerance=tolerance, max_iterations=n
        ),
        static_argnums=2,
    )
    return run(jnp.asarray(points), start, iterations)


def check_em(iterations, tolerance):
    model = sklearn_em(WAVES, iterations)
    mixture, total, done = our_em(WAVES, iterations)
    assert int(done) == iterations
    np.testing.assert_allclose(total / 60, model.score(WAVES), atol=tolerance)
    np.testing.assert_allclose(mixture.weights, model.weights_, atol=tolerance)
    np.testing.assert_allclose(mixture.means, model.means_, atol=tolerance)
    np.testing.assert_allclose(mixture.covariances, model.covariances_, atol=tolerance)
    return mixture, total


@pytest.mark.parametrize("iterations", [1, 20])
def test_em_from_one_start_is_sklearns_in_float32(iterations):
    check_em(iterations, 1e-4)


def test_em_from_one_start_is_sklearns_and_the_specs_in_float64(double_precision):
    for iterations, score in ((1, -2.299528), (5, -2.244746), (20, -2.240434)):
        mixture, total = check_em(iterations, 1e-8)
        np.testing.assert_allclose(total / 60, score, atol=1e-6)
    np.testing.assert_allclose(mixture.weights, [0.488878, 0.511122], atol=1e-6)
    np.testing.assert_allclose(
        mixture.covariances[0],
        [[0.104532, 0.044312, -0.017803], [0.044312, 0.514366, -0.002217], [-0.017803, -0.002217, 0.101585]],
        atol=1e-6,
    )


def test_em_stops_where_sklearn_stops(double_precision):
    model = sklearn_em(WAVES, 100, 1e-3)
    _, total, done = our_em(WAVES, 100, 1e-3)
    assert model.converged_ and int(done) == model.n_iter_
    np.testing.assert_allclose(total / 60, model.score(WAVES), atol=1e-8)


def test_lloyd_from_one_start_is_sklearns(double_precision):
    points = blobs(0)
    clusters = (2, 5)
    columns = pad_to_lanes(jnp.asarray(points.T))
    starts = seeds(jax.random.key(1), columns, len(points), clusters=clusters)
    centres, labels = lloyd(columns, len(points), starts, clusters=clusters)
    for i, (k, first) in enumerate(((2, 0), (5, 2))):
        model = KMeans(k, init=np.asarray(starts[first : first + k]), n_init=1).fit(points)
        np.testing.assert_allclose(centres[first : first + k], model.cluster_centers_, atol=1e-9)
        assert np.array_equal(labels[i, : len(points)], model.labels_)
        assert np.all(np.asarray(labels[i, len(points) :]) == -1)


def test_seeds_are_points_and_as_good_as_sklearns():
    """Greedy k-means++: the mean inertia of the seeds over many draws, within three standard errors of sklearn's."""
    points = blobs(1, n=100)
    columns = pad_to_lanes(jnp.asarray(points.T, jnp.float32))
    drawn = jax.jit(jax.vmap(lambda key: seeds(key, columns, 100, clusters=(2, 8))))(
        jax.random.split(jax.random.key(0), 300)
    )

    def inertia(centres):
        return ((points[:, None] - centres) ** 2).sum(-1).min(1).sum()

    assert np.asarray((drawn[:, :, None] == jnp.asarray(points, jnp.float32)).all(-1).any(-1)).all()
    for part, k in ((drawn[:, :2], 2), (drawn[:, 2:], 8)):
        ours = np.array([inertia(np.asarray(c)) for c in part])
        theirs = np.array([inertia(kmeans_plusplus(points, k, random_state=s)[0]) for s in range(300)])
        error = np.sqrt(ours.var() / 300 + theirs.var() / 300)
        assert abs(ours.mean() - theirs.mean()) < 3 * error


@pytest.fixture(scope="module")
def selections():
    """Fits of 8 data sets in float32, in loops of their own and in one loop."""
    points = jnp.asarray(np.stack([blobs(s) for s in range(8)]), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 8)
    fits = [
        jax.jit(
            jax.vmap(
                lambda key, x, alone=alone: fit_mixtures(key, x, components=(1, 3, 5), specialise_k=alone)
            )
        )(keys, points)
        for alone in (True, False)
    ]
    return np.asarray(points), keys, fits


def test_each_fit_is_sklearns_from_the_same_labels(selections):
    """The k-means labels give the first M-step; from there the same iterations and the same likelihood."""
    points, keys, (fit, _) = selections
    for i in range(3):
        columns = pad_to_lanes(jnp.asarray(points[i].T))
        starts = seeds(keys[i], columns, 250, clusters=(1, 3, 5))
        _, labels = lloyd(columns, 250, starts, clusters=(1, 3, 5))
        for c, k in enumerate((1, 3, 5)):
            onehot = np.eye(k)[np.asarray(labels[c, :250])]
            model = SklearnMixture(k)
            model._initialize_parameters = lambda X, random_state, xp=None, m=model, r=onehot: m._initialize(
                X, r
            )
            model.fit(points[i].astype(float))
            assert int(fit.iterations[i, c]) == model.n_iter_
            total = 250 * model.score(points[i].astype(float))
            np.testing.assert_allclose(fit.log_likelihoods[i, c], total, atol=0.05)
            np.testing.assert_allclose(fit.criteria[i, c], model.aic(points[i].astype(float)), atol=0.1)
        best = np.argmin(np.asarray(fit.criteria[i]))
        assert int(fit.components[i]) == (1, 3, 5)[best]


def test_one_loop_for_all_gives_the_same_fits(selections):
    _, _, (alone, together) = selections
    assert np.array_equal(alone.iterations, together.iterations)
    assert len(set(np.asarray(alone.iterations[:, 2]).tolist())) > 1
    np.testing.assert_allclose(alone.log_likelihoods, together.log_likelihoods, atol=0.02)
    for a, b in zip(alone.mixture, together.mixture, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_batch_is_fitted_as_its_items_are(selections):
    points, keys, (fit, _) = selections
    one = jax.jit(lambda key, x: fit_mixtures(key, x, components=(1, 3, 5)))
    for i in (0, 5):
        single = one(keys[i], jnp.asarray(points[i]))
        assert np.array_equal(single.iterations, fit.iterations[i])
        np.testing.assert_allclose(single.mixture.means, fit.mixture.means[i], atol=1e-5)


def test_padding_has_no_weight(selections):
    _, _, (fit, _) = selections
    mixture = jax.tree.map(lambda leaf: np.asarray(leaf), fit.mixture)
    for i, k in enumerate(np.asarray(fit.components)):
        np.testing.assert_allclose(mixture.weights[i, :k].sum(), 1, atol=1e-5)
        assert not mixture.weights[i, k:].any() and not mixture.means[i, k:].any()
        assert np.array_equal(mixture.covariances[i, k:], np.broadcast_to(np.eye(3), (5 - k, 3, 3)))
        assert np.linalg.eigvalsh(mixture.covariances[i]).min() > 0


@pytest.mark.parametrize(
    ("criterion", "reference"), [("aic", False), ("bic", False), ("aicc", False), ("aicc", True)]
)
def test_criteria(criterion, reference):
    """Against sklearn's number of parameters; teachDeepRL's aicc counts those of one dimension, not two."""
    n = 24
    points = jnp.asarray(blobs(2, n=n)[:, :2], jnp.float32)
    fit = jax.jit(
        lambda key, x: fit_mixtures(
            key, x, components=(2, 4), criterion=criterion, aicc_reference=reference, specialise_k=False
        )
    )(jax.random.key(0), points)
    for c, k in enumerate((2, 4)):
        p = SklearnMixture(k).fit(np.asarray(points))._n_parameters()
        q = k * 3 - 1 if reference else p
        penalty = {
            "aic": 2 * p,
            "bic": p * np.log(n),
            "aicc": 2 * p + (2 * q * (q + 1) / (n - q - 1) if n > q + 1 else np.inf),
        }[criterion]
        np.testing.assert_allclose(fit.criteria[c], penalty - 2 * fit.log_likelihoods[c], rtol=1e-6)
    assert np.isinf(fit.criteria[1]) == (criterion == "aicc" and not reference)


@pytest.mark.parametrize("alone", [True, False])
def test_equal_points_stay_finite(alone):
    points = jnp.full((20, 3), 0.3)
    fit = jax.jit(lambda key, x: fit_mixtures(key, x, components=(2, 3), specialise_k=alone))(
        jax.random.key(0), points
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit))
    np.testing.assert_allclose(np.diagonal(fit.mixture.covariances[0]), np.full(3, 1e-6), atol=1e-9)


def test_bad_arguments_are_refused():
    key, points = jax.random.key(0), jnp.zeros((5, 2))
    with pytest.raises(ValueError, match=r"components is \(2, 6\); each must be in 1..5"):
        fit_mixtures(key, points, components=(2, 6))
    with pytest.raises(ValueError, match="must be .n, D. with D in 1..16"):
        fit_mixtures(key, jnp.zeros((30, 17)))
    with pytest.raises(ValueError, match="criterion is 'dic'; it must be one of aic, bic, aicc"):
        fit_mixtures(key, points, components=(2,), criterion="dic")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    shapes = (
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4)),
        jax.ShapeDtypeStruct((4, 20, 3), jnp.float32),
    )
    run = jax.jit(jax.vmap(lambda key, x: fit_mixtures(key, x, components=(2, 3))))
    assert jax.export.export(run, platforms=[platform])(*shapes).platforms == (platform,)
