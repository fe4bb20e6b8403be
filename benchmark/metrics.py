"""From answers to numbers, and from ranks to every metric: the only place where a metric is computed.

A rank is the 1-based place of a user's held-out item, 0 where it was not found (or the answer was invalid). Ranks are
stored a user, so that every metric, slice and test can be computed again from a record. With one held-out item a user
Recall@k is 1[rank <= k] and NDCG@k (Järvelin & Kekäläinen 2002) is 1[rank <= k] / log2(rank + 1), both averaged over
all evaluated users, those without an answer included.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from genrec_bench.benchmark import statistics
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.interactions import Histories

if TYPE_CHECKING:
    from genrec_bench.benchmark.evaluate import Answers
    from genrec_bench.datasets.splits import Split

MAX_RANK = 20
CUTOFFS = (1, 5, 10, 20)
HEAD_SHARE = 0.2  # of the catalogue: the items counted as popular in slices


def _recall(ranks: np.ndarray, k: int) -> np.ndarray:
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def _ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    return _recall(ranks, k) / np.log2(np.maximum(ranks, 1) + 1.0)


PER_USER: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "full": {
        **{f"recall@{k}": partial(_recall, k=k) for k in CUTOFFS},
        **{f"ndcg@{k}": partial(_ndcg, k=k) for k in CUTOFFS},
        f"mrr@{MAX_RANK}": lambda ranks: _recall(ranks, MAX_RANK) / np.maximum(ranks, 1),
    },
    "cand20": {
        "hitratio@1": partial(_recall, k=1),
        "validratio": lambda ranks: (ranks > 0).astype(np.float64),
        # NaN where the answer is invalid: the mean over the rest is correct answers / valid answers.
        "hitratio@1_given_valid": lambda ranks: np.where(ranks > 0, _recall(ranks, 1), np.nan),
    },
}


class Slice(BaseModel):
    """Metrics of a part of the users."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    users: int
    metrics: dict[str, Interval]


def target_ranks(
    ranking_items: np.ndarray,
    ranking_scores: np.ndarray,
    targets: np.ndarray,
    max_rank: int = MAX_RANK,
    ordered: bool = False,
) -> np.ndarray:
    """Place of each target in its list, (B,) int64, 0 where it is not among the first ``max_rank``.

    ``ranking_items`` (B, k) int64, -1 where there is no answer; ``ranking_scores`` (B, k) float32; ``targets`` (B,).
    Ties count against the target: its rank is the number of listed items that score at least as much, which is exact
    up to ``max_rank`` when the list has max_rank + 1 items. ``ordered`` lists are taken in their own order instead.
    """
    if (targets < 0).any():
        raise ValueError("targets must be item numbers >= 0")
    listed = ranking_items >= 0
    if np.isnan(ranking_scores[listed]).any():
        raise InputError("A ranking holds NaN scores: they have no order")
    is_target = ranking_items == targets[:, None]
    position = is_target.argmax(axis=1) if is_target.shape[1] else np.zeros(len(targets), dtype=np.int64)
    if ordered:
        rank = position + 1
    else:
        target_score = ranking_scores[np.arange(len(targets)), position][:, None] if listed.size else ranking_scores
        rank = (listed & (ranking_scores >= target_score)).sum(axis=1)
    return np.where(is_target.any(axis=1) & (rank <= max_rank), rank, 0).astype(np.int64)


def candidate_ranks(
    picked: np.ndarray, scores: np.ndarray | None, target_column: np.ndarray, num_candidates: int
) -> np.ndarray:
    """Place of the target among a row's candidates, (B,) int64; 0 where the answer is invalid (``picked`` is -1).

    With ``scores`` (B, C): 1..C, ties against the target, so a target tied for first is not first.
    Without: 1 where ``picked`` (B,) is ``target_column`` (B,), 2 where it is another candidate.
    """
    if ((picked < -1) | (picked >= num_candidates)).any():
        raise InputError(f"A picked candidate is outside -1..{num_candidates - 1}")
    if scores is None:
        rank = np.where(picked == target_column, 1, 2)
    else:
        if scores.shape != (len(picked), num_candidates):
            raise InputError(f"Candidate scores have shape {scores.shape}, not {(len(picked), num_candidates)}")
        if np.isnan(scores).any():
            raise InputError("Candidate scores hold NaN: they have no order")
        rank = (scores >= scores[np.arange(len(picked)), target_column][:, None]).sum(axis=1)
    return np.where(picked < 0, 0, rank).astype(np.int64)


def canonical_name(name: str) -> str:
    """The metric's one name here: lower case, and hit@k is recall@k (one held-out item a user)."""
    return re.sub(r"^(hit|hr|h|r)@", "recall@", name.strip().lower())


@cache
def by_rank(protocol_kind: str) -> dict[str, np.ndarray]:
    """Each metric's value for rank 0, 1, ... `MAX_RANK`, and for all later ones, (`MAX_RANK` + 2,) float64."""
    if protocol_kind not in PER_USER:
        raise unknown("kind of protocol", protocol_kind, PER_USER)
    every = np.arange(MAX_RANK + 2)
    return {name: metric(every) for name, metric in PER_USER[protocol_kind].items()}


def per_user(ranks: np.ndarray, protocol_kind: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Each metric's value for each user, (U,) float64; a user whose value is NaN does not count for that metric.

    ``protocol_kind`` is "full" or "cand20"; ``names`` picks metrics (aliases allowed), by default all of the kind.
    """
    known = by_rank(protocol_kind)
    chosen = list(known) if names is None else [canonical_name(name) for name in names]
    for name in chosen:
        if name not in known:
            raise unknown("metric", name, known)
    place = _place(ranks)
    return {name: known[name][place] for name in chosen}


def per_user_table(ranks: np.ndarray, protocol_kind: str) -> np.ndarray:
    """`per_user` of all metrics of the kind, in the order of `by_rank`, as one array (metrics, U)."""
    return _value_table(protocol_kind).take(_place(ranks), axis=1)


def means(ranks: np.ndarray, protocol_kind: str) -> dict[str, float]:
    """Each metric's mean over the users who count for it; a metric that counts for nobody is left out."""
    values = _value_table(protocol_kind)
    counting = ~np.isnan(values)
    users = np.bincount(_place(ranks), minlength=MAX_RANK + 2)
    totals, counts = (np.where(counting, values, 0.0) @ users).tolist(), (counting @ users).tolist()
    sums = zip(by_rank(protocol_kind), totals, counts, strict=True)
    return {name: total / count for name, total, count in sums if count}


@cache
def _value_table(protocol_kind: str) -> np.ndarray:
    """`by_rank` as one array (metrics, `MAX_RANK` + 2)."""
    return np.stack(list(by_rank(protocol_kind).values()))


def _place(ranks: np.ndarray) -> np.ndarray:
    """Where `by_rank` has each rank's value."""
    return np.clip(ranks, 0, MAX_RANK + 1)


def list_metrics(top_items: np.ndarray, item_counts: np.ndarray, histories: Histories) -> dict[str, float]:
    """What the lists are like, whatever the targets. A metric that is undefined (no answers) is left out.

    ``top_items`` (U, 10) int64 with -1 padding; ``item_counts`` (N,) training interactions; ``histories`` of U users.
    coverage@10: share of the catalogue in at least one list. novelty@10: mean over list entries of
    -log2 of the item's share of training interactions, one added to every count. popularity_lift@10: mean popularity
    of a user's list over mean popularity of a user's history, each averaged over users (1 = as popular as before).
    """
    listed = top_items >= 0
    items = top_items[listed]
    values = {"coverage@10": len(np.unique(items)) / len(item_counts)}
    if not len(items):
        return values
    share = (item_counts + 1) / (item_counts.sum() + len(item_counts))
    values["novelty@10"] = float(-np.log2(share[items]).mean())
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    before = np.bincount(rows, weights=item_counts[histories.items], minlength=len(histories))
    popularity = np.where(listed, item_counts[np.where(listed, top_items, 0)], 0).sum(axis=1)
    both = listed.any(axis=1) & (histories.lengths > 0)
    base = (before[both] / histories.lengths[both]).mean() if both.any() else 0.0
    if base > 0:
        values["popularity_lift@10"] = float((popularity[both] / listed.sum(axis=1)[both]).mean() / base)
    return values


def slice_masks(targets: np.ndarray, history_lengths: np.ndarray, item_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which users belong to which slice, (U,) bool each.

    Histories are short up to and including the evaluated users' median length, long above it. Head items are the most
    popular fifth of the catalogue (rounded up, ties to the lower item number), tail items are the others; a cold
    target has no training interaction (and is in the tail).
    """
    head = np.zeros(len(item_counts), dtype=bool)
    head[np.argsort(-item_counts, kind="stable")[: int(np.ceil(HEAD_SHARE * len(item_counts)))]] = True
    short = history_lengths <= (np.median(history_lengths) if len(history_lengths) else 0)
    return {
        "short_history": short,
        "long_history": ~short,
        "head_target": head[targets],
        "tail_target": ~head[targets],
        "cold_target": item_counts[targets] == 0,
    }


def slices(values: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Slice]:
    """User count and metrics with intervals of each slice; an empty slice has no metrics."""
    return {
        name: Slice(
            users=int(mask.sum()),
            metrics=statistics.bootstrap({metric: column[mask] for metric, column in values.items()}, seed=seed),
        )
        for name, mask in masks.items()
    }


def summarise(answers: "Answers", split: "Split", protocol_kind: str) -> dict[str, Any]:
    """What a record states of the test answers: ``metrics``, ``list_metrics`` and ``slices``."""
    values = per_user(answers.ranks, protocol_kind)
    test, item_counts = split.test, split.train.item_counts()
    masks = slice_masks(test.targets, test.histories.lengths, item_counts)
    ranking = answers.ranking
    return {
        "metrics": statistics.bootstrap(values),
        "list_metrics": {} if ranking is None else list_metrics(ranking.items[:, :10], item_counts, test.histories),
        "slices": slices(values, masks),
    }


def check_arithmetic(metrics: Mapping[str, float], rounding: float = 1e-9) -> list[str]:
    """What is impossible about these means, one line a violation; empty when all can be true.

    With one held-out item a user, the users found between places a+1 and b gain between 1/log2(b+1) and 1/log2(a+2)
    of NDCG each: NDCG@10 - NDCG@5 lies between (Recall@10 - Recall@5)/log2(11) and (Recall@10 - Recall@5)/log2(7).
    ``rounding`` is the largest rounding error of a value (0.00005 for four printed digits).
    """
    found = [f"{name} = {value} is not in [0, 1]" for name, value in metrics.items() if not 0 <= value <= 1 + rounding]
    cutoffs = sorted(int(name[7:]) for name in metrics if re.fullmatch(r"recall@\d+", name))
    for a, b in zip([0, *cutoffs], cutoffs, strict=False):
        recall = metrics[f"recall@{b}"] - (metrics[f"recall@{a}"] if a else 0.0)
        if recall < -2 * rounding:
            found.append(f"recall@{b} is below recall@{a}")
        if f"ndcg@{b}" in metrics and (a == 0 or f"ndcg@{a}" in metrics):
            gain = metrics[f"ndcg@{b}"] - (metrics[f"ndcg@{a}"] if a else 0.0)
            low, high = recall / np.log2(b + 1), recall / np.log2(a + 2)
            slack = 4 * rounding
            if not low - slack <= gain <= high + slack:
                what = f"ndcg@{b} - ndcg@{a}" if a else f"ndcg@{b}"
                found.append(f"{what} = {gain:.6f} is outside {low:.6f}..{high:.6f}, which recall allows")
    return found + _check_bounds(metrics, rounding)


def _check_bounds(metrics: Mapping[str, float], rounding: float) -> list[str]:
    """Violations of orders between whole metrics: the first of each pair can not exceed the second."""
    ordered = [("recall@1", "mrr@20"), ("mrr@20", "ndcg@20"), ("hitratio@1", "validratio")]
    found = [
        f"{small} = {metrics[small]} exceeds {large} = {metrics[large]}"
        for small, large in ordered
        if small in metrics and large in metrics and metrics[small] > metrics[large] + 2 * rounding
    ]
    hit, valid, given = (metrics.get(name) for name in ("hitratio@1", "validratio", "hitratio@1_given_valid"))
    if hit is not None and valid and given is not None and abs(given * valid - hit) > 3 * rounding:
        found.append(f"hitratio@1_given_valid = {given} is not hitratio@1 / validratio = {hit / valid}")
    return found
