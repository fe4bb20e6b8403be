"""A cell on a worker that has a home of its own, without Ray: what is fetched, carried, tried again, given up."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from genrec_bench.benchmark import attempt as attempts
from genrec_bench.benchmark import desk as desks
from genrec_bench.benchmark.attempt import Attempt, HomeFault, Job, News, Options, choose_home
from genrec_bench.benchmark.desk import Desk, read_tree, write_tree
from genrec_bench.benchmark.process import Work

JOB = Job(
    number=0, cell=b"", name="a cell", dataset="tiny", dataset_sha256="0", method="m", run_id="a" * 16,
    smaller_run_id="b" * 16, threads=1, processes=1, gpus=0.0,
)  # fmt: skip


class Scripted:
    """A worker that says what it was given to say, one thing a process."""

    def __init__(self, *ends: Any) -> None:
        self.ends = list(ends)
        self.works: list[Work] = []
        self.answers: list[Any] = []
        self.signal: int | None = None

    def start(self, work: Work, job: Job) -> "Scripted":
        self.works.append(work)
        self.said = list(self.ends.pop(0))
        return self

    def news(self, timeout: float = 0.0) -> tuple[str, Any] | None:
        if not self.said:
            return None
        kind, content = self.said.pop(0)
        self.signal = content if kind == "dead" else None
        return kind, f"its process ended by signal {content}" if kind == "dead" else content

    def answer(self, value: Any) -> None:
        self.answers.append(value)

    def end(self) -> None:
        pass


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The command's folders; afterwards this process has the worker's home."""
    made = Desk(str(tmp_path / "command"), str(tmp_path / "results"), "ray/mark")
    (tmp_path / "command" / "ray" / "mark").mkdir(parents=True)
    monkeypatch.setenv("GENREC_BENCH_HOME", str(tmp_path / "worker"))
    return made


def attempt(desk: Any, worker: Scripted, options: Options | None = None, shared: bool = True) -> Attempt:
    return Attempt(JOB, desk, options or Options(search=True), shared, worker.start)


def finish(one: Attempt) -> News:
    for _ in range(20):
        news = one.step(0.0)
        if news.done:
            return news
    raise AssertionError("it does not end")


def test_a_crash_is_tried_again_and_not_for_ever(desk):
    worker = Scripted([("dead", 11)], [("dead", 9)], [("done", 0.25)])
    assert finish(attempt(desk, worker)).value == 0.25
    assert len(worker.works) == 3
    worker = Scripted(*[[("dead", 11)]] * 3)
    assert finish(attempt(desk, worker)).reason == "its process ended by signal 11, 3 times"


def test_out_of_memory_halves_the_batch_once(desk):
    worker = Scripted([("memory", "")], [("memory", "")])
    assert finish(attempt(desk, worker)).reason == "out of memory, also with half the batch"
    assert [work.less_memory for work in worker.works] == [False, True]
    counts = iter([3, 4, 4, 4])  # the kernel has killed one more process than before: signal 9 was for memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "_killed_for_memory", lambda: next(counts))
        worker = Scripted([("dead", 9)], [("done", 0.5)])
        assert finish(attempt(desk, worker)).value == 0.5
    assert [work.less_memory for work in worker.works] == [False, True]


def test_a_method_that_fails_is_not_tried_again(desk):
    worker = Scripted([("failed", "fit raised X")])
    assert finish(attempt(desk, worker)).reason == "fit raised X"


def test_the_time_budget(desk):
    one = attempt(desk, Scripted([]), Options(search=True, time_budget_s=1e-9))
    assert finish(one).reason == "stopped after its time budget of 1e-09 s"
    through = attempt(desk, Scripted([("event", {"epoch": 1}), ("done", 0.5)]), Options(search=True, time_budget_s=60))
    through.step(0.0)
    through._began = -100.0  # what it has said by then counts
    through._worker.said.pop(0)
    assert finish(through).value == 0.5


def test_the_time_budget_is_of_all_processes_together(desk, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    worker = Scripted([("dead", 11)], [("memory", "")], [])
    one = attempt(desk, worker, Options(search=True, time_budget_s=10.0))
    for _ in range(4):  # each begins a process or sees one end
        assert not one.step(0.0).done
        now[0] += 3.0
    assert finish(one).reason == "stopped after its time budget of 10 s"
    assert len(worker.works) == 3


@pytest.mark.parametrize("kept", [False, True])
def test_a_record_without_the_model_that_is_to_be_kept(desk, tmp_path, monkeypatch, kept):
    """A kill or a full disk between the two: the cell goes on from its checkpoint, and both come home."""
    monkeypatch.setattr(attempts.records, "exists", lambda folder, *place: folder.is_relative_to(tmp_path / "worker"))
    monkeypatch.setattr(attempts.models, "exists", lambda run_id: kept)
    monkeypatch.setattr(desk, "deliver", lambda *everything: None)
    worker = Scripted([("done", None)])
    assert finish(attempt(desk, worker, Options(keep_models=True))).reason is None
    assert len(worker.works) == (0 if kept else 1)


def test_whose_disk_is_at_fault(desk):
    class Full:
        def recorded(self, *place: Any) -> bool:
            raise HomeFault("No space left")

    news = finish(attempt(Full(), Scripted(), Options()))
    assert (news.fault, news.reason) == ("No space left", None)
    full = [("input", "No space left there")]
    assert finish(attempt(desk, Scripted(full), shared=True)).fault == "No space left there"
    theirs = attempt(desk, Scripted(full), shared=False)
    theirs._provide = lambda: None  # type: ignore[method-assign] - no data set is needed to say so
    assert finish(theirs).reason == "No space left there"

    def no_room() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "dataset.json")

    theirs._provide = no_room  # type: ignore[method-assign]
    assert "No space left on device" in str(finish(theirs).reason)


def test_every_event_is_told(desk):
    told = [("event", {"epoch": 1}), ("event", {"epoch": 2}), ("done", 0.5)]
    one = attempt(desk, Scripted(told))
    news = one.step(60.0)
    assert (news.done, news.events) == (True, [{"epoch": 1}, {"epoch": 2}])


def test_two_of_one_cell_never_work_at_once(desk):
    first, second = attempt(desk, Scripted([])), attempt(desk, Scripted([("done", 1.0)]))
    first.step(0.0)
    assert not second.step(0.0).done
    assert second._worker is None
    first.end()
    assert finish(second).value == 1.0


def test_the_training_state_comes_home_and_goes_on_elsewhere(desk, tmp_path, monkeypatch):
    one = attempt(desk, Scripted([]), shared=False)
    one._provide = lambda: None  # type: ignore[method-assign] - there is no data set here
    one.step(0.0)
    state = tmp_path / "worker" / "runs" / JOB.run_id
    (state / "index").mkdir(parents=True)
    (state / "training.pt").write_bytes(b"weights")
    (state / "index" / "training.pt").write_bytes(b"codes")
    (state / "training.tmp1").write_bytes(b"half")
    one.step(0.0)
    home = tmp_path / "command" / "runs" / JOB.run_id
    assert read_tree(home) == {"training.pt": b"weights", "index/training.pt": b"codes"}
    (state / "training.pt").write_bytes(b"later weights")
    one.step(0.0)
    assert (home / "training.pt").read_bytes() == b"weights"  # not so soon again
    monkeypatch.setattr(attempts, "CARRY_EVERY_S", 0.0)
    one.step(0.0)
    assert (home / "training.pt").read_bytes() == b"later weights"
    assert desk.state(JOB.run_id) == read_tree(state)


@pytest.mark.parametrize(("here", "there", "goes_on_from"), [(1, 3, 3), (3, 1, 3), (0, 0, 0), (None, 2, 2)])
def test_a_cell_goes_on_from_the_later_state(desk, tiny, tmp_path, here, there, goes_on_from):
    """This machine's, from before its process was lost, or the one that has come home from elsewhere since."""
    desk.data_set = lambda name: tiny

    def leave(place: str, epochs: int | None) -> None:
        if epochs is not None:
            events = "".join(
                json.dumps({"epoch": number, "loss": 1.0 / number}) + "\n" for number in range(1, epochs + 1)
            )
            tree = {"training.pt": str(epochs).encode(), "events.jsonl": events.encode()}
            write_tree(tmp_path / place / "runs" / JOB.run_id, tree)

    leave("worker", here)
    leave("command", there)
    one = attempt(desk, Scripted([]), shared=False)
    one.job = Job(**{**vars(JOB), "dataset_sha256": tiny.sha256})
    one._provide()
    assert (tmp_path / "worker" / "runs" / JOB.run_id / "training.pt").read_bytes() == str(goes_on_from).encode()


def test_a_training_state_that_vanishes_while_it_is_carried(desk, tmp_path, monkeypatch):
    """The last act of a cell that has its record."""
    one = attempt(desk, Scripted([("done", 0.5)]), shared=False)
    one._provide = lambda: None  # type: ignore[method-assign] - there is no data set here
    state = tmp_path / "worker" / "runs" / JOB.run_id
    state.mkdir(parents=True)
    (state / "training.pt").write_bytes(b"weights")

    def removed(folder: Path) -> dict[str, bytes]:
        shutil.rmtree(folder)
        return {"training.pt": (folder / "training.pt").read_bytes()}

    monkeypatch.setattr(attempts, "read_tree", removed)
    assert finish(one).value == 0.5
    assert not (tmp_path / "command" / "runs").exists()


def test_an_artefact_is_built_once(desk):
    name, files = "vectors/k", {"vectors.npy": b"1"}
    assert desk.fetch(name, "a") == "build"
    assert desk.fetch(name, "b") == "wait"
    desk.offer(name, "a", files)
    assert desk.fetch(name, "b") == files
    assert desk.fetch("index/k", "a") == "build"
    desk.give_up(["index/k"], "a")  # it failed
    assert desk.fetch("index/k", "b") == "build"
    assert desk.fetch("index/k", "a") == "wait"


def test_an_artefact_whose_builder_was_lost(desk, tmp_path, monkeypatch):
    """Cells on the command's machine wait for its lock, and never ask the desk."""
    monkeypatch.setattr(desks, "BUILDS_S", 0.2)
    assert desk.fetch("index/k", "lost") == "build"
    with FileLock(tmp_path / "command" / "artefacts" / "index" / "k.lock", timeout=20):
        assert desk.fetch("index/k", "a") == "wait"
    assert desk.fetch("index/k", "a") == "build"
    desk.offer("index/k", "lost", {"late": b""})
    assert desk.fetch("index/k", "c") == {"late": b""}  # the same content, whoever built it


def test_a_cell_waits_for_the_artefact_of_another(desk, tmp_path):
    builder, waiter = Scripted([("fetch", "vectors/k")]), Scripted([("fetch", "vectors/k")])
    monkey = pytest.MonkeyPatch()
    first, second = attempt(desk, builder, shared=False), attempt(desk, waiter, shared=False)
    for one, name in ((first, "x" * 16), (second, "y" * 16)):
        one._provide = lambda: None  # type: ignore[method-assign] - there is no data set here
        monkey.setattr(one, "job", Job(**{**vars(JOB), "run_id": name}))
        one.step(0.0)
        one.step(0.0)
    assert (builder.answers, waiter.answers) == ([False], [])
    write_tree(tmp_path / "worker" / "artefacts" / "vectors" / "k", {"vectors.npy": b"1"})
    builder.said = [("offer", "vectors/k")]
    first.step(0.0)
    second.step(0.0)
    assert (builder.answers, waiter.answers) == ([False, True], [True])
    monkey.undo()


def test_which_home_a_worker_has(desk, tmp_path, monkeypatch):
    theirs = str(tmp_path / "command")
    assert not choose_home(theirs, "ray/mark")  # it has its own
    monkeypatch.delenv("GENREC_BENCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not choose_home(theirs, "ray/other")  # what is there is another's
    assert choose_home(theirs, "ray/mark")


def test_several_processes_work_in_the_commands_home(desk, monkeypatch):
    """Their watcher's machine may have a home of its own: nothing is brought there or carried from there."""
    for name in ("_provide", "_carry"):
        monkeypatch.setattr(Attempt, name, lambda self: pytest.fail("that is no work of the watcher's"))
    worker = Scripted([("event", {"epoch": 1}), ("failed", "fit raised X")])
    one = Attempt(replace(JOB, processes=2), desk, Options(force=True), False, worker.start)
    assert finish(one).reason == "fit raised X"
    assert not worker.works[0].others
