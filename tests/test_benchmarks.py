"""The scripts of benchmarks/: their figures are held against their limits, and decide the exit code."""

import importlib
import sys
from types import ModuleType

import pytest
from conftest import ROOT


@pytest.fixture
def script(monkeypatch):
    """A module of benchmarks/, imported as its command finds it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("limits", "report"):
        sys.modules.pop(name, None)


def test_limits_are_printed_and_decide(script, capsys):
    limits = script("limits")
    fast, busy = limits.Limit("seconds", 5.0, 5.0, " s"), limits.Limit("at work", 94.25, 90.0, " %", at_least=True)
    assert limits.judged(fast, busy) == 0
    assert limits.judged(fast, busy._replace(found=89.0)) == 1
    assert limits.judged(fast._replace(found=5.1), busy) == 1
    assert capsys.readouterr().out.splitlines()[:2] == [
        "seconds: 5 s, wanted at most 5 s: kept",
        "at work: 94.25 %, wanted at least 90 %: kept",
    ]


@pytest.mark.parametrize(("seconds", "code"), [(1000.0, 0), (0.0, 1)])
def test_the_report_has_to_keep_its_limits(script, monkeypatch, capsys, seconds, code):
    report = script("report")
    monkeypatch.setattr(report, "SECONDS", seconds)
    monkeypatch.setattr(sys, "argv", ["report.py", "--records", "6"])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == code
    assert "page: 0." in capsys.readouterr().out
