"""The pvq recipe: what it reports, and that a killed run ends like one that was left alone."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from killing import run_until_killed
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxlab.errors import InputError
from jaxlab.models import forward, load, logits
from jaxlab.models.validation import layer_shapes
from jaxlab.recipes import pvq


@pytest.fixture(scope="module")
def tiny_config(tiny_model, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("The state of the union is strong, and the union endures in all its states. " * 60)
    return pvq.Config(
        model=str(tiny_model),
        bits=3.5,
        calib=str(text),
        calib_windows=4,
        calib_context=32,
        tuning_windows=4,
        text=str(text),
        windows=3,
        context=48,
    )


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "pvq"
    return out, pvq.run(tiny_config, out=out)


def test_the_summary_holds_the_promised_figures(finished, tiny_config):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    for key in ("ppl_base", "ppl_rtn", "ppl_gptq", "ppl_pvq", "kl_pvq", "seconds"):
        assert math.isfinite(summary[key]) and summary[key] > 0
    assert summary["model"] == tiny_config.model
    assert summary["file_bytes"] == (out / "quantized" / "model.safetensors").stat().st_size
    assert summary["test_tokens"] == 3 * 47


def test_bits_are_those_on_disk_and_within_the_budget(finished, tiny_config):
    out, summary = finished
    stored = 0
    with safe_open(out / "quantized" / "model.safetensors", framework="np") as opened:
        for name in opened.keys():
            if ".layers." in name and ".pvq_" in name:
                stored += opened.get_tensor(name).nbytes
    weights = (
        sum(math.prod(shape) for shape in layer_shapes(tiny.TINY).values() if len(shape) == 2)
        * tiny.TINY.num_layers
    )
    assert summary["bits_per_weight"] == pytest.approx(8 * stored / weights)
    assert summary["bits_pvq"] == summary["bits_per_weight"]
    levels_and_signs = 0.35  # of matrices this small; a thousandth of that in a real model
    assert tiny_config.bits - 0.5 < summary["bits_per_weight"] < tiny_config.bits + levels_and_signs


def test_the_saved_folder_gives_the_logits_of_the_model_in_memory(finished):
    out, summary = finished
    assert summary["reload_max_logit_difference"] == 0
    model = load(out / "quantized")
    tokens = jnp.arange(20)[None]
    scores = logits(model.params, model.cfg, forward(model.params, model.cfg, tokens).hidden)
    assert np.isfinite(scores).all()


def test_nothing_partial_is_left_and_figures_are_there(finished):
    out, _ = finished
    assert not (out / "partial").exists()
    assert {path.name for path in (out / "figures").iterdir()} == {"layers.png", "nll_increase.png"}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {(row["method"], row["layer"]) for row in rows} == {
        (method, layer) for method in pvq.METHODS for layer in range(tiny.TINY.num_layers)
    }


def test_a_finished_run_is_returned_at_once_on_resume(finished, tiny_config):
    out, summary = finished
    assert pvq.run(tiny_config, out=out, resume=True) == summary


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_same_model_and_figures(finished, tiny_config, tmp_path):
    _, expected = finished
    out = tmp_path / "killed"
    milestone = out / "partial" / "pvq" / "layer-001.safetensors"
    run_until_killed("pvq", tiny_config, out, milestone)
    assert milestone.exists() and not (out / "summary.json").exists()
    resumed = pvq.run(tiny_config, out=out, resume=True)
    for key, value in expected.items():
        if key != "seconds":
            assert resumed[key] == value, key
    stored = load_file(finished[0] / "quantized" / "model.safetensors")
    again = load_file(out / "quantized" / "model.safetensors")
    assert again.keys() == stored.keys()
    for name, tensor in stored.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "field, value",
    [
        ("bits", 0.5),
        ("group", 0),
        ("calib_windows", 0),
        ("damping", 0.0),
        ("correction", 2.0),
        ("learning_rate", 0.0),
        ("tuning_windows", -1),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(pvq.Config(), **{field: value})


def test_a_group_that_does_not_divide_the_width_is_refused(tiny_config, tmp_path):
    with pytest.raises(InputError, match="not divisible by the group size 24"):
        pvq.run(dataclasses.replace(tiny_config, group=24), out=tmp_path / "run")


def test_more_test_windows_than_the_text_holds_are_refused(tiny_config, tmp_path):
    with pytest.raises(InputError, match="windows is 9999"):
        pvq.run(dataclasses.replace(tiny_config, windows=9999), out=tmp_path / "run")
