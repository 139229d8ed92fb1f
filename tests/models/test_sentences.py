"""BERT as an encoder and the sentence embeddings made from it; `BertModel` of transformers is the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch_twins import random_tokens
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError
from jaxlab.models import (
    Model,
    ModelConfig,
    adapters_of,
    embed_sentences,
    forward,
    generate,
    init_cache,
    init_lora,
    load,
    logits,
    merge_lora,
    save_hf,
    sentence_embeddings,
    token_logprobs,
    with_adapters,
)

CFG = ModelConfig(
    family="bert",
    vocab_size=97,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_size=48,
    max_positions=300,
    norm="layer",
    norm_eps=1e-12,
    post_norm=True,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    gated_mlp=False,
    activation="gelu",
    embed_norm=True,
    token_types=2,
    learned_positions=True,
    causal=False,
    tie_embeddings=True,
    pad_id=0,
)
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
TEXTS = [
    "A man is eating a piece of bread.",
    "Someone eats some food.",
    "The perihelion of Mercury's orbit precesses by 43 arc seconds a century; Newton's law alone gives less.",
    "x",
    "",
]


@functools.cache
def twin():
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=300,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model, to_params({name: value.numpy() for name, value in model.state_dict().items()})


def to_params(arrays):
    layers = {}
    for name, module in _LAYER.items():
        for ending, suffix in (("weight", ""), ("bias", "_bias")):
            stack = [arrays[f"encoder.layer.{i}.{module}.{ending}"] for i in range(3)]
            layers[name + suffix] = jnp.asarray(np.stack(stack))
    top = {
        "embed": "word_embeddings",
        "positions": "position_embeddings",
        "token_types": "token_type_embeddings",
    }
    params = {name: jnp.asarray(arrays[f"embeddings.{theirs}.weight"]) for name, theirs in top.items()}
    params["embed_norm"] = jnp.asarray(arrays["embeddings.LayerNorm.weight"])
    params["embed_norm_bias"] = jnp.asarray(arrays["embeddings.LayerNorm.bias"])
    return params | {"layers": layers}


def torch_hidden(model, tokens, **options):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)), **options).last_hidden_state.numpy()


def pooled(hidden, mask):
    """Mean over the tokens of the text, then length one, as sentence-transformers does."""
    total = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def ragged(time=20):
    mask = np.arange(time) < np.array([[time], [7], [1]])
    return random_tokens((3, time)), mask


@pytest.mark.parametrize("time", [20, 290])  # one chunk of queries, and several
def test_hidden_states_equal_torch_with_padding_and_token_types(time):
    model, params = twin()
    tokens, mask = ragged(time)
    kinds = random_tokens((3, time), seed=2) % 2
    ours = forward(params, CFG, tokens, segment_ids=mask.astype(np.int32), token_types=kinds).hidden
    options = {"attention_mask": torch.tensor(mask), "token_type_ids": torch.tensor(kinds)}
    theirs = torch_hidden(model, tokens, **options)
    np.testing.assert_allclose(np.asarray(ours)[mask], theirs[mask], atol=1e-4)


def test_packed_segments_equal_separate_texts():
    model, params = twin()
    tokens = random_tokens((1, 15))
    segments = np.repeat([[3, 8]], [6, 9], axis=1)
    positions = np.concatenate([np.arange(6), np.arange(9)])[None]
    ours = forward(params, CFG, tokens, segment_ids=segments, positions=positions).hidden
    np.testing.assert_allclose(ours[:, :6], torch_hidden(model, tokens[:, :6]), atol=1e-4)
    np.testing.assert_allclose(ours[:, 6:], torch_hidden(model, tokens[:, 6:]), atol=1e-4)


def test_gradients_of_all_parameters_equal_torch():
    model, params = twin()
    tokens, mask = ragged(12)
    weights = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    ours = jax.grad(lambda params: (sentence_embeddings(params, CFG, tokens, mask) * weights).sum())(params)
    model.zero_grad()
    keep = torch.tensor(mask)
    hidden = model(torch.tensor(tokens, dtype=torch.long), attention_mask=keep).last_hidden_state
    mean = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    (torch.nn.functional.normalize(mean) * torch.tensor(weights)).sum().backward()
    gradients = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
    }
    theirs = to_params(gradients)
    for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        # The gradient of k's bias is zero but for rounding: softmax does not depend on it.
        most = 1e-6 if "k_bias" in str(path) else 1e-3 * np.abs(other).max()
        assert np.abs(mine - other).max() <= most, path


def test_embeddings_equal_torch_and_padding_changes_nothing():
    model, params = twin()
    tokens, mask = ragged()
    found = np.asarray(sentence_embeddings(params, CFG, tokens, mask))
    theirs = pooled(torch_hidden(model, tokens, attention_mask=torch.tensor(mask)), mask)
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    alone = sentence_embeddings(params, CFG, tokens[1:2, :7], mask[1:2, :7])
    np.testing.assert_allclose(alone[0], found[1], atol=1e-5)


def test_vmap_over_two_models_equals_two_calls():
    _, params = twin()
    tokens, mask = ragged()
    other = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    found = jax.vmap(lambda params: sentence_embeddings(params, CFG, tokens, mask))(both)
    for one, model in zip(found, (params, other), strict=True):
        np.testing.assert_allclose(one, sentence_embeddings(model, CFG, tokens, mask), atol=1e-5)


def test_saved_model_opens_in_transformers_and_here(tmp_path):
    model, params = twin()
    save_hf(params, CFG, toy_tokenizer(), tmp_path / "m")
    again = transformers.AutoModel.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    tokens = random_tokens((2, 9))
    np.testing.assert_allclose(torch_hidden(again, tokens), torch_hidden(model, tokens), atol=1e-5)
    found = load(tmp_path / "m")
    assert found.cfg == CFG
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_the_encoder_inside_a_model_with_a_head_is_found(tmp_path):
    model, params = twin()
    whole = transformers.BertForMaskedLM(model.config)
    whole.bert.load_state_dict(model.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, params)


def test_merged_adapters_equal_unmerged_ones():
    _, params = twin()
    tokens, mask = ragged()
    adapted = init_lora(jax.random.key(0), params, rank=2)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters_of(adapted))
    assert adapters.keys() == {"q", "k", "v", "o", "up", "down"}
    adapted = with_adapters(adapted, adapters)
    found = sentence_embeddings(adapted, CFG, tokens, mask)
    assert np.abs(found - sentence_embeddings(params, CFG, tokens, mask)).max() > 0.01
    np.testing.assert_allclose(found, sentence_embeddings(merge_lora(adapted), CFG, tokens, mask), atol=1e-5)


def test_texts_of_any_length_and_number_keep_their_order():
    _, params = twin()
    model = Model(params, CFG, toy_tokenizer())
    texts = [" ".join(f"w{3 + i}" for i in range(count)) for count in (17, 3, 40, 1, 5)]
    found = embed_sentences(model, texts, batch_size=2)
    for text, one in zip(texts, found, strict=True):
        tokens = np.array([[int(word[1:]) for word in text.split()]], np.int32)
        np.testing.assert_allclose(one, sentence_embeddings(params, CFG, tokens, tokens > 0)[0], atol=1e-5)
    cut = embed_sentences(model, texts, context=4)
    np.testing.assert_allclose(cut[2], embed_sentences(model, ["w3 w4 w5 w6"])[0], atol=1e-5)


@pytest.fixture(scope="module")
def minilm():
    return load("pkg:minilm")


def test_minilm_equals_torch_on_real_texts(minilm):
    """Cosine 1 to 1e-5 with `BertModel`, read by transformers from the same directory, and its own tokenizer."""
    from jaxlab.models.loading import resolve

    directory = resolve("pkg:minilm")
    model = transformers.AutoModel.from_pretrained(directory).eval()
    encoded = transformers.AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state.numpy()
    theirs = pooled(hidden, encoded["attention_mask"].numpy())
    found = embed_sentences(minilm, TEXTS)
    np.testing.assert_allclose((found * theirs).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]


def test_minilm_saved_again_is_the_same_model(minilm, tmp_path):
    save_hf(*minilm, tmp_path / "m")
    np.testing.assert_allclose(embed_sentences(load(tmp_path / "m"), TEXTS), embed_sentences(minilm, TEXTS))


def test_an_encoder_predicts_nothing():
    _, params = twin()
    tokens = random_tokens((2, 5))
    with pytest.raises(InputError, match="generate: family 'bert' is an encoder"):
        generate(params, CFG, tokens, np.array([5, 5]), jax.random.key(0), max_new=2)
    with pytest.raises(InputError, match="log-probabilities: family 'bert' is an encoder"):
        token_logprobs(params, CFG, tokens)
    with pytest.raises(InputError, match="logits: family 'bert' is an encoder"):
        logits(params, CFG, forward(params, CFG, tokens).hidden)
    with pytest.raises(InputError, match="cache: family 'bert' is an encoder"):
        forward(params, CFG, tokens, cache=init_cache(CFG, 2, 8))


def test_bad_arguments_are_named():
    _, params = twin()
    tokens, mask = ragged()
    with pytest.raises(InputError, match="mask has shape"):
        sentence_embeddings(params, CFG, tokens, mask[:, 1:])
    with pytest.raises(InputError, match="mask is False for a whole row"):
        sentence_embeddings(params, CFG, tokens, mask & (np.arange(3) != 1)[:, None])
    with pytest.raises(InputError, match="token_types goes from 0 to 2; the model has embeddings for 0 to 1"):
        forward(params, CFG, tokens, token_types=tokens % 3)
    model = Model(params, CFG, toy_tokenizer())
    for texts, options, named in (
        ([], {}, "texts is"),
        ("w3", {}, "texts is 'w3'; it must be a list"),
        (["w3"], {"context": 301}, "context is 301; it must be 2 to 300"),
        (["w3"], {"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(InputError, match=named):
            embed_sentences(model, texts, **options)
