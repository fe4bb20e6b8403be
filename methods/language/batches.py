"""Training batches: token sequences packed into rows without padding, and prompt-answer pairs for encoder-decoders.

Decoder-only models learn from rows that hold several sequences, each seeing only itself (block-diagonal causal
attention, positions counted from its own start). One row per prefix, padded to the longest of its batch, as the
methods' own repositories train, costs 17 times the positions on Amazon Beauty for the same targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.language.sequences import ASIDE, GIVEN, TokenSequences


@dataclass(frozen=True, eq=False)
class Asides:
    """Positions that no other sees: their tokens are padding, the loss gives them an embedding of its own.

    The hidden state at flat position ``at`` (A,) stands for item ``items`` (A,). ``pool`` (Q,) are the items, and
    ``targets`` the number of learned tokens, of the whole batch, also in a part of it.
    """

    at: Tensor
    items: Tensor
    pool: Tensor
    targets: int


@dataclass(frozen=True, eq=False)
class Packed:
    """R rows of C positions. ``segments`` tells a row's sequences apart, 0 is padding.

    The hidden state at flat position ``at`` (P,) of R x C predicts vocabulary id ``targets`` (P,), of level ``levels``.
    """

    tokens: Tensor  # (R, C) int64
    positions: Tensor  # (R, C) int64, from each sequence's start
    segments: Tensor  # (R, C) int16
    at: Tensor
    targets: Tensor
    levels: Tensor
    asides: Asides | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, first: int, last: int) -> "Packed":
        """Rows ``first`` to ``last`` (exclusive)."""
        begin, end = (edge * self.tokens.shape[1] for edge in (first, last))
        chosen = (self.at >= begin) & (self.at < end)
        asides = self.asides
        if asides is not None:
            own = (asides.at >= begin) & (asides.at < end)
            asides = replace(asides, at=asides.at[own] - begin, items=asides.items[own])
        return Packed(
            self.tokens[first:last], self.positions[first:last], self.segments[first:last],
            self.at[chosen] - begin, self.targets[chosen], self.levels[chosen], asides,
        )  # fmt: skip

    def to(self, device: str) -> "Packed":
        asides = self.asides and replace(self.asides, **_tensors_on(self.asides, device))
        return replace(self, **_tensors_on(self, device), asides=asides)

    def visible(self) -> Tensor:
        """Which position sees which, (R, 1, C, C) bool. Padding sees itself: a row without any would be NaN."""
        length = self.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.tokens.device).tril()
        seen = (self.segments[:, :, None] == self.segments[:, None, :]) & causal
        if self.asides is not None:
            shown = torch.ones(self.tokens.shape, dtype=torch.bool, device=self.tokens.device)
            shown.view(-1)[self.asides.at] = False
            seen &= shown[:, None, :] | torch.eye(length, dtype=torch.bool, device=shown.device)
        return seen[:, None]


@dataclass(frozen=True, eq=False)
class Pairs:
    """B prompts for the encoder, right-padded, and an answer each: ``decoder`` (B, A) read, ``answers`` (B, A) learned.

    ``levels`` (B, A) as in `TokenSequences`; ``GIVEN`` where an answer is shorter than A.
    """

    prompts: Tensor  # (B, P) int64
    mask: Tensor  # (B, P) bool
    decoder: Tensor  # (B, A) int64
    answers: Tensor  # (B, A) int64
    levels: Tensor  # (B, A) int8

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, first: int, last: int) -> "Pairs":
        """Rows ``first`` to ``last`` (exclusive)."""
        return replace(self, **{name: value[first:last] for name, value in vars(self).items()})

    def to(self, device: str) -> "Pairs":
        return replace(self, **_tensors_on(self, device))


def _tensors_on(batch: "Asides | Packed | Pairs", device: str) -> dict[str, Any]:
    values = vars(batch).items()
    return {name: value.to(device, non_blocking=True) for name, value in values if torch.is_tensor(value)}


def packed_batches(
    sequences: TokenSequences, row_tokens: int, batch_tokens: int, pad: int, rng: np.random.Generator
) -> Iterator[Packed]:
    """One epoch in random order: rows of ``row_tokens`` (or of the longest sequence), ``batch_tokens`` a batch."""
    width = max(row_tokens, int(sequences.lengths.max(initial=1)))
    rows = pack(sequences.lengths, width, rng)
    per_batch = max(batch_tokens // width, 1)
    order = rng.permutation(len(rows))
    for start in range(0, len(order), per_batch):
        yield _packed(sequences, [rows[i] for i in order[start : start + per_batch]], width, pad)


def padded_batches(
    sequences: TokenSequences, batch_tokens: int, pad: int, rng: np.random.Generator
) -> Iterator[Packed]:
    """One epoch of one sequence a row, each batch padded to its longest: how others train, for comparison."""
    per_batch = max(batch_tokens // int(sequences.lengths.max(initial=1)), 1)
    order = rng.permutation(len(sequences))
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        yield _packed(sequences, [[int(i)] for i in chosen], int(sequences.lengths[chosen].max()), pad)


def pack(lengths: np.ndarray, width: int, rng: np.random.Generator) -> list[list[int]]:
    """Sequences in rows of at most ``width`` tokens: longest first, each into the fullest row it fits (best fit).

    Sequences of one length are shuffled, so that each epoch packs other neighbours together.
    """
    order = np.lexsort((rng.random(len(lengths)), -lengths))
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the tokens they have left
    for sequence in order:
        length = int(lengths[sequence])
        room = next((left for left in range(length, width + 1) if by_room[left]), None)
        if room is None:
            row, room = len(rows), width
            rows.append([])
        else:
            row = by_room[room].pop()
        rows[row].append(int(sequence))
        by_room[room - length].append(row)
    return rows


def _packed(sequences: TokenSequences, rows: list[list[int]], width: int, pad: int) -> Packed:
    members = np.array([sequence for row in rows for sequence in row], dtype=np.int64)
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    segment_of = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
    lengths = sequences.lengths[members]
    total = np.cumsum(lengths)
    within = np.arange(total[-1]) - np.repeat(total - lengths, lengths)  # place of a token in its sequence
    source = np.repeat(sequences.offsets[members], lengths) + within
    first_of_row = np.searchsorted(row_of, np.arange(len(rows)))
    place = np.arange(total[-1]) - np.repeat((total - lengths)[first_of_row], np.bincount(row_of, lengths).astype(int))
    flat = np.repeat(row_of, lengths) * width + place

    def table(values: np.ndarray, empty: int, dtype: type) -> np.ndarray:
        full: np.ndarray = np.full(len(rows) * width, empty, dtype=dtype)
        full[flat] = values
        return full.reshape(len(rows), width)

    tokens, levels = sequences.tokens[source].astype(np.int64), sequences.levels[source]
    aside = levels == ASIDE
    # a token's position counts, and its prediction comes from, the tokens before it that it sees
    before = np.cumsum(~aside) - ~aside
    position = before - np.repeat(before[total - lengths], lengths)
    predictor = np.maximum.accumulate(np.where(aside, 0, flat))
    learned = np.flatnonzero((levels != GIVEN) & ~aside & (within > 0))
    arrays = (
        table(np.where(aside, pad, tokens), pad, np.int64),
        table(position, 0, np.int64),
        table(np.repeat(segment_of, lengths), 0, np.int16),
        predictor[learned - 1],
        tokens[learned],
        levels[learned].astype(np.int64),
    )
    asides = None
    if aside.any():
        at, items = torch.from_numpy(flat[aside]), torch.from_numpy(tokens[aside])
        asides = Asides(at, items, pool=items, targets=len(learned))
    tensors: list[Any] = [torch.from_numpy(array) for array in arrays]
    return replace(Packed(*tensors), asides=asides)


def pair_batches(
    prompts: TokenSequences,
    answers: TokenSequences,
    start_token: int,
    batch: int,
    pad: int,
    rng: np.random.Generator,
) -> Iterator[Pairs]:
    """One epoch of prompts and their answers in random order, rows of a batch of similar length.

    Rows are shuffled, sorted by prompt length within pools of fifty batches, and the batches shuffled again.
    """
    order = rng.permutation(len(prompts))
    groups: list[np.ndarray] = []
    for pool in np.array_split(order, max(len(order) // (50 * batch), 1)):
        by_length = pool[np.argsort(prompts.lengths[pool], kind="stable")]
        groups += [by_length[start : start + batch] for start in range(0, len(by_length), batch)]
    for number in rng.permutation(len(groups)):
        yield _pairs(prompts, answers, groups[number], start_token, pad)


def _pairs(prompts: TokenSequences, answers: TokenSequences, rows: np.ndarray, start_token: int, pad: int) -> Pairs:
    prompt, mask = _right_padded(prompts.offsets, prompts.tokens, rows, pad)
    answer, known = _right_padded(answers.offsets, answers.tokens, rows, pad)
    levels, _ = _right_padded(answers.offsets, answers.levels, rows, GIVEN)
    decoder = np.concatenate([np.full((len(rows), 1), start_token), np.where(known, answer, pad)[:, :-1]], axis=1)
    return Pairs(*map(torch.from_numpy, (prompt, mask, decoder, answer, levels)))


def _right_padded(offsets: np.ndarray, values: np.ndarray, rows: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = offsets[rows + 1] - offsets[rows]
    place = np.arange(int(lengths.max()))[None, :]
    real = place < lengths[:, None]
    table = np.where(real, values[np.where(real, offsets[rows][:, None] + place, 0)], pad).astype(np.int64)
    return table, real
