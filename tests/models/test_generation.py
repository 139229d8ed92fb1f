import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_twins import ONE_A_FAMILY, random_tokens, twin
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jaxlab.errors import InputError
from jaxlab.models import generation
from jaxlab.models.generation import generate
from jaxlab.models.logprobs import token_logprobs

KEY = jax.random.key(0)
NEW = 24


def ragged_prompts(lengths=(5, 17, 11)):
    prompt = random_tokens((len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        prompt[row, length:] = 0
    return prompt, np.array(lengths, np.int32)


def torch_greedy(model, prompt, **options):
    ids = torch.tensor(prompt, dtype=torch.long)[None]
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0} | options
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out[0, len(prompt) :].numpy()


@pytest.mark.parametrize("case", ONE_A_FAMILY)
def test_greedy_generation_of_ragged_prompts_equals_torch(case):
    model, params, cfg = twin(case)
    prompt, lengths = ragged_prompts()
    found = generate(params, cfg, prompt, lengths, KEY, max_new=NEW)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(found.tokens[row], torch_greedy(model, prompt[row, :length]))
    np.testing.assert_array_equal(found.lengths, [NEW] * 3)
    assert len(np.unique(found.tokens)) > 5


def test_stop_tokens_end_a_row_and_padding_follows():
    model, params, cfg = twin("llama")
    prompt, lengths = ragged_prompts()
    free = generate(params, cfg, prompt, lengths, KEY, max_new=NEW)
    stop = int(free.tokens[0, 6])
    found = generate(params, cfg, prompt, lengths, KEY, max_new=NEW, stop_ids=(stop, 96))
    for row, length in enumerate(lengths):
        theirs = torch_greedy(model, prompt[row, :length], eos_token_id=[stop, 96])
        assert found.lengths[row] == len(theirs)
        np.testing.assert_array_equal(found.tokens[row, : len(theirs)], theirs)
        assert (found.tokens[row, len(theirs) :] == cfg.pad_id).all()


def test_sampled_rows_do_not_depend_on_the_rest_of_the_batch():
    _, params, cfg = twin("qwen3")
    prompt, lengths = ragged_prompts()
    keys = jax.random.split(KEY, 3)
    options = {"max_new": NEW, "temperature": 0.9, "top_k": 40, "top_p": 0.95}
    together = generate(params, cfg, prompt, lengths, keys, **options)
    for row in range(3):
        only = slice(row, row + 1)
        alone = generate(params, cfg, prompt[only, : lengths[row]], lengths[only], keys[only], **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
    other = generate(params, cfg, prompt, lengths, jax.random.split(jax.random.key(1), 3), **options)
    assert (other.tokens != together.tokens).any()


def test_one_key_gives_every_row_its_own_stream_and_repeats():
    _, params, cfg = twin("qwen3")
    prompt = np.repeat(random_tokens((1, 8)), 3, axis=0)
    lengths = np.full(3, 8)
    first, second = (
        generate(params, cfg, prompt, lengths, key, max_new=NEW, temperature=1.0).tokens
        for key in (KEY, jax.random.PRNGKey(0))
    )
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 8, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1.7, "top_p": 0.5},
    ],
)
def test_filtered_sampling_has_the_distribution_of_transformers(filters):
    scores = np.random.default_rng(1).normal(size=20).astype(np.float32) * 2
    options = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    warpers = LogitsProcessorList()
    if options["top_k"]:
        warpers.append(TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1:
        warpers.append(TopPLogitsWarper(options["top_p"]))
    if options["min_p"]:
        warpers.append(MinPLogitsWarper(options["min_p"]))
    theirs = warpers(None, torch.tensor(scores)[None] / options["temperature"]).softmax(-1)[0].numpy()
    sampling = generation.Sampling(**{name: jnp.asarray(value) for name, value in options.items()})
    keys = jax.random.split(KEY, 20_000)
    drawn = jax.vmap(lambda key: generation._sample_filtered(key, jnp.asarray(scores), sampling))(keys)
    ours = np.bincount(drawn, minlength=20) / len(drawn)
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, atol=0.015)


def test_free_sampling_follows_the_softmax():
    scores = np.random.default_rng(1).normal(size=12).astype(np.float32)
    sampling = generation.Sampling(jnp.asarray(0.7), *[jnp.asarray(0)] * 3)
    keys = jax.random.split(KEY, 20_000)
    drawn = jax.vmap(lambda key: generation._sample(key, jnp.asarray(scores), sampling))(keys)
    theirs = np.exp(scores / 0.7) / np.exp(scores / 0.7).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=12) / len(drawn), theirs, atol=0.015)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logprobs_are_those_of_the_model_for_the_tokens_made(temperature):
    _, params, cfg = twin("gemma3")
    prompt, lengths = ragged_prompts()
    options = {"max_new": NEW, "temperature": temperature, "logprobs": True}
    found = generate(params, cfg, prompt, lengths, KEY, **options)
    for row, length in enumerate(lengths):
        whole = np.concatenate([prompt[row, :length], found.tokens[row]])[None]
        theirs = token_logprobs(params, cfg, whole)[0, length - 1 :]
        np.testing.assert_allclose(found.logprobs[row], theirs, atol=1e-4)


def test_prompts_of_similar_length_and_other_sampling_values_share_a_program():
    _, params, cfg = twin("llama-tied")
    before = generation._generate._cache_size()
    for width, temperature in ((9, 0.5), (14, 0.7), (20, 1.3)):
        lengths = np.full(2, width)
        prompt = random_tokens((2, width))
        generate(params, cfg, prompt, lengths, KEY, max_new=NEW, temperature=temperature, top_p=0.9)
    assert generation._generate._cache_size() == before + 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt_len": np.array([0, 4])}, "prompt_len is"),
        ({"prompt_len": np.array([4, 5])}, "prompt_len is"),
        ({"prompt_len": np.array([4])}, r"int32 \[2\]"),
        ({"max_new": 0}, "max_new is 0"),
        ({"max_new": 509}, "exceed the model's 512 positions"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"key": jax.random.split(KEY, 3)}, "key has shape"),
    ],
)
def test_bad_options_are_named(change, named):
    _, params, cfg = twin("llama")
    options = {
        "prompt": random_tokens((2, 4)),
        "prompt_len": np.array([4, 2]),
        "key": KEY,
        "max_new": 3,
    } | change
    with pytest.raises(InputError, match=named):
        generate(params, cfg, options.pop("prompt"), options.pop("prompt_len"), options.pop("key"), **options)
