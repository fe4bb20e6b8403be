"""The leaderboard as one HTML file: no network, no script that anything depends on, same records same bytes.

Tables and figures stand in the file as they are; `report.js` sorts, filters, and shows where a number comes from. What
it shows it takes from one block of JSON, and writes as text.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from genrec_bench.benchmark import figures, published, standings, svg, tables
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.tables import Cell, Leaderboard, Row, Table

HERE = Path(__file__).parent
SLICES = {
    "short_history": "short history",
    "long_history": "long history",
    "head_target": "popular target",
    "tail_target": "rare target",
    "cold_target": "unseen target",
}
VERDICTS = dict(zip(published.VERDICTS, "=∋≈↑↓≠≠≠", strict=True))


@dataclass(frozen=True)
class Section:
    """A table of the page with its figures; ``first`` is the number of its first row in the page."""

    table: Table
    first: int
    frontiers: list[Markup]
    slices: figures.SliceChart | None
    curves: list[tuple[figures.Curve, Markup]]
    settings: list[tuple[figures.Settings, Markup]]

    @property
    def heading(self) -> tuple[str, str]:
        """The data set, and the rest of the table's title."""
        name, _, rest = tables.heading(self.table).partition(" · ")
        return name, rest

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns of the table."""
        return tables.WIDE[self.table.key.protocol]

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Ends of the column that draws intervals."""
        cells = [row.metrics[self.order_by] for row in self.table.rows if self.order_by in row.metrics]
        if not cells:
            return 0.0, 1.0
        low, high = min(cell.low for cell in cells), max(cell.high for cell in cells)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    @property
    def order_by(self) -> str:
        """The metric that orders the rows."""
        return standings.ORDER_BY[self.table.key.protocol]

    @property
    def best(self) -> Cell | None:
        """The best row's cell of that metric."""
        cells = [row.metrics[self.order_by] for row in self.table.rows if self.order_by in row.metrics]
        return next((cell for cell in cells if cell.best), None)

    def along(self, value: float) -> str:
        """Where a value lies in the column that draws intervals, in per cent: `scale` and a margin."""
        low, high = self.scale
        return f"{4 + (value - low) / (high - low) * 92:.1f}"


def render(
    results_dir: Path,
    dataset: str | None = None,
    run_ids: Collection[str] | None = None,
    report: Callable[[str], None] | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> str:
    """The page of a results folder; the arguments are those of `standings.render`."""
    board, runs = standings.read(results_dir, dataset, run_ids, report, only)
    return page(board, runs)


def page(board: Leaderboard, runs: Mapping[str, Record]) -> str:
    """The page of these tables; ``runs`` holds the record of each run id in them."""
    rows = [row for table in board.tables for row in table.rows]
    starts = [sum(len(table.rows) for table in board.tables[:place]) for place in range(len(board.tables))]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "metric_title": tables.metric_title, "parameters": tables.parameters, "duration": tables.duration,
        "clean": tables.clean, "short": _short,
    }  # fmt: skip
    families = sorted({svg.family_of(row.family) for row in rows if row.runs})
    text = environment.get_template("report.html").render(
        sections=[_section(table, first, runs) for table, first in zip(board.tables, starts, strict=True)],
        differences=[(one, svg.critical_difference(one)) for one in figures.critical_differences(board)],
        few=svg.FEW,
        fewest=figures.FEWEST_DATASETS,
        datasets=list(dict.fromkeys(table.key.dataset for table in board.tables)),
        dataset_titles=tables.TITLES,
        protocols=list(dict.fromkeys(_protocol(table) for table in board.tables)),
        protocol_of=_protocol,
        rules=tables.rules,
        tiers=list(dict.fromkeys(table.key.tier for table in board.tables)),
        families=[(name, svg.marker(name)) for name in families],
        family_of=svg.family_of,
        runs=len({run for row in rows for run in row.runs}),
        outside=any(row.outside for row in rows),
        slice_titles=SLICES,
        states=tables.states,
        states_title=tables.STATES,
        shapes=svg.SHAPES,
        verdicts=VERDICTS,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "report.js").read_text(encoding="utf-8")),
        data=_script_json(_provenance(board, runs)),
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _protocol(table: Table) -> str:
    return tables.rules(table.key.protocol, table.key.mask_seen, table.key.exclude)


def _section(table: Table, first: int, runs: Mapping[str, Record]) -> Section:
    drawn = [figures.frontier(table, cost) for cost in figures.COSTS]
    return Section(
        table,
        first,
        frontiers=[svg.frontier(one) for one in drawn if one is not None],
        slices=figures.slice_chart(table, runs),
        curves=[(one, svg.curve(one)) for one in figures.curves(table, runs)],
        settings=[(one, svg.settings(one)) for one in figures.settings(table)],
    )


def _short(value: float) -> str:
    """0.0631 as .0631."""
    return f"{value:.4f}".removeprefix("0")


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


class _Shared:
    """Texts that many runs have in common, each written once."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def _provenance(board: Leaderboard, runs: Mapping[str, Record]) -> dict[str, Any]:
    """What `report.js` shows of a row: texts that rows share by their place in ``texts``."""
    shared = _Shared()
    tables_of = [
        {
            "dataset": table.key.dataset,
            "sha256": table.key.dataset_sha256,
            "protocol": _protocol(table),
            "hash": table.key.protocol_hash,
            "tier": table.key.tier,
            "rows": [_row(row, runs, shared) for row in table.rows],
        }
        for table in board.tables
    ]
    return {"tables": tables_of, "texts": [tables.clean(text) for text in shared.texts]}


def _row(row: Row, runs: Mapping[str, Record], shared: _Shared) -> Sequence[Any]:
    """Name, method, family, version, plugin, settings, users, metrics, runs, search."""
    found = [runs[run] for run in row.runs]
    overrides = json.dumps(dict(row.overrides), sort_keys=True, ensure_ascii=False) if row.overrides else ""
    return [
        tables.clean(row.name), shared(row.method), shared(row.family), found[0].method_version if found else 0,
        shared((found[0].plugin_sha256 if found else None) or ""), shared(overrides), row.users,
        [[shared(tables.metric_title(name)), *_cell(cell, shared)] for name, cell in row.metrics.items()],
        [_run(one, shared) for one in found], shared("" if row.tuning is None else str(row.tuning)),
    ]  # fmt: skip


def _digits(value: float | None) -> int | None:
    """A value in ten-thousandths: as many digits as tables have."""
    return None if value is None else round(value * 10_000)


def _cell(cell: Cell, shared: _Shared) -> Sequence[Any]:
    """Mean, ends of the interval, deviation over seeds, mark (2 best, 1 tied); then figure, place and verdict."""
    numbers = [_digits(value) for value in (cell.mean, cell.low, cell.high, cell.sd)]
    mark = 2 if cell.best else 1 if cell.tied_with_best else 0
    beside = cell.published
    if beside is None:
        return [*numbers, mark]
    place = f"{beside.paper}, table {beside.table}"
    return [*numbers, mark, _digits(beside.value), shared(place), shared(beside.verdict)]


def _run(record: Record, shared: _Shared) -> Sequence[Any]:
    """Id, seed, date, training seconds, validation value and metric; then commit, hardware, system and versions."""
    origin, cost = record.provenance, record.cost
    state = {True: " with changes", False: "", None: ""}[origin.git_dirty]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
    used = f"{cost.hardware}, {cost.threads} thread{'' if cost.threads == 1 else 's'} used"
    return [
        record.run_id, record.seed, origin.created.removesuffix("+00:00"), round(cost.train_seconds, 1),
        _digits(record.validation.value), shared(tables.metric_title(record.validation.metric)),
        shared((origin.git_commit or "?") + state), shared(used), shared(origin.platform), shared(versions),
    ]  # fmt: skip
