"""Scores of continuations are those of each prompt and continuation on their own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_twins import ONE_A_FAMILY, random_tokens, twin

from jaxlab.errors import InputError
from jaxlab.models import continuations, forward, score_continuations, token_logprobs
from jaxlab.models.buckets import length_bucket
from jaxlab.models.config import ModelConfig

PROMPTS = np.array([11, 4], np.int32)
LENGTHS = np.array([[3, 1, 5], [5, 0, 2]], np.int32)


def inputs():
    return random_tokens((2, 13)), PROMPTS, random_tokens((2, 3, 5), 1), LENGTHS


def torch_logprobs(model, prompt, continuation):
    """One row at a time, no padding."""
    if not len(continuation):
        return np.zeros(0)
    row = torch.tensor(np.concatenate([prompt, continuation]), dtype=torch.long)[None]
    with torch.no_grad():
        scores = torch.log_softmax(model(row).logits[0].double(), dim=-1).numpy()
    at = np.arange(len(prompt) - 1, len(prompt) - 1 + len(continuation))
    return scores[at, continuation]


@pytest.mark.parametrize("case", ONE_A_FAMILY)
def test_every_family_equals_torch_row_by_row(case):
    model, params, cfg = twin(case)
    prompt, prompt_len, branches, lengths = inputs()
    scores = score_continuations(params, cfg, prompt, prompt_len, branches, lengths)
    for b in range(2):
        for k in range(3):
            theirs = torch_logprobs(model, prompt[b, : prompt_len[b]], branches[b, k, : lengths[b, k]])
            np.testing.assert_allclose(scores.token_logprobs[b, k, : lengths[b, k]], theirs, atol=1e-4)
            assert not np.asarray(scores.token_logprobs[b, k, lengths[b, k] :]).any()
            assert float(scores.total[b, k]) == pytest.approx(theirs.sum(), abs=2e-4)


@pytest.mark.parametrize("case", ["gemma3", "gpt2"])
def test_gradients_equal_those_of_separate_rows(case):
    _, params, cfg = twin(case)
    prompt, prompt_len, branches, lengths = inputs()
    weights = jnp.asarray([[0.3, -1.0, 0.7], [1.1, 0.0, -0.4]])

    def packed(params):
        scores = score_continuations(params, cfg, prompt, prompt_len, branches, lengths, chunk=3)
        return (weights * scores.total).sum()

    rows, masks = np.zeros((6, 18), np.int32), np.zeros((6, 18), bool)
    for row, (b, k) in enumerate(np.ndindex(2, 3)):
        begin, end = prompt_len[b], prompt_len[b] + lengths[b, k]
        rows[row, :begin] = prompt[b, :begin]
        rows[row, begin:end] = branches[b, k, : lengths[b, k]]
        masks[row, begin:end] = True

    def separate(params):
        return (weights.reshape(-1, 1) * token_logprobs(params, cfg, rows, masks)).sum()

    ours, theirs = jax.grad(packed)(params), jax.grad(separate)(params)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5 * max(1, float(jnp.abs(other).max())))


def test_the_prompts_state_and_scores_do_not_depend_on_the_other_continuations_or_rows():
    _, params, cfg = twin("gemma3")
    prompt, prompt_len, branches, lengths = inputs()
    scores = score_continuations(params, cfg, prompt, prompt_len, branches, lengths)
    alone = score_continuations(params, cfg, prompt[1:], prompt_len[1:], branches[1:, 2:], lengths[1:, 2:])
    np.testing.assert_allclose(scores.total[1, 2], alone.total[0, 0], atol=1e-5)
    np.testing.assert_allclose(scores.prompt_hidden[1], alone.prompt_hidden[0], atol=1e-5)
    np.testing.assert_array_equal(scores.last_hidden[1, 1], scores.prompt_hidden[1])
    whole = np.concatenate([prompt[1, : PROMPTS[1]], branches[1, 2, : LENGTHS[1, 2]]])[None]
    hidden = forward(params, cfg, whole).hidden[0]
    np.testing.assert_allclose(scores.prompt_hidden[1], hidden[PROMPTS[1] - 1], atol=1e-5)
    np.testing.assert_allclose(scores.last_hidden[1, 2], hidden[-1], atol=1e-5)
    # What stands in the padding is never looked at.
    prompt, branches = prompt.copy(), branches.copy()
    prompt[0, PROMPTS[0] :], branches[0, 0, 3:] = 7, 9
    padded = score_continuations(params, cfg, prompt, prompt_len, branches, lengths)
    np.testing.assert_array_equal(padded.token_logprobs, scores.token_logprobs)


def test_works_under_jit_and_vmap():
    _, params, cfg = twin("qwen3")
    prompt, prompt_len, branches, lengths = inputs()
    expected = score_continuations(params, cfg, prompt, prompt_len, branches, lengths).total
    run = functools.partial(score_continuations, params, cfg)

    @jax.jit
    @jax.vmap
    def one(*row):
        return run(*(x[None] for x in row)).total[0]

    np.testing.assert_allclose(one(prompt, prompt_len, branches, lengths), expected, atol=1e-5)


def test_prompts_of_similar_length_share_a_program(monkeypatch):
    _, params, cfg = twin("llama")
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(continuations._score.__wrapped__, n=2)
    monkeypatch.setattr(continuations, "_score", jax.jit(traced, static_argnames=("cfg", "chunk")))
    for time in (33, 36, 40, 41, 48):
        prompt = random_tokens((1, time))
        score_continuations(params, cfg, prompt, np.array([time]), prompt[None, :, :2], np.array([[2]]))
    with pytest.raises(AssertionError, match="traced > 2 times"):
        score_continuations(params, cfg, random_tokens((1, 57)), np.array([57]), prompt[None, :, :2], [[2]])


def test_buckets_waste_at_most_a_quarter():
    widths = [length_bucket(n, smallest=1) for n in range(1, 3000)]
    assert all(n <= width <= max(8, 1.25 * n) for n, width in enumerate(widths, 1))
    assert widths == sorted(widths) and widths[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert len(set(widths[1024:2048])) == 4 and length_bucket(3) == 16
    with pytest.raises(InputError, match="length is 0; it must be at least 1"):
        length_bucket(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_len": [11, 14]}, r"prompt_len is \[11, 14\]; each must be 1 to 13"),
        ({"continuation_len": [[3, 1, 6], [0, 0, 0]]}, "continuation_len is .*; each must be 0 to 5"),
        ({"continuation_len": [3, 1]}, r"continuation_len has shape \(2,\); it must be \(2, 3\)"),
        ({"continuations": np.zeros((2, 3), np.int32)}, r"continuations has shape \(2, 3\); it must be \[2,"),
        ({"continuations": np.full((2, 3, 5), 97, np.int32)}, "97"),
        ({"prompt": np.zeros((2, 510), np.int32)}, "exceed the model's 512 positions"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_wrong_input_is_an_input_error(change, message):
    _, params, cfg = twin("llama")
    names = ("prompt", "prompt_len", "continuations", "continuation_len")
    with pytest.raises(InputError, match=message):
        score_continuations(params, cfg, **{**dict(zip(names, inputs(), strict=True)), **change})


def test_encoders_are_refused():
    cfg = ModelConfig(**{**vars(twin("llama")[2]), "causal": False})
    with pytest.raises(InputError):
        score_continuations(twin("llama")[1], cfg, *inputs())
