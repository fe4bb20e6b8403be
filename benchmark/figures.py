"""What the report draws, as numbers: quality against cost, slices, curves, settings side by side, critical differences.

Pages (`report`, `svg`) and pictures (`plots`) draw the same figures. A figure that the records cannot fill is not made.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from genrec_bench.benchmark import statistics
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.benchmark.tables import Leaderboard, Row, Table

QUALITY = {"full": "ndcg@10", "cand20": "hitratio@1"}  # what is set against cost, and ranked over data sets
COSTS = {"train_seconds": "training time", "users_per_second": "users ranked a second"}
LOWER_IS_BETTER = {"train_seconds"}
SHORTEST_S = 0.1  # training times below it stand at it: a logarithm has no zero
MOST_SLICED = 12  # rows of a chart of slices, the best ones
FEWEST_SETTINGS = 3  # rows of one method that make a comparison of its settings
FEWEST_POINTS = 3  # values that a method tried, which make a curve
FEWEST_DATASETS = 5  # for ranks over data sets; below it a critical difference is wider than most tables are long
FEWEST_METHODS = 3

Runs = Mapping[str, Record]  # run id -> record


class Point(NamedTuple):
    """One row in the plane of cost and quality; ``row`` is its place in the table."""

    row: int
    name: str
    family: str
    cost: float
    quality: Interval
    on_frontier: bool  # no other row is both better and cheaper


class Frontier(NamedTuple):
    """Rows of a table by one cost."""

    metric: str
    cost: str  # a key of `COSTS`
    points: tuple[Point, ...]


class SliceChart(NamedTuple):
    """Quality of the best rows on parts of the users; None where a slice is empty. Means over seeds of all three."""

    metric: str
    slices: tuple[tuple[str, int], ...]  # name, users
    rows: tuple[tuple[str, tuple[Interval | None, ...]], ...]


class Curve(NamedTuple):
    """What validation said of each value that a run tried."""

    row: str
    seed: int
    stage: str
    points: tuple[tuple[float, float], ...]  # value, selection metric; by value
    metric: str


class Setting(NamedTuple):
    """One row of `Settings`, beside what a paper prints for it."""

    name: str
    quality: Interval
    printed: float | None


class Settings(NamedTuple):
    """The rows of one method in a table, the lowest first: a ladder of its parts, a choice between its modes."""

    method: str
    metric: str
    steps: tuple[Setting, ...]


@dataclass(frozen=True)
class CriticalDifference:
    """Average ranks over data sets (1 is best), and how far two must lie apart to differ (Nemenyi)."""

    protocol: str
    mask_seen: bool
    exclude: str
    tier: str
    metric: str
    datasets: tuple[str, ...]
    ranks: tuple[tuple[str, float], ...]  # best first
    test: statistics.Friedman

    @property
    def bars(self) -> list[tuple[int, int]]:
        """First and last place of each longest group of neighbours that do not differ."""
        values = [rank for _, rank in self.ranks]
        bars: list[tuple[int, int]] = []
        for first, low in enumerate(values):
            last = max(place for place, rank in enumerate(values) if rank - low < self.test.critical_difference)
            if last > first and (not bars or last > bars[-1][1]):
                bars.append((first, last))
        return bars


def frontier(table: Table, cost: str) -> Frontier | None:
    """Rows with runs by quality and ``cost``; None with fewer than two."""
    metric = QUALITY[table.key.protocol]
    found = []
    for place, row in enumerate(table.rows):
        if row.cost is None or metric not in row.metrics:
            continue
        value = float(getattr(row.cost, cost))
        if not math.isfinite(value) or (value <= 0 and cost not in LOWER_IS_BETTER):
            continue
        cell = row.metrics[metric]
        quality = Interval(mean=cell.mean, low=cell.low, high=cell.high)
        found.append(Point(place, row.name, row.family, max(value, SHORTEST_S), quality, False))
    cheapest = sorted(found, key=lambda one: (one.cost * (1 if cost in LOWER_IS_BETTER else -1), -one.quality.mean))
    best, on = -math.inf, set()
    for one in cheapest:
        if one.quality.mean > best:
            best = one.quality.mean
            on.add(one.row)
    points = tuple(one._replace(on_frontier=one.row in on) for one in found)
    return Frontier(metric, cost, points) if len(points) > 1 else None


def slice_chart(table: Table, runs: Runs) -> SliceChart | None:
    """The table's best rows on the slices of their records."""
    metric = QUALITY[table.key.protocol]
    shown = [row for row in table.rows if row.runs][:MOST_SLICED]
    users: dict[str, int] = {}
    for row in shown:
        for run in row.runs:
            for name, one in runs[run].slices.items():
                users[name] = max(users.get(name, 0), one.users)
    names = [name for name, count in users.items() if count]
    if not names:
        return None
    rows = tuple((row.name, tuple(_slice_mean(row, runs, name, metric) for name in names)) for row in shown)
    return SliceChart(metric, tuple((name, users[name]) for name in names), rows)


def _slice_mean(row: Row, runs: Runs, name: str, metric: str) -> Interval | None:
    found = [runs[run].slices[name].metrics.get(metric) for run in row.runs if name in runs[run].slices]
    known = [one for one in found if one is not None]
    if not known:
        return None
    parts = {part: float(np.mean([getattr(one, part) for one in known])) for part in ("mean", "low", "high")}
    return Interval(**parts)


def curves(table: Table, runs: Runs) -> list[Curve]:
    """A curve for each row and stage: that of its first seed which has one."""
    found: dict[tuple[str, str], Curve] = {}
    for row in table.rows:
        for run in row.runs:
            record = runs[run]
            for stage, values in record.curves().items():
                points = tuple(sorted((float(value), score) for value, score in values.items()))
                if len(points) >= FEWEST_POINTS:
                    curve = Curve(row.name, record.seed, stage, points, record.validation.metric)
                    found.setdefault((row.name, stage), curve)
    return list(found.values())


def settings(table: Table) -> list[Settings]:
    """The methods that stand in the table with several settings."""
    metric = QUALITY[table.key.protocol]
    rows: dict[str, list[Setting]] = defaultdict(list)
    for row in table.rows:
        cell = row.metrics.get(metric)
        if cell is not None:
            printed = None if cell.published is None else cell.published.value
            rows[row.method].append(Setting(row.name, Interval(mean=cell.mean, low=cell.low, high=cell.high), printed))
    return [
        Settings(method, metric, tuple(sorted(steps, key=lambda one: (one.quality.mean, one.name))))
        for method, steps in sorted(rows.items())
        if len(steps) >= FEWEST_SETTINGS
    ]


def critical_differences(board: Leaderboard) -> list[CriticalDifference]:
    """One for each protocol, its settings and tier, where enough data sets have the same methods.

    Of the methods, those that every data set has. A data set that the records know with several contents or sets of
    rules counts once, with those that have the most rows.
    """
    groups: dict[tuple[str, bool, str, str], dict[str, Table]] = defaultdict(dict)
    for table in board.tables:
        key = table.key
        group = groups[key.protocol, key.mask_seen, key.exclude, key.tier]
        known = group.get(key.dataset)
        if known is None or len(table.rows) > len(known.rows):
            group[key.dataset] = table
    found = []
    for settings, tables in sorted(groups.items()):
        metric = QUALITY[settings[0]]
        means = [
            {row.name: row.metrics[metric].mean for row in table.rows if metric in row.metrics}
            for _, table in sorted(tables.items())
        ]
        names = sorted(set.intersection(*map(set, means)))
        if len(tables) < FEWEST_DATASETS or len(names) < FEWEST_METHODS:
            continue
        test = statistics.friedman(np.array([[one[name] for name in names] for one in means]))
        ranks = sorted(zip(names, test.average_ranks, strict=True), key=lambda one: (one[1], one[0]))
        found.append(CriticalDifference(*settings, metric, tuple(sorted(tables)), tuple(ranks), test))
    return found


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, which differ."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def cost_ticks(cost: str, low: float, high: float) -> list[tuple[float, str]]:
    """Marks of a logarithmic axis of ``cost`` from below ``low`` to above ``high``, with their words."""
    if cost == "train_seconds":
        marks = [(0.1, "0.1 s"), (1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"),
                 (36_000, "10 h"), (360_000, "100 h"), (3_600_000, "1,000 h")]  # fmt: skip
    else:
        marks = [(10.0**power, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}") for power in range(-3, 10)]
    first = max((place for place, (value, _) in enumerate(marks) if value <= low), default=0)
    last = min((place for place, (value, _) in enumerate(marks) if value >= high), default=len(marks) - 1)
    return marks[first : last + 1] if last > first else marks[max(first - 1, 0) : first + 2]
