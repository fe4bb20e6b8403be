"""What a leaderboard is made of, and its forms for people: plain text, Markdown and LaTeX.

Forms hold no dates and no paths, so that the same records give the same bytes. Names and reasons come from outside:
each form escapes them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tabulate import tabulate

WIDTH = 120  # columns of the plain form
MIN_NAME = 8  # columns left to a name that has to give way
TITLES = {
    "amazon2014-beauty": "Amazon 2014 Beauty",
    "amazon2014-sports": "Amazon 2014 Sports",
    "amazon2018-arts": "Amazon 2018 Arts",
    "amazon2018-games": "Amazon 2018 Games",
    "amazon2018-instruments": "Amazon 2018 Instruments",
    "lastfm": "LastFM",
    "ml-100k": "MovieLens-100K",
    "steam": "Steam",
    "yelp": "Yelp",
}
PROTOCOLS = {"full": "full ranking", "cand20": "20 candidates"}
WINDOW = "negatives from outside the window"
NARROW = {"full": ("recall@10", "ndcg@10"), "cand20": ("hitratio@1", "validratio")}
WIDE = {
    "full": ("recall@5", "recall@10", "ndcg@5", "ndcg@10"),
    "cand20": ("hitratio@1", "validratio", "hitratio@1_given_valid"),
}
MARKDOWN_HEAD = """# Leaderboard

Each table is one data set, one protocol and one tier: the language models of tier tiny are small and trained from
scratch, base has SmolLM2-135M, paper the papers' own. Values are means over users (seeds averaged first) with 95%
intervals; bold is the best, \\* tied with it (paired tests, Holm's correction).

Behind a paper's figure: reproduced (within 5%), consistent (only inside our interval), close (within 15%), higher or
lower (ours is), other model (ours is smaller, or less of it is trained), other data (another cut), different protocol:
[docs/report.md](../docs/report.md)."""
STATES = "The same weights in other states"
STATE_TEXT = {"exact_match": "title exact", "token_f1": "title F1"}
SPELLING = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "hitratio": "HitRatio", "validratio": "ValidRatio"}


class Key(NamedTuple):
    """What all runs of one table share."""

    dataset: str
    dataset_sha256: str
    protocol: str
    mask_seen: bool
    protocol_hash: str
    tier: str
    exclude: str = "sequence"  # what negatives are not drawn from


@dataclass(frozen=True)
class Published:
    """A printed figure beside a measured one."""

    value: float
    paper: str
    table: str
    verdict: str


@dataclass(frozen=True)
class Cell:
    """One metric of one row. ``sd`` is over seeds, None for one seed."""

    mean: float
    low: float
    high: float
    sd: float | None
    best: bool
    tied_with_best: bool
    published: Published | None


@dataclass(frozen=True)
class Cost:
    """Means over seeds; the largest peak of memory."""

    parameters: int
    trainable_parameters: int
    train_seconds: float
    users_per_second: float
    peak_memory_mib: float
    device: str


@dataclass(frozen=True)
class Row:
    """One line of a table. Without runs only ``reason_missing`` is known."""

    name: str
    method: str
    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    users: int = 0
    metrics: Mapping[str, Cell] = field(default_factory=dict)
    list_metrics: Mapping[str, float] = field(default_factory=dict)  # coverage, novelty, ...: means over seeds
    cost: Cost | None = None
    runs: tuple[str, ...] = ()
    reason_missing: str | None = None
    missing_seeds: Mapping[int, str] = field(default_factory=dict)
    family: str = ""
    outside: bool = False  # verified from somebody else's package, not run here
    tuning: "Effort | None" = None


@dataclass(frozen=True)
class Effort:
    """The search on validation that gave a row its settings; its record is tuning-<study>.json."""

    study: str
    trials: int
    budget_trials: int
    budget_seconds: float | None
    spent_seconds: float
    best_value: float | None
    engine: str

    def __str__(self) -> str:
        budget = "" if self.budget_seconds is None else f" of at most {self.budget_seconds:.0f}"
        return (
            f"settings searched on validation, {self.trials} of {self.budget_trials} trials, "
            f"{self.spent_seconds:.0f}{budget} s (tuning-{self.study}.json)"
        )


class State(NamedTuple):
    """A state of a row's weights (an adapter on, off): means over the row's seeds, or over those that the name says."""

    row: str
    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """One table; ``notes`` are sentences that belong under it, ``states`` those of rows that have several."""

    key: Key
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    states: tuple[State, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """All tables, in a stable order."""

    tables: tuple[Table, ...]


def text(board: Leaderboard, bold: bool = False) -> str:
    """Plain tables that fit 120 columns. The best is bold (``bold``: terminal codes) or marked **, ties have one *."""
    return "\n\n".join(_text_table(table, bold) for table in board.tables) + "\n"


def markdown(board: Leaderboard) -> str:
    """What the words in it mean, then a heading and a pipe table a group."""
    return "\n\n".join([MARKDOWN_HEAD, *(_markdown_table(table) for table in board.tables)]) + "\n"


def latex(board: Leaderboard) -> str:
    r"""A table environment a group, for `\usepackage{booktabs}`: best bold, second underlined, ties with a dagger."""
    return "\n\n".join(_latex_table(table) for table in board.tables) + "\n"


def metric_title(name: str) -> str:
    """``recall@10`` as papers write it: Recall@10."""
    base, at, rest = name.partition("@")
    return SPELLING.get(base, base) + at + rest.replace("_", " ")


def clean(content: str) -> str:
    """One line of printable characters: names and reasons may hold line breaks and terminal codes."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(content.split()))


def escape_markdown(content: str) -> str:
    """Text that neither ends a cell nor becomes markup or HTML."""
    content = clean(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", content)


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "·": r"$\cdot$", "±": r"$\pm$", "…": r"\dots{}",
}  # fmt: skip


def escape_latex(content: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(LATEX.get(letter, letter) for letter in clean(content))


def rules(protocol: str, mask_seen: bool, exclude: str) -> str:
    """``full ranking, seen items removed``: a protocol, and what is not as usual."""
    return PROTOCOLS[protocol] + ", seen items removed" * mask_seen + f", {WINDOW}" * (exclude == "window")


def heading(table: Table) -> str:
    """``MovieLens-100K · full ranking · seen items kept · tier tiny · 943 users · 3 seeds``."""
    key, rows = table.key, [row for row in table.rows if row.runs]
    parts = [TITLES.get(key.dataset, key.dataset), PROTOCOLS[key.protocol]]
    if key.protocol == "full":
        parts.append("seen items removed" if key.mask_seen else "seen items kept")
    elif key.exclude == "window":
        parts.append(WINDOW)
    parts.append(f"tier {key.tier}")
    if rows:
        parts += [_range([row.users for row in rows], "user"), _range([len(row.seeds) for row in rows], "seed")]
    return " · ".join(parts)


def _range(counts: Sequence[int], what: str) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,} {what}{'' if low == 1 else 's'}" if low == high else f"{low:,}-{high:,} {what}s"


def parameters(count: int) -> str:
    """``1.2 M``."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if count >= size / 10:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.0f} k" if count >= 1000 else str(count)


def duration(seconds: float) -> str:
    """``86 s``, ``3 min``, ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def costs(row: Row) -> list[str]:
    """Parameters, training time, users a second, peak memory; empty for a row without runs."""
    if row.cost is None:
        return [""] * 4
    cost = row.cost
    return [
        parameters(cost.parameters),
        duration(cost.train_seconds),
        f"{cost.users_per_second:,.0f}",
        f"{cost.peak_memory_mib:,.0f}",
    ]


COST_HEADINGS = ["params", "train", "users/s", "peak MiB"]


def _short(value: float) -> str:
    """0.0631 as .0631, to save columns."""
    return f"{value:.4f}".removeprefix("0")


def _text_table(table: Table, bold: bool) -> str:
    narrow = NARROW[table.key.protocol]
    head = ["method", *map(metric_title, narrow), *COST_HEADINGS, f"paper {metric_title(narrow[0])}"]
    lines = [[clean(row.name), *_text_cells(row, narrow)] for row in table.rows if row.runs]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    widths[0] = _name_width([line[0] for line in lines], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    shown = [_text_line(head, widths)]
    for row, line in zip([row for row in table.rows if row.runs], lines, strict=True):
        best = [name in row.metrics and row.metrics[name].best for name in narrow]
        shown.append(_text_line(line, widths, [False, *best] if bold else []))
    for row in table.rows:
        if not row.runs:
            shown.append(_cut(f"{_cut(clean(row.name), widths[0]).ljust(widths[0])}  - {_reason(row)}", WIDTH))
    legend = "(best bold, * tied with best)" if bold else "(best **, * tied with best)"
    title = heading(table)
    title = f"{title}   {legend}" if len(title) + len(legend) + 3 <= WIDTH else f"{title}\n{legend}"
    states = ["", *_states(table, clean, "simple").splitlines()] if table.states else []
    return "\n".join([title, *shown, *(f"note: {clean(note)}" for note in table.notes), *states])


def states(table: Table) -> tuple[list[str], list[list[str]]]:
    """The states as a grid of their own, its head and its lines: what each ranks, and the titles it writes."""
    narrow = NARROW[table.key.protocol]
    head = ["method", "state", *map(metric_title, narrow), *STATE_TEXT.values()]
    lines = [
        [state.row, state.name, *(
            f"{state.values[name]:.4f}" if name in state.values else "" for name in (*narrow, *STATE_TEXT)
        )]
        for state in table.states
    ]  # fmt: skip
    return head, lines


def _states(table: Table, escape: Callable[[str], str], form: str) -> str:
    head, lines = states(table)
    escaped = [[escape(row), escape(state), *values] for row, state, *values in lines]
    return tabulate(escaped, head, tablefmt=form, disable_numparse=True)


def _text_cells(row: Row, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        cell = row.metrics.get(name)
        mark = "" if cell is None else "**" if cell.best else "*" if cell.tied_with_best else ""
        cells.append("-" if cell is None else f"{cell.mean:.4f} [{_short(cell.low)},{_short(cell.high)}]{mark}")
    main = row.metrics.get(names[0])
    beside = main.published if main else None
    paper = (
        "-" if beside is None else f"{beside.value:.4f} {beside.verdict.replace('different protocol', 'other rules')}"
    )
    return [*cells, *costs(row), paper]


def _text_line(cells: Sequence[str], widths: Sequence[int], bold: Sequence[bool] = ()) -> str:
    padded = [_cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)]
    for column in (column for column, is_best in enumerate(bold) if is_best):
        visible = padded[column].replace("**", "  ")
        padded[column] = f"\x1b[1m{visible.rstrip()}\x1b[0m{' ' * (len(visible) - len(visible.rstrip()))}"
    return "  ".join(padded).rstrip()


def _name_width(names: Sequence[str], room: int) -> int:
    """What ``room`` there is for them, or as much more as tells them apart."""
    longest = max(map(len, names), default=0)
    width = max(MIN_NAME, min(longest, room))
    while width < longest and len({_cut(name, width) for name in names}) < len(names):
        width += 1
    return width


def _cut(content: str, width: int) -> str:
    return content if len(content) <= width else content[: width - 1] + "…"


def _reason(row: Row) -> str:
    return f"missing: {clean(row.reason_missing or '')}"


def _papers(row: Row, names: Sequence[str]) -> str:
    """Printed figures of these metrics, with what they are compared to and where they stand."""
    found = [(name, row.metrics[name].published) for name in names if name in row.metrics]
    shown = [(name, beside) for name, beside in found if beside is not None]
    figures = "; ".join(f"{metric_title(name)} {beside.value:.4f} {beside.verdict}" for name, beside in shown)
    places = ", ".join(dict.fromkeys(f"{beside.paper} {beside.table}" for _, beside in shown))
    return f"{figures} ({places})" if shown else "-"


def _markdown_table(table: Table) -> str:
    wide = WIDE[table.key.protocol]
    head = ["method", "users", "seeds", *map(metric_title, wide), *COST_HEADINGS, "paper"]
    lines = []
    for row in table.rows:
        cells = [_markdown_cell(row.metrics.get(name)) for name in wide]
        end = escape_markdown(_papers(row, wide) if row.runs else _reason(row))
        counts = [f"{row.users:,}", str(len(row.seeds))] if row.runs else ["", ""]
        lines.append([escape_markdown(row.name), *counts, *cells, *costs(row), end])
    grid = tabulate(lines, head, tablefmt="pipe", disable_numparse=True)
    notes = [f"- {escape_markdown(note)}" for note in table.notes]
    legend = "Best bold, \\* tied with best; 95% intervals over users."
    parts = [f"## {escape_markdown(heading(table))}", "", legend, "", grid, *(["", *notes] if notes else [])]
    if table.states:
        parts += ["", f"{STATES}:", "", _states(table, escape_markdown, "pipe")]
    return "\n".join(parts)


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    tied = "\\*" if cell.tied_with_best else ""
    mean = f"**{cell.mean:.4f}**" if cell.best else f"{cell.mean:.4f}{tied}"
    return f"{mean} \\[{cell.low:.4f}, {cell.high:.4f}\\]"


def _latex_table(table: Table) -> str:
    wide = WIDE[table.key.protocol]
    head = ["method", "users", "seeds", *map(metric_title, wide), *COST_HEADINGS, "paper"]
    lines = []
    for row in table.rows:
        if not row.runs:
            reason = rf"\multicolumn{{{len(head) - 1}}}{{l}}{{{escape_latex(_reason(row))}}}"
            lines.append(rf"{escape_latex(row.name)} & {reason} \\")
            continue
        cells = [_latex_cell(row.metrics.get(name), _second(table, name)) for name in wide]
        end = escape_latex(_papers(row, wide))
        line = [escape_latex(row.name), f"{row.users:,}", str(len(row.seeds)), *cells, *costs(row), end]
        lines.append(" & ".join(line) + r" \\")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape_latex(heading(table))}. Best bold, second underlined, $^\dagger$ tied with best.}}",
            rf"\begin{{tabular}}{{lrr{'l' * len(wide)}rrrrl}}",
            r"\toprule",
            " & ".join(escape_latex(cell) for cell in head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {{\footnotesize {escape_latex(note)}}}" for note in table.notes),
            r"\end{table}",
        ]
    )


def _second(table: Table, name: str) -> float | None:
    """The highest mean below the best."""
    below = [row.metrics[name].mean for row in table.rows if name in row.metrics and not row.metrics[name].best]
    return max(below, default=None)


def _latex_cell(cell: Cell | None, second: float | None) -> str:
    if cell is None:
        return ""
    mean = f"{cell.mean:.4f}"
    if cell.best:
        mean = rf"\textbf{{{mean}}}"
    elif cell.mean == second:
        mean = rf"\underline{{{mean}}}"
    tied = r"$^\dagger$" if cell.tied_with_best else ""
    return rf"{mean}{tied} {{\scriptsize [{cell.low:.4f}, {cell.high:.4f}]}}"
