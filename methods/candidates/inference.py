"""A language model's answer to questions of 20 candidates: written freely, along their trie, or scored.

The prompt of a row is computed once, in batches of rows of like length. Freely and along the trie one token a row is
added a step; the trie's walk ends as soon as one candidate is left. Likelihoods take one more pass: a row's candidates
stand behind its prompt as a tree, whose branches do not see each other, and read the prompt's cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.candidates.inputs import PromptedModel
from genrec_bench.methods.candidates.prompts import NOTHING, Row, padded
from genrec_bench.methods.decoding.causal import CausalTokens
from genrec_bench.methods.decoding.tokens import FULL_LOGITS, Prompt


class Stops:
    """Which tokens end an answer: the model's own ``ends``, and a line break after something was written."""

    def __init__(self, tokenizer: Any, device: torch.device | str, ends: Sequence[int]):
        size = len(tokenizer)
        texts = tokenizer.batch_decode([[token] for token in range(size)], clean_up_tokenization_spaces=False)
        self.ends = torch.tensor(ends, device=device)
        self.solid = torch.tensor([bool(text.strip()) for text in texts], device=device)
        self.breaks = torch.tensor(["\n" in text for text in texts], device=device)
        self.breaks_alone = torch.tensor(["\n" in text.lstrip() for text in texts], device=device)

    def after(self, token: Tensor, begun: Tensor) -> tuple[Tensor, Tensor]:
        """Whether ``token`` (B,) ends its row, and whether the row has a visible letter now; ``begun`` (B,) before."""
        known = token.clamp(max=len(self.solid) - 1)  # a model may have rows that no token uses
        done = torch.isin(token, self.ends) | (self.breaks[known] & begun) | self.breaks_alone[known]
        return done, begun | self.solid[known]


@torch.inference_mode()
def written(model: PromptedModel, rows: Sequence[Row], stops: Stops, limit: int, budget: int) -> list[list[int]]:
    """Greedy continuations of the prompts, at most ``limit`` tokens each, with the token that ended them.

    ``budget`` is the number of positions computed at a time.
    """
    found: list[list[int]] = [[] for _ in rows]
    for chosen, prompt in _batches(model, rows, [limit] * len(rows), budget):
        reader = CausalTokens(model)
        hidden, state = reader.start(prompt, limit)
        begun = torch.zeros(len(chosen), dtype=torch.bool, device=hidden.device)
        done = begun.clone()
        tokens: list[Tensor] = []
        for depth in range(1, limit + 1):
            token = reader.logits(hidden, None).argmax(-1)  # (B,)
            tokens.append(token.masked_fill(done, -1))
            ends, begun = stops.after(token, begun)
            done = done | ends
            if depth == limit or bool(done.all()):
                break
            hidden = _one_more(reader, state, token, depth)
        for b, answer in zip(chosen, torch.stack(tokens, 1).tolist(), strict=True):
            found[b] = [token for token in answer if token >= 0]
    return found


@torch.inference_mode()
def along_trie(model: PromptedModel, rows: Sequence[Row], answers: Sequence[list[Row]], budget: int) -> np.ndarray:
    """Where greedy decoding ends that can write nothing but a row's ``answers``: the number of one, (B,) int64.

    Answers end in the same token, so none begins with the whole of another; of equal ones the first is taken.
    """
    picked = np.zeros(len(rows), dtype=np.int64)
    paths = [[answer.tokens.tolist() for answer in row] for row in answers]
    rooms = [max(map(len, row)) for row in paths]
    for chosen, prompt in _batches(model, rows, rooms, budget):
        reader, room = CausalTokens(model), max(rooms[b] for b in chosen)
        hidden, state = reader.start(prompt, room)
        left = {b: [*range(len(paths[b]))] for b in chosen}  # the answers that begin with what is written
        for depth in range(room):
            logits = reader.logits(hidden, None).float()
            token = torch.zeros(len(chosen), dtype=torch.int64)
            for place, b in enumerate(chosen):
                if not _undecided(paths[b], left[b]):
                    continue  # nothing of this row is read any more
                following = sorted({paths[b][c][depth] for c in left[b]})
                token[place] = following[int(logits[place, following].argmax())]
                left[b] = [c for c in left[b] if paths[b][c][depth] == int(token[place])]
            if not any(_undecided(paths[b], left[b]) for b in chosen):
                break
            hidden = _one_more(reader, state, token.to(hidden.device), depth + 1)
        for b in chosen:
            picked[b] = left[b][0]
    return picked


@torch.inference_mode()
def log_likelihoods(
    model: PromptedModel, rows: Sequence[Row], answers: Sequence[list[Row]], budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each row's C ``answers``, (B, C) float32, and how many tokens each has, (B, C) int64."""
    summed = np.zeros((len(rows), len(answers[0]) if len(rows) else 0), dtype=np.float32)
    trees = [_Tree([answer.tokens.tolist() for answer in row]) for row in answers]
    rooms = [len(tree.tokens) for tree in trees]
    for chosen, prompt in _batches(model, rows, rooms, budget):
        reader, room = CausalTokens(model), max(rooms[b] for b in chosen)
        first, state = reader.start(prompt, room)
        tokens = torch.zeros(len(chosen), room, dtype=torch.int64)
        depth = torch.ones(len(chosen), room, dtype=torch.int64)
        visible = torch.eye(room, dtype=torch.bool).repeat(len(chosen), 1, 1)
        for place, b in enumerate(chosen):
            tree, count = trees[b], rooms[b]
            tokens[place, :count] = torch.tensor(tree.tokens)
            depth[place, :count] = torch.tensor(tree.depths)
            visible[place, :count, :count] = torch.from_numpy(tree.visible())
        device = first.device
        hidden = reader.extend(state, tokens.to(device), depth, visible.to(device)) if room else first[:, None][:, :0]
        hidden = torch.cat([first[:, None], hidden], 1)  # node n of a tree stands at n + 1, its root at 0
        for place, b in enumerate(chosen):
            tree = trees[b]
            edges = _log_probs(reader, hidden[place], torch.tensor(tree.parents), torch.tensor(tree.following))
            summed[b] = [float(edges[path].sum()) for path in tree.paths]
    return summed, np.array([[len(answer.tokens) for answer in row] for row in answers], dtype=np.int64)


class _Tree:
    """Answers as a prefix tree: node n > 0 was written by edge n; edges ``parents`` -> ``following``, root 0.

    ``tokens``, ``depths`` (from 1) are those of the nodes that something follows; ``paths`` the edges of each answer.
    """

    def __init__(self, answers: list[list[int]]):
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.following: list[int] = []
        self.paths: list[list[int]] = []
        self._above: list[int] = []  # the node above each node
        nodes: dict[tuple[int, int], int] = {}  # (node, token) -> node
        edges: dict[tuple[int, int], int] = {}
        for answer in answers:
            node, path = 0, []
            for place, token in enumerate(answer):
                if (node, token) not in edges:
                    edges[node, token] = len(edges)
                    self.parents.append(node)
                    self.following.append(token)
                path.append(edges[node, token])
                if place + 1 == len(answer):
                    break
                if (node, token) not in nodes:
                    self.tokens.append(token)
                    self.depths.append(place + 1)
                    self._above.append(node)
                    nodes[node, token] = len(self.tokens)
                node = nodes[node, token]
            self.paths.append(path)

    def visible(self) -> np.ndarray:
        """Which nodes each sees: itself and those above, (n, n) bool."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for node, above in enumerate(self._above):
            if above:
                seen[node] |= seen[above - 1]
        return seen


def _log_probs(reader: CausalTokens, hidden: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of ``tokens`` (E,) at places ``at`` (E,) of ``hidden`` (n, h); of the whole vocabulary."""
    found = torch.empty(len(at))
    rows = max(FULL_LOGITS // reader.vocabulary_size, 1)
    places = at.unique()
    for part in places.split(rows):
        logits = reader.logits(hidden[part.to(hidden.device)], None).float()
        total = logits.logsumexp(-1).cpu()
        own = torch.isin(at, part).nonzero()[:, 0]
        row = torch.searchsorted(part, at[own])
        found[own] = logits[row.to(logits.device), tokens[own].to(logits.device)].cpu() - total[row]
    return found


def _undecided(paths: list[list[int]], left: list[int]) -> bool:
    return any(paths[c] != paths[left[0]] for c in left)


def _one_more(reader: CausalTokens, state: Any, token: Tensor, depth: int) -> Tensor:
    """Hidden states (B, h) behind one more ``token`` (B,) a row, its ``depth``-th after the prompt."""
    seen = torch.ones(1, 1, depth, dtype=torch.bool, device=token.device)
    return reader.extend(state, token[:, None], depth, seen)[:, 0]


def _batches(
    model: PromptedModel, rows: Sequence[Row], rooms: Sequence[int], budget: int
) -> Iterator[tuple[list[int], Prompt]]:
    """Numbers of rows of like length, and their left-padded prompts; ``rooms``: tokens to come after each."""
    order = sorted(range(len(rows)), key=lambda b: (len(rows[b].tokens), rooms[b]))
    chosen: list[int] = []
    for b in order:
        room = max(rooms[b], *(rooms[c] for c in chosen), 0)
        if chosen and (len(chosen) + 1) * (len(rows[b].tokens) + room) > budget:
            yield chosen, _prompt(model, [rows[c] for c in chosen])
            chosen = []
        chosen.append(b)
    if chosen:
        yield chosen, _prompt(model, [rows[c] for c in chosen])


def _prompt(model: PromptedModel, rows: list[Row]) -> Prompt:
    tokens, kinds = padded(rows, 0, left=True)
    real = torch.from_numpy(kinds != NOTHING).to(model.device)
    embeddings = model.embed(torch.from_numpy(tokens).to(model.device))
    return Prompt(None, None if bool(real.all()) else real, embeddings)
