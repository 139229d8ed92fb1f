"""ALP-GMM against the reference's sequence, a plain loop over episodes, and scikit-learn's mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, multivariate_normal
from teacher_checks import check_batches, check_samples, updated

from jaxlab.errors import InputError
from jaxlab.kernels.gaussian_mixtures import fit_mixtures
from jaxlab.teachers import ALPGMMConfig, TaskGaussian, alp_gmm_teacher, learning_progress, task_space
from jaxlab.teachers.task_mixtures import TaskMixture, component_probabilities, draw_task

SPACE = task_space({"height": (0, 3), "spacing": (0, 6)})
SMALL = ALPGMMConfig(fit_rate=30, components=(2, 3), history=70, specialise_k=False)
SCRIPT = [
    (0.1, 0.1, 0, 0),
    (0.9, 0.9, 0.1, 0),
    (0.5, 0.5, 0.2, 0),
    (0.2, 0.8, 0.3, 0),
    (0.8, 0.2, 0.4, 0),
    (0.1, 0.9, 0.5, 0),
    (0.12, 0.1, 0.7, 0.7),
    (0.88, 0.9, 0.05, 0.05),
    (0.5, 0.52, 0.9, 0.7),
    (0.13, 0.1, 0.65, 0.05),
    (0.5, 0.5, 0.95, 0.75),
    (0.81, 0.2, 0.1, 0.3),
]


def plain_progress(tasks, returns, window):
    """Episode by episode, as the paper says it."""
    alps = []
    for e in range(len(returns)):
        earlier = range(max(0, e - window), e)
        if e < 6:
            alps.append(0.0)
            continue
        nearest = min(earlier, key=lambda j: (((tasks[j] - tasks[e]) ** 2).sum(), j))
        alps.append(abs(returns[e] - returns[nearest]))
    return np.array(alps)


def test_scripted_episodes_have_the_references_progress():
    """All at once, in two blocks, and one by one."""
    script = np.array(SCRIPT, np.float32)
    tasks, returns, expected = jnp.asarray(script[:, :2]), jnp.asarray(script[:, 2]), script[:, 3]
    run = jax.jit(learning_progress, static_argnames=("count", "window"))
    np.testing.assert_allclose(run(tasks, returns, size=12, count=12, window=99), expected, atol=1e-6)
    np.testing.assert_allclose(run(tasks, returns, size=12, count=4, window=99), expected[8:], atol=1e-6)
    for e in range(12):
        np.testing.assert_allclose(
            run(tasks, returns, size=e + 1, count=1, window=99), expected[e : e + 1], atol=1e-6
        )


def test_progress_of_blocks_is_that_of_a_plain_loop_with_forgetting():
    """Every fit of a teacher whose slots are moved several times, against all episodes with a window of 70."""
    rng = np.random.default_rng(0)
    tasks = (rng.random((210, 2)) * [3, 6]).astype(np.float32)
    tasks[100:120] = tasks[:20]  # repeats of forgotten tasks
    returns = rng.random(210).astype(np.float32)
    expected = plain_progress(tasks.astype(float), returns, 70)
    teacher = alp_gmm_teacher(SMALL)
    state = teacher.init(jax.random.key(0), SPACE)
    for e in range(0, 210, 30):
        state = updated(teacher, state, tasks[e : e + 30], returns[e : e + 30])
        np.testing.assert_allclose(state.alps, expected[e : e + 30], atol=1e-6)
    assert int(state.forgotten) > 0


def test_history_forgets_exactly_the_oldest():
    """With a window of M the episode M + 1 back no longer counts, the episode M back does."""
    returns = jnp.arange(10.0)
    tasks = jnp.array([[0.0], [5], [1], [1], [1], [1], [1], [1], [0.0], [5]])
    for window, expected in ((8, 8.0), (7, 1.0)):
        progress = learning_progress(tasks, returns, size=9, count=1, window=window)
        assert float(progress[0]) == (8.0 if window == 8 else abs(8 - 2.0)), (window, expected)


@pytest.fixture(scope="module")
def learnt():
    """A teacher after 90 episodes whose returns grow at low tasks."""
    rng = np.random.default_rng(3)
    tasks = (rng.random((90, 2)) * [3, 6]).astype(np.float32)
    returns = np.where(tasks[:, 0] < 1, np.arange(90) / 90, 0.1).astype(np.float32)
    teacher = alp_gmm_teacher(SMALL)
    start = teacher.init(jax.random.key(0), SPACE)
    return teacher, start, updated(teacher, start, tasks, returns), tasks, returns


def test_mixture_is_that_of_tasks_with_progress(learnt):
    """The last fit, repeated from the state's key on rows that a plain loop made."""
    _, start, state, tasks, returns = learnt
    rows = np.column_stack([tasks[60:], plain_progress(tasks.astype(float), returns, 70)[60:]])
    key = start.key
    for _ in range(3):
        key, fit_key = jax.random.split(key)
    fit = jax.jit(lambda rows: fit_mixtures(fit_key, rows, components=(2, 3), specialise_k=False))(
        jnp.asarray(rows, jnp.float32)
    )
    k = int(fit.components)
    assert int(state.mixture.components) == k
    np.testing.assert_allclose(state.mixture.means, fit.mixture.means[:, :2], atol=1e-4)
    expected = np.asarray(fit.mixture.means[:k, 2])
    np.testing.assert_allclose(
        component_probabilities(state.mixture)[:k], expected / expected.sum(), atol=1e-4
    )
    covariances = np.einsum("kij,klj->kil", state.mixture.lower, state.mixture.lower)
    np.testing.assert_allclose(covariances, fit.mixture.covariances[:, :2, :2], atol=1e-4)


def two_gaussians(scores):
    return TaskMixture(
        jnp.asarray(scores),
        jnp.array([[1.0, 3], [2, 3], [0, 0]]),
        jnp.broadcast_to(jnp.array([[0.02, 0], [0.01, 0.03]]), (3, 2, 2)),
        jnp.int32(2),
    )


@pytest.mark.parametrize(("scores", "expected"), [((0.3, 0.1, 0), (0.75, 0.25)), ((0, 0, 0), (0.5, 0.5))])
def test_components_are_drawn_by_progress_alone(learnt, scores, expected):
    """All progress zero: each component is as likely, and the padding never is."""
    _, _, state, _, _ = learnt
    state = state._replace(mixture=two_gaussians(scores), random_task_ratio=jnp.float32(0.2))
    draw = jax.jit(jax.vmap(lambda key: draw_task(state, key, bootstrap=30, initial=None)))
    tasks = np.asarray(draw(jax.random.split(jax.random.key(0), 8000)))
    near = [np.linalg.norm(tasks - mean, axis=1) < 0.2 for mean in ([1, 3], [2, 3])]
    uniform = ~near[0] & ~near[1]
    in_discs = 0.2 * 2 * np.pi * 0.2**2 / 18
    counts = [near[0].sum(), near[1].sum(), uniform.sum()]
    shares = [0.8 * expected[0] + in_discs / 2, 0.8 * expected[1] + in_discs / 2, 0.2 - in_discs]
    assert chisquare(counts, np.array(shares) * 8000).pvalue > 0.01
    cloud = tasks[near[0]]
    np.testing.assert_allclose(np.cov(cloud.T), [[4e-4, 2e-4], [2e-4, 1e-3]], atol=1.5e-4)


def test_density_is_that_of_scipys_gaussians(learnt):
    teacher, _, state, tasks, _ = learnt
    state = state._replace(mixture=two_gaussians((0.3, 0.1, 0.0)))
    points = np.array([[1.0, 3], [1.02, 3.01], [2.01, 2.98], [0.2, 5]])
    covariance = [[4e-4, 2e-4], [2e-4, 1e-3]]
    expected = sum(
        0.8 * share * multivariate_normal(mean, covariance).pdf(points)
        for share, mean in ((0.75, (1, 3)), (0.25, (2, 3)))
    )
    found = jnp.exp(teacher.density(state, jnp.asarray(points, jnp.float32)))
    np.testing.assert_allclose(found, expected + 0.2 / 18, rtol=1e-3)


def test_bootstrap_is_uniform_or_the_experts():
    easy = ALPGMMConfig(fit_rate=30, components=(2,), initial=TaskGaussian((0.0, 6.0), (0.3, 0.6)))
    for config, mean in ((SMALL, (1.5, 3)), (easy, (0.12, 5.76))):
        teacher = alp_gmm_teacher(config)
        tasks = check_samples(teacher, teacher.init(jax.random.key(0), SPACE), SPACE, n=600)
        np.testing.assert_allclose(tasks.mean(0), mean, atol=0.25)


def test_batches_are_single_updates_also_across_fits():
    check_batches(alp_gmm_teacher(SMALL), SPACE, tolerance=1e-4)


def test_samples_after_a_fit_lie_in_the_box(learnt):
    teacher, _, state, _, _ = learnt
    check_samples(teacher, state, SPACE)


def test_metrics_say_what_was_fitted(learnt):
    teacher, start, state, tasks, _ = learnt
    figures = jax.jit(teacher.metrics)(state)
    probabilities = np.asarray(component_probabilities(state.mixture))
    probabilities = probabilities[probabilities > 0]
    assert int(figures["episodes"]) == 90 and int(figures["error"]) == 0
    assert float(figures["component_entropy"]) == pytest.approx(
        -np.sum(probabilities * np.log(probabilities)), abs=1e-5
    )
    assert float(figures["clipped_share"]) == 0
    assert float(teacher.metrics(start)["random_share"]) == 1
    at_bounds = updated(
        teacher, start, np.where(np.arange(30)[:, None] < 12, [0, 1], tasks[:30]), np.ones(30)
    )
    assert float(teacher.metrics(at_bounds)["clipped_share"]) == pytest.approx(0.4)


def test_normalised_tasks_change_the_metric():
    """Spacing counts half as much in [0, 6] beside height in [0, 3]."""
    tasks = np.tile([[0.0, 0], [1.0, 0], [0, 1.5], [0, 0.4]], (8, 1))[:30].astype(np.float32)
    tasks[-1] = [0, 1.0]
    tasks[:-1, 1] = np.where(tasks[:-1, 1] == 0.4, 6, tasks[:-1, 1])
    tasks[:-1][np.all(tasks[:-1] == 0, axis=1)] = [0.7, 1.0]
    returns = np.where(tasks[:, 1] == 1.5, 1.0, 0).astype(np.float32)
    returns[-1] = 0.25
    for normalise, unit in ((False, [1, 1]), (True, [3, 6])):
        config = ALPGMMConfig(
            fit_rate=30, components=(2, 3), history=70, specialise_k=False, normalise_tasks=normalise
        )
        teacher = alp_gmm_teacher(config)
        state = updated(teacher, teacher.init(jax.random.key(0), SPACE), tasks, returns)
        np.testing.assert_allclose(state.alps, plain_progress(tasks / unit, returns, 70), atol=1e-6)


def test_equal_tasks_stay_finite():
    teacher = alp_gmm_teacher(SMALL)
    state = updated(teacher, teacher.init(jax.random.key(0), SPACE), np.full((60, 2), 1.0), np.zeros(60))
    tasks, _ = teacher.sample_batch(state, jax.random.key(1), 50)
    assert np.isfinite(tasks).all()
    np.testing.assert_allclose(component_probabilities(state.mixture).sum(), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_rate": 5}, "fit_rate is 5; it must be >= 10, the most components"),
        ({"components": ()}, r"components is \(\)"),
        ({"random_task_ratio": 1.5}, r"random_task_ratio is 1.5; it must lie in \[0, 1\]"),
        ({"history": 100}, "history is 100; it must be >= fit_rate = 250"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ALPGMMConfig(**options)


def test_fits_need_more_rows_than_columns():
    space = task_space([(0, 1)] * 10)
    with pytest.raises(InputError, match="fit_rate is 10; it must be above 11"):
        alp_gmm_teacher(ALPGMMConfig(fit_rate=10)).init(jax.random.key(0), space)
    with pytest.raises(InputError, match="initial has 1 dimensions; it must have 10"):
        alp_gmm_teacher(ALPGMMConfig(initial=TaskGaussian((0.0,), (1.0,)))).init(jax.random.key(0), space)
