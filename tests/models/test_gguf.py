"""GGUF files: the reference package `gguf` writes them and dequantizes them, ours must agree bit for bit."""

import struct

import gguf
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_twins import random_tokens, torch_logits, twin

from jaxlab.errors import InputError
from jaxlab.models import forward, generate, logits
from jaxlab.models.gguf import read_gguf
from jaxlab.models.gguf_blocks import BLOCK_FORMATS, dequantize
from jaxlab.models.gguf_weights import config_from_gguf, params_from_gguf
from jaxlab.models.packages import weight_file
from jaxlab.models.packed import PackedMatrix


def bits(array):
    return np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_random_blocks_dequantize_to_the_same_bits_as_the_reference(kind, seed, count):
    blocks = np.random.default_rng(seed).integers(0, 256, (count, BLOCK_FORMATS[kind].nbytes), np.uint8)
    with np.errstate(all="ignore"):  # random scales may be infinite
        ours = dequantize(blocks.reshape(-1), kind)
        reference = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(bits(ours), bits(reference))


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_extreme_blocks_dequantize_to_the_same_bits_as_the_reference(kind):
    spec = BLOCK_FORMATS[kind]
    rows = [np.full(spec.nbytes, byte, np.uint8) for byte in (0, 1, 15, 16, 127, 128, 240)]
    blocks = np.stack([*rows, *(np.arange(spec.nbytes) * step % 251 for step in (1, 7, 31))]).astype(np.uint8)
    with np.errstate(all="ignore"):
        reference = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(bits(dequantize(blocks.reshape(-1), kind)), bits(reference))


def test_block_sizes_are_those_of_the_reference():
    for kind, spec in BLOCK_FORMATS.items():
        number = gguf.GGMLQuantizationType[kind]
        assert (spec.number, spec.values, spec.nbytes) == (number.value, *gguf.GGML_QUANT_SIZES[number])


def test_tensors_of_the_real_model_equal_the_reference():
    path = weight_file("smollm2")
    ours, reference = read_gguf(path), gguf.GGUFReader(path)
    assert len(ours.tensors) == 272
    for tensor in reference.tensors[:12]:
        expected = gguf.dequantize(tensor.data[:500], tensor.tensor_type)
        found = ours.tensor(tensor.name)
        assert found.shape == tuple(int(n) for n in tensor.shape[::-1])
        np.testing.assert_array_equal(bits(found[:500]), bits(expected))
    assert set(ours.metadata) == {key for key in reference.fields if not key.startswith("GGUF.")}


def test_part_of_a_block_is_refused():
    with pytest.raises(InputError, match="multiple of 20"):
        dequantize(np.zeros(19, np.uint8), "Q4_1")


def test_unknown_format_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="IQ9.*Q4_K"):
        dequantize(np.zeros(8, np.uint8), "IQ9")


def written(path, *, endian=gguf.GGUFEndian.LITTLE):
    """A file with every kind of metadata and three tensors, from the reference writer."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -5)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve ☃")
    writer.add_array("strings", ["a", "", "é"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    rng = np.random.default_rng(0)
    tensors = {
        "one": rng.normal(size=(3, 64)).astype(np.float32),
        "two": rng.normal(size=(5,)).astype(np.float16),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    packed = gguf.quantize(tensors["one"], gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors | {"packed": gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)}


def test_metadata_and_tensors_of_the_reference_writer_come_back(tmp_path):
    tensors = written(tmp_path / "m.gguf")
    file = read_gguf(tmp_path / "m.gguf")
    expected = {
        "u8": 200,
        "i8": -5,
        "u16": 60000,
        "i16": -30000,
        "u32": 4_000_000_000,
        "i32": -2_000_000_000,
        "u64": 2**63,
        "i64": -(2**62),
        "f32": float(np.float32(0.1)),
        "f64": 0.1,
        "yes": True,
        "text": "naïve ☃",
        "strings": ["a", "", "é"],
        "general.architecture": "llama",
    }
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.metadata["integers"].tolist() == [1, -2, 3]
    assert file.metadata["floats"].tolist() == [0.5, 1.5]
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.tensor(name), tensor.astype(np.float32))


def damaged(tmp_path, change):
    written(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    (tmp_path / "m.gguf").write_bytes(change(content))
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("keep", [2, 6, 20, 100, 400, 900, -40])
def test_truncated_file_is_named(tmp_path, keep):
    path = damaged(tmp_path, lambda content: content[:keep])
    with pytest.raises(InputError, match="cut short") as error:
        read_gguf(path)
    assert str(path) in str(error.value)


def test_empty_and_absent_files_are_named(tmp_path):
    (tmp_path / "empty.gguf").touch()
    for path in (tmp_path / "empty.gguf", tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_gguf(path)


def test_bad_magic_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a GGUF file.*PK"):
        read_gguf(damaged(tmp_path, lambda content: b"PK\x03\x04" + content[4:]))


@pytest.mark.parametrize("version", [1, 4])
def test_unknown_version_is_refused(tmp_path, version):
    path = damaged(tmp_path, lambda content: content[:4] + struct.pack("<I", version) + content[8:])
    with pytest.raises(InputError, match=rf"version {version} .*\[2, 3\]"):
        read_gguf(path)


def test_big_endian_file_is_recognised(tmp_path):
    written(tmp_path / "m.gguf", endian=gguf.GGUFEndian.BIG)
    with pytest.raises(InputError, match="big-endian"):
        read_gguf(tmp_path / "m.gguf")


def record_of(content, name):
    """Position right behind the name in the record of a tensor."""
    return bytes(content).index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


def test_unknown_tensor_type_is_refused_with_the_known_ones(tmp_path):
    def change(content):
        at = record_of(content, "two") + 4 + 8
        content[at : at + 4] = struct.pack("<I", 99)
        return content

    with pytest.raises(InputError, match="'two' is of GGML type 99.*Q4_1"):
        read_gguf(damaged(tmp_path, change))


def test_offset_outside_the_file_is_refused(tmp_path):
    def change(content):
        at = record_of(content, "two") + 4 + 8 + 4
        content[at : at + 8] = struct.pack("<Q", 1 << 40)
        return content

    with pytest.raises(InputError, match="'two' ends at byte"):
        read_gguf(damaged(tmp_path, change))


def test_absurd_element_count_is_refused(tmp_path):
    def change(content):
        at = bytes(content).index(b"strings") + len("strings") + 4 + 4
        content[at : at + 8] = struct.pack("<Q", 1 << 60)
        return content

    with pytest.raises(InputError, match="damaged"):
        read_gguf(damaged(tmp_path, change))


# Ours -> the converter's name in a block.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight, heads):
    """What the converter does to q and k of Llama: row h of the first half goes to 2 h, else to 2 h + 1."""
    out = np.empty_like(weight)
    for head, block in zip(np.split(out, heads), np.split(weight, heads), strict=True):
        half = len(block) // 2
        head[0::2], head[1::2] = block[:half], block[half:]
    return out


def write_twin(path, case, quantized=None):
    """Writes a tiny torch model the way the converter of llama.cpp does; matrices of whole blocks in a format."""
    model, _, _ = twin(case)
    config, architecture = model.config, case.split("-")[0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in model.state_dict().items():
        array = value.numpy()
        name = name.removeprefix("model.")
        if name.startswith("layers."):
            _, layer, inner = name.split(".", 2)
            module, kind = inner.rsplit(".", 1)
            if architecture == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_" in module else config.num_key_value_heads
                array = interleaved(array, heads)
            name = f"blk.{layer}.{NAMES[module]}.{kind}"
        else:
            tied = config.tie_word_embeddings and name == "lm_head.weight"
            if tied:
                continue
            table = {
                "embed_tokens.weight": "token_embd",
                "norm.weight": "output_norm",
                "lm_head.weight": "output",
            }
            name = f"{table[name]}.weight"
        array = np.ascontiguousarray(array)
        if quantized and array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType["Q8_0" if "token_embd" in name else quantized]
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("case", ["llama", "llama-tied", "llama-biases", "qwen2", "qwen3"])
def test_logits_equal_torch_after_conversion_to_gguf(tmp_path, case):
    model = write_twin(tmp_path / "m.gguf", case)
    file = read_gguf(tmp_path / "m.gguf")
    cfg = config_from_gguf(file)
    params = params_from_gguf(file, cfg)
    tokens = random_tokens((2, 17))
    ours = logits(params, cfg, forward(params, cfg, tokens).hidden)
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize(("case", "kind"), [("llama", "Q4_1"), ("qwen3", "Q4_0")])
def test_model_kept_packed_has_the_logits_and_text_of_the_dequantized_one(tmp_path, case, kind):
    write_twin(tmp_path / "m.gguf", case, kind)
    file = read_gguf(tmp_path / "m.gguf")
    cfg = config_from_gguf(file)
    unpacked, packed = (params_from_gguf(file, cfg, packed=packed) for packed in (False, True))
    kept = {name for name, leaf in packed["layers"].items() if isinstance(leaf, PackedMatrix)}
    assert kept == {"q", "k", "v", "o", "gate", "up"}  # down is 48 wide
    assert isinstance(packed["embed"], PackedMatrix) and packed["embed"].bits == 8
    tokens = random_tokens((2, 17))
    found, expected = (logits(p, cfg, forward(p, cfg, tokens).hidden) for p in (packed, unpacked))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    prompt, lengths = random_tokens((2, 9), seed=1), np.array([9, 4])
    texts = [
        generate(p, cfg, prompt, lengths, jax.random.key(0), max_new=8, logprobs=True)
        for p in (packed, unpacked)
    ]
    np.testing.assert_array_equal(texts[0].tokens, texts[1].tokens)
    np.testing.assert_allclose(texts[0].logprobs, texts[1].logprobs, atol=1e-4)


def test_infinite_scale_of_a_packed_matrix_is_named(tmp_path):
    write_twin(tmp_path / "m.gguf", "llama", "Q4_1")
    at = read_gguf(tmp_path / "m.gguf").tensors["blk.1.ffn_up.weight"].offset
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    content[at : at + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "m.gguf").write_bytes(content)
    file = read_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="'up': a scale is infinite"):
        params_from_gguf(file, config_from_gguf(file), packed=True)


def test_unsupported_architecture_is_refused_with_the_supported_ones(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="'mamba'.*llama, qwen2, qwen3, gemma3"):
        config_from_gguf(read_gguf(tmp_path / "m.gguf"))


def test_nan_weight_is_named(tmp_path):
    write_twin(tmp_path / "m.gguf", "llama")
    file = read_gguf(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    at = file.tensors["blk.1.ffn_up.weight"].offset + 40
    content[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "m.gguf").write_bytes(content)
    file = read_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight.*NaN"):
        params_from_gguf(file, config_from_gguf(file))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_stretch_of_llama3_is_recovered_from_its_divisors(tmp_path, factor):
    """Divisors by the published recipe: 1 for short wavelengths, the factor for long ones, mixed between."""
    path = tmp_path / "m.gguf"
    model, _, _ = twin("llama")
    divisors = []
    for i in range(4):
        wavelength = 2 * np.pi * 500_000.0 ** (2 * i / 8)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 3),
        (writer.add_context_length, 512),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 48),
        (writer.add_head_count, 4),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 500_000.0),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", model.state_dict()["model.embed_tokens.weight"].numpy())
    writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    scaling = config_from_gguf(read_gguf(path)).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_max_positions) == ("llama3", factor, 8192)
