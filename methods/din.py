"""DIN: attention of the candidate item over the history (Zhou et al., KDD 2018, arXiv 1706.06978).

    genrec-bench run --method din --dataset ml-100k

The behaviour encoder of EAGER-LLM (arXiv 2502.14735): user vector = sum over the history of a(e_item, e_target) e_item,
``a`` a perceptron on [target, item, target - item, target * item] without softmax; a second perceptron on [user vector,
target, their product] gives the logit that the target comes next. Binary cross-entropy against uniform negatives: its
minimiser is log p(target | history) plus a constant, so logits rank, and their softmax is a likelihood.

Cost of scoring all N items: ``a`` takes 2 (64 * 80 + 80 * 40) operations a pair of items, but knows no positions: each
pair is computed once for all histories and kept, N^2 float32 (0.6 GB and a minute of one core for 12,101 items), as
long as N is at most `KEPT_ITEMS`. The second perceptron costs as much for each pair of a history and an item (270
million for all of Amazon Beauty: two minutes), so epochs are chosen on a sample of users.

Deviation: ids alone, no user profile or context features; ReLU, where the paper has PReLU or Dice.
Deviation: trained on every position of a window at once; the paper trains on one click a row.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Rate
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.next_item import TrainedScorer, TrainingConfig, batches, train_epochs

KEPT_ITEMS = 25_000  # 2.5 GB of attention; larger catalogues compute it anew for each group of histories
PAIRS = {"cpu": 4096, "cuda": 1 << 20}  # pairs of items at a time: their hidden layer stays in the cache
TARGETS = {"cpu": 128, "cuda": 1024}  # items that a group of histories is scored against at a time


class DINConfig(TrainingConfig):
    """EAGER-LLM's attention sizes for both perceptrons; the rest tuned on validation of MovieLens-100K."""

    dim: PositiveInt = 64  # width of item vectors
    hidden: tuple[PositiveInt, PositiveInt] = (80, 40)  # of both perceptrons
    max_length: PositiveInt = 10  # most recent items a prediction looks at: it cannot tell them from older ones
    learning_rate: PositiveFloat = 3e-3
    dropout: Rate = 0.0  # of the embedded items
    negatives: PositiveInt = 4  # uniform, a target
    weight_decay: NonNegativeFloat = 0.1
    averaging: Rate = 0.99  # of the weights, a step; steadies the choice of an epoch
    batch_positions: PositiveInt = 1024  # targets a step
    validation_users: NonNegativeInt = 1000  # fixed sample that selects the epoch; 0: all

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "dim": [32, 64, 128],
        "dropout": [0.0, 0.1, 0.2, 0.5],
        "max_length": [3, 5, 10, 20, 50],
        "negatives": [4, 16],
        "learning_rate": (1e-3, 1e-2),
        "weight_decay": [0.0, 0.01, 0.1, 0.3],
    }


class DIN(TrainedScorer):
    """Deep interest network."""

    Config = DINConfig
    family = "sequential"

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        step_losses = partial(_step_losses, self.model, train, self.config, context.device)
        train_epochs(
            self.model,
            self,
            self.config,
            context,
            step_losses,
            self.config.weight_decay,
            self.config.averaging,
            validation_users=self.config.validation_users,
        )

    def score(self, histories: Histories) -> Tensor:
        recent = histories.last(self.config.max_length)
        padded = torch.from_numpy(recent.padded(pad=self.model.num_items))
        return self.model.scores(padded.to(self.model.items.weight.device))

    def _build(self, train: TrainView, context: Context) -> None:
        self.model = DINModel(train.num_items, self.config).to(context.device)


class DINModel(nn.Module):
    """Item embeddings, the attention and the prediction perceptron; padding's embedding is zero and weighs nothing."""

    def __init__(self, num_items: int, config: DINConfig):
        super().__init__()
        self.num_items, self.dropout = num_items, config.dropout
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=num_items)
        self.attention = Perceptron(4 * config.dim, config.hidden)
        self.prediction = Perceptron(3 * config.dim, config.hidden)
        nn.init.normal_(self.items.weight, std=0.1)
        with torch.no_grad():
            self.items.weight[num_items] = 0.0
        self._kept: tuple[Tensor, Tensor] | None = None  # attention of pairs of items, and of whom it is filled in

    def train(self, mode: bool = True) -> "DINModel":
        """As any module's; called whenever weights have changed or will, so the kept attention goes."""
        self._kept = None
        super().train(mode)
        return self

    def item_table(self) -> Tensor:
        """(num_items, dim), without the padding row."""
        return self.items.weight[: self.num_items]

    def forward(self, inputs: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Logits of C candidates after each position of B windows.

        inputs, mask: (B, L), right-padded; candidates: (P, C), row p of the p-th position that ``mask`` holds. (P, C).
        """
        keys = dropout(self.items(inputs), self.dropout, self.training)  # (B, L, dim)
        queries = dropout(self.items(candidates), self.dropout, self.training)  # (P, C, dim)
        window, position = mask.nonzero(as_tuple=True)  # (P,) each
        seen = position + 1  # items in a position's history
        owner = torch.repeat_interleave(torch.arange(len(seen), device=seen.device), seen)  # (pairs,)
        item = torch.arange(len(owner), device=seen.device) - (seen.cumsum(0) - seen)[owner]
        weights = self._pair_attention(keys, queries, window[owner], item, owner)  # (pairs, C)
        rows, length, count = *mask.shape, candidates.shape[1]
        dense = weights.new_zeros(rows, length, length, count)
        dense = dense.index_put((window[owner], position[owner], item), weights)
        users = (dense.transpose(2, 3).reshape(rows, length * count, length) @ keys).view(rows, length, count, -1)
        users = users[window, position]  # (P, C, dim)
        logits: Tensor = self.prediction(torch.cat([users, queries, users * queries], 2))
        return logits

    def _pair_attention(self, keys: Tensor, queries: Tensor, window: Tensor, item: Tensor, owner: Tensor) -> Tensor:
        """Attention of candidates (owner, c) to the items (window, item) of their histories, (pairs, C).

        The first layer is linear in target, item and difference: these parts are computed once a vector, not a pair.
        """
        of_query, of_key, times = self._first_layer()
        key_part, query_part = keys @ of_key.T, functional.linear(queries, of_query, self.attention.first.bias)
        hidden = (keys[window, item][:, None] * queries[owner]) @ times.T
        hidden += query_part[owner]
        hidden += key_part[window, item][:, None]
        return self.attention.rest(hidden)

    def _first_layer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the attention's first layer for query, key and their product, (hidden, dim) each."""
        query, key, difference, times = self.attention.first.weight.chunk(4, 1)
        return query + difference, key - difference, times

    @torch.inference_mode()
    def scores(self, histories: Tensor) -> Tensor:
        """Logits of all items after each of B right-padded histories (B, L), (B, num_items)."""
        keys, table = self.items(histories), self.item_table()  # (B, L, dim), (N, dim)
        of_user, of_query, times = self.prediction.first.weight.chunk(3, 1)  # (hidden, dim) each
        query_part = functional.linear(table, of_query, self.prediction.first.bias)  # (N, hidden)
        items, place = histories.unique(return_inverse=True)
        kept = self._kept_attention(items)
        scores = keys.new_empty(len(histories), self.num_items)
        step = TARGETS[keys.device.type]
        for start in range(0, self.num_items, step):
            targets = slice(start, start + step)
            attention = kept[items, targets] if kept is not None else self._attention(items, targets)  # (n, T)
            users = attention[place].transpose(1, 2) @ keys  # (B, T, dim)
            # user and product enter linearly: one matrix a target, of_user + times * target
            mixing = (of_user + times * table[targets, None]).transpose(1, 2)  # (T, dim, hidden)
            hidden = users.transpose(0, 1) @ mixing + query_part[targets, None]  # (T, B, hidden)
            scores[:, targets] = self.prediction.rest(hidden).T
        return scores

    def _kept_attention(self, items: Tensor) -> Tensor | None:
        """(num_items + 1, num_items) with the rows of ``items`` filled in; None where that would be too large."""
        if self.num_items > KEPT_ITEMS:
            return None
        if self._kept is None:
            size = self.num_items
            self._kept = self.items.weight.new_empty(size + 1, size), torch.zeros(size + 1, dtype=torch.bool)
        attention, filled = self._kept
        missing = items[~filled[items.cpu()].to(items.device)]
        if len(missing):
            attention[missing] = self._attention(missing, slice(None))
            filled[missing.cpu()] = True
        return attention

    def _attention(self, items: Tensor, targets: slice) -> Tensor:
        """Attention of T targets to n items of a history, (n, T)."""
        keys, queries = self.items(items), self.item_table()[targets]
        of_query, of_key, times = self._first_layer()
        key_part, query_part = keys @ of_key.T, functional.linear(queries, of_query, self.attention.first.bias)
        out = keys.new_empty(len(keys), len(queries))
        columns = min(len(queries), PAIRS[keys.device.type] // 4)
        rows = PAIRS[keys.device.type] // columns
        for top in range(0, len(keys), rows):
            key = slice(top, top + rows)
            mixing = (keys[key, None] * times).transpose(1, 2)  # (rows, dim, hidden)
            for left in range(0, len(queries), columns):
                query = slice(left, left + columns)
                hidden = queries[query] @ mixing  # (rows, columns, hidden)
                hidden += key_part[key, None]
                hidden += query_part[query]
                out[key, query] = self.attention.rest(hidden)
        return out


class Perceptron(nn.Module):
    """Two hidden layers with ReLU, one number out; ``first`` is apart, since its parts can be computed separately."""

    def __init__(self, inputs: int, hidden: tuple[int, int]):
        super().__init__()
        self.first = nn.Linear(inputs, hidden[0])
        self.second, self.last = nn.Linear(*hidden), nn.Linear(hidden[1], 1)
        for layer in (self.first, self.second, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) -> (...)"""
        return self.rest(self.first(inputs))

    def rest(self, hidden: Tensor) -> Tensor:
        """What follows the first layer, (..., hidden) -> (...)."""
        out: Tensor = self.last(self.second(hidden.relu_()).relu_()).squeeze(-1)
        return out


def _step_losses(
    model: DINModel, train: TrainView, config: DINConfig, device: str, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Binary cross-entropy of each training position's next item against uniform negatives."""
    for batch in batches(train.sequences, config.max_length, config.batch_positions, train.num_items, rng):
        inputs, mask, targets = (part.to(device) for part in batch)
        negatives = torch.from_numpy(rng.integers(0, train.num_items, (len(targets), config.negatives)))
        logits = model(inputs, mask, torch.cat([targets[:, None], negatives.to(device)], 1))
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1.0
        yield functional.binary_cross_entropy_with_logits(logits, labels)
