"""Asking a method for its answers and turning them into ranks. Evaluation exists once, here, for every method."""

import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec_bench.benchmark import metrics
from genrec_bench.benchmark.protocols import Cand20, Full, ProtocolRules
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.splits import HeldOut
from genrec_bench.methods.base import Choice, Method, Ranking
from genrec_bench.methods.scoring import Scorer, masked_scores

ROWS_AT_A_TIME = 4096  # asked for at once; methods have smaller batches of their own
QUESTIONS_AT_A_TIME = 256  # of the candidate protocol, where a language model may take seconds for each


class MethodFault(Exception):
    """A method broke its contract; the message says how, and stands in the table instead of numbers."""


@dataclass(frozen=True)
class Answers:
    """What a method answered to one evaluation."""

    ranks: np.ndarray  # (B,) int64, 0: target not in the list (full), invalid answer (cand20)
    ranking: Ranking | None  # full protocol only
    seconds: float  # of the method, not of the metrics
    picks: Ranking | None = None  # candidate protocol only: see `picks`


LISTS = ("ranking", "picks")  # of `Answers`


class Kept:
    """Answers of one model on disk, a file for each block of rows, so that an interrupted evaluation goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def of(self, variant: str) -> "Kept":
        """Those of another state of the model."""
        return Kept(self.folder / variant.replace("/", "_"))

    def get(self, first: int, ask: Callable[[], Answers]) -> Answers:
        """The answers from row ``first`` on, from disk where they are there."""
        path = self.folder / f"{first}.npz"
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or damaged
            return _read(path)
        answers = ask()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as unfinished:
            _write(Path(unfinished) / path.name, answers)
            os.replace(Path(unfinished) / path.name, path)
        return answers


def _write(path: Path, answers: Answers) -> None:
    values: dict[str, Any] = {"ranks": answers.ranks, "seconds": answers.seconds}
    for name in LISTS:
        if (lists := getattr(answers, name)) is not None:
            values |= {f"{name}_items": lists.items, f"{name}_scores": lists.scores, f"{name}_ordered": lists.ordered}
    np.savez(path, **values)


def _read(path: Path) -> Answers:
    with np.load(path, allow_pickle=False) as found:
        lists = {
            name: Ranking(found[f"{name}_items"], found[f"{name}_scores"], bool(found[f"{name}_ordered"]))
            for name in LISTS
            if f"{name}_items" in found
        }
        return Answers(found["ranks"], lists.get("ranking"), float(found["seconds"]), lists.get("picks"))


def evaluate(
    method: Method, held_out: HeldOut, rules: ProtocolRules, num_items: int, kept: Kept | None = None
) -> Answers:
    """Ask ``method`` for all rows of ``held_out``, a block of them at a time, and rank the targets.

    ``kept`` has the answers that an interrupted evaluation of the same model was given. Raises MethodFault where the
    answers break the contract.
    """
    candidates = isinstance(rules, Cand20)
    size = QUESTIONS_AT_A_TIME if candidates else ROWS_AT_A_TIME
    blocks = []
    for first in range(0, max(len(held_out.targets), 1), size):
        part = held_out.part(first, first + size)
        ask = partial(_candidates, method, part) if candidates else partial(_catalogue, method, part, rules, num_items)
        blocks.append(kept.get(first, ask) if kept else ask())
    return blocks[0] if len(blocks) == 1 else _joined(blocks)


def _joined(blocks: list[Answers]) -> Answers:
    def lists(name: str) -> Ranking | None:
        parts = [getattr(block, name) for block in blocks]
        if parts[0] is None:
            return None
        items, scores = np.concatenate([part.items for part in parts]), np.concatenate([part.scores for part in parts])
        return Ranking(items, scores, parts[0].ordered)

    ranks = np.concatenate([block.ranks for block in blocks])
    return Answers(ranks, lists("ranking"), sum(block.seconds for block in blocks), lists("picks"))


def _catalogue(method: Method, held_out: HeldOut, rules: ProtocolRules, num_items: int) -> Answers:
    assert isinstance(rules, Full)
    histories = replace(held_out.histories, mask_seen=rules.mask_seen)
    # One answer more than is ranked shows every tie that could push a target past the last rank.
    k = min(rules.max_rank + 1, num_items)
    started = time.perf_counter()
    ranking = method.recommend(histories, k)
    seconds = time.perf_counter() - started
    check_ranking(ranking, held_out, k, num_items, rules.mask_seen)
    ranking = replace(ranking, scores=_as_stored(ranking.scores))
    ranks = metrics.target_ranks(ranking.items, ranking.scores, held_out.targets, rules.max_rank, ranking.ordered)
    return Answers(ranks, ranking, seconds)


def _as_stored(scores: np.ndarray) -> np.ndarray:
    """In the precision of the stored lists: ranks follow from these, and so what is a tie there is one here."""
    with np.errstate(over="ignore"):  # infinite, they still tie
        return scores.astype(np.float32, copy=False)


def _candidates(method: Method, held_out: HeldOut) -> Answers:
    candidates = held_out.candidates
    assert candidates is not None  # by_sequence always draws them
    check_candidates(held_out)
    started = time.perf_counter()
    choice = method.choose(held_out.histories, candidates.copy())
    seconds = time.perf_counter() - started
    check_choice(choice, candidates)
    choice = replace(choice, scores=None if choice.scores is None else _as_stored(choice.scores))
    target_column = (candidates == held_out.targets[:, None]).argmax(1)
    ranks = metrics.candidate_ranks(choice.picked, choice.scores, target_column, candidates.shape[1])
    return Answers(ranks, None, seconds, picks(choice, candidates))


def picks(choice: Choice, candidates: np.ndarray) -> Ranking:
    """What is stored of a choice, so that its ranks can be computed again: a row's candidates, best first.

    Without scores the one that was picked; nothing but -1 in the row of an invalid answer.
    """
    valid = choice.picked >= 0
    rows = np.arange(len(candidates))
    if choice.scores is None:
        items = np.where(valid, candidates[rows, np.maximum(choice.picked, 0)], -1)[:, None]
        return Ranking(items, np.zeros(items.shape, dtype=np.float32))
    order = np.argsort(-choice.scores, axis=1, kind="stable")
    items = np.where(valid[:, None], np.take_along_axis(candidates, order, axis=1), -1)
    return Ranking(items, np.take_along_axis(choice.scores, order, axis=1))


def picked_ranks(stored: Ranking, held_out: HeldOut) -> np.ndarray:
    """The (B,) ranks that `picks` were made from; MethodFault where they cannot be picks of these candidates."""
    candidates, items = held_out.candidates, stored.items
    assert candidates is not None  # by_sequence always draws them
    invalid = (items == -1).all(axis=1)
    if items.shape == (len(candidates), 1):
        if not (invalid | (items == candidates).any(axis=1)).all():
            raise MethodFault("a pick that is no candidate")
        return np.where(invalid, 0, np.where(items[:, 0] == held_out.targets, 1, 2))
    if items.shape != candidates.shape or not np.array_equal(np.sort(items[~invalid]), np.sort(candidates[~invalid])):
        raise MethodFault("lists that are not the candidates")
    if np.isnan(stored.scores).any():
        raise MethodFault("score NaN")
    return metrics.target_ranks(items, stored.scores, held_out.targets, candidates.shape[1])


def check_candidates(held_out: HeldOut) -> None:
    """Raise InputError where a row's candidates repeat an item or lack the target."""
    candidates, targets = held_out.candidates, held_out.targets
    assert candidates is not None
    in_order = np.sort(candidates, axis=1)
    for wrong, what in (
        ((in_order[:, 1:] == in_order[:, :-1]).any(1), "hold an item twice"),
        (~(candidates == targets[:, None]).any(1), "lack the target"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"Candidates of row {row} (user {held_out.histories.users[row]}) {what}: {candidates[row].tolist()}, "
                f"target {targets[row]}"
            )


def validation_ranks(method: Method, held_out: HeldOut, rules: ProtocolRules, num_items: int) -> np.ndarray:
    """Ranks as `evaluate` gives them; scorers are asked for scores and the targets counted up to, without a top-k."""
    if not (isinstance(rules, Full) and isinstance(method, Scorer)):
        return evaluate(method, held_out, rules, num_items).ranks
    histories = replace(held_out.histories, mask_seen=rules.mask_seen)
    order = np.argsort(histories.lengths, kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    for start in range(0, len(order), method.rows_at_a_time):
        rows = order[start : start + method.rows_at_a_time]
        scores = masked_scores(method, histories.select(rows))
        if scores.shape != (len(rows), num_items):
            raise MethodFault(f"score returned shape {tuple(scores.shape)}, expected {(len(rows), num_items)}")
        targets = torch.from_numpy(held_out.targets[rows]).to(scores.device)
        at_target = scores.gather(1, targets[:, None])
        if bool(torch.isnan(scores).any()):
            raise MethodFault("score returned NaN during validation")
        rank = (scores >= at_target).sum(1)
        rank[at_target[:, 0] == -torch.inf] = 0
        ranks[rows] = rank.cpu().numpy()
    ranks[ranks > rules.max_rank] = 0
    return ranks


def check_ranking(ranking: Ranking, held_out: HeldOut, k: int, num_items: int, mask_seen: bool) -> None:
    """Raise MethodFault unless the ranking is what `Method.recommend` promises."""
    _refuse_kind("recommend", ranking, Ranking)
    items, scores = ranking.items, ranking.scores
    _refuse_kind("recommend", items, np.ndarray, "items as ")
    _refuse_kind("recommend", scores, np.ndarray, "scores as ")
    rows = len(held_out.histories)
    if items.shape != (rows, k) or scores.shape != (rows, k):
        raise MethodFault(
            f"recommend returned items {items.shape} and scores {scores.shape}, expected {(rows, k)}; "
            "a row with fewer answers is filled with item -1"
        )
    if not np.issubdtype(items.dtype, np.integer):
        raise MethodFault(f"recommend returned items of type {items.dtype}, expected integers")
    answered = items != -1
    wrong = (items < -1) | (items >= num_items)
    _refuse(wrong, items, held_out, f"unknown item {{item}} (items are 0..{num_items - 1})")
    _refuse(np.isnan(scores) & answered, items, held_out, "score NaN for item {item}")
    _refuse(answered[:, 1:] & ~answered[:, :-1], items[:, 1:], held_out, "item {item} after a missing answer")
    rising = (scores[:, 1:] > scores[:, :-1]) & answered[:, 1:]
    _refuse(rising, items[:, 1:], held_out, "scores that rise along the list at item {item}")
    in_order = np.sort(items, axis=1)
    repeated = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != -1)
    _refuse(repeated, in_order[:, 1:], held_out, "item {item} twice")
    if mask_seen:
        _refuse_seen(items, held_out, num_items)


def _refuse_kind(step: str, value: object, kind: type, what: str = "") -> None:
    if not isinstance(value, kind):
        name = "a numpy array" if kind is np.ndarray else f"a {kind.__name__}"
        raise MethodFault(f"{step} returned {what}{type(value).__name__}, expected {name}")


def _refuse(wrong: np.ndarray, items: np.ndarray, held_out: HeldOut, what: str) -> None:
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise MethodFault(
            f"recommend returned {what.format(item=items[row, column])} for user {held_out.histories.users[row]} "
            f"({int(wrong.any(1).sum())} of {len(items)} users)"
        )


def _refuse_seen(items: np.ndarray, held_out: HeldOut, num_items: int) -> None:
    histories = held_out.histories
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    seen = np.unique(row * num_items + histories.items)
    answered = np.where(items >= 0, np.arange(len(items))[:, None] * num_items + items, -1)
    _refuse(np.isin(answered, seen), items, held_out, "seen item {item}, though the protocol masks seen items,")


def check_choice(choice: Choice, candidates: np.ndarray) -> None:
    """Raise MethodFault unless the choice is what `Method.choose` promises."""
    _refuse_kind("choose", choice, Choice)
    picked = choice.picked
    _refuse_kind("choose", picked, np.ndarray, "picks as ")
    if picked.shape != (len(candidates),):
        raise MethodFault(f"choose returned picks of shape {picked.shape}, expected {(len(candidates),)}")
    if not np.issubdtype(picked.dtype, np.integer):
        raise MethodFault(f"choose returned picks of type {picked.dtype}, expected integers")
    if ((picked < -1) | (picked >= candidates.shape[1])).any():
        raise MethodFault(f"choose returned a pick outside -1..{candidates.shape[1] - 1}")
    if choice.scores is not None:
        _refuse_kind("choose", choice.scores, np.ndarray, "scores as ")
        if np.shape(choice.scores) != candidates.shape:
            raise MethodFault(f"choose returned scores {np.shape(choice.scores)}, expected {candidates.shape}")
        if np.isnan(choice.scores).any():
            raise MethodFault("choose returned NaN scores")
