"""Compact directories open in transformers, with the code that they bring, and here."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from narrow_layers import narrow_twin
from safetensors.numpy import load_file, save_file
from torch_twins import random_tokens, torch_logits, twin
from toy_tokenizer import toy_tokenizer

from jaxlab.cli import main
from jaxlab.errors import InputError
from jaxlab.models import Gathered, forward, gather, generate, load, logits, save_hf, unstack_layers
from jaxlab.models.loading import describe

TOKENS = random_tokens((2, 11))


@pytest.fixture(scope="module", autouse=True)
def own_module_cache(tmp_path_factory):
    """Where transformers puts the code of directories."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", folder)
        yield


def gathered_twin(case):
    """A narrow twin some of whose matrices lost rows and columns too."""
    _, params, cfg = narrow_twin(case)
    rng, layers = np.random.default_rng(0), [dict(layer) for layer in params["layers"]]
    for index, name in ((0, "gate"), (0, "down"), (1, "q"), (1, "o"), (2, "k"), (2, "v"), (2, "up")):
        matrix = layers[index][name]
        layers[index][name] = gather(matrix, *(rng.random(size) < 0.6 for size in matrix.shape))
    return {**params, "layers": tuple(layers)}, cfg


def opened(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


@pytest.mark.parametrize("case", ["llama-biases", "llama-tied", "mistral", "qwen2", "qwen3"])
def test_logits_and_generation_in_transformers_are_ours(case, tmp_path):
    params, cfg = gathered_twin(case)
    save_hf(params, cfg, toy_tokenizer(), tmp_path / case, layout="compact")
    model = opened(tmp_path / case)
    ours = logits(params, cfg, forward(params, cfg, TOKENS).hidden)
    np.testing.assert_allclose(torch_logits(model, TOKENS), ours, atol=1e-5)
    expected = generate(params, cfg, TOKENS, jnp.array([11, 11]), jax.random.key(0), max_new=6).tokens
    found = model.generate(
        torch.tensor(TOKENS, dtype=torch.long), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    np.testing.assert_array_equal(found[:, 11:], expected)
    assert describe(tmp_path / case).parameters == sum(p.numel() for p in model.parameters())


def test_zeros_cost_nothing_and_logits_stay_those_of_torch(tmp_path):
    model, params, cfg = narrow_twin("llama-tied")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="compact")
    small = opened(tmp_path / "m")
    np.testing.assert_allclose(torch_logits(small, TOKENS), torch_logits(model, TOKENS), atol=1e-5)
    # Of q and o, and of k and v, 2 heads in layer 0 and 1 in layer 1; then hidden units.
    removed = (2 * 32 * 32 + 2 * 16 * 32) + (2 * 16 * 32 + 2 * 8 * 32) + (35 + 48) * 3 * 32
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters()) - removed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_gives_the_same_parameters_back(dtype, tmp_path):
    params, cfg = gathered_twin("llama-biases")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="compact", dtype=dtype)
    again = load(tmp_path / "m")
    assert again.cfg == cfg
    rounded = jax.tree.map(
        lambda x: x if x.dtype == jnp.int32 else x.astype(dtype).astype(jnp.float32), params
    )
    chex.assert_trees_all_equal(again.params, rounded)
    assert opened(tmp_path / "m").dtype == getattr(torch, dtype)


def test_stacked_layers_come_back_as_a_tuple(tmp_path):
    _, params, cfg = twin("qwen3")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="compact")
    again = load(tmp_path / "m")
    assert again.cfg == cfg
    chex.assert_trees_all_equal(again.params, unstack_layers(params))


def test_info_counts_what_is_left(tmp_path, capsys):
    params, cfg = gathered_twin("llama")
    save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="compact")
    kept = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.dtype != jnp.int32)
    assert main(["models", "info", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    assert f"{kept:,}" in shown and "safetensors, compact" in shown
    assert "mlp_size 0 to 48, num_kv_heads 0 to 2" in shown


def test_other_families_are_refused_with_a_list(tmp_path):
    _, params, cfg = narrow_twin("gemma3")
    with pytest.raises(
        InputError, match="is for llama, mistral, qwen2, qwen3; this is a gemma3: use 'masked'"
    ):
        save_hf(params, cfg, toy_tokenizer(), tmp_path / "m", layout="compact")


def test_nan_and_bad_indices_are_named_before_anything_is_written(tmp_path):
    params, cfg = gathered_twin("llama")
    leaf = params["layers"][1]["q"]
    wrong = [
        (dataclasses.replace(leaf, weight=leaf.weight.at[0, 0].set(jnp.nan)), r"q_proj\.weight holds NaN"),
        (
            dataclasses.replace(leaf, rows=leaf.rows[::-1]),
            r"q_proj\.rows holds int32 .*increasing .* 0 to 15",
        ),
        (dataclasses.replace(leaf, columns=leaf.columns + 9), r"q_proj\.cols holds .* from 0 to 31"),
        (dataclasses.replace(leaf, columns=leaf.columns[1:]), r"q_proj\.cols has shape"),
        (
            dataclasses.replace(leaf, size=40),
            r"q_proj\.weight has shape \[40, 32\], but cfg asks for \[16, 32\]",
        ),
    ]
    for bad, named in wrong:
        first, second, third = params["layers"]
        damaged = {**params, "layers": (first, second | {"q": bad}, third)}
        with pytest.raises(InputError, match=named):
            save_hf(damaged, cfg, toy_tokenizer(), tmp_path / "m", layout="compact")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    params, cfg = gathered_twin("llama")
    assert isinstance(params["layers"][1]["q"], Gathered)
    directory = tmp_path_factory.mktemp("saved") / "m"
    save_hf(params, cfg, toy_tokenizer(), directory, layout="compact")
    return directory


Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{Q}.rows"), rf"tensor '{Q}.rows' is missing from model.safetensors"),
        (lambda t: t.pop(f"{Q}.cols"), rf"tensor '{Q}.cols' is missing from model.safetensors"),
        (lambda t: t.pop(f"{Q}.weight"), rf"tensor '{Q}.weight' is missing from model.safetensors"),
        (
            lambda t: t.update({f"{Q}.rows": t[f"{Q}.rows"] + 9}),
            rf"model.safetensors: tensor '{Q}.rows' holds",
        ),
        (lambda t: t.update({f"{Q}.cols": t[f"{Q}.cols"] - 5}), rf"tensor '{Q}.cols' holds .* from 0 to 31"),
        (lambda t: t.update({f"{Q}.rows": t[f"{Q}.rows"][:-1]}), rf"tensor '{Q}.rows' has shape"),
        (lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"] * np.nan}), rf"tensor '{Q}.weight' holds NaN"),
        (lambda t: t.update({f"{Q}.rows": t[f"{Q}.rows"].astype(np.float32)}), "holds float32"),
    ],
)
def test_damaged_tensors_are_named(saved, change, named, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=named):
        load(tmp_path)


def set_entry(layer, key, value):
    return lambda config: config["layer_widths"][layer].update({key: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.pop("layer_widths"), "config.json: layer_widths is None, expected a list"),
        (lambda config: config["layer_widths"].pop(), "layer_widths has 2 entries; it needs num_layers, 3"),
        (
            lambda config: config.update(model_type="jaxlab_pruned_gpt2"),
            "supported are jaxlab_pruned_llama, ",
        ),
        (set_entry(1, "q_proj", [32]), r"layer_widths\[1\] is .*expected num_key_value_heads"),
        (set_entry(1, "gathered", None), r"layer_widths\[1\] is .*expected num_key_value_heads"),
        (set_entry(1, "num_key_value_heads", 3), r"config.json: layer_widths: .*num_kv_heads=3"),
        (set_entry(1, "q_proj", [32, 17]), r"\[1\]\['q_proj'\] is \[32, 17\]; .* \[32, 16\], or less where"),
        (set_entry(1, "k_proj", [32, 7]), r"\[1\]\['k_proj'\] is \[32, 7\]; .* \[32, 8\], or less where"),
    ],
)
def test_damaged_configuration_is_named(saved, change, named, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=named):
        load(tmp_path)


def test_a_directory_cut_short_is_named(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="model.safetensors: cannot be read"):
        load(tmp_path)
