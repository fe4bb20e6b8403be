"""One cell on a worker of a cluster, from its data to its record at home; watched in steps, by Ray or by anyone.

The worker has a home of its own or shares the command's. Where it has its own, data sets and artefacts are fetched
from the command's machine and the training state is carried there, so that a cell can go on elsewhere. Several
processes that train one cell work in the command's home, which all of them must see.
"""

import os
import pickle
import platform
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from genrec_bench.benchmark import models, records
from genrec_bench.benchmark.desk import Desk, read_tree, write_tree
from genrec_bench.benchmark.process import Work, our_environment
from genrec_bench.benchmark.pruning import epochs_of
from genrec_bench.benchmark.suite import Cell, smaller
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import Resources

CRASHES = 2  # a cell is tried again, from its checkpoint, after so many processes that ended by a signal
CARRY_EVERY_S = 15.0  # between two copies of a training state to the command's machine
CARRY_BYTES = 2**30  # a larger training state stays on its machine


@dataclass(frozen=True)
class Job:
    """A cell as it travels: what a worker has to know without reading the cell, which takes its method's libraries."""

    number: int
    cell: bytes  # pickled
    name: str
    dataset: str
    dataset_sha256: str
    method: str
    run_id: str
    smaller_run_id: str | None  # of the cell with half as much computed at a time, where it has one
    threads: int
    processes: int
    gpus: float


def job_of(number: int, cell: Cell, identity: str, dataset_sha256: str, needs: Resources, search: bool = False) -> Job:
    """A cell packed up; a search has no second try with half the batch, whose value would be another config's."""
    from genrec_bench.benchmark.execute import run_id

    less = None if search else smaller(cell)
    less_id = None if less is None else run_id(less, dataset_sha256)
    return Job(
        number=number,
        cell=pickle.dumps(cell),
        name=str(cell),
        dataset=cell.dataset,
        dataset_sha256=dataset_sha256,
        method=cell.method,
        run_id=identity,
        smaller_run_id=None if less_id == identity else less_id,
        threads=max(int(needs.cpus), 1),
        processes=int(needs.processes),
        gpus=needs.gpus,
    )


@dataclass(frozen=True)
class Options:
    """What holds for all cells of a grid."""

    keep_models: bool = False
    force: bool = False
    time_budget_s: float | None = None
    search: bool = False  # train and validate only
    environment: dict[str, str] = field(default_factory=our_environment, repr=False)  # the command's, for all but homes


@dataclass(frozen=True)
class News:
    """What a step has seen. ``done``: the cell is over, with a record of ``run_id`` or the ``reason`` why not.

    ``fault``: the command's own folders are at fault, and no cell can be recorded. ``value``: of a search.
    """

    done: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    run_id: str | None = None
    already: bool = False
    reason: str | None = None
    fault: str | None = None
    value: float | None = None


class HomeFault(Exception):
    """The command's own folders are at fault: no cell can be recorded."""


class Worker(Protocol):
    """A cell at work: `genrec_bench.benchmark.process.CellProcess`, or several processes together."""

    @property
    def signal(self) -> int | None: ...

    def news(self, timeout: float = 0.0) -> tuple[str, Any] | None: ...

    def answer(self, value: Any) -> None: ...

    def end(self) -> None: ...


def choose_home(theirs: str, mark: str) -> bool:
    """Set $GENREC_BENCH_HOME of this worker: its own, else the command's where that is seen; returns whether it is.

    A machine's own is the one that its Ray was started with.
    """
    if not os.environ.get("GENREC_BENCH_HOME") and (Path(theirs) / mark).exists():
        os.environ["GENREC_BENCH_HOME"] = theirs
    return (store.home() / mark).exists()


class Attempt:
    """A cell on this machine."""

    def __init__(self, job: Job, desk: Desk, options: Options, shared: bool, start: Callable[[Work, Job], Worker]):
        self.job, self.desk, self.options, self.shared = job, desk, options, shared
        self._apart = not shared and job.processes == 1  # works in a home of this machine's own
        self._start = start
        self._who = uuid.uuid4().hex  # whom the desk knows as the builder of an artefact
        self._worker: Worker | None = None
        self._lock: FileLock | None = None
        self._smaller = False
        self._crashes = 0
        self._building: list[str] = []
        self._wanted: str | None = None  # an artefact that somebody else is building
        self._carried: tuple[float, list[tuple[str, int]]] = (0.0, [])
        self._heard = 0.0
        self._began: float | None = None  # the first of its processes
        self._killed_for_memory = 0

    @property
    def run_id(self) -> str:
        """Of the cell as it is tried now."""
        return (self.job.smaller_run_id or "") if self._smaller else self.job.run_id

    def step(self, seconds: float) -> News:
        """Go on for at most so many seconds."""
        until = time.monotonic() + seconds
        events: list[dict[str, Any]] = []
        try:
            while True:
                left = until - time.monotonic()
                news = self._begin() if self._worker is None else self._watch(min(left, 0.5), events)
                if news is not None:
                    self.end()
                    return replace(news, events=events)
                if time.monotonic() >= until:
                    return News(events=events)
        except HomeFault as error:
            self.end()
            return News(done=True, fault=str(error))
        except (InputError, OSError) as error:  # this machine's folders
            reason = str(error) if isinstance(error, InputError) else f"Cannot write on {platform.node()}: {error}"
            self.end()
            return News(done=True, fault=reason) if self.shared else News(done=True, reason=reason)

    def end(self) -> None:
        """End the processes; the training state stays, and the desk knows that nothing is built here."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        if self._building:
            self.desk.give_up(self._building, self._who)
            self._building = []
        self._wanted = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _begin(self) -> News | None:
        """Start the cell; None while another holds it, or once it runs."""
        if not self._locked():
            time.sleep(0.2)
            return None
        place = (self.job.dataset, self.job.method, self.run_id)
        if not (self.options.search or self.options.force):
            if self.desk.recorded(*place, self.options.keep_models):
                return self._recorded(already=True)
            kept = not self.options.keep_models or models.exists(self.run_id)
            if kept and records.exists(self._finished, *place):  # but the way home was cut off
                return self._deliver()
        if self._apart:
            self._provide()
        self._killed_for_memory = _killed_for_memory()
        self._began = self._began or time.monotonic()
        self._worker = self._start(
            Work(
                self.job.cell,
                None if self.options.search else self._finished,
                self.job.threads,
                self.options.keep_models,
                self._smaller,
                others=self._apart,
                environment={**self.options.environment, "GENREC_BENCH_HOME": str(store.home())},
            ),
            self.job,
        )
        return None

    @property
    def _finished(self) -> Path:
        """A results folder on this machine, for this run alone until it has been delivered."""
        return store.home() / "ray" / "finished" / self.run_id

    def _locked(self) -> bool:
        folder = store.home() / "runs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / f"{self.run_id}.lock", thread_local=False)
            self._lock.acquire(blocking=False)
        except Timeout:
            self._lock = None
            return False
        except OSError as error:
            raise InputError(f"Cannot write in {folder}: {error.strerror}") from None
        return True

    def _provide(self) -> None:
        """Bring the data set and the training state here, where they are not."""
        meta = store.home() / "datasets" / self.job.dataset / store.META
        with FileLock(f"{_made(store.home() / 'ray')}/{self.job.dataset}.lock"):
            if not meta.is_file():
                store.save(self.desk.data_set(self.job.dataset))
        sha256 = store.load(self.job.dataset).sha256
        if sha256 != self.job.dataset_sha256:
            raise InputError(
                f"Data set {self.job.dataset} is {sha256[:12]} in {store.home()} of {platform.node()}, "
                f"and {self.job.dataset_sha256[:12]} where the command runs: prepare it again there"
            )
        work = store.home() / "runs" / self.run_id
        here = epochs_of(work) if any(work.rglob("training.pt")) else -1
        if self.desk.epochs(self.run_id) > here and (state := self.desk.state(self.run_id)):
            write_tree(work, state)

    def _watch(self, timeout: float, events: list[dict[str, Any]]) -> News | None:
        assert self._worker is not None
        if self._building and time.monotonic() - self._heard > 5:
            self.desk.builds(self._building, self._who)
            self._heard = time.monotonic()
        if self._wanted is not None:
            self._fetch(self._wanted)
        if self._apart:
            self._carry()
        heard: tuple[str, Any] = self._worker.news(max(timeout, 0.0)) or ("silence", None)
        kind, content = heard
        if kind == "event":
            events.append(content)
        if kind in ("event", "silence"):
            budget_s = self.options.time_budget_s
            if budget_s and self._began and time.monotonic() - self._began > budget_s:
                return News(done=True, reason=f"stopped after its time budget of {budget_s:g} s")
            return None
        if kind == "fetch":
            self._fetch(content)
            return None
        if kind == "offer":
            self._offer(content)
            return None
        return self._ended(kind, content)

    def _ended(self, kind: str, content: Any) -> News | None:
        """What follows from the end of the processes: None where the cell is tried again."""
        assert self._worker is not None
        number = self._worker.signal
        if kind == "done":
            self._end_worker()
            return News(done=True, value=content) if self.options.search else self._deliver()
        if kind == "memory" or (number == 9 and _killed_for_memory() > self._killed_for_memory):
            if self.job.smaller_run_id is None or self._smaller:
                return News(done=True, reason="out of memory" + ", also with half the batch" * self._smaller)
            self.end()
            self._smaller = True
            return None
        if kind == "dead" and number is not None and self._crashes < CRASHES:
            self._crashes += 1
            self._end_worker()
            self.end()
            return None
        if kind == "input" and self.shared:
            return News(done=True, fault=content)
        again = f", {CRASHES + 1} times" if kind == "dead" and number is not None else ""
        return News(done=True, reason=f"{content}{again}")

    def _end_worker(self) -> None:
        assert self._worker is not None
        self._worker.end()
        self._worker = None

    def _deliver(self) -> News:
        """Bring the record, and the model that is to be kept, home."""
        tree = read_tree(self._finished)
        if tree:  # processes on other machines have delivered theirs
            model = read_tree(models.folder(self.run_id)) if self.options.keep_models and not self.shared else None
            self.desk.deliver(self.job.dataset, self.job.method, self.run_id, tree, model)
            shutil.rmtree(self._finished, ignore_errors=True)
        return self._recorded()

    def _recorded(self, already: bool = False) -> News:
        reason = f"out of memory; run {self.run_id} computes half the batch at a time" if self._smaller else None
        return News(done=True, run_id=self.run_id, already=already, reason=reason)

    def _fetch(self, name: str) -> None:
        """Answer the cell's question for an artefact, or remember it while another builds that."""
        assert self._worker is not None
        answer = self.desk.fetch(name, self._who)
        self._wanted = name if answer == "wait" else None
        if answer == "build":
            self._building.append(name)
            self._worker.answer(False)
        elif not isinstance(answer, str):
            write_tree(store.home() / "artefacts" / name, answer)
            self._worker.answer(True)

    def _offer(self, name: str) -> None:
        assert self._worker is not None
        self.desk.offer(name, self._who, read_tree(store.home() / "artefacts" / name))
        self._building = [one for one in self._building if one != name]
        self._worker.answer(True)

    def _carry(self) -> None:
        """Copy the training state home when it has changed and is not too large."""
        since, before = self._carried
        if time.monotonic() - since < CARRY_EVERY_S:
            return
        work = store.home() / "runs" / self.run_id
        try:
            paths = sorted(work.rglob("training.pt"))
            seen = [(str(path), path.stat().st_mtime_ns) for path in paths]
            new = seen != before and sum(path.stat().st_size for path in paths) < CARRY_BYTES
            state = read_tree(work) if seen and new else {}
        except FileNotFoundError:  # the cell has its record and removes the state: there is nothing to carry
            return
        if seen:  # until there is one, look at each step
            self._carried = (time.monotonic(), seen)
        if state:
            self.desk.keep_state(self.run_id, state)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _killed_for_memory() -> int:
    """Processes that the kernel has ended for want of memory so far; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
