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
from jaxlab.models import (
    LINEARS,
    Gathered,
    LayerWidths,
    dense,
    describe,
    embed,
    forward,
    load,
    logits,
    stack_padded,
)
from jaxlab.models.fast_products import with_fast_products
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.quantization import (
    ScalarSpec,
    Scheme,
    bits_on_disk,
    expand_params,
    find_parts,
    load_quantized,
    quantize_layers,
    quantize_scalar,
    save_quantized,
)
from jaxlab.quantization.activations import second_moment, site_inputs
from jaxlab.quantization.model import dequantize_any, dequantize_part
from jaxlab.quantization.parts import Part, as_leaf, cut_outputs
from jaxlab.quantization.pvq import feedback_factor, quantize_prepared
from jaxlab.quantization.rotation import random_signs

KEY = jax.random.key(3)
TOKENS = toy_tokens(windows=12, context=16)
PARAMS, CFG = toy("qwen2", num_layers=3, num_heads=2, num_kv_heads=2, head_dim=16)
SCALAR = ScalarSpec(4, 8, "midrise")
PLAIN = Scheme(specs(SCALAR, layers=3), rotated=False, feedback=False)


def pruned(seed=0):
    """Layers of which random rows, and a third to a half of the columns, are zero: 16 or 32 are coded."""
    rng = np.random.default_rng(seed)
    layers = dict(PARAMS["layers"])
    for name in LINEARS:
        count, high, wide = layers[name].shape
        left = np.stack([rng.permutation(wide) < wide // 3 + 4 for _ in range(count)])
        layers[name] = layers[name] * ((rng.random((count, high, 1)) > 0.4) & left[:, None])
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
            layers[name][index, heads * 16 :] = 0
        layers["o"][index, :, heads * 16 :] = 0
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
    assert parts[1]["q"].shape == (16, 32)


def test_a_part_gets_the_code_of_a_matrix_of_its_size():
    params = pruned()
    _, parts = find_parts(params, CFG, multiple=16)
    layers = list(quantize_layers(params, CFG, PLAIN, KEY, parts=parts))
    for index, name in ((0, "q"), (1, "down")):
        one = parts[index][name]
        small = params["layers"][name][index][np.ix_(one.rows, one.columns)]
        alone = quantize_scalar(small, spec=SCALAR)
        jax.tree.map(np.testing.assert_array_equal, layers[index].tensors[name], alone)


@pytest.mark.slow
def test_feedback_acts_within_the_part_and_an_interrupted_run_goes_on():
    params = pruned()
    _, parts = find_parts(params, CFG, multiple=16)
    scheme = Scheme(specs(layers=3), correction=0.5, sweeps=1)
    layers = list(quantize_layers(params, CFG, scheme, KEY, tokens=TOKENS, parts=parts))
    approximate = whole(params, parts, layers)
    for index in range(3):
        for name in LINEARS:
            one = parts[index][name]
            outside = np.array(approximate[index][name])
            outside[np.ix_(one.rows, one.columns)] = 0
            assert not outside.any()
    # The first block sees the exact inputs: its queries are those of a small matrix with the part's moment.
    one = parts[0]["q"]
    fast = with_fast_products(take_layer(params["layers"], 0))
    hidden = embed(params, CFG, jnp.asarray(TOKENS))
    inputs, _ = site_inputs(fast, CFG, hidden, *take_layer(layer_geometry(CFG), 0), site="attention_input")
    moment = second_moment(inputs, None, None)[0][np.ix_(one.columns, one.columns)]
    signs = random_signs(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), len(one.columns))
    alone = quantize_prepared(
        params["layers"]["q"][0][np.ix_(one.rows, one.columns)],
        signs,
        feedback_factor(moment, signs, damping=scheme.damping),
        spec=CODE,
        sweeps=1,
    )
    same = np.mean(np.asarray(layers[0].tensors["q"].words) == np.asarray(alone.words))
    assert same > 0.95  # sums in another order
    again = quantize_layers(params, CFG, scheme, KEY, tokens=TOKENS, parts=parts, done=[layers[0].tensors])
    for expected, found in zip(layers[1:], again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, expected.tensors, found.tensors)


def test_pruned_outputs_have_nothing_to_do_with_the_others():
    """So that errors of rows that are left pass on as in their own moment's inverse."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal((12, 40))
    moment = g @ g.T / 40
    one = Part(np.array([1, 2, 5, 9]), np.arange(8), (12, 8))
    inverse = np.linalg.inv(np.asarray(cut_outputs(jnp.asarray(moment, jnp.float32), one), np.float64))
    np.testing.assert_allclose(
        inverse[np.ix_(one.rows, one.rows)], np.linalg.inv(moment[np.ix_(one.rows, one.rows)]), rtol=1e-4
    )
    assert not np.delete(inverse[one.rows], one.rows, axis=1).any()
    np.testing.assert_array_equal(cut_outputs(jnp.zeros((12, 12)), one), np.eye(12))


def quantized(params, cfg, code):
    wider, parts = find_parts(params, cfg, multiple=16)
    uniform = dataclasses.replace(cfg, layer_widths=None)
    scheme = Scheme(specs(code, layers=3), rotated=False, feedback=False)
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


@pytest.mark.parametrize(("kind", "code"), [("lines", CODE), ("narrow", SCALAR)])
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
    packed, wider, parts, _ = quantized(pruned(), CFG, SCALAR)
    save_quantized(packed, wider, toy_tokenizer(), tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    endings = ("scalar_words", "scalar_scale", "kept_rows", "kept_columns")
    stored_bytes = sum(x.nbytes for name, x in stored.items() if name.endswith(endings))
    weights = sum(len(one.rows) * len(one.columns) for layer in parts for one in layer.values())
    assert bits_on_disk(tmp_path / "model") == pytest.approx(8 * stored_bytes / weights)
    assert weights < 0.5 * sum(math.prod(PARAMS["layers"][name].shape) for name in LINEARS)


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
    packed, wider, _, _ = quantized(pruned(), CFG, SCALAR)
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
    packed, wider, _, _ = quantized(*narrow(), SCALAR)
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
    layers = list(quantize_layers(params, CFG, PLAIN, KEY, parts=parts))
    assert not np.asarray(dequantize_any(layers[0].tensors["v"])).any()


def test_gathered_quantized_matrices_are_what_they_stand_for():
    packed, _, parts, _ = quantized(pruned(), CFG, SCALAR)
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
