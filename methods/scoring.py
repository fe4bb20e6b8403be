"""Methods that score every item: write ``score``, get ranking, candidate choice and top-k in chunks."""

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.base import Choice, Method, Ranking

ROWS = 512  # histories scored at a time: 512 x 12k float32 scores are 24 MB


class Scorer(Method):
    """A method that scores the whole catalogue; ``score`` is all there is to write beside ``fit`` and save/load."""

    rows_at_a_time: int = ROWS

    @abstractmethod
    def score(self, histories: Histories) -> Tensor | np.ndarray:
        """Scores of all items for each history, (B, num_items) float32, higher is better, no NaN."""

    def recommend(self, histories: Histories, k: int) -> Ranking:
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for rows in _by_length(histories, self.rows_at_a_time):
            part = histories.select(rows)
            best_scores, best_items = top_k(masked_scores(self, part), k)
            best_items = torch.where(best_scores == -math.inf, -1, best_items)
            items[rows, : best_items.shape[1]] = best_items.cpu().numpy()
            scores[rows, : best_items.shape[1]] = best_scores.cpu().numpy()
        return Ranking(items, scores)

    def choose(self, histories: Histories, candidates: np.ndarray) -> Choice:
        scores = np.empty(candidates.shape, dtype=np.float32)
        for rows in _by_length(histories, self.rows_at_a_time):
            full = torch.as_tensor(self.score(histories.select(rows))).float()
            wanted = torch.from_numpy(candidates[rows]).to(full.device)
            scores[rows] = full.gather(1, wanted).cpu().numpy()
        return Choice(scores.argmax(1), scores)


def masked_scores(method: Scorer, histories: Histories) -> Tensor:
    """``method.score(histories)`` as a float32 tensor, seen items at -inf where the protocol masks them."""
    scores = torch.as_tensor(method.score(histories)).float()
    if histories.mask_seen:
        row = torch.from_numpy(np.repeat(np.arange(len(histories)), histories.lengths)).to(scores.device)
        scores = scores.clone()
        scores[row, torch.from_numpy(histories.items.astype(np.int64)).to(scores.device)] = -math.inf
    return scores


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and item numbers of the best items of each row of (B, N), both (B, min(k, N)), best first."""
    best = torch.topk(scores, min(k, scores.shape[1]), dim=1)
    return best.values, best.indices


def _by_length(histories: Histories, rows: int) -> list[np.ndarray]:
    """Row numbers in groups of similar history length, so that padding costs little."""
    order = np.argsort(histories.lengths, kind="stable")
    return [order[start : start + rows] for start in range(0, len(order), rows)]
