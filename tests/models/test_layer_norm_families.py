"""What OPT, GPT-2, GPT-NeoX and Phi have of their own; `test_transformer.py` and others run over them too."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from layer_norm_twins import LAYER_NORM_CASES, layer_norm_params
from safetensors.numpy import load_file, save_file
from torch_twins import random_tokens, torch_logits, twin
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError
from jaxlab.models import (
    LayerWidths,
    adapters_of,
    forward,
    init_cache,
    init_lora,
    load,
    logits,
    merge_lora,
    save_hf,
    second_moments,
    token_logprobs,
    unstack_layers,
    with_adapters,
)
from jaxlab.models.huggingface import config_from_hf
from jaxlab.models.transformer import run_layers

FAMILIES = ("opt", "gpt2", "gpt_neox", "phi")
TIME = 14


def our_logits(params, cfg, tokens, **options):
    return np.asarray(logits(params, cfg, forward(params, cfg, tokens, **options).hidden))


@pytest.mark.parametrize("case", ["opt-350m", *FAMILIES])
def test_gradients_of_all_parameters_equal_torch(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    ours = jax.grad(lambda params: -token_logprobs(params, cfg, tokens, chunk=32).mean())(params)
    labels = torch.tensor(tokens, dtype=torch.long)
    model.zero_grad()
    model(labels, labels=labels).loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    theirs = layer_norm_params(gradients, model.config)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        if "k_bias" not in str(path):
            assert np.abs(mine - other).max() <= 1e-3 * np.abs(other).max(), path
        else:  # softmax does not depend on it where positions are not rotated, and its gradient is rounding
            assert np.abs(mine - other).max() <= 1e-5, path


@pytest.mark.parametrize("case", ["opt", "opt-350m", "gpt_neox"])
def test_packed_segments_whose_positions_begin_anew_equal_separate_sequences(case):
    model, params, cfg = twin(case)
    tokens = random_tokens((1, TIME))
    segments = np.repeat([[5, 2]], [6, TIME - 6], axis=1)
    positions = np.concatenate([np.arange(6), np.arange(TIME - 6)])[None]
    ours = our_logits(params, cfg, tokens, segment_ids=segments, positions=positions)
    np.testing.assert_allclose(ours[:, :6], torch_logits(model, tokens[:, :6]), atol=1e-4)
    np.testing.assert_allclose(ours[:, 6:], torch_logits(model, tokens[:, 6:]), atol=1e-4)


@pytest.mark.parametrize("case", ["opt", "gpt2"])
def test_left_padding_equals_torch_with_its_mask(case):
    model, params, cfg = twin(case)
    tokens, mask = random_tokens((2, TIME)), np.ones((2, TIME), np.int32)
    mask[0, :5] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    ours = our_logits(params, cfg, tokens, segment_ids=mask, positions=positions)
    options = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
    theirs = torch_logits(model, tokens, **options)
    np.testing.assert_allclose(ours[mask > 0], theirs[mask > 0], atol=1e-4)


def test_inputs_of_the_matrices_equal_torch_under_a_parallel_residual():
    model, params, cfg = twin("gpt_neox")
    tokens = random_tokens((2, TIME))
    layer, seen = model.gpt_neox.layers[1], {}
    modules = {
        "attention_input": layer.attention.query_key_value,
        "attention_output": layer.attention.dense,
        "mlp_input": layer.mlp.dense_h_to_4h,
        "mlp_hidden": layer.mlp.dense_4h_to_h,
    }
    hooks = [
        module.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0].numpy()}))
        for name, module in modules.items()
    ]
    torch_logits(model, tokens)
    for hook in hooks:
        hook.remove()
    embedded = jnp.asarray(params["embed"])[tokens]
    _, _, taps = jax.jit(lambda hidden: run_layers(params, cfg, hidden, collect=lambda taps: taps))(embedded)
    moments = second_moments(params, cfg, tokens)
    assert taps.keys() == seen.keys() == moments.sums.keys()
    for name, theirs in seen.items():
        np.testing.assert_allclose(taps[name][1], theirs, atol=1e-4)
        flat = theirs.reshape(-1, theirs.shape[-1])
        np.testing.assert_allclose(moments.sums[name][1], flat.T @ flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", FAMILIES)
def test_adapters_beside_all_matrices_equal_torch_with_the_increments_added(case, tmp_path):
    model, params, cfg = twin(case)
    adapted = init_lora(jax.random.key(0), params, rank=2, scale=0.7)
    adapters = adapters_of(adapted)
    assert adapters.keys() == {"q", "k", "v", "o", "up", "down"}
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), adapters)
    adapted = with_adapters(adapted, adapters)
    increments = {name: 0.7 * np.asarray(b) @ np.asarray(a) for name, (a, b) in adapters.items()}
    layers = {name: leaf + increments.get(name, 0.0) for name, leaf in params["layers"].items()}
    save_hf({**params, "layers": layers}, cfg, toy_tokenizer(), tmp_path / "m")
    tokens = random_tokens((2, TIME))
    theirs = torch_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(), tokens)
    assert np.abs(theirs - torch_logits(model, tokens)).max() > 0.05
    np.testing.assert_allclose(our_logits(adapted, cfg, tokens), theirs, atol=1e-4)
    np.testing.assert_allclose(our_logits(merge_lora(adapted), cfg, tokens), theirs, atol=1e-4)


def test_vmap_over_adapters_equals_separate_calls():
    _, params, cfg = twin("gpt2")
    keys, tokens = jax.random.split(jax.random.key(1)), random_tokens((1, 5))
    models = [init_lora(key, params, rank=1, targets=("q", "down")) for key in keys]
    models = [with_adapters(one, jax.tree.map(lambda x: x + 0.1, adapters_of(one))) for one in models]
    both = jax.tree.map(lambda *x: jnp.stack(x), *map(adapters_of, models))
    found = jax.vmap(lambda adapters: forward(with_adapters(models[0], adapters), cfg, tokens).hidden)(both)
    for one, model in zip(found, models, strict=True):
        np.testing.assert_allclose(one, forward(model, cfg, tokens).hidden, atol=1e-5)


def test_a_target_that_no_matrix_of_the_model_has_is_named():
    with pytest.raises(InputError, match=r"targets is \('gate',\); give one or more of q, k, v, o, up, down"):
        init_lora(jax.random.key(0), twin("opt")[1], rank=1, targets=("gate",))


@pytest.mark.parametrize("case", LAYER_NORM_CASES)
def test_a_tuple_of_layers_equals_stacked_layers(case):
    _, params, cfg = twin(case)
    tokens = random_tokens((2, TIME))
    unstacked = our_logits(unstack_layers(params), cfg, tokens)
    np.testing.assert_allclose(unstacked, our_logits(params, cfg, tokens), atol=1e-5)


def saved(path, case, change=lambda tensors: None):
    """The directory that transformers writes, its tensors changed."""
    twin(case)[0].save_pretrained(path)
    toy_tokenizer().save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def renamed(old, new):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("gpt2", renamed("transformer.", "")),  # as the original checkpoint names them
        ("opt", renamed("model.", "")),
        ("gpt_neox", renamed("lm_head.", "embed_out.")),
        ("gpt_neox", renamed("embed_out.", "lm_head.")),
    ],
)
def test_other_names_of_the_same_tensors_are_read(case, change, tmp_path):
    model, params, cfg = twin(case)
    found = load(saved(tmp_path, case, change))
    assert found.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.parametrize("case", ["opt-350m", "gpt2", "gpt_neox", "phi"])
def test_sharded_checkpoints_in_half_precision_are_read(case, tmp_path):
    model = copy.deepcopy(twin(case)[0]).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    toy_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    params, cfg, _ = load(tmp_path)
    tokens = random_tokens((2, TIME))
    np.testing.assert_allclose(
        our_logits(params, cfg, tokens), torch_logits(model.float(), tokens), atol=1e-4
    )


@pytest.mark.parametrize("case", LAYER_NORM_CASES)
def test_save_and_load_give_the_same_model(case, tmp_path):
    _, params, cfg = twin(case)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    found = load(tmp_path / "m")
    assert found.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        (
            "gpt2",
            lambda t: t.pop("transformer.h.1.attn.c_attn.bias"),
            "'transformer.h.1.attn.c_attn.bias' is missing",
        ),
        (
            "opt",
            lambda t: t.pop("model.decoder.embed_positions.weight"),
            "'model.decoder.embed_positions.weight' is",
        ),
        ("phi", lambda t: t.pop("lm_head.bias"), "'lm_head.bias' is missing"),
        (
            "gpt_neox",
            lambda t: t.update({"gpt_neox.layers.2.mlp.dense_h_to_4h.weight": np.zeros((4, 32), np.float32)}),
            r"'gpt_neox.layers.2.mlp.dense_h_to_4h.weight' has shape \[4, 32\], but .* \[48, 32\]",
        ),
        (
            "gpt2",
            lambda t: t.update({"transformer.h.0.attn.c_attn.weight": np.zeros((96, 32), np.float32)}),
            r"'transformer.h.0.attn.c_attn.weight' has shape \[96, 32\], but .* \[32, 96\]",
        ),
        (
            "gpt2",
            lambda t: t["transformer.h.2.mlp.c_fc.weight"].__setitem__(0, np.nan),
            "c_fc.weight' holds NaN",
        ),
    ],
)
def test_damaged_tensors_are_named(case, change, named, tmp_path):
    with pytest.raises(InputError, match=named) as error:
        load(saved(tmp_path, case, change))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("layout", ["masked", "uniform"])
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox"])
def test_narrow_layers_open_in_stock_transformers(case, layout, tmp_path):
    model, params, cfg = twin(case)
    widths = (LayerWidths(13, 4), LayerWidths(30, 2), LayerWidths(7, 0))
    layers, zeroed = [], []
    for layer, (units, heads) in zip(unstack_layers(params)["layers"], widths, strict=True):
        attention = heads * cfg.head_dim
        rows = {name: layer[name][:attention] for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias")}
        rows |= {name: layer[name][:units] for name in ("up", "up_bias")}
        layers.append(layer | rows | {"o": layer["o"][:, :attention], "down": layer["down"][:, :units]})
        zeroed.append(
            layer | {"o": layer["o"].at[:, attention:].set(0.0), "down": layer["down"].at[:, units:].set(0.0)}
        )
    narrow = dataclasses.replace(cfg, layer_widths=widths)
    save_hf(params | {"layers": tuple(layers)}, narrow, toy_tokenizer(), tmp_path / "m", layout=layout)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    tokens = random_tokens((2, TIME))
    theirs = torch_logits(again, tokens)
    np.testing.assert_allclose(
        our_logits(params | {"layers": tuple(layers)}, narrow, tokens), theirs, atol=1e-4
    )
    np.testing.assert_allclose(our_logits(params | {"layers": tuple(zeroed)}, cfg, tokens), theirs, atol=1e-4)
    with pytest.raises(InputError, match=f"layout 'compact' is for llama, .*this is a {case}"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "c", layout="compact")


@pytest.mark.parametrize("model_type", ["opt", "gpt2", "gpt_neox", "phi", "bert"])
def test_absent_fields_take_the_values_of_transformers(model_type):
    ours = config_from_hf({"model_type": model_type}, source="config.json")
    theirs = transformers.AutoConfig.for_model(model_type)
    mlp = {"opt": "ffn_dim", "gpt2": "n_inner"}.get(model_type, "intermediate_size")
    activation = "activation_function" if model_type in ("opt", "gpt2") else "hidden_act"
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == ours.num_kv_heads == theirs.num_attention_heads
    assert ours.head_dim == theirs.hidden_size // theirs.num_attention_heads
    assert ours.mlp_size == (getattr(theirs, mlp) or 4 * theirs.hidden_size)
    assert ours.max_positions == theirs.max_position_embeddings
    assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.activation == {"gelu_new": "gelu_tanh"}.get(*[getattr(theirs, activation)] * 2)
    eps = getattr(theirs, "layer_norm_eps", getattr(theirs, "layer_norm_epsilon", 1e-5))
    assert ours.norm_eps == eps
    if not ours.learned_positions:
        rope = theirs.rope_parameters
        assert (ours.rope_theta, ours.rotated) == (
            rope["rope_theta"],
            int(ours.head_dim * rope["partial_rotary_factor"]),
        )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True",
        ),
        ({"model_type": "opt", "_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm is True, which is not supported"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "'relative_key', which is not"),
        (
            {"model_type": "gpt_neox", "hidden_act": "quick_gelu"},
            "hidden_act is 'quick_gelu'; supported are relu",
        ),
        ({"model_type": "gpt2", "n_layer": 0}, "n_layer is 0"),
        ({"model_type": "gpt2", "n_head": 5}, "n_embd is 768; it must be a multiple of n_head, 5"),
    ],
)
def test_unsupported_features_are_named(config, named):
    with pytest.raises(InputError, match=f"some/config.json: .*{named}"):
        config_from_hf(config, source="some/config.json")


def test_what_lies_outside_of_the_tables_is_named():
    _, params, cfg = twin("gpt2")
    tokens = random_tokens((2, 5))
    with pytest.raises(
        InputError, match="positions goes from 508 to 512; the model has embeddings for 0 to 511"
    ):
        forward(params, cfg, tokens, positions=np.tile(np.arange(508, 513), (2, 1)))
    with pytest.raises(InputError, match=r"cfg.token_types is 0"):
        forward(params, cfg, tokens, token_types=tokens)
    cache = init_cache(cfg, 2, 600)._replace(length=jnp.array([510, 3]))
    with pytest.raises(
        InputError, match="cache holds 510 tokens; 5 more exceed the model's 512 learned positions"
    ):
        forward(params, cfg, tokens, cache=cache)


def test_a_saved_directory_says_what_older_readers_look_for(tmp_path):
    _, params, cfg = twin("gpt_neox")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 10_000.0)
    assert "embed_out.weight" in load_file(tmp_path / "m" / "model.safetensors")
