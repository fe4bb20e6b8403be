"""The tables of docs/ whose numbers come from the committed records, made again from them.

    .venv/bin/python benchmarks/docs_tables.py           # write them
    .venv/bin/python benchmarks/docs_tables.py --check   # or exit with 1 where a page says something else

A table follows a comment. ``<!-- rows DATASET PROTOCOL [--mask-seen] [--scale TIER] -->``: its first column holds
labels of the leaderboard's rows, the others are named ``seeds``, a metric, ``paper``, or a state of the weights and a
metric (``free ValidRatio``). ``<!-- claims METHOD ... -->``: what `claims.py` prints with these arguments.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

import claims

from genrec_bench.benchmark import standings, tables
from genrec_bench.benchmark.tables import Leaderboard, Row, Table

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- (rows|claims) ([^>]*) -->\n)((?:\|.*\n)+)")


def rewritten(text: str, board: Leaderboard, results: Path, with_claims: bool = True) -> str:
    """A page with its tables as the records have them."""

    def table(found: re.Match[str]) -> str:
        comment, kind, asked, before = found.groups()
        if kind == "rows":
            return comment + _rows(before, asked, board)
        if not with_claims:
            return comment + before
        arguments = vars(claims.parser().parse_args(shlex.split(asked)))
        return comment + claims.judge(**{**arguments, "results": results})[0] + "\n"

    return MARKED.sub(table, text)


def _rows(before: str, asked: str, board: Leaderboard) -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("protocol")
    parser.add_argument("--mask-seen", action="store_true")
    parser.add_argument("--scale", default="tiny")
    wanted = parser.parse_args(shlex.split(asked))
    (table,) = (
        one
        for one in board.tables
        if (one.key.dataset, one.key.protocol, one.key.mask_seen, one.key.tier, one.key.exclude)
        == (wanted.dataset, wanted.protocol, wanted.mask_seen, wanted.scale, "sequence")
    )
    head, rule, *lines = before.splitlines()
    columns = [name.strip() for name in head.strip("|").split("|")]
    labels = [line.strip("|").split("|")[0].strip() for line in lines]
    made = [" | ".join([label, *(_cell(table, _row(table, label), name) for name in columns[1:])]) for label in labels]
    return "\n".join([head, rule, *(f"| {line} |" for line in made)]) + "\n"


def _row(table: Table, label: str) -> Row:
    """The row of this name; of this label, where it is the only one."""
    named = [row for row in table.rows if row.name == label] or [row for row in table.rows if row.label == label]
    if len(named) != 1:
        raise SystemExit(f"{tables.heading(table)}: {len(named)} rows are called '{label}'")
    return named[0]


def _cell(table: Table, row: Row, column: str) -> str:
    titles = {tables.metric_title(name): name for name in tables.WIDE[table.key.protocol]}
    if column == "seeds":
        return str(len(row.seeds))
    if column in titles:
        cell = row.metrics[titles[column]]
        return f"{cell.mean:.4f} [{cell.low:.4f}, {cell.high:.4f}]"
    if column == "paper":
        printed = row.metrics[standings.ORDER_BY[table.key.protocol]].published
        return "" if printed is None else f"{printed.value:.4f}"
    state, _, title = column.rpartition(" ")
    if title not in titles:
        raise SystemExit(f"{tables.heading(table)}: there is no column '{column}'")
    found = [one.values[titles[title]] for one in table.states if (one.row, one.name) == (row.name, state)]
    return f"{found[0]:.4f}" if found else ""


def main() -> None:
    """Rewrite the pages, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    board, _ = standings.read(ROOT / "results")
    other = [path for path in sorted((ROOT / "docs").rglob("*.md")) if _differs(path, board, write=not check)]
    print("\n".join(f"{path.relative_to(ROOT)}: {'differs' if check else 'written'}" for path in other) or "as it is")
    sys.exit(1 if check and other else 0)


def _differs(path: Path, board: Leaderboard, write: bool) -> bool:
    before = path.read_text(encoding="utf-8")
    after = rewritten(before, board, ROOT / "results")
    if write and after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


if __name__ == "__main__":
    main()
