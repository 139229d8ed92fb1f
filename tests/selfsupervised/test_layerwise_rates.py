"""LARS against a transcription of solo-learn's step, and optax's where the two agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.errors import InputError
from jaxlab.selfsupervised import lars


def transcribed(params, gradients, *, rates, weight_decay, momentum, eta, eps, clip):
    """Parameters after each step, in NumPy."""
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    path = []
    for rate, gradient in zip(rates, gradients, strict=True):
        params = dict(params)
        for name, p in params.items():
            g = gradient[name]
            norms = np.linalg.norm(p), np.linalg.norm(g)
            if p.ndim != 1 and min(norms) > 0:
                local = eta * norms[0] / (norms[1] + norms[0] * weight_decay + eps)
                local = min(local / rate, 1) if clip else local
                g = (g + weight_decay * p) * local
            velocity[name] = momentum * velocity[name] + g
            params[name] = p - rate * velocity[name]
        path.append(params)
    return path


@pytest.mark.parametrize("clip", [True, False])
def test_steps_are_those_of_solo_learn(clip, double_precision):
    rng = np.random.default_rng(0)
    shapes = {
        "kernel": (3, 4),
        "small gradient": (5, 2),
        "bias": (4,),
        "no gradient": (2, 2),
        "zeros": (2, 3),
    }
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    params["zeros"] *= 0
    gradients = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(4)]
    for gradient in gradients:
        gradient["small gradient"] *= 1e-3
        gradient["no gradient"] *= 0
    rates = [0.1, 0.3, 0.2, 0.05]
    options = {"weight_decay": 1e-2, "momentum": 0.9, "eta": 0.02, "eps": 1e-8, "clip": clip}
    expected = transcribed(params, gradients, rates=rates, **options)
    optimizer = lars(lambda step: jnp.asarray(rates)[step], **options)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for gradient, wanted in zip(gradients, expected, strict=True):
        params, state = step(params, state, gradient)
        for name in shapes:
            np.testing.assert_allclose(params[name], wanted[name], rtol=1e-12, err_msg=name)


def test_without_decay_clip_and_momentum_it_is_optaxs(double_precision):
    rng = np.random.default_rng(1)
    params, gradient = ({"kernel": jnp.asarray(rng.standard_normal((3, 4)))} for _ in range(2))
    ours = lars(0.1, momentum=0, eps=0, clip=False)
    theirs = optax.lars(0.1, trust_coefficient=0.02, momentum=0)
    found, _ = ours.update(gradient, ours.init(params), params)
    expected, _ = theirs.update(gradient, theirs.init(params), params)
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-12)


def test_it_chains_and_vmaps_over_runs():
    """Three learning rates at once, a constant rate each."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    gradient = jax.tree.map(lambda p: 0.5 * p, params)

    def first_step(rate):
        optimizer = optax.chain(optax.identity(), lars(lambda step: rate))
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    steps = jax.vmap(first_step)(jnp.array([0.01, 0.1, 1.0]))
    # |p| / |g| is 2: the trust is 0.04, clipped at the rate.
    np.testing.assert_allclose(steps["kernel"][:, 0, 0], [-0.005, -0.02, -0.02], rtol=1e-6)
    np.testing.assert_allclose(steps["bias"][:, 0], [-0.005, -0.05, -0.5], rtol=1e-6)


def test_wrong_use_is_named():
    for wrong, message in (
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"eta": 0}, "eta is 0"),
        ({"eps": -1}, "eps is -1"),
    ):
        with pytest.raises(InputError, match=message):
            lars(**({"learning_rate": 0.1} | wrong))
    optimizer = lars(0.1)
    with pytest.raises(InputError, match="params is None"):
        optimizer.update({}, optimizer.init({}))
