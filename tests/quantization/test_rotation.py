"""The rotation is orthogonal, and a model with its residual stream rotated is the same model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import forward, logits
from jaxlab.quantization import fold_rotation, rotate, unrotate
from jaxlab.quantization.rotation import random_signs, rotate_hessian


def matrix(signs):
    """Q as a matrix: its columns are the rotated unit vectors."""
    return np.asarray(rotate(jnp.eye(signs.shape[0]), signs)).T


@pytest.mark.parametrize("size", [1, 16, 12, 48, 36, 18])
def test_rotation_is_orthogonal_and_mixes(size):
    q = matrix(random_signs(jax.random.key(0), size))
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-6)
    assert np.abs(q).max() <= np.sqrt(2 / size) + 1e-6 or size == 1


def test_unrotate_undoes_rotate_and_is_the_transpose():
    signs = random_signs(jax.random.key(1), 36)
    x = jax.random.normal(jax.random.key(2), (3, 5, 36))
    np.testing.assert_allclose(unrotate(rotate(x, signs), signs), x, atol=1e-5)
    np.testing.assert_allclose(unrotate(x, signs), x @ matrix(signs), atol=1e-5)


def test_products_with_rotated_weights_and_inputs_stay():
    signs = random_signs(jax.random.key(3), 48)
    w, x = jax.random.normal(jax.random.key(4), (2, 7, 48))
    np.testing.assert_allclose(rotate(x, signs) @ rotate(w, signs).T, x @ w.T, atol=1e-4)


def test_different_keys_give_different_signs_of_both_kinds():
    first, second = (np.asarray(random_signs(jax.random.key(i), 256)) for i in (0, 1))
    assert 90 < first.sum() < 166 and 64 < (first != second).sum() < 192


def test_rotated_hessian_is_q_h_qt_and_that_of_rotated_inputs():
    signs = random_signs(jax.random.key(5), 24)
    x = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32)
    q = matrix(signs).astype(np.float64)
    h = x.T @ x / 50
    rotated = rotate_hessian(jnp.asarray(h), signs)
    np.testing.assert_allclose(rotated, q @ h @ q.T, atol=1e-5)
    rotated_x = np.asarray(rotate(x, signs))
    np.testing.assert_allclose(rotated, rotated_x.T @ rotated_x / 50, atol=1e-5)


CASES = {
    "llama": {},
    "llama-tied": {"tied": True},
    "llama-biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"layer_windows": (5, 5)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_folded_rotation_leaves_the_logits(case):
    params, cfg = toy(case.split("-")[0], **CASES[case])
    tokens = toy_tokens()
    folded, folded_cfg = fold_rotation(params, cfg, random_signs(jax.random.key(6), 32))
    assert folded_cfg == dataclasses.replace(cfg, tie_embeddings=False)
    exact, rotated = (
        np.asarray(logits(p, c, forward(p, c, tokens).hidden))
        for p, c in ((params, cfg), (folded, folded_cfg))
    )
    np.testing.assert_allclose(rotated, exact, atol=1e-4 * np.abs(exact).max())
    assert np.abs(folded["layers"]["q"] - params["layers"]["q"]).max() > 0.1


def test_folding_refuses_a_model_that_normalises_its_branches():
    params, cfg = toy("gemma3", tied=True, sandwich_norms=True, qk_norm=True, norm_offset=1.0)
    with pytest.raises(InputError, match="gemma3 normalises each branch's output"):
        fold_rotation(params, cfg, random_signs(jax.random.key(0), 32))


@pytest.mark.parametrize("function", [rotate, unrotate])
def test_signs_of_another_length_are_refused(function):
    with pytest.raises(InputError, match="x has 8 columns, but signs has 4"):
        function(jnp.zeros((2, 8)), jnp.zeros(4, bool))
