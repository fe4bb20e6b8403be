"""The report's figures as files, for papers and slides: PNG or SVG by matplotlib.

genrec-bench plot --output pictures --format svg
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genrec_bench.benchmark import figures, standings, tables
from genrec_bench.benchmark.figures import COSTS, CriticalDifference, Curve, Frontier, Settings, SliceChart
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.tables import Leaderboard, Table, metric_title
from genrec_bench.datasets.errors import InputError, unknown

FORMATS = ("png", "svg")
DPI = 200
NAMED = 30  # points of a picture that all get their names; of more, the frontier's
SHAPES = {"generative": "o", "sequential": "s", "counting": "^", "graph": "D", "language": "P", "other": "v"}
COLOURS = {"generative": "#b4451f", "sequential": "#1f5fa8", "counting": "#6d6d6d", "graph": "#23785a",
           "language": "#80439a", "other": "#7a6a12"}  # fmt: skip
ACCENT = "#1f6a64"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "svg.hashsalt": "genrec-bench", "svg.fonttype": "none"}  # fmt: skip


def draw(results_dir: Path, folder: Path, format: str = "png", dataset: str | None = None) -> list[Path]:
    """Every figure that the records of a results folder can fill, as files in ``folder``; the same records, the same
    files. Raises InputError without records or matplotlib."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    board, runs = standings.read(results_dir, dataset)
    plots = pyplot()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        with plots.rc_context(STYLE):
            for name, figure in _drawn(plots, board, runs):
                written.append(folder / f"{name}.{format}")
                metadata = {"Date": None} if format == "svg" else {"Software": None}
                figure.savefig(written[-1], dpi=DPI, bbox_inches="tight", metadata=metadata)
                plots.close(figure)
    except OSError as error:
        raise InputError(f"Cannot write in {folder}: {error.strerror}") from None
    return written


def pyplot() -> Any:
    """matplotlib without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise InputError('Pictures need matplotlib: pip install "genrec-bench[plots]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plots

    return plots


def _drawn(plots: Any, board: Leaderboard, runs: Mapping[str, Record]) -> Iterator[tuple[str, Any]]:
    for table in board.tables:
        prefix = _file_name(table, board)
        title = tables.heading(table)
        for cost in COSTS:
            plane = figures.frontier(table, cost)
            if plane is not None:
                yield f"{prefix}-{cost}", _frontier(plots, plane, title)
        chart = figures.slice_chart(table, runs)
        if chart is not None:
            yield f"{prefix}-slices", _slices(plots, chart, title)
        for number, curve in enumerate(figures.curves(table, runs)):
            yield f"{prefix}-curve{number}-{_safe(curve.stage)}", _curve(plots, curve)
        for ladder in figures.settings(table):
            yield f"{prefix}-settings-{_safe(ladder.method)}", _settings(plots, ladder, title)
    for ranks in figures.critical_differences(board):
        rules = ("-mask_seen" if ranks.mask_seen else "") + ("-window" if ranks.exclude == "window" else "")
        yield f"ranks-{ranks.protocol}{rules}-{_safe(ranks.tier)}", _critical_difference(plots, ranks)


def _file_name(table: Table, board: Leaderboard) -> str:
    key = table.key
    parts = [key.dataset, key.protocol + ("-mask_seen" if key.mask_seen else ""), key.tier]
    twins = [
        one.key for one in board.tables if one.key[:1] + one.key[2:4] + one.key[5:6] == key[:1] + key[2:4] + key[5:6]
    ]
    if len(twins) > 1:  # other contents of the data set, or other rules
        parts += [key.dataset_sha256[:6], key.protocol_hash[:6]]
    return _safe("-".join(parts))


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)


def _text(content: str) -> str:
    """Text that matplotlib prints as it stands: a dollar sign would begin a formula."""
    return tables.clean(content).replace("$", r"\$")


def _frontier(plots: Any, figure: Frontier, title: str) -> Any:
    picture, axes = plots.subplots(figsize=(6.4, 4.2))
    for one in figure.points:
        family = one.family if one.family in SHAPES else "other"
        error = [[one.quality.mean - one.quality.low], [one.quality.high - one.quality.mean]]
        if len(figure.points) <= NAMED:
            axes.errorbar(
                one.cost, one.quality.mean, yerr=error, color=COLOURS[family], alpha=0.4, linewidth=1, zorder=2
            )
        axes.scatter(one.cost, one.quality.mean, color=COLOURS[family], marker=SHAPES[family], s=28, zorder=3)
        if one.on_frontier or len(figure.points) <= NAMED:
            weight = "bold" if one.on_frontier else "normal"
            axes.annotate(_text(one.name), (one.cost, one.quality.mean), xytext=(5, 3), textcoords="offset points",
                          fontsize=7, fontweight=weight)  # fmt: skip
    steps = sorted((one for one in figure.points if one.on_frontier), key=lambda one: one.cost)
    axes.plot(
        [one.cost for one in steps], [one.quality.mean for one in steps], "--", color=ACCENT, linewidth=1, zorder=1
    )
    for family in sorted({one.family if one.family in SHAPES else "other" for one in figure.points}):
        axes.scatter([], [], color=COLOURS[family], marker=SHAPES[family], label=family)
    unit = ", seconds" if figure.cost == "train_seconds" else ""
    axes.set(xscale="log", xlabel=COSTS[figure.cost] + unit, ylabel=metric_title(figure.metric))
    axes.set_title(_text(title), fontsize=8, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return picture


def _slices(plots: Any, figure: SliceChart, title: str) -> Any:
    height = 1.4 + 0.24 * len(figure.rows)  # titles and axis, which one row needs as well, and the rows
    picture, panes = plots.subplots(1, len(figure.slices), figsize=(2 + 1.7 * len(figure.slices), height), sharey=True,
                                    sharex=True, squeeze=False, layout="constrained")  # fmt: skip
    for column, (pane, (name, users)) in enumerate(zip(panes[0], figure.slices, strict=True)):
        for place, (_, cells) in enumerate(figure.rows):
            one = cells[column]
            if one is not None:
                error = [[one.mean - one.low], [one.high - one.mean]]
                pane.barh(place, one.mean, xerr=error, color=ACCENT, height=0.65, error_kw={"linewidth": 1})
        pane.set_title(f"{name.replace('_', ' ')}\n{users:,} users", fontsize=8, loc="left")
        pane.grid(visible=False, axis="y")
    panes[0][0].set_yticks(range(len(figure.rows)), [_text(name) for name, _ in figure.rows], fontsize=7)
    panes[0][0].invert_yaxis()
    picture.supxlabel(metric_title(figure.metric), fontsize=8)
    picture.suptitle(_text(title), fontsize=8, x=0.02, ha="left")
    return picture


def _curve(plots: Any, figure: Curve) -> Any:
    picture, axes = plots.subplots(figsize=(4.6, 3.2))
    xs, ys = [value for value, _ in figure.points], [score for _, score in figure.points]
    axes.plot(xs, ys, marker="o", color=ACCENT)
    best = xs[ys.index(max(ys))]
    axes.axvline(best, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel=_text(figure.stage), ylabel=f"{metric_title(figure.metric)} on validation")
    axes.set_title(_text(f"{figure.row}, seed {figure.seed}: best at {best:g}"), fontsize=8, loc="left")
    return picture


def _settings(plots: Any, figure: Settings, title: str) -> Any:
    picture, axes = plots.subplots(figsize=(6.4, 0.9 + 0.3 * len(figure.steps)))
    means = [step.quality.mean for step in figure.steps]
    places = list(range(len(means)))
    error = [[step.quality.mean - step.quality.low for step in figure.steps],
             [step.quality.high - step.quality.mean for step in figure.steps]]  # fmt: skip
    axes.errorbar(means, places, xerr=error, fmt="o-", color=ACCENT, ecolor="grey", linewidth=1, label="measured")
    printed = [(step.printed, place) for place, step in enumerate(figure.steps) if step.printed is not None]
    if printed:
        axes.scatter(*zip(*printed, strict=True), marker="D", facecolor="none", edgecolor="#93480a", label="paper")
        axes.legend(fontsize=7, frameon=False)
    axes.set_yticks(places, [_text(step.name) for step in figure.steps], fontsize=7)
    axes.set(xlabel=metric_title(figure.metric), ylim=(len(means) - 0.5, -0.5))
    axes.set_title(_text(title), fontsize=8, loc="left")
    return picture


def _critical_difference(plots: Any, figure: CriticalDifference) -> Any:
    """Names down the left, ranks along the axis; a bar joins neighbours that do not differ."""
    names, ranks = zip(*figure.ranks, strict=True)
    picture, axes = plots.subplots(figsize=(6.4, 1.0 + 0.26 * len(names)))
    axes.scatter(ranks, range(len(names)), color=ACCENT, zorder=3)
    for number, (first, last) in enumerate(figure.bars):
        at = len(names) - 0.4 + 0.35 * number
        axes.plot([ranks[first], ranks[last]], [at, at], color="black", linewidth=3, solid_capstyle="butt")
    labels = [f"{_text(name)}  {rank:.2f}" for name, rank in figure.ranks]
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"average rank over {len(figure.datasets)} data sets by {metric_title(figure.metric)}; "
        f"critical difference {figure.test.critical_difference:.2f}"
    )
    return picture
