"""Recommendations of a run whose model was kept, in the data set's own ids and titles.

    genrec-bench run --method tiger --dataset ml-100k --keep-models
    genrec-bench recommend --run RUN --user 196

From Python: ``load_run("0ff6", Path("results")).recommend(users=["196"], k=5)``.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from tabulate import tabulate

from genrec_bench.benchmark import models, records
from genrec_bench.benchmark.protocols import PROTOCOLS, ProtocolRules
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.tables import clean
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.interactions import Histories, InteractionData
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint

FORMATS = ("text", "json")
T = TypeVar("T")


class Recommendation(NamedTuple):
    """One line of an answer."""

    rank: int  # from 1
    item: str  # the data set's own id
    title: str  # empty where unknown
    score: float  # the method's own: higher is better within one answer, no more than that
    code: list[str] | None  # tokens that name the item, of methods that write items as codes


@dataclass(frozen=True, eq=False)
class KeptRun:
    """A finished run with its trained method and the data it knows."""

    record: Record
    rules: ProtocolRules
    method: Method
    data: InteractionData

    def recommend(
        self,
        users: Sequence[str] = (),
        histories: Sequence[Sequence[str]] = (),
        k: int = 10,
        mask_seen: bool | None = None,
    ) -> list[list[Recommendation]]:
        """What comes next for each user, then after each history: at most ``k`` items each, best first.

        See `asked` for ``users``, ``histories`` and ``mask_seen``. Raises InputError where an id is unknown.
        """
        if k < 1:
            raise InputError(f"k={k}: at least one item must be asked for")
        asked = self.asked(users, histories, mask_seen)

        def answers() -> list[list[Recommendation]]:
            ranking = self.method.recommend(asked, min(k, self.data.num_items))
            return [self._answer(*row) for row in zip(ranking.items, ranking.scores, strict=True)]

        return _attempt(self.record, "recommend", answers)

    def asked(
        self,
        users: Sequence[str] = (),
        histories: Sequence[Sequence[str]] = (),
        mask_seen: bool | None = None,
    ) -> Histories:
        """What the method is asked, in item numbers: a row for each user, then one for each history.

        Ids are the data set's own. A user's row is all that is known of that user, held-out items included; a history,
        oldest item first, is of somebody new. ``mask_seen`` leaves a row's items out of its answer; None: as the run's
        protocol does.
        """
        known = _numbers(self._users, users, f"user of {self.data.name}")
        rows = [self.data.sequences.row(user) for user in known]
        rows += [_numbers(self._items, history, f"item of {self.data.name}") for history in histories]
        return Histories(
            users=np.concatenate([known, np.full(len(histories), self.data.num_users)]),
            offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
            items=np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32),
            mask_seen=self.rules.mask_seen if mask_seen is None else mask_seen,
        )

    @cached_property
    def _users(self) -> dict[str, int]:
        return {str(user): number for number, user in enumerate(self.data.user_ids)}

    @cached_property
    def _items(self) -> dict[str, int]:
        return {str(item): number for number, item in enumerate(self.data.items["item_id"])}

    def _answer(self, items: np.ndarray, scores: np.ndarray) -> list[Recommendation]:
        """One row of a ranking, (k,) and (k,), in the data set's words."""
        ids, titles = self.data.items["item_id"].to_numpy(), self.data.items["title"].to_numpy()
        return [
            Recommendation(rank, str(ids[item]), str(titles[item]), float(score), self.method.code(int(item)))
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
            if item >= 0
        ]


def load_run(
    run: str | Path, results: Path = Path("results"), plugins: Sequence[str] = (), device: str | None = None
) -> KeptRun:
    """The run, ready to recommend. ``run``: its id or the beginning of it, its folder, or its run.json.

    ``plugins``: the file that registers the method of a plugin's run. Raises InputError where the run is unknown, where
    its model was not kept, or where data set, method or plugin are no longer the run's.
    """
    digests = {name: digest for path in plugins for name, digest in registry.load_plugin(path).items()}
    folder = find_run(run, results)
    record = records.read(folder)
    records.run_folder(results, record.dataset.name, record.method, record.run_id)  # no name that leads elsewhere
    if record.plugin_sha256 is not None and record.method not in digests:
        raise InputError(f"Run {record.run_id} is of a plugin's method, '{record.method}': give its file with --plugin")
    if digests.get(record.method) != record.plugin_sha256:
        raise InputError(f"Run {record.run_id} is not of this plugin: the file has changed since. Run its method again")
    method_class = registry.get(record.method)
    if method_class.version != record.method_version:
        versions = f"is of version {record.method_version} of {record.method}, and this is {method_class.version}"
        raise InputError(f"Run {record.run_id} {versions}: run it again with --keep-models")
    again = _command(record, folder.parents[2] if len(folder.parents) > 2 else Path(results), plugins)
    if not models.exists(record.run_id):
        raise InputError(f"Run {record.run_id} has no model in {models.folder(record.run_id).parent}. Make it: {again}")
    data = store.load(record.dataset.name)
    if data.sha256 != record.dataset.sha256:
        raise InputError(f"Data set '{data.name}' is not what run {record.run_id} learnt from. Run it again: {again}")
    rules = _rules(record)
    method = method_class(registry.configure(record.method, {**record.config}))
    context = Context(
        seed=record.seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        scale=record.tier,  # type: ignore[arg-type]  # a tier that no method knows fails in its load
        checkpoint=Checkpoint(None),
        artefacts=ArtefactCache(store.home() / "artefacts"),
        validate=_no_validation,
    )
    train = rules.split(data).train
    _attempt(record, "load", lambda: method.load(models.folder(record.run_id), train, context))
    return KeptRun(record, rules, method, data)


def find_run(run: str | Path, results: Path) -> Path:
    """The folder of the run's record."""
    path = Path(run)
    if str(run) and path.name == "run.json" and path.is_file():
        path = path.parent
    if str(run) and (path / "run.json").is_file():
        return path.resolve()
    found = {path.parent.name: path.parent for path in _all_runs(results)}
    if not found:
        raise InputError(f"No records in {results}: give the folder of the run's record with --results")
    named = sorted(one for one in found if one.startswith(str(run)))
    if not named:
        raise unknown("run", str(run), found)
    if len(named) > 1 and str(run) not in found:
        some = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
        raise InputError(f"Run '{run}' may be any of {len(named)}: {some}. Give more of its id")
    return found[named[0]].resolve()


def list_kept(results: Path) -> str:
    """A table of the runs that can be asked."""
    found, _ = records.read_all(results)
    rows = [
        (one.run_id, clean(one.label), one.dataset.name, one.protocol.name, one.tier, one.seed)
        for one in found
        if models.exists(one.run_id)
    ]
    if not rows:
        raise InputError(f"No run in {results} has a model in {store.home() / 'models'}: run with --keep-models")
    return tabulate(rows, headers=["run", "method", "data set", "protocol", "tier", "seed"], disable_numparse=True)


def render(kept: KeptRun, asked: Histories, answer: Sequence[Recommendation], user: str | None, form: str) -> str:
    """One answer as a table or as JSON. ``asked`` has one row; ``user`` is None where the history was given."""
    record, history = kept.record, kept.data.items["item_id"].to_numpy()[asked.items].tolist()
    coded = any(line.code is not None for line in answer)
    if form == "json":
        lines = [{key: value for key, value in line._asdict().items() if key != "code" or coded} for line in answer]
        content = {
            "run": record.run_id,
            "method": record.label,
            "dataset": record.dataset.name,
            "user": user,
            "history": history,
            "mask_seen": asked.mask_seen,
            "items": lines,
        }
        return json.dumps(content, indent=2, ensure_ascii=False)
    seen = "left out" if asked.mask_seen else "kept"
    items = f"{len(history)} item{'' if len(history) == 1 else 's'}"
    whom = "" if user is None else f"user {user} · "
    head = f"{record.label} · {record.dataset.name} · seed {record.seed} · {whom}after {items} · seen items {seen}"
    rows = [
        [line.rank, clean(line.item), clean(line.title), f"{line.score:.5g}", clean(" ".join(line.code or []))]
        for line in answer
    ]
    names = ["rank", "item", "title", "score", "code"]
    shown = slice(None) if coded else slice(-1)
    table = tabulate([row[shown] for row in rows], headers=names[shown], disable_numparse=True)
    return f"{clean(head)}\n\n{table}"


def _all_runs(results: Path) -> list[Path]:
    found = Path(results).glob("*/*/*/run.json")
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(results).parts))


def _rules(record: Record) -> ProtocolRules:
    try:
        return PROTOCOLS[record.protocol.name].model_validate(record.protocol.parameters)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise InputError(f"Run {record.run_id} was measured under other rules: {key}: {problem['msg']}") from None


def _no_validation(method: Method, users: int = 0) -> NoReturn:
    raise RuntimeError("a method is loaded, not selected: there is nothing to validate")


def _numbers(known: dict[str, int], ids: Sequence[str], kind: str) -> np.ndarray:
    """(n,) int64"""
    if isinstance(ids, str):  # else its letters would be taken for ids
        raise InputError(f"'{ids}' where a list was expected, of ids of a{'n' if kind[0] == 'i' else ''} {kind}")
    for one in ids:
        if str(one) not in known:
            raise unknown(kind, str(one), known)
    return np.array([known[str(one)] for one in ids], dtype=np.int64)


def _attempt(record: Record, step: str, do: Callable[[], T]) -> T:
    """Run a method's own code; what it raises becomes one message."""
    try:
        return do()
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"Run {record.run_id} of {record.method}: {step} raised {reason}") from error


def _command(record: Record, results: Path, plugins: Sequence[str]) -> str:
    """The command that makes this run again and keeps its model."""
    words = ["genrec-bench", "run", "--method", record.method, "--dataset", record.dataset.name]
    words += ["--seeds", str(record.seed), "--keep-models", "--results", str(results)]
    words += ["--protocol", record.protocol.name] if record.protocol.name != "full" else []
    words += ["--mask-seen"] if record.protocol.mask_seen else []
    words += ["--scale", record.tier] if record.tier != "tiny" else []
    for path in plugins:
        words += ["--plugin", str(path)]
    for key, value in _changed(record).items():
        words += ["--set", f"{record.method}.{key}={value}"]
    return shlex.join(words)


def _changed(record: Record) -> dict[str, str]:
    """Settings that give the run's config, as ``--set`` reads them."""
    config = registry.configure(record.method, {**record.config})
    changed = config.model_dump(mode="json", exclude_defaults=True)
    short: dict[str, Any] = {key: changed.get(key, value) for key, value in record.overrides.items()}
    # A group of settings without its defaults is short, but means another one where the method has defaults of its own.
    if registry.configure(record.method, short) != config:
        short = {**record.overrides}
    settings: dict[str, Any] = {}
    for key, value in short.items():
        group = value if isinstance(value, dict) and value else {"": value}
        settings.update({f"{key}.{name}" if name else key: one for name, one in group.items()})
    return {key: _as_yaml(value) for key, value in settings.items()}


def _as_yaml(value: Any) -> str:
    if isinstance(value, str) and value and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
