"""Heads on hidden states against torch."""

import jax
import numpy as np
import pytest
import torch

from jaxlab.errors import InputError
from jaxlab.models import class_scores, init_head, state_values

STATES = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)


def torch_head(head, activation):
    layers = []
    for layer in head:
        outputs, inputs = layer["weight"].shape
        twin = torch.nn.Linear(inputs, outputs)
        twin.weight.data, twin.bias.data = (
            torch.tensor(np.asarray(layer[name])) for name in ("weight", "bias")
        )
        layers += [twin, activation()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(jax.nn.relu, torch.nn.ReLU), (jax.nn.sigmoid, torch.nn.Sigmoid)]
)
def test_scores_and_gradients_equal_torch(ours, theirs):
    head = init_head(jax.random.key(0), 6, 5, hidden=(8, 7))
    model, states = torch_head(head, theirs), torch.tensor(STATES, requires_grad=True)
    scores = model(states)
    (scores**2).sum().backward()
    found = class_scores(head, STATES, activation=ours)
    np.testing.assert_allclose(found, scores.detach().numpy(), atol=1e-6)
    gradient = jax.grad(lambda states: (class_scores(head, states, activation=ours) ** 2).sum())(STATES)
    np.testing.assert_allclose(gradient, states.grad.numpy(), atol=1e-5)


def test_a_head_begins_as_torchs_layers_do():
    head = init_head(jax.random.key(1), 400, hidden=(300,))
    theirs = torch.nn.Linear(400, 300)
    for name in ("weight", "bias"):
        ours, other = np.asarray(head[0][name]), getattr(theirs, name).detach().numpy()
        assert ours.shape == other.shape and np.abs(ours).max() <= 400**-0.5
        assert ours.std() == pytest.approx(other.std(), rel=0.1) and abs(ours.mean()) < 0.005


def test_a_value_is_one_number_a_state():
    head = init_head(jax.random.key(0), 6, hidden=())
    weight, bias = np.asarray(head[0]["weight"])[0], np.asarray(head[0]["bias"])[0]
    np.testing.assert_allclose(state_values(head, STATES), STATES @ weight + bias, rtol=1e-5, atol=1e-6)
    assert jax.vmap(state_values, (None, 0))(head, STATES).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_head(jax.random.key(0), 0), "width is 0; it must be at least 1"),
        (lambda: init_head(jax.random.key(0), 4, hidden=(3, 0)), "hidden is 0; it must be at least 1"),
        (lambda: init_head(jax.random.key(0), 4, 0), "outputs is 0; it must be at least 1"),
        (lambda: state_values(init_head(jax.random.key(0), 6, 2), STATES), "head has 2 outputs"),
        (lambda: class_scores(init_head(jax.random.key(0), 5, 2), STATES), "cannot act on inputs of width 6"),
    ],
)
def test_wrong_input_is_an_input_error(call, message):
    with pytest.raises(InputError, match=message):
        call()
