"""What a run leaves behind: one folder a run, complete or absent, self-describing, and read back with checks.

    results/<dataset>/<method>/<run_id>/run.json          who, what, on what, how good, at what cost
                                        ranks.parquet     user, rank of the held-out item
                                        rankings.parquet  lists and scores (not in git)
                                        events.jsonl      training curve (not in git)
    results/<dataset>/<method>/<run_id>.failed.json       why a cell is empty
    results/<dataset>/users-<protocol hash>.parquet       facts of the evaluated users, shared by the runs
                      candidates-<protocol hash>.parquet  what each was asked to choose from, under such a protocol

A corrupt record is an InputError for whoever asks for it, and a line among the problems for whoever reads all.
"""

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
)

from genrec_bench.benchmark import metrics, storage
from genrec_bench.benchmark.metrics import Slice
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.datasets.errors import InputError

if TYPE_CHECKING:  # they import torch, which a table does not need
    from genrec_bench.datasets.splits import HeldOut
    from genrec_bench.methods.base import Ranking

SCHEMA_VERSION: Literal[1] = 1
USER_COLUMNS = ("user", "target", "history_length", "target_count")
CANDIDATE_COLUMNS = ("user", "candidates")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Dataset(_Part):
    """The data set as it was when the run read it."""

    name: str
    sha256: str
    users: int
    items: int
    interactions: int


class Protocol(_Part):
    """The rules under which the run was measured; runs compare only under equal hashes."""

    name: Literal["full", "cand20"]
    mask_seen: bool
    parameters: dict[str, JsonValue]
    hash: str


class Validation(_Part):
    """What the tested model reaches on validation; None where that is unknown."""

    metric: str
    value: FiniteFloat | None


class Cost(_Part):
    """What the run took. Peak memory is of the process (CPU) or of the accelerator's allocations."""

    parameters: NonNegativeInt
    trainable_parameters: NonNegativeInt
    train_seconds: NonNegativeFloat
    recommend_seconds: NonNegativeFloat
    users_per_second: NonNegativeFloat
    peak_memory_mib: NonNegativeFloat
    device: str
    hardware: str
    threads: int


class Provenance(_Part):
    """Where the result came from."""

    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    platform: str
    created: str  # ISO 8601, UTC


class Variant(_Part):
    """Another state of the same weights, ranked as the run was; ``text`` is of the titles it writes."""

    name: str
    metrics: dict[str, Interval]
    text: dict[str, FiniteFloat]


class Record(_Part):
    """The content of run.json. ``label`` names the row of the table; ``overrides`` differ from the class defaults.

    ``stages`` is what each stage before training reported: source of the vectors, quality of the index, the model.
    """

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    run_id: str
    method: str
    label: str
    family: str
    plugin_sha256: str | None
    method_version: int
    published_as: str | None
    published_variant: str | None = None
    config: dict[str, JsonValue]
    overrides: dict[str, JsonValue]
    dataset: Dataset
    protocol: Protocol
    tier: str
    seed: int
    metrics: dict[str, Interval]
    list_metrics: dict[str, FiniteFloat]
    slices: dict[str, Slice]
    validation: Validation
    evaluated_users: int
    cost: Cost
    provenance: Provenance
    variants: list[Variant] = []
    stages: dict[str, dict[str, JsonValue]] = {}
    outside: bool = False  # verified from a package of somebody else's, not run here

    def curves(self) -> dict[str, dict[str, float]]:
        """What validation said of each value that the method tried: the stages whose keys are all numbers."""
        return {
            stage: {value: float(str(score)) for value, score in values.items()}
            for stage, values in self.stages.items()
            if len(values) > 2 and all(_is_number(text) for pair in values.items() for text in pair)
        }


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(str(value)))
    except ValueError:
        return False


class Failure(_Part):
    """Why a cell is empty."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    run_id: str
    method: str
    label: str
    dataset: str
    dataset_sha256: str
    protocol: Protocol
    tier: str
    seed: int
    reason: str


Stored = TypeVar("Stored", Record, Failure)


def run_folder(results_dir: Path, dataset: str, method: str, run_id: str) -> Path:
    """Folder of one run; InputError for a name that could leave ``results_dir``."""
    for name in (dataset, method, run_id):
        if not SAFE_NAME.fullmatch(name):
            raise InputError(f"'{name}' cannot name a folder of results: letters, digits and . _ + - only")
    return Path(results_dir) / dataset / method / run_id


def users_table(held_out: "HeldOut", item_counts: np.ndarray) -> pd.DataFrame:
    """Facts of evaluated users, one row each: ``item_counts`` (N,) are the training interactions of the items.

    Where the protocol has candidates, their item numbers stand in a column of lists.
    """
    table = pd.DataFrame(
        {
            "user": held_out.histories.users,
            "target": held_out.targets,
            "history_length": held_out.histories.lengths,
            "target_count": item_counts[held_out.targets],
        }
    ).astype("int32")
    return table if held_out.candidates is None else table.assign(candidates=list(held_out.candidates))


def check_writable(results_dir: Path) -> None:
    """Raise InputError before anything is trained where records could not be written."""
    with storage.writing(results_dir) as unfinished:
        storage.write_bytes(unfinished / "probe", b"")


def write(
    results_dir: Path,
    record: Record,
    ranks: np.ndarray,
    rankings: "Ranking | None",
    users: pd.DataFrame,
    events_path: Path | None = None,
) -> Path:
    """Store a finished run; returns its folder. ``ranks`` (U,), ``rankings`` and ``users`` have the same rows.

    Raises InputError, and leaves all other records as they were, where the numbers contradict each other, the shared
    users differ from the stored ones, or the disk refuses. A record of the same run id is replaced.
    """
    folder = run_folder(results_dir, record.dataset.name, record.method, record.run_id)
    violations = check(record, ranks)
    if violations or len(users) != len(ranks):
        violations = violations or [f"{len(users)} users for {len(ranks)} ranks"]
        raise InputError(f"Run {record.run_id} of {record.method} is refused: {'; '.join(violations)}")
    _refuse_newer(folder)
    order = np.argsort(users["user"].to_numpy(), kind="stable")
    _write_users(results_dir, record, users.iloc[order].reset_index(drop=True))
    user = users["user"].to_numpy()[order]
    with storage.writing(results_dir) as unfinished:
        if rankings is not None:
            storage.write_bytes(unfinished / "rankings.parquet", _rankings_bytes(user, rankings, order))
        if events_path is not None and events_path.exists():
            storage.write_bytes(unfinished / "events.jsonl", events_path.read_bytes())
        storage.write_bytes(unfinished / "ranks.parquet", _ranks_bytes(user, np.asarray(ranks)[order]))
        storage.write_bytes(unfinished / "run.json", _json_bytes(record))
        storage.publish(unfinished, folder)
        _failure_path(folder).unlink(missing_ok=True)
    return folder


def adopt(results_dir: Path, other_dir: Path, dataset: str, method: str, run_id: str) -> Path:
    """Store a run that another results folder holds, checked as a new one is; returns its folder."""
    folder = run_folder(other_dir, dataset, method, run_id)
    record = read(folder)
    _, ranks = read_ranks(folder)
    rankings = read_rankings(folder)[1] if (folder / "rankings.parquet").exists() else None
    users = read_users(other_dir, dataset, record.protocol.hash)
    return write(results_dir, record, ranks, rankings, users, folder / "events.jsonl")


def check(record: Record, ranks: np.ndarray) -> list[str]:
    """What contradicts itself: impossible numbers, or metrics that do not follow from ``ranks`` (U,)."""
    stated = {name: interval.mean for name, interval in record.metrics.items()}
    given = metrics.means(ranks, record.protocol.name)
    wrong = [
        f"{name} is {stated.get(name)}, but the ranks give {given.get(name)}"
        for name in metrics.by_rank(record.protocol.name)
        if (name in stated) != (name in given) or abs(stated.get(name, 0.0) - given.get(name, 0.0)) > 1e-9
    ]
    if record.evaluated_users != len(ranks):
        wrong.insert(0, f"evaluated_users is {record.evaluated_users}, but there are {len(ranks)} ranks")
    # Metrics that follow from the ranks are possible: only others need the bounds.
    return metrics.check_arithmetic(stated) + wrong if wrong or stated.keys() != given.keys() else []


def exists(results_dir: Path, dataset: str, method: str, run_id: str) -> bool:
    """Whether the run is finished. A corrupt record is not; one of a newer version raises InputError."""
    folder = run_folder(results_dir, dataset, method, run_id)
    if not (folder / "run.json").exists():
        return False
    _refuse_newer(folder)
    try:
        read(folder)
        read_ranks(folder)
    except InputError:
        return False
    return True


def read(run_dir: Path) -> Record:
    """The record of one run; InputError where it is missing, corrupt or newer than this version."""
    return _read_model(Path(run_dir) / "run.json", Record)


def read_ranks(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Users (U,) int64 ascending, and the rank of each one's held-out item (U,) int64."""
    table = storage.read_table(Path(run_dir) / "ranks.parquet", ("user", "rank"))  # without pandas: there are thousands
    return table["user"].to_numpy().astype(np.int64), table["rank"].to_numpy().astype(np.int64)


def read_rankings(run_dir: Path) -> "tuple[np.ndarray, Ranking]":
    """Users (U,) int64 ascending, and the lists they were given, one row each."""
    from genrec_bench.methods.base import Ranking

    path = Path(run_dir) / "rankings.parquet"
    table = storage.read_parquet(path, ("user", "items", "scores", "ordered"))
    if not len(table):
        raise InputError(f"{path}: no rows")
    items, scores = np.stack(table["items"].to_list()), np.stack(table["scores"].to_list())
    ranking = Ranking(items.astype(np.int64), scores.astype(np.float32), bool(table["ordered"].iloc[0]))
    return table["user"].to_numpy(np.int64), ranking


def read_users(results_dir: Path, dataset: str, protocol_hash: str) -> pd.DataFrame:
    """Facts of the users that all runs of this data set and protocol share; see `users_table`."""
    table = storage.read_parquet(_shared_path(results_dir, dataset, "users", protocol_hash), USER_COLUMNS)
    lists = _shared_path(results_dir, dataset, "candidates", protocol_hash)
    if not lists.exists():
        return table
    return table.assign(candidates=storage.read_parquet(lists, CANDIDATE_COLUMNS)["candidates"])


def read_all(results_dir: Path) -> tuple[list[Record], list[str]]:
    """All readable records, in the order of their folders, and one line for each that is not."""
    return _read_each(results_dir, "*/*/*/run.json", Record, lambda path: path.parent)


def write_failure(results_dir: Path, failure: Failure) -> Path:
    """Keep the reason why a cell is empty; a record of the same run, now or later, takes its place."""
    path = _failure_path(run_folder(results_dir, failure.dataset, failure.method, failure.run_id))
    if exists(results_dir, failure.dataset, failure.method, failure.run_id):
        return path
    with storage.writing(results_dir) as unfinished:
        storage.write_bytes(unfinished / path.name, _json_bytes(failure))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished / path.name, path)
    return path


def read_failures(results_dir: Path) -> tuple[list[Failure], list[str]]:
    """The reasons of all empty cells, and one line for each that cannot be read."""
    found, problems = _read_each(
        results_dir, "*/*/*.failed.json", Failure, lambda path: path.with_name(path.name.removesuffix(".failed.json"))
    )
    return [one for one in found if not _finished_or_newer(results_dir, one)], problems


class _NewerSchema(InputError):
    """Written by a newer version of this program: never to be taken for corrupt, never to be overwritten."""


def _refuse_newer(folder: Path) -> None:
    """Raise where a newer version of this program has written the record of this run."""
    try:
        read(folder)
    except _NewerSchema:
        raise
    except InputError:
        return


def _finished_or_newer(results_dir: Path, failure: Failure) -> bool:
    try:
        return exists(results_dir, failure.dataset, failure.method, failure.run_id)
    except _NewerSchema:
        return True


def _read_each(
    results_dir: Path, pattern: str, model: type[Stored], folder_of: Callable[[Path], Path]
) -> tuple[list[Stored], list[str]]:
    found, problems = [], []
    for path in sorted(Path(results_dir).glob(pattern)):
        if any(part.startswith(".") for part in path.relative_to(results_dir).parts):
            continue
        try:
            one = _read_model(path, model)
            dataset = one.dataset.name if isinstance(one, Record) else one.dataset
            if run_folder(results_dir, dataset, one.method, one.run_id) != folder_of(path):
                raise InputError(f"{path}: belongs to {dataset}/{one.method}/{one.run_id}, not here")
        except InputError as error:
            problems.append(str(error))
        else:
            found.append(one)
    return found, problems


def _read_model(path: Path, model: type[Stored]) -> Stored:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    # The short way for a good record; for any other, the way that says what is wrong.
    if b"NaN" not in raw and b"Infinity" not in raw:
        with suppress(ValidationError):
            return model.model_validate_json(raw)
    try:
        content: Any = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    version = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise InputError(f"{path}: no schema version: not a record of genrec-bench")
    if version > SCHEMA_VERSION:
        raise _NewerSchema(
            f"{path}: schema {version} is newer than this genrec-bench understands ({SCHEMA_VERSION}): upgrade it"
        )
    try:
        found = model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {key}: {first['msg']}") from None
    try:
        json.dumps(content, allow_nan=False)  # settings are free-form
    except ValueError:
        raise InputError(f"{path}: its settings hold a number that JSON does not have") from None
    return found


def _failure_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed.json")


def _shared_path(results_dir: Path, dataset: str, what: str, protocol_hash: str) -> Path:
    return Path(results_dir) / dataset / f"{what}-{protocol_hash[:8]}.parquet"


def _write_users(results_dir: Path, record: Record, users: pd.DataFrame) -> None:
    """Write the shared facts once; where they are there, they must be the same."""
    facts = {name: pa.array(users[name].to_numpy(np.int32)) for name in USER_COLUMNS}
    _write_shared(results_dir, record, "users", facts, "lists other users, targets or counts")
    if "candidates" in users:
        lists = pa.array([row.tolist() for row in users["candidates"]], type=pa.list_(pa.int32()))
        shown = {"user": facts["user"], "candidates": lists}
        _write_shared(results_dir, record, "candidates", shown, "has other candidates")


def _write_shared(results_dir: Path, record: Record, what: str, columns: dict[str, pa.Array], unlike: str) -> None:
    path = _shared_path(results_dir, record.dataset.name, what, record.protocol.hash)
    if not path.exists():
        content = storage.parquet_bytes(pa.table(columns), delta=("user",))
        with storage.writing(results_dir) as unfinished:
            storage.write_bytes(unfinished / path.name, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished / path.name, path)
        return
    stored = storage.read_table(path, tuple(columns))
    if any(stored[name].to_pylist() != column.to_pylist() for name, column in columns.items()):
        raise InputError(
            f"{path} {unlike} than this run of {record.dataset.name}: the data set changed "
            "since the first run. Use another --results folder, or give the changed data another name"
        )


def _json_bytes(model: Record | Failure) -> bytes:
    content = model.model_dump(mode="json", by_alias=True)
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _ranks_bytes(users: np.ndarray, ranks: np.ndarray) -> bytes:
    table = pa.table({"user": pa.array(users.astype(np.int32)), "rank": pa.array(ranks.astype(np.int16))})
    return storage.parquet_bytes(table, delta=("user",))


def _rankings_bytes(users: np.ndarray, rankings: "Ranking", order: np.ndarray) -> bytes:
    table = pa.table(
        {
            "user": pa.array(users.astype(np.int32)),
            "items": pa.array(list(rankings.items[order].astype(np.int32)), type=pa.list_(pa.int32())),
            "scores": pa.array(list(rankings.scores[order].astype(np.float32)), type=pa.list_(pa.float32())),
            "ordered": pa.array(np.full(len(users), rankings.ordered)),
        }
    )
    return storage.parquet_bytes(table, delta=("user",))
