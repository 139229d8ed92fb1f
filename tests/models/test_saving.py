"""Saved directories open in transformers with equal logits; nothing half-written stays when saving fails."""

import dataclasses
import errno
import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from narrow_layers import narrow_twin
from safetensors import safe_open
from torch_twins import CASES, random_tokens, torch_logits, twin
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import LayerWidths, gather, layout_note, load, save_hf, unstack_layers
from jaxlab.models.loading import describe


@pytest.mark.parametrize("case", CASES)
def test_saved_model_opens_in_transformers_with_equal_logits(case, tmp_path):
    model, params, cfg = twin(case)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager"
    ).eval()
    tokens = random_tokens((2, 17))
    np.testing.assert_allclose(torch_logits(again, tokens), torch_logits(model, tokens), atol=1e-5)


def test_saved_tokenizer_opens_in_transformers(tmp_path):
    _, params, cfg = twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("w5 w17 w3")["input_ids"] == [5, 17, 3]


@pytest.mark.parametrize("case", ["llama", "llama-biases", "gemma3", "qwen2"])
def test_save_and_load_give_the_same_model(case, tmp_path):
    _, params, cfg = twin(case)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_layers_as_a_tuple_are_saved_the_same(tmp_path):
    _, params, cfg = twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "stacked")
    save_hf(unstack_layers(params), cfg, toy_tokenizer(), tmp_path / "tuple")
    stacked, unstacked = ((tmp_path / d / "model.safetensors").read_bytes() for d in ("stacked", "tuple"))
    assert stacked == unstacked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_on_disk_is_the_one_asked_for(dtype, tmp_path):
    _, params, cfg = twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", dtype=jnp.dtype(dtype))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.dtype == getattr(torch, dtype)
    again = load(tmp_path / "m").params
    expected = jax.tree.map(lambda leaf: np.asarray(leaf.astype(dtype).astype(jnp.float32)), params)
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_tied_head_is_not_stored(tmp_path):
    _, params, cfg = twin("llama-tied")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in file.keys()
    assert json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"] is True


def test_files_are_readable_by_others_as_the_umask_says(tmp_path):
    _, params, cfg = twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "m").iterdir()}
    assert len(modes) == 1


def poisoned(params):
    up = params["layers"]["up"].at[1, 2, 3].set(jnp.nan)
    return {**params, "layers": {**params["layers"], "up": up}}


def test_nan_weight_is_named_and_the_earlier_directory_stays(tmp_path):
    _, params, cfg = twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        save_hf(poisoned(params), cfg, toy_tokenizer(), tmp_path / "m")
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_weight_too_large_for_float16_is_named(tmp_path):
    _, params, cfg = twin("llama")
    large = {**params, "embed": params["embed"].at[0, 0].set(1e6)}
    with pytest.raises(InputError, match="embed_tokens.weight holds NaN or infinity in float16"):
        save_hf(large, cfg, toy_tokenizer(), tmp_path / "m", dtype=jnp.float16)


def test_wrong_shape_is_named(tmp_path):
    _, params, cfg = twin("llama")
    wider = dataclasses.replace(cfg, mlp_size=50)
    with pytest.raises(
        InputError, match=r"mlp\.gate_proj\.weight has shape \[48, 32\], but cfg asks for \[50, 32\]"
    ):
        save_hf(params, wider, toy_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_integer_dtype_is_refused(tmp_path):
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match="dtype is int8; it must be one of float32"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", dtype=jnp.int8)


@pytest.mark.parametrize("layout", ["masked", "uniform"])
@pytest.mark.parametrize("case", ["llama-biases", "llama-tied", "mistral", "qwen2", "qwen3", "gemma3"])
def test_narrow_layers_open_in_stock_transformers(case, layout, tmp_path):
    widths = [LayerWidths(13, 0), LayerWidths(0, 1), LayerWidths(30, 1), LayerWidths(7, 1)]
    model, params, cfg = narrow_twin(case, widths)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout=layout)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert type(again) is type(model)
    assert again.config.intermediate_size == (30 if layout == "uniform" else 48)
    assert again.config.num_key_value_heads == (1 if layout == "uniform" else 2)
    tokens = random_tokens((2, 17))
    np.testing.assert_allclose(torch_logits(again, tokens), torch_logits(model, tokens), atol=1e-5)
    assert describe(tmp_path / "m").parameters == sum(p.numel() for p in again.parameters())


def test_uniform_layout_keeps_a_number_of_heads_that_transformers_accepts(tmp_path):
    """3 of 4 key-value heads would make 12 query heads, which do not divide a hidden size of 32."""
    _, params, cfg = twin("llama-tied")
    cfg = dataclasses.replace(cfg, num_heads=16, num_kv_heads=4, head_dim=2)
    narrow = [dict(layer) for layer in unstack_layers(params)["layers"]]
    for layer in narrow:
        layer["q"], layer["o"] = layer["q"][:24], layer["o"][:, :24]
        layer["k"], layer["v"] = layer["k"][:6], layer["v"][:6]
    cfg = dataclasses.replace(cfg, layer_widths=[LayerWidths(48, 3)] * 3)
    save_hf({**params, "layers": tuple(narrow)}, cfg, toy_tokenizer(), tmp_path / "m", layout="uniform")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "m").num_key_value_heads == 4
    assert load(tmp_path / "m").cfg.layer_widths is None


def test_a_model_of_equal_layers_is_the_same_in_the_uniform_layout(tmp_path):
    _, params, cfg = twin("qwen3")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "masked")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "uniform", layout="uniform")
    for file in (tmp_path / "masked").iterdir():
        assert file.read_bytes() == (tmp_path / "uniform" / file.name).read_bytes()


def test_gathered_matrices_are_masked_but_never_uniform(tmp_path):
    _, params, cfg = twin("llama")
    params = unstack_layers(params)
    params["layers"][1]["up"] = gather(params["layers"][1]["up"], np.arange(48) > 5, np.arange(32) % 3 > 0)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    up = load(tmp_path / "m").params["layers"]["up"][1]
    assert not up[:6].any() and not up[:, ::3].any() and up[6:, 1::3].all()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj.* use 'compact', or 'masked'"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "u", layout="uniform")


@pytest.mark.parametrize("layout", ["masked", "uniform", "compact"])
def test_widths_that_are_not_those_of_cfg_are_named(layout, tmp_path):
    _, params, cfg = narrow_twin("llama")
    other = dataclasses.replace(cfg, layer_widths=(cfg.layer_widths[0], LayerWidths(5, 1), (48, 2)))
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.gate_proj\.weight has shape \[0, 32\], .* \[5, 32\]"
    ):
        save_hf(params, other, toy_tokenizer(), tmp_path / "m", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["masked", "compact"])
def test_missing_layers_are_named(layout, tmp_path):
    _, params, cfg = narrow_twin("llama")
    fewer = {**params, "layers": params["layers"][:2]}
    with pytest.raises(InputError, match="has 2 layers; cfg.num_layers is 3"):
        save_hf(fewer, cfg, toy_tokenizer(), tmp_path / "m", layout=layout)


def test_layouts_are_named(tmp_path):
    _, params, cfg = twin("llama")
    with pytest.raises(InputError, match="layout is 'dense'; it must be one of masked, uniform, compact"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="dense")
    with pytest.raises(InputError, match="layout is 'dense'"):
        layout_note("dense")
    assert "trust_remote_code=True" in layout_note("compact")
    assert all("stock transformers and vLLM" in layout_note(layout) for layout in ("masked", "uniform"))


def test_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    _, params, cfg = twin("llama")
    import safetensors.numpy

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(ResourceError, match="disk full while writing"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_write_error_of_the_library_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    """The library reports a full disk as an error of its own class."""
    _, params, cfg = twin("llama")
    import safetensors.numpy
    from safetensors import SafetensorError

    def full(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(ResourceError, match="cannot write .*No space left"):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
