"""Layers that differ in width against torch models of full width with zeros in place of what was cut off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from narrow_layers import WIDTHS, narrow_twin
from torch_twins import random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models import (
    LayerWidths,
    evaluate,
    forward,
    generate,
    init_cache,
    logits,
    second_moments,
    stack_padded,
)
from jaxlab.models.loading import parameter_count


@pytest.mark.parametrize("case", ["llama-biases", "qwen3", "gemma3"])
def test_logits_equal_torch(case):
    model, params, cfg = narrow_twin(case)
    tokens = random_tokens((2, 20))
    ours = logits(params, cfg, forward(params, cfg, tokens).hidden)
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize("case", ["llama-biases", "qwen3", "gemma3"])
def test_filled_up_with_zeros_and_stacked_the_logits_stay(case):
    model, params, cfg = narrow_twin(case)
    stacked, uniform = stack_padded(params, cfg)
    assert uniform.layer_widths is None and stacked["layers"]["gate"].shape[1] == cfg.mlp_size
    tokens = random_tokens((2, 20))
    ours = logits(stacked, uniform, forward(stacked, uniform, tokens).hidden)
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)
    again, _ = stack_padded(stacked, uniform)
    jax.tree.map(np.testing.assert_array_equal, again, stacked)


@pytest.mark.parametrize("described", [True, False])
def test_decoding_with_a_cache_equals_torch(described):
    """Whether the configuration says how wide the layers are or leaves it to the weights."""
    model, params, cfg = narrow_twin("mistral")
    if not described:
        cfg = dataclasses.replace(cfg, layer_widths=None)
    tokens = random_tokens((2, 14))
    out = forward(params, cfg, tokens[:, :9], cache=init_cache(cfg, 2, 16))
    hidden = [out.hidden]
    for t in range(9, 14):
        out = forward(params, cfg, tokens[:, t : t + 1], cache=out.cache)
        hidden.append(out.hidden)
    ours = logits(params, cfg, jnp.concatenate(hidden, axis=1))
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)


def test_cache_has_the_heads_of_the_widest_layer():
    cfg = narrow_twin("llama", [LayerWidths(48, 1), LayerWidths(13, 0), LayerWidths(0, 1)])[2]
    assert init_cache(cfg, 2, 16).keys.shape == (3, 2, 16, 1, 8)


def test_a_model_without_any_head_generates():
    model, params, cfg = narrow_twin("llama", [LayerWidths(13, 0)] * 3)
    assert_generates_as_torch(model, params, cfg)


def test_greedy_generation_equals_torch():
    assert_generates_as_torch(*narrow_twin("llama"))


def assert_generates_as_torch(model, params, cfg):
    prompt = random_tokens((2, 7))
    ours = generate(params, cfg, prompt, jnp.array([7, 7]), jax.random.key(0), max_new=8).tokens
    theirs = model.generate(
        torch.tensor(prompt, dtype=torch.long), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    np.testing.assert_array_equal(ours, theirs[:, 7:])


def test_perplexity_equals_torch():
    model, params, cfg = narrow_twin("qwen3")
    windows = random_tokens((3, 20))
    log_p = torch.log_softmax(torch.tensor(torch_logits(model, windows)), dim=-1).numpy()
    theirs = -np.take_along_axis(log_p[:, :-1], windows[:, 1:, None], axis=-1).mean()
    assert evaluate(params, cfg, windows).mean_nll == pytest.approx(theirs, rel=1e-5)


def test_gradients_equal_torch():
    model, params, cfg = narrow_twin("llama")
    tokens = random_tokens((2, 12))
    model.zero_grad()
    torch.logsumexp(model(torch.tensor(tokens, dtype=torch.long)).logits, -1).mean().backward()

    def loss(params):
        return jax.nn.logsumexp(logits(params, cfg, forward(params, cfg, tokens).hidden), axis=-1).mean()

    ours = jax.jit(jax.grad(loss))(params)
    theirs = [layer.self_attn.k_proj.weight.grad.numpy() for layer in model.model.layers]
    np.testing.assert_allclose(ours["embed"], model.model.embed_tokens.weight.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours["layers"][1]["k"], theirs[1][:8], atol=1e-5)
    assert ours["layers"][0]["k"].shape == (0, 32)


def test_second_moments_have_the_widths_of_the_layers():
    _, params, cfg = narrow_twin("llama")
    sums = second_moments(params, cfg, random_tokens((2, 12))).sums
    assert [one.shape for one in sums["attention_output"]] == [(0, 0), (16, 16), (32, 32)]
    assert [one.shape for one in sums["mlp_hidden"]] == [(13, 13), (0, 0), (48, 48)]


@pytest.mark.parametrize("case", ["llama-tied", "llama-biases", "gemma3"])
def test_parameter_count_is_that_of_the_arrays(case):
    _, params, cfg = narrow_twin(case)
    assert parameter_count(cfg) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_full_widths_are_no_widths():
    cfg = twin("llama")[2]
    full = dataclasses.replace(cfg, layer_widths=((48, 2),) * 3)
    assert full == cfg and hash(full) == hash(cfg) and full.layer_widths is None


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        (WIDTHS[:2], r"layer_widths has 2 entries; it needs num_layers, 3"),
        (((48, 2), (49, 2), (48, 2)), r"layer_widths\[1\] is LayerWidths\(mlp_size=49"),
        (((48, 2), (48, 2), (48, -1)), r"layer_widths\[2\] .*num_kv_heads=-1"),
    ],
)
def test_impossible_widths_are_named(widths, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(twin("llama")[2], layer_widths=widths)


def test_layers_that_are_not_as_wide_as_said_are_named():
    _, params, cfg = narrow_twin("llama")
    other = dataclasses.replace(cfg, layer_widths=(WIDTHS[0], LayerWidths(5, 1), WIDTHS[2]))
    with pytest.raises(
        InputError, match=r"\[1\]\['gate'\] has shape \(0, 32\); this configuration has \(5, 32\)"
    ):
        forward(params, other, random_tokens((1, 4)))
    with pytest.raises(InputError, match="make it a tuple of layers"):
        forward(twin("llama")[1], cfg, random_tokens((1, 4)))
