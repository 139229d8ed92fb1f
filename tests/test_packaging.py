"""What a wheel of the project holds."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, with the setuptools at hand."""
    import shutil

    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("jaxlab", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_folder_with_modules_is_installed(project):
    folders = {path.parent for top in ("jaxlab", "kernels") for path in (ROOT / top).rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    installed = {
        name.removeprefix("jaxlab.") if "kernels" in name else name
        for name in project["tool"]["setuptools"]["packages"]
    }
    assert installed == packages


def test_wheel_holds_kernels_inside_jaxlab_and_nothing_else_on_top(wheel):
    names = wheel.namelist()
    assert "jaxlab/kernels/__init__.py" in names and "jaxlab/cli/__init__.py" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxlab"}


def test_wheel_holds_the_modelling_code_of_compact_directories(wheel):
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxlab/models/compact_hf").iterdir()}
    assert len(sources) == 2 and sources <= set(wheel.namelist())


def test_wheel_names_command_licence_and_python_range(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: <3.14,>=3.11" in text
    (entry,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "jaxlab = jaxlab.cli:main" in wheel.read(entry).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_example_of_the_readme_runs(capsys):
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    answer, error = capsys.readouterr().out.strip().splitlines()[-2:]
    assert answer.strip() == "Paris" and 0.0 < float(error) < 0.2


def test_version_is_one_number(project):
    import jaxlab

    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "jaxlab.__version__"}
    assert f"## {jaxlab.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_are_exact_versions_of_names_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement, _, marker = line.partition(";")
            name, equal, version = requirement.strip().partition("==")
            assert equal and name.replace("-", "").replace("_", "").replace(".", "").isalnum(), line
            assert version[0].isdigit() and " " not in version, line
            assert not marker or "python_version" in marker or "sys_platform" in marker, line


def test_every_direct_dependency_is_constrained(project):
    pinned = {
        line.split("==")[0].strip().lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + extras["models"] + extras["data"] + extras["test"]
    names = {part.split(">=")[0].split("[")[0].lower().replace("_", "-") for part in wanted} - {"jaxlab"}
    assert names <= pinned, names - pinned
