"""Pruned models: only what is left is coded, by the code that a matrix of that size alone would get."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from toy_model import CODE, specs, toy, toy_tokens, with_layers
from toy_tokenizer import toy_tokenizer

from jaxlab.errors import InputError
from jaxlab.models import LINEARS, Gathered, LayerWidths, dense, describe, forward, load, logits, stack_padded
from jaxlab.quantization import (
    PVQSpec,
    ScalarSpec,
    Scheme,
    bits_on_disk,
    expand_params,
    find_parts,
    load_quantized,
    quantize_layers,
    save_quantized,
)
from jaxlab.quantization.model import dequantize_any, dequantize_part
from jaxlab.quantization.parts import as_leaf
from jaxlab.quantization.pvq import quantize_prepared

KEY = jax.random.key(3)
TOKENS = toy_tokens(windows=12, context=16)
PARAMS, CFG = toy("qwen2", num_layers=3)


def pruned(seed=0, *, rows=0.4, columns=0.4):
    """Layers of which random rows and columns are zero."""
    rng = np.random.default_rng(seed)
    layers = dict(PARAMS["layers"])
    for name in LINEARS:
        count, high, wide = layers[name].shape
        keep = (rng.random((count, high, 1)) > rows) & (rng.random((count, 1, wide)) > columns)
        layers[name] = layers[name] * keep
    return {**PARAMS, "layers": layers}


def narrow():
    """Layers with 20 of 48 hidden units, none and all, and 2, 1 and no heads, filled up with zeros."""
    widths = (LayerWidths(20, 2), LayerWidths(0, 1), LayerWidths(48, 0))
    cfg = dataclasses.replace(CFG, layer_widths=widths)
    layers = {name: np.array(leaf) for name, leaf in PARAMS["layers"].items()}
    for index, (units, heads) in enumerate(widths):
        for name in ("gate", "up"):
            layers[name][index, units:] = 0
        layers["down"][index, :, units:] = 0
        for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias"):
            layers[name][index, heads * 8 :] = 0
        layers["o"][index, :, heads * 8 :] = 0
    return {**PARAMS, "layers": jax.tree.map(jnp.asarray, layers)}, cfg


def whole(params, parts, tensors):
    """The quantized matrices of one layer, in the stacked model's shapes."""
    return [
        {
            name: dequantize_part(tensor, parts[index][name], params["layers"][name].shape[1:])
            for name, tensor in layer.tensors.items()
        }
        for index, layer in enumerate(tensors)
    ]


def test_a_model_without_zeros_has_no_parts():
    assert find_parts(PARAMS, CFG, multiple=16) == (CFG, None)


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_parts_hold_every_weight_that_is_left_and_columns_in_multiples(multiple):
    params = pruned()
    cfg, parts = find_parts(params, CFG, multiple=multiple)
    assert cfg == CFG
    for index, layer in enumerate(parts):
        for name, one in layer.items():
            matrix = np.asarray(params["layers"][name][index])
            outside = matrix.copy()
            outside[np.ix_(one.rows, one.columns)] = 0
            assert not outside.any()
            assert len(one.columns) % multiple == 0 or len(one.columns) == matrix.shape[1]
            assert len(one.columns) < max((matrix != 0).any(0).sum(), 1) + multiple or one.whole
            assert (np.diff(one.rows) > 0).all() and (np.diff(one.columns) > 0).all()


def test_narrow_layers_get_hidden_units_in_multiples_and_at_least_something():
    params, cfg = narrow()
    wider, parts = find_parts(params, cfg, multiple=16)
    assert wider.layer_widths == (LayerWidths(32, 2), LayerWidths(16, 1), LayerWidths(48, 1))
    assert parts[0]["down"].shape == (32, 32) and parts[0]["down"].whole
    assert parts[0]["q"].shape == (16, 32)


@pytest.mark.parametrize("scheme", [Scheme(specs(layers=3), rotated=False, feedback=False)])
def test_a_part_gets_the_code_of_a_matrix_of_its_size(scheme):
    params = pruned()
    _, parts = find_parts(params, CFG, multiple=16)
    layers = list(quantize_layers(params, CFG, scheme, KEY, parts=parts))
    for index, name in ((0, "q"), (1, "down"), (2, "gate")):
        one = parts[index][name]
        small = params["layers"][name][index][np.ix_(one.rows, one.columns)]
        alone = quantize_prepared(small, None, None, spec=CODE)
        jax.tree.map(np.testing.assert_array_equal, layers[index].tensors[name], alone)


def test_feedback_acts_within_the_part():
    """With feedback, between rows too, dead rows and columns stay zero and the error at the outputs is lower."""
    params = pruned(rows=0.3, columns=0.3)
    _, parts = find_parts(params, CFG, multiple=16)
    rng = np.random.default_rng(0)
    moments = {}
    for name in LINEARS:
        g = rng.standard_normal((3, params["layers"][name].shape[1], 200))
        moments[name] = jnp.asarray(g @ g.swapaxes(1, 2) / 200, jnp.float32)
    with_feedback = list(
        quantize_layers(
            params,
            CFG,
            Scheme(specs(layers=3), correction=0.5, sweeps=1),
            KEY,
            tokens=TOKENS,
            output_moments=moments,
            parts=parts,
        )
    )
    plain = list(quantize_layers(params, CFG, Scheme(specs(layers=3), feedback=False), KEY, parts=parts))
    approximate = whole(params, parts, with_feedback)
    for index in range(3):
        for name in LINEARS:
            one = parts[index][name]
            outside = np.array(approximate[index][name])
            outside[np.ix_(one.rows, one.columns)] = 0
            assert not outside.any()
    gained = [
        with_feedback[0].output_sqnr[name] - plain[0].weight_sqnr[name] for name in ("q", "gate", "down")
    ]
    assert np.mean(gained) > 1
    # An interrupted run goes on from its first block to the same blocks.
    again = list(
        quantize_layers(
            params,
            CFG,
            Scheme(specs(layers=3), correction=0.5, sweeps=1),
            KEY,
            tokens=TOKENS,
            output_moments=moments,
            done=[with_feedback[0].tensors],
            parts=parts,
        )
    )
    for one, other in zip(with_feedback[1:], again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.tensors, other.tensors)


def quantized(params, cfg, code):
    wider, parts = find_parts(params, cfg, multiple=16)
    uniform = dataclasses.replace(cfg, layer_widths=None)
    scheme = Scheme(specs(code, layers=3), feedback=False)
    layers = list(quantize_layers(params, uniform, scheme, KEY, parts=parts))
    shapes = [dict(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])) for i in range(3)]
    leaves = []
    for index, layer in enumerate(layers):
        biases = {
            name: leaf[: parts[index][name.removesuffix("_bias")].shape[0]]
            for name, leaf in shapes[index].items()
            if name.endswith("_bias")
        }
        matrices = {name: as_leaf(tensor, parts[index][name]) for name, tensor in layer.tensors.items()}
        leaves.append(biases | matrices)
    return with_layers(params, leaves), wider, parts, layers


@pytest.mark.parametrize("code", [CODE, ScalarSpec(4, 8, "midrise")])
@pytest.mark.parametrize("kind", ["lines", "narrow"])
def test_a_saved_part_comes_back_and_gives_the_logits_of_the_zeros_filled_model(tmp_path, kind, code):
    params, cfg = (pruned(), CFG) if kind == "lines" else narrow()
    packed, wider, parts, layers = quantized(params, cfg, code)
    save_quantized(packed, wider, toy_tokenizer(), tmp_path / "model")
    again = load_quantized(tmp_path / "model", packed=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, packed)
    assert again.cfg.layer_widths == wider.layer_widths
    assert describe(tmp_path / "model").cfg.layer_widths == wider.layer_widths

    filled = {**params, "layers": dict(params["layers"])}
    approximate = whole(params, parts, layers)
    for name in LINEARS:
        filled["layers"][name] = jnp.stack([layer[name] for layer in approximate])
    uniform = dataclasses.replace(cfg, layer_widths=None)
    expected = logits(filled, uniform, forward(filled, uniform, TOKENS).hidden)
    for model in (again.params, load(tmp_path / "model").params, expand_params(packed)):
        found = logits(model, wider, forward(model, wider, TOKENS).hidden)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    stacked, stacked_cfg = stack_padded(again.params, again.cfg)
    assert stacked_cfg == dataclasses.replace(uniform, add_bos=again.cfg.add_bos)
    found = logits(stacked, uniform, forward(stacked, uniform, TOKENS).hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_bits_are_those_of_the_file_and_count_what_is_kept(tmp_path):
    packed, wider, parts, _ = quantized(pruned(), CFG, CODE)
    save_quantized(packed, wider, toy_tokenizer(), tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    endings = ("pvq_words", "pvq_scale", "pvq_levels", "pvq_signs", "kept_rows", "kept_columns")
    stored_bytes = sum(x.nbytes for name, x in stored.items() if name.endswith(endings))
    weights = sum(len(one.rows) * len(one.columns) for layer in parts for one in layer.values())
    assert bits_on_disk(tmp_path / "model") == pytest.approx(8 * stored_bytes / weights)
    assert weights < 0.6 * sum(math.prod(PARAMS["layers"][name].shape) for name in LINEARS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, stem: tensors.pop(f"{stem}.kept_rows"), "kept_rows is missing"),
        (
            lambda tensors, stem: tensors.update({f"{stem}.kept_rows": np.uint8([1])}),
            r"kept_rows is uint8\[1\]",
        ),
        (
            lambda tensors, stem: tensors.update(
                {f"{stem}.kept_columns": np.zeros_like(tensors[f"{stem}.kept_columns"])}
            ),
            "kept_columns keeps 0 of 32",
        ),
    ],
)
def test_a_damaged_record_of_what_is_kept_is_refused(tmp_path, change, message):
    packed, wider, _, _ = quantized(pruned(), CFG, CODE)
    save_quantized(packed, wider, toy_tokenizer(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        metadata = dict(opened.metadata())
    change(tensors, "model.layers.0.self_attn.q_proj")
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "model")


def test_damaged_widths_are_refused(tmp_path):
    packed, wider, _, _ = quantized(*narrow(), CODE)
    save_quantized(packed, wider, toy_tokenizer(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["layer_widths"] = [[32, 2], "all", [48, 1]]
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="layer_widths is damaged"):
        load(tmp_path / "model")


def test_a_matrix_that_is_all_zero_is_a_part_too():
    params = {**PARAMS, "layers": PARAMS["layers"] | {"v": jnp.zeros_like(PARAMS["layers"]["v"])}}
    _, parts = find_parts(params, CFG, multiple=16)
    assert parts[0]["v"].rows.shape == (1,) and parts[0]["v"].columns.shape == (16,)
    layers = list(quantize_layers(params, CFG, Scheme(specs(layers=3), feedback=False), KEY, parts=parts))
    assert not np.asarray(dequantize_any(layers[0].tensors["v"])).any()


def test_gathered_quantized_matrices_are_what_they_stand_for():
    packed, _, parts, _ = quantized(pruned(), CFG, PVQSpec(16, 28, 2))
    leaf = packed["layers"][1]["gate"]
    assert isinstance(leaf, Gathered)
    full = np.zeros((48, 32), np.float32)
    full[np.ix_(parts[1]["gate"].rows, parts[1]["gate"].columns)] = dequantize_any(leaf.weight)
    np.testing.assert_array_equal(dense(leaf), full)


@pytest.mark.parametrize(
    ("multiple", "value", "message"), [(0, 1.0, "multiple"), (16, np.nan, "layer 1, matrix up")]
)
def test_bad_input_is_named(multiple, value, message):
    layers = PARAMS["layers"] | {"up": PARAMS["layers"]["up"].at[1, 2, 3].set(value)}
    with pytest.raises(InputError, match=message):
        find_parts({**PARAMS, "layers": layers}, CFG, multiple=multiple)
