"""Item nearest neighbours: an item scores by its similarity to the items of the history, recent ones weighing more.

Similarity is the cosine of the items' user sets with shrinkage, n_ij / (sqrt(n_i n_j) + shrink), each item keeping its
``neighbours`` most similar ones (Sarwar et al. 2001; the shrinkage is Bell and Koren's, 2007).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt
from scipy import sparse

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context, MethodConfig
from genrec_bench.methods.counts import count_numbers, load_counts, save_counts
from genrec_bench.methods.scoring import Scorer

ROWS = 2048  # items whose co-occurrences are held at a time


class ItemKNNConfig(MethodConfig):
    """Tuned on validation of MovieLens-100K and Amazon Beauty together."""

    neighbours: PositiveInt = 200  # kept of each item
    shrink: NonNegativeFloat = 10.0  # added to the denominator: rare items come less near
    # weight of an item falls by this factor a step into the past; 1: order ignored
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "neighbours": [50, 100, 200, 500],
        "shrink": (0.1, 100.0),
        "decay": [0.5, 0.7, 0.8, 0.9, 0.95, 1.0],
    }


class ItemKNN(Scorer):
    """Cosine neighbours of the history's items."""

    Config = ItemKNNConfig
    family = "counting"

    def fit(self, train: TrainView, context: Context) -> None:
        self.popularity = train.item_counts().astype(np.float32)
        sequences = train.sequences
        row = np.repeat(np.arange(len(sequences)), sequences.lengths)
        ones = np.ones(len(row), np.float32)
        users_items = sparse.csr_array((ones, (row, sequences.items)), shape=(len(sequences), train.num_items))
        users_items.data[:] = 1.0  # a repeated item counts once
        self.users: np.ndarray = np.asarray(users_items.sum(axis=0)).ravel()  # of each item
        items_users = sparse.csr_array(users_items.T)
        parts = [
            self._neighbours(items_users[start : start + ROWS] @ users_items, start)
            for start in range(0, train.num_items, ROWS)
        ]
        self.similarity = sparse.csr_array(sparse.vstack(parts))

    def _neighbours(self, together: sparse.csr_array, start: int) -> sparse.csr_array:
        """Similarities of rows ``start``.. from their co-occurrence counts, cut to the nearest neighbours."""
        together = sparse.csr_array(together)
        together.sort_indices()  # equal similarities then keep the lower item number
        row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        norm = np.sqrt(self.users)
        data = together.data / (norm[row + start] * norm[together.indices] + self.config.shrink)
        data[row + start == together.indices] = 0.0
        order = np.lexsort((-data, row))
        rank = np.arange(len(row)) - together.indptr[row]  # rows stay in place under the sort
        keep = order[(rank < self.config.neighbours) & (data[order] > 0)]
        return sparse.csr_array((data[keep], (row[keep], together.indices[keep])), shape=together.shape)

    def score(self, histories: Histories) -> np.ndarray:
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        steps_back = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.items))
        weight = (self.config.decay**steps_back).astype(np.float32)
        looked_at = sparse.csr_array((weight, (row, histories.items)), shape=(len(histories), len(self.popularity)))
        # popularity, scaled below the least similarity that matters, orders the items that no neighbour reaches
        floor = self.popularity * (1e-6 / max(float(self.popularity.max(initial=0.0)), 1.0))
        return ((looked_at @ self.similarity).toarray() + floor).astype(np.float32)

    def save(self, folder: Path) -> None:
        save_counts(folder, self.popularity, self.similarity)

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self.popularity, self.similarity = load_counts(folder)

    def parameters(self) -> tuple[int, int]:
        return count_numbers(self.popularity, self.similarity)
