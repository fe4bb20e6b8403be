"""Packed runs: the round trip, every way to tamper with one, and packages that would harm who opens them."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from genrec_bench.benchmark import evaluate, metrics, records, standings, submission
from genrec_bench.benchmark.evaluate import picked_ranks, picks
from genrec_bench.benchmark.execute import execute
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.protocols import protocol
from genrec_bench.benchmark.runner import run_grid
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import Choice


@pytest.fixture
def runs(stored: str, tmp_path: Path) -> dict[str, Path]:
    """A run of each protocol, made as `run` makes them."""
    suite = make_suite({"methods": ["item_knn"], "datasets": [stored], "protocols": ["full", "cand20"]})
    found = {}
    for cell in cells(suite):
        execute(cell, tmp_path / "results", lambda event: None, threads=1)
    for path in (tmp_path / "results").rglob("run.json"):
        found[records.read(path.parent).protocol.name] = path.parent
    return found


@pytest.fixture
def run(runs: dict[str, Path]) -> Path:
    return runs["full"]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "run.json").read_text())
    change(content)
    (folder / "run.json").write_text(json.dumps(content))


def rewrite(folder: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_parquet(folder / name)
    pa.parquet.write_table(pa.Table.from_pandas(change(table), preserve_index=False), folder / name)


@pytest.mark.parametrize("kind", ["full", "cand20"])
def test_round_trip(runs, kind, tmp_path, command):
    code, said, _ = command("submit", runs[kind], "--output", tmp_path)
    package = Path(said.strip())
    assert code == 0
    assert package.name.startswith("item_knn-tiny-")
    assert package.read_bytes() == submission.pack(runs[kind], tmp_path / "again.zip").read_bytes()
    code, said, _ = command("verify", package, "--add", "--results", tmp_path / "board")
    assert code == 0
    assert said.startswith("Verified: item_knn, seed 0, on tiny")
    own, stored = records.read(runs[kind]), records.read(Path(said.splitlines()[-1]))
    assert stored == own.model_copy(update={"outside": True, "run_id": f"{own.run_id}-outside", "stages": {}})
    assert "item_knn (outside)" in standings.render(tmp_path / "board", "text")
    assert json.loads(standings.render(tmp_path / "board", "json"))[0]["outside"]
    assert '<span class="tag">outside</span>' in standings.render(tmp_path / "board", "html")
    code, _, err = command("verify", package, "--add", "--results", tmp_path / "board")
    assert code == 2
    assert "has a record of run" in err


def test_negatives_from_outside_the_window_are_verified_and_stand_apart(runs, stored, tmp_path, command):
    """LLaRA's released sampler is a protocol of its own: other rules, another table, another heading."""
    results = runs["cand20"].parents[2]
    windowed = {"methods": ["item_knn"], "datasets": [stored], "protocols": ["cand20"], "exclude": "window"}
    for cell in cells(make_suite(windowed)):
        execute(cell, results, lambda event: None, threads=1)
    (folder,) = {path.parent for path in results.rglob("run.json")} - set(runs.values())
    code, said, _ = command("submit", folder, "--output", tmp_path)
    assert code == 0
    code, said, _ = command("verify", said.strip(), "--add", "--results", tmp_path / "board")
    assert code == 0
    edit(folder, lambda content: content["protocol"].update(parameters={"name": "cand20"}))
    with pytest.raises(InputError, match="Refused: protocol"):
        submission.verify(folder)
    records.adopt(tmp_path / "board", results, stored, "item_knn", runs["cand20"].name)
    shown = standings.render(tmp_path / "board", "text")
    assert sum("candidate" in line for line in shown.splitlines()) == 2
    assert sum("negatives from outside the window" in line for line in shown.splitlines()) == 1


def test_an_outside_row_stands_beside_ours_and_apart(run, tmp_path):
    ours = run.parents[2]
    verified = submission.verify(run)
    submission.add(verified, ours)  # the same settings and seed as ours
    rows = json.loads(standings.render(ours, "json"))
    assert {(row["name"], row["outside"], tuple(row["seeds"])) for row in rows if row["protocol"] == "full"} == {
        ("item_knn", False, (0,)), ("item_knn (outside)", True, (0,)),
    }  # fmt: skip


def test_an_outside_run_is_not_taken_for_ours(run, stored, tmp_path):
    board = tmp_path / "board"
    submission.add(submission.verify(run), board)
    suite = make_suite({"methods": ["item_knn"], "datasets": [stored]})
    outcome = run_grid(cells(suite), board, Progress(quiet=True))
    assert (outcome.done, outcome.already) == (1, 0)


def swap_first_two(table: pd.DataFrame) -> pd.DataFrame:
    """Put every user's held-out item first in one list that has it further down."""
    table = table.copy()
    table["items"] = [np.concatenate([row[1:2], row[:1], row[2:]]) for row in table["items"]]
    return table


def promote(folder: Path) -> None:
    """Rewrite lists and ranks so that they agree, every first item exchanged; the metrics stay."""
    split = protocol("full").split(store.load("tiny"))
    rewrite(folder, "rankings.parquet", swap_first_two)
    _, ranking = records.read_rankings(folder)
    test = split.test
    ranks = metrics.target_ranks(ranking.items, ranking.scores, test.targets, ordered=ranking.ordered)
    rewrite(folder, "ranks.parquet", lambda table: table.assign(rank=ranks.astype("int16")))


def twice(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(items=[np.concatenate([row[:1], row[:1], row[2:]]) for row in table["items"]])


def told(**values: Any) -> Callable[[Path], None]:
    """Change what the record says, at its top level or in one of its parts."""

    def change(record: dict[str, Any]) -> None:
        for key, value in values.items():
            record[key] = {**record[key], **value} if isinstance(value, dict) else value

    return lambda folder: edit(folder, change)


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "metric": (
        lambda f: edit(f, lambda r: r["metrics"]["ndcg@10"].update(mean=0.9)),
        "ndcg@10 is 0.9, but the rankings",
    ),
    "interval": (
        lambda f: edit(f, lambda r: r["metrics"]["recall@10"].update(low=0.0)),
        "recall@10 has the interval 0.0",
    ),
    "slice": (
        lambda f: edit(f, lambda r: r["slices"]["head_target"]["metrics"]["recall@10"].update(mean=0.9)),
        "head_target: recall@10 is 0.9",
    ),
    "list metric": (told(list_metrics={"coverage@10": 1.5}), "coverage@10 is 1.5"),
    "users": (told(evaluated_users=7), "states 7 users"),
    "rank": (
        lambda f: rewrite(f, "ranks.parquet", lambda t: t.assign(rank=np.ones(len(t), "int16"))),
        "has rank 1, but the list gives",
    ),
    "ranking": (lambda f: rewrite(f, "rankings.parquet", swap_first_two), "scores that rise|has rank|but the rankings"),
    "item twice": (lambda f: rewrite(f, "rankings.parquet", twice), "rankings: a list holds item"),
    "short list": (
        lambda f: rewrite(f, "rankings.parquet", lambda t: t.assign(items=[row[:5] for row in t["items"]])),
        r"expected \(60, 21\)",
    ),
    "other users": (
        lambda f: rewrite(f, "rankings.parquet", lambda t: t.assign(user=t["user"] + 1)),
        "not of the 60 test",
    ),
    "fewer users": (lambda f: rewrite(f, "rankings.parquet", lambda t: t.iloc[:-1]), "has 59 rows"),
    "data hash": (told(dataset={"sha256": "00ff"}), "data set: the run is of tiny with sha256 00ff"),
    "data counts": (told(dataset={"users": 10}), "does not have"),
    "protocol hash": (told(protocol={"hash": "00ff" * 16}), "protocol: the run has full"),
    "protocol": (told(protocol={"mask_seen": True}), "protocol: the run has full"),
    "no rankings": (lambda f: (f / "rankings.parquet").unlink(), "has no rankings.parquet"),
    "name": (told(method="../../up"), "cannot name a folder"),
    "newer schema": (told(schema=99), "newer than this genrec-bench"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused(run, what):
    tamper, reason = TAMPERED[what]
    submission.verify(run)
    tamper(run)
    with pytest.raises(InputError, match=reason):
        submission.verify(run)


def test_lists_and_ranks_that_agree_do_not_save_the_metrics(run):
    before = records.read_ranks(run)[1]
    rewrite(run, "rankings.parquet", lambda t: t.assign(ordered=True, scores=[np.zeros(21, "float32")] * len(t)))
    promote(run)
    assert not np.array_equal(records.read_ranks(run)[1], before)
    with pytest.raises(InputError, match="but the rankings give"):
        submission.verify(run)


def test_picks_of_the_candidate_protocol_are_verified(runs):
    folder = runs["cand20"]
    submission.verify(folder)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    rewrite(folder, "rankings.parquet", lambda t: t.assign(items=[row[::-1] for row in t["items"]]))
    with pytest.raises(InputError, match=r"has rank"):
        submission.verify(folder)
    rewrite(kept, "rankings.parquet", lambda t: t.assign(items=[row + 1 for row in t["items"]]))
    with pytest.raises(InputError, match="not the candidates"):
        submission.verify(kept)


@pytest.mark.parametrize("scored", [True, False])
def test_stored_picks_give_the_same_ranks(tiny, scored):
    """Ties, invalid answers and hits, drawn at random."""
    test = protocol("cand20").split(tiny).test
    assert test.candidates is not None
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, test.candidates.shape).astype(np.float32)
    picked = np.where(rng.random(len(scores)) < 0.2, -1, scores.argmax(1))
    choice = Choice(picked, scores if scored else None)
    column = (test.candidates == test.targets[:, None]).argmax(1)
    expected = metrics.candidate_ranks(choice.picked, choice.scores, column, test.candidates.shape[1])
    assert picked_ranks(picks(choice, test.candidates), test).tolist() == expected.tolist()
    with pytest.raises(evaluate.MethodFault, match="candidate"):
        picked_ranks(evaluate.Ranking(np.full((len(scores), 1), 10**6), np.zeros((len(scores), 1))), test)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "run.json/../../x", "extra.txt"])
def test_packages_with_other_names_are_refused(run, tmp_path, name):
    package = submission.pack(run, tmp_path / "p.zip")
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr(name, "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"a package holds run\.json"):
        submission.verify(package)
    assert sorted(tmp_path.rglob("*")) == before


def test_packages_that_would_fill_the_memory_are_refused(run, tmp_path):
    package = tmp_path / "bomb.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in submission.LIMITS:
            archive.writestr(name, b"0" * (5 * 2**20))
    assert package.stat().st_size < 2**15
    with pytest.raises(InputError, match=r"run\.json is larger than 4 MiB"):
        submission.verify(package)
    long, zeros = np.zeros(10_000, "int64"), np.zeros(10_000, "float32")
    rewrite(run, "rankings.parquet", lambda t: t.assign(items=[long] * len(t), scores=[zeros] * len(t)))
    assert (run / "rankings.parquet").stat().st_size < 2**15  # 600,000 entries of each column
    with pytest.raises(InputError, match=r"rankings\.parquet has 60 rows of 600,000 entries, expected 60 users"):
        submission.verify(run)


@pytest.mark.parametrize("where", ["cost", "config"])
def test_numbers_that_json_does_not_have_are_refused(run, where):
    key = {"cost": "train_seconds", "config": "decay"}[where]
    edit(run, lambda record: record[where].update({key: float("inf")}))
    with pytest.raises(InputError, match=r"finite number|number that JSON does not have"):
        submission.verify(run)


def test_a_label_cannot_forge_a_verdict(run):
    edit(run, lambda record: record.update(label="x\nVerified: \x1b[32mall"))
    assert str(submission.verify(run)).startswith("Verified: x Verified: ?[32mall, seed 0")


@pytest.mark.parametrize("damage", ["no zip", "cut", "twice", "flipped"])
def test_damaged_packages_are_refused(run, tmp_path, damage):
    package = submission.pack(run, tmp_path / "p.zip")
    content = package.read_bytes()
    if damage == "no zip":
        package.write_bytes(b"hello")
    elif damage == "cut":
        package.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        package.write_bytes(content[:300] + bytes(255 - byte for byte in content[300:320]) + content[320:])
    else:
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(package, "a") as archive:
            archive.writestr("run.json", "{}")
    with pytest.raises(InputError):
        submission.verify(package)
    with pytest.raises(InputError, match="absent"):
        submission.verify(tmp_path / "absent.zip")
