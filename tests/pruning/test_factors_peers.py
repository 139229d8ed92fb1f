"""Two other KFAC libraries and the definition agree on the factors of a small causal model.

`kfac_peers` says how their scales differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from kfac_peers import curvlinops_factors, kfac_jax_factors

N, T, INPUTS, HIDDEN, CLASSES = 3, 6, 4, 5, 7


class CausalModel(torch.nn.Module):
    """Two linear layers, between them tanh of the mean over all tokens so far; the last token predicts nothing."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(INPUTS, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, CLASSES, bias=False)

    def forward(self, x):
        past_mean = torch.tril(torch.ones(T, T, dtype=x.dtype)) / torch.arange(1, T + 1)[:, None]
        return self.second(torch.tanh(past_mean @ self.first(x)))[:, :-1].transpose(1, 2)


@pytest.fixture(scope="module")
def case():
    """(torch module, inputs, targets) in float64."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    targets = random.integers(0, CLASSES, (N, T - 1))
    return CausalModel().double(), random.normal(size=(N, T, INPUTS)), targets


@pytest.fixture(scope="module")
def definition(case):
    """A and G by layer: one gradient a sequence, one outer product a token."""
    module, inputs, targets = case
    first, bias, second = (parameter.detach().numpy() for parameter in module.parameters())
    past_mean = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]

    def run(taps, x):
        hidden = jnp.tanh(past_mean @ (x @ first.T + bias + taps["first"]))
        return hidden, hidden @ second.T + taps["second"]

    def mean_loss(taps, x, y):
        return -jax.nn.log_softmax(run(taps, x)[1][:-1])[jnp.arange(T - 1), y].mean()

    pairs = {name: [0.0, 0.0] for name in ("first", "second")}
    with jax.enable_x64(True):
        zeros = {"first": jnp.zeros((T, HIDDEN)), "second": jnp.zeros((T, CLASSES))}
        for x, y in zip(inputs, targets, strict=True):
            gradients = jax.grad(mean_loss)(zeros, x, y)
            layer_inputs = {"first": np.c_[x, np.ones(T)], "second": np.asarray(run(zeros, x)[0])}
            for name, pair in pairs.items():
                for a, g in zip(layer_inputs[name], np.asarray(gradients[name]), strict=True):
                    pair[0] += np.outer(a, a) / (N * T)
                    pair[1] += np.outer(g, g) / (N * T)
    return pairs


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for layer, pair in expected.items():
        for theirs, right in zip(found[layer], pair, strict=True):
            assert np.linalg.norm(theirs - right) < 1e-12 * np.linalg.norm(right), layer


def test_curvlinops_factors_have_the_agreed_scale(case, definition):
    pytest.importorskip("curvlinops")
    module, inputs, targets = case
    found = curvlinops_factors(
        module, torch.from_numpy(inputs), torch.from_numpy(targets), layers=["first", "second"]
    )
    assert_same(found, definition)


@pytest.mark.slow  # makes an environment on first use
def test_kfac_jax_factors_have_the_agreed_scale(case, definition):
    module, inputs, targets = case
    weights = [parameter.detach().numpy() for parameter in module.parameters()]
    assert_same(kfac_jax_factors(*weights, inputs, targets), definition)
