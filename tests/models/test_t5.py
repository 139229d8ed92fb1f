"""T5 of version 1.0 and Flan-T5 against torch `transformers` on the same random weights."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch_twins import random_tokens
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError
from jaxlab.models import (
    T5Config,
    adapters_of,
    decode,
    encode,
    encoder_context,
    generate_target,
    init_cache,
    init_lora,
    load,
    load_t5,
    merge_lora,
    output_logits,
    save_t5,
    score_targets,
    with_adapters,
)
from jaxlab.models.t5 import relative_buckets
from jaxlab.models.t5_files import t5_config_from_hf, t5_config_to_hf

KEY = jax.random.key(0)
SIZES = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
CASES = {
    "t5": (
        {"feed_forward_proj": "relu"},
        {"activation": "relu", "tie_embeddings": True, "scale_outputs": True},
    ),
    "flan": ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {"gated_mlp": True}),
}


@functools.cache
def twin(case):
    theirs, ours = CASES[case]
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, **theirs)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if case == "flan":
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center, scale = (1.0, 0.2) if "layer_norm" in name else (0.0, 1.0 if "bias" in name else 0.2)
            parameter.copy_(center + scale * torch.randn_like(parameter))
    cfg = T5Config(
        **(
            {
                "vocab_size": 97,
                "hidden_size": 32,
                "num_layers": 3,
                "num_decoder_layers": 2,
                "num_heads": 4,
                "head_dim": 6,
                "mlp_size": 48,
                "buckets": 8,
                "max_distance": 20,
                "gated_mlp": False,
            }
            | ours
        )
    )
    return model, to_params({name: value.numpy() for name, value in model.state_dict().items()}, case), cfg


def to_params(arrays, case):
    def stack(side, layers):
        mlp = 1 if side == "encoder" else 2
        names = {name: f"layer.0.SelfAttention.{name}" for name in ("q", "k", "v", "o")}
        names |= {"attn_norm": "layer.0.layer_norm", "mlp_norm": f"layer.{mlp}.layer_norm"}
        units = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if case == "flan" else {"up": "wi", "down": "wo"}
        names |= {ours: f"layer.{mlp}.DenseReluDense.{theirs}" for ours, theirs in units.items()}
        if side == "decoder":
            names |= {f"cross_{name}": f"layer.1.EncDecAttention.{name}" for name in ("q", "k", "v", "o")}
            names["cross_norm"] = "layer.1.layer_norm"
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "final_norm": jnp.asarray(arrays[f"{side}.final_layer_norm.weight"]),
            "position_bias": jnp.asarray(arrays[f"{side}.{bias}"]),
            "layers": {
                ours: jnp.asarray(
                    np.stack([arrays[f"{side}.block.{i}.{theirs}.weight"] for i in range(layers)])
                )
                for ours, theirs in names.items()
            },
        }

    params = {
        "embed": jnp.asarray(arrays["shared.weight"]),
        "encoder": stack("encoder", 3),
        "decoder": stack("decoder", 2),
    }
    return params | ({"head": jnp.asarray(arrays["lm_head.weight"])} if case == "flan" else {})


def ragged(time=30):
    """Sources longer than the largest distance, and a mask of padding at the right."""
    mask = np.arange(time) < np.array([[time], [11]])
    return np.where(mask, random_tokens((2, time)), 0).astype(np.int32), mask


def our_logits(params, cfg, source, mask, target):
    context = encoder_context(params, cfg, encode(params, cfg, source, mask), mask)
    return output_logits(params, cfg, decode(params, cfg, target, context).hidden)


def torch_logits(model, source, mask, target):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(mask),
            decoder_input_ids=torch.tensor(target),
            use_cache=False,
        ).logits.numpy()


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 300)])
@pytest.mark.parametrize("causal", [True, False])
def test_classes_of_distances_are_those_of_transformers(buckets, max_distance, causal):
    distance = np.arange(-400, 401)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(distance), bidirectional=not causal, num_buckets=buckets, max_distance=max_distance
    )
    ours = relative_buckets(jnp.asarray(distance), buckets=buckets, max_distance=max_distance, causal=causal)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_torch_with_padding(case):
    model, params, cfg = twin(case)
    source, mask = ragged()
    target = random_tokens((2, 26), seed=1)
    ours = our_logits(params, cfg, source, mask, target)
    np.testing.assert_allclose(ours, torch_logits(model, source, mask, target), atol=1e-4)
    alone = our_logits(params, cfg, source[1:, :11], None, target[1:])
    np.testing.assert_allclose(alone[0], ours[1], atol=1e-4)


def test_a_source_of_several_query_chunks_equals_torch():
    model, params, cfg = twin("flan")
    tokens = random_tokens((1, 290))
    with torch.no_grad():
        theirs = model.encoder(input_ids=torch.tensor(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(encode(params, cfg, tokens), theirs, atol=1e-4)


def test_packed_sources_equal_separate_ones():
    _, params, cfg = twin("flan")
    tokens = random_tokens((1, 20))
    segments = np.repeat([[4, 0]], [9, 11], axis=1)
    mask = np.arange(20)[None] < 18
    packed = encode(params, cfg, tokens, mask, segment_ids=segments)
    np.testing.assert_allclose(packed[:, :9], encode(params, cfg, tokens[:, :9]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 9:18], encode(params, cfg, tokens[:, 9:18]), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_decoding_with_a_cache_equals_the_whole_at_once(case):
    model, params, cfg = twin(case)
    source, mask = ragged()
    target = random_tokens((2, 26), seed=1)
    context = encoder_context(params, cfg, encode(params, cfg, source, mask), mask)
    out = decode(params, cfg, target[:, :4], context, cache=init_cache(cfg.decoder, 2, 32))
    hidden = [out.hidden]
    for t in range(4, 26):
        out = decode(params, cfg, target[:, t : t + 1], context, cache=out.cache)
        hidden.append(out.hidden)
    ours = output_logits(params, cfg, jnp.concatenate(hidden, axis=1))
    np.testing.assert_allclose(ours, torch_logits(model, source, mask, target), atol=1e-4)
    np.testing.assert_array_equal(out.cache.length, [26, 26])


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_all_parameters_equal_torch(case):
    model, params, cfg = twin(case)
    source, mask = ragged(14)
    target = random_tokens((2, 9), seed=1)
    labels = random_tokens((2, 9), seed=2)

    def loss(params):
        scores = jax.nn.log_softmax(our_logits(params, cfg, source, mask, target))
        return -jnp.take_along_axis(scores, labels[..., None], axis=-1).mean()

    ours = jax.jit(jax.grad(loss))(params)
    model.zero_grad()
    model(
        input_ids=torch.tensor(source),
        attention_mask=torch.tensor(mask),
        decoder_input_ids=torch.tensor(target),
        labels=torch.tensor(labels, dtype=torch.long),
    ).loss.backward()
    theirs = to_params(
        {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}, case
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(mine - other).max() <= 1e-3 * np.abs(other).max(), path


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation_of_ragged_sources_equals_torch(case):
    model, params, cfg = twin(case)
    source, mask = ragged(17)
    free = generate_target(params, cfg, source, mask.sum(1), KEY, max_new=12)
    assert_as_torch(model, source, mask, free, None)
    assert len(np.unique(free.tokens)) > 3


def test_stop_tokens_end_a_row_and_padding_follows():
    model, params, cfg = twin("flan")
    source, mask = ragged(17)
    stop = int(generate_target(params, cfg, source, mask.sum(1), KEY, max_new=12).tokens[0, 4])
    found = generate_target(params, cfg, source, mask.sum(1), KEY, max_new=12, stop_ids=(stop,))
    assert_as_torch(model, source, mask, found, stop)
    assert found.lengths.min() < 12


def assert_as_torch(model, source, mask, found, stop):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": stop, "pad_token_id": 0}
    for row in range(2):
        ids = torch.tensor(source[row : row + 1, : mask[row].sum()], dtype=torch.long)
        with torch.no_grad():
            theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 1:].numpy()
        assert found.lengths[row] == len(theirs)
        np.testing.assert_array_equal(found.tokens[row, : len(theirs)], theirs)
        assert (found.tokens[row, len(theirs) :] == 0).all()


def test_sampled_rows_do_not_depend_on_the_batch_and_have_their_logprobs():
    _, params, cfg = twin("flan")
    source, mask = ragged(17)
    keys, lengths = jax.random.split(KEY), mask.sum(1)
    options = {"max_new": 8, "temperature": 0.9, "top_p": 0.95, "logprobs": True}
    both = generate_target(params, cfg, source, lengths, keys, **options)
    alone = generate_target(params, cfg, source[1:, :11], lengths[1:], keys[1:], **options)
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[1])
    target = np.pad(np.asarray(both.tokens), ((0, 0), (1, 0)))[:, :-1]
    scores = jax.nn.log_softmax(our_logits(params, cfg, source, mask, target))
    theirs = np.take_along_axis(np.asarray(scores), np.asarray(both.tokens)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(both.logprobs, theirs, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_scores_of_targets_equal_torch_one_by_one(case):
    model, params, cfg = twin(case)
    source, mask = ragged()
    targets = random_tokens((2, 3, 4), 3)
    lengths = np.array([[4, 1, 0], [2, 4, 3]])
    scores = score_targets(params, cfg, source, mask.sum(1), targets, lengths)
    for b, k in np.ndindex(2, 3):
        target, n = targets[b, k], lengths[b, k]
        read = np.concatenate([[cfg.start_id], target])[None, :-1]
        own = source[b : b + 1, : mask[b].sum()]
        theirs = torch_logits(model, own, np.ones_like(own), read)[0]
        theirs = np.asarray(jax.nn.log_softmax(theirs))[np.arange(4), target][:n]
        np.testing.assert_allclose(scores.token_logprobs[b, k, :n], theirs, atol=1e-4)
        assert float(scores.total[b, k]) == pytest.approx(theirs.sum(), abs=2e-4)


def test_adapters_on_both_stacks_equal_torch_with_the_increments_added():
    model, params, cfg = twin("flan")
    rng = np.random.default_rng(0)
    adapted, changed = dict(params), copy.deepcopy(model)
    modules = {"q": "q", "k": "k", "v": "v", "o": "o", "gate": "wi_0", "up": "wi_1", "down": "wo"}
    for side, stack in (("encoder", changed.encoder), ("decoder", changed.decoder)):
        adapted[side] = init_lora(KEY, params[side], rank=2, scale=0.5)
        adapters = jax.tree.map(
            lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), adapters_of(adapted[side])
        )
        adapted[side] = with_adapters(adapted[side], adapters)
        assert len(adapters) == (7 if side == "encoder" else 11)
        for name, (a, b) in adapters.items():
            for index, block in enumerate(stack.block):
                part = block.layer[
                    1 if name.startswith("cross") else -1 if name in ("gate", "up", "down") else 0
                ]
                inner = next(part.children())
                increment = torch.tensor(0.5 * np.asarray(b[index]) @ np.asarray(a[index]))
                getattr(inner, modules[name.removeprefix("cross_")]).weight.data += increment
    source, mask = ragged()
    target = random_tokens((2, 26), seed=1)
    theirs = torch_logits(changed, source, mask, target)
    assert np.abs(theirs - torch_logits(model, source, mask, target)).max() > 0.05
    np.testing.assert_allclose(our_logits(adapted, cfg, source, mask, target), theirs, atol=1e-4)
    merged = adapted | {side: merge_lora(adapted[side]) for side in ("encoder", "decoder")}
    np.testing.assert_allclose(our_logits(merged, cfg, source, mask, target), theirs, atol=1e-4)


def test_vmap_over_two_models_equals_two_calls():
    _, params, cfg = twin("t5")
    source, mask = ragged(9)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    found = jax.vmap(lambda params: our_logits(params, cfg, source, mask, source))(both)
    for one, model in zip(found, (params, other), strict=True):
        np.testing.assert_allclose(one, our_logits(model, cfg, source, mask, source), atol=1e-4)


def test_half_precision_stays_near_the_full_precision_result():
    _, params, cfg = twin("flan")
    source, mask = ragged(12)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found = our_logits(half, cfg, source, mask, source)
    full = our_logits(params, cfg, source, mask, source)
    assert found.dtype == jnp.bfloat16
    assert jnp.linalg.norm(found.astype(jnp.float32) - full) < 0.05 * jnp.linalg.norm(full)


@pytest.mark.parametrize("case", CASES)
def test_directories_of_transformers_are_read_and_ours_open_there(case, tmp_path):
    model, params, cfg = twin(case)
    model.save_pretrained(tmp_path / "theirs")
    toy_tokenizer().save_pretrained(tmp_path / "theirs")
    found = load_t5(tmp_path / "theirs")
    assert found.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    save_t5(params, cfg, found.tokenizer, tmp_path / "ours")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    source, mask = ragged(12)
    theirs = torch_logits(model, source, mask, source)
    np.testing.assert_allclose(torch_logits(again, source, mask, source), theirs, atol=1e-5)
    back = load_t5(tmp_path / "ours")
    assert back.cfg == cfg and back.tokenizer("w5 w17")["input_ids"] == [5, 17]
    jax.tree.map(np.testing.assert_array_equal, back.params, params)


def test_shards_in_half_precision_are_read(tmp_path):
    model = copy.deepcopy(twin("t5")[0]).to(torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    toy_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    params, cfg, _ = load_t5(tmp_path)
    expected = to_params({name: value.float().numpy() for name, value in model.state_dict().items()}, "t5")
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_an_old_file_of_flan_says_by_its_tying_alone_that_outputs_are_not_scaled():
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu").to_dict()
    del config["scale_decoder_outputs"]
    old = t5_config_from_hf(config | {"tie_word_embeddings": False}, source="config.json")
    assert (old.tie_embeddings, old.scale_outputs) == (False, False)
    old = t5_config_from_hf(config | {"tie_word_embeddings": True}, source="config.json")
    assert (old.tie_embeddings, old.scale_outputs) == (True, True)


def test_absent_fields_take_the_values_of_transformers():
    ours = t5_config_from_hf({"model_type": "t5"}, source="config.json")
    theirs = transformers.T5Config()
    assert (
        t5_config_to_hf(ours).items()
        >= {
            name: getattr(theirs, name)
            for name in (
                "vocab_size",
                "d_model",
                "d_kv",
                "d_ff",
                "num_layers",
                "num_decoder_layers",
                "num_heads",
            )
        }.items()
    )
    assert (ours.buckets, ours.max_distance) == (32, 128)
    assert (ours.pad_id, ours.eos_ids, ours.scale_outputs, ours.gated_mlp) == (0, (1,), True, False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "bart"}, "model_type is 'bart'; load_t5 reads t5"),
        ({"feed_forward_proj": "sparse-gelu"}, "feed_forward_proj is 'sparse-gelu'"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj is 'swish'; supported are relu"),
        ({"d_model": "32"}, "d_model is '32', expected a positive integer"),
    ],
)
def test_unusable_fields_are_named(change, named):
    with pytest.raises(InputError, match=f"some/config.json: {named}"):
        t5_config_from_hf({"model_type": "t5"} | change, source="some/config.json")


def test_damaged_directories_are_named(tmp_path):
    model, params, cfg = twin("flan")
    save_t5(params, cfg, toy_tokenizer(), tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    cross, head = "decoder.block.1.layer.1.EncDecAttention.v.weight", "lm_head.weight"
    for change, named in (
        ({cross: None}, f"tensor '{cross}' is missing from model.safetensors"),
        ({cross: np.zeros((3, 32), np.float32)}, rf"'{cross}' has shape \[3, 32\], but .* \[24, 32\]"),
        ({head: np.full((97, 32), np.nan, np.float32)}, "'lm_head.weight' holds NaN"),
    ):
        left = {name: value for name, value in (tensors | change).items() if value is not None}
        save_file(left, tmp_path / "m" / "model.safetensors")
        with pytest.raises(InputError, match=named) as error:
            load_t5(tmp_path / "m")
        assert str(tmp_path / "m") in str(error.value)
    with pytest.raises(InputError, match="model_type 't5' is not supported; .*t5, by load_t5"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"buckets": 7}, "buckets is 7; it must be even"),
        ({"max_distance": 4}, "max_distance is 4; it must be at least buckets, 8"),
        ({"start_id": 97}, "start_id is 97; it must be 0 to 96"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"activation": "swish"}, "activation is 'swish'"),
    ],
)
def test_a_wrong_configuration_is_named(change, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(twin("t5")[2], **change)


def test_what_transformers_cannot_express_is_not_written():
    cfg = twin("flan")[2]
    for change, named in (
        ({"activation": "gelu"}, "cfg.activation"),
        ({"scale_outputs": True}, "cfg.scale_outputs"),
    ):
        with pytest.raises(InputError, match=named):
            t5_config_to_hf(dataclasses.replace(cfg, **change))


def test_bad_arguments_are_named(tmp_path):
    _, params, cfg = twin("t5")
    source, mask = ragged()
    encoded = encode(params, cfg, source, mask)
    context = encoder_context(params, cfg, encoded, mask)
    layers = params["encoder"]["layers"]
    wrong = [
        (params | {"head": params["embed"]}, r"unexpected \['head'\]"),
        ({name: leaf for name, leaf in params.items() if name != "decoder"}, r"missing \['decoder'\]"),
        (
            params | {"encoder": params["encoder"] | {"layers": layers | {"q": layers["q"][:2]}}},
            r"\['q'\] has shape",
        ),
        (params | {"encoder": params["encoder"] | {"layers": (layers,)}}, "one dict of stacked layers"),
    ]
    for bad, named in wrong:
        with pytest.raises(InputError, match=named):
            encode(bad, cfg, source)
    with pytest.raises(InputError, match="vocabulary has 97"):
        encode(params, cfg, source + 97)
    with pytest.raises(InputError, match="mask has shape"):
        encode(params, cfg, source, mask[:, 1:])
    with pytest.raises(
        InputError, match=r"encoded has shape \(2, 30, 31\); it must be \[batch, source, 32\]"
    ):
        encoder_context(params, cfg, encoded[..., 1:], mask)
    with pytest.raises(InputError, match="mask has shape"):
        encoder_context(params, cfg, encoded, mask[:, 1:])
    with pytest.raises(InputError, match="context has keys"):
        decode(params, cfg, source[:1], context)
    with pytest.raises(InputError, match="4 slots"):
        decode(params, cfg, source, context, cache=init_cache(cfg.decoder, 2, 4))
    for options, named in (({"max_new": 0}, "max_new is 0"), ({"max_new": 1, "top_p": 0.0}, "top_p is 0.0")):
        with pytest.raises(InputError, match=named):
            generate_target(params, cfg, source, mask.sum(1), KEY, **options)
    with pytest.raises(InputError, match="prompt_len is"):
        generate_target(params, cfg, source, mask.sum(1) - 11, KEY, max_new=1)
    with pytest.raises(InputError, match="dtype is int8"):
        save_t5(params, cfg, toy_tokenizer(), tmp_path / "m", dtype=jnp.int8)
    broken = params | {"embed": params["embed"].at[0, 0].set(jnp.nan)}
    with pytest.raises(InputError, match="shared.weight holds NaN"):
        save_t5(broken, cfg, toy_tokenizer(), tmp_path / "m")
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="load_t5 reads Hugging Face directories"):
        load_t5(tmp_path / "x.gguf")
