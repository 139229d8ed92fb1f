"""Costs of coupled structures against dense optimal brain surgeon, and models without them against masked ones."""

import dense_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_oracle import columns_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_model import scores, zeroed
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import LINEARS, unstack_layers
from jaxlab.models.config import LayerWidths
from jaxlab.pruning.coupled import (
    Units,
    expand_units,
    kv_group_costs,
    mlp_unit_costs,
    remove_units,
    unit_sizes,
    units_of,
)
from jaxlab.pruning.inverse import Inverses
from jaxlab.pruning.masks import removed_parameters

SIZES = {"shape": st.sampled_from([(3, 2, 2), (1, 3, 1), (4, 1, 3), (2, 3, 4)]), "seed": st.integers(0, 999)}
"""Rows, groups, columns of a group."""
GROUPED = {"num_kv_heads": 2}
TOKENS = toy_tokens(windows=2, context=9)


def group_masks(shape, width):
    return [columns_mask(shape, range(i, i + width)) for i in range(0, shape[1] - width + 1, width)]


@settings(max_examples=15)
@given(**SIZES)
def test_group_costs_equal_dense_optimal_brain_surgeon(shape, seed):
    rows, groups, width = shape
    W, A, G = dense_oracle.problem(rows, groups * width, seed)
    with jax.enable_x64(True):
        inverses = Inverses(jnp.asarray(np.linalg.inv(A)), None)
        ours = kv_group_costs(*map(jnp.asarray, (W, A, G)), inverses, group_columns=width)
        single = mlp_unit_costs(*map(jnp.asarray, (W, A, G)), inverses)
    expected = [dense_oracle.remove(W, A, G, mask)[0] for mask in group_masks(W.shape, width)]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    expected = [dense_oracle.remove(W, A, G, mask)[0] for mask in group_masks(W.shape, 1)]
    np.testing.assert_allclose(single, expected, rtol=1e-9)


@settings(max_examples=25)
@given(**SIZES)
def test_without_inverses_group_costs_equal_the_damage_of_zeroing_them(shape, seed):
    rows, groups, width = shape
    W, A, G = dense_oracle.problem(rows, groups * width, seed)
    eye_a, eye_g = np.eye(len(A)), np.eye(len(G))
    for given_A, full_A in ((A, A), (np.diag(A), np.diag(np.diag(A))), (None, eye_a)):
        for given_G, full_G in ((G, G), (None, eye_g)):
            with jax.enable_x64(True):
                W_, A_, G_ = (None if x is None else jnp.asarray(x) for x in (W, given_A, given_G))
                ours = kv_group_costs(W_, A_, G_, None, group_columns=width)
            expected = [dense_oracle.damage(W, full_A, full_G, mask) for mask in group_masks(W.shape, width)]
            np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_dead_columns_add_nothing_to_a_group_and_a_bias_column_is_no_group():
    W, A, G = dense_oracle.problem(3, 7, 0)
    A[1], A[:, 1] = 0, 0
    alive = np.arange(7) != 1
    inverse = np.zeros_like(A)
    inverse[np.ix_(alive, alive)] = np.linalg.inv(A[np.ix_(alive, alive)])
    with jax.enable_x64(True):
        W_, A_, G_ = map(jnp.asarray, (W, A, G))
        ours = kv_group_costs(W_, A_, G_, Inverses(jnp.asarray(inverse), None), group_columns=3)
    smaller = W[:, alive], A[np.ix_(alive, alive)], G
    for cost, columns in zip(ours, ([0, 1], [2, 3, 4]), strict=True):
        expected = dense_oracle.remove(*smaller, columns_mask(smaller[0].shape, columns))[0]
        np.testing.assert_allclose(cost, expected, rtol=1e-9)


def test_what_is_not_finite_stays_so():
    W, A, G = (jnp.asarray(x, jnp.float32) for x in dense_oracle.problem(2, 4, 0))
    inverses = Inverses(jnp.full((4, 4), jnp.nan), None)
    assert jnp.isnan(kv_group_costs(W, A, G, inverses, group_columns=2)).all()


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True, "o_bias": True}])
def test_sizes_are_the_parameters_that_leave_with_one_structure(changes):
    params, cfg = toy(**GROUPED, **changes)
    first = Units(
        jnp.zeros((cfg.num_layers, cfg.mlp_size), bool).at[0, 5].set(True),
        jnp.zeros((cfg.num_layers, cfg.num_kv_heads), bool).at[1, 1].set(True),
    )
    removed = removed_parameters(params, expand_units(cfg, first))
    totals = np.sum([removed[name] for name in LINEARS], axis=0)
    assert totals.tolist() == list(unit_sizes(cfg).values())
    smaller, _ = remove_units(params, cfg, *first)
    before, after = (sum(leaf.size for leaf in jax.tree.leaves(one)) for one in (params, smaller))
    assert before - after == sum(unit_sizes(cfg).values())


def random_units(cfg, seed, share):
    rng = np.random.default_rng(seed)
    layers, units, groups = cfg.num_layers, cfg.mlp_size, cfg.num_kv_heads
    return Units(
        jnp.asarray(rng.random((layers, units)) < share), jnp.asarray(rng.random((layers, groups)) < share)
    )


BIASES = {"mlp_bias": True, "o_bias": True}


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("qwen2", {}), ("qwen2", BIASES), ("qwen3", {}), ("gemma3", {"sandwich_norms": True})],
)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_smaller_model_computes_what_the_masked_one_does(family, changes, share):
    params, cfg = toy(family, **GROUPED, **changes)
    units = random_units(cfg, 3, share)
    mlp, kv = units.mlp.at[0].set(True), units.kv.at[1].set(True)  # a layer without units, one without groups
    for pruned in (Units(mlp, kv), Units(mlp, None), Units(None, kv)):
        smaller, small_cfg = remove_units(params, cfg, *pruned)
        masked = zeroed(params, expand_units(cfg, pruned))
        np.testing.assert_allclose(scores(smaller, small_cfg, TOKENS), scores(masked, cfg, TOKENS), atol=1e-5)
    assert remove_units(params, cfg, mlp, None)[1].layer_widths[0] == LayerWidths(0, 2)


def test_layers_may_be_a_tuple_and_nothing_pruned_leaves_the_configuration():
    params, cfg = toy(**GROUPED)
    units = random_units(cfg, 0, 0.4)
    one, other = remove_units(params, cfg, *units), remove_units(unstack_layers(params), cfg, *units)
    assert one[1] == other[1]
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    same, same_cfg = remove_units(params, cfg, None, None)
    assert same_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, same, unstack_layers(params))


@settings(max_examples=20)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.4, 1.0]))
def test_units_are_found_again_in_their_rows_and_columns(seed, share):
    _, cfg = toy(**GROUPED)
    units = random_units(cfg, seed, share)
    masks = expand_units(cfg, units)
    for found, expected in zip(units_of(masks, cfg), units, strict=True):
        np.testing.assert_array_equal(found, expected)
    for name in LINEARS:  # with one line back, its unit is whole no more
        rows, columns = masks[name]
        lines = masks[name]._replace(rows=rows.at[:, 0].set(False), columns=columns.at[:, 0].set(False))
        mlp, kv = units_of(masks | {name: lines}, cfg)
        touched = mlp if name in ("gate", "up", "down") else kv
        assert not touched[:, 0].any()


def test_bad_input_is_refused():
    params, cfg = toy(**GROUPED)
    units = random_units(cfg, 0, 0.5)
    with pytest.raises(InputError, match=r"mask 'mlp' is bool \(2, 47\)"):
        remove_units(params, cfg, units.mlp[:, 1:], None)
    with pytest.raises(InputError, match="mask 'kv' is float32"):
        expand_units(cfg, Units(kv=units.kv.astype(jnp.float32)))
    smaller, small_cfg = remove_units(params, cfg, *units)
    with pytest.raises(InputError, match="layer_widths is set"):
        remove_units(smaller, small_cfg, *units)
    with pytest.raises(InputError, match="of layer 0 is"):
        remove_units(smaller, cfg, *units)
    W, A, G = (jnp.asarray(x) for x in dense_oracle.problem(2, 4, 0))
    with pytest.raises(InputError, match="group_columns is 5"):
        kv_group_costs(W, A, G, None, group_columns=5)
