"""The run folder: whole files only, resuming after a kill, refusing what would mix two runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import toy_recipe

from jaxlab import runs
from jaxlab.errors import InputError, ResourceError
from jaxlab.runs import RunFolder


@dataclass(frozen=True)
class Config:
    bits: float = 3.25
    sizes: tuple[int, ...] = (1, 2)
    source: Path = Path("a/b")
    seed: int = 0


class State(NamedTuple):
    x: np.ndarray
    count: int


def test_folder_holds_config_metrics_summary_and_figures(tmp_path):
    import matplotlib.figure

    with RunFolder(tmp_path / "run", Config(), system="toy") as folder:
        folder.log(step=1, loss=np.float32(0.5), curve=np.arange(2), bad=float("nan"))
        figure = matplotlib.figure.Figure()
        figure.subplots().plot([1, 2])
        path = folder.save_figure("curve", figure)
        assert not (tmp_path / "run" / "summary.json").exists()
        summary = folder.finish({"ppl": np.float64(19.8), "model": "m"})
    assert path.read_bytes().startswith(b"\x89PNG") and path == tmp_path / "run" / "figures" / "curve.png"
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["system"] == "toy"
    assert record["config"] == {"bits": 3.25, "sizes": [1, 2], "source": "a/b", "seed": 0}
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {key: row[key] for key in ("step", "loss", "curve", "bad")} == {
        "step": 1, "loss": 0.5, "curve": [0, 1], "bad": None,
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["ppl"] == 19.8 and summary["seconds"] >= 0
    assert not [file for file in tmp_path.rglob("*") if "partial" in file.name]


def test_system_is_named_after_the_module_of_its_config(tmp_path):
    assert RunFolder(tmp_path / "run", toy_recipe.Config()).system == "toy-recipe"


def test_folder_with_a_run_is_not_overwritten(tmp_path):
    with RunFolder(tmp_path, Config(), system="toy"):
        pass
    with pytest.raises(InputError, match="an unfinished run of toy.*--resume"):
        RunFolder(tmp_path, Config(), system="toy")
    RunFolder(tmp_path, Config(), True, system="toy").finish({"a": 1})
    with pytest.raises(InputError, match="a finished run of toy"):
        RunFolder(tmp_path, Config(), system="toy")
    assert RunFolder(tmp_path, Config(), True, system="toy").summary["a"] == 1


def test_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run"):
            RunFolder(tmp_path, Config(), resume, system="toy")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot make the folder"):
        RunFolder(tmp_path / "file" / "run", Config(), system="toy")


def test_resuming_with_another_config_names_the_fields(tmp_path):
    with RunFolder(tmp_path, Config(), system="toy"):
        pass
    with pytest.raises(InputError, match=r"bits=3.25 \(now 4.0\), seed=0 \(now 7\)\."):
        RunFolder(tmp_path, replace(Config(), bits=4.0, seed=7), True, system="toy")
    with pytest.raises(InputError, match="holds a run of toy, not of pvq"):
        RunFolder(tmp_path, Config(), True, system="pvq")


def test_folder_in_use_by_another_process_is_refused(tmp_path):
    hold = "import sys, time; from jaxlab.runs import RunFolder; from test_runs import Config\n"
    hold += "RunFolder(sys.argv[1], Config(), system='toy'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], cwd=Path(__file__).parent, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"in use by process {other.pid}"):
            RunFolder(tmp_path / "run", Config(), True, system="toy")
        other.kill()
    assert RunFolder(tmp_path / "run", Config(), True, system="toy").resumed


def test_torn_last_line_is_dropped_on_resume(tmp_path):
    with RunFolder(tmp_path, Config(), system="toy") as folder:
        folder.log(step=1)
        folder.log(step=2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in runs.read_metrics(tmp_path)] == [1, 2]
    with RunFolder(tmp_path, Config(), True, system="toy") as folder:
        folder.log(step=3)
        assert [row["step"] for row in folder.metrics()] == [1, 2, 3]


def test_checkpoint_comes_back_with_structure_types_and_bits(tmp_path):
    import jax

    state = {
        "s": State(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32), 7),
        "key": jax.random.key(5),
    }
    with RunFolder(tmp_path, Config(), system="toy") as folder:
        assert folder.restore(like=state) is None
        for step in (4, 8):
            folder.log(step=step)
            folder.checkpoint(step, state)
        folder.log(step=9)
    with RunFolder(tmp_path, Config(), True, system="toy") as folder:
        restored = folder.restore(like=state)
        assert restored.step == 8 and isinstance(restored.tree["s"], State)
        assert restored.tree["s"].x.tobytes() == state["s"].x.tobytes() and restored.tree["s"].count == 7
        assert (
            jax.random.key_data(restored.tree["key"]).tolist() == jax.random.key_data(state["key"]).tolist()
        )
        assert [row["step"] for row in folder.metrics()] == [4, 8]  # step 9 will be done again
        folder.finish({})
    assert not (tmp_path / "checkpoints").exists()


def test_half_written_checkpoint_is_passed_over(tmp_path):
    with RunFolder(tmp_path, Config(), system="toy") as folder:
        folder.checkpoint(3, {"x": np.ones(2)})
    torn = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    (torn / "default").mkdir(parents=True)
    with RunFolder(tmp_path, Config(), True, system="toy") as folder:
        assert folder.restore(like={"x": np.zeros(2)}).step == 3


def test_artefact_names_stay_inside_the_folder(tmp_path):
    folder = RunFolder(tmp_path / "run", Config(), system="toy")
    assert folder.artefact("model/a.bin") == tmp_path / "run" / "model" / "a.bin"
    for name in ("../x", "/etc/x", "summary.json", "figures/x.png", ""):
        with pytest.raises(InputError, match="artefact name"):
            folder.artefact(name)


def test_summary_must_be_flat(tmp_path):
    with pytest.raises(TypeError, match="hold mappings"):
        RunFolder(tmp_path / "run", Config(), system="toy").finish({"a": {"b": 1}})


def test_latest_unfinished_run_of_the_same_options_is_found(tmp_path):
    for number, (seed, finished) in enumerate([(0, False), (0, False), (1, False), (0, True)]):
        with RunFolder(tmp_path / f"toy-{number}", Config(seed=seed), system="toy") as folder:
            if finished:
                folder.finish({})
        os.utime(tmp_path / f"toy-{number}" / "config.json", (number, number))
    assert runs.latest_unfinished("toy", Config(), tmp_path) == tmp_path / "toy-1"
    with pytest.raises(InputError, match=r"no unfinished run[\s\S]*toy-2 was started with seed=1 \(now 5\)"):
        runs.latest_unfinished("toy", Config(seed=5), tmp_path)


def test_default_folders_never_collide(tmp_path):
    first = runs.default_out("toy", tmp_path)
    first.mkdir()
    assert first.name.startswith("toy-2") and runs.default_out("toy", tmp_path) != first


def test_damaged_json_is_an_input_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        RunFolder(tmp_path, Config(), True, system="toy")


def test_run_killed_in_the_middle_resumes_to_the_same_result(tmp_path):
    whole = toy_recipe.run(toy_recipe.Config(pause=0.05), out=tmp_path / "whole")
    command = [sys.executable, str(Path(toy_recipe.__file__)), "run", "toy", "--pause", "0.05"]
    out = tmp_path / "killed"
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(runs.read_metrics(out)) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (out / "summary.json").exists()
    subprocess.run([*command, "--out", str(out), "--resume"], check=True, capture_output=True, timeout=60)
    resumed = runs.read_json(out / "summary.json")
    assert resumed["loss"] == whole["loss"]
    kept = [(row["step"], row["loss"]) for row in runs.read_metrics(out)]
    assert kept == [(row["step"], row["loss"]) for row in runs.read_metrics(tmp_path / "whole")]


def test_options_that_cannot_be_used_leave_no_folder(tmp_path):
    for error in (InputError, ResourceError):
        with pytest.raises(error), RunFolder(tmp_path / "run", toy_recipe.Config()):
            raise error("no such model")
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError), RunFolder(tmp_path / "run", toy_recipe.Config()) as folder:
        folder.log(step=1, loss=0.5)
        raise InputError("no such text")
    with RunFolder(tmp_path / "run", toy_recipe.Config(), resume=True) as folder:
        assert [row["step"] for row in folder.metrics()] == [1]
    with pytest.raises(InputError), RunFolder(tmp_path / "run", toy_recipe.Config(), resume=True):
        raise InputError("no such text")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
