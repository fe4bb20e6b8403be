"""The log-probability of every item, and what a beam loses against it.

All prefixes of the trie are one tree of tokens behind the prompt. It is read in chunks of neighbouring prefixes, each
with the ancestors it needs, after one prompt cache that all chunks share; a chunk's mask is the same for all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.decoding.beam import Beams
from genrec_bench.methods.decoding.tokens import CodeTokens, Normalise, Prompt, TokenModel, candidate_log_probs
from genrec_bench.methods.decoding.trie import END, ItemTrie


@dataclass(frozen=True)
class _Chunk:
    """n prefixes that are read together: some to be scored, and their ancestors that an earlier chunk has scored."""

    tokens: Tensor  # (n,) int64, each prefix's last token, on the host as all here
    depth: Tensor  # (n,) int64
    visible: Tensor  # (n, n) bool
    scored: dict[int, tuple[np.ndarray, Tensor]]  # depth -> the nodes scored here and their places in the chunk


@torch.inference_mode()
def exact_scores(
    model: TokenModel,
    prompt: Prompt,
    trie: ItemTrie,
    token_ids: Sequence[Tensor],
    *,
    end_id: int | None = None,
    normalise: Normalise = "vocabulary",
    chunk: int = 128,
) -> Tensor:
    """Log-probability of each leaf's code for each row, (B, leaves) float32; item i's is column ``leaf_of_item[i]``.

    ``chunk``: prefixes read at a time. Beside the answer, memory is the log-probability of every node of the trie, and
    per chunk the logits of B * chunk prefixes.
    """
    tokens = CodeTokens(trie, token_ids, end_id, trie.device)
    hidden, state = model.start(prompt, chunk + trie.num_levels)
    batch, device = len(hidden), hidden.device
    edges = [torch.zeros(batch, len(codes), device=device) for codes in trie.codes]  # of the last token of each node

    def score(level: int, nodes: np.ndarray, states: Tensor) -> None:
        found = trie.children(level, torch.from_numpy(nodes).to(device))
        codes, children, real = (t.expand(batch, -1, -1) for t in found)
        log_probs, _ = candidate_log_probs(model, states, tokens, level, codes, real, normalise)
        fan_out = trie.host.rows[level][nodes + 1] - trie.host.rows[level][nodes]
        kept = np.flatnonzero(np.arange(trie.fan_out[level])[None, :] < fan_out[:, None])
        at = torch.from_numpy(kept).to(device)
        edges[level + 1][:, children[0].flatten()[at]] = log_probs.flatten(1)[:, at]

    score(0, np.zeros(1, dtype=np.int64), hidden.unsqueeze(1))
    for part in _chunks(trie, tokens, chunk):
        model.rewind(state)
        read = part.tokens.to(device).expand(batch, -1)
        states = model.extend(state, read, part.depth, part.visible.to(device).unsqueeze(0))
        for level, (nodes, places) in part.scored.items():
            score(level, nodes, states[:, places.to(device)])
    total = edges[0]
    for rows, edge in zip(trie.host.rows, edges[1:], strict=True):
        parents = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
        total = total[:, torch.from_numpy(parents).to(device)] + edge
    return total


def _chunks(trie: ItemTrie, tokens: CodeTokens, size: int) -> Iterator[_Chunk]:
    """All prefixes that go on, except the empty one, in the order a walk of the tree meets them, ``size`` at a time."""
    host, depths = trie.host, range(1, trie.num_levels)
    going_on = {depth: np.flatnonzero(host.codes[depth] != END) for depth in depths}
    if not going_on:
        return
    levels = [of_level.cpu().numpy() for of_level in tokens.levels]
    depth = np.concatenate([np.full(len(going_on[d]), d) for d in depths])
    node = np.concatenate([going_on[d] for d in depths])
    start = np.concatenate([host.starts[d][going_on[d]] for d in depths])
    end = np.concatenate([host.starts[d][going_on[d] + 1] for d in depths])
    token = np.concatenate([levels[d - 1][host.codes[d][going_on[d]]] for d in depths])
    walk = np.lexsort((depth, start))
    depth, node, start, end, token = depth[walk], node[walk], start[walk], end[walk], token[walk]
    for low in range(0, len(walk), size):
        # Only the first prefix has ancestors before the chunk: those of the others lie in the chunk or are the first's.
        above = np.flatnonzero((depth[:low] < depth[low]) & (start[:low] <= start[low]) & (start[low] < end[:low]))
        chosen = np.concatenate([above, np.arange(low, min(low + size, len(walk)))])
        d, s, e = depth[chosen], start[chosen], end[chosen]
        visible = (s[None, :] <= s[:, None]) & (e[:, None] <= e[None, :]) & (d[None, :] <= d[:, None])
        scored = {}
        for level in np.unique(d[len(above) :]).tolist():
            places = len(above) + np.flatnonzero(d[len(above) :] == level)
            scored[level] = node[chosen[places]], torch.from_numpy(places)
        yield _Chunk(torch.from_numpy(token[chosen]), torch.from_numpy(d), torch.from_numpy(visible), scored)


def beam_loss(beams: Beams, exact: Tensor, k: int) -> Tensor:
    """Share of each row's k best leaves by ``exact`` (B, leaves) that its beams do not have, (B,) float32."""
    best = exact.topk(min(k, exact.shape[1]), dim=1).indices
    found = (best.unsqueeze(-1) == beams.leaves.unsqueeze(1)).any(-1)
    return 1.0 - found.float().mean(1)
