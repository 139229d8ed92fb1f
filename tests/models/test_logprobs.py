import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_twins import random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models.logprobs import token_kl, token_logprobs


def torch_logprobs(model, tokens):
    return torch.tensor(torch_logits(model, tokens)).log_softmax(-1)[:, :-1]


def test_probabilities_of_all_next_tokens_sum_to_one():
    _, params, cfg = twin("llama-tied")
    prefix = np.repeat(random_tokens((1, 5)), cfg.vocab_size, axis=0)
    tokens = np.concatenate([prefix, np.arange(cfg.vocab_size, dtype=np.int32)[:, None]], axis=1)
    assert np.exp(token_logprobs(params, cfg, tokens)[:, -1]).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_every_chunk_size_gives_torch_values(chunk):
    model, params, cfg = twin("gemma3")
    tokens = random_tokens((3, 12))
    theirs = torch_logprobs(model, tokens).numpy()
    theirs = np.take_along_axis(theirs, tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(token_logprobs(params, cfg, tokens, chunk=chunk), theirs, atol=1e-4)


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_mask_zeroes_the_others_and_leaves_the_kept(kept):
    _, params, cfg = twin("llama")
    tokens = random_tokens((3, 12))
    mask = np.random.default_rng(0).random(tokens.shape) < kept
    whole = np.asarray(token_logprobs(params, cfg, tokens, chunk=4))
    masked = token_logprobs(params, cfg, tokens, mask, chunk=4)
    np.testing.assert_allclose(masked, np.where(mask[:, 1:], whole, 0.0), atol=1e-5)


def test_masked_gradient_equals_gradient_of_the_kept_terms():
    _, params, cfg = twin("llama")
    tokens = random_tokens((2, 12))
    mask = random_tokens((2, 12), seed=1) % 3 == 0

    def masked(head):
        return token_logprobs(dict(params, head=head), cfg, tokens, mask, chunk=4).sum()

    def whole(head):
        return (token_logprobs(dict(params, head=head), cfg, tokens) * mask[:, 1:]).sum()

    np.testing.assert_allclose(jax.grad(masked)(params["head"]), jax.grad(whole)(params["head"]), atol=1e-4)


def scores_at_once(jaxpr, vocabulary):
    """Size of the largest array over the vocabulary that a program makes, inner programs included."""
    size = 0
    for eqn in jaxpr.eqns:
        shapes = [var.aval.shape for var in eqn.outvars]
        size = max([size] + [np.prod(shape) for shape in shapes if shape[-1:] == (vocabulary,)])
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                size = max(size, scores_at_once(inner, vocabulary))
    return size


def test_scores_of_all_positions_never_exist():
    _, params, cfg = twin("llama")
    tokens = jnp.zeros((8, 33), jnp.int32)
    for function in (
        lambda params, chunk: token_logprobs(params, cfg, tokens, chunk=chunk),
        lambda params, chunk: token_kl(params, params, cfg, tokens, chunk=chunk),
    ):
        for chunk in (16, 256):
            program = jax.make_jaxpr(lambda params, f=function, n=chunk: f(params, n))(params)
            assert scores_at_once(program.jaxpr, cfg.vocab_size) == chunk * cfg.vocab_size


@pytest.mark.parametrize("chunk", [5, 1000])
def test_divergence_equals_brute_force_in_float64(chunk):
    model_p, params_p, cfg = twin("qwen3", 0)
    model_q, params_q, _ = twin("qwen3", 1)
    tokens = random_tokens((2, 12))
    log_p, log_q = (torch_logits(m, tokens)[:, :-1].astype(np.float64) for m in (model_p, model_q))
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    theirs = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(token_kl(params_p, params_q, cfg, tokens, chunk=chunk), theirs, atol=1e-4)


def test_divergence_of_a_model_from_itself_is_zero():
    _, params, cfg = twin("qwen3")
    np.testing.assert_allclose(token_kl(params, params, cfg, random_tokens((2, 12))), 0.0, atol=1e-6)


def test_bad_arguments_are_named():
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match="two tokens"):
        token_logprobs(params, cfg, random_tokens((2, 1)))
    with pytest.raises(InputError, match="chunk is 0"):
        token_kl(params, params, cfg, random_tokens((2, 4)), chunk=0)
    with pytest.raises(InputError, match="mask has shape"):
        token_logprobs(params, cfg, random_tokens((2, 4)), np.ones((2, 3), bool))
