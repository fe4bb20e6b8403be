"""The shape of the program: who may import whom, what the wheel holds, how large a file may get, what is optional."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genrec_bench.datasets import store, synthetic

ROOMS = ("benchmark", "methods", "datasets")
MAY_IMPORT = {
    "benchmark": {"benchmark", "methods", "datasets"},
    "methods": {"methods", "datasets"},
    "datasets": {"datasets"},
}
OPTIONAL = ("ray", "dgl", "optuna", "transformers", "peft")
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
TRACKERS = {"mlflow", "wandb"}  # a person has them or not: the code asks, and says what to install
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module name that a file imports anywhere: at the top, inside functions, for type checking only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    """benchmark -> methods -> datasets; names in strings (importlib, the registry) count as well."""
    room = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    quoted = [text.partition(":")[0] for text in strings if text.startswith("genrec_bench.") and " " not in text]
    for module in [*imported(tree), *quoted]:
        if module.startswith("genrec_bench."):
            target = module.split(".")[1]
            assert target in MAY_IMPORT[room] or target == "suites", f"{room} must not know {module}"
        assert module.partition(".")[0] not in ROOMS, f"{module}: say genrec_bench.{module}"


def test_packages_are_the_tree():
    """A folder that is missing in pyproject.toml would be missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    suffixes = {Path(pattern).suffix for patterns in settings["package-data"].values() for pattern in patterns}
    assert {".yaml", ".csv"} <= suffixes
    folders = {
        path.parent.relative_to(ROOT)
        for room in (*ROOMS, "suites")
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".csv") and "__pycache__" not in path.parts
    }
    assert set(settings["packages"]) == {".".join(("genrec_bench", *folder.parts)) for folder in folders}
    stray = [
        p for room in ROOMS for p in (ROOT / room).rglob("*") if p.is_file() and p.suffix not in {".py", *suffixes}
    ]
    assert [path for path in stray if "__pycache__" not in path.parts and path.name != "py.typed"] == []


def requirements() -> list[Requirement]:
    """Of the core and of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_requirement_has_a_pin_that_satisfies_it():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pairs}
    for one in requirements():
        name = canonicalize_name(one.name)
        assert name in pins, f"{one} has no pin"
        assert pins[name] in one.specifier, f"{one} is pinned to {pins[name]}"


def test_no_requirement_is_bounded_from_above():
    """Another project's bound beside ours could leave no version that both allow."""
    bounded = {one.name for one in requirements() if {bound.operator for bound in one.specifier} - {">="}}
    assert bounded == {"dgl"}  # pyproject.toml says why


def test_what_is_imported_is_required():
    required = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in (one.name.lower() for one in requirements())}
    known = required | TRACKERS | sys.stdlib_module_names | {"genrec_bench"}
    found = {module.partition(".")[0] for path in SOURCES for module in imported(ast.parse(path.read_text()))}
    assert found - known == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not there")
def test_make_refuses_another_python_in_one_line(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    other = tmp_path / "python3.13"
    other.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 13); $2"\n'
    )
    other.chmod(0o755)
    made = subprocess.run(
        ["make", ".venv/core", f"PYTHON={other}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode != 0
    needs, *rest = made.stderr.splitlines()
    assert len(rest) == 1  # make's own
    assert needs == "genrec-bench needs Python 3.11 or 3.12, not 3.13: make PYTHON=/path/to/python3.11"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    assert not (tmp_path / ".venv").exists()


def test_datasets_does_not_shadow_hugging_face(tmp_path):
    """With an __init__.py, `import datasets` in the repository root would be ours."""
    assert not (ROOT / "datasets" / "__init__.py").exists()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("theirs = True")
    code = "import datasets; print(datasets.theirs)"
    assert python("-c", code, PYTHONPATH=str(tmp_path)).stdout == "True\n"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes_and_names(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{node.name} is longer than 80 lines"
    assert path.stem.strip("_") not in ("utils", "util", "helpers", "helper", "common", "misc")
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a module says what it is"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['genrec-bench', '--help']\n"
        "from genrec_bench.benchmark import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('heavy:', *sorted({'torch', 'pandas', 'numpy', 'scipy', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    said = python("-c", code).stdout
    assert "leaderboard" in said
    assert said.splitlines()[-1] == "heavy:"


def test_core_runs_without_the_optional_libraries(tmp_path, home):
    """Their import fails in this process and in all that it starts; a grid over both protocols still gives a table."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n")
    store.save(synthetic.generate(num_users=60, num_items=40, max_length=12, name="tiny"))
    code = (
        "import sys\n"
        "assert sys.modules['ray'] is None\n"
        "from genrec_bench.benchmark.cli import main\n"
        "if __name__ == '__main__': main()\n"
    )
    (tmp_path / "start.py").write_text(code)
    options = [f"--method={name}" for name in ("item_knn", "sasrec")]
    small = ["--set=sasrec.epochs=1", "--set=sasrec.dim=8"]
    done = python(
        str(tmp_path / "start.py"), "run", *options, *small, "--dataset=tiny", "--protocol=full", "--protocol=cand20",
        f"--results={tmp_path / 'results'}", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert "4 run, 0 already there, 0 failed" in done.stderr
    assert "sasrec" in done.stdout
