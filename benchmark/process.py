"""A cell's process: its memory, crashes and hangs are its own, and all that it has started ends with it.

It is forked from a server that has imported torch but run nothing, so that a cell starts in milliseconds. This module
itself imports nothing heavy: whoever only watches cells stays small.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError

# of libraries that are loaded later; `execute` tells those that are loaded already
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Cores that this process may use: its job's on a cluster's node, its container's, or those that taskset names."""
    from joblib import cpu_count

    return int(cpu_count())


def our_environment() -> dict[str, str]:
    """Our variables as they are now: the server that cells are forked from may know older ones, and no later ones."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("GENREC_BENCH_")}
    return {**ours, "GENREC_BENCH_HOME": str(store.home())}


def take_over(environment: dict[str, str]) -> None:
    """Make these our variables, in the place of all that this process has."""
    for name in [name for name in os.environ if name.startswith("GENREC_BENCH_")]:
        del os.environ[name]
    os.environ.update(environment)


@dataclass(frozen=True)
class Work:
    """What a cell's process is to do."""

    cell: bytes  # pickled: only where a plugin has been loaded can it be read
    results: Path | None  # where its record goes; None: train and validate only, for a search
    threads: int
    keep_model: bool = False
    less_memory: bool = False  # compute half as much at a time (`MethodConfig.less_memory`)
    others: bool = False  # ask whoever started it for artefacts (`genrec_bench.methods.artefacts.Others`)
    environment: dict[str, str] = field(default_factory=our_environment, repr=False)  # may hold an API's key


class CellProcess:
    """A cell at work. ``news`` tells what it says and how it ends: what is neither an event nor a question is its end.

    ``("event", values)``; ``("done", value)``; ``("failed", reason)``; ``("memory", reason)``: the memory was not
    enough; ``("input", message)``: a folder, disk or file is at fault; ``("dead", reason)``: it ended without a word;
    ``("fetch", name)`` and ``("offer", name)``, which `answer` answers.
    """

    def __init__(self, work: Work, import_main: bool = True) -> None:
        """``import_main``: whether the process knows what the program that starts it has registered."""
        context = _context()
        self._connection, theirs = context.Pipe(duplex=True)
        self._child = context.Process(target=_body, args=(work, theirs))
        with _interrupts_held(), nullcontext() if import_main else _without_main():
            self._child.start()
        theirs.close()

    @property
    def sources(self) -> list[Any]:
        """What `multiprocessing.connection.wait` waits for: a dead process is not always the end of its pipe.

        Processes that it started may hold that open.
        """
        return [self._connection, self._child.sentinel]

    @property
    def signal(self) -> int | None:
        """The signal that ended it, or the server that it was forked from, which reads as exit code 255."""
        code = self._child.exitcode
        if code == 255:
            return int(signal.SIGTERM)
        return -code if code is not None and code < 0 else None

    def news(self, timeout: float = 0.0) -> tuple[str, Any] | None:
        """What it says next; None where it says nothing within ``timeout`` seconds."""
        if not wait(self.sources, timeout):
            return None
        try:
            if self._connection.poll():
                kind, content = self._connection.recv()
                return kind, content
        except (EOFError, OSError):  # nothing more to read, or a message that was cut off
            pass
        self._child.join()
        code = self._child.exitcode
        return "dead", f"its process ended by signal {-code}" if code < 0 else f"its process ended with code {code}"

    def answer(self, value: Any) -> None:
        """Reply to its last question."""
        try:
            self._connection.send(value)
        except OSError:  # it is gone, as `news` will say
            return

    def end(self) -> None:
        """End it and all that it has started."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (AttributeError, OSError):  # no groups on this system, none yet, or nobody left in it
            if self._child.is_alive():
                self._child.kill()
        self._child.join()
        self._connection.close()


class _Asking:
    """`genrec_bench.methods.artefacts.Others` of a process whose starter answers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fetch(self, name: str) -> bool:
        self._connection.send(("fetch", name))
        return bool(self._connection.recv())

    def offer(self, name: str) -> None:
        self._connection.send(("offer", name))
        self._connection.recv()


def _body(work: Work, connection: Connection) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that whatever the method starts can be ended with it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    take_over(work.environment)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(work.threads)))
    from genrec_bench.benchmark.execute import MethodFault, execute, learn
    from genrec_bench.benchmark.suite import smaller

    def report(event: dict[str, Any]) -> None:
        connection.send(("event", event))

    value = None
    try:
        cell = pickle.loads(work.cell)
        cell = (smaller(cell) or cell) if work.less_memory else cell
        others = _Asking(connection) if work.others else None
        if work.results is None:
            value = learn(cell, report, work.threads, others)
        else:
            execute(cell, work.results, report, work.threads, work.keep_model, others)
    except MethodFault as error:
        connection.send(("failed", str(error)))
    except MemoryError:
        connection.send(("memory", "out of memory"))
    except InputError as error:
        connection.send(("input", str(error)))
    except OSError as error:  # the method's own are MethodFaults
        connection.send(("input", f"Cannot work under {store.home()}: {error}"))
    else:
        connection.send(("done", value))


def _context() -> Any:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genrec_bench.benchmark.execute", "genrec_bench.methods.next_item"])
    return context


def _die_with_parent() -> None:
    """End this process when the command that started it is gone (kill -9): two of one cell must never write."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # its own group
    os._exit(1)


@contextmanager
def _without_main() -> Iterator[None]:
    """Spare the child the import of the program that starts it, where that is large and none of it is needed."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, also from the server that cells are forked from: it starts with the first of them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it lifts the hold when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
