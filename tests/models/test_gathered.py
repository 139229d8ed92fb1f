import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_twins import random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models import Gathered, dense, forward, gather, logits, unstack_layers
from jaxlab.models.linear import linear

RNG = np.random.default_rng(0)
W = RNG.normal(size=(7, 5)).astype(np.float32)
X = RNG.normal(size=(2, 3, 5)).astype(np.float32)
ROWS = np.array([1, 0, 1, 1, 0, 0, 1], bool)
COLUMNS = np.array([0, 1, 1, 0, 1], bool)
ZEROED = W * ROWS[:, None] * COLUMNS


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(ROWS, COLUMNS), (ROWS, np.ones(5, bool)), (np.zeros(7, bool), COLUMNS), (ROWS, np.zeros(5, bool))],
)
def test_products_are_those_of_the_matrix_with_zeros(rows, columns):
    leaf, zeroed = gather(W, rows, columns), W * rows[:, None] * columns
    assert leaf.weight.shape == (rows.sum(), columns.sum())
    np.testing.assert_allclose(linear(jnp.asarray(X), leaf), X @ zeroed.T, atol=1e-5)
    np.testing.assert_array_equal(dense(leaf), zeroed)


def test_gradients_are_those_of_the_kept_entries():
    leaf = gather(W, ROWS, COLUMNS)
    g = RNG.normal(size=(2, 3, 7)).astype(np.float32)

    def loss(x, weight):
        return jnp.sum(g * linear(x, Gathered(weight, leaf.rows, leaf.columns, 7, 5)))

    x_gradient, w_gradient = jax.grad(loss, argnums=(0, 1))(jnp.asarray(X), leaf.weight)
    np.testing.assert_allclose(x_gradient, g @ ZEROED, atol=1e-5)
    np.testing.assert_allclose(w_gradient, np.einsum("bto,bti->oi", g, X)[ROWS][:, COLUMNS], atol=1e-5)


def test_stacked_leaves_can_be_scanned_and_made_dense():
    square = RNG.normal(size=(3, 5, 5)).astype(np.float32)
    masks = [(RNG.permutation(COLUMNS), RNG.permutation(COLUMNS)) for _ in range(3)]
    leaves = [gather(matrix, *mask) for matrix, mask in zip(square, masks, strict=True)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *leaves)
    zeroed = np.stack([w * rows[:, None] * cols for w, (rows, cols) in zip(square, masks, strict=True)])
    np.testing.assert_array_equal(dense(stacked), zeroed)
    out, _ = jax.lax.scan(lambda x, leaf: (linear(x, leaf), None), jnp.asarray(X), stacked)
    np.testing.assert_allclose(out, X @ zeroed[0].T @ zeroed[1].T @ zeroed[2].T, atol=1e-4)


def test_a_model_of_gathered_matrices_equals_torch_with_zeros():
    model, params, cfg = twin("llama-biases", seed=5)
    model, params = copy.deepcopy(model), unstack_layers(params)
    layers = []
    for index, layer in enumerate(params["layers"]):
        changed = dict(layer)
        for name, part in (("q", "self_attn"), ("v", "self_attn"), ("o", "self_attn"), ("down", "mlp")):
            rows, columns = (RNG.random(size) < 0.6 for size in layer[name].shape)
            changed[name] = gather(layer[name], rows, columns)
            module = getattr(getattr(model.model.layers[index], part), f"{name}_proj")
            module.weight.data[~rows] = 0.0
            module.weight.data[:, ~columns] = 0.0
        layers.append(changed)
    tokens = random_tokens((2, 12))
    ours = logits(params, cfg, forward(dict(params, layers=tuple(layers)), cfg, tokens).hidden)
    theirs = torch_logits(model, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bad_masks_and_inputs_are_named():
    with pytest.raises(
        InputError, match=r"kept_columns has dtype bool and shape \(4,\); it must be bool \(5,\)"
    ):
        gather(W, ROWS, COLUMNS[:4])
    with pytest.raises(InputError, match="kept_rows has dtype int64"):
        gather(W, np.flatnonzero(ROWS), COLUMNS)
    with pytest.raises(InputError, match="one matrix"):
        gather(np.stack([W, W]), ROWS, COLUMNS)
    with pytest.raises(InputError, match="width 5 cannot act on inputs of width 3"):
        linear(jnp.asarray(X[..., :3]), gather(W, ROWS, COLUMNS))
