"""One cell, from data to record. Runs in a process of its own, so that its memory, crashes and hangs are its own."""

import ctypes
import errno
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from genrec_bench.benchmark import metrics, models, records
from genrec_bench.benchmark.evaluate import Answers, Kept, MethodFault, evaluate, validation_ranks
from genrec_bench.benchmark.protocols import ProtocolRules, selection_value
from genrec_bench.benchmark.suite import Cell
from genrec_bench.benchmark.text_scores import title_scores
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import InteractionData, TrainView
from genrec_bench.datasets.splits import HeldOut, Split
from genrec_bench.methods import distributed, registry
from genrec_bench.methods.artefacts import ArtefactCache, Others, canonical_hash
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint

Event = dict[str, Any]
VERSIONS_OF = ("genrec-bench", "torch", "numpy", "scipy", "pandas", "transformers", "peft", "dgl")


def run_id(cell: Cell, dataset_sha256: str) -> str:
    """Hash of what determines a result: the same id is the same run, on any machine."""
    identity = {
        "dataset": dataset_sha256,
        "protocol": cell.rules.hash,
        "method": cell.method,
        "version": registry.get(cell.method).version,
        "plugin": cell.plugin_sha256,
        "config": cell.config.identity(),
        "seed": cell.seed,
        "tier": cell.scale,
        **({"contents": dict(cell.contents)} if cell.contents else {}),
    }
    return canonical_hash(identity)[:16]


def execute(
    cell: Cell,
    results: Path,
    report: Callable[[Event], None],
    threads: int,
    keep_model: bool = False,
    others: Others | None = None,
) -> None:
    """Train, rank, measure and record one cell. Resumes from its checkpoint; raises MethodFault or InputError.

    Of several processes that train it together, the first does the rest.
    """
    learned = _learn(cell, report, threads, others)
    identity, method, work, events = learned.identity, learned.method, learned.work, learned.events
    if distributed.rank() > 0:
        return
    events(stage="rank")
    selected = learned.validate()  # of the model that is tested, resumed or not
    device, train_seconds = learned.device, learned.train_seconds
    data = store.load(cell.dataset)
    split = cell.rules.split(data)
    kept = Kept(work / "answers" / float(selected).hex())  # of this model, should it have been trained otherwise before
    answers = _guard(lambda: evaluate(method, split.test, cell.rules, data.num_items, kept.of("itself")), "recommend")
    variants = _guard(lambda: _variants(method, split, cell.rules, data, kept), "variants")
    record = _record(cell, identity, data, split, method, answers, selected, train_seconds, threads, device)
    record = record.model_copy(update={"variants": variants, "stages": events.stages})
    users = records.users_table(split.test, split.train.item_counts())
    records.write(results, record, answers.ranks, answers.ranking or answers.picks, users, events.path)
    if keep_model:  # after the record, before the checkpoint goes: a full disk or a kill here costs nothing
        _guard(lambda: models.keep(method, identity), "save")
    shutil.rmtree(work, ignore_errors=True)


def learn(cell: Cell, report: Callable[[Event], None], threads: int, others: Others | None = None) -> float:
    """Train one cell; returns what it reaches on validation. No test target is read: for searches.

    Its events and its checkpoint stay.
    """
    return _learn(cell, report, threads, others).validate()


@dataclass(frozen=True)
class _Learned:
    """A trained method, and how it came to be."""

    identity: str
    method: Method
    work: Path
    events: "_EventLog"
    validation: "_Validation"
    device: str
    train_seconds: float

    def validate(self) -> float:
        value: float = _guard(lambda: self.validation(self.method), "recommend")
        return value


def _learn(cell: Cell, report: Callable[[Event], None], threads: int, others: Others | None) -> _Learned:
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # sums of NumPy's and SciPy's BLAS depend on it as well
    _keep_freed_memory()
    sha256, num_items, train, valid = _learnable(cell)
    identity = run_id(cell, sha256)
    work = store.home() / "runs" / identity
    device = "cuda" if torch.cuda.is_available() else "cpu"
    events = _EventLog(work / "events.jsonl", report)
    checkpoint, artefacts = Checkpoint(work), ArtefactCache(store.home() / "artefacts", others)
    validation = _Validation(cell.rules, valid, num_items)
    context = Context(
        seed=cell.seed,
        device=device,
        scale=cell.scale,
        checkpoint=checkpoint,
        artefacts=artefacts,
        validate=validation,
        log=events if distributed.rank() == 0 else lambda **values: None,
        selection=canonical_hash([sha256, cell.rules.hash]),
    )
    _seed(cell.seed)
    method = _guard(lambda: registry.get(cell.method)(cell.config), "__init__")
    _guard(lambda: method.fit(train, context), "fit")
    train_seconds = checkpoint.elapsed_s + (0.0 if checkpoint.resumed else artefacts.spared_s)
    return _Learned(identity, method, work, events, validation, device, train_seconds)


def _keep_freed_memory() -> None:
    """Let freed blocks of up to 32 MiB be used again instead of going back to the kernel (glibc; elsewhere no effect).

    By default every large temporary is mapped and cleared anew, on a CPU over a quarter of SASRec's training time.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, its largest value
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def _learnable(cell: Cell) -> tuple[str, int, TrainView, HeldOut]:
    """Data set hash, item count, training view, validation. The process holds no test target while a method learns."""
    data = store.load(cell.dataset)
    split = cell.rules.split(data)
    return data.sha256, data.num_items, split.train, split.valid


def _guard(step: Callable[[], Any], name: str) -> Any:
    """Run a method's own code; whatever it raises becomes the reason of its empty cell."""
    try:
        return step()
    except (MethodFault, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # no fault of the method's
            raise InputError(
                f"No space left under {store.home()}: free some, then run the same command again"
            ) from error
        if isinstance(error, InputError):  # says by itself what is wrong with the cell's settings or data
            raise MethodFault(str(error)) from error
        raise MethodFault(f"{name} {raised(error)}") from error


def raised(error: Exception) -> str:
    """``raised ValueError: boom (plugin.py:24)``, on one line."""
    return f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]} ({_innermost(error)})"


def _innermost(error: BaseException) -> str:
    """``file:line`` where the error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown line"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - outside methods may use the global generator
    torch.manual_seed(seed)


class _Validation:
    """``context.validate``: a number for a method, the targets kept here."""

    def __init__(self, rules: ProtocolRules, valid: HeldOut, num_items: int):
        self._rules, self._valid, self._num_items = rules, valid, num_items

    def __call__(self, method: Method, users: int = 0) -> float:
        valid = self._valid.sample(users) if users else self._valid
        return selection_value(self._rules, validation_ranks(method, valid, self._rules, self._num_items))


def _variants(
    method: Method, split: Split, rules: ProtocolRules, data: InteractionData, kept: Kept
) -> list[records.Variant]:
    """The method's other states, each ranked and asked for titles."""
    found = []
    for name, variant in method.variants().items():
        answers = evaluate(variant, split.test, rules, data.num_items, kept.of(f"variant {name}"))
        values = metrics.summarise(answers, split, rules.name)["metrics"]
        found.append(records.Variant(name=name, metrics=values, text=title_scores(variant, data.items)))
    return found


class _EventLog:
    """Training events: appended to a file, and reported to whoever watches; ``stages`` is the last of each stage."""

    def __init__(self, path: Path, report: Callable[[Event], None]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._report = path, report
        self.stages: dict[str, Event] = {}

    def __call__(self, **values: Any) -> None:
        if "epoch" not in values and "stage" in values and len(values) > 1:
            self.stages[values["stage"]] = {key: value for key, value in values.items() if key != "stage"}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")
        self._report(values)


def _record(
    cell: Cell,
    identity: str,
    data: InteractionData,
    split: Split,
    method: Method,
    answers: Answers,
    validation: float,
    train_seconds: float,
    threads: int,
    device: str,
) -> records.Record:
    """Everything that is known of a finished run."""
    parameters, trainable = _guard(method.parameters, "parameters")
    defaults = type(method.config)().model_dump(mode="json")
    config = method.config.model_dump(mode="json")
    users, processes = len(answers.ranks), distributed.world_size()
    return records.Record(
        run_id=identity,
        method=cell.method,
        label=cell.label,
        family=method.family,
        plugin_sha256=cell.plugin_sha256,
        method_version=method.version,
        published_as=method.published_as,
        published_variant=method.published_variant(),
        config=config,
        overrides={key: value for key, value in config.items() if value != defaults[key]},
        dataset=records.Dataset(
            name=data.name,
            sha256=data.sha256,
            users=data.num_users,
            items=data.num_items,
            interactions=data.num_interactions,
        ),
        protocol=protocol_of(cell),
        tier=cell.scale,
        seed=cell.seed,
        **metrics.summarise(answers, split, cell.rules.name),
        validation=records.Validation(metric=cell.rules.selection_metric, value=validation),
        evaluated_users=users,
        cost=records.Cost(
            parameters=parameters,
            trainable_parameters=trainable,
            train_seconds=round(train_seconds, 3),
            recommend_seconds=round(answers.seconds, 3),
            users_per_second=round(users / max(answers.seconds, 1e-9), 1),
            peak_memory_mib=round(_peak_memory_mib(device), 1),
            device=device,
            hardware=f"{processes} x {_hardware(device)}" if processes > 1 else _hardware(device),
            threads=threads,
        ),
        provenance=_provenance(),
    )


def protocol_of(cell: Cell) -> records.Protocol:
    """A cell's rules as they stand in records."""
    rules = cell.rules
    return records.Protocol(name=rules.name, mask_seen=rules.mask_seen, parameters=rules.model_dump(), hash=rules.hash)


def _peak_memory_mib(device: str) -> float:
    """Peak of this process (resident, CPU) or of the GPU's allocations."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        models = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        models = []
    name = models[0] if models else platform.processor() or "CPU"  # cloud machines hide the model: say what it can
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


@lru_cache
def _provenance() -> records.Provenance:
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return records.Provenance(
        git_commit=git("rev-parse", "HEAD"),
        git_dirty=None if status is None else bool(status),
        versions={"python": platform.python_version(), **_versions()},
        platform=platform.platform(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
