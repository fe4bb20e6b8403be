"""The local engine: runs the missing cells of a grid, a few at a time, each in a process of its own.

A cell that crashes, breaks the contract or outlives its time budget leaves its reason, and the grid goes on. Killed at
any moment, the same command goes on where it stopped: finished records are never touched, an unfinished cell resumes
from its checkpoint with the same result as an undisturbed run.
"""

import math
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genrec_bench.benchmark import models, records
from genrec_bench.benchmark.execute import protocol_of, run_id
from genrec_bench.benchmark.process import CellProcess, Work, usable_cores
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.suite import Cell
from genrec_bench.datasets import store
from genrec_bench.datasets.audit import audit
from genrec_bench.datasets.errors import InputError


class Interrupted(Exception):
    """SIGINT or SIGTERM: the grid stops after tidying up; running it again goes on."""


@dataclass
class Outcome:
    """What became of a grid."""

    run_ids: list[str] = field(default_factory=list)  # of every cell, finished now or before
    done: int = 0
    already: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # cell -> reason


def run_grid(
    cells: Sequence[Cell],
    results: Path,
    progress: Progress,
    time_budget_s: float | None = None,
    force: bool = False,
    jobs: int | None = None,
    keep_models: bool = False,
) -> Outcome:
    """Run every cell that has no record yet (with ``force``: every cell), ``jobs`` at a time.

    With ``keep_models`` trained methods are kept (`genrec_bench.benchmark.models`), and a cell that has a record but no
    model runs again: the same seed gives the same result.
    Raises InputError before anything runs where a data set cannot be had or the results folder cannot be written.
    """
    results = Path(results).absolute()  # a cell's process may stand in another folder
    waiting = deque(lay_out(cells, results, progress, keep_models))
    jobs = jobs or default_jobs()
    threads = max(usable_cores() // jobs, 1)
    grid = Grid(results, progress, time_budget_s, force, threads, keep_models)
    grid.outcome.run_ids = [identity for _, identity, _ in waiting]
    progress.start(len(cells))
    with stop_signals() as raise_if_stopped, progress:
        try:
            while waiting or grid.running:
                raise_if_stopped()
                for _ in range(len(waiting)):
                    if len(grid.running) >= jobs:
                        break
                    if not grid.begin(*waiting[0]):
                        waiting.append(waiting[0])  # another command runs it: look again later
                    waiting.popleft()
                grid.watch()
        finally:
            grid.stop()
    return grid.outcome


def lay_out(cells: Sequence[Cell], results: Path, progress: Progress, keep_models: bool) -> list[tuple[Cell, str, str]]:
    """Each cell with its run id and its data set's sha256, once all that the grid needs has been found to be there.

    Says what in a data set breaks the protocols.
    """
    hashes = {}
    for name in dict.fromkeys(cell.dataset for cell in cells):
        progress.say(f"data set {name}")
        data = store.load(name)
        hashes[name] = data.sha256
        for finding in audit(data):  # milliseconds: no more than reading the data
            if finding.severity == "error":
                progress.say(f"warning: data set {name}: {finding.message}; see: genrec-bench data audit {name}")
    records.check_writable(results)  # after the data sets: a misspelt one leaves no folder
    if keep_models:
        models.check_writable()
    return [(cell, run_id(cell, hashes[cell.dataset]), hashes[cell.dataset]) for cell in cells]


def default_jobs() -> int:
    """Cells at a time: one a GPU; else one a core, at most four, sharing the cores as threads."""
    import torch

    return torch.cuda.device_count() or min(usable_cores(), 4)


def lock_of(identity: str) -> FileLock:
    """What two commands with the same cell hold one after the other; raises InputError where it cannot be made."""
    folder = store.home() / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{identity}.lock").touch()
    except OSError as error:
        raise InputError(
            f"Cannot write in {folder}: {error.strerror}; point $GENREC_BENCH_HOME at a writable folder"
        ) from None
    return FileLock(folder / f"{identity}.lock")


@dataclass
class _Running:
    """A cell at work in a child process."""

    cell: Cell
    identity: str
    dataset_sha256: str
    process: CellProcess
    lock: FileLock
    deadline: float


class Grid:
    """The cells at work and what became of those before them."""

    def __init__(
        self,
        results: Path,
        progress: Progress,
        time_budget_s: float | None,
        force: bool,
        threads: int,
        keep_models: bool,
    ) -> None:
        self.results, self.progress, self.force, self.threads = results, progress, force, threads
        self.time_budget_s, self.keep_models = time_budget_s, keep_models
        self.running: list[_Running] = []
        self.outcome = Outcome()

    def begin(self, cell: Cell, identity: str, dataset_sha256: str) -> bool:
        """Start a cell's process, or count its record; False where another command is at work on it."""
        lock = lock_of(identity)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        if self.counts(cell, identity):
            lock.release()
            return True
        work = Work(pickle.dumps(cell), self.results, self.threads, self.keep_models)
        deadline = time.monotonic() + (self.time_budget_s or math.inf)
        self.running.append(_Running(cell, identity, dataset_sha256, CellProcess(work), lock, deadline))
        self.progress.begin(cell)
        return True

    def counts(self, cell: Cell, identity: str) -> bool:
        """Whether a cell need not run; it is counted then."""
        recorded = records.exists(self.results, cell.dataset, cell.method, identity)
        if self.force or not recorded or (self.keep_models and not models.exists(identity)):
            return False
        self.outcome.already += 1
        self.progress.finished(cell, "already there")
        return True

    def watch(self) -> None:
        """Wait for the next news of any running cell, and act on it."""
        if not self.running:
            time.sleep(0.2)
            return
        ready = wait([source for one in self.running for source in one.process.sources], timeout=0.5)
        for one in list(self.running):
            if any(source in ready for source in one.process.sources):
                self._hear(one)
            if one in self.running and time.monotonic() > one.deadline:
                self._end(one, f"stopped after its time budget of {self.time_budget_s:g} s")

    def _hear(self, one: _Running) -> None:
        news = one.process.news()
        if news is None:
            return
        kind, content = news
        if kind == "event":
            self.progress.event(one.cell, content)
        elif kind == "input":  # the results folder, the disk or a file is at fault, not the method: stop the grid
            raise InputError(content)
        else:
            self._end(one, content)

    def _end(self, one: _Running, reason: str | None) -> None:
        """A cell is over: recorded (no reason) or failed."""
        self._release(one)
        self.close(one.cell, one.identity, one.dataset_sha256, reason)

    def close(
        self, cell: Cell, identity: str, dataset_sha256: str, reason: str | None, instead: str | None = None
    ) -> None:
        """Count a cell that has its record, or store the ``reason`` why it has none.

        ``instead`` is the id of a run with half the batch, which has its record in this one's place.
        """
        if reason is None:
            if not records.exists(self.results, cell.dataset, cell.method, identity):
                raise InputError("The code or a data set changed while the grid ran: run the same command again")
            self.outcome.done += 1
            self.progress.finished(cell, _headline(self.results, cell, identity))
        else:
            self.outcome.failed[str(cell)] = reason
            records.write_failure(self.results, failure_of(cell, identity, reason, dataset_sha256))
            self.progress.failed(cell, reason, instead)

    def stop(self) -> None:
        """End whatever still runs; checkpoints stay."""
        for one in list(self.running):
            self._release(one)

    def _release(self, one: _Running) -> None:
        self.running.remove(one)
        one.process.end()
        one.lock.release()


def failure_of(cell: Cell, identity: str, reason: str, dataset_sha256: str) -> records.Failure:
    """The stored reason of a cell that did not run."""
    return records.Failure(
        run_id=identity,
        method=cell.method,
        label=cell.label,
        dataset=cell.dataset,
        dataset_sha256=dataset_sha256,
        protocol=protocol_of(cell),
        tier=cell.scale,
        seed=cell.seed,
        reason=reason,
    )


def _headline(results: Path, cell: Cell, identity: str) -> str:
    record = records.read(results / cell.dataset / cell.method / identity)
    name = {"full": "ndcg@10", "cand20": "hitratio@1"}[cell.rules.name]
    return f"{name} {record.metrics[name].mean:.4f}, trained in {record.cost.train_seconds:.1f} s"


@contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """Note SIGINT and SIGTERM while the grid runs; what this yields raises Interrupted after one.

    Raising in the handler could happen anywhere, such as between a process and the note that it has to be ended.
    """
    received: list[str] = []

    def raise_if_stopped() -> None:
        if received:
            raise Interrupted(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield raise_if_stopped
        return

    def stop(number: int, frame: Any) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield raise_if_stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
