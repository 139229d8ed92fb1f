"""Our factors, those of two other KFAC libraries and of the port of the authors' hooks agree with the definition.

`kfac_peers` says how their scales differ.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from kfac_peers import curvlinops_factors, kfac_jax_factors
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers import surgeon_reference
from jaxlab.models import LINEARS, stack_layers
from jaxlab.models.huggingface import config_from_hf
from jaxlab.models.linear import linear
from jaxlab.models.safetensors_weights import params_from_safetensors, tensor_name
from jaxlab.models.taps import Tapped
from jaxlab.pruning.factors import accumulate, init_factors, means

N, T, INPUTS, HIDDEN, CLASSES = 3, 6, 4, 5, 7


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(directory, windows) of a tiny Llama whose query heads share keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory, np.random.default_rng(0).integers(0, 97, (N, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def definition(llama):
    """A and G by weight: kept inputs and output gradients of one sequence at a time, summed in float64."""
    directory, windows = llama
    model = surgeon_reference.load(directory)
    seen = {}

    def watch(name):
        def hook(module, given, output):
            output.retain_grad()
            seen[name] = given[0], output

        return hook

    for name, module in surgeon_reference.linears(model).items():
        module.register_forward_hook(watch(name))
    pairs = {name: [0.0, 0.0] for name in surgeon_reference.linears(model)}
    for window in windows:
        ids = torch.from_numpy(window.astype(np.int64))[None]
        model(ids, labels=ids).loss.backward()
        for name, (given, output) in seen.items():
            for i, rows in enumerate((given.detach()[0], output.grad[0])):
                pairs[name][i] += (rows.double().T @ rows.double()).numpy() / windows.size
    return pairs


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for layer, pair in expected.items():
        for theirs, right in zip(found[layer], pair, strict=True):
            assert np.linalg.norm(theirs - right) < tolerance * np.linalg.norm(right), layer


def test_hooks_of_the_reference_give_the_same_kronecker_product(llama, definition):
    directory, windows = llama
    found = surgeon_reference.curvature(surgeon_reference.load(directory), windows)
    expected = {}
    for name, (A, G) in definition.items():
        a, g = np.linalg.norm(A), np.linalg.norm(G)
        expected[name] = A * np.sqrt(g / a), G * np.sqrt(a / g)
    assert_same({name: (pair.A.numpy(), pair.G.numpy()) for name, pair in found.items()}, expected, 1e-5)


@pytest.fixture(scope="module")
def ours(llama):
    """Factors from `accumulate`, a batch of all windows, by weight."""
    directory, windows = llama
    cfg = config_from_hf(json.loads((directory / "config.json").read_text()), source=directory)
    params = stack_layers(params_from_safetensors(directory, cfg))
    A, G = means(accumulate(params, cfg, windows, init_factors(params)))
    return {
        tensor_name(cfg, name, layer): (np.asarray(A[name][layer]), np.asarray(G[name][layer]))
        for name in LINEARS
        for layer in range(cfg.num_layers)
    }


def test_ours_are_those_of_the_definition(ours, definition):
    assert_same(ours, definition, 1e-5)


@pytest.mark.slow  # makes an environment on first use
def test_curvlinops_factors_are_ours(llama, definition, ours):
    found = curvlinops_factors(*llama)
    assert_same(found, definition, 1e-5)
    assert_same(ours, found, 1e-5)


@pytest.mark.slow  # makes an environment on first use
def test_kfac_jax_factors_are_those_of_our_taps():
    random = np.random.default_rng(0)
    shapes = {"first": (HIDDEN, INPUTS), "bias": (HIDDEN,), "second": (CLASSES, HIDDEN)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    inputs, targets = random.normal(size=(N, T, INPUTS)), random.integers(0, CLASSES, (N, T - 1))
    past_mean = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]

    def run(taps, x):
        outputs = x @ weights["first"].T + weights["bias"] + taps["first"]
        hidden = jnp.tanh(past_mean @ outputs)
        return hidden, hidden @ weights["second"].T + taps["second"]

    def mean_loss(taps, x, y):
        return -jax.nn.log_softmax(run(taps, x)[1][:-1])[jnp.arange(T - 1), y].mean()

    def tapped_loss(dummies, x, y):
        first, second = (Tapped(weights[name], dummies[name], None, "moment", "float64") for name in dummies)
        hidden = jnp.tanh(past_mean @ (linear(x[None], first) + weights["bias"]))
        scores = linear(hidden, second)[0, :-1]
        return -jax.nn.log_softmax(scores)[jnp.arange(T - 1), y].mean()

    expected = {name: [0.0, 0.0] for name in ("first", "second")}
    ours = dict.fromkeys(expected, 0.0)
    with jax.enable_x64(True):
        zeros = {"first": jnp.zeros((T, HIDDEN)), "second": jnp.zeros((T, CLASSES))}
        for x, y in zip(inputs, targets, strict=True):
            gradients = jax.grad(mean_loss)(zeros, x, y)
            layer_inputs = {"first": np.c_[x, np.ones(T)], "second": np.asarray(run(zeros, x)[0])}
            dummies = {name: jnp.zeros((len(weights[name]),) * 2) for name in expected}
            moments = jax.grad(tapped_loss)(dummies, jnp.asarray(x), y)
            for name, pair in expected.items():
                ours[name] += np.asarray(moments[name]) / (N * T)
                g = np.asarray(gradients[name])
                pair[0] += layer_inputs[name].T @ layer_inputs[name] / (N * T)
                pair[1] += g.T @ g / (N * T)
    found = kfac_jax_factors(weights, inputs, targets)
    assert_same(found, expected, 1e-12)
    for name, G in ours.items():
        assert np.linalg.norm(G - found[name][1]) < 1e-12 * np.linalg.norm(G)
