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
from safetensors import safe_open
from torch_twins import CASES, random_tokens, torch_logits, twin
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import load, save_hf, unstack_layers


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
