"""The surgeon recipe: what it reports and saves, and that a killed run ends like one that was left alone."""

import dataclasses
import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from killing import run_until_killed
from safetensors.numpy import load_file

from jaxlab.errors import InputError
from jaxlab.models import forward, load, logits
from jaxlab.recipes import pvq, surgeon


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("The state of the union is strong, and the union endures in all its states. " * 60)
    return surgeon.Config(
        model=str(tiny_model),
        sparsity=0.2,
        shots=2,
        calib=str(text),
        calib_windows=2,
        calib_context=32,
        rank=2,
        rank_epochs=1,
        text=str(text),
        windows=3,
        context=48,
        valid=str(text),
        valid_windows=1,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "surgeon"
    return out, surgeon.run(config, out=out)


def scores(model):
    tokens = jnp.arange(20)[None]
    return logits(model.params, model.cfg, forward(model.params, model.cfg, tokens).hidden)


def test_the_summary_holds_the_promised_figures(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    for key in ("ppl_base", "ppl_pruned", "forward_speedup", "seconds"):
        assert math.isfinite(summary[key]) and summary[key] > 0
    assert 0.1 < summary["sparsity"] <= 0.2
    assert summary["bytes_after"] == (out / "pruned" / "model.safetensors").stat().st_size
    assert summary["params_after"] < summary["params_before"]
    assert summary["reload_max_logit_difference"] < 1e-4
    assert summary["test_tokens"] == 3 * 47


def test_parameters_are_those_on_disk(finished):
    out, summary = finished
    stored = load_file(out / "pruned" / "model.safetensors")
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith((".rows", ".cols"))}
    assert summary["params_after"] == sum(tensor.size for tensor in weights.values())
    removed = summary["linear_params_pruned"] + summary["linear_params_removed_by_closure"]
    assert summary["params_before"] - summary["params_after"] == removed


def test_report_figures_and_metrics_are_there_and_nothing_partial(finished):
    out, _ = finished
    assert {path.name for path in (out / "figures").iterdir()} == {"removed.png", "shots.png"}
    report = json.loads((out / "surgeon_report.json").read_text())
    assert len(report["kept"]["gate"]["rows"]) == tiny.TINY.num_layers
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] == [row["step"] for row in report["shots"]]
    assert rows[0]["sparsity"] < rows[1]["sparsity"]
    assert not (out / "checkpoints").exists()


def test_a_finished_run_is_returned_at_once_on_resume(finished, config):
    out, summary = finished
    assert surgeon.run(config, out=out, resume=True) == summary


@pytest.mark.parametrize(
    ("structure", "sparsity", "layout"),
    [("units", 0.3, "compact"), ("element", 0.5, "masked"), ("2:4", 0.5, "masked")],
)
def test_every_structure_is_saved_in_a_layout_that_gives_the_same_logits(
    config, tmp_path, structure, sparsity, layout
):
    changed = dataclasses.replace(config, structure=structure, sparsity=sparsity, shots=1, rank=0)
    summary = surgeon.run(changed, out=tmp_path / "run")
    assert summary["layout"] == layout
    assert summary["reload_max_logit_difference"] < 1e-4
    assert (summary["params_after"] < summary["params_before"]) == (layout == "compact")
    if layout == "masked":
        stored = load_file(tmp_path / "run" / "pruned" / "model.safetensors")
        zeros = np.mean(stored["model.layers.1.mlp.up_proj.weight"] == 0)
        assert zeros > 0.3


def test_a_pruned_model_can_be_pruned_again(finished, config, tmp_path):
    out, _ = finished
    again = dataclasses.replace(config, model=str(out / "pruned"), shots=1, sparsity=0.3, rank=0)
    summary = surgeon.run(again, out=tmp_path / "again")
    assert 0.2 < summary["sparsity"] <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["rowcol", "mlp_units"])
def test_pruned_goes_into_pvq_and_back(config, tmp_path, structure):
    """One command each; the last report compares with the model before pruning."""
    pruning = dataclasses.replace(config, structure=structure, shots=1, rank=0)
    pruned = surgeon.run(pruning, out=tmp_path / "surgeon")
    options = pvq.Config(
        model=str(tmp_path / "surgeon" / "pruned"),
        calib=config.calib,
        calib_windows=4,
        calib_context=32,
        tuning_windows=2,
        text=config.text,
        windows=config.windows,
        context=config.context,
    )
    both = pvq.run(options, out=tmp_path / "pvq")
    assert both["original"] == str(config.model)
    assert both["ppl_original"] == pytest.approx(pruned["ppl_base"], rel=1e-5)
    assert both["ppl_base"] == pytest.approx(pruned["ppl_pruned"], rel=1e-4)
    assert both["bytes_original"] == pruned["bytes_before"]
    assert both["bytes_pruned"] == pruned["bytes_after"]
    assert both["file_bytes"] < both["bytes_pruned"] / 3
    assert both["reload_max_logit_difference"] == 0
    assert both["linear_weights"] < 0.95 * both["linear_weights_original"]
    assert len(pvq.table(both)) == 5
    again = dataclasses.replace(pruning, model=str(tmp_path / "pvq" / "quantized"), sparsity=0.4)
    back = surgeon.run(again, out=tmp_path / "back")
    assert back["ppl_base"] == pytest.approx(both["ppl_pvq"], rel=1e-4)
    assert back["params_after"] < pruned["params_after"]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_same_model_and_figures(finished, config, tmp_path):
    _, expected = finished
    out = tmp_path / "killed"
    run_until_killed("surgeon", config, out, out / "checkpoints" / "1")
    assert not (out / "summary.json").exists()
    resumed = surgeon.run(config, out=out, resume=True)
    for key, value in expected.items():
        if key not in ("seconds", "forward_speedup"):
            assert resumed[key] == value, key
    assert np.array_equal(scores(load(out / "pruned")), scores(load(finished[0] / "pruned")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sparsity", 1.0),
        ("shots", 0),
        ("calib_windows", 0),
        ("damp_a", 0.0),
        ("structure", "heads"),
        ("rank", -1),
        ("context", 1),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(surgeon.Config(), **{field: value})


def test_more_test_windows_than_the_text_holds_are_refused(config, tmp_path):
    with pytest.raises(InputError, match="windows is 9999"):
        surgeon.run(dataclasses.replace(config, windows=9999), out=tmp_path / "run")


def test_widths_that_a_pattern_does_not_divide_are_refused(config, tmp_path):
    with pytest.raises(InputError, match="does not divide"):
        surgeon.run(dataclasses.replace(config, structure="2:5", sparsity=0.2), out=tmp_path / "run")


def test_few_calibration_tokens_are_warned_of(config, tmp_path, capsys):
    from jaxlab.progress import Progress

    few = dataclasses.replace(config, calib_windows=1, shots=1, rank=0)
    surgeon.run(few, out=tmp_path / "run", progress=Progress(stream=sys.stderr))
    assert "rank-deficient" in capsys.readouterr().err
