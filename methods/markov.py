"""First-order Markov chain with back-off: what follows the last item, smoothed by popularity.

    P(j | i) = (c_ij + backoff * p_j) / (c_i + backoff)

with c_ij the count of j directly after i in training, c_i their sum over j, p_j the share of j among all interactions.
An item with few successors leans on popularity, an unseen one is popularity (Dirichlet smoothing, Zhai and Lafferty
2001).
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt
from scipy import sparse

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, MethodConfig, Rate
from genrec_bench.methods.counts import count_numbers, load_counts, save_counts
from genrec_bench.methods.scoring import Scorer


class MarkovConfig(MethodConfig):
    """``skip`` adds the successors of earlier items: the item d steps before the last weighs skip ** d."""

    backoff: PositiveFloat = 10.0  # pseudo-observations drawn from popularity
    skip: Rate = 0.3  # 0: the last item alone
    order: PositiveInt = 5  # most recent items looked at when skip > 0

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "backoff": (0.1, 100.0),
        "skip": [0.0, 0.3, 0.5, 0.7, 0.9],
    }


class Markov(Scorer):
    """Transition counts between neighbours of a sequence."""

    Config = MarkovConfig
    family = "counting"

    def fit(self, train: TrainView, context: Context) -> None:
        self.popularity = train.item_counts().astype(np.float32)
        items, size = train.sequences.items, train.num_items
        follows = np.ones(len(items), dtype=bool)
        follows[train.sequences.offsets[:-1][train.sequences.lengths > 0]] = False  # a row's first item follows nothing
        at = np.flatnonzero(follows)
        counts = sparse.coo_array((np.ones(len(at), np.float32), (items[at - 1], items[at])), shape=(size, size))
        self.transitions = sparse.csr_array(counts)  # duplicates summed

    def score(self, histories: Histories) -> np.ndarray:
        size, backoff = len(self.popularity), self.config.backoff
        recent = histories.last(self.config.order if self.config.skip > 0 else 1)
        row = np.repeat(np.arange(len(recent)), recent.lengths)
        steps_back = np.repeat(recent.offsets[1:], recent.lengths) - 1 - np.arange(len(recent.items))
        weight = self.config.skip**steps_back
        # sum over the items i looked at of weight_i * P(. | i): a sparse product and a multiple of popularity
        seen = np.asarray(self.transitions.sum(axis=1)).ravel()[recent.items]
        looked_at = sparse.csr_array((weight / (seen + backoff), (row, recent.items)), shape=(len(recent), size))
        popular = np.asarray(looked_at.sum(axis=1)).ravel() * backoff
        popular[recent.lengths == 0] = 1.0
        share = self.popularity / max(self.popularity.sum(), 1.0)
        return ((looked_at @ self.transitions).toarray() + popular[:, None] * share).astype(np.float32)

    def save(self, folder: Path) -> None:
        save_counts(folder, self.popularity, self.transitions)

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self.popularity, self.transitions = load_counts(folder)

    def parameters(self) -> tuple[int, int]:
        return count_numbers(self.popularity, self.transitions)
