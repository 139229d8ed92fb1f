import digits_net
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from jaxlab.errors import InputError
from jaxlab.evidence import Bound, MarglikConfig, cache_block, cached_evidence, init_marglik, marglik_update

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def digits():
    """Parameters, inputs and labels of the digits network, in float64."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, digits_net.PARAMS)
        yield params, jnp.asarray(digits_net.X), jnp.asarray(digits_net.Y)


def update(digits, config, state):
    return marglik_update(KEY, digits_net.apply, *digits, state, total=60, config=config)


def test_steps_on_a_block_go_through_the_printed_values(digits):
    config = MarglikConfig(steps=2, damping=0.0)
    state, before = jax.jit(lambda s: update(digits, config, s))(
        init_marglik(digits[0], config=config, precision=0.7)
    )
    assert float(before.value) == pytest.approx(-282.1404, abs=1e-4)
    block = cache_block(KEY, digits_net.apply, *digits, total=60, config=Bound())
    assert float(cached_evidence(block, state.hyper, config=Bound()).value) == pytest.approx(
        -269.5139, abs=1e-4
    )
    assert float(state.hyper.log_sigma) == 0.0


def test_adam_climbs_and_moves_each_number_by_its_rate(digits):
    config = MarglikConfig(rule="adam", steps=1, learning_rate=0.1)
    start = init_marglik(digits[0], config=config, precision=0.7)
    step = jax.jit(lambda s: update(digits, config, s))
    state, before = step(start)
    # The first step of Adam is the rate in the direction of the gradient, which at .7 is (W1, b1, W2, b2) > 0 but W2.
    moved = {name: float(state.hyper.log_delta[name] - start.hyper.log_delta[name]) for name in digits[0]}
    assert moved == pytest.approx({"W1": 0.1, "b1": 0.1, "W2": -0.1, "b2": 0.1}, abs=1e-4)
    for _ in range(9):
        state, after = step(state)
    assert float(after.value) > float(before.value) + 5


def test_linear_model_reaches_the_printed_optimum(double_precision):
    data = load_diabetes()
    x = jnp.asarray((data.data - data.data.mean(0)) / data.data.std(0))
    y = jnp.asarray((data.target - data.target.mean()) / data.target.std())
    config = MarglikConfig(bound=Bound(likelihood="gaussian"), steps=2, damping=0.0)

    @jax.jit
    def round_(state):
        noise_over_prior = jnp.exp(2 * state.hyper.log_sigma + state.hyper.log_delta["w"])
        weights = jnp.linalg.solve(x.T @ x + noise_over_prior * jnp.eye(10), x.T @ y)

        def apply(p, x):
            return x @ p["w"][:, None]

        return marglik_update(KEY, apply, {"w": weights}, x, y[:, None], state, total=442, config=config)

    state = init_marglik({"w": jnp.zeros(10)}, config=config, precision=2.0, sigma=0.7)
    for _ in range(40):
        state, evidence = round_(state)
    assert float(evidence.value) == pytest.approx(-485.776330, abs=1e-5)
    assert float(jnp.exp(state.hyper.log_delta["w"])) == pytest.approx(30.04, abs=0.01)
    assert float(jnp.exp(2 * state.hyper.log_sigma)) == pytest.approx(0.4945, abs=1e-4)


def test_updates_map_over_priors(digits):
    config = MarglikConfig(steps=1)
    params, x, y = digits
    state = init_marglik(params, config=config, layout="scalar")
    two = jax.tree.map(lambda value: jnp.stack([value, value + 1]), state)

    def run(s):
        return marglik_update(KEY, digits_net.apply, params, x[:5], y[:5], s, total=60, config=config)

    many, _ = jax.jit(jax.vmap(run))(two)
    one, _ = jax.jit(run)(jax.tree.map(lambda value: value[1], two))
    np.testing.assert_allclose(many.hyper.log_delta[1], one.hyper.log_delta, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "newton"}, "rule is 'newton'"),
        ({"steps": 0}, "steps is 0"),
        ({"damping": 1.0}, "damping is 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        MarglikConfig(**options)


def test_wrong_starts_are_named():
    params = {"w": jnp.ones(2)}
    for options in ({"precision": -1.0}, {"sigma": 0.0}, {"layout": "element"}):
        name = next(iter(options)).replace("precision", "init")
        with pytest.raises(InputError, match=f"{name} is"):
            init_marglik(params, config=MarglikConfig(), **options)
