"""Methods that score every item: write ``score``, get ranking, candidate choice and exact top-k in chunks."""

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
    """Exact ``torch.topk`` of (B, N) rows, several times faster for small k and large N.

    The k best of a row lie in the k blocks with the largest maxima: one pass finds the blocks' maxima, and only k
    blocks are searched. Returns scores and item numbers, both (B, k), best first; k is cut to N.
    """
    rows, num_items = scores.shape
    k = min(k, num_items)
    block = max(int(math.sqrt(num_items / max(k, 1))), 1)
    blocks = num_items // block
    if blocks <= 4 * k or scores.is_cuda:
        best = torch.topk(scores, k, dim=1)
        return best.values, best.indices
    tail = num_items - blocks * block  # the last, shorter block is always searched
    head = scores[:, : blocks * block].view(rows, blocks, block)
    chosen = torch.topk(head.amax(2), k, dim=1, sorted=False).indices  # (B, k) block numbers
    found = head.gather(1, chosen[:, :, None].expand(-1, -1, block)).reshape(rows, k * block)
    where = (chosen[:, :, None] * block + torch.arange(block)).reshape(rows, k * block)
    if tail:
        found = torch.cat([found, scores[:, -tail:]], 1)
        where = torch.cat([where, torch.arange(num_items - tail, num_items).expand(rows, tail)], 1)
    best = torch.topk(found, k, dim=1)
    return best.values, where.gather(1, best.indices)


def _by_length(histories: Histories, rows: int) -> list[np.ndarray]:
    """Row numbers in groups of similar history length, so that padding costs little."""
    order = np.argsort(histories.lengths, kind="stable")
    return [order[start : start + rows] for start in range(0, len(order), rows)]
