"""The committed results: tables rebuilt from the records byte for byte, metrics recomputed from the ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from genrec_bench.benchmark import execute, metrics, records, standings, statistics, tuning_records
from genrec_bench.benchmark.protocols import protocol
from genrec_bench.benchmark.suite import Cell
from genrec_bench.methods import registry

RESULTS = Path(__file__).parents[1] / "results"
MAX_BYTES = 20 * 2**20
TABLES = {"LEADERBOARD.md": "md", "leaderboard.csv": "csv", "leaderboard.json": "json", "leaderboard.tex": "latex"}
KEPT = {"run.json", "ranks.parquet"}
RUNS = sorted(path.parent for path in RESULTS.glob("*/*/*/run.json"))
STUDIES = "tuning-*.json"
TOGETHER = ("users-*.parquet", "candidates-*.parquet")  # of all runs of a data set and protocol
SEARCHED = "tuned_*.yaml"  # suites with the best settings of searches


def committed_files() -> list[Path]:
    ignored = {"rankings.parquet", "events.jsonl"}
    elsewhere = {".work", "quickstart"}
    return [
        path
        for path in RESULTS.rglob("*")
        if path.is_file() and path.name not in ignored and not elsewhere & set(path.parts)
    ]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: "/".join(path.parts[-3:]))
def test_the_same_command_finds_the_record_again(run: Path):
    """Its id is the one that today's code gives the run."""
    record = records.read(run)
    rules = protocol(
        record.protocol.name, record.protocol.mask_seen, record.protocol.parameters.get("exclude", "sequence")
    )
    config = registry.configure(record.method, record.config)
    cell = Cell(
        record.method, record.label, config, record.dataset.name, rules, record.seed, record.tier, None, None
    )  # fmt: skip
    assert execute.run_id(cell, record.dataset.sha256) == record.run_id == run.name


def test_every_record_is_readable():
    found, problems = records.read_all(RESULTS)
    assert not problems
    assert len(found) == len(RUNS) > 0


def test_every_study_is_readable_and_in_its_place():
    for path in committed_files():
        if path.match(STUDIES):
            study = tuning_records.read(path)
            place = Path(study.dataset, study.method, f"tuning-{study.study}.json")
            assert path.relative_to(RESULTS) == place


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_rebuilt_byte_for_byte(name: str):
    rendered = standings.render(RESULTS, TABLES[name])
    assert (RESULTS / name).read_bytes() == (rendered + "\n").encode()


def test_rows_in_the_docs_are_those_of_the_records(monkeypatch):
    """Not the claims: those take a minute. `benchmarks/docs_tables.py --check` compares both."""
    monkeypatch.syspath_prepend(str(RESULTS.parent / "benchmarks"))
    import docs_tables

    board, _ = standings.read(RESULTS)
    marked = 0
    for path in sorted((RESULTS.parent / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert docs_tables.rewritten(text, board, RESULTS, with_claims=False) == text, path
        marked += text.count("<!-- rows ")
    assert marked > 3


@pytest.mark.parametrize("run", RUNS, ids=lambda path: "/".join(path.parts[-3:]))
def test_metrics_follow_from_the_ranks(run: Path):
    record = records.read(run)
    _, ranks = records.read_ranks(run)
    assert records.check(record, ranks) == []
    recomputed = statistics.bootstrap(metrics.per_user(ranks, record.protocol.name))
    assert {name: interval.mean for name, interval in recomputed.items()} == pytest.approx(
        {name: interval.mean for name, interval in record.metrics.items()}, abs=1e-12
    )


def test_runs_of_one_table_ask_the_same_users():
    for run in RUNS:
        record = records.read(run)
        users, _ = records.read_ranks(run)
        shared = records.read_users(RESULTS, record.dataset.name, record.protocol.hash)
        assert np.array_equal(users, shared["user"].to_numpy())


def test_records_hold_no_path_of_a_machine():
    for run in RUNS:
        text = (run / "run.json").read_text()
        assert str(Path.home()) + "/" not in text
        assert json.loads(text)["provenance"]["git_commit"]
    for path in RESULTS.rglob(STUDIES):
        assert str(Path.home()) + "/" not in path.read_text()


def test_results_stay_small_and_clean():
    files = committed_files()
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    strays = [
        path
        for path in files
        if path.name not in KEPT | set(TABLES)
        and not any(path.match(kept) for kept in (*TOGETHER, "*.failed.json", STUDIES, SEARCHED, "pictures/*/*.png"))
    ]
    assert not strays
