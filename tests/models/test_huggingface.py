"""`config.json` both ways; the configuration classes of transformers are the oracle."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import transformers
from torch_twins import CASES, random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models import ModelConfig, RopeScaling, forward, logits
from jaxlab.models.huggingface import config_from_hf, config_to_hf
from jaxlab.models.safetensors_weights import params_from_safetensors

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 32,
}


def old_style(config):
    """The same file as transformers before version 5 wrote it."""
    config = copy.deepcopy(config)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    share = rope.pop("partial_rotary_factor", None)
    if config["model_type"] == "gpt_neox":
        config["rotary_pct"], config["rotary_emb_base"] = share, rope["rope_theta"]
    elif share is not None:
        config["partial_rotary_factor"] = share
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return config


@pytest.mark.parametrize("case", CASES)
def test_saved_torch_models_are_read_whole(case, tmp_path):
    """Configuration and logits of directories that transformers wrote, with new and old rotary fields."""
    model, _, cfg = twin(case)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config_from_hf(config, source="config.json") == cfg
    assert config_from_hf(old_style(config), source="config.json") == cfg
    params = params_from_safetensors(tmp_path, cfg)
    tokens = random_tokens((2, 17))
    ours = logits(params, cfg, forward(params, cfg, tokens).hidden)
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_means_the_same_to_transformers(case):
    _, _, cfg = twin(case)
    written = config_to_hf(cfg)
    theirs = transformers.AutoConfig.for_model(**written)
    assert config_from_hf(theirs.to_dict(), source="config.json") == cfg


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_theta": 123_456.0},
        {"sliding_window": 33},
        {"sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
        {"sliding_window_pattern": 3},
        {"num_key_value_heads": None},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_absent_fields_take_the_values_of_transformers(model_type, fields):
    if model_type in ("mistral", "gemma3_text") and "num_key_value_heads" in fields:
        fields = {}  # transformers refuses null there
    if model_type == "gemma3_text" and fields.get("sliding_window", 1) is None:
        fields = {}  # and there
    config = {"model_type": model_type, **SIZES, **fields}
    ours = config_from_hf(config, source="config.json")
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(config))
    rope = theirs.rope_parameters
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert (
        ours.head_dim == getattr(theirs, "head_dim", None)
        or SIZES["hidden_size"] // SIZES["num_attention_heads"]
    )
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == rope.get("full_attention", rope)["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    types = getattr(theirs, "layer_types", None)
    if types is None:
        slides = model_type == "mistral" and theirs.sliding_window
        types = ["sliding_attention" if slides else "full_attention"] * 7
    assert ours.layer_windows == tuple(
        theirs.sliding_window if t == "sliding_attention" else None for t in types
    )


def test_head_width_is_the_one_of_transformers_where_the_file_leaves_it_out():
    sizes = SIZES | {"num_attention_heads": 8, "num_key_value_heads": 8}
    widths = {"llama": 8, "mistral": 8, "qwen2": 8, "qwen3": 128, "gemma3_text": 256}
    for model_type, width in widths.items():
        assert config_from_hf({"model_type": model_type, **sizes}, source="c").head_dim == width


def test_text_part_of_a_model_with_a_vision_tower_is_used():
    text = {
        "hidden_size": 640,
        "model_type": "gemma3_text",
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    config = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    ours = config_from_hf(config, source="config.json")
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(config)).text_config
    assert (ours.family, ours.vocab_size, ours.num_layers) == (
        "gemma3",
        theirs.vocab_size,
        theirs.num_hidden_layers,
    )
    assert ours.rope_scaling == RopeScaling("linear", 8.0)
    assert ours.layer_windows[4:7] == (theirs.sliding_window, None, theirs.sliding_window)
    assert ours.eos_ids == (1, 106)


def test_end_tokens_of_the_generation_config_come_first():
    config = {"model_type": "llama", **SIZES, "eos_token_id": 5}
    assert config_from_hf(config, source="c", generation={"eos_token_id": [5, 6]}).eos_ids == (5, 6)
    assert config_from_hf(config, source="c", generation={}).eos_ids == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mamba"},
            "model_type 'mamba' is not supported; supported are llama, .*, opt, gpt2, gpt_neox, phi, bert",
        ),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported are silu"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "'yarn' is not supported; supported are linear, llama3",
        ),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "'llama3' lacks 'low_freq_factor'"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', expected a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a positive integer"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny', expected a number"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, which is not supported"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["x"] * 7},
            "layer_types is .*expected 7",
        ),
    ],
)
def test_unusable_fields_are_named(change, message):
    with pytest.raises(InputError, match=f"some/config.json: .*{message}"):
        config_from_hf({"model_type": "llama", **SIZES, **change}, source="some/config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"qk_norm": True},
        {"layer_windows": (4, None, None)},
        {"norm_offset": 1.0},
        {"qkv_bias": True},
        {"attention_scale": 0.1},
        {"family": "qwen2", "qkv_bias": True, "layer_windows": (4, 5, None)},
    ],
)
def test_model_that_its_family_cannot_express_is_not_written(change):
    cfg = twin("llama")[2]
    with pytest.raises(InputError, match="cfg\\."):
        config_to_hf(dataclasses.replace(cfg, **change))


def test_attention_scale_written_out_is_the_default_one():
    cfg = twin("llama")[2]
    assert isinstance(cfg, ModelConfig)
    assert config_to_hf(dataclasses.replace(cfg, attention_scale=cfg.head_dim**-0.5)) == config_to_hf(cfg)
