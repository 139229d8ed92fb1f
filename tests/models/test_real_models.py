"""The two real models against numbers recorded with torch when the specification was written."""

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxlab.data import text, token_ids
from jaxlab.models import evaluate, forward, generate, load, logits, save_hf, windows

CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def gemma():
    return load("pkg:gemma3-270m")


def last_logits(model, ids):
    params, cfg, _ = model
    return np.asarray(logits(params, cfg, forward(params, cfg, np.array([ids], np.int32)).hidden[:, -1:]))[
        0, 0
    ]


def test_next_token_of_smollm2(smollm2):
    ids = smollm2[2](CAPITAL)["input_ids"]
    found = last_logits(smollm2, ids)
    top = np.argsort(-found)[:5]
    assert top.tolist() == [7042, 260, 4528, 2250, 1315]
    assert smollm2[2].decode(top) == " Paris the London Le New"
    np.testing.assert_allclose(found[top], [17.3713, 14.8886, 13.2450, 13.0095, 12.9515], atol=5e-4)


def test_logits_and_losses_of_the_test_stream_of_smollm2(smollm2):
    params, cfg, tokenizer = smollm2
    ids = token_ids("sotu:test", tokenizer)[:512]
    first = np.asarray(logits(params, cfg, forward(params, cfg, ids[None, :8]).hidden))[0, 0, :4]
    np.testing.assert_allclose(first, [13.70057, 3.93261, 6.89665, 2.56250], atol=5e-4)
    nll = evaluate(params, cfg, ids[None]).nll[0]
    np.testing.assert_allclose(nll[:63].mean(), 3.925586, atol=2e-4)
    np.testing.assert_allclose(nll.mean(), 3.252569, atol=2e-4)


def test_greedy_answer_of_smollm2(smollm2):
    params, cfg, tokenizer = smollm2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    found = generate(
        params,
        cfg,
        np.array([prompt], np.int32),
        np.array([len(prompt)], np.int32),
        jax.random.key(0),
        max_new=16,
        stop_ids=cfg.eos_ids,
    )
    answer = np.asarray(found.tokens)[0, : int(found.lengths[0])]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_next_token_of_gemma(gemma):
    ids = gemma.tokenizer(CAPITAL)["input_ids"]
    found = last_logits(gemma, ids)
    top = np.argsort(-found)[:5]
    assert gemma.tokenizer.decode(top) == " the a Paris one known"
    np.testing.assert_allclose(found[top], [19.0915, 18.5476, 18.2686, 18.1130, 17.7839], atol=5e-4)


def perplexity(model, name, context, count):
    params, cfg, tokenizer = model
    bos_id = cfg.bos_id if cfg.add_bos else None
    return evaluate(params, cfg, windows(token_ids(name, tokenizer), context, bos_id=bos_id)[:count])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "ppl", "first"),
    [
        ("sotu:test", 16, 19.824, [3.11865, 2.97042, 3.05121, 2.95543]),
        ("sotu:fresh", 14, 22.780, [2.89163, 2.83454, 2.96193, 3.15320]),
        ("moby", 8, 45.960, [4.11099, 3.68741, 3.74801, 3.81121]),
    ],
)
def test_perplexity_of_smollm2(smollm2, name, count, ppl, first):
    found = perplexity(smollm2, name, 1024, count)
    assert abs(found.ppl / ppl - 1) < 0.002
    np.testing.assert_allclose(found.window_nll[:4], first, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ppl"), [("sotu:test", 16.831), ("moby", 67.039), ("sotu:fresh", 15.497)])
def test_perplexity_of_gemma(gemma, name, ppl):
    assert abs(perplexity(gemma, name, 512, 2).ppl / ppl - 1) < 0.002


def test_first_window_has_the_recorded_loss(smollm2):
    """A short form of the perplexity that every run can afford."""
    params, cfg, tokenizer = smollm2
    found = evaluate(params, cfg, windows(token_ids("sotu:fresh", tokenizer), 1024)[:1])
    np.testing.assert_allclose(found.window_nll, [2.89163], atol=1e-3)


PROMPTS = [
    CAPITAL,
    "Once upon a time",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics are",
    "x = 12 + 30\n    12",
    "My fellow Americans, the state of our Union",
    "Dear Sir or Madam,\n\n",
    "1, 1, 2, 3, 5, 8,",
    "Water boils at",
    "\u00c9t\u00e9 \u2603",
]


@pytest.mark.slow
def test_greedy_continuations_of_smollm2_equal_transformers(smollm2, tmp_path):
    """64 tokens after each of ten prompts; where torch itself sees a near tie, either choice is right."""
    params, cfg, tokenizer = smollm2
    save_hf(params, cfg, tokenizer, tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert encoded == [theirs_tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    padded = np.zeros((len(encoded), lengths.max()), np.int32)
    for row, ids in zip(padded, encoded, strict=True):
        row[: len(ids)] = ids
    ours = np.asarray(generate(params, cfg, padded, lengths, jax.random.key(0), max_new=64).tokens)
    # All at once takes torch a tenth of the time; its padding is on the left.
    ahead = lengths.max() - lengths
    shifted = np.stack([np.roll(row, n) for row, n in zip(padded, ahead, strict=True)])
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(shifted),
            attention_mask=torch.tensor(np.arange(lengths.max()) >= ahead[:, None]).long(),
            do_sample=False,
            min_new_tokens=64,
            max_new_tokens=64,
            eos_token_id=-1,
            pad_token_id=0,
        )
    for ids, row, own in zip(encoded, ours, theirs[:, lengths.max() :], strict=True):
        assert own.tolist() == row.tolist(), tokenizer.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_saved_real_model_has_the_same_logits_in_transformers(name, tmp_path):
    model = load(f"pkg:{name}")
    save_hf(*model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    ids = token_ids("sotu:fresh", model.tokenizer)[:64]
    if model.cfg.add_bos:
        ids = np.insert(ids, 0, model.cfg.bos_id)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None].astype(np.int64))).logits.numpy()
    found = np.asarray(logits(model.params, model.cfg, forward(model.params, model.cfg, ids[None]).hidden))
    np.testing.assert_allclose(found, expected, atol=5e-4)
    sample = text("sotu:valid")[:3000] + "  x\n    12"
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again(sample)["input_ids"] == model.tokenizer(sample)["input_ids"]
