"""A leaderboard for other programs: CSV and JSON."""

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from genrec_bench.benchmark.tables import Cell, Key, Leaderboard, Row, clean

ROW_SCHEMA = 1  # of a JSON row; raised when a field changes its meaning
CSV_COLUMNS = (
    "dataset", "dataset_sha256", "protocol", "mask_seen", "tier", "method", "label", "overrides", "seeds", "users",
    "metric", "mean", "low", "high", "sd_over_seeds", "best", "tied_with_best", "published", "paper", "paper_table",
    "verdict", "parameters", "trainable_parameters", "train_seconds", "users_per_second", "peak_memory_mib", "device",
    "runs", "reason_missing", "family", "outside", "search", "search_trials", "search_seconds",
)  # fmt: skip


def as_csv(board: Leaderboard) -> str:
    """One line a row and metric, so that a spreadsheet can pivot; an empty cell is one line with its reason.

    Metrics of whole lists (coverage, novelty, popularity lift) have a mean only.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for table in board.tables:
        for row in table.rows:
            writer.writerows(_csv_lines(table.key, row))
    return out.getvalue()


def as_json(board: Leaderboard) -> str:
    """A list of rows, each with its ``schema``: the stable contract for other programs. Values have six decimals."""
    rows = [_json_row(table.key, row) for table in board.tables for row in table.rows]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def escape_csv(content: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    content = clean(content)
    return f"'{content}" if content.startswith(("=", "+", "-", "@")) else content


def _json_row(key: Key, row: Row) -> dict[str, Any]:
    cells = {name: asdict(cell) for name, cell in row.metrics.items()}
    printed = {name: cell.pop("published") for name, cell in cells.items()}
    return {
        "schema": ROW_SCHEMA,
        "method": row.method,
        "label": row.label,
        "name": row.name,
        "overrides": dict(row.overrides),
        **key._asdict(),
        "seeds": list(row.seeds),
        "users": row.users,
        "metrics": {name: {part: _rounded(value) for part, value in cell.items()} for name, cell in cells.items()},
        "list_metrics": {name: _rounded(value) for name, value in row.list_metrics.items()},
        "published": {name: target for name, target in printed.items() if target is not None},
        "cost": None if row.cost is None else {part: _rounded(value) for part, value in asdict(row.cost).items()},
        "runs": list(row.runs),
        "reason_missing": row.reason_missing,
        "missing_seeds": {str(seed): reason for seed, reason in row.missing_seeds.items()},
        "family": row.family,
        "outside": row.outside,
        **({} if row.tuning is None else {"tuning": asdict(row.tuning)}),
    }


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _csv_lines(key: Key, row: Row) -> list[dict[str, Any]]:
    same = {
        "dataset": escape_csv(key.dataset), "dataset_sha256": key.dataset_sha256, "protocol": key.protocol,
        "mask_seen": key.mask_seen, "tier": escape_csv(key.tier), "method": escape_csv(row.method),
        "label": escape_csv(row.label),
        "overrides": json.dumps(dict(row.overrides), sort_keys=True) if row.overrides else "",
        "seeds": " ".join(map(str, row.seeds)), "users": row.users, "runs": " ".join(row.runs),
        "reason_missing": escape_csv(row.reason_missing or ""), "family": escape_csv(row.family),
        "outside": row.outside,
    }  # fmt: skip
    if (by := row.tuning) is not None:
        same |= {"search": by.study, "search_trials": by.trials, "search_seconds": _rounded(by.spent_seconds)}
    if not row.runs:
        return [same]
    cost = {} if row.cost is None else {part: _rounded(value) for part, value in asdict(row.cost).items()}
    of_lists = [{"metric": name, "mean": _rounded(value)} for name, value in row.list_metrics.items()]
    return [{**same, **cost, **line} for line in (*(_csv_cell(*one) for one in row.metrics.items()), *of_lists)]


def _csv_cell(name: str, cell: Cell) -> dict[str, Any]:
    line = {
        "metric": name, "mean": _rounded(cell.mean), "low": _rounded(cell.low), "high": _rounded(cell.high),
        "sd_over_seeds": "" if cell.sd is None else _rounded(cell.sd), "best": cell.best,
        "tied_with_best": cell.tied_with_best,
    }  # fmt: skip
    if cell.published is not None:
        beside = cell.published
        line |= {"published": beside.value, "paper": beside.paper, "paper_table": beside.table,
                 "verdict": beside.verdict}  # fmt: skip
    return line
