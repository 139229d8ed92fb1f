"""Whole shots on a small model: targets, patterns, what stays zero, resuming, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import toy, toy_tokens

from jaxlab.errors import InputError
from jaxlab.models import LINEARS, evaluate, forward, logits, token_logprobs
from jaxlab.pruning import low_rank
from jaxlab.pruning.config import SurgeonConfig
from jaxlab.pruning.coupled import remove_units, units_of
from jaxlab.pruning.factors import curvature
from jaxlab.pruning.masks import Lines, check_pruned, pruned_elements, sparsity_of
from jaxlab.pruning.nearest_kronecker import nearest_factors
from jaxlab.pruning.surgeon import init, prune, prune_shot

WINDOWS = toy_tokens(windows=4, context=16)
KEY = jax.random.key(0)
SMALL = {"products": "float32", "shots": 2, "sparsity": 0.3}


def run(family="llama", **options):
    params, cfg = toy(family, num_kv_heads=2)
    config = SurgeonConfig(**(SMALL | options))
    reports = []
    state = prune(params, cfg, WINDOWS, config, KEY, callback=lambda state, report: reports.append(report))
    return params, cfg, state, reports


@pytest.mark.parametrize("structure", ["rowcol", "rows", "cols", "element", "2:4", "mlp_units", "units"])
@pytest.mark.parametrize("method", ["magnitude", "l-obd", "k-obd", "surgeon"])
def test_every_method_prunes_every_structure_to_the_target_and_leaves_zeros(structure, method):
    params, _, state, reports = run(structure=structure, method=method)
    check_pruned(state.params, state.masks)
    assert [report.shot for report in reports] == [1, 2] and int(state.shot) == 2
    largest = {"rowcol": 0.02, "rows": 0.02, "cols": 0.02, "mlp_units": 0.02, "units": 0.2}.get(
        structure, 1e-3
    )
    for report, target in zip(reports, (0.15, 0.3), strict=True):
        assert target - largest < report.sparsity <= target + 1e-9
    assert reports[-1].sparsity == pytest.approx(sparsity_of(params, state.masks))
    for name in LINEARS:
        assert np.isfinite(state.params["layers"][name]).all()
        untouched = method in ("magnitude", "l-obd", "k-obd")
        kept = ~np.asarray(pruned_elements(state.masks[name]))
        if untouched:
            before, after = params["layers"][name], state.params["layers"][name]
            np.testing.assert_array_equal(np.asarray(after)[kept], np.asarray(before)[kept])


@pytest.mark.parametrize("structure", ["rowcol", "units"])
def test_with_the_nearest_kronecker_product_the_costs_are_those_of_its_factors(structure):
    params, cfg = toy("qwen2", num_kv_heads=2)
    options = SMALL | {"structure": structure, "shots": 1, "half_steps": 2}
    state = prune(params, cfg, WINDOWS, SurgeonConfig(**options), KEY)
    factors = nearest_factors(params, cfg, jnp.asarray(WINDOWS), half_steps=2)
    config = SurgeonConfig(**options)
    expected, report = prune_shot(init(params, cfg, config, KEY), factors, cfg, config, 0.3)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    independent = curvature(params, cfg, jnp.asarray(WINDOWS))
    assert report.loss == pytest.approx(float(independent.loss / independent.predictions), rel=1e-6)
    other, _ = prune_shot(init(params, cfg, config, KEY), independent, cfg, config, 0.3)
    assert any(
        (np.asarray(other.params["layers"][name]) != np.asarray(state.params["layers"][name])).any()
        for name in LINEARS
    )


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("structure", ["element", "2:4"])
def test_local_methods_prune_the_same_share_of_every_matrix(method, structure):
    _, _, state, reports = run(
        structure=structure, method=method, sparsity=0.5, shots=1, allocation="uniform", fresh=False
    )
    for name in LINEARS:
        share = np.asarray(state.masks[name]).mean(axis=(1, 2))
        np.testing.assert_allclose(share, 0.5, atol=1e-6)
    assert np.isnan(reports[0].threshold)
    check_pruned(state.params, state.masks)


@pytest.mark.parametrize("method", ["surgeon", "wanda"])
def test_n_of_m_zeroes_n_of_each_m_consecutive_inputs(method):
    _, _, state, _ = run(structure="2:4", method=method, sparsity=0.5)
    for name in LINEARS:
        zeros = np.asarray(state.params["layers"][name] == 0).reshape(-1, 4).sum(axis=1)
        assert (zeros >= 2).all()
        assert (np.asarray(state.masks[name]).reshape(-1, 4).sum(axis=1) == 2).all()


@pytest.mark.parametrize("structure", ["rowcol", "element"])
def test_what_is_pruned_stays_pruned_and_the_same_shot_again_changes_nothing(structure):
    params, cfg = toy(num_kv_heads=2)
    config = SurgeonConfig(**(SMALL | {"structure": structure}))
    factors = curvature(params, cfg, WINDOWS)
    once, report = prune_shot(init(params, cfg, config, KEY), factors, cfg, config, 0.2)
    again, second = prune_shot(once, factors, cfg, config, 0.2)
    assert second.sparsity >= report.sparsity
    for name in LINEARS:
        before, after = pruned_elements(once.masks[name]), pruned_elements(again.masks[name])
        assert not bool(jnp.any(before & ~after))
        if second.sparsity == report.sparsity:
            np.testing.assert_allclose(
                again.params["layers"][name], once.params["layers"][name], rtol=1e-3, atol=1e-4
            )


def test_biases_go_with_their_rows_and_are_never_pruned_as_columns():
    params, _, state, _ = run("qwen2", structure="rowcol")
    for name in ("q", "k", "v"):
        rows = np.asarray(state.masks[name].rows)
        bias = np.asarray(state.params["layers"][f"{name}_bias"])
        assert (bias[rows] == 0).all() and (bias[~rows] != 0).any()
        assert state.masks[name].columns.shape[-1] == params["layers"][name].shape[-1]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_pruned_units_leave_a_smaller_model_with_the_same_logits(family):
    _, cfg, state, _ = run(family, structure="units", sparsity=0.4)
    units = units_of(state.masks, cfg)
    assert bool(units.mlp.any())
    smaller, smaller_cfg = remove_units(state.params, cfg, *units)
    one = logits(state.params, cfg, forward(state.params, cfg, jnp.asarray(WINDOWS)).hidden)
    other = logits(smaller, smaller_cfg, forward(smaller, smaller_cfg, jnp.asarray(WINDOWS)).hidden)
    np.testing.assert_allclose(other, one, atol=1e-4)


def test_an_interrupted_run_goes_on_to_the_same_model():
    params, cfg = toy(num_kv_heads=2)
    config = SurgeonConfig(**SMALL, low_rank=low_rank.LowRank(rank=2))
    states = []
    whole = prune(params, cfg, WINDOWS, config, KEY, callback=lambda state, report: states.append(state))
    resumed = prune(params, cfg, WINDOWS, config, KEY, state=states[0])
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.masks, whole.masks)


@pytest.mark.parametrize("structure", ["rowcol", "element"])
def test_the_correction_lowers_the_loss_and_leaves_the_masks(structure):
    params, cfg, state, _ = run(structure=structure)
    config = low_rank.LowRank(rank=4, learning_rate=3e-3, final_epochs=15)
    better, losses = low_rank.correct(
        state.params, cfg, state.masks, WINDOWS, KEY, config, last=True, products="float32"
    )
    assert len(losses) == 15 * len(WINDOWS)

    def loss(params):
        return float(-token_logprobs(params, cfg, jnp.asarray(WINDOWS)).mean())

    assert loss(better) < loss(state.params) - 0.01
    assert losses[0] == pytest.approx(
        float(-token_logprobs(state.params, cfg, jnp.asarray(WINDOWS)).mean()), rel=0.2
    )
    check_pruned(better, state.masks)
    for name in LINEARS:
        kept = ~np.asarray(pruned_elements(state.masks[name]))
        assert (np.asarray(better["layers"][name]) != np.asarray(state.params["layers"][name]))[kept].any()
    del params


def test_of_several_dampings_the_one_that_the_held_out_text_likes_best_is_kept():
    params, cfg = toy("llama", num_kv_heads=2)
    held_out = toy_tokens(windows=3, context=16, seed=9)
    factors, reports = (0.01, 1.0, 100.0), []
    config = SurgeonConfig(**(SMALL | {"shots": 1, "damp_factors": factors}))

    def keep(state, report):
        reports.append(report)

    state = prune(params, cfg, WINDOWS, config, KEY, held_out=held_out, callback=keep)
    losses = reports[0].held_out_losses
    assert list(losses) == list(factors) and len(set(losses.values())) == 3
    best = min(losses, key=losses.get)
    alone = SurgeonConfig(**(SMALL | {"shots": 1, "damp_a": 0.1 * best, "damp_g": 0.1 * best}))
    expected = prune(params, cfg, WINDOWS, alone, KEY)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert losses[best] == pytest.approx(evaluate(state.params, cfg, held_out).mean_nll)
    with pytest.raises(InputError, match="held_out is empty"):
        prune(params, cfg, WINDOWS, config, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damp_factors": (1.0, 0.0)}, "damp_factors"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"shots": 0}, "shots is 0"),
        ({"structure": "blocks"}, "structure is 'blocks'"),
        ({"structure": "5:4"}, "structure is '5:4'"),
        ({"structure": "1:4", "sparsity": 0.5}, "1:4 pruning reaches at most 0.25"),
        ({"method": "random"}, "method is 'random'"),
        ({"method": "wanda"}, "'wanda' prunes elements"),
        ({"damp_g": 0.0}, "damp_g is 0.0"),
        ({"joint": "both"}, "joint is 'both'"),
        ({"half_steps": 3}, "half_steps is 3"),
        ({"half_steps": 2, "fisher": "mc"}, "needs fisher 'empirical'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        SurgeonConfig(**change)


def test_models_and_texts_that_do_not_fit_are_refused():
    params, cfg = toy(num_kv_heads=2)
    with pytest.raises(InputError, match="which 5 does not divide"):
        init(params, cfg, SurgeonConfig(structure="2:5", sparsity=0.1), KEY)
    with pytest.raises(InputError, match="kv_groups hold only"):
        init(params, cfg, SurgeonConfig(structure="kv_groups", sparsity=0.6), KEY)
    with pytest.raises(InputError, match="2 rows; 3 shots"):
        prune(params, cfg, WINDOWS[:2], SurgeonConfig(shots=3), KEY)
    with pytest.raises(InputError, match="is a tuple"):
        init(params | {"layers": ({},)}, cfg, SurgeonConfig(), KEY)
    with pytest.raises(InputError, match="needs them"):
        config = SurgeonConfig()
        prune_shot(init(params, cfg, config, KEY), None, cfg, config, 0.1)


def test_a_factor_that_is_not_finite_names_matrix_and_layer():
    params, cfg = toy(num_kv_heads=2)
    config = SurgeonConfig(**SMALL)
    factors = curvature(params, cfg, WINDOWS)
    broken = factors._replace(G=factors.G | {"up": factors.G["up"].at[1, 0, 0].set(jnp.nan)})
    with pytest.raises(InputError, match="G of up, layer 1, is not finite"):
        prune_shot(init(params, cfg, config, KEY), broken, cfg, config, 0.1)


def test_a_finished_mask_is_checked():
    params, _, state, _ = run(structure="rowcol")
    with pytest.raises(InputError, match="not zero where its mask says pruned"):
        check_pruned(params, state.masks)
    assert isinstance(state.masks["q"], Lines)
    assert dataclasses.is_dataclass(SurgeonConfig)


def test_blocks_without_a_gate_are_refused():
    params, cfg = toy("llama")
    with pytest.raises(
        InputError, match=r"family 'llama'; pruning needs blocks with RMSNorm and a gated MLP"
    ):
        init(params, dataclasses.replace(cfg, gated_mlp=False), SurgeonConfig(), jax.random.key(0))
