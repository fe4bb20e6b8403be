"""Two methods against each other: paired tests over users on every data set and protocol that both have run.

Values are averaged over seeds per user first, over the seeds that both have where they share some: a lucky seed of one
is no merit of its method. Two tests, since a hit is 0 or 1: the paired t-test and the sign-flip
permutation; McNemar's exact test is added for HitRatio@1 of one run each. Holm's correction of the t-tests' p-values
covers everything in the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from genrec_bench.benchmark import standings, statistics, tables
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.standings import Entry, LoadRanks
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.benchmark.tables import Key
from genrec_bench.datasets.errors import InputError, unknown

METRICS = {"full": ("recall@5", "recall@10", "ndcg@5", "ndcg@10"), "cand20": ("hitratio@1", "validratio")}


@dataclass(frozen=True)
class Comparison:
    """One metric of one table. ``difference`` is the mean of a - b over the users of both, with its interval."""

    key: Key
    metric: str
    users: int
    seeds: tuple[int, int]  # how many of a, of b
    means: tuple[float, float]
    difference: Interval
    t_test: float
    sign_flip: float
    mcnemar: float | None
    t_test_holm: float = 1.0  # corrected over all comparisons of one answer

    @property
    def significant(self) -> bool:
        return self.t_test_holm < statistics.SIGNIFICANCE


def compare(found: Sequence[Record], a: str, b: str, load_ranks: LoadRanks) -> list[Comparison]:
    """All comparisons between the rows that ``a`` and ``b`` name, wherever both have run under the same rules.

    Raises InputError where a name is unknown, stands for several rows of one table, or the two never met.
    """
    groups = standings.group(found, [], load_ranks)
    known = {name for group in groups for entry in group.entries for name in _names(entry)}
    for name in (a, b):
        if name not in known:
            raise unknown("method in the records", name, known)
    pairs = [(group.key, _pick(group.entries, a), _pick(group.entries, b)) for group in groups]
    met = [(key, one, other) for key, one, other in pairs if one is not None and other is not None]
    if any(one is other for _, one, other in met):
        raise InputError(f"'{a}' and '{b}' name the same row: give two")
    met = [(key, *_of_common_seeds(one, other, load_ranks)) for key, one, other in met]
    if not met:
        raise InputError(f"'{a}' and '{b}' have no data set, protocol and tier in common")
    rows = [
        _comparison(key, one, other, metric)
        for key, one, other in met
        for metric in METRICS[key.protocol]
        if metric in one.values and metric in other.values and np.intersect1d(one.users, other.users).size
    ]
    adjusted = statistics.holm([row.t_test for row in rows])
    return [replace(row, t_test_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _names(entry: Entry) -> tuple[str, str, str]:
    """What a row may be called, most exact first."""
    return entry.name, entry.runs[0].label, entry.runs[0].method


def _pick(entries: Sequence[Entry], name: str) -> Entry | None:
    for level in range(3):
        named = [entry for entry in entries if _names(entry)[level] == name]
        if len(named) > 1:
            raise InputError(f"'{name}' names {len(named)} rows: give one of {'; '.join(one.name for one in named)}")
        if named:
            return named[0]
    return None


def _of_common_seeds(one: Entry, other: Entry, load_ranks: LoadRanks) -> tuple[Entry, Entry]:
    """Both rows without the seeds that only one has; as they are where no seed is shared, or a method only counts."""
    common = {run.seed for run in one.runs} & {run.seed for run in other.runs}
    if not common or "counting" in (one.runs[0].family, other.runs[0].family):
        return one, other

    def kept(entry: Entry) -> Entry:
        runs = [run for run in entry.runs if run.seed in common]
        return entry if len(runs) == len(entry.runs) else replace(standings.entry_of(runs, load_ranks), name=entry.name)

    return kept(one), kept(other)


def _comparison(key: Key, one: Entry, other: Entry, metric: str) -> Comparison:
    a, b = standings.aligned([one, other], metric).values()
    difference = statistics.differences(a, b)
    single_runs = len(one.runs) == len(other.runs) == 1
    return Comparison(
        key=key,
        metric=metric,
        users=len(difference),
        seeds=(len(one.runs), len(other.runs)),
        means=(float(a.mean()), float(b.mean())),
        difference=statistics.bootstrap({metric: difference})[metric],
        t_test=statistics.paired_t(a, b),
        sign_flip=statistics.sign_flip(a, b),
        mcnemar=statistics.mcnemar(a, b) if metric == "hitratio@1" and single_runs else None,
    )


def render(results_dir: Path, a: str, b: str, format: str = "text", report: Callable[[str], None] | None = None) -> str:
    """The comparison as text ("text" or "md"), without a newline at the end."""
    if format not in ("text", "md"):
        raise unknown("format", format, ["text", "md"])
    found, _, load_ranks = standings.load(results_dir, report)
    if not found:
        raise InputError(f"{results_dir} holds no records to compare: run something first, or give --results")
    escape = tables.clean if format == "text" else tables.escape_markdown
    rows = compare(found, a, b, load_ranks)
    head = ["data", "metric", "users", "a", "b", "a - b [95%]", "t-test", "Holm", "sign flip", "McNemar", ""]
    grid = tabulate(
        [_cells(row, escape) for row in rows], head, tablefmt="plain" if format == "text" else "pipe",
        disable_numparse=True,
    )  # fmt: skip
    seeds = sorted({row.seeds for row in rows})
    counted = ", ".join(f"{one} and {other}" for one, other in seeds)
    title = f"a = {a}, b = {b}: means over users, seeds averaged per user ({counted} seeds)"
    legend = f"* significant: p < {statistics.SIGNIFICANCE} after Holm's correction of {len(rows)} t-tests"
    return "\n".join([escape(title), "", grid, "", escape(legend)])


def _cells(row: Comparison, escape: Callable[[str], str]) -> list[str]:
    key, difference = row.key, row.difference
    seen = " · seen removed" if key.mask_seen else ""
    return [
        escape(f"{key.dataset} · {key.protocol}{seen} · {key.tier}"),
        tables.metric_title(row.metric),
        f"{row.users:,}",
        *(f"{mean:.4f}" for mean in row.means),
        escape(f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"),
        *(_p_value(p) for p in (row.t_test, row.t_test_holm, row.sign_flip, row.mcnemar)),
        escape("*") if row.significant else "",
    ]


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<.0001" if p < 0.0001 else f"{p:.4f}"
