"""How far a trial of a search has come, and when it ends: successive halving (Li et al., MLSys 2020; Ray's ASHA)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from genrec_bench.datasets import store

FIRST_RUNG = 3  # validations before a trial may be ended
KEPT = 3  # one of so many goes on at each rung, and the next is so many times as far


def curve_of(identity: str) -> list[float]:
    """Best validation value after each validation of the method itself, not of a stage before it, from a run's events.

    What an interrupted training tells again, it tells in the same numbers.
    """
    path = store.home() / "runs" / identity / "events.jsonl"
    told = dict.fromkeys(
        (event.get("epoch"), event.get("loss"), event["validation"])
        for event in _events(path)
        if "validation" in event and "stage" not in event
    )
    return list(accumulate((value for _, _, value in told), max))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a line that a kill cut off
                yield json.loads(line)


def falls_behind(curve: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether a trial stands, at the last rung it has reached, below the best third of those that reached it."""
    rung = last_rung(len(curve))
    reached = [other[rung - 1] for other in others if rung and len(other) >= rung]
    if not reached:
        return False
    reached.sort(reverse=True)
    return curve[rung - 1] < reached[len(reached) // KEPT]


def last_rung(validations: int) -> int:
    """3, 9, 27, ...: the highest that is reached; 0 for none."""
    rung = 0
    while validations >= (following := rung * KEPT or FIRST_RUNG):
        rung = following
    return rung


def why(curve: Sequence[float]) -> str:
    """The rule by which a trial that stands there was ended."""
    return f"below the best third at validation {last_rung(len(curve))}"
