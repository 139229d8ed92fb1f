"""Block by block: which activations count, resuming, correction, token weights, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import mixed_specs, specs, toy, toy_tokens, with_layers

from jaxlab.errors import InputError
from jaxlab.models import INPUT_SITES, LINEARS, embed, second_moments, unstack_layers
from jaxlab.models.transformer import run_layers
from jaxlab.quantization import PVQSpec, ScalarSpec, Scheme, quantize_layers
from jaxlab.quantization.model import dequantize_any
from jaxlab.quantization.pvq import feedback_factor, quantize_prepared

KEY = jax.random.key(7)
SITE = {name: site for site, names in INPUT_SITES.items() for name in names}
TOKENS = toy_tokens(windows=12, context=16)
PARAMS, CFG = toy("qwen2")


def run(scheme, *, params=PARAMS, tokens=TOKENS, **options):
    return list(quantize_layers(params, CFG, scheme, KEY, tokens=tokens, **options))


def dense_layers(layers):
    return with_layers(
        PARAMS, [{name: dequantize_any(t) for name, t in layer.tensors.items()} for layer in layers]
    )


def inputs(params):
    """Float64 inputs [tokens, in] of every matrix of every layer."""
    hidden = embed(params, CFG, jnp.asarray(TOKENS))
    taps = run_layers(unstack_layers(params), CFG, hidden, collect=lambda taps: taps)[2]
    return [
        {name: np.asarray(layer[site], np.float64).reshape(TOKENS.size, -1) for name, site in SITE.items()}
        for layer in taps
    ]


def sqnr(w, approximate, h):
    error = w - approximate
    return 10 * np.log10(np.einsum("rc,cd,rd->", w, h, w) / np.einsum("rc,cd,rd->", error, h, error))


def same_tensors(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def weight(name, layer):
    return np.asarray(PARAMS["layers"][name][layer], np.float64)


@pytest.fixture(scope="module")
def mixed():
    return run(Scheme(mixed_specs()))


def test_every_block_comes_in_order_with_the_codes_asked_for(mixed):
    assert [layer.layer for layer in mixed] == [0, 1]
    for layer, asked in zip(mixed, mixed_specs(), strict=True):
        assert {name: tensor.spec for name, tensor in layer.tensors.items()} == asked
        assert all(tensor.shape == weight(name, 0).shape for name, tensor in layer.tensors.items())


def test_second_moments_are_those_of_the_quantized_model_so_far(mixed):
    """`output_sqnr` of the second block, from moments of a model quantized up to the inputs of each matrix."""
    exact = second_moments(PARAMS, CFG, TOKENS).sums
    block = jax.tree.map(lambda leaf: leaf[1], PARAMS["layers"])
    differs = 0
    for site, names in INPUT_SITES.items():
        layers = (*dense_layers(mixed[:1])["layers"], block)
        moment = second_moments({**PARAMS, "layers": layers}, CFG, TOKENS).sums[site]
        seen, unseen = (np.asarray(m[1], np.float64) / TOKENS.size for m in (moment, exact[site]))
        for name in names:
            approximate = np.asarray(dequantize_any(mixed[1].tensors[name]), np.float64)
            found, w = mixed[1].output_sqnr[name], weight(name, 1)
            assert found == pytest.approx(sqnr(w, approximate, seen), abs=0.03)
            differs += abs(found - sqnr(w, approximate, unseen)) > 0.06
            block = block | {name: dequantize_any(mixed[1].tensors[name])}
    assert differs >= 5


def test_weight_sqnr_is_signal_over_noise_of_the_weights(mixed):
    for layer in mixed:
        for name, tensor in layer.tensors.items():
            w = weight(name, layer.layer)
            expected = sqnr(w, np.asarray(dequantize_any(tensor), np.float64), np.eye(w.shape[1]))
            assert layer.weight_sqnr[name] == pytest.approx(expected, abs=1e-3)


def test_matrices_are_those_of_feedback_under_these_moments(mixed):
    h = second_moments(PARAMS, CFG, TOKENS).sums["attention_input"][0] / TOKENS.size
    found = mixed[0].tensors["q"]
    factor = feedback_factor(h, found.signs, damping=0.01)
    expected = quantize_prepared(PARAMS["layers"]["q"][0], found.signs, factor, spec=found.spec)
    # Moments summed in another order may turn a group to its neighbour, here and there.
    assert np.mean(np.any(found.words != expected.words, axis=1)) < 0.1


def test_a_site_has_one_rotation_and_different_sites_and_layers_have_their_own(mixed):
    signs = [{name: np.asarray(tensor.signs) for name, tensor in layer.tensors.items()} for layer in mixed]
    for names in INPUT_SITES.values():
        for name in names:
            np.testing.assert_array_equal(signs[0][name], signs[0][names[0]])
    assert np.any(signs[0]["q"] != signs[0]["o"]) and np.any(signs[0]["q"] != signs[1]["q"])


def test_feedback_on_the_models_inputs_beats_none(mixed):
    plain = run(Scheme(mixed_specs(), feedback=False), tokens=None)
    assert all(layer.output_sqnr == {} for layer in plain)
    x = inputs(PARAMS)[0]
    for name in ("gate", "o", "down"):
        h = x[name].T @ x[name] / TOKENS.size
        errors = [
            sqnr(weight(name, 0), np.asarray(dequantize_any(run[0].tensors[name])), h)
            for run in (mixed, plain)
        ]
        assert errors[0] > errors[1] + 0.5


@pytest.mark.parametrize("correction", [0.0, 0.5])
def test_a_resumed_run_gives_the_same_bytes(correction):
    codes = specs(ScalarSpec(3, 16), q=ScalarSpec(2, 8, "midrise"))
    scheme = Scheme(codes, correction=correction)
    whole = run(scheme)
    resumed = run(scheme, done=[whole[0].tensors])
    assert [layer.layer for layer in resumed] == [1]
    same_tensors(resumed[0].tensors, whole[1].tensors)
    assert resumed[0].output_sqnr == whole[1].output_sqnr
    assert run(scheme, done=[layer.tensors for layer in whole]) == []


def test_a_tuple_of_layers_gives_the_same_bytes():
    scheme = Scheme(specs(ScalarSpec(3, 16)))
    for one, other in zip(run(scheme), run(scheme, params=unstack_layers(PARAMS)), strict=True):
        same_tensors(one.tensors, other.tensors)


def test_full_correction_solves_the_least_squares_problem_of_the_exact_outputs():
    """A crude first block and an almost lossless second: its matrices are the corrected targets themselves."""
    codes = [specs(ScalarSpec(2, 16))[0], specs(ScalarSpec(8, 16))[0]]
    damping = 0.02
    layers = run(Scheme(codes, rotated=False, correction=1.0, damping=damping))
    exact = inputs(PARAMS)[1]
    block = jax.tree.map(lambda leaf: leaf[1], PARAMS["layers"])
    for names in INPUT_SITES.values():
        seen = inputs({**PARAMS, "layers": (*dense_layers(layers[:1])["layers"], block)})[1]
        for name in names:
            w, x = weight(name, 1), seen[name]
            ridge = np.sqrt(damping * np.mean(x**2) * len(x)) * np.eye(x.shape[1])
            # min |x~ w^T - x v^T|^2 + ridge |w - v|^2
            left, right = np.vstack([x, ridge]), np.vstack([exact[name] @ w.T, ridge @ w.T])
            target = np.linalg.lstsq(left, right, rcond=None)[0].T
            found = np.asarray(dequantize_any(layers[1].tensors[name]), np.float64)
            assert np.abs(target - w).max() > 0.05
            assert sqnr(target, found, x.T @ x / len(x)) > 30, name
            block = block | {name: dequantize_any(layers[1].tensors[name])}


def test_correction_brings_outputs_closer_to_the_exact_model():
    codes = [specs(ScalarSpec(2, 16))[0], specs(ScalarSpec(4, 16))[0]]
    errors = []
    for correction in (0.0, 1.0):
        layers = run(Scheme(codes, correction=correction))
        seen = inputs(dense_layers(layers))[1]["q"]
        approximate = np.asarray(dequantize_any(layers[1].tensors["q"]))
        errors.append(np.sum((inputs(PARAMS)[1]["q"] @ weight("q", 1).T - seen @ approximate.T) ** 2))
    assert errors[1] < 0.9 * errors[0]


def test_token_weights_weigh_the_second_moments():
    rng = np.random.default_rng(0)
    weights = {
        name: jnp.asarray(rng.exponential(size=(2, *TOKENS.shape)) ** 2, jnp.float32) for name in LINEARS
    }
    found = run(Scheme(specs(ScalarSpec(3, 16))), token_weights=weights)[0]
    block, second = (jax.tree.map(lambda leaf, i=i: leaf[i], PARAMS["layers"]) for i in range(2))
    for names in INPUT_SITES.values():
        x = inputs({**PARAMS, "layers": (block, second)})[0]
        for name in names:
            share = np.asarray(weights[name][0], np.float64).reshape(-1, 1)
            h = x[name].T @ (x[name] * share) / share.sum()
            approximate = np.asarray(dequantize_any(found.tensors[name]), np.float64)
            assert found.output_sqnr[name] == pytest.approx(sqnr(weight(name, 0), approximate, h), abs=0.05)
            even = x[name].T @ x[name]
            assert abs(found.output_sqnr[name] - sqnr(weight(name, 0), approximate, even)) > 0.1
            block = block | {name: dequantize_any(found.tensors[name])}


def test_equal_token_weights_are_none():
    scheme = Scheme(specs(ScalarSpec(8, 16)))
    weights = {name: jnp.full((2, *TOKENS.shape), 3.0) for name in LINEARS}
    for one, other in zip(run(scheme), run(scheme, token_weights=weights), strict=True):
        for name in LINEARS:
            assert one.output_sqnr[name] == pytest.approx(other.output_sqnr[name], abs=0.05)


def test_rows_are_handed_to_the_row_map():
    shapes = []

    def row_map(function):
        def mapped(rows, *shared):
            shapes.append(rows.shape)
            return function(rows, *shared)

        return mapped

    scheme = Scheme(specs(ScalarSpec(3, 16)))
    for one, other in zip(run(scheme, row_map=row_map), run(scheme), strict=True):
        same_tensors(one.tensors, other.tensors)
    assert shapes == [weight(name, layer).shape for layer in range(2) for name in LINEARS]


# Bad input


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"specs": [{"q": ScalarSpec(3, 16)}]},
            r"specs of layer 0 name \['q'\]; they must name \['down', 'gate'",
        ),
        ({"correction": 1.5}, "correction is 1.5; it must lie between 0 and 1"),
        ({"damping": 0.0}, "damping is 0.0; it must be > 0"),
    ],
)
def test_scheme_out_of_range_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Scheme(**({"specs": specs(ScalarSpec(3, 16))} | fields))


def test_feedback_without_windows_and_other_layer_counts_are_refused():
    with pytest.raises(InputError, match="tokens: feedback needs calibration windows"):
        run(Scheme(specs(ScalarSpec(3, 16))), tokens=None)
    with pytest.raises(InputError, match="specs for 3 layers, the model has 2"):
        run(Scheme(specs(ScalarSpec(3, 16), layers=3)))


def test_weights_and_codes_that_cannot_be_used_are_named_with_their_place():
    up = PARAMS["layers"]["up"].at[1, 2, 3].set(jnp.nan)
    broken = {**PARAMS, "layers": {**PARAMS["layers"], "up": up}}
    scheme = Scheme(specs(ScalarSpec(3, 16)), feedback=False)
    with pytest.raises(InputError, match="non-finite weight in layer 1, matrix up"):
        run(scheme, params=broken, tokens=None)
    for code in (ScalarSpec(3, 20), PVQSpec(20, 5, 1)):
        with pytest.raises(InputError, match="in_features 32 is not divisible by the group size 20"):
            run(Scheme(specs(code), feedback=False), tokens=None)


def test_blocks_with_another_norm_are_refused():
    with pytest.raises(InputError, match="quantization needs blocks with RMSNorm and a gated MLP"):
        next(quantize_layers(PARAMS, dataclasses.replace(CFG, norm="layer"), Scheme(specs()), KEY))
