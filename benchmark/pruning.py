"""How far a run has come, and when a trial of a search ends: by asynchronous successive halving.

That is the rule of ASHA (Li et al., MLSys 2020, arXiv 1810.05934), which ends a trial where it stands, and waits for
no other.
"""

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
    """Best validation value after each validation, from a run's events.

    Of the method itself and of a stage that leads it (`genrec_bench.methods.trained`), not of other stages.

    What an interrupted training tells again, it tells in the same numbers.
    """
    told = dict.fromkeys(
        (event.get("epoch"), event.get("loss"), event["validation"])
        for event in _events(store.home() / "runs" / identity)
        if "validation" in event and ("stage" not in event or event.get("leads"))
    )
    return list(accumulate((value for _, _, value in told), max))


def epochs_of(folder: Path) -> int:
    """Epochs, of all its stages, that the run in a folder has told of."""
    return len({(event["epoch"], event.get("loss")) for event in _events(folder) if "epoch" in event})


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "events.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a line that a kill cut off
                yield json.loads(line)


def fallen_behind(curve: Sequence[float], others: Sequence[Sequence[float]], judged: int = 0) -> int:
    """The first rung at which a trial stands below the best third of those that reached it; 0: none.

    ``judged``: validations after which it was judged before: it is past the rungs up to there, whoever came since.
    """
    for rung in _rungs(len(curve)):
        if rung <= judged:
            continue
        reached = sorted((other[rung - 1] for other in others if len(other) >= rung), reverse=True)
        if reached and curve[rung - 1] < reached[len(reached) // KEPT]:
            return rung
    return 0


def _rungs(validations: int) -> Iterator[int]:
    """3, 9, 27, ..., as far as that many validations reach."""
    rung = FIRST_RUNG
    while rung <= validations:
        yield rung
        rung *= KEPT


def why(curve: Sequence[float]) -> str:
    """The rule by which a trial that stands there was ended."""
    return f"below the best third at validation {max(_rungs(len(curve)), default=0)}"
