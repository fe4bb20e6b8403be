"""A rankable finite-state machine over item codes, and its scores mixed with a language model's (AGRec, section 4).

Another recommender suggests n items for a user. Their codes are the machine (Q, Sigma, delta, s0, sf): states Q, tokens
Sigma, transitions delta, the start s0, and sf, reached when a code is complete. Tokens that leave a state are ranked by
the scores of the suggested items whose codes take them. One `RankableFSM` holds the machines of all users, as the trie
nodes above their items; what a step needs is found by comparing and scattering these, without a loop over users or
beams.

`Probabilities` mixes as the paper's equations do, `Logits` as the released code does. docs/methods/agrec.md works one
example through both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.decoding.beam import StepView
from genrec_bench.methods.decoding.tokens import full_logits
from genrec_bench.methods.decoding.trie import ItemTrie

Aggregation = Literal["max", "sum"]

NO_NODE = -2  # of a missing suggestion; a dead beam's node is -1
UNAVAILABLE = 1e-5  # what a token gets that the machine does not offer (section 4.2): a probability, or a raw score


class RankableFSM:
    """The machines of B users over one trie.

    ``nodes[d]`` (B, n) int64: the trie node of depth d above each suggested item, `NO_NODE` for a missing one.
    ``codes[d]`` (B, n) int64: that node's last code. ``scores`` (B, n) float32: as suggested, 0 for a missing one.
    """

    def __init__(self, trie: ItemTrie, items: np.ndarray, scores: np.ndarray):
        """Of suggested ``items`` (B, n), -1 for none, in any order, and their scores (B, n)."""
        self.trie = trie
        position = np.where(items >= 0, trie.host.position[items], -1)
        missing = position < 0
        nodes = [trie.host.node_of(depth, position) for depth in range(trie.num_levels + 1)]
        codes = [of_depth[above] for of_depth, above in zip(trie.host.codes, nodes, strict=True)]
        self.nodes = tuple(self._tensor(np.where(missing, NO_NODE, above)) for above in nodes)
        self.codes = tuple(self._tensor(np.where(missing, NO_NODE, last).astype(np.int64)) for last in codes)
        self.scores = self._tensor(np.where(missing, 0.0, scores).astype(np.float32))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.trie.device)

    @cached_property
    def real(self) -> Tensor:
        """Which suggestions there are, (B, n) bool."""
        return self.nodes[-1] != NO_NODE

    @cached_property
    def spread(self) -> Tensor:
        """Standard deviation of each user's scores, (B, 1) float32; 1 where they are all equal."""
        count = self.real.sum(1, keepdim=True).clamp(min=1)
        mean = self.scores.sum(1, keepdim=True) / count
        squares = torch.where(self.real, self.scores - mean, 0.0).square().sum(1, keepdim=True)
        spread = (squares / count).sqrt()
        return torch.where(spread > 0, spread, 1.0)

    def paths(self, step: StepView) -> tuple[Tensor, Tensor]:
        """Whose code runs through each beam's prefix, (b, beams, n) bool, and by which of its candidates it goes on."""
        first = self.trie.rows[step.level][step.nodes.clamp(min=0)].long()  # (b, beams)
        takes = self.nodes[step.level][step.rows].unsqueeze(1) == step.nodes.unsqueeze(-1)
        return takes, self.nodes[step.level + 1][step.rows].unsqueeze(1) - first.unsqueeze(-1)

    def by_last_token(self, step: StepView) -> Tensor:
        """For each code of the level the best score of the items whose code takes it after a beam's last token.

        A state is that token alone, so items with other prefixes count too. (b, beams, K_level) float32, -inf for what
        the machine does not offer there.
        """
        takes = self.real[step.rows].unsqueeze(1).expand(-1, step.nodes.shape[1], -1)
        if step.level:
            takes = takes & (self.codes[step.level][step.rows].unsqueeze(1) == step.prefix[..., -1:])
        scores = self.scores[step.rows].unsqueeze(1).masked_fill(~takes, -torch.inf)
        place = self.codes[step.level + 1][step.rows].unsqueeze(1)
        return _scattered(scores, takes, place, self.trie.level_sizes[step.level], -torch.inf, "amax")


def _scattered(values: Tensor, takes: Tensor, place: Tensor, columns: int, empty: float, reduce: str) -> Tensor:
    """``values`` (b, beams, n) where ``takes``, reduced into ``columns`` by their ``place``; else ``empty``."""
    found = values.new_full((*takes.shape[:2], columns + 1), empty)  # the spare column is cut off
    found.scatter_reduce_(-1, torch.where(takes, place, columns), values, reduce)
    return found[..., :columns]


@dataclass(frozen=True)
class Probabilities:
    """Score hook of equations 4 and 5: log((1 - alpha) p_LM + alpha p_G). Wants a search normalised over the trie.

    p_G of a state: "max" is a softmax, at ``temperature``, of the best score behind each token; "sum" the share of the
    suggested items' own softmax that runs through it. The other continuations get `UNAVAILABLE`, and all are divided
    by their sum. Where the machine offers nothing, the language model decides alone.

    ``temperature`` None: the standard deviation of the user's scores. How scores become a distribution is not printed.
    """

    fsm: RankableFSM
    alpha: float
    aggregation: Aggregation = "max"
    temperature: float | None = None

    def __call__(self, step: StepView) -> Tensor:
        takes, place = self.fsm.paths(step)
        scores = self._scaled[step.rows].unsqueeze(1).masked_fill(~takes, -torch.inf)
        best = scores.amax(-1, keepdim=True)
        smallest = torch.finfo(torch.float32).tiny
        weights = (scores - best.clamp(min=-3e38)).exp().clamp_(min=smallest) * takes  # an offer is never quite 0
        reduce = "amax" if self.aggregation == "max" else "sum"
        offered = _scattered(weights, takes, place, step.codes.shape[-1], 0.0, reduce)
        share = offered / offered.sum(-1, keepdim=True).clamp_(min=smallest)
        share = torch.where(offered > 0, share, UNAVAILABLE * step.real)
        share /= share.sum(-1, keepdim=True).clamp_(min=smallest)
        mixed = step.log_probs.exp().mul_(1.0 - self.alpha).add_(share, alpha=self.alpha).log_()
        return torch.where(best > -torch.inf, mixed, step.log_probs)

    @cached_property
    def _scaled(self) -> Tensor:
        return self.fsm.scores / (self.fsm.spread if self.temperature is None else self.temperature)


@dataclass(frozen=True)
class Logits:
    """Score hook of the released code: code tokens' logits become (1 - alpha) logit + alpha score, then a softmax.

    The softmax is over the whole vocabulary, and only codes are mixed: a token that the machine does not offer has the
    score `UNAVAILABLE`, so off the machine the logits are damped. ``token_ids``: per level (K_l,) the ids of the codes,
    none twice.
    Deviation: the released code's search goes on to the end token, and its probability counts. A model that has only
    learned codes of one length knows nothing of that token; here a code's last token is the last one.
    """

    fsm: RankableFSM
    alpha: float
    token_ids: Sequence[Tensor]

    def __call__(self, step: StepView) -> Tensor:
        levels = [ids.to(step.hidden.device) for ids in self.token_ids]
        codes, ids = torch.cat(levels), levels[step.level]
        ranked = self.fsm.by_last_token(step).flatten(0, 1)
        offered = torch.where(ranked > -torch.inf, ranked - UNAVAILABLE, 0.0).mul_(self.alpha)
        damped = step.hidden.new_ones(step.model.vocabulary_size, dtype=torch.float32)
        damped[codes] -= self.alpha
        unavailable = (damped != 1) * (self.alpha * UNAVAILABLE)

        def mix(logits: Tensor, rows: slice) -> None:
            logits.mul_(damped).add_(unavailable).index_add_(1, ids, offered[rows])

        logits, mass = full_logits(step.model, step.hidden, ids[step.codes], mix)
        return logits - mass
