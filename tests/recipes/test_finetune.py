"""The finetune recipe: what it learns, reports and saves, and that a killed run ends like one that was left alone."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import check_passed, properties, report_of
from killing import kill_at, run_command, run_until_killed
from safetensors.numpy import load_file
from two_processes import free_port, last_lines, start

from jaxlab import data
from jaxlab.errors import InputError
from jaxlab.models import evaluate, forward, load, logits
from jaxlab.recipes import finetune

EIGHT_DEVICES = Path(__file__).with_name("finetune_on_eight_devices.py")
SENTENCE = "The state of the union is strong, and the union endures in all its states. "


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(SENTENCE * 60)
    (folder / "other.txt").write_text("Whales are mammals; ships are made of oak and iron. " * 20)
    return finetune.Config(
        model=str(tiny_model),
        text=str(folder / "text.txt"),
        other=str(folder / "other.txt"),
        lora=True,
        rank=4,
        alpha=8.0,
        steps=12,
        batch=2,
        accumulate=2,
        length=24,
        learning_rate=2e-2,
        warmup=2,
        windows=2,
        context=40,
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "finetune"
    return out, finetune.run(config, out=out)


def test_the_summary_holds_the_promised_figures(finished, config):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    for key in ("ppl_before", "ppl_after", "ppl_other_before", "ppl_other_after", "seconds"):
        assert math.isfinite(summary[key]) and summary[key] > 0
    assert summary["trained_tokens"] == 12 * 2 * 2 * 24
    # Of each of 3 layers: rank 4 times the two sides, 64 and 64, of seven matrices.
    assert summary["trained_parameters"] == 3 * 7 * 4 * (64 + 64)
    assert [row["before"] for row in finetune.table(summary)] == [
        f"{summary['ppl_before']:.3f}",
        f"{summary['ppl_other_before']:.3f}",
    ]


def test_held_out_text_becomes_likelier(finished):
    _, summary = finished
    assert summary["ppl_after"] < 0.5 * summary["ppl_before"]
    assert summary["ppl_reduction"] == 1 - summary["ppl_after"] / summary["ppl_before"]
    assert summary["loss_last"] < summary["loss_first"]


def test_every_step_is_logged_and_the_curve_drawn(finished, config):
    out, summary = finished
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(config.steps + 1))
    assert rows[1]["loss"] == summary["loss_first"]
    assert [path.name for path in (out / "figures").iterdir()] == ["loss.png"]
    assert not (out / "checkpoints").exists()


@pytest.mark.slow
def test_the_saved_model_is_the_trained_one_for_transformers_too(finished):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    out, summary = finished
    assert summary["reload_max_logit_difference"] < 1e-5
    model = load(out / "model")
    ids = np.arange(1, 31)[None]
    ours = logits(model.params, model.cfg, forward(model.params, model.cfg, jnp.asarray(ids)).hidden)
    twin = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    with torch.no_grad():
        theirs = twin(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    stored = load_file(out / "model" / "model.safetensors")
    assert not any("lora" in name for name in stored)


def test_perplexity_after_is_that_of_the_saved_model(finished, config):
    out, summary = finished
    model = load(out / "model")
    ids = data.token_ids(config.text, model.tokenizer)
    held_out = ids[round(len(ids) * 0.9) :][: 2 * 40].reshape(2, 40)
    assert evaluate(model.params, model.cfg, held_out).ppl == pytest.approx(summary["ppl_after"], rel=1e-4)


def test_a_finished_run_is_returned_at_once_on_resume(finished, config):
    out, summary = finished
    assert finetune.run(config, out=out, resume=True) == summary


@pytest.mark.slow
def test_all_parameters_can_be_trained(config, tmp_path):
    whole = dataclasses.replace(config, steps=3, lora=False, learning_rate=1e-3, remat=True)
    summary = finetune.run(whole, out=tmp_path / "run")
    embedding = 49152 * 64
    assert summary["trained_parameters"] == embedding + 64 + 3 * (7 * 64 * 64 + 2 * 64)
    assert summary["ppl_after"] < summary["ppl_before"]


@pytest.mark.slow
def test_products_in_bfloat16_learn_nearly_the_same(finished, config, tmp_path):
    _, exact = finished
    quick = finetune.run(dataclasses.replace(config, products="bfloat16"), out=tmp_path / "run")
    assert quick["ppl_before"] == exact["ppl_before"]
    assert quick["loss_first"] != exact["loss_first"]
    assert quick["loss_first"] == pytest.approx(exact["loss_first"], rel=2e-3)
    assert quick["ppl_after"] == pytest.approx(exact["ppl_after"], rel=0.1)


def test_rows_of_a_pass_are_different_pieces_of_the_text(config):
    ids = np.arange(1000, dtype=np.int32)
    work = finetune._Work(
        dataclasses.replace(config, accumulate=1),
        None,
        None,
        _Untokenized(),
        finetune._Texts(ids, ids, ids),
        None,
    )
    count = 1000 // 24 - 1
    first = np.concatenate([np.asarray(finetune._rows(work, step))[0] for step in range(count // 2)])
    assert len(set(first.ravel().tolist())) == first.size  # none twice
    assert (np.diff(first, axis=1) == 1).all()
    again = np.asarray(finetune._rows(work, count // 2 + 1))[0]
    assert not set(first[:, 0].tolist()) & set(again[:, 0].tolist())  # another start in the next pass
    np.testing.assert_array_equal(finetune._rows(work, 3)[0], first[6:8])


class _Untokenized:
    """A model of which only the configuration is looked at."""

    class cfg:
        add_bos, bos_id = False, None


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_same_losses_and_model(finished, config, tmp_path):
    expected_out, expected = finished
    out = tmp_path / "killed"
    run_until_killed("finetune", config, out, out / "checkpoints" / "4")
    assert not (out / "summary.json").exists()
    resumed = finetune.run(config, out=out, resume=True)
    for key, value in expected.items():
        if "seconds" not in key:
            assert resumed[key] == value, key
    losses = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (expected_out, out)
    ]
    assert losses[0] == losses[1]
    stored, again = (load_file(folder / "model" / "model.safetensors") for folder in (expected_out, out))
    for name, tensor in stored.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


@pytest.fixture(scope="module")
def report():
    return report_of(EIGHT_DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("name", properties(EIGHT_DEVICES))
def test_on_eight_devices(report, name):
    check_passed(report, name)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """Losses and summary of twenty steps on all parameters, on one device."""
    config = dataclasses.replace(config, steps=20, lora=False, learning_rate=1e-3, checkpoint_every=4)
    out = tmp_path_factory.mktemp("alone") / "run"
    return config, losses(out, finetune.run(config, out=out))


def losses(out, summary):
    """Summary, and the loss of every step."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return summary, [row["loss"] for row in rows if row["step"]]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "killed"), [("data=2", False), ("data=1,model=2", True)])
def test_two_processes_share_a_run_and_its_folder(alone, mesh, killed, tmp_path):
    """Rows, or matrices, over two processes; killed and started again, too."""
    config, (expected, curve) = alone
    out = tmp_path / "run"
    command = run_command("finetune", dataclasses.replace(config, mesh=mesh), out)
    if killed:
        port, quiet = free_port(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        kill_at(out / "checkpoints" / "8", [start(command, number, port, **quiet) for number in range(2)])
        assert not (out / "summary.json").exists()
        assert any((out / "checkpoints").rglob("ocdbt.process_1"))  # each process wrote its half
        command.append("--resume")
    assert last_lines(*command) == [f"run folder: {out}", None]  # the first process speaks for both
    found, spread = losses(out, json.loads((out / "summary.json").read_text()))
    assert spread == pytest.approx(curve, rel=1e-3) and len(curve) == 20
    assert curve[-1] < 0.9 * curve[0]
    for name in ("ppl_before", "ppl_after", "ppl_other_after"):
        assert found[name] == pytest.approx(expected[name], rel=2e-3)
    assert found["trained_parameters"] == expected["trained_parameters"]
    assert found["reload_max_logit_difference"] < 1e-4
    assert load(out / "model").params["embed"].shape == (49152, 64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("holdout", 0.0),
        ("rank", 0),
        ("alpha", 0.0),
        ("steps", 0),
        ("batch", 0),
        ("accumulate", 0),
        ("length", 1),
        ("learning_rate", -1.0),
        ("warmup", 300),
        ("windows", -1),
        ("context", 1),
        ("checkpoint_every", 0),
        ("mesh", "data4"),
        ("mesh", "rows=2"),
        ("mesh", "data=-1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(finetune.Config(), **{field: value})


def test_rows_that_a_mesh_cannot_share_out_are_refused():
    with pytest.raises(InputError, match="batch is 3 and mesh 'data=2'"):
        finetune.Config(batch=3, mesh="data=2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": 99}, "windows is 99, but the held-out part"),
        ({"length": 2000}, "fewer than length 2000"),
        ({"targets": "q,query"}, "targets is"),
    ],
)
def test_what_the_text_or_the_model_has_not_is_refused(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune.run(dataclasses.replace(config, **changes), out=tmp_path / "run")


@pytest.mark.slow
def test_a_rate_that_blows_up_is_said(config, tmp_path):
    wild = dataclasses.replace(config, lora=False, learning_rate=1e30, warmup=0)
    with pytest.raises(InputError, match="lower learning_rate"):
        finetune.run(wild, out=tmp_path / "run")
