"""A sweep of pvq: each run is the model quantized matrix by matrix with the public functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.models import evaluate, load
from jaxlab.models.capture import second_moments
from jaxlab.models.linear import LINEARS
from jaxlab.models.transformer import SITE_OF
from jaxlab.quantization import dequantize, quantize
from jaxlab.quantization.planner import candidates
from jaxlab.recipes import pvq
from jaxlab.recipes.pvq_windows import calibration_tuning_test
from jaxlab.sweeps import read_table, sweep


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("The state of the union is strong, and the union endures in all its states. " * 60)
    return pvq.Config(
        model=str(tiny_model), bits=3.5, calib=str(text), calib_windows=4, calib_context=32, sweeps=0,
        tuning_windows=0, text=str(text), windows=3, context=48, seed=5,
    )  # fmt: skip


def by_hand(config, damping, seed):
    """Perplexity, bits and signal over noise of a model whose matrices are quantized one after the other."""
    model = load(config.model)
    calibration, _, test = calibration_tuning_test(config, model)
    moments = second_moments(model.params, model.cfg, jnp.asarray(calibration)).sums
    layers, bits, powers = dict(model.params["layers"]), [], []
    for number, name in enumerate(LINEARS):
        (best, *_) = candidates(config.bits, layers[name].shape[2], n=config.group)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(layers[name]))
        coded = [
            quantize(w, best.spec, key, hessian=hessian / calibration.size, damping=damping)
            for w, key, hessian in zip(layers[name], keys, moments[SITE_OF[name]], strict=True)
        ]
        bits.append(coded[0].spec.stored_bits(coded[0].columns))
        found = np.stack([dequantize(one) for one in coded])
        powers.append([np.sum(np.square(layers[name])), np.sum(np.square(layers[name] - found))])
        layers[name] = jnp.asarray(found)
    signal, noise = np.sum(powers, axis=0)
    perplexity = evaluate({**model.params, "layers": layers}, model.cfg, test).ppl
    return perplexity, float(np.mean(bits)), 10 * np.log10(signal / noise)


def test_every_run_is_the_model_quantized_matrix_by_matrix(config, tmp_path):
    sweep(pvq, config, ("damping=0.01,0.3",), seeds=2, out=tmp_path / "run")
    table = read_table(tmp_path / "run" / "results.parquet")
    assert list(table["seed"]) == [5, 6, 5, 6] and list(table["damping"]) == [0.01, 0.01, 0.3, 0.3]
    for row in (0, 3):
        perplexity, bits, sqnr = by_hand(config, float(table["damping"][row]), int(table["seed"][row]))
        # Sums in another order move a few weights to the next code.
        assert float(table["sqnr"][row]) == pytest.approx(sqnr, abs=0.01)
        assert float(table["perplexity"][row]) == pytest.approx(perplexity, rel=0.02)
        assert float(table["bits"][row]) == pytest.approx(bits)
    assert abs(float(table["sqnr"][0] - table["sqnr"][3])) > 0.05
    assert len(set(table["perplexity"].tolist())) == 4


def test_more_bits_leave_less_noise(config, tmp_path):
    sweep(pvq, config, ("bits=2.5,3.5,5",), out=tmp_path / "run")
    table = read_table(tmp_path / "run" / "results.parquet")
    assert np.diff(table["sqnr"]).min() > 3 and np.diff(table["bits"]).min() > 0.5
