"""docs/promises.md: every promise names tests, and every test that is named exists."""

import ast
import re

from conftest import ROOT

PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
TEST_ID = re.compile(r"`(tests/test_\w+\.py)::(test_\w+)`")


def test_every_promise_names_a_test():
    promised, found, not_there = PAGE.partition("## Not there")
    assert found
    promises = re.split(r"^- ", promised, flags=re.MULTILINE)[1:]
    assert len(promises) >= 25
    assert [one.splitlines()[0] for one in promises if not TEST_ID.search(one)] == []
    assert not TEST_ID.search(not_there)


def test_every_named_test_exists():
    """Read, not imported: some need libraries that are not everywhere."""
    named = TEST_ID.findall(PAGE)
    assert len(named) == PAGE.count("::")  # none is misspelt past recognition
    known = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert sorted(set(named) - known) == []
