"""What a search leaves behind: one file a study, from which it goes on and which stands behind rows of tables.

results/<dataset>/<method>/tuning-<study>.json      trials, budget, curves: written before and after each trial
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from genrec_bench.benchmark import records
from genrec_bench.datasets.errors import InputError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Trial(_Part):
    """One try. ``curve``: best validation value after each validation; ``value``: of the model that training left."""

    number: int
    values: dict[str, JsonValue]
    state: Literal["done", "pruned", "failed"]
    value: float | None
    reason: str | None = None
    seconds: float
    curve: list[float]


class Tuning(_Part):
    """The content of tuning-<study>.json. ``config`` is the best trial's, in full, as a run's record has it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    study: str
    method: str
    method_version: int
    plugin_sha256: str | None
    dataset: str
    dataset_sha256: str
    protocol: records.Protocol
    tier: str
    seed: int
    metric: str
    engine: str
    fixed: dict[str, JsonValue]  # settings that were given, not searched
    space: dict[str, list[JsonValue]]  # choices, or lowest and highest of a number on a log scale
    ranges: list[str]  # the keys of ``space`` that are such numbers
    budget_trials: int
    budget_seconds: float | None
    spent_seconds: float
    best: int | None
    best_value: float | None
    config: dict[str, JsonValue] | None
    trials: list[Trial]
    running: list[dict[str, JsonValue]] = []  # settings of trials that are under way, or were when the search was left


def read(path: Path) -> Tuning:
    """A tuning record; InputError where it is none."""
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: not a tuning record: {str(error).splitlines()[0]}; move it away") from None


def read_all(results: Path) -> list[Tuning]:
    """All readable tuning records of a results folder, in the order of their paths."""
    found = []
    for path in sorted(Path(results).glob("*/*/tuning-*.json")):
        try:
            found.append(read(path))
        except InputError:
            continue  # a table does without it
    return found


def behind(found: Sequence[Tuning], record: records.Record) -> Tuning | None:
    """The search that gave a run its settings, if one of these did; of several the one with most trials."""
    config = record.config
    same = [
        one
        for one in found
        if (one.method, one.method_version, one.plugin_sha256, one.tier)
        == (record.method, record.method_version, record.plugin_sha256, record.tier)
        and one.dataset_sha256 == record.dataset.sha256
        and one.protocol.hash == record.protocol.hash
        and one.config == config
    ]
    return max(same, key=lambda one: len(one.trials), default=None)
