import dataclasses

import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.evidence import Bound, Hyper, partition_evidence, stochastic_evidence

KEY = jax.random.key(0)
PRINTED = {30: 223.0817, 20: 258.0338, 12: 300.8167, 10: 311.0015, 6: 344.9260, 5: 358.7938, 1: 456.5397}
"""Log-determinants by block size, outputs joint, delta = .7."""


@pytest.fixture(scope="module")
def digits():
    """Parameters, data, and prior of the digits network, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
        hyper = Hyper(jnp.log(jnp.asarray(0.7, jnp.float64)), jnp.zeros(()))
        yield params, jnp.asarray(digits_net.X), jnp.asarray(digits_net.Y), hyper


@pytest.fixture(scope="module")
def bound(digits):
    params, x, y, hyper = digits

    @jax.jit(static_argnames="config")
    def logdet(partition, config, key=KEY):
        return partition_evidence(key, digits_net.apply, params, x, y, hyper, partition, config=config).logdet

    return logdet


def root_kernel(root):
    """I + K with a given factor, [60, R, 60, R], in NumPy."""
    J = np.concatenate([digits_net.jacobians()[name] for name in digits_net.NAMES], axis=2)
    A = np.einsum("ncr,ncp->nrp", root, J).reshape(-1, J.shape[2])
    R = root.shape[2]
    return (np.eye(len(A)) + A @ A.T / 0.7).reshape(60, R, 60, R)


def determinant(matrix):
    side = int(np.sqrt(matrix.size))
    return np.linalg.slogdet(matrix.reshape(side, side))[1]


def cut(size):
    return np.random.default_rng(0).permutation(60).reshape(-1, size)


def label_groups():
    groups = [np.flatnonzero(digits_net.Y == label) for label in range(10)]
    widest = max(map(len, groups))
    return np.stack([np.pad(group, (0, widest - len(group)), constant_values=-1) for group in groups])


@pytest.fixture(scope="module")
def closed_root():
    p = digits_net.probabilities()
    return np.sqrt(p)[:, :, None] * np.eye(10) - p[:, :, None] * np.sqrt(p)[:, None]


def test_partition_table_is_the_printed_one(bound, closed_root):
    K = root_kernel(closed_root)
    for size, printed in PRINTED.items():
        brute = sum(determinant(K[block][:, :, block]) for block in cut(size))
        assert brute == pytest.approx(printed, abs=1e-4)
        if size in (30, 10):  # a program each
            assert float(bound(jnp.asarray(cut(size)), Bound())) == pytest.approx(brute, abs=1e-8)
    assert float(bound(jnp.asarray(label_groups()), Bound())) == pytest.approx(276.3281, abs=1e-4)


def test_one_block_of_everything_is_the_evidence(bound):
    assert float(bound(jnp.arange(60)[None], Bound())) == pytest.approx(171.81151287, abs=1e-8)


@pytest.mark.parametrize(
    ("rotation", "printed"),
    [("symmetric", 335.0), ("eigenbasis", 320.2), ("cholesky", 330.9), ("closed", 357.7849)],
)
def test_class_partition_depends_on_the_rotation_as_printed(bound, rotation, printed):
    found = float(bound(jnp.arange(60)[None], Bound(rows="classes", rotation=rotation)))
    assert found == pytest.approx(printed, abs=1e-4 if rotation == "closed" else 0.05)


def test_class_and_data_partition_is_the_printed_one(bound):
    found = float(bound(jnp.asarray(cut(10)), Bound(rows="classes", rotation="closed")))
    assert found == pytest.approx(604.6029, abs=1e-4)


def test_diag_rule_is_that_of_the_published_code(bound):
    p = digits_net.probabilities()
    J = np.concatenate([digits_net.jacobians()[name] for name in digits_net.NAMES], axis=2)
    wanted = 0.0
    for c in range(10):
        K = J[:, c] @ J[:, c].T / 0.7
        # Columns alone are multiplied there.
        wanted += np.linalg.slogdet(np.eye(60) + K * (p[:, c] - p[:, c] ** 2))[1]
    found = bound(jnp.arange(60)[None], Bound(rows="classes", output_rows="diag"))
    assert float(found) == pytest.approx(wanted, abs=1e-8)


def two_classes(params, x):
    """J J^T = [[1, -1], [-1, 1]] at equal probabilities."""
    return params["w"] * x[:, :1] * jnp.array([[1.0, -1.0]])


def test_factor_rows_bound_where_the_diag_rule_does_not(double_precision):
    params, hyper = {"w": jnp.zeros(())}, Hyper(jnp.zeros(()), jnp.zeros(()))
    options = (two_classes, params, jnp.ones((1, 1)), jnp.zeros(1, int), hyper, jnp.array([[0]]))
    logdets = {
        rows: float(partition_evidence(KEY, *options, config=Bound(rows=rows[0], output_rows=rows[1])).logdet)
        for rows in (("joint", "factor"), ("classes", "factor"), ("classes", "diag"))
    }
    assert logdets["joint", "factor"] == pytest.approx(np.log(2), abs=1e-12)
    assert logdets["classes", "factor"] >= np.log(2) - 1e-12
    assert logdets["classes", "diag"] == pytest.approx(2 * np.log(1.25), abs=1e-12)


@pytest.fixture(scope="module")
def random_bounds():
    """Log-determinants of 8 examples of a random linear model with 3 classes, over partitions padded to [8, 8]."""
    with jax.enable_x64(True):

        def model(params, x):
            return jnp.tanh(x @ params["W"]) @ params["V"]

        def logdets(seed, partition, rotation):
            keys = jax.random.split(jax.random.key(seed), 3)
            params = {"W": jax.random.normal(keys[0], (4, 5)), "V": jax.random.normal(keys[1], (5, 3))}
            x = 2 * jax.random.normal(keys[2], (8, 4))
            hyper = Hyper(jnp.zeros(()), jnp.zeros(()))
            y = jnp.zeros(8, int)
            return jnp.stack(
                [
                    partition_evidence(
                        KEY, model, params, x, y, hyper, partition, config=Bound(rows=rows, rotation=rotation)
                    ).logdet
                    for rows in ("joint", "classes")
                ]
            )

        yield jax.jit(logdets, static_argnums=2)


def padded(labels):
    """Blocks of equal labels."""
    blocks = [np.flatnonzero(labels == label) for label in range(8)]
    return jnp.asarray([np.pad(block, (0, 8 - len(block)), constant_values=-1) for block in blocks])


@given(
    seed=st.integers(0, 2**20),
    coarse=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    halves=st.lists(st.booleans(), min_size=8, max_size=8),
    rotation=st.sampled_from(["symmetric", "eigenbasis"]),
)
def test_bounds_are_bounds_and_finer_is_looser(random_bounds, seed, coarse, halves, rotation):
    coarse = np.array(coarse)
    fine = 2 * coarse + np.array(halves)
    exact = random_bounds(seed, padded(np.zeros(8, int)), rotation)
    coarser, finer = (random_bounds(seed, padded(labels), rotation) for labels in (coarse, fine))
    chain = [float(exact[0]), float(coarser[0]), float(finer[0]), float(finer[1])]
    assert chain == sorted(chain) or np.diff(chain).min() > -1e-9
    assert float(coarser[0]) <= float(coarser[1]) + 1e-9 and float(coarser[1]) <= float(finer[1]) + 1e-9


@pytest.fixture(scope="module")
def estimates(digits):
    """Estimates from many blocks at once: `estimates(config, blocks, keys)`."""
    params, x, y, hyper = digits

    @jax.jit(static_argnames="config")
    def run(config, blocks, keys):
        def one(key, block):
            return stochastic_evidence(
                key, digits_net.apply, params, x[block], y[block], hyper, total=60, config=config
            )[1]

        return jax.lax.map(lambda pair: one(*pair), (keys, blocks))

    return run


def test_full_block_estimate_is_the_evidence(estimates):
    found = estimates(Bound(), jnp.arange(60)[None], jax.random.split(KEY, 1))
    assert float(found.value[0]) == pytest.approx(-282.14036644, abs=1e-8)


def test_estimates_average_to_the_bound_of_the_partition(digits, bound, estimates):
    blocks = jnp.asarray(cut(10))
    found = estimates(Bound(), blocks, jax.random.split(KEY, 6))
    assert float(found.logdet.mean()) == pytest.approx(PRINTED[10], abs=1e-4)
    assert float(found.loglik.mean()) == pytest.approx(-174.36338783, abs=1e-8)
    assert np.allclose(found.quad, found.quad[0])
    np.testing.assert_allclose(found.value, found.loglik - found.quad / 2 - found.logdet / 2, rtol=1e-12)


@pytest.mark.parametrize(("rows", "mean", "deviation"), [("joint", 314.9, 13.7), ("single", 616.1, 63.7)])
def test_random_draws_have_the_printed_mean_and_spread(estimates, rows, mean, deviation):
    draws = 240
    rng = np.random.default_rng(1)
    blocks = jnp.asarray(np.stack([rng.choice(60, 10, replace=False) for _ in range(draws)]))
    config = Bound(rows=rows, rotation="closed")
    logdets = np.asarray(estimates(config, blocks, jax.random.split(KEY, draws)).logdet)
    assert logdets.mean() == pytest.approx(mean, abs=4 * deviation / np.sqrt(draws))
    assert logdets.std() == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize("rows", ["single", "single_iid"])
def test_sampled_rows_are_uniform_and_count_for_all(estimates, closed_root, rows):
    pair = [3, 8]
    K = root_kernel(closed_root)[pair][:, :, pair]
    keys = jax.random.split(KEY, 200)
    logdets = np.asarray(
        estimates(Bound(rows=rows, rotation="closed"), jnp.full((200, 2), jnp.array(pair)), keys).logdet
    )
    table = np.array(
        [[30 * 10 * determinant(K[[0, 1], [r, s]][:, [0, 1], [r, s]]) for s in range(10)] for r in range(10)]
    )
    nearest = np.abs(logdets[:, None, None] - table).reshape(200, -1)
    assert nearest.min(1).max() < 1e-7
    first, second = np.divmod(nearest.argmin(1), 10)
    assert set(first) == set(second) == set(range(10))
    assert (first == second).all() if rows == "single" else (first != second).mean() > 0.7


def test_masked_examples_do_not_count(digits):
    params, x, y, hyper = digits

    @jax.jit(static_argnames="size")
    def estimate(mask, size):
        config = Bound(rows="classes")
        return stochastic_evidence(
            KEY, digits_net.apply, params, x[:size], y[:size], hyper, total=60, config=config, mask=mask
        )

    short, masked = estimate(None, 5), estimate(jnp.arange(8) < 5, 8)
    for one, other in zip(jax.tree.leaves(short), jax.tree.leaves(masked), strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-12)


def test_gradients_in_prior_noise_and_inputs_agree_with_finite_differences(digits):
    params, x, _, _ = digits
    targets = jnp.asarray(np.random.default_rng(5).normal(size=(4, 10)))
    hyper = Hyper({name: jnp.asarray(0.1, jnp.float64) for name in params}, jnp.asarray(-0.3, jnp.float64))
    config = Bound(likelihood="gaussian", rows="classes")

    @jax.jit
    def value(shift, log_delta, log_sigma):
        return stochastic_evidence(
            KEY,
            digits_net.apply,
            params,
            x[:4] * shift,
            targets,
            Hyper(hyper.log_delta | {"W1": log_delta}, log_sigma),
            total=60,
            config=config,
        )[0]

    start = (jnp.asarray(1.1), jnp.asarray(0.2), jnp.asarray(-0.3))
    slopes = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*start)
    for place in range(3):
        up, down = (value(*[v + sign * 1e-5 * (i == place) for i, v in enumerate(start)]) for sign in (1, -1))
        assert float(slopes[place]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)


def test_parameters_are_constants(digits):
    params, x, y, hyper = digits
    slope = jax.grad(
        lambda p: stochastic_evidence(
            KEY, digits_net.apply, p, x[:3], y[:3], hyper, total=60, config=Bound()
        )[0]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(slope)(params)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("likelihood", "probit"),
        ("rows", "all"),
        ("output_rows", "raw"),
        ("rotation", "left"),
        ("method", "ad"),
    ],
)
def test_unknown_options_are_named(field, value):
    with pytest.raises(InputError, match=f"{field} is '{value}'"):
        dataclasses.replace(Bound(), **{field: value})


def test_wrong_input_is_named(digits):
    params, x, y, hyper = digits
    with pytest.raises(InputError, match="output_rows is 'diag' with rows 'joint'"):
        Bound(output_rows="diag")
    with pytest.raises(InputError, match="total is 3, less than the 4"):
        stochastic_evidence(KEY, digits_net.apply, params, x[:4], y[:4], hyper, total=3, config=Bound())
