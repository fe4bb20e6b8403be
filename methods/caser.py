"""Caser: convolutions over the last items, seen as an image (Tang and Wang, WSDM 2018, arXiv 1809.07426).

    genrec-bench run --method caser --dataset ml-100k

The vectors of the last L items are an L x d image, padded on the left with zeros where a history is shorter (section
3.2). n_h horizontal filters of each height 1..L slide over it; ReLU, and the largest value of each filter is kept. n_v
vertical filters are weighted sums of its rows. z = ReLU(W [horizontal, vertical] + b), and the scores are
W' [z, user] + b' (section 3.3).

User vectors start at zero and move with their user's training targets alone, so that zero is the vector of everybody
else: a user whose number training has never seen, and all held-out users of the candidate protocol, whose whole
sequences are withheld. For their sake a window loses its user with probability ``user_dropout``.

Deviation: full softmax by default, one target a window; the paper has binary cross-entropy with three negatives a
target and T = 3 targets (``loss=bce`` has one negative, ``targets=3``).
Deviation: user vectors start at zero, item vectors wider than the code's N(0, 1 / d); ``user_dropout`` is ours.
Deviation: L2 is AdamW's decoupled decay.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, Rate
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.next_item import NextItemConfig, TrainedScorer, next_item_loss, train_epochs


class CaserConfig(NextItemConfig):
    """Library sizes and the paper's L; the rest tuned on validation of MovieLens-100K."""

    max_length: PositiveInt = 5  # L, height of the image
    horizontal: PositiveInt = 8  # filters of each height 1..L
    vertical: PositiveInt = 4  # filters of height L and width 1
    targets: PositiveInt = 1  # T, next items that a window predicts
    dropout: Rate = 0.5  # of what the filters give
    user_dropout: Rate = 0.5  # share of windows trained as an unknown user's
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.1
    averaging: Rate = 0.99  # of the weights, a step; steadies the choice of an epoch

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "dim": [32, 64, 128],
        "max_length": [3, 5, 10],
        "horizontal": [4, 8, 16],
        "vertical": [2, 4, 8],
        "targets": [1, 2, 3],
        "dropout": [0.2, 0.4, 0.5],
        "user_dropout": [0.0, 0.5, 0.9],
        "learning_rate": (3e-4, 1e-2),
        "weight_decay": [0.0, 0.01, 0.1, 0.3],
    }


class Caser(TrainedScorer):
    """Convolutional sequence embedding."""

    Config = CaserConfig
    published_as = "Caser"
    family = "sequential"

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        step_losses = partial(_step_losses, self.model, train, self.config, context.device)
        train_epochs(
            self.model, self, self.config, context, step_losses, self.config.weight_decay, self.config.averaging
        )

    @torch.inference_mode()
    def score(self, histories: Histories) -> Tensor:
        model, device = self.model, self.model.items.weight.device
        windows = torch.from_numpy(left_padded(histories, self.config.max_length, model.num_items)).to(device)
        users = torch.from_numpy(np.minimum(histories.users, model.num_users)).to(device)
        scores: Tensor = model.out(model(windows, users))
        return scores

    def _build(self, train: TrainView, context: Context) -> None:
        self.model = CaserModel(train.num_users, train.num_items, self.config).to(context.device)


class CaserModel(nn.Module):
    """Embeddings of items and users, both kinds of filters, two layers; padding and the unknown user are zeros."""

    def __init__(self, num_users: int, num_items: int, config: CaserConfig):
        super().__init__()
        self.num_users, self.num_items, self.dropout = num_users, num_items, config.dropout
        length, dim = config.max_length, config.dim
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.users = nn.Embedding(num_users + 1, dim, padding_idx=num_users)
        self.horizontal = nn.ModuleList(nn.Conv1d(dim, config.horizontal, height) for height in range(1, length + 1))
        self.vertical = nn.Linear(length, config.vertical, bias=False)
        self.sequence = nn.Linear(length * config.horizontal + config.vertical * dim, dim)
        self.out = nn.Linear(2 * dim, num_items)
        nn.init.normal_(self.items.weight, std=0.1)
        nn.init.zeros_(self.users.weight)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.items.weight[num_items] = 0.0

    def forward(self, windows: Tensor, users: Tensor) -> Tensor:
        """(P, L) left-padded item numbers, (P,) user numbers -> (P, 2 dim), what the output layer reads."""
        image = self.items(windows).transpose(1, 2)  # (P, dim, L)
        largest = [filters(image).amax(2).relu() for filters in self.horizontal]  # L of (P, n_h); ReLU keeps the order
        weighted = self.vertical(image).transpose(1, 2).flatten(1)  # (P, n_v dim), filter by filter
        convolved = dropout(torch.cat([*largest, weighted], 1), self.dropout, self.training)
        return torch.cat([self.sequence(convolved).relu(), self.users(users)], 1)

    def item_table(self) -> Tensor:
        """(num_items, dim) input vectors, without the padding row."""
        return self.items.weight[: self.num_items]


def left_padded(histories: Histories, length: int, pad: int) -> np.ndarray:
    """(B, length) int64: the ``length`` most recent items of each row, at the right."""
    recent = histories.last(length)
    table = np.full((len(recent), length), pad, dtype=np.int64)
    table[np.arange(length) >= length - recent.lengths[:, None]] = recent.items
    return table


def examples(
    sequences: Histories, length: int, count: int, positions: int, pad: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One epoch in random order: ``positions`` windows (P, length) at a time, their users (P,), targets (P, count).

    Every item but a row's first is the first target of one window; -1 stands for targets beyond the row's end.
    """
    items, row = sequences.items.astype(np.int64), np.repeat(np.arange(len(sequences)), sequences.lengths)
    first, end = sequences.offsets[:-1][row], sequences.offsets[1:][row]  # of each item's row
    order = rng.permutation(np.flatnonzero(np.arange(len(items)) > first))
    for start in range(0, len(order), positions):
        at = order[start : start + positions]
        before, after = at[:, None] + np.arange(-length, 0), at[:, None] + np.arange(count)
        windows = np.where(before >= first[at, None], items[np.maximum(before, 0)], pad)
        targets = np.where(after < end[at, None], items[np.minimum(after, len(items) - 1)], -1)
        yield windows, sequences.users[row[at]], targets


def _step_losses(
    model: CaserModel, train: TrainView, config: CaserConfig, device: str, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Mean loss of all targets of a step's windows."""
    parts = train.sequences, config.max_length, config.targets, config.batch_positions, train.num_items
    for windows, users, targets in examples(*parts, rng):
        users = np.where(rng.random(len(users)) < config.user_dropout, train.num_users, users)
        window, place = np.nonzero(targets >= 0)
        hidden = model(torch.from_numpy(windows).to(device), torch.from_numpy(users).to(device))
        hidden = hidden[torch.from_numpy(window).to(device)]
        wanted = torch.from_numpy(targets[window, place]).to(device)
        # the bias as one more output dimension, which every hidden state has at 1
        table = torch.cat([model.out.weight, model.out.bias[:, None]], 1)
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        yield next_item_loss(hidden, table, wanted, config, rng)
