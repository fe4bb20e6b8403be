"""What the README shows works: its method passes the contract suite and stands in a table, its commands exist."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from genrec_bench.benchmark.cli import app
from genrec_bench.benchmark.contract import check_methods
from genrec_bench.benchmark.suite import MethodEntry, Suite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PLUGIN = re.search(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    assert PLUGIN is not None
    path = tmp_path / "recency.py"
    path.write_text(PLUGIN.group(1))
    return path


def test_method_of_the_readme_keeps_the_contract(plugin: Path):
    assert len(plugin.read_text().splitlines()) <= 60
    lines: list[str] = []
    assert check_methods(str(plugin), lines.append), "\n".join(lines)


def test_method_of_the_readme_stands_in_a_table(plugin: Path, tmp_path: Path):
    command = ["run", "--plugin", str(plugin), "--method", "recency", "--method", "popularity"]
    command += ["--dataset", "synthetic", "--results", str(tmp_path / "results"), "--quiet"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    table = CliRunner().invoke(app, ["leaderboard", "--results", str(tmp_path / "results"), "--format", "md"])
    assert re.search(r"^\| \*{0,2}recency", table.output, re.MULTILINE)


def test_commands_of_the_readme_exist():
    commands = set(
        re.findall(r"^\s*genrec-bench ([a-z-]+)(?: (list|prepare|import|audit|show))?", README, re.MULTILINE)
    )
    assert len(commands) >= 8
    for command, sub in commands:
        shown = CliRunner().invoke(app, [command, *([sub] if command == "data" else []), "--help"])
        assert shown.exit_code == 0, (command, sub)


def test_what_the_pages_point_at_exists():
    """Relative links, and suites and benchmarks by name."""
    found = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        found += [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text)]
        found += [ROOT / name for name in re.findall(r"\b(?:suites/\w+\.yaml|benchmarks/\w+\.py)", text)]
    assert len(found) > 50
    assert [path for path in found if not path.exists()] == []


def test_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_page_on_suites_has_all_keys():
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert set(shown) == set(Suite.model_fields)
    assert set(shown["methods"][1]) == set(MethodEntry.model_fields)
    Suite.model_validate(shown)
