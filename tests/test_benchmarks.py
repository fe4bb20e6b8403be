"""The scripts of benchmarks/: their figures are held against their limits, and decide the exit code."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from test_records import RANKS, make_record, make_users, write

from genrec_bench.methods.base import Ranking


@pytest.fixture
def script(monkeypatch):
    """A module of benchmarks/, imported as its command finds it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("engines", "kill_and_resume", "limits", "report"):
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


@pytest.fixture
def engines_of(script, tmp_path):
    """The comparing script, and equal results of two engines."""
    pytest.importorskip("psutil", reason="psutil is not installed")
    variants = [{"name": "free", "metrics": {}, "text": {"exact_match": 0.5}}]
    ranking = Ranking(np.arange(8).reshape(4, 2), np.ones((4, 2), dtype=np.float32), ordered=True)
    for engine in ("local", "ray"):
        for seed in (0, 1):
            record = make_record(f"run{seed}", seed=seed, variants=variants, stages={"index": {"builder": "rqvae"}})
            write(tmp_path / engine, record, rankings=ranking)
    return script("engines"), tmp_path / "local", tmp_path / "ray"


def test_two_engines_are_compared_cell_by_cell(engines_of, capsys):
    engines, local, other = engines_of
    assert engines.judge(local, other) == 0
    assert capsys.readouterr().out == "cells compared: 2, differences: 0\n"


def changed(content: dict, key: str) -> dict:
    """A record in which one part is another's."""
    others = {
        "metrics": {**content["metrics"], "recall@10": {"mean": 0.5, "low": 0.0, "high": 1.0}},
        "slices": {"cold_target": {"users": 1, "metrics": {}}},
        "list_metrics": {"coverage@10": 0.25},
        "variants": [{**content["variants"][0], "text": {"exact_match": 0.25}}],
        "stages": {"index": {"builder": "random"}},
    }
    return {**content, key: others[key]}


@pytest.mark.parametrize("key", ["metrics", "slices", "list_metrics", "variants", "stages"])
def test_any_difference_between_two_engines_is_told(engines_of, capsys, key):
    engines, local, other = engines_of
    path = other / "toy" / "sasrec" / "run1" / "run.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), key)))
    assert engines.judge(local, other) == 1
    assert f"toy/sasrec seed 1: {key}: " in capsys.readouterr().out


def test_other_ranks_missing_cells_and_failures_are_told(engines_of, capsys, tmp_path: Path):
    engines, local, other = engines_of
    write(tmp_path / "shuffled", make_record("run1", RANKS[::-1].copy()), ranks=RANKS[::-1].copy(), users=make_users())
    (tmp_path / "shuffled/toy/sasrec/run1/ranks.parquet").replace(other / "toy/sasrec/run1/ranks.parquet")
    (local / "toy/sasrec/run2.failed.json").write_text("{}")
    (other / "toy/sasrec/run0/run.json").unlink()
    assert engines.judge(local, other) == 1
    told = capsys.readouterr().out
    for line in ("ranks.parquet: other content", "run0: only in one of the two", "run2.failed.json: a cell failed"):
        assert line in told
    assert engines.judge(tmp_path / "none", tmp_path / "nothing") == 1  # nothing was compared
