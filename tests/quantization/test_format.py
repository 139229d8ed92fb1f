"""The packed format: round trips to the bit, the bytes on disk, and every kind of damaged file."""

import dataclasses
import errno
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from toy_model import CODE, mixed_specs, toy, toy_tokens, with_layers
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import describe, forward, load, logits, unstack_layers
from jaxlab.quantization import (
    ScalarSpec,
    Scheme,
    bits_on_disk,
    expand_params,
    load_quantized,
    quantize_layers,
    quantize_scalar,
    save_quantized,
)
from jaxlab.quantization.format import block_bits, read_tensors, write_tensors
from jaxlab.quantization.pvq import PVQTensor
from jaxlab.quantization.scalar import ScalarTensor

GATE = "model.layers.0.mlp.gate_proj"
QUERY = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def quantized():
    """(params with packed matrices, embedding and head too; cfg)."""
    params, cfg = toy("qwen2")
    layers = quantize_layers(params, cfg, Scheme(mixed_specs(), feedback=False), jax.random.key(0))
    packed = with_layers(params, [layer.tensors for layer in layers])
    byte_code = ScalarSpec(8, 32, "midtread")
    return packed | {name: quantize_scalar(params[name], spec=byte_code) for name in ("embed", "head")}, cfg


@pytest.fixture(scope="module")
def saved(quantized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_quantized(*quantized, toy_tokenizer(), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder to damage: rewrite(change) gives `change` the tensors and the metadata to edit."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def rewrite(change=lambda tensors, metadata: None):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        with safe_open(file, "np") as opened:
            metadata = dict(opened.metadata())
        change(tensors, metadata)
        save_file(tensors, file, metadata=metadata)
        return folder

    return rewrite


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_packed_model_comes_back_bit_for_bit(quantized, saved):
    params, cfg = quantized
    again = load_quantized(saved, packed=True)
    assert again.cfg == dataclasses.replace(cfg, add_bos=again.cfg.add_bos)
    assert jax.tree.structure(again.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert isinstance(again.params["layers"][0]["q"], PVQTensor)
    assert isinstance(again.params["layers"][0]["gate"], ScalarTensor)


def test_logits_of_the_loaded_folder_are_those_of_the_model_in_memory(quantized, saved):
    params, cfg = quantized
    tokens = toy_tokens()
    model = load(saved)
    dense = expand_params(params)
    here, there = (logits(p, cfg, forward(p, cfg, tokens).hidden) for p in (dense, model.params))
    np.testing.assert_array_equal(there, here)
    assert model.tokenizer("w5 w17")["input_ids"] == [5, 17]


def test_logits_of_packed_and_expanded_models_agree(quantized, saved):
    params, cfg = quantized
    tokens = toy_tokens()
    packed, dense = (
        np.asarray(logits(p, cfg, forward(p, cfg, tokens).hidden)) for p in (params, load(saved).params)
    )
    np.testing.assert_allclose(packed, dense, atol=1e-4 * np.abs(dense).max())


def test_stacked_layers_are_saved_as_single_ones(quantized, saved, tmp_path):
    params, cfg = quantized
    stacked = {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["layers"])}
    save_quantized(stacked, cfg, toy_tokenizer(), tmp_path / "m")
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "m", saved))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_dtype_is_that_of_all_dense_arrays(saved):
    params = load(saved, dtype=jnp.bfloat16).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    packed = load_quantized(saved, packed=True, dtype=jnp.bfloat16).params
    assert packed["final_norm"].dtype == jnp.bfloat16


def test_bytes_in_the_file_are_the_bits_that_the_codes_state(quantized, saved):
    params, cfg = quantized
    tensors = load_file(saved / "model.safetensors")
    stored = sum(
        array.nbytes
        for name, array in tensors.items()
        if ".layers." in name and ("pvq_" in name or "scalar_" in name)
    )
    leaves = [
        leaf for layer in params["layers"] for leaf in layer.values() if not isinstance(leaf, jax.Array)
    ]
    weights = sum(math.prod(leaf.shape) for leaf in leaves)
    assert stored == sum(leaf.nbytes for leaf in leaves)
    assert bits_on_disk(saved) == 8 * stored / weights == block_bits(dict(enumerate(leaves)))
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "pvq", "bits": round(8 * stored / weights, 4), "version": "1"}
    of_codes = sum(leaf.spec.stored_bits(leaf.columns) * math.prod(leaf.shape) for leaf in leaves)
    side = sum(
        8 * leaf.columns // 8 + (32 * leaf.levels.size if isinstance(leaf, PVQTensor) else 0)
        for leaf in leaves
    )
    assert 8 * stored == of_codes + side


def test_file_is_hardly_larger_than_its_tensors(saved):
    file = saved / "model.safetensors"
    payload = sum(array.nbytes for array in load_file(file).values())
    assert payload < file.stat().st_size < payload + 16_384


def test_describe_opens_the_folder(saved):
    description = describe(saved)
    assert description.file_format == "safetensors, pvq"
    assert description.cfg.num_layers == 2
    assert f"{QUERY}.pvq_words" in {tensor.name for tensor in description.tensors}
    assert description.file_bytes == (saved / "model.safetensors").stat().st_size


def test_metadata_says_what_the_specification_asks_for(saved):
    with safe_open(saved / "model.safetensors", "np") as file:
        metadata = file.metadata()
        assert file.get_tensor(f"{QUERY}.pvq_words").dtype == np.uint32
        assert file.get_tensor(f"{QUERY}.pvq_scale").dtype == np.float16
        assert file.get_tensor(f"{QUERY}.pvq_levels").dtype == np.float32
        assert file.get_tensor(f"{QUERY}.pvq_signs").shape == (4,)
    assert (metadata["format"], metadata["version"], metadata["index_order"]) == (
        "jaxlab-pvq",
        "1",
        "fischer-1",
    )
    entry = json.loads(metadata["tensors"])[QUERY]
    assert entry == {"kind": "pvq", "shape": [32, 32], "rotation": "hadamard", **dataclasses.asdict(CODE)}


def test_notes_travel_with_the_tensors(tmp_path, quantized):
    leaf = quantized[0]["layers"][0]["q"]
    write_tensors(
        tmp_path / "one", {"a.weight": leaf, "b": jnp.arange(3.0)}, notes={"layer": "7", "format": "x"}
    )
    tensors, metadata = read_tensors(tmp_path / "one")
    assert metadata["layer"] == "7" and metadata["format"] == "jaxlab-pvq"
    assert tensors.keys() == {"a.weight", "b"}
    jax.tree.map(np.testing.assert_array_equal, tensors["a.weight"], leaf)
    np.testing.assert_array_equal(tensors["b"], [0, 1, 2])


# Damaged files


@pytest.mark.parametrize(
    "key, value", [("format", "gguf"), ("version", "2"), ("index_order", "fischer-2"), ("version", None)]
)
def test_unknown_format_version_or_order_is_refused(copy, key, value):
    def change(tensors, metadata):
        metadata.pop(key) if value is None else metadata.update({key: value})

    folder = copy(change)
    for read in (load, bits_on_disk):
        with pytest.raises(
            InputError, match=rf"model\.safetensors: {key} is {value!r}, this version of jaxlab reads"
        ):
            read(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_truncated_file_is_refused(copy, keep):
    file = copy() / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read .* cut short or damaged"):
        load(file.parent)


def test_absent_weights_are_named(copy):
    folder = copy()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{QUERY}.pvq_words", f"{QUERY}.pvq_levels", f"{QUERY}.pvq_signs", f"{GATE}.scalar_scale",
        f"{GATE}.scalar_minimum", "model.norm.weight", "model.layers.1.input_layernorm.weight",
    ],
)  # fmt: skip
def test_missing_tensor_is_named(copy, name):
    folder = copy(lambda tensors, metadata: tensors.pop(name))
    with pytest.raises(InputError, match=f"tensor '{name}' is missing"):
        load(folder)


def test_missing_matrix_is_named(copy):
    def change(tensors, metadata):
        described = json.loads(metadata["tensors"])
        del described[QUERY]
        metadata["tensors"] = json.dumps(described)

    with pytest.raises(InputError, match=f"tensor '{QUERY}.weight' is missing"):
        load(copy(change))


@pytest.mark.parametrize(
    "name, array, needed",
    [
        (f"{QUERY}.pvq_words", np.zeros((32, 5), np.uint32), r"uint32\[32, 4\]"),
        (f"{QUERY}.pvq_words", np.zeros((32, 4), np.int32), r"uint32\[32, 4\]"),
        (f"{QUERY}.pvq_scale", np.zeros(31, np.float16), r"float16\[32\]"),
        (f"{QUERY}.pvq_levels", np.zeros(4, np.float32), r"float32\[8\]"),
        (f"{GATE}.scalar_signs", np.zeros(3, np.uint8), r"uint8\[4\]"),
        (f"{GATE}.scalar_scale", np.zeros((48, 2), np.float32), r"float16\[48, 2\]"),
    ],
)
def test_wrong_size_or_dtype_is_named_with_what_is_needed(copy, name, array, needed):
    folder = copy(lambda tensors, metadata: tensors.update({name: array}))
    with pytest.raises(InputError, match=f"{name} is .*, but the code .* needs {needed}"):
        load(folder)


@pytest.mark.parametrize("name", [f"{QUERY}.pvq_scale", f"{QUERY}.pvq_levels", f"{GATE}.scalar_scale"])
def test_values_that_are_not_finite_are_refused(copy, name):
    def change(tensors, metadata):
        tensors[name] = (
            np.where(np.arange(tensors[name].size) == 1, np.nan, tensors[name].reshape(-1))
            .astype(tensors[name].dtype)
            .reshape(tensors[name].shape)
        )

    with pytest.raises(InputError, match=f"{name} holds values that are not finite"):
        load(copy(change))


def describe_as(stem, **changes):
    def change(tensors, metadata):
        described = json.loads(metadata["tensors"])
        described[stem] |= changes
        metadata["tensors"] = json.dumps(described)

    return change


@pytest.mark.parametrize(
    "stem, changes",
    [
        (QUERY, {"kind": "ternary"}),
        (QUERY, {"k": 500}),
        (QUERY, {"k": 28.0}),
        (QUERY, {"grid": "even"}),
        (QUERY, {"rotation": "givens"}),
        (QUERY, {"shape": [32]}),
        (QUERY, {"shape": [32, "32"]}),
        (QUERY, {"shape": [32, -32]}),
        (QUERY, {"shape": None}),
        (GATE, {"bits": "3"}),
        (GATE, {"group": 20}),
    ],
)
def test_damaged_description_names_the_matrix(copy, stem, changes):
    folder = copy(describe_as(stem, **changes))
    for read in (load, bits_on_disk):
        with pytest.raises(InputError, match=f"the description of {stem} in the metadata is damaged"):
            read(folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3", '{"a": 1}', None])
def test_damaged_list_of_tensors_is_refused(copy, text):
    def change(tensors, metadata):
        metadata.pop("tensors") if text is None else metadata.update(tensors=text)

    with pytest.raises(InputError, match="in the metadata is damaged"):
        load(copy(change))


def test_matrix_of_another_shape_than_the_configuration_is_refused(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(
        InputError,
        match=r"'model.layers.0.mlp.gate_proj.weight' has shape \[48, 32\], .* asks for \[64, 32\]",
    ):
        load(folder)


# Saving that fails


def broken_norm(params):
    return {**params, "final_norm": params["final_norm"].at[3].set(jnp.nan)}


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_said_and_the_earlier_folder_stays(quantized, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    save_quantized(*quantized, toy_tokenizer(), folder)
    before = contents(folder)
    import safetensors.numpy

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(ResourceError, match=f"disk full while writing {folder}"):
        save_quantized(*quantized, toy_tokenizer(), folder)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_value_that_is_not_finite_is_named_and_nothing_is_left(quantized, tmp_path):
    params, cfg = quantized
    with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN or infinity; nothing was saved"):
        save_quantized(broken_norm(params), cfg, toy_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_leaf_of_another_shape_is_named_and_nothing_is_left(quantized, tmp_path):
    params, cfg = quantized
    wider = dataclasses.replace(cfg, mlp_size=64)
    with pytest.raises(
        InputError, match=r"gate_proj.weight has shape \[48, 32\], but cfg asks for \[64, 32\]"
    ):
        save_quantized(params, wider, toy_tokenizer(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_tied_head_is_not_stored(tmp_path):
    params, cfg = toy(tied=True)
    save_quantized(params, cfg, toy_tokenizer(), tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m/model.safetensors")
    again = load(tmp_path / "m").params
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(again), unstack_layers(params))
