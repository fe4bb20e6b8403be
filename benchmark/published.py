"""The figures that papers print, and what to say when ours stands beside one.

`published.csv` holds EAGER-LLM (tables 2-4; its submission version LLM-BS repeats them), AGRec (2-7), RSLLM (2, 4) and
the corrected rows of LLaRA's own page. A method, data set or metric has our name; hit@k is recall@k. ``ok`` is false
for a figure that cannot be a target: a misprint, a copy, a superseded value, or any cell of a row that fails the
arithmetic test where nothing shows which cell is wrong; ``note`` says why. Improvement percentages, averages and
timings are left out.
"""

import csv
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from genrec_bench.benchmark.statistics import Interval
from genrec_bench.datasets import catalogue

PAPERS = ("EAGER-LLM", "AGRec", "RSLLM", "LLaRA")  # the first that prints a figure is shown
MAIN_VARIANTS = ("", "encoder=SASRec")  # the row a paper calls by the method's name, in this order
VERDICTS = ("reproduced", "consistent", "close", "higher", "lower", "other model", "other data", "different protocol")
REPRODUCED = 0.05  # relative difference
CLOSE = 0.15
SAME_CUT = 0.01  # relative difference of counts: papers count a padding id, or misprint a digit
# What the negatives of 20 candidates are not drawn from: RSLLM says items "non-interacted" and has no code; LLaRA's
# figures are its released code's, which leaves out the ten items shown.
SAMPLERS = {"RSLLM": "sequence", "LLaRA": "window"}


class Row(NamedTuple):
    """One printed figure."""

    paper: str
    table: str
    dataset: str
    protocol: str
    method: str
    variant: str
    metric: str
    value: float
    ok: bool
    note: str


class Target(NamedTuple):
    """A printed figure to compare with."""

    value: float
    paper: str
    table: str
    note: str


@lru_cache
def rows() -> tuple[Row, ...]:
    """All printed figures, in the order of the file."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def _row(line: dict[str, str]) -> Row:
    value, ok = float(line.pop("value")), line.pop("ok") == "true"
    return Row(**line, value=value, ok=ok)


def lookup(dataset: str, protocol: str, method: str, variant: str | None = None) -> dict[str, Target]:
    """Metric -> the figure to compare with; empty where no paper prints one.

    ``method`` is our name or the paper's spelling (LC-Rec is lc_rec); without ``variant`` the papers' main row is
    meant. Papers go before each other as in ``PAPERS``, then earlier tables before later ones.
    """
    variants = MAIN_VARIANTS if variant is None else (variant,)
    found = [
        row
        for row in rows()
        if row.ok and (row.dataset, row.protocol) == (dataset, protocol) and row.variant in variants
        and _plain(row.method) == _plain(method)
    ]  # fmt: skip
    targets: dict[str, Target] = {}
    for row in sorted(found, key=lambda row: (PAPERS.index(row.paper), variants.index(row.variant), row.table)):
        targets.setdefault(row.metric, Target(row.value, row.paper, row.table, row.note))
    return targets


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def same_cut(paper: str, dataset: str, counts: tuple[int, int, int]) -> bool:
    """Whether a data set of these users, items and interactions is what the paper measured under that name.

    The paper's counts are those of the data set's card; without any there, it is not known to be the same.
    """
    if dataset not in catalogue.names():
        return False
    printed = [one for one in catalogue.card(dataset).published if paper in re.split("[ ,]+", one.source)]
    return any(
        all(
            abs(ours - theirs) <= SAME_CUT * theirs
            for ours, theirs in zip(counts, (one.users, one.items, one.interactions), strict=True)
        )
        for one in printed
    )


def verdict(
    measured: Interval, printed: float, same_protocol: bool, same_model: bool = True, same_data: bool = True
) -> str:
    """How ours relates to a printed figure: one of `VERDICTS`.

    Reproduced: within 5% of the printed figure. Consistent: it is inside our 95% interval, which few users make wide.
    Close: within 15% of it. Otherwise ours is higher or lower.
    """
    if not same_protocol:
        return "different protocol"
    if not same_data:
        return "other data"
    if not same_model:
        return "other model"
    difference = abs(measured.mean - printed)
    rounding = 1e-9  # 5% exactly is within 5%
    if difference <= REPRODUCED * printed + rounding:
        return "reproduced"
    if measured.low <= printed <= measured.high:
        return "consistent"
    if difference <= CLOSE * printed + rounding:
        return "close"
    return "higher" if measured.mean > printed else "lower"
