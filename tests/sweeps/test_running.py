"""Sweeps: equal to the loop of single runs, on one device and on many, whole after being killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import descent
import jax
import numpy as np
import pytest

from jaxlab.errors import InputError, ResourceError
from jaxlab.parallel import make_mesh
from jaxlab.sweeps import Sweepable, read_table, sweep, write_table
from jaxlab.sweeps import programs as programs_module
from jaxlab.sweeps.programs import compile_program

GRID = ("rate=0.1,0.3", "dimension=2,3")
COMMAND = [sys.executable, str(Path(descent.__file__))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 2 x 2 combinations and 5 seeds, and its folder."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    return sweep(descent, descent.Config(seed=3), GRID, seeds=5, out=out), out


def loop(config, options, seed):
    """The run by itself."""
    function = jax.jit(descent.train(config))
    return function({name: np.float32(value) for name, value in options.items()}, jax.random.key(seed))


def test_the_table_holds_the_loop_of_single_runs(swept):
    table = read_table(swept[1] / "results.parquet")
    row = 0
    for rate in (0.1, 0.3):
        for dimension in (2, 3):
            for seed in range(3, 8):
                config = descent.Config(dimension=dimension)
                alone = loop(config, {"rate": rate, "noise": 0.1}, seed)
                rows = slice(row, row + config.steps)
                assert set(table["rate"][rows]) == {rate} and set(table["seed"][rows]) == {seed}
                assert set(table["dimension"][rows]) == {dimension}
                np.testing.assert_array_equal(table["step"][rows], np.arange(20))
                np.testing.assert_allclose(table["loss"][rows], alone["loss"], rtol=1e-5)
                assert set(table["more"][rows]) == {int(alone["more"])}
                row += config.steps
    assert row == len(table["seed"])


def test_csv_and_parquet_hold_the_same_numbers(swept):
    table = read_table(swept[1] / "results.parquet")
    with open(swept[1] / "results.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == list(table)
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        np.testing.assert_array_equal(np.array(column, float).astype(table[name].dtype), table[name])


def test_summary_and_figures_are_there_and_chunks_are_not(swept):
    summary, out = swept
    assert summary["runs"] == 20 and summary["rows"] == 400 and len(summary["combinations"]) == 4
    assert {path.name for path in (out / "figures").iterdir()} == {"loss.png", "more.png"}
    assert not (out / "chunks").exists()
    table = read_table(out / "results.parquet")
    last = np.sort(table["loss"].reshape(4, 5, 20)[1, :, -1])[1:-1].mean()
    assert summary["combinations"][1]["loss"] == pytest.approx(float(last), rel=1e-6)


@pytest.mark.parametrize(("lanes", "chunk"), [(1, 3), (3, 7), (16, None)])
def test_lanes_and_chunks_change_no_result(swept, tmp_path, lanes, chunk):
    sweep(descent, descent.Config(seed=3), GRID, seeds=5, out=tmp_path / "run", lanes=lanes, chunk=chunk)
    whole, other = (read_table(out / "results.parquet") for out in (swept[1], tmp_path / "run"))
    np.testing.assert_array_equal(whole["more"], other["more"])
    np.testing.assert_allclose(whole["loss"], other["loss"], rtol=1e-5)


def test_lanes_shrink_until_they_fit_into_memory(monkeypatch):
    options = {name: np.full(12, 0.1, np.float32) for name in ("rate", "noise")}
    train, seeds = descent.train(descent.Config()), np.arange(12, dtype=np.uint32)
    wide, lanes = compile_program(train, options, mesh=None, lanes=12, chunk=12)
    assert lanes == 12
    needed = []
    real = programs_module._memory_limit
    monkeypatch.setattr(
        programs_module,
        "_memory_limit",
        lambda mesh: needed.append(1) or (0 if len(needed) < 3 else real(mesh)),
    )
    narrow, lanes = compile_program(train, options, mesh=None, lanes=12, chunk=12)
    assert lanes == 3
    for name, values in wide(options, seeds).items():
        np.testing.assert_allclose(values, narrow(options, seeds)[name], rtol=1e-5)
    monkeypatch.setattr(programs_module, "_memory_limit", lambda mesh: 0)
    with pytest.raises(ResourceError, match="one run needs"):
        compile_program(train, options, mesh=None, lanes=12, chunk=12)


def test_a_mesh_of_one_device_changes_nothing():
    options = {name: np.full(8, 0.1, np.float32) for name in ("rate", "noise")}
    train, seeds = descent.train(descent.Config()), np.arange(8, dtype=np.uint32)
    found = [
        compile_program(train, options, mesh=mesh, lanes=2, chunk=8)[0](options, seeds)
        for mesh in (None, make_mesh({"data": 1}))
    ]
    for name in ("loss", "more"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


def command_line(out, *more, **environment):
    """The words of a sweep of 48 runs in small chunks, and its environment."""
    words = ["sweep", "descent", "--grid", "rate=0.1,0.3", "dimension=2,3", "--seeds", "12", "--lanes", "2"]
    given = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
    return [*COMMAND, *words, "--out", str(out), *more], given


def run_command(out, *more, **environment):
    words, given = command_line(out, *more, **environment)
    done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The sweep by the command line on one device."""
    out = tmp_path_factory.mktemp("command") / "run"
    assert "48 runs, 960 rows" in run_command(out)
    return out


def tables(out):
    return (out / "results.csv").read_bytes(), (out / "results.parquet").read_bytes()


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_resumes_to_the_same_bytes(by_command, tmp_path):
    words, environment = command_line(tmp_path / "run", "--chunk", "2")
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    chunks, deadline = tmp_path / "run" / "chunks", time.monotonic() + 120
    while len(list(chunks.glob("*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "the sweep ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "results.csv").exists()
    before = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*.npz")}
    assert len(before) >= 3
    run_command(tmp_path / "run", "--chunk", "2", "--resume")
    assert tables(tmp_path / "run") == tables(by_command)


@pytest.mark.slow
def test_eight_devices_give_the_same_bytes(by_command, tmp_path):
    run_command(tmp_path / "run", XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert tables(tmp_path / "run") == tables(by_command)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(by_command, tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = []
    for number in range(2):
        words, environment = command_line(
            tmp_path / "run",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        both.append(
            subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert tables(tmp_path / "run") == tables(by_command)


def test_a_finished_sweep_is_read_and_another_grid_refused(swept):
    summary, out = swept
    again = sweep(descent, descent.Config(seed=3), GRID, seeds=5, out=out, resume=True)
    assert again == summary
    with pytest.raises(InputError, match=r"it was started with grid="):
        sweep(descent, descent.Config(seed=3), ("rate=0.2",), seeds=5, out=out, resume=True)


def test_a_damaged_chunk_is_named(tmp_path):
    out = tmp_path / "run"

    class Fails:
        __name__ = "descent"
        SWEEP = descent.SWEEP._replace(traced=(), train=lambda config: _fail_at_three(config))

    with pytest.raises(ZeroDivisionError):
        sweep(Fails, descent.Config(), ("dimension=2,3",), seeds=4, out=out)
    (chunk,) = (out / "chunks").glob("*.npz")
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(InputError, match=rf"{chunk.name} is damaged"):
        sweep(Fails, descent.Config(), ("dimension=2,3",), seeds=4, out=out, resume=True)


def _fail_at_three(config):
    if config.dimension == 3:
        raise ZeroDivisionError
    return lambda options, key: {"loss": jax.random.normal(key, (20,))}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({}, {"lanes": 0}, "lanes is 0; it must be at least 1"),
        ({}, {"chunk": 0}, "chunk is 0; it must be at least 1"),
        (
            {"train": lambda config: lambda options, key: {"x": jax.numpy.zeros((2, 2))}},
            {},
            "numbers or curves",
        ),
        ({"steps": lambda config: np.arange(config.dimension)}, {}, "at different steps"),
    ],
)
def test_what_cannot_be_swept_is_an_input_error(tmp_path, change, options, message):
    class Recipe:
        __name__ = "descent"
        SWEEP = descent.SWEEP._replace(**change)

    with pytest.raises(InputError, match=message):
        sweep(Recipe, descent.Config(), ("dimension=2,3",), out=tmp_path / "run", **options)


def test_a_recipe_without_sweep_is_told_so(tmp_path):
    from jaxlab.recipes import surgeon

    with pytest.raises(InputError, match="surgeon cannot be swept"):
        sweep(surgeon, surgeon.Config(), (), out=tmp_path / "run")


def test_words_and_empty_values_come_back_from_the_table(tmp_path):
    table = {"word": np.array(["a", None], object), "x": np.float32([0.1, np.nan]), "i": np.array([1, 2])}
    write_table(table, tmp_path / "t")
    found = read_table(tmp_path / "t.parquet")
    assert list(found["word"]) == ["a", None] and found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], table["x"])
    assert (tmp_path / "t.csv").read_text() == "word,x,i\na,0.1,1\n,,2\n"
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no whole parquet file"):
        read_table(tmp_path / "t.parquet")


def test_numbers_alone_make_a_row_a_run(tmp_path):
    class Recipe:
        __name__ = "dice"
        SWEEP = Sweepable(lambda config: lambda options, key: {"face": jax.random.randint(key, (), 1, 7)})

    summary = sweep(Recipe, descent.Config(), ("flavour=sweet,sour",), seeds=6, out=tmp_path / "run")
    table = read_table(tmp_path / "run" / "results.parquet")
    assert summary["rows"] == 12 and list(table) == ["flavour", "seed", "face"]
    expected = [int(jax.random.randint(jax.random.key(seed), (), 1, 7)) for seed in range(6)]
    np.testing.assert_array_equal(table["face"], expected * 2)
