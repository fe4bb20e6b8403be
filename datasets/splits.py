"""Who is trained on, who is evaluated, and on which item: the two protocols' splits (both deterministic).

`leave_one_out` is the full-catalogue protocol's split: a user's last item is the test target, the second last the
validation target, the rest is training. `by_sequence` is the candidate protocol's: whole sequences are dealt to
training, validation and test in time order, and a held-out sequence is asked for its last item among 20 candidates.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, InteractionData, TrainView

MIN_TRAINED = 3  # users shorter than this are trained on, never evaluated


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What one evaluation asks: row b of ``histories`` continues with ``targets[b]``."""

    histories: Histories
    targets: np.ndarray  # (B,) int64
    candidates: np.ndarray | None = None  # (B, C) int64, holds the target once; None: the whole catalogue

    def sample(self, count: int) -> "HeldOut":
        """``count`` rows, the same ones each time; all where there are no more."""
        return self._rows(np.sort(np.random.default_rng(0).permutation(len(self.targets))[:count]))

    def part(self, first: int, last: int) -> "HeldOut":
        """Rows ``first`` to ``last`` (exclusive), as far as there are any."""
        if first == 0 and last >= len(self.targets):
            return self
        return self._rows(np.arange(len(self.targets))[first:last])

    def _rows(self, rows: np.ndarray) -> "HeldOut":
        candidates = None if self.candidates is None else self.candidates[rows]
        return HeldOut(self.histories.select(rows), self.targets[rows], candidates)


@dataclass(frozen=True, eq=False)
class Split:
    """Training view, validation and test of one data set under one protocol.

    ``train_and_valid`` is the larger edge scope: what may be used once all selection is done.
    """

    train: TrainView
    train_and_valid: TrainView
    valid: HeldOut
    test: HeldOut


def leave_one_out(data: InteractionData) -> Split:
    """Last item tests, second last validates; the test history includes the validation item."""
    evaluated = np.flatnonzero(data.sequences.lengths >= MIN_TRAINED)
    if len(evaluated) == 0:
        raise InputError(f"{data.name}: no user has {MIN_TRAINED} or more interactions, so none can be evaluated")
    whole = data.sequences.select(evaluated)
    last = whole.offsets[1:] - 1
    hold = np.where(data.sequences.lengths >= MIN_TRAINED, 1, 0)
    return Split(
        train=_view(data, 2 * hold),
        train_and_valid=_view(data, hold),
        valid=HeldOut(whole.without_last(2), whole.items[last - 1].astype(np.int64)),
        test=HeldOut(whole.without_last(1), whole.items[last].astype(np.int64)),
    )


def _view(data: InteractionData, held_out: np.ndarray) -> TrainView:
    """Every user's sequence without its last ``held_out[u]`` items, in arrays of its own."""
    whole = data.sequences
    lengths = whole.lengths - held_out
    keep = np.arange(len(whole.items)) - np.repeat(whole.offsets[:-1], whole.lengths) < np.repeat(
        lengths, whole.lengths
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TrainView(
        num_users=data.num_users,
        items=data.items,
        sequences=Histories(whole.users.copy(), offsets, whole.items[keep]),
        timestamps=None if data.timestamps is None else data.timestamps[keep],
    )


def by_sequence(
    data: InteractionData,
    history: int = 10,
    min_history: int = 3,
    candidates: int = 20,
    seed: int = 0,
    exclude: str = "sequence",
) -> Split:
    """Whole sequences 8:1:1 in the order of their last interaction, later ones test (RSLLM section 4.1, after LLaRA).

    ``exclude="sequence"`` draws negatives outside the user's whole sequence; ``"window"`` only outside the ``history``
    items shown, as the official sampler does. Candidates depend on (data set, seed, user) alone.
    """
    order = _by_last_time(data)
    order = order[data.sequences.lengths[order] > min_history]
    tenth = -(-len(order) // 10)
    if len(order) < 3:
        raise InputError(f"{data.name}: {len(order)} sequences have more than {min_history} items; 3 are needed")
    if candidates > data.num_items:
        raise InputError(f"{data.name}: {candidates} candidates exceed the catalogue of {data.num_items} items")
    train, valid, test = order[: -2 * tenth], order[-2 * tenth : -tenth], order[-tenth:]

    def held_out(users: np.ndarray) -> HeldOut:
        users = np.sort(users)
        whole = data.sequences.select(users)
        targets = whole.items[whole.offsets[1:] - 1].astype(np.int64)
        shown = whole.without_last(1).last(history)
        excluded = whole if exclude == "sequence" else shown
        return HeldOut(shown, targets, _draw_candidates(data, excluded, targets, candidates, seed))

    return Split(
        train=_rows(data, np.sort(train)),
        train_and_valid=_rows(data, np.sort(np.concatenate([train, valid]))),
        valid=held_out(valid),
        test=held_out(test),
    )


def _by_last_time(data: InteractionData) -> np.ndarray:
    """Users ordered by the time of their last interaction, then number; by number alone where times are unknown."""
    if data.timestamps is None or data.num_interactions == 0:
        return np.arange(data.num_users)
    nonempty = np.flatnonzero(data.sequences.lengths > 0)
    return nonempty[np.argsort(data.timestamps[data.sequences.offsets[1:][nonempty] - 1], kind="stable")]


def _rows(data: InteractionData, users: np.ndarray) -> TrainView:
    whole = data.sequences
    keep = np.repeat(np.isin(np.arange(data.num_users), users), whole.lengths)
    return TrainView(
        num_users=data.num_users,
        items=data.items,
        sequences=whole.select(users),
        timestamps=None if data.timestamps is None else data.timestamps[keep],
    )


def _draw_candidates(
    data: InteractionData, excluded: Histories, targets: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """(B, count) candidates in random order: the target and uniform negatives with distinct normalised titles.

    A counter-based generator keyed by (data set, seed, user) makes each row independent of all others.
    """
    titles = [normalised_title(title) for title in data.items["title"]]
    rows = np.empty((len(targets), count), dtype=np.int64)
    for b, target in enumerate(targets):
        user = int(excluded.users[b])
        key = np.array([int(data.sha256[:16], 16), (seed << 32) | user], dtype=np.uint64)  # a list would turn float
        rng = np.random.Generator(np.random.Philox(key=key))
        barred = {int(target), *excluded.row(b).tolist()}
        chosen, taken = [int(target)], {titles[target]} - {""}
        for item in rng.permutation(data.num_items).tolist():
            if len(chosen) == count:
                break
            if item not in barred and titles[item] not in taken:
                chosen.append(item)
                taken |= {titles[item]} - {""}
        if len(chosen) < count:
            raise InputError(
                f"{data.name}: user {data.user_ids[user]} has interacted with all but {len(chosen) - 1} items, "
                f"so {count - 1} negatives cannot be drawn"
            )
        rows[b] = rng.permutation(chosen)
    return rows


def normalised_title(title: str) -> str:
    """A title as it is compared: compatibility form, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())
