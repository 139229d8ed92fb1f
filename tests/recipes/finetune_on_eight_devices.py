"""What `test_finetune.py` runs under pytest in a process with 8 virtual CPU devices."""

import dataclasses
import json

import pytest

from jaxlab.errors import InputError
from jaxlab.recipes import finetune


@pytest.fixture
def config(tiny_model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The state of the union is strong, and the union endures in all its states. " * 60)
    return finetune.Config(
        model=str(tiny_model),
        text=str(text),
        other=str(text),
        rank=4,
        steps=20,
        batch=4,
        length=24,
        windows=2,
        context=40,
        checkpoint_every=8,
    )


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["step"]]


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_on_a_mesh_is_the_run_on_one_device(config, tmp_path, lora):
    one = dataclasses.replace(config, lora=lora, learning_rate=1e-2 if lora else 1e-3)
    alone = finetune.run(one, out=tmp_path / "alone")
    spread = finetune.run(dataclasses.replace(one, mesh="data=4,model=2"), out=tmp_path / "spread")
    assert losses(tmp_path / "alone")[-1] < 0.8 * losses(tmp_path / "alone")[0]
    assert losses(tmp_path / "spread") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    assert spread["ppl_after"] == pytest.approx(alone["ppl_after"], rel=2e-3)
    assert spread["reload_max_logit_difference"] < 1e-4


def test_an_interrupted_run_on_a_mesh_goes_on(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, lora=True, mesh="data=4,model=2")
    whole = finetune.run(config, out=tmp_path / "whole")
    step = finetune.train_step

    def interrupted(state, *arguments, **options):
        if int(state.step) == 11:
            raise KeyboardInterrupt
        return step(state, *arguments, **options)

    monkeypatch.setattr(finetune, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config, out=tmp_path / "cut")
    monkeypatch.undo()
    resumed = finetune.run(config, out=tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert resumed["ppl_after"] == whole["ppl_after"]


def test_a_mesh_that_is_too_large_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="16 devices, but there are 8"):
        finetune.run(dataclasses.replace(config, batch=16, mesh="data=16"), out=tmp_path / "run")
