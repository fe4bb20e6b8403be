"""Teaching a language model to answer: examples, the loss over answers, and RSLLM's contrast of users and items.

Source: RSLLM (section 4.2), L = L_N + gamma L_I + beta L_U (eq. 5), N the rows of a pool, tau = 0.5:
L_I (eq. 3) pulls g^I, the item by itself, to g^(I|U), the answer after its prompt; L_U (eq. 4) pulls g^U, the history
in the prompt, to g^I. All three are means of last hidden states; what belongs to each is in `Row.kinds`.
Deviation: L_N is the mean over the batch's answer tokens and the other two are means over its rows, as cross-entropy
losses are by default; the paper prints a sum over a title's tokens. A row with the same target as another is no
negative of it.

A pool's rows are each other's negatives, however few fit the memory: all chunks of a pool but the last are computed
twice (gradient caching, Gao et al. 2021, arXiv 2101.06983), here by torch's checkpoint over a chunk, whose only outputs
are its loss and its pooled states. The gradient is that of the whole pool at once, dropout included.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.candidates.inputs import PromptedModel
from genrec_bench.methods.candidates.prompts import ANSWER, END, HISTORY, Row, padded
from genrec_bench.methods.decoding.causal import CausalTokens


class Example(NamedTuple):
    """A question of training: ``history`` (length,), ``candidates`` (C,) with the ``target`` among them."""

    history: np.ndarray
    candidates: np.ndarray
    target: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that are each other's negatives: prompt and answer, the target by itself, and its number."""

    rows: list[Row]
    alone: list[Row]
    targets: np.ndarray  # (P,) int64

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, positions: int) -> list[np.ndarray]:
        """Numbers of the rows by length, in groups of at most ``positions`` padded positions (one row at least)."""
        lengths = np.array([len(row.tokens) for row in self.rows])
        groups: list[list[int]] = [[]]
        for number in np.argsort(lengths, kind="stable").tolist():
            if groups[-1] and (len(groups[-1]) + 1) * lengths[number] > positions:
                groups.append([])
            groups[-1].append(number)
        return [np.array(group) for group in groups]


@dataclass(eq=False)
class PooledBatch:
    """The pools of a step, made when they are first asked for: skipping or counting steps costs nothing.

    ``rows`` and ``learned`` are those of the whole batch, also in a part of it.
    """

    make: Callable[[], list[Pool]]
    whole: "PooledBatch | None" = field(default=None)

    @cached_property
    def pools(self) -> list[Pool]:
        return self.make()

    @cached_property
    def rows(self) -> int:
        return self.whole.rows if self.whole else sum(map(len, self.pools))

    @cached_property
    def learned(self) -> int:
        return self.whole.learned if self.whole else len(self.levels)

    @cached_property
    def shown(self) -> int:
        """Tokens of the histories' titles."""
        if self.whole:
            return self.whole.shown
        return sum(int(written(row.tokens, row.kinds).sum()) for pool in self.pools for row in pool.rows)

    @cached_property
    def levels(self) -> Tensor:
        """A zero for each token of an answer."""
        count = sum(int(answering(row.kinds).sum()) for pool in self.pools for row in pool.rows)
        return torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.pools)

    def part(self, first: int, last: int) -> "PooledBatch":
        """Pools ``first`` to ``last`` (exclusive)."""
        return PooledBatch(lambda: self.pools[first:last], self.whole or self)

    def to(self, device: str) -> "PooledBatch":
        """Itself: rows go to the device a chunk at a time."""
        return self


class AnswerLoss:
    """The summed loss of a batch's answer tokens, with what else has a weight.

    ``history`` weighs the mean loss of the titles in the history, each read after those before it. ``gamma`` weighs
    L_I, ``beta`` L_U; ``pool`` rows are each other's negatives, computed ``positions`` at a time. With both weights 0
    no state is pooled, and rows need not be computed together.
    """

    def __init__(
        self,
        model: PromptedModel,
        *,
        history: float = 0.0,
        pool: int = 0,
        positions: int = 10**9,
        gamma: float = 0.0,
        beta: float = 0.0,
        temperature: float = 0.5,
    ):
        self.model, self.history = model, history
        self.positions = positions if gamma or beta else 10**9
        self.gamma, self.beta, self.temperature = gamma, beta, temperature
        self.pool = pool if gamma or beta else 0

    def __call__(self, batch: PooledBatch) -> Tensor:
        """A scalar with a gradient; divided by the batch's learned tokens it is L."""
        total = torch.zeros((), device=self.model.device)
        for pool in batch.pools:
            share = self.history * batch.learned / max(batch.shown, 1) if self.history else 0.0
            answers, towers = self._computed(pool, share)
            total = total + answers
            if towers is not None:
                total = total + batch.learned / batch.rows * self._contrast(*towers)
        return total

    def _computed(self, pool: Pool, share: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor] | None]:
        """The pool's loss, histories' tokens times ``share``; its g^U, g^(I|U), g^I and targets, in one order."""
        chunks, device = pool.chunks(self.positions), self.model.device
        outputs: list[tuple[Tensor, ...]] = []
        for number, chunk in enumerate(chunks):
            arrays = [*padded([pool.rows[row] for row in chunk], 0, left=False)]
            if self.gamma or self.beta:
                arrays += padded([pool.alone[row] for row in chunk], 0, left=False)
            given = [torch.from_numpy(array).to(device) for array in arrays]
            if number + 1 == len(chunks):  # its activations are the first that the backward pass wants
                outputs.append(self._chunk(share, *given))
            else:
                outputs.append(checkpoint(self._chunk, share, *given, use_reentrant=False))
        losses, *towers = zip(*outputs, strict=True)
        targets = torch.from_numpy(pool.targets[np.concatenate(chunks)]).to(device)
        answers = torch.stack(losses).sum()
        if not towers:
            return answers, None
        user, conditioned, alone = (torch.cat(parts) for parts in towers)
        return answers, (user, conditioned, alone, targets)

    def _chunk(self, share: float, tokens: Tensor, kinds: Tensor, *alone: Tensor) -> tuple[Tensor, ...]:
        """Summed loss of some rows' tokens and, where ``alone`` gives their targets, pooled states (n, h) each."""
        hidden = self.model.states(tokens)
        loss = self._read(hidden, tokens, answering(kinds))
        if share:
            loss = loss + share * self._read(hidden, tokens, written(tokens, kinds))
        if not alone:
            return (loss,)
        by_itself = pooled(self.model.states(alone[0]), alone[1] == ANSWER)
        return loss, pooled(hidden, kinds == HISTORY), pooled(hidden, kinds == ANSWER), by_itself

    def _read(self, hidden: Tensor, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Summed cross-entropy of the ``chosen`` (B, P) tokens, each from the state before it."""
        chosen = chosen[:, 1:]
        logits = CausalTokens(self.model).logits(hidden[:, :-1][chosen], None)
        return functional.cross_entropy(logits.float(), tokens[:, 1:][chosen], reduction="sum")

    def _contrast(self, user: Tensor, conditioned: Tensor, alone: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=alone.device)
        if self.gamma:
            total = total + self.gamma * info_nce(alone, conditioned, targets, self.temperature)
        if self.beta:
            total = total + self.beta * info_nce(user, alone, targets, self.temperature)
        return total


Kinds = TypeVar("Kinds", np.ndarray, Tensor)


def answering(kinds: Kinds) -> Kinds:
    """Where the answer and its end are."""
    return (kinds == ANSWER) | (kinds == END)


def written(tokens: Kinds, kinds: Kinds) -> Kinds:
    """Where the words of the history's items are: markers and vectors are no words."""
    return (kinds == HISTORY) & (tokens >= 0)


def pooled(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``hidden`` (B, P, h) over ``chosen`` (B, P) bool, (B, h), in bf16 under autocast; zero where none is."""
    share = chosen / chosen.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bp,bph->bh", share, hidden.float())


def info_nce(anchors: Tensor, others: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """-sum_i log exp(cos(a_i, o_i) / tau) / sum_j exp(cos(a_i, o_j) / tau); j != i with i's target left out.

    ``anchors`` and ``others`` (P, h), ``targets`` (P,) item numbers. A scalar, in float32 also under autocast.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, b = (functional.normalize(states.float(), dim=1) for states in (anchors, others))
        twins = (targets[:, None] == targets).fill_diagonal_(False)
        logits = (a @ b.T / temperature).masked_fill(twins, -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return functional.cross_entropy(logits, own, reduction="sum")


class ExampleMaker:
    """Draws questions from the training sequences, as the protocol asks them: a target and 19 that its user never took.

    ``names`` (N,) are what items are shown as: no two candidates of a row share one.
    """

    def __init__(self, train: TrainView, names: Sequence[str], history: int, candidates: int):
        self.sequences, self.history, self.candidates = train.sequences, history, candidates
        self._names = np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]

    def places(self, per_user: int, least_history: int, rng: np.random.Generator) -> np.ndarray:
        """Targets of an epoch, (n, 2) int64: row of the sequences, place in it; ``per_user`` of each, in random order.

        A target has ``least_history`` items before it, or as many as its sequence has; 0 takes every target.
        """
        found = []
        for row, length in enumerate(self.sequences.lengths.tolist()):
            allowed = np.arange(min(least_history, length - 1), length) if length > 1 else np.empty(0, dtype=np.int64)
            count = min(per_user or len(allowed), len(allowed))
            chosen = rng.permutation(allowed)[:count]
            found.append(np.stack([np.full(count, row), chosen], 1))
        places = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
        return places[rng.permutation(len(places))].astype(np.int64)

    def example(self, row: int, place: int, rng: np.random.Generator) -> Example:
        """The question whose answer is item ``place`` of a sequence."""
        items = self.sequences.row(row)
        target = int(items[place])
        barred = np.zeros(len(self._names), dtype=bool)
        barred[items] = True
        order = rng.permutation(len(barred))
        order = order[~barred[order]]
        names, taken, chosen = self._names, {int(self._names[target])}, [target]
        for item in order.tolist():
            if len(chosen) == self.candidates:
                break
            if int(names[item]) not in taken:
                taken.add(int(names[item]))
                chosen.append(item)
        candidates = rng.permutation(np.array(chosen, dtype=np.int64))
        return Example(items[max(place - self.history, 0) : place], candidates, target)


PoolMaker = Callable[[np.ndarray, np.random.Generator], Pool]


def pooled_batches(
    places: np.ndarray, batch: int, pool: int, maker_of: Callable[[float], PoolMaker], rng: np.random.Generator
) -> Iterator[PooledBatch]:
    """An epoch: ``batch`` rows of ``places`` a step, in pools of ``pool``.

    ``maker_of(share)``, the share of the epoch that is over, gives what makes a step's pools from numbers of its own.
    """
    for start in range(0, len(places), batch):
        chosen, seed, make = places[start : start + batch], int(rng.integers(2**62)), maker_of(start / len(places))
        yield PooledBatch(partial(_pools, make, chosen, pool, seed))


def _pools(make: PoolMaker, places: np.ndarray, pool: int, seed: int) -> list[Pool]:
    rng = np.random.default_rng(seed)
    return [make(places[first : first + pool], rng) for first in range(0, len(places), pool)]
