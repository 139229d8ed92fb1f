"""The benchmark harness: fair turns, honest medians, results on disk, peers in environments of their own."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import harness, peers
from jaxlab.errors import InputError, ResourceError


def test_contestants_take_turns_and_compilation_is_apart():
    calls = []

    def contestant(name, seconds):
        def function():
            calls.append(name)
            time.sleep(seconds if calls.count(name) > 1 else 5 * seconds)

        return function

    timings = harness.compare({"ours": contestant("a", 0.01), "peer": contestant("b", 0.03)}, 4)
    assert calls == ["a", "b"] + ["a", "b", "b", "a"] * 2
    assert len(timings["ours"].seconds) == 4
    assert 0.01 <= timings["ours"].median < timings["peer"].median
    assert timings["ours"].compilation > 0.03
    rows = harness.timing_rows(timings, work=10, unit="weights")
    assert rows[0]["ours_is_x_faster"] == 1.0 and rows[1]["ours_is_x_faster"] > 1.0
    assert rows[0]["weights_per_s"] == pytest.approx(10 / timings["ours"].median, rel=1e-3)


def test_results_are_waited_for():
    """A dispatch alone returns long before a big matrix product is done."""
    matrix = jnp.ones((1500, 1500))
    power = jax.jit(lambda m: m @ m @ m @ m @ m)
    jax.block_until_ready(power(matrix))
    start = time.perf_counter()
    jax.block_until_ready(power(matrix))
    waited = time.perf_counter() - start
    timing = harness.compare({"ours": lambda: {"result": power(matrix)}}, 3)["ours"]
    assert timing.median > waited / 4


def test_turns_go_on_until_enough_time_was_measured():
    timing = harness.compare({"ours": lambda: time.sleep(0.01)}, 1, minimum_s=0.05)["ours"]
    assert 2 <= len(timing.seconds) <= 6 and sum(timing.seconds) >= 0.05


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """One benchmark that works and one that cannot run, in a folder of their own."""
    (tmp_path / "good.py").write_text(
        '"""A claim."""\ndef run(quick):\n    return [{"quick": quick, "x": 1.5}]\n'
    )
    (tmp_path / "bad.py").write_text(
        '"""Another claim."""\nfrom jaxlab.errors import ResourceError\n'
        'def run(quick):\n    raise ResourceError("no peer")\n'
    )
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("benchmarks.__path__", [str(tmp_path)])
    yield tmp_path
    for name in ("good", "bad"):
        sys.modules.pop(f"benchmarks.{name}", None)


def test_command_runs_prints_and_records(folder, capsys):
    assert command.main(["good", "--quick"]) == 0
    record = json.loads((folder / "results" / "good-quick.json").read_text())
    assert record["rows"] == [{"quick": True, "x": 1.5}]
    assert record["environment"]["versions"]["jax"] == jax.__version__ and record["environment"]["devices"]
    assert record["date"].startswith("20") and "cache" not in record["environment"]
    out = capsys.readouterr().out
    assert "good: A claim." in out and "1.5" in out


def test_command_fails_when_one_of_all_cannot_run(folder, capsys):
    assert command.main(["--all", "--quick"]) == 1
    assert "bad cannot run: no peer" in capsys.readouterr().err
    assert (folder / "results" / "good-quick.json").exists()
    assert not (folder / "results" / "bad-quick.json").exists()


def test_unknown_benchmark_is_refused_with_the_known_ones(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["god"])
    assert stop.value.code == 2
    assert "no benchmark god; there are bad, good" in capsys.readouterr().err


def test_every_benchmark_states_its_claim_and_can_be_run():
    for name in harness.names():
        module = harness.load(name)
        assert (module.__doc__ or "").strip() and callable(module.run), name


def test_peer_runs_in_its_own_environment_on_the_same_inputs(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    # The peer's own environment is made empty; it borrows the numpy of this one by path.
    site = str(Path(np.__file__).parent.parent)
    (tmp_path / "twice.txt").write_text("")
    (tmp_path / "twice.py").write_text(
        f"import sys\nprefix = sys.prefix\nsys.path.append({site!r})\nimport numpy as np\n"
        "x = np.load(sys.argv[1])['x']\nnp.savez(sys.argv[2], y=2 * x, prefix=prefix, seconds=[0.5])\n"
    )
    outputs = peers.run_peer("twice", {"x": np.arange(3)}, folder=tmp_path)
    assert outputs["y"].tolist() == [0, 2, 4] and outputs["seconds"].tolist() == [0.5]
    assert str(outputs["prefix"]).startswith(str(tmp_path / "cache" / "peers"))
    (tmp_path / "twice.py").write_text("raise SystemExit('it broke')\n")
    with pytest.raises(ResourceError, match=r"peer twice failed with exit code 1:\nit broke"):
        peers.run_peer("twice", {"x": np.arange(3)}, folder=tmp_path)
    (tmp_path / "twice.py").write_text("")
    with pytest.raises(ResourceError, match="wrote no results"):
        peers.run_peer("twice", {"x": np.arange(3)}, folder=tmp_path)


def test_peer_that_cannot_be_installed_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gone.txt").write_text("./there-is-no-such-folder\n")
    (tmp_path / "gone.py").write_text("")
    with pytest.raises(ResourceError, match="installing peer gone failed"):
        peers.run_peer("gone", {}, folder=tmp_path)
    assert list((tmp_path / "cache" / "peers").iterdir()) == []
    with pytest.raises(InputError, match="peer 'other' is missing"):
        peers.run_peer("other", {}, folder=tmp_path)


def test_pieces_are_measured_once_for_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    calls = iter([[1.5], [2.5]])
    assert harness.kept("runs/a", {"sizes": (1, 2)}, lambda: next(calls)) == [1.5]
    assert harness.kept("runs/a", {"sizes": (1, 2)}, lambda: next(calls)) == [1.5]
    assert harness.kept("runs/a", {"sizes": (1, 3)}, lambda: next(calls)) == [2.5]
