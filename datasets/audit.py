"""What is wrong with a data set: findings with offending rows.

An `error` breaks the protocols (leave-one-out over time, no repeated pairs); a `warning` limits what results mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from genrec_bench.datasets.describe import with_text
from genrec_bench.datasets.interactions import InteractionData

SAMPLES = 5
HELD_OUT = 2  # leave-one-out: the last item is the test target, the one before the validation target
MIN_LENGTH = HELD_OUT + 1
SORTED_SHARE = 0.5  # more users than this in item order: 5 items in time order are so by chance in 1 of 120 cases
LEAK_RATIO = 10.0  # steps to the next item number, as a multiple of what popularity alone gives ...
LEAK_SHARE = 0.02  # ... and as a share of all steps


@dataclass(frozen=True)
class Finding:
    """One kind of fault, how often it occurs and where, as up to five rows for people to read."""

    name: str
    severity: Literal["error", "warning"]
    count: int
    message: str
    samples: tuple[str, ...] = ()


def audit(data: InteractionData) -> list[Finding]:
    """All findings, errors first; an empty list means that nothing is wrong."""
    found = [finding for check in CHECKS if (finding := check(data)) is not None]
    return sorted(found, key=lambda finding: finding.severity != "error")


def has_errors(findings: list[Finding]) -> bool:
    """Whether any finding breaks the protocols."""
    return any(finding.severity == "error" for finding in findings)


def _step_users(data: InteractionData) -> np.ndarray:
    """Row of each interaction, (n,) int64."""
    return np.repeat(np.arange(data.num_users), data.sequences.lengths)


def _steps(data: InteractionData) -> np.ndarray:
    """Positions p >= 1 whose interaction follows another of the same user."""
    users = _step_users(data)
    return np.flatnonzero(users[1:] == users[:-1]) + 1


def _item(data: InteractionData, number: int) -> str:
    return f"item '{data.items['item_id'].iloc[number]}'"


def _user(data: InteractionData, row: int) -> str:
    return f"user '{data.user_ids[row]}'"


def _order_of_time(data: InteractionData) -> Finding | None:
    if data.timestamps is None:
        return None
    steps, users = _steps(data), _step_users(data)
    wrong = steps[data.timestamps[steps] < data.timestamps[steps - 1]]
    samples = tuple(
        f"{_user(data, users[p])}: {_item(data, data.sequences.items[p])} at {data.timestamps[p]} "
        f"after {data.timestamps[p - 1]}"
        for p in wrong[:SAMPLES]
    )
    return _finding("time_order", "error", len(wrong), "interactions come before an earlier one", samples)


def _repeated_last(data: InteractionData) -> Finding | None:
    sequences = data.sequences
    rows = np.flatnonzero(sequences.lengths >= 2)
    ends = sequences.offsets[rows + 1] - 1
    rows = rows[sequences.items[ends] == sequences.items[ends - 1]]
    samples = tuple(f"{_user(data, b)}: ends in {_item(data, sequences.row(b)[-1])} twice" for b in rows[:SAMPLES])
    return _finding("repeated_last_item", "error", len(rows), "sequences end in the same item twice", samples)


def _sorted_by_item(data: InteractionData) -> Finding | None:
    """Sequences in the order of item numbers are not in the order of time (a widely copied Sports file is so)."""
    steps, users = _steps(data), _step_users(data)
    lengths = data.sequences.lengths
    falls = np.bincount(users[steps[np.diff(data.sequences.items)[steps - 1] < 0]], minlength=data.num_users)
    long = lengths >= 5
    rows = np.flatnonzero(long & (falls == 0))
    if not long.any() or len(rows) <= SORTED_SHARE * long.sum():
        return None
    samples = tuple(f"{_user(data, b)}: item numbers {data.sequences.row(b)[:6].tolist()}" for b in rows[:SAMPLES])
    return _finding("sorted_by_item", "error", len(rows), "sequences are sorted by item, not by time", samples)


def _id_order_leak(data: InteractionData) -> Finding | None:
    """Item numbers given in the order of the sequences: then the next number is the next item."""
    steps, items = _steps(data), data.sequences.items
    if not len(steps):
        return None
    rows = steps[items[steps] == items[steps - 1] + 1]
    popularity = np.bincount(items, minlength=data.num_items) / len(items)
    chance = float((popularity[:-1] * popularity[1:]).sum())
    share = len(rows) / len(steps)
    if share < LEAK_SHARE or share < LEAK_RATIO * chance:
        return None
    users = _step_users(data)
    samples = tuple(f"{_user(data, users[p])}: item number {items[p - 1]} then {items[p]}" for p in rows[:SAMPLES])
    message = f"steps go to the next item number: {share:.1%} of all, {chance:.2%} by chance; numbers leak the order"
    return _finding("id_order_leak", "warning", len(rows), message, samples)


def _repeated_pairs(data: InteractionData) -> Finding | None:
    users = _step_users(data)
    pair = users * data.num_items + data.sequences.items
    _, first = np.unique(pair, return_index=True)
    again = np.ones(len(pair), dtype=bool)
    again[first] = False
    rows = np.flatnonzero(again)
    samples = tuple(f"{_user(data, users[p])}: {_item(data, data.sequences.items[p])} again" for p in rows[:SAMPLES])
    return _finding("repeated_pairs", "error", len(rows), "interactions repeat a user-item pair", samples)


def _too_short(data: InteractionData) -> Finding | None:
    lengths = data.sequences.lengths
    rows = np.flatnonzero(lengths < MIN_LENGTH)
    samples = tuple(f"{_user(data, b)}: length {lengths[b]}" for b in rows[:SAMPLES])
    severity: Literal["error", "warning"] = "error" if len(rows) == data.num_users else "warning"
    message = f"users have fewer than {MIN_LENGTH} interactions: they can be trained on but not tested"
    return _finding("too_short", severity, len(rows), message, samples)


def _unseen_targets(data: InteractionData) -> Finding | None:
    sequences = data.sequences
    tested = np.flatnonzero(sequences.lengths >= MIN_LENGTH)
    held_out = np.where(sequences.lengths >= MIN_LENGTH, HELD_OUT, 0)
    last_trained = sequences.offsets[1:] - held_out
    trained = np.arange(len(sequences.items)) < np.repeat(last_trained, sequences.lengths)
    known = np.zeros(data.num_items, dtype=bool)
    known[sequences.items[trained]] = True
    targets = sequences.items[sequences.offsets[tested + 1] - 1]
    rows = np.flatnonzero(~known[targets])
    samples = tuple(f"{_user(data, tested[r])}: {_item(data, targets[r])}" for r in rows[:SAMPLES])
    return _finding("unseen_targets", "warning", len(rows), "test items never occur in training", samples)


def _repeated_titles(data: InteractionData) -> Finding | None:
    titles = data.items["title"].str.strip().str.casefold()
    rows = np.flatnonzero(((titles != "") & titles.duplicated(keep=False)).to_numpy(dtype=bool))
    first = pd.Series(titles.iloc[rows]).drop_duplicates().index
    samples = tuple(f"{_item(data, i)}: '{data.items['title'].iloc[i]}'" for i in first[:SAMPLES])
    return _finding("repeated_titles", "warning", len(rows), "items share their title with another item", samples)


def _no_text(data: InteractionData) -> Finding | None:
    rows = np.flatnonzero(~with_text(data))
    samples = tuple(_item(data, i) for i in rows[:SAMPLES])
    return _finding("no_text", "warning", len(rows), "items have neither title nor description", samples)


def _finding(
    name: str, severity: Literal["error", "warning"], count: int, message: str, samples: tuple[str, ...]
) -> Finding | None:
    return Finding(name, severity, count, f"{count:,} {message}", samples) if count else None


CHECKS: tuple[Callable[[InteractionData], Finding | None], ...] = (
    _order_of_time,
    _repeated_last,
    _sorted_by_item,
    _repeated_pairs,
    _too_short,
    _id_order_leak,
    _unseen_targets,
    _repeated_titles,
    _no_text,
)
