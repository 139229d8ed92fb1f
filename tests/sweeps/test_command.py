"""`jaxlab sweep`: help, errors, and what it leaves."""

import descent
import pytest

from jaxlab import cli, recipes
from jaxlab.files import cache_dir


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command line with the descent among its systems, in an empty directory."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_dir("xla")))
    monkeypatch.setitem(
        recipes.SYSTEMS, "descent", recipes.System("descent", "Descent", "0000.00000", "sweeps", "descent")
    )
    monkeypatch.chdir(tmp_path)
    return cli.main


def test_a_sweep_writes_one_csv_and_one_parquet_table(command, tmp_path, capsys):
    assert descent.PRESETS["smoke"].steps == 4
    words = [
        "sweep",
        "descent",
        "--preset",
        "smoke",
        "--grid",
        "rate=0.1,0.2",
        "--seeds",
        "2",
        "--out",
        "here",
    ]
    assert command(words) == 0
    out = capsys.readouterr().out
    assert "4 runs, 16 rows" in out and "0.2" in out
    assert sorted(path.name for path in (tmp_path / "here").glob("results.*")) == [
        "results.csv",
        "results.parquet",
    ]
    assert command([*words, "--resume"]) == 0


def test_without_out_it_goes_to_a_folder_of_its_own(command, tmp_path):
    assert command(["sweep", "descent", "--preset", "smoke"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("sweep-descent-") and (folder / "results.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "unknown system 'nothing'"),
        (["--seeds", "2"], "the system comes before its options"),
        (["descent", "--grid", "rte=1"], "did you mean rate"),
        (["surgeon"], "surgeon cannot be swept"),
    ],
)
def test_what_cannot_be_swept_is_said(command, capsys, words, message):
    assert command(["sweep", *words]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_help_explains_grid_seeds_and_the_recipes_own_options(command, capsys):
    assert command(["sweep"]) == 0
    assert "--grid NAME=VALUE,VALUE" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(["sweep", "descent", "--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--grid", "--seeds", "--lanes", "--dimension", "--preset"))
