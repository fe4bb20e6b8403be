"""Records survive: round trips, corruption, newer versions, a full or read-only disk, a kill between two files."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from genrec_bench.benchmark import metrics, records, statistics, storage
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.base import Ranking

RANKS = np.array([1, 0, 7, 2])
PROTOCOL = {"name": "full", "mask_seen": False, "parameters": {"max_rank": 20}, "hash": "abcdef0123456789"}


def make_record(run_id: str = "run0", ranks: np.ndarray = RANKS, **changes: Any) -> records.Record:
    values: dict[str, Any] = {
        "run_id": run_id, "method": "sasrec", "label": "sasrec", "family": "sequential", "plugin_sha256": None,
        "method_version": 1, "published_as": None, "config": {"dim": 64}, "overrides": {},
        "dataset": {"name": "toy", "sha256": "00ff", "users": 9, "items": 20, "interactions": 99},
        "protocol": PROTOCOL, "tier": "tiny", "seed": 0,
        "metrics": statistics.bootstrap(metrics.per_user(ranks, "full")), "list_metrics": {"coverage@10": 0.5},
        "slices": {"cold_target": {"users": 0, "metrics": {}}}, "validation": {"metric": "ndcg@10", "value": None},
        "evaluated_users": len(ranks),
        "cost": {"parameters": 10, "trainable_parameters": 10, "train_seconds": 1.5, "recommend_seconds": 0.1,
                 "users_per_second": 40.0, "peak_memory_mib": 100.0, "device": "cpu", "hardware": "CPU", "threads": 2},
        "provenance": {"git_commit": None, "git_dirty": None, "versions": {"numpy": "2"}, "platform": "Linux",
                       "created": "2026-01-01T00:00:00+00:00"},
    }  # fmt: skip
    return records.Record.model_validate({**values, **changes})


def make_users(count: int = 4, target: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {"user": np.arange(count) * 2, "target": target, "history_length": 5, "target_count": 1}
    ).astype("int32")


def make_failure(run_id: str = "run0", reason: str = "out of memory") -> records.Failure:
    return records.Failure.model_validate(
        {"run_id": run_id, "method": "sasrec", "label": "sasrec", "dataset": "toy", "dataset_sha256": "00ff",
         "protocol": PROTOCOL, "tier": "tiny", "seed": 0, "reason": reason}
    )  # fmt: skip


def write(results: Path, record: records.Record, **changes: Any) -> Path:
    given = {"ranks": RANKS, "rankings": None, "users": make_users(), "events_path": None, **changes}
    return records.write(results, record, **given)


def test_round_trip(tmp_path):
    events = tmp_path / "events.jsonl"
    events.write_text('{"epoch": 1}\n')
    ranking = Ranking(np.arange(8).reshape(4, 2), np.ones((4, 2), dtype=np.float32), ordered=True)
    shuffled = np.array([2, 0, 3, 1])
    record = make_record()
    folder = write(
        tmp_path / "r", record, ranks=RANKS[shuffled], users=make_users().iloc[shuffled], events_path=events,
        rankings=Ranking(ranking.items[shuffled], ranking.scores[shuffled], ordered=True),
    )  # fmt: skip
    assert folder == tmp_path / "r/toy/sasrec/run0"
    assert records.read(folder) == record
    assert json.loads((folder / "run.json").read_text())["schema"] == 1
    users, ranks = records.read_ranks(folder)
    assert users.tolist() == [0, 2, 4, 6]
    assert ranks.tolist() == RANKS.tolist()
    users, stored = records.read_rankings(folder)
    assert users.tolist() == [0, 2, 4, 6]
    assert stored.items.tolist() == ranking.items.tolist()
    assert stored.ordered
    assert records.read_users(tmp_path / "r", "toy", PROTOCOL["hash"]).equals(make_users())
    assert (tmp_path / "r/toy/users-abcdef01.parquet").exists()
    assert (folder / "events.jsonl").read_text() == '{"epoch": 1}\n'
    assert records.exists(tmp_path / "r", "toy", "sasrec", "run0")
    assert list((tmp_path / "r/.work").iterdir()) == []


def test_ranks_of_a_real_size_are_small(tmp_path):
    rng = np.random.default_rng(0)
    ranks = np.where(rng.random(22_363) < 0.08, rng.integers(1, 21, 22_363), 0)
    folder = write(tmp_path, make_record(ranks=ranks), ranks=ranks, users=make_users(22_363))
    assert (folder / "ranks.parquet").stat().st_size < 25_000
    assert records.read_ranks(folder)[1].tolist() == ranks.tolist()


def test_users_table_takes_the_facts_from_the_split():
    histories = Histories(np.array([4, 7]), np.array([0, 1, 3]), np.array([0, 1, 2], dtype=np.int32))
    held_out = SimpleNamespace(histories=histories, targets=np.array([2, 0]), candidates=None)
    table = records.users_table(held_out, np.array([5, 6, 0]))
    assert table.to_dict("list") == {
        "user": [4, 7],
        "target": [2, 0],
        "history_length": [1, 2],
        "target_count": [0, 5],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no schema version"),
        ('{"schema": 1}', "run_id: Field required"),
        ('{"schema": 2, "anything": true}', "schema 2 is newer"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_an_unreadable_record_is_one_problem_and_the_others_are_kept(tmp_path, content, message):
    write(tmp_path, make_record("good"))
    bad = write(tmp_path, make_record("bad")) / "run.json"
    bad.write_text(content)
    with pytest.raises(InputError, match=message):
        records.read(bad.parent)
    found, problems = records.read_all(tmp_path)
    assert [record.run_id for record in found] == ["good"]
    assert len(problems) == 1
    assert message in problems[0]
    assert "bad" in problems[0]


def test_a_misspelt_key_and_a_number_that_is_none_are_refused(tmp_path):
    path = write(tmp_path, make_record()) / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "extra": 1}))
    with pytest.raises(InputError, match="extra"):
        records.read(path.parent)
    content["metrics"]["recall@10"]["mean"] = float("nan")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"metrics\.recall@10\.mean"):
        records.read(path.parent)


def test_a_record_in_a_foreign_place_is_a_problem(tmp_path):
    folder = write(tmp_path, make_record())
    shutil.copytree(folder, folder.with_name("copy"))
    found, problems = records.read_all(tmp_path)
    assert len(found) == 1
    assert "belongs to toy/sasrec/run0" in problems[0]


def test_a_corrupt_record_is_run_again_and_replaced_a_newer_one_never(tmp_path):
    path = write(tmp_path, make_record()) / "run.json"
    path.write_text("{")
    assert not records.exists(tmp_path, "toy", "sasrec", "run0")
    write(tmp_path, make_record())
    assert records.exists(tmp_path, "toy", "sasrec", "run0")
    path.with_name("ranks.parquet").write_bytes(b"PAR1")
    assert not records.exists(tmp_path, "toy", "sasrec", "run0")
    path.write_text('{"schema": 7}')
    with pytest.raises(InputError, match="schema 7 is newer"):
        records.exists(tmp_path, "toy", "sasrec", "run0")
    with pytest.raises(InputError, match="schema 7 is newer"):
        write(tmp_path, make_record())
    assert path.read_text() == '{"schema": 7}'


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"recall@1 is 0\.25, but the ranks give 0\.5"):
        write(tmp_path, make_record(), ranks=np.array([1, 1, 7, 2]))
    with pytest.raises(InputError, match="evaluated_users is 4"):
        write(tmp_path, make_record(), ranks=np.array([1, 0, 7]))
    with pytest.raises(InputError, match="3 users for 4 ranks"):
        write(tmp_path, make_record(), users=make_users(3))
    impossible = statistics.Interval(mean=0.9, low=0.9, high=0.9)
    broken = make_record()
    broken = broken.model_copy(update={"metrics": {**broken.metrics, "ndcg@10": impossible}})
    with pytest.raises(InputError, match=r"ndcg@10.*outside"):
        write(tmp_path, broken)
    assert records.read_all(tmp_path) == ([], [])


def test_other_users_under_the_same_protocol_are_refused(tmp_path):
    write(tmp_path, make_record())
    with pytest.raises(InputError, match="the data set changed"):
        write(tmp_path, make_record("run1"), users=make_users(target=4))
    assert [record.run_id for record in records.read_all(tmp_path)[0]] == ["run0"]


def test_candidates_are_stored_once_and_must_stay_the_same(tmp_path):
    lists = np.array([[3, 1], [3, 2], [0, 3], [3, 4]])
    users = make_users().assign(candidates=list(lists))
    write(tmp_path / "r", make_record(), users=users)
    stored = records.read_users(tmp_path / "r", "toy", PROTOCOL["hash"])
    assert np.stack(stored["candidates"].to_list()).tolist() == lists.tolist()
    records.adopt(tmp_path / "elsewhere", tmp_path / "r", "toy", "sasrec", "run0")
    name = f"candidates-{PROTOCOL['hash'][:8]}.parquet"
    assert (tmp_path / "elsewhere" / "toy" / name).read_bytes() == (tmp_path / "r" / "toy" / name).read_bytes()
    with pytest.raises(InputError, match="has other candidates than this run of toy"):
        write(tmp_path / "r", make_record("run1"), users=make_users().assign(candidates=list(lists[:, ::-1])))


@pytest.mark.parametrize("name", ["../escape", "", ".hidden", "a/b", "a\nb"])
def test_names_cannot_leave_the_results_folder(tmp_path, name):
    with pytest.raises(InputError, match="cannot name a folder"):
        write(tmp_path, make_record(method=name))


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, monkeypatch, call):
    """Each flush to the disk fails in turn: users, rankings, ranks, run.json, the folder, its parent."""
    before = write(tmp_path, make_record("before", dataset={**make_record().dataset.model_dump(), "name": "other"}))
    ranking = Ranking(np.zeros((4, 2), dtype=np.int64), np.zeros((4, 2), dtype=np.float32))
    flushed = iter(range(100))

    def full(descriptor: int) -> None:
        if next(flushed) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device; free some space"):
        write(tmp_path, make_record(), rankings=ranking)
    monkeypatch.undo()
    assert list((tmp_path / ".work").iterdir()) == []
    assert records.read(before) == records.read_all(tmp_path)[0][0]
    # The run is whole (only the last flush failed) or absent; the same command writes it.
    folder = tmp_path / "toy/sasrec/run0"
    assert folder.exists() == (call == 5)
    assert records.read(write(tmp_path, make_record(), rankings=ranking)) == make_record()


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    records.check_writable(tmp_path / "new" / "results")
    assert list((tmp_path / "new/results/.work").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write records in .*file: .*writable folder"):
        records.check_writable(tmp_path / "file")

    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(storage.tempfile, "mkdtemp", read_only)
    with pytest.raises(InputError, match="Read-only file system"):
        write(tmp_path, make_record())


def test_a_kill_while_writing_leaves_nothing_that_reads_as_finished(tmp_path):
    """What a killed process leaves are files in .work; they are no record, and the run can be written."""
    leftover = tmp_path / ".work" / "tmpabc"
    shutil.copytree(write(tmp_path / "elsewhere", make_record()), leftover)
    assert records.read_all(tmp_path) == ([], [])
    assert not records.exists(tmp_path, "toy", "sasrec", "run0")
    write(tmp_path, make_record())
    assert len(records.read_all(tmp_path)[0]) == 1


def test_a_failure_is_kept_until_the_run_succeeds(tmp_path):
    path = records.write_failure(tmp_path, make_failure())
    assert path == tmp_path / "toy/sasrec/run0.failed.json"
    records.write_failure(tmp_path, make_failure("run1", "stopped after 25m"))
    failures, problems = records.read_failures(tmp_path)
    assert [failure.reason for failure in failures] == ["out of memory", "stopped after 25m"]
    assert problems == []
    write(tmp_path, make_record())
    assert not path.exists()
    records.write_failure(tmp_path, make_failure())  # a forced second run fails: the record stands
    assert [failure.run_id for failure in records.read_failures(tmp_path)[0]] == ["run1"]
    (tmp_path / "toy/sasrec/run1.failed.json").write_text("?")
    failures, problems = records.read_failures(tmp_path)
    assert failures == []
    assert "run1.failed.json: not JSON" in problems[0]
