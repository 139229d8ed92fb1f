"""Closing masks changes no output and finds all that has no influence; gathered models compute what masked ones do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_model import scores, zeroed
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import LINEARS, Gathered, dense, unstack_layers
from jaxlab.models.linear import linear
from jaxlab.models.rope import layer_geometry
from jaxlab.models.stacking import take_layer
from jaxlab.models.transformer import add_branch, attention_input, attention_output, mlp_hidden, mlp_input
from jaxlab.models.validation import layer_shapes
from jaxlab.pruning.closure import close, closure_gain, gather_model
from jaxlab.pruning.coupled import Units, expand_units, remove_units, units_of
from jaxlab.pruning.masks import Lines, empty_lines

SMALL = {"num_kv_heads": 2, "head_dim": 4, "mlp_size": 6}
MODELS = {
    "llama": ("llama", SMALL),
    "qwen2": ("qwen2", SMALL),
    "all biases": ("llama", SMALL | {"qkv_bias": True, "o_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", SMALL),
    "gemma3": (
        "gemma3",
        SMALL
        | {"qk_norm": True, "sandwich_norms": True, "norm_offset": 1.0, "activation": "gelu_tanh"}
        | {"layer_windows": (4, None)},
    ),
}
TOKENS = toy_tokens(windows=2, context=9)
DENSITIES = st.sampled_from([0.05, 0.3, 0.6, 0.85, 1.0])


def model(name):
    family, changes = MODELS[name]
    return toy(family, **changes)


def random_masks(cfg, seed, densities):
    """Each matrix has rows and columns pruned with probabilities of its own."""
    rng = np.random.default_rng(seed)
    shapes, masks = layer_shapes(cfg), {}
    for name in LINEARS:
        probabilities = rng.choice(densities, (2, cfg.num_layers, 1))
        rows, columns = (
            jnp.asarray(rng.random((cfg.num_layers, size)) < p)
            for size, p in zip(shapes[name], probabilities, strict=True)
        )
        masks[name] = Lines(rows, columns)
    return masks


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(seed=st.integers(0, 9999), densities=st.lists(DENSITIES, min_size=1, max_size=4))
def test_closed_lines_have_no_influence_and_closing_stops_there(name, seed, densities):
    params, cfg = model(name)
    masks = random_masks(cfg, seed, densities)
    closed = close(masks, cfg)
    assert_equal(close(closed, cfg), closed)
    for matrix in LINEARS:
        for before, after in zip(masks[matrix], closed[matrix], strict=True):
            assert not (before & ~after).any()

    rng = np.random.default_rng(seed)
    layers = dict(params["layers"])
    for matrix in LINEARS:
        rows, columns = (after & ~before for before, after in zip(masks[matrix], closed[matrix], strict=True))
        noise = rng.standard_normal(layers[matrix].shape).astype(np.float32)
        layers[matrix] = jnp.where(rows[:, :, None] | columns[:, None, :], noise, layers[matrix])
        if f"{matrix}_bias" in layers:
            layers[f"{matrix}_bias"] = jnp.where(rows, noise[..., 0], layers[f"{matrix}_bias"])
    expected = scores(zeroed(params, masks), cfg, TOKENS)
    np.testing.assert_allclose(scores(zeroed(params, closed), cfg, TOKENS), expected, atol=1e-5)
    random = zeroed({**params, "layers": layers}, masks)
    np.testing.assert_allclose(scores(random, cfg, TOKENS), expected, atol=1e-5)


def has_influence(part, layer, masks, name, axis):
    """For each row (column) of a matrix, whether other values in what is kept of it change an output of `part`."""
    rows, columns = (~np.asarray(mask[0]) for mask in masks[name])
    kept = rows[:, None] & columns
    noise = np.random.default_rng(0).standard_normal(kept.shape).astype(np.float32) * kept
    before, found = part(layer), []
    for line in range(kept.shape[axis]):
        here = np.arange(kept.shape[axis]) == line
        changes = {name: layer[name] + noise * (here[:, None] if axis == 0 else here)}
        if axis == 0 and f"{name}_bias" in layer:
            changes[f"{name}_bias"] = layer[f"{name}_bias"] + (here & rows)
        found.append(bool((part(layer | changes) != before).any()))
    return np.array(found)


@functools.cache
def parts(name):
    """One layer's dense parameters and its two halves as functions of them, on inputs of random directions."""
    params, cfg = model(name)
    cfg = dataclasses.replace(cfg, num_layers=1, layer_windows=())
    hidden = jnp.asarray(np.random.default_rng(7).standard_normal((1, 6, cfg.hidden_size)), jnp.float32)
    frequencies = layer_geometry(cfg)[0][0]

    @jax.jit
    def attention(layer):
        x = attention_output(layer, cfg, attention_input(layer, cfg, hidden), inverse_frequencies=frequencies)
        return add_branch(layer, cfg, hidden, linear(x, layer["o"]), "o")

    @jax.jit
    def mlp(layer):
        x = mlp_hidden(layer, cfg, mlp_input(layer, cfg, hidden))
        return add_branch(layer, cfg, hidden, linear(x, layer["down"]), "down")

    one = {key: leaf[:1] for key, leaf in params["layers"].items()}
    return {**params, "layers": one}, cfg, attention, mlp


MLP = (("gate", 0), ("up", 0), ("down", 1))
ATTENTION = (("q", 0), ("k", 0), ("v", 0), ("o", 1))


@pytest.mark.parametrize(
    ("name", "lines"),
    [(name, MLP) for name in ("llama", "all biases", "gemma3")]
    + [(name, ATTENTION) for name in ("llama", "qwen3", "gemma3")],
)
@settings(max_examples=25)
@given(seed=st.integers(0, 9999), densities=st.lists(DENSITIES, min_size=1, max_size=4))
def test_what_stays_has_influence_and_nothing_else_does(name, lines, seed, densities):
    params, cfg, attention, mlp = parts(name)
    masks = random_masks(cfg, seed, densities)
    closed = close(masks, cfg)
    layer = take_layer(zeroed(params, masks)["layers"], 0)
    for matrix, axis in lines:
        part = attention if lines is ATTENTION else mlp
        influence = has_influence(part, layer, masks, matrix, axis)
        np.testing.assert_array_equal(influence, ~closed[matrix][axis][0], err_msg=matrix)


def masks_with(cfg, **pruned):
    """All layers alike; `name_rows=[...]` or `name_columns=[...]`."""
    masks = empty_lines({"layers": {n: np.empty((cfg.num_layers, *layer_shapes(cfg)[n])) for n in LINEARS}})
    for which, numbers in pruned.items():
        name, part = which.split("_")
        line = getattr(masks[name], part).at[:, jnp.asarray(numbers)].set(True)
        masks[name] = masks[name]._replace(**{part: line})
    return masks


@pytest.mark.parametrize(
    ("name", "pruned", "also"),
    [
        ("llama", {"gate_rows": [2]}, {"up_rows": [2], "down_columns": [2]}),
        ("llama", {"down_columns": [3, 5]}, {"gate_rows": [3, 5], "up_rows": [3, 5]}),
        ("llama", {"v_rows": [1]}, {"o_columns": [1, 5]}),  # of both query heads of the group
        ("llama", {"o_columns": [1, 5]}, {"v_rows": [1]}),
        ("llama", {"o_columns": [1]}, {}),
        ("llama", {"k_rows": [4, 6]}, {"q_rows": [8, 10, 12, 14]}),
        ("llama", {"k_rows": [4, 5]}, {}),  # halves of two pairs
        ("llama", {"q_rows": [8, 10]}, {}),  # the other head still meets these keys
        ("llama", {"q_rows": [8, 10, 12, 14]}, {"k_rows": [4, 6]}),
        ("qwen3", {"k_rows": [4, 6]}, {}),
        ("qwen3", {"k_rows": [4, 6], "q_rows": [9, 11]}, {"q_rows": [8, 9, 10, 11]}),
        ("llama", {"v_rows": range(4)}, {"o_columns": range(8), "q_rows": range(8), "k_rows": range(4)}),
    ],
)
def test_the_rules_one_by_one(name, pruned, also):
    _, cfg = model(name)
    assert_equal(close(masks_with(cfg, **pruned), cfg), masks_with(cfg, **(pruned | also)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("densities", [[0.0, 0.3], [0.6, 1.0]])
def test_gathered_models_compute_what_masked_ones_do(name, densities):
    params, cfg = model(name)
    masks = random_masks(cfg, 0, densities)
    expected = scores(zeroed(params, masks), cfg, TOKENS)
    # Norms of what is left of a branch magnify its rounding.
    tolerance = 3e-4 if cfg.sandwich_norms else 1e-5
    closed = close(masks, cfg)
    for these, given_params in ((closed, params), (masks, unstack_layers(params))):
        gathered = gather_model(given_params, cfg, these)
        as_dense = tuple(
            layer | {name: dense(layer[name]) for name in LINEARS} for layer in gathered["layers"]
        )
        assert_equal(as_dense, unstack_layers(zeroed(params, these))["layers"])
        np.testing.assert_allclose(scores(gathered, cfg, TOKENS), expected, atol=tolerance)
        for index, layer in enumerate(gathered["layers"]):
            for matrix in LINEARS:
                rows, columns = (~mask[index] for mask in these[matrix])
                leaf, all_kept = layer[matrix], bool(rows.all() and columns.all())
                assert isinstance(leaf, Gathered) != all_kept
                assert (leaf if all_kept else leaf.weight).shape == (rows.sum(), columns.sum())


def test_the_gain_is_what_closing_removes():
    params, cfg = model("all biases")
    masks = masks_with(cfg, gate_rows=[0, 1])
    gain = closure_gain(params, masks, close(masks, cfg))
    hidden = cfg.hidden_size
    expected = {name: [0, 0] for name in LINEARS} | {"up": [2 * (hidden + 1)] * 2, "down": [2 * hidden] * 2}
    assert {name: count.tolist() for name, count in gain.items()} == expected


def test_units_that_lost_one_line_are_whole_after_closing_and_can_be_removed():
    params, cfg = model("qwen2")
    masks = masks_with(cfg, up_rows=[1, 4], v_rows=range(4))
    units = units_of(close(masks, cfg), cfg)
    expected = Units(
        jnp.zeros((2, 6), bool).at[:, [1, 4]].set(True), jnp.zeros((2, 2), bool).at[:, 0].set(True)
    )
    assert_equal(units, expected)
    smaller, small_cfg = remove_units(params, cfg, *units)
    np.testing.assert_allclose(
        scores(smaller, small_cfg, TOKENS), scores(zeroed(params, masks), cfg, TOKENS), atol=1e-5
    )
    assert_equal(close(expand_units(cfg, units), cfg), expand_units(cfg, units))


def test_can_be_jitted():
    _, cfg = model("llama")
    masks = random_masks(cfg, 1, [0.3, 0.6])
    assert_equal(jax.jit(close, static_argnums=1)(masks, cfg), close(masks, cfg))


def test_bad_input_is_refused():
    params, cfg = model("llama")
    masks = masks_with(cfg)
    with pytest.raises(InputError, match="masks are of"):
        close({name: masks[name] for name in LINEARS[1:]}, cfg)
    short = masks | {"k": masks["k"]._replace(rows=masks["k"].rows[:, 1:])}
    with pytest.raises(InputError, match=r"masks\['k'\].rows is bool \(2, 7\)"):
        gather_model(params, cfg, short)
    smaller_cfg = remove_units(params, cfg, jnp.ones((2, 6), bool), None)[1]
    with pytest.raises(InputError, match="layer_widths is set"):
        close(masks, smaller_cfg)
