"""The suite from Python: grids and leaderboards as pandas tables.

from genrec_bench.benchmark import leaderboard, run, tune

run(["sasrec", "markov"], ["ml-100k"], seeds=[0, 1, 2])
leaderboard("results").query("tier == 'tiny'").sort_values("ndcg@10")
tune(["sasrec"], ["ml-100k"], trials=20)[["method", "best ndcg@10", "settings"]]
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from genrec_bench.benchmark import engines, standings, tables
from genrec_bench.benchmark.tables import Leaderboard, Row, Table
from genrec_bench.datasets.errors import InputError

if TYPE_CHECKING:
    from genrec_bench.benchmark.suite import Suite
    from genrec_bench.benchmark.tuning import Study


class Standings(pd.DataFrame):
    """A leaderboard as a table: a line a row, with the row's metrics, their 95% intervals and its cost as columns.

    Columns of a metric are ``recall@10``, ``recall@10 low``, ``recall@10 high`` and ``recall@10 tied`` (the best or
    tied with it); where a paper prints it, ``recall@10 published`` (its figure), ``recall@10 paper`` (who, in which
    table) and ``recall@10 verdict``. The ``search...`` columns are of the search on validation behind a row's
    settings: its id, its trials and seconds, and the budget of both. What is made from it (a selection, a sort) is a
    plain DataFrame. Notebooks show it as the command line prints it, one table for each data set, protocol and tier.
    """

    _metadata = ["board"]  # noqa: RUF012 - pandas' name for attributes
    board: Leaderboard

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        return str(Markup("").join(_html(table) for table in self.board.tables))

    def __repr__(self) -> str:
        return tables.text(self.board).rstrip("\n")


def run(
    methods: Sequence[str | Mapping[str, Any]],
    datasets: Sequence[str],
    *,
    protocols: Sequence[str] = ("full",),
    seeds: Sequence[int] = (0,),
    scale: str = "tiny",
    mask_seen: bool = False,
    exclude: str = "sequence",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    plugins: Sequence[str | Path] = (),
    time_budget: str | None = None,
    keep_models: bool = False,
    results: str | Path = "results",
    jobs: int | None = None,
    track: Sequence[str] = (),
    engine: str = "local",
    address: str | None = None,
    resources: Mapping[str, Mapping[str, Any]] | None = None,
    quiet: bool = True,
) -> Standings:
    """Run what is missing of a grid, as `genrec-bench run` does, and return the standings of its runs.

    ``methods`` holds names, or entries as in a suite file (``{"method": "sasrec", "label": "bce", "config": {"loss":
    "bce"}}``); ``mask_seen`` is of the protocol full, ``exclude`` of cand20; ``settings`` maps a method to config
    values, such as ``{"sasrec": {"dropout": 0.3}}``; ``time_budget`` is of one run, such as "25m"; ``track`` names
    trackers (`genrec_bench.benchmark.trackers`). ``engine`` "ray" runs on the Ray at ``address``, or on one of this
    machine's own; ``resources`` are what its runs of a method ask for, ``{"tiger": {"gpus": 0.5}}``. A run that failed
    is a line with its ``reason_missing``. Raises InputError where an argument is wrong or the data cannot be had.
    """
    from genrec_bench.benchmark import trackers
    from genrec_bench.benchmark.suite import cells, refuse_unused, seconds

    on_ray = engines.on_ray(engine, address, resources)
    suite = _suite(
        methods, datasets, protocols, scale, mask_seen, plugins, seeds=list(seeds), exclude=exclude,
        time_budget=time_budget, keep_models=keep_models,
    )  # fmt: skip
    grid = cells(suite, {name: dict(values) for name, values in (settings or {}).items()})
    refuse_unused(resources or {}, suite, "resources")
    budget_s = seconds(suite.time_budget) if suite.time_budget else None
    progress = trackers.progress(quiet, track, Path(results))
    outcome = engines.run_cells(grid, Path(results), progress, budget_s, False, jobs, keep_models, on_ray)
    return _standings(standings.read(Path(results), run_ids=outcome.run_ids)[0])


def tune(
    methods: Sequence[str | Mapping[str, Any]],
    datasets: Sequence[str],
    *,
    trials: int = 20,
    time_budget: str | None = None,
    protocol: str = "full",
    seed: int = 0,
    scale: str = "tiny",
    mask_seen: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    plugins: Sequence[str | Path] = (),
    results: str | Path = "results",
    output: str | Path | None = None,
    engine: str = "local",
    address: str | None = None,
    resources: Mapping[str, Mapping[str, Any]] | None = None,
    jobs: int | None = None,
    quiet: bool = True,
) -> pd.DataFrame:
    """Search each method's settings on validation, as `genrec-bench tune` does; a line a method and data set.

    ``time_budget`` is of each search, ``seed`` of the search, ``settings`` are not searched, ``jobs`` (trials at a
    time) is of the engine ray; the rest as of `run`. Columns: the ``search``, its ``trials`` and ``seconds``, ``own
    ndcg@10`` of the settings it began with, ``best ndcg@10``, and ``settings``, which `run` takes as
    ``settings={method: ...}``; the last two are None where no trial ended well. ``output`` (default:
    RESULTS/tuned.yaml) is written as a suite of the best settings. Raises InputError as `run` does.
    """
    from genrec_bench.benchmark import tuning, tuning_report
    from genrec_bench.benchmark.progress import Progress
    from genrec_bench.benchmark.suite import seconds

    on_ray = engines.on_ray(engine, address, resources)
    if jobs and on_ray is None:
        raise InputError("jobs is of engine ray: without it trials go one after the other")
    suite = _suite(methods, datasets, [protocol], scale, mask_seen, plugins)
    fixed = {name: dict(values) for name, values in (settings or {}).items()}
    budget_s = seconds(time_budget) if time_budget else None
    studies = tuning.tune(suite, fixed, Path(results), Progress(quiet), trials, budget_s, seed, jobs, on_ray)
    tuning_report.write_suite(studies, Path(output or Path(results) / "tuned.yaml"), suite)
    return pd.DataFrame([_search(study) for study in studies])


def _suite(
    methods: Sequence[str | Mapping[str, Any]],
    datasets: Sequence[str],
    protocols: Sequence[str],
    scale: str,
    mask_seen: bool,
    plugins: Sequence[str | Path],
    **others: Any,
) -> "Suite":
    from genrec_bench.benchmark.suite import make_suite

    return make_suite(
        {
            "methods": [dict(one) if isinstance(one, Mapping) else one for one in methods],
            "datasets": list(datasets),
            "protocols": list(protocols),
            "scale": scale,
            "mask_seen": mask_seen,
            "plugins": [str(path) for path in plugins],
            **others,
        }
    )


def _search(study: "Study") -> dict[str, Any]:
    from genrec_bench.benchmark.suite import merged
    from genrec_bench.benchmark.tuning import nested

    best, metric = study.best, study.cell.rules.selection_metric
    own = next((trial.value for trial in study.finished if trial.values == study.defaults), None)
    return {
        "method": study.cell.method, "dataset": study.cell.dataset, "search": study.identity,
        "trials": len(study.finished), "seconds": study.spent_s, f"own {metric}": own,
        f"best {metric}": None if best is None else best.value,
        "settings": None if best is None else merged(study.fixed, nested(best.values)),
    }  # fmt: skip


def leaderboard(results: str | Path = "results", dataset: str | None = None) -> Standings:
    """The standings of all records in a folder; raises InputError where there are none."""
    return _standings(standings.read(Path(results), dataset)[0])


def _standings(board: Leaderboard) -> Standings:
    frame = Standings([_line(table, row) for table in board.tables for row in table.rows])
    for column in [name for name in frame.columns if name.endswith(" tied")]:
        frame[column] = frame[column].eq(True)  # a row without the metric is not tied: the column can select rows
    frame.board = board
    return frame


def _line(table: Table, row: Row) -> dict[str, Any]:
    key = table.key
    line: dict[str, Any] = {
        "dataset": key.dataset, "protocol": key.protocol, "mask_seen": key.mask_seen, "tier": key.tier,
        "name": row.name, "method": row.method, "label": row.label, "family": row.family, "outside": row.outside,
        "seeds": len(row.seeds), "users": row.users,
    }  # fmt: skip
    for name, cell in row.metrics.items():
        line |= {name: cell.mean, f"{name} low": cell.low, f"{name} high": cell.high}
        line[f"{name} tied"] = cell.best or cell.tied_with_best
        if (beside := cell.published) is not None:
            line |= {f"{name} published": beside.value, f"{name} paper": f"{beside.paper}, table {beside.table}"}
            line[f"{name} verdict"] = beside.verdict
    line |= row.list_metrics
    line |= asdict(row.cost) if row.cost is not None else {}
    if (by := row.tuning) is not None:
        line |= {"search": by.study, "search_trials": by.trials, "search_seconds": by.spent_seconds}
        line |= {"search_budget_trials": by.budget_trials, "search_budget_seconds": by.budget_seconds}
    return {**line, "runs": list(row.runs), "reason_missing": row.reason_missing}


def _html(table: Table) -> Markup:
    """One table for a notebook; whatever comes from outside is escaped."""
    narrow = tables.NARROW[table.key.protocol]
    heads = ["method", *map(tables.metric_title, narrow), *tables.COST_HEADINGS]
    head = Markup("").join(Markup("<th>{}</th>").format(text) for text in heads)
    lines = Markup("").join(_html_row(row, narrow) for row in table.rows)
    return Markup(
        '<table><caption style="text-align:left;white-space:nowrap"><b>{}</b> (best bold, * tied with best; 95% '
        "intervals)</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>"
    ).format(tables.heading(table), head, lines)


def _html_row(row: Row, narrow: Sequence[str]) -> Markup:
    cells = [Markup('<th style="text-align:left">{}</th>').format(tables.clean(row.name))]
    if not row.runs:
        span = len(narrow) + len(tables.COST_HEADINGS)
        reason = tables.clean(row.reason_missing or "")
        cells.append(Markup('<td colspan="{}" style="text-align:left">missing: {}</td>').format(span, reason))
    for name in narrow if row.runs else ():
        cell = row.metrics.get(name)
        if cell is None:
            cells.append(Markup("<td></td>"))
            continue
        mean = Markup("<b>{:.4f}</b>" if cell.best else "{:.4f}*" if cell.tied_with_best else "{:.4f}").format(
            cell.mean
        )
        cells.append(Markup("<td>{} <small>[{:.4f}, {:.4f}]</small></td>").format(mean, cell.low, cell.high))
    cells += [Markup("<td>{}</td>").format(text) for text in (tables.costs(row) if row.runs else ())]
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))
