"""Popularity: everybody gets the most interacted items of the training part. The floor that no method may be under."""

from pathlib import Path

import numpy as np

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.scoring import Scorer


class Popularity(Scorer):
    """Training interactions of an item as its score."""

    family = "counting"

    def fit(self, train: TrainView, context: Context) -> None:
        self.popularity = train.item_counts().astype(np.float32)

    def score(self, histories: Histories) -> np.ndarray:
        return np.broadcast_to(self.popularity, (len(histories), len(self.popularity))).copy()

    def save(self, folder: Path) -> None:
        np.save(folder / "popularity.npy", self.popularity, allow_pickle=False)

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self.popularity = np.load(folder / "popularity.npy", allow_pickle=False)

    def parameters(self) -> tuple[int, int]:
        return len(self.popularity), len(self.popularity)
