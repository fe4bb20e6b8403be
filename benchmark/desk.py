"""The command's folders, for workers on machines that do not see them: one object on the command's machine.

Records, checkpoints and kept models come home to it, data sets and artefacts are fetched from it, as bytes. It knows
nothing of Ray (`genrec_bench.benchmark.ray_engine` makes an actor of it) and nothing that is lost with it matters: all
it holds is on disk, but who builds which artefact and who ran out of memory, and they do so again.
"""

import hashlib
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genrec_bench.benchmark import models, records, storage
from genrec_bench.benchmark.pruning import epochs_of
from genrec_bench.datasets import store
from genrec_bench.datasets.interactions import InteractionData

Tree = dict[str, bytes]  # relative path -> content of a file

BUILDS_S = 30.0  # a builder that has not been heard of for so long is gone
DECIDING = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "transformers", "peft", "dgl", "pydantic")


def read_tree(folder: Path) -> Tree:
    """All files below a folder, but unfinished ones."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    trees = {path.relative_to(folder): path for path in paths if ".tmp" not in path.suffix}
    return {name.as_posix(): path.read_bytes() for name, path in trees.items() if storage.UNFINISHED not in name.parts}


def write_tree(folder: Path, tree: Tree) -> None:
    """Put the files in the place of a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp", dir=folder.parent))
    try:
        for name, content in tree.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            storage.write_bytes(unfinished / name, content)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def installed(plugins: Iterable[str]) -> dict[str, str]:
    """What must be the same wherever cells of one grid run, as it is here: libraries, our own code, plugins' files."""
    return _versions() | {f"plugin {path}": _file_version(path) for path in plugins}


def disagreements(here: dict[str, str], there: dict[str, str]) -> str:
    """What a worker (``there``) has otherwise than the command (``here``), both versions named; empty: nothing."""
    return "; ".join(
        f"{name} is {there.get(name, 'missing')} there, {version} here"
        for name, version in here.items()
        if there.get(name) != version
    )


@lru_cache
def _versions() -> dict[str, str]:
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    found |= {name: _version_of(name) for name in DECIDING}
    source = hashlib.sha256()
    for room in ("benchmark", "methods", "datasets"):
        spec = find_spec(f".{room}", "genrec_bench")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.py")):
                source.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found | {"genrec-bench": f"{_version_of('genrec-bench')} (source {source.hexdigest()[:10]})"}


def _version_of(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]  # torch 2.13.0+cpu and +cu130 may work together
    except metadata.PackageNotFoundError:
        return "missing"


def _file_version(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError:
        return "missing"


class Desk:
    """See the module. ``mark``: a file below the home by which a worker knows that it shares the folder."""

    def __init__(self, home: str, results: str, mark: str):
        os.environ["GENREC_BENCH_HOME"] = home
        self.home, self.results, self.mark = Path(home), Path(results), mark
        self._builds: dict[str, tuple[str, float, FileLock]] = {}  # artefact -> who builds, when last heard of, lock
        self._builds_lock = threading.Lock()
        self._watches = False  # whether `_end_lost_builds` runs
        self._short: set[str] = set()  # runs that several processes have had too little memory for
        self._events: dict[str, list[dict[str, Any]]] = {}  # run of several processes -> what nobody has heard yet

    def hello(self) -> tuple[str, str]:
        """The command's home, and the mark in it."""
        return str(self.home), self.mark

    def recorded(self, dataset: str, method: str, run_id: str, with_model: bool) -> bool:
        """Whether a run has its record, and its model where that is to be kept."""
        return records.exists(self.results, dataset, method, run_id) and (not with_model or models.exists(run_id))

    def deliver(self, dataset: str, method: str, run_id: str, tree: Tree, model: Tree | None = None) -> None:
        """Store a finished run; when this returns it is on the disk. Raises InputError where it cannot be."""
        with storage.writing(self.results) as folder:
            for name, content in tree.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            if model:  # before the record: a kill between the two costs nothing
                write_tree(models.folder(run_id), model)
            records.adopt(self.results, folder, dataset, method, run_id)
        shutil.rmtree(self.home / "runs" / run_id, ignore_errors=True)  # its checkpoint, if it was carried here

    def data_set(self, name: str) -> InteractionData:
        """A prepared data set."""
        return store.load(name)

    def keep_state(self, run_id: str, tree: Tree) -> None:
        """Keep the training state of an unfinished run, for whoever goes on with it."""
        write_tree(self.home / "runs" / run_id, tree)

    def state(self, run_id: str) -> Tree:
        """The training state that is kept of a run."""
        folder = self.home / "runs" / run_id
        return read_tree(folder) if folder.is_dir() else {}

    def epochs(self, run_id: str) -> int:
        """How far the training state has come that is kept of a run."""
        return epochs_of(self.home / "runs" / run_id)

    def run_out(self, run_id: str) -> None:
        """One of the processes that train a run together has no memory left."""
        self._short.add(run_id)

    def ran_out(self, run_id: str) -> bool:
        """Whether one of them has said so."""
        return run_id in self._short

    def tell(self, run_id: str, event: dict[str, Any]) -> None:
        """What the first of several processes that train a run together says."""
        self._events.setdefault(run_id, []).append(event)

    def told(self, run_id: str) -> list[dict[str, Any]]:
        """What it has said since this was asked last."""
        return self._events.pop(run_id, [])

    def fetch(self, name: str, who: str) -> Tree | str:
        """An artefact's files; or ``build``: ``who`` builds it from now on; or ``wait``: another does."""
        folder = self.home / "artefacts" / name
        if folder.exists():
            return read_tree(folder)
        with self._builds_lock:
            builder, _, lock = self._builds.get(name, ("", 0.0, None))
            if lock is not None and builder != who:
                return "wait"
            if lock is None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{folder}.lock", thread_local=False)
                try:
                    lock.acquire(blocking=False)
                except Timeout:  # a process of this machine builds it
                    return "wait"
            self._builds[name] = (who, time.monotonic(), lock)
            if not self._watches:
                self._watches = True
                threading.Thread(target=self._end_lost_builds, daemon=True).start()
        return "build"

    def _end_lost_builds(self) -> None:
        """Let others build what a lost machine was building: processes of this one wait for the lock alone."""
        while True:
            with self._builds_lock:
                last = time.monotonic() - BUILDS_S
                for name in [name for name, (_, heard, _) in self._builds.items() if heard <= last]:
                    self._builds.pop(name)[2].release()
            time.sleep(BUILDS_S / 10)

    def builds(self, names: list[str], who: str) -> None:
        """``who`` is still building these."""
        with self._builds_lock:
            for name in names:
                if name in self._builds and self._builds[name][0] == who:
                    self._builds[name] = (who, time.monotonic(), self._builds[name][2])

    def offer(self, name: str, who: str, tree: Tree) -> None:
        """Keep an artefact that ``who`` has built."""
        folder = self.home / "artefacts" / name
        if not folder.exists():
            write_tree(folder, tree)
        self.give_up([name], who)

    def give_up(self, names: list[str], who: str) -> None:
        """``who`` builds these no longer."""
        with self._builds_lock:
            for name in names:
                if name in self._builds and self._builds[name][0] == who:
                    self._builds.pop(name)[2].release()
