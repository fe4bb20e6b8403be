"""From records to tables: which runs stand together, what each row says, who is best and who is tied with it.

A table never mixes data sets (by content hash), protocols (by hash), settings of seen items, or tiers. A row is one
method under one label and config; its seeds are averaged per user before anything else. Writing tables is `tables`.
"""

import gc
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from genrec_bench.benchmark import metrics, published, records, statistics, table_data, tables
from genrec_bench.benchmark.records import Failure, Protocol, Record
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.benchmark.tables import Cell, Cost, Effort, Key, Leaderboard, Published, Row, State, Table
from genrec_bench.benchmark.tuning_records import Tuning, behind
from genrec_bench.benchmark.tuning_records import read_all as read_searches
from genrec_bench.datasets.errors import InputError, unknown

LoadRanks = Callable[[Record], tuple[np.ndarray, np.ndarray]]  # users (U,) ascending and ranks (U,) of one run
TIERS = ("tiny", "base", "paper")
FORMS: dict[str, Callable[[Leaderboard], str]] = {
    "text": tables.text,
    "md": tables.markdown,
    "csv": table_data.as_csv,
    "latex": tables.latex,
    "json": table_data.as_json,
}
FORMATS = (*FORMS, "html")
HISTORY_ALONE = 6  # as methods/candidates/wording.py has it
ORDER_BY = {"full": "recall@10", "cand20": "hitratio@1"}


@dataclass
class Entry:
    """The runs of one row, one a seed, with their per-user values averaged over seeds."""

    runs: list[Record]  # by seed
    users: np.ndarray  # (U,) evaluated in all runs
    values: dict[str, np.ndarray]  # metric -> (U,)
    weights: dict[str, np.ndarray]  # metric -> (U,) share of seeds under which the user counts, where some do not
    seed_means: dict[str, list[float]]  # metric -> one mean a seed
    name: str = ""


@dataclass
class Group:
    """The rows of one table, before they are measured against each other."""

    key: Key
    entries: list[Entry]
    failures: list[Failure]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles: walking thousands of records again and again takes longer than reading them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@_uncollected()
def render(
    results_dir: Path,
    format: str,
    dataset: str | None = None,
    run_ids: Collection[str] | None = None,
    bold: bool = False,
    report: Callable[[str], None] | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> str:
    """The tables of a results folder as text, without a newline at the end; same records, same bytes.

    ``format`` is one of `FORMATS`; ``dataset``, ``run_ids`` and ``only`` (protocol, tier, method or label -> names)
    keep only those; ``bold`` allows terminal codes. Each unreadable file is one line to ``report`` (default: standard
    error), and the others are shown.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "html":
        from genrec_bench.benchmark import report as html  # it stands on this module

        return html.render(results_dir, dataset, run_ids, report, only).rstrip("\n")
    form = partial(tables.text, bold=bold) if format == "text" else FORMS[format]
    return form(read(results_dir, dataset, run_ids, report, only)[0]).rstrip("\n")


@_uncollected()
def read(
    results_dir: Path,
    dataset: str | None = None,
    run_ids: Collection[str] | None = None,
    report: Callable[[str], None] | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> tuple[Leaderboard, dict[str, Record]]:
    """All tables of a results folder, and the records behind them by run id; the arguments are those of `render`."""
    found, failures, load_ranks = load(results_dir, report)
    wanted = {**(only or {}), **({} if dataset is None else {"data set": [dataset]})}
    everyone: list[Record | Failure] = [*found, *failures]
    for what, names in wanted.items():
        known = {name for one in everyone for name in _names(one)[what]}
        for name in names:
            if name not in known:
                raise unknown(f"{what} in {results_dir}", name, known)

    def shown(one: Record | Failure) -> bool:
        fits = all(not _names(one)[what].isdisjoint(names) for what, names in wanted.items())
        return fits and (run_ids is None or one.run_id in run_ids)

    kept, missing = [one for one in found if shown(one)], [one for one in failures if shown(one)]
    if not kept and not missing:
        raise InputError(f"{results_dir} holds no records to show: run something first, or give --results")
    board = with_searches(build(kept, missing, load_ranks), kept, read_searches(results_dir))
    return board, {record.run_id: record for record in kept}


def _names(one: Record | Failure) -> dict[str, set[str]]:
    """What a reader may ask for: the names that a run, or the lack of one, goes by."""
    dataset = one.dataset if isinstance(one, Failure) else one.dataset.name
    return {
        "data set": {dataset}, "protocol": {str(one.protocol.name)}, "tier": {one.tier},
        "method": {one.method, one.label},
    }  # fmt: skip


def load(
    results_dir: Path, report: Callable[[str], None] | None = None
) -> tuple[list[Record], list[Failure], LoadRanks]:
    """Readable records whose ranks are readable too, reasons of empty cells, and the loader of ranks."""
    found, problems = records.read_all(results_dir)
    failures, more = records.read_failures(results_dir)
    ranks: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
    same: dict[bytes, np.ndarray] = {}  # runs of a data set have the same users: one array for all
    kept = []
    for record in found:
        place = (record.dataset.name, record.method, record.run_id)
        folder = records.run_folder(results_dir, *place)
        try:
            users, found_ranks = records.read_ranks(folder)
            ranks[place] = same.setdefault(users.tobytes(), users), found_ranks
            contradictions = records.check(record, ranks[place][1])
            if contradictions:
                raise InputError(f"{folder}: {'; '.join(contradictions)}")
        except InputError as error:
            problems.append(str(error))
        else:
            kept.append(record)
    for problem in problems + more:
        (report or _to_standard_error)(f"left out: {problem}")
    return kept, failures, lambda record: ranks[record.dataset.name, record.method, record.run_id]


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr)


def build(found: Sequence[Record], failures: Sequence[Failure], load_ranks: LoadRanks) -> Leaderboard:
    """All tables of these runs and empty cells."""
    groups = group(found, failures, load_ranks)
    return Leaderboard(tuple(_table(one, [other.key for other in groups]) for one in groups))


def with_searches(board: Leaderboard, found: Sequence[Record], searches: Sequence[Tuning]) -> Leaderboard:
    """The tables with the search that stands behind each row, where one does; a note under the table tells of it."""
    if not searches:
        return board
    records_of = {record.run_id: record for record in found}
    return Leaderboard(tuple(_searched(table, records_of, searches) for table in board.tables))


def _searched(table: Table, records_of: Mapping[str, Record], searches: Sequence[Tuning]) -> Table:
    rows, notes = [], list(table.notes)
    for row in table.rows:
        search = behind(searches, records_of[row.runs[0]]) if row.runs else None
        if search is not None:
            effort = Effort(
                search.study, len(search.trials), search.budget_trials, search.budget_seconds, search.spent_seconds,
                search.best_value, search.engine,
            )  # fmt: skip
            notes.append(f"{row.name}: {effort}")
            row = replace(row, tuning=effort)
        rows.append(row)
    return replace(table, rows=tuple(rows), notes=tuple(notes))


def _key(dataset: str, sha256: str, rules: Protocol, tier: str) -> Key:
    return Key(dataset, sha256, rules.name, rules.mask_seen, rules.hash, tier, _exclude(rules))


def _exclude(rules: Protocol) -> str:
    """What negatives are not drawn from."""
    return str(rules.parameters.get("exclude", "sequence"))


def group(found: Sequence[Record], failures: Sequence[Failure], load_ranks: LoadRanks) -> list[Group]:
    """Runs that may stand in one table, in a stable order, with the per-user values of each row."""
    runs: dict[Key, list[Record]] = defaultdict(list)
    missing: dict[Key, list[Failure]] = defaultdict(list)
    for record in found:
        runs[_key(record.dataset.name, record.dataset.sha256, record.protocol, record.tier)].append(record)
    for failure in failures:
        missing[_key(failure.dataset, failure.dataset_sha256, failure.protocol, failure.tier)].append(failure)
    keys = sorted(
        {*runs, *missing}, key=lambda key: (key[:1], key[2:4], TIERS.index(key.tier) if key.tier in TIERS else 9, key)
    )
    return [Group(key, _entries(runs[key], load_ranks), missing[key]) for key in keys]


def _entries(found: Iterable[Record], load_ranks: LoadRanks) -> list[Entry]:
    rows: dict[tuple[str, ...], dict[int, Record]] = defaultdict(dict)
    # By time of creation: of two runs of one seed (another library version, say) the later one counts.
    for record in sorted(found, key=lambda record: (record.provenance.created, record.run_id)):
        same = (record.method, record.label, _settings(record), str(record.method_version))
        rows[(*same, record.plugin_sha256 or "", str(record.outside))][record.seed] = record
    entries = [entry_of([runs[seed] for seed in sorted(runs)], load_ranks) for _, runs in sorted(rows.items())]
    _name(entries)
    return entries


def entry_of(runs: list[Record], load_ranks: LoadRanks) -> Entry:
    """The row of these runs, one a seed; it has no name yet."""
    loaded = [load_ranks(run) for run in runs]
    users = loaded[0][0]
    for other, _ in loaded[1:]:
        users = users if np.array_equal(users, other) else np.intersect1d(users, other)
    kind = runs[0].protocol.name
    kept = [ranks if len(mine) == len(users) else ranks[np.isin(mine, users)] for mine, ranks in loaded]
    tables = [metrics.per_user_table(ranks, kind) for ranks in kept]  # (metrics, U) each
    values, weights = dict(zip(metrics.by_rank(kind), sum(tables[1:], start=tables[0]) / len(tables), strict=True)), {}
    for place, name in enumerate(values):
        if np.isnan(values[name]).any():
            of_seeds = np.stack([table[place] for table in tables])
            values[name] = statistics.over_seeds(of_seeds)
            weights[name] = statistics.counted_share(of_seeds)
    means = [metrics.means(ranks, kind) for ranks in kept]
    seed_means = {name: [one[name] for one in means if name in one] for name in values}
    counting = {name: found for name, found in seed_means.items() if found}
    return Entry(runs, users, {name: values[name] for name in counting}, weights, counting)


def _settings(record: Record) -> str:
    return json.dumps(record.overrides, sort_keys=True, ensure_ascii=False)


def _name(entries: list[Entry]) -> None:
    """Names that differ within a table: the label, and where that is not enough, what was set, and the version."""
    taken: dict[str, int] = defaultdict(int)
    by_label: dict[str, list[Record]] = defaultdict(list)
    for entry in entries:
        by_label[entry.runs[0].label].append(entry.runs[0])
    for entry in entries:
        run = entry.runs[0]
        same_label = by_label[run.label]
        entry.name = run.label
        if len({_settings(other) for other in same_label}) > 1:
            settings = ", ".join(f"{key}={value}" for key, value in sorted(run.overrides.items()))
            entry.name += f" ({settings or 'defaults'})"
        if len({(other.method, other.method_version, other.plugin_sha256) for other in same_label}) > 1:
            entry.name += f" [{run.method} v{run.method_version} {(run.plugin_sha256 or '')[:6]}".rstrip() + "]"
        if run.outside:
            entry.name += " (outside)"
        taken[entry.name] += 1
        if taken[entry.name] > 1:
            entry.name += f" #{taken[entry.name]}"


def aligned(entries: Sequence[Entry], metric: str) -> dict[str, np.ndarray]:
    """Name -> values of the users whom all entries with this metric evaluated."""
    having = [entry for entry in entries if metric in entry.values]
    if not having:
        return {}
    users = having[0].users
    if all(np.array_equal(users, entry.users) for entry in having):  # as a rule
        return {entry.name: entry.values[metric] for entry in having}
    for entry in having[1:]:
        users = np.intersect1d(users, entry.users)
    return {entry.name: entry.values[metric][np.isin(entry.users, users)] for entry in having}


def _table(one: Group, keys: Sequence[Key]) -> Table:
    found = statistics.bootstrap_each([(entry.values, entry.weights) for entry in one.entries])
    intervals = {entry.name: cells for entry, cells in zip(one.entries, found, strict=True)}
    standing = {}
    for metric in metrics.PER_USER[one.key.protocol]:
        means = {name: cells[metric].mean for name, cells in intervals.items() if metric in cells}
        if means:
            best = max(sorted(means), key=lambda name: means[name])
            standing[metric] = (means[best], statistics.tied_with_best(aligned(one.entries, metric), best))
    rows = [_row(entry, intervals[entry.name], standing, one.failures) for entry in one.entries]
    order_by = ORDER_BY[one.key.protocol]
    rows.sort(key=lambda row: (-round(row.metrics[order_by].mean, 9) if order_by in row.metrics else 1.0, row.name))
    return Table(one.key, (*rows, *_empty_rows(one)), tuple(_notes(one, rows, keys)), tuple(_states(one.entries)))


def _states(entries: Sequence[Entry]) -> Iterator[State]:
    for entry in entries:
        for name in dict.fromkeys(variant.name for run in entry.runs for variant in run.variants):
            found = {run.seed: variant for run in entry.runs for variant in run.variants if variant.name == name}
            measured = [{key: one.mean for key, one in each.metrics.items()} | each.text for each in found.values()]
            shared = set.intersection(*map(set, measured))
            seeds = f" (seed{'s' * (len(found) > 1)} {', '.join(map(str, found))})" * (len(found) < len(entry.runs))
            yield State(
                entry.name, name + seeds, {key: float(np.mean([one[key] for one in measured])) for key in shared}
            )


def _row(
    entry: Entry,
    intervals: Mapping[str, Interval],
    standing: Mapping[str, tuple[float, Mapping[str, bool]]],
    failures: Sequence[Failure],
) -> Row:
    """``standing``: metric -> the best mean of the table, and which rows are tied with it."""
    run = entry.runs[0]
    printed = {}
    if run.published_as is not None:
        printed = published.lookup(run.dataset.name, run.protocol.name, run.published_as, run.published_variant)
    cells = {}
    for name, interval in intervals.items():
        seeds = entry.seed_means[name]
        best_mean, tied = standing[name]
        is_best = interval.mean >= best_mean - 1e-12
        target = printed.get(name)
        beside = None if target is None else _beside(run, interval, target)
        cells[name] = Cell(
            interval.mean, interval.low, interval.high, _deviation(seeds),
            is_best, tied[entry.name] and not is_best, beside,
        )  # fmt: skip
    seeds_run = tuple(one.seed for one in entry.runs)
    return Row(
        name=entry.name, method=run.method, label=run.label, overrides=run.overrides, seeds=seeds_run,
        users=len(entry.users), metrics=cells, list_metrics=_list_metrics(entry.runs), cost=_cost(entry.runs),
        runs=tuple(one.run_id for one in entry.runs),
        missing_seeds={one.seed: one.reason for one in sorted(failures, key=lambda one: (one.seed, one.run_id))
                       if (one.method, one.label) == (run.method, run.label) and one.seed not in seeds_run},
        family=run.family, outside=run.outside,
    )  # fmt: skip


def _beside(run: Record, measured: Interval, target: published.Target) -> Published:
    """A paper's figure, with what to say where ours stands beside it."""
    # The papers leave seen items in the ranking, let a language model write its answer, and tune it on nothing else.
    adaptation = run.config.get("adaptation")
    adapted = isinstance(adaptation, dict) and adaptation.get("epochs", 0) != 0
    same_protocol = not (run.protocol.mask_seen or adapted) and answers_by(run) is None
    if run.protocol.name == "cand20":
        same_protocol &= _exclude(run.protocol) == published.SAMPLERS[target.paper]
    data = run.dataset
    same_data = published.same_cut(target.paper, data.name, (data.users, data.items, data.interactions))
    verdict = published.verdict(measured, target.value, same_protocol, not _other_model(run), same_data)
    return Published(target.value, target.paper, target.table, verdict)


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of a single value."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _list_metrics(runs: Sequence[Record]) -> dict[str, float]:
    """Means over seeds, of what every seed has."""
    shared = [name for name in runs[0].list_metrics if all(name in run.list_metrics for run in runs)]
    return {name: float(np.mean([run.list_metrics[name] for run in runs])) for name in shared}


def _cost(runs: Sequence[Record]) -> Cost:
    costs = [run.cost for run in runs]
    return Cost(
        parameters=max(cost.parameters for cost in costs),
        trainable_parameters=max(cost.trainable_parameters for cost in costs),
        train_seconds=float(np.mean([cost.train_seconds for cost in costs])),
        users_per_second=float(np.mean([cost.users_per_second for cost in costs])),
        peak_memory_mib=max(cost.peak_memory_mib for cost in costs),
        device=", ".join(sorted({cost.device for cost in costs})),
    )


def _empty_rows(one: Group) -> list[Row]:
    """A row for each method and label that has no run at all, with its reason."""
    have = {(entry.runs[0].method, entry.runs[0].label) for entry in one.entries}
    reasons: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for failure in sorted(one.failures, key=lambda failure: (failure.seed, failure.run_id)):
        if (failure.method, failure.label) not in have:
            reasons[failure.label, failure.method][failure.seed] = failure.reason
    return [
        Row(
            name=label, method=method, label=label, missing_seeds=by_seed,
            reason_missing=next(iter(by_seed.values())) if len(set(by_seed.values())) == 1
            else "; ".join(f"seed {seed}: {reason}" for seed, reason in by_seed.items()),
        )
        for (label, method), by_seed in sorted(reasons.items())
    ]  # fmt: skip


def answers_by(run: Record) -> str | None:
    """How a language model of the candidate protocol is made to name one; None where it writes freely, or is none."""
    decode, normalise = run.config.get("decode"), run.config.get("normalise")
    shown = ", and it is not shown which there are" if run.config.get("template") == HISTORY_ALONE else ""
    if decode == "loglik":
        return f"the title of the highest likelihood, {'a mean over' if normalise else 'summed over'} its tokens{shown}"
    return f"one that it writes greedily among the candidates' titles{shown}" if decode == "trie" else None


def _other_model(run: Record) -> bool:
    """Whether the papers' figure is of a larger model, or of one more of which was trained.

    Tier paper has the papers' language models, the others' are smaller unless a run names one. Who reads items' texts
    from a ``source`` keeps the vectors, where MoRec trains their encoder.
    """
    lm = run.config.get("lm")  # AGRec's, and what it is given
    settings = lm.get("settings") if isinstance(lm, dict) else run.config
    named = isinstance(settings, dict) and settings.get("backbone") is not None
    smaller = run.tier != "paper" and not named and (isinstance(lm, dict) or "backbone" in run.config)
    return smaller or "source" in run.config


def _notes(one: Group, rows: Sequence[Row], keys: Sequence[Key]) -> list[str]:
    key = one.key
    notes = [
        f"{row.name}: seed {seed} is missing: {reason}" for row in rows for seed, reason in row.missing_seeds.items()
    ]
    named: dict[str, list[str]] = defaultdict(list)
    for entry in one.entries:
        if (how := answers_by(entry.runs[0])) is not None:
            named[how].append(entry.name)
    notes += [f"{'; '.join(sorted(names))}: the answer is {how}, so all are valid" for how, names in named.items()]
    contents = sorted({other.dataset_sha256 for other in keys if other.dataset == key.dataset})
    if len(contents) > 1:
        notes.append(
            f"The records know {len(contents)} different contents of {key.dataset}; "
            f"this table is of the one with sha256 {key.dataset_sha256[:12]}"
        )
    visible = (key.dataset, key.protocol, key.mask_seen)
    rules = {other.protocol_hash for other in keys if (other.dataset, other.protocol, other.mask_seen) == visible}
    if len(rules) > 1:
        notes.append(
            f"The records know {len(rules)} sets of rules of this protocol; this table is of {key.protocol_hash[:12]}"
        )
    return notes
