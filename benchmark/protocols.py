"""The two ways of asking, each a frozen set of rules with a hash that stands in every record.

`full`: leave-one-out, the whole catalogue is ranked. `cand20`: one of 20 candidates is picked, sequences split 8:1:1.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from genrec_bench.benchmark import metrics
from genrec_bench.datasets.errors import unknown
from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.splits import Split, by_sequence, leave_one_out
from genrec_bench.methods.artefacts import canonical_hash

Exclude = Literal["sequence", "window"]


class Full(BaseModel):
    """Leave-one-out over the whole catalogue; the target's rank among ``max_rank`` answers, ties against the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["full"] = "full"
    mask_seen: bool = False  # leave the items of the history out of every method's answer
    max_rank: int = 20
    version: int = 1  # raised when these rules, or the metrics computed under them, change

    @property
    def selection_metric(self) -> str:
        return "ndcg@10"

    @cached_property
    def hash(self) -> str:
        return canonical_hash(self.model_dump())

    def split(self, data: InteractionData) -> Split:
        return leave_one_out(data)


class Cand20(BaseModel):
    """One target among 20 candidates; histories of at most 10 items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["cand20"] = "cand20"
    mask_seen: Literal[False] = False  # candidates never include seen items
    history: int = 10
    min_history: int = 3
    candidates: int = 20
    candidate_seed: int = 0  # one set of candidate lists for all methods and seeds
    exclude: Exclude = "sequence"  # what negatives may not be; "window" is the official sampler
    version: int = 1

    @property
    def selection_metric(self) -> str:
        return "hitratio@1"

    @cached_property
    def hash(self) -> str:
        return canonical_hash(self.model_dump())

    def split(self, data: InteractionData) -> Split:
        return by_sequence(data, self.history, self.min_history, self.candidates, self.candidate_seed, self.exclude)


ProtocolRules = Full | Cand20
PROTOCOLS: dict[str, type[Full] | type[Cand20]] = {"full": Full, "cand20": Cand20}


def protocol(name: str, mask_seen: bool = False, exclude: Exclude = "sequence") -> ProtocolRules:
    """The protocol of that name; ``mask_seen`` is of `full`, ``exclude`` of `cand20`."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return Full(mask_seen=mask_seen) if name == "full" else Cand20(exclude=exclude)


def selection_value(rules: ProtocolRules, ranks: np.ndarray) -> float:
    """The number that validation maximises, from (B,) ranks."""
    values: dict[str, Any] = metrics.per_user(ranks, rules.name)
    return float(values[rules.selection_metric].mean())
