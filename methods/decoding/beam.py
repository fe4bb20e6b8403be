"""Beam search over an item trie: the best items of each row, none of them invalid, with one prompt cache a row.

The search is that of Hugging Face ``generate`` with ``length_penalty=0.0, early_stopping="never"`` and a callback
that allows the trie's tokens (transformers 5.23, ``generation/utils.py``, ``_beam_search``): of the 2W best candidates,
those that end a code count when they are among the first W, and the first W others go on. It differs in what it
computes: candidates are the children of live nodes, never the vocabulary, and beams are further positions after one
prompt, never copies of it. Nothing in the loop waits for the device where one search runs; several wait on each level
for the number of beams that they have together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genrec_bench.methods.decoding.restriction import Restriction
from genrec_bench.methods.decoding.tokens import CodeTokens, Normalise, Prompt, TokenModel, candidate_log_probs
from genrec_bench.methods.decoding.trie import END, ItemTrie


@dataclass(frozen=True)
class Beams:
    """Found leaves of B rows, best first; equal scores in ascending code order.

    ``leaves`` (B, W) int64, -1 where a row has fewer than W; ``scores`` (B, W) float32, there -inf. ``restriction``
    is the one searched under: it says which of a leaf's items a row may get.
    """

    leaves: Tensor
    scores: Tensor
    restriction: Restriction | None = None


@dataclass(frozen=True)
class StepView:
    """What a score hook sees of one step: B rows, n beams (1 on the first level), F candidates a beam.

    ``rows`` (B,) int64: the caller's number of each row. ``nodes`` (B, n): trie node of each beam, -1 for a dead one.
    ``prefix`` (B, n, level): codes so far. ``codes`` (B, n, F), END included; ``children`` (B, n, F): trie nodes of
    depth level + 1. ``real`` (B, n, F) bool: what is a candidate at all; excluded items still are, and are dropped
    after the hook. ``log_probs`` (-inf where not real) and ``logits`` (B, n, F) float32. ``hidden`` (B, n, h) is what
    ``model`` makes logits of, for those of other tokens.
    """

    level: int
    rows: Tensor
    nodes: Tensor
    prefix: Tensor
    codes: Tensor
    children: Tensor
    real: Tensor
    log_probs: Tensor
    logits: Tensor
    model: TokenModel
    hidden: Tensor


Hook = Callable[[StepView], Tensor]  # gives the log-probabilities (B, n, F) to use


@dataclass
class _Live:
    """Beams of one depth, and which beam of the depth before each of them extends."""

    nodes: Tensor  # (B, n) int64, -1 for a dead beam
    scores: Tensor  # (B, n) float32, summed log-probabilities
    prefix: Tensor  # (B, n, depth) int64, codes so far
    parents: Tensor  # (B, n) int64


def beam_search(
    model: TokenModel,
    prompt: Prompt,
    trie: ItemTrie,
    token_ids: Sequence[Tensor],
    width: int = 20,
    *,
    hook: Hook | None = None,
    **options: Any,
) -> Beams:
    """The one search of `beam_search_each`, whose options it takes."""
    return beam_search_each(model, prompt, trie, token_ids, width, [hook], **options)[0]


@torch.inference_mode()
def beam_search_each(
    model: TokenModel,
    prompt: Prompt,
    trie: ItemTrie,
    token_ids: Sequence[Tensor],
    width: int,
    hooks: Sequence[Hook | None],
    *,
    end_id: int | None = None,
    normalise: Normalise = "vocabulary",
    restriction: Restriction | None = None,
    rows: Tensor | None = None,
) -> list[Beams]:
    """For each of ``hooks`` the ``width`` best codes of each prompt's row, by the sum of their log-probabilities.

    The searches go side by side: the model computes a prefix once, however many of them have it among their beams.

    ``trie`` lies on the model's device. ``token_ids``: per level (K_l,) vocabulary ids of the codes; ``end_id``: id
    that ends a shorter code. ``normalise``: see `candidate_log_probs`. ``restriction``: see `restrict`, rows as in the
    prompt. ``rows`` (B,): row numbers for the hooks, default 0..B-1. Probabilities are normalised before a restriction
    drops candidates.
    """
    tokens = CodeTokens(trie, token_ids, end_id, trie.device)
    hidden, state = model.start(prompt, len(hooks) * width * (trie.num_levels - 1))
    rows = torch.arange(len(hidden), device=hidden.device) if rows is None else rows
    root, none = _roots(hidden)
    lives, ended = [root] * len(hooks), [none] * len(hooks)
    joint, places = _joint(lives, [root.parents] * len(hooks))
    hidden = hidden.unsqueeze(1)
    visible = torch.zeros(len(hidden), 1, 0, dtype=torch.bool, device=hidden.device)
    for level in range(trie.num_levels):
        if level:
            joint, places = _joint(lives, places)
            visible = _see(visible, joint.parents)
            last = tokens.levels[level - 1][joint.prefix[..., -1].clamp(min=0)]
            hidden = model.extend(state, last, level, visible)
        everything = _candidates(model, hidden, tokens, trie, joint, level, normalise, rows)
        for number, hook in enumerate(hooks):
            step = everything if len(hooks) == 1 else _at(everything, places[number], lives[number])
            log_probs = step.log_probs if hook is None else torch.where(step.real, hook(step).float(), -torch.inf)
            log_probs = _restricted(trie, restriction, step, log_probs)
            lives[number], finished = _advance(trie, lives[number], step, log_probs, width)
            if finished is not None:
                ended[number] = _merge(ended[number], finished, width)
    found = ended if trie.variable else [(live.nodes, live.scores) for live in lives]
    return [_beams(*pair, width, restriction) for pair in found]


def _beams(leaves: Tensor, scores: Tensor, width: int, restriction: Restriction | None) -> Beams:
    short = width - leaves.shape[1]
    if short > 0:
        leaves = torch.nn.functional.pad(leaves, (0, short), value=-1)
        scores = torch.nn.functional.pad(scores, (0, short), value=-torch.inf)
    return Beams(leaves, scores, restriction)


def _joint(lives: Sequence[_Live], before: Sequence[Tensor]) -> tuple[_Live, list[Tensor]]:
    """The beams that some search has, each once; and where in them those of each search stand, (B, n) int64.

    ``before`` is the same of the depth before. The joint beams' parents are joint ones; their scores mean nothing.
    """
    if len(lives) == 1:
        return lives[0], list(before)  # nobody looks for the places of the only search
    nodes = torch.cat([live.nodes for live in lives], dim=1)
    parents = torch.cat([place.gather(1, live.parents) for live, place in zip(lives, before, strict=True)], dim=1)
    prefix = torch.cat([live.prefix for live in lives], dim=1)
    ascending, order = nodes.sort(dim=1, stable=True)
    new = torch.ones_like(ascending, dtype=torch.bool)
    new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    place_of_sorted = new.long().cumsum(1) - 1
    count = int(place_of_sorted.max()) + 1
    place = torch.empty_like(order).scatter_(1, order, place_of_sorted)
    # one beam of each place, and for the places that a row has none for, its first, which counts as dead there
    one = torch.zeros(len(nodes), count + 1, dtype=torch.int64, device=nodes.device)
    one = one.scatter_(1, torch.where(new, place_of_sorted, count), order)[:, :count]
    empty = torch.arange(count, device=nodes.device) > place_of_sorted[:, -1:]
    chosen = nodes.gather(1, one).masked_fill(empty, -1)
    prefix = prefix.gather(1, one.unsqueeze(-1).expand(-1, -1, prefix.shape[-1]))
    joint = _Live(chosen, torch.zeros_like(chosen, dtype=torch.float32), prefix, parents.gather(1, one))
    return joint, list(place.split([live.nodes.shape[1] for live in lives], dim=1))


def _at(step: StepView, place: Tensor, live: _Live) -> StepView:
    """What the search sees whose beams ``live`` stand at ``place`` (B, n) of the joint ones."""
    row = torch.arange(len(place), device=place.device).unsqueeze(1)
    return replace(
        step, nodes=live.nodes, prefix=live.prefix, codes=step.codes[row, place], children=step.children[row, place],
        real=step.real[row, place], log_probs=step.log_probs[row, place], logits=step.logits[row, place],
        hidden=step.hidden[row, place],
    )  # fmt: skip


def _roots(hidden: Tensor) -> tuple[_Live, tuple[Tensor, Tensor]]:
    """One beam at the root for each row, and no finished code."""
    batch, device = len(hidden), hidden.device
    zeros = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    live = _Live(zeros, zeros.float(), zeros.new_empty(batch, 1, 0), zeros)
    return live, (zeros[:, :0], zeros[:, :0].float())


def _see(visible: Tensor, parents: Tensor) -> Tensor:
    """Tree mask of new tokens (B, n, t + n): each sees what its parent saw (B, m, t), and itself."""
    batch, count = parents.shape
    itself = torch.eye(count, dtype=torch.bool, device=parents.device).expand(batch, count, count)
    inherited = visible.gather(1, parents.unsqueeze(-1).expand(-1, -1, visible.shape[-1]))
    return torch.cat([inherited, itself], dim=-1)


def _candidates(
    model: TokenModel,
    hidden: Tensor,
    tokens: CodeTokens,
    trie: ItemTrie,
    live: _Live,
    level: int,
    normalise: Normalise,
    rows: Tensor,
) -> StepView:
    codes, children, real = trie.children(level, live.nodes)
    log_probs, logits = candidate_log_probs(model, hidden, tokens, level, codes, real, normalise)
    return StepView(level, rows, live.nodes, live.prefix, codes, children, real, log_probs, logits, model, hidden)


def _restricted(trie: ItemTrie, restriction: Restriction | None, step: StepView, log_probs: Tensor) -> Tensor:
    """Log-probabilities with the candidates at -inf that a row may not get."""
    if restriction is None:
        return log_probs
    nodes = step.nodes.clamp(min=0)
    bounds = trie.rows[step.level]
    first, last = bounds[nodes].long(), bounds[nodes + 1].long()
    allowed = restriction.allows(step.level + 1, first, last, log_probs.shape[-1])
    return log_probs if allowed is None else log_probs.masked_fill(~allowed, -torch.inf)


def _advance(
    trie: ItemTrie, live: _Live, step: StepView, log_probs: Tensor, width: int
) -> tuple[_Live, tuple[Tensor, Tensor] | None]:
    """The beams of the next depth and, in a variable trie, the codes that ended on this level (leaves and scores)."""
    fan_out = log_probs.shape[-1]
    final = step.level == trie.num_levels - 1
    mixed = trie.variable and not final and step.level > 0  # some candidates end a code, others go on
    totals = (live.scores.unsqueeze(-1) + log_probs).flatten(1)
    children = step.children.flatten(1)
    best = best_first(totals, children, 2 * width if mixed else width)
    scores, nodes, parents = totals.gather(1, best), children.gather(1, best), best // fan_out
    codes = step.codes.flatten(1).gather(1, best)
    dead = scores == -torch.inf
    finished = None
    if trie.variable and final:
        finished = torch.where(dead, -1, nodes), scores
    elif mixed:
        ends = codes == END
        counted = ends[:, :width] & ~dead[:, :width]
        finished = (
            torch.where(counted, trie.leaf(step.level + 1, nodes[:, :width]), -1),
            scores[:, :width].masked_fill(~counted, -torch.inf),
        )
        go_on = ends.byte().argsort(dim=1, stable=True)[:, :width]
        parents, codes, nodes, dead = (t.gather(1, go_on) for t in (parents, codes, nodes, dead | ends))
        scores = scores.gather(1, go_on).masked_fill(dead, -torch.inf)
    prefix = live.prefix.gather(1, parents.unsqueeze(-1).expand(-1, -1, step.level))
    prefix = torch.cat([prefix, codes.unsqueeze(-1)], dim=-1)
    return _Live(nodes.masked_fill(dead, -1), scores, prefix, parents), finished


def _merge(ended: tuple[Tensor, Tensor], finished: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` best of the codes that ended so far and those that ended now."""
    leaves, scores = (torch.cat(pair, dim=1) for pair in zip(ended, finished, strict=True))
    best = best_first(scores, leaves, width)
    return leaves.gather(1, best), scores.gather(1, best)


def best_first(scores: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Places of the ``count`` best of each row (B, m) float32, equal scores by ascending ``numbers`` (B, m) < 2^32.

    One integer top-k over (score, number) pairs: exact and the same on every device, and no slower than a float top-k,
    which leaves the order of equal scores open. -0.0, which no sum that starts from 0.0 can be, counts as below 0.0.
    """
    bits = scores.view(torch.int32)
    ascending = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)  # integers in the order of the floats
    keys = ascending.long().bitwise_left_shift_(32).sub_(numbers)
    return keys.topk(min(count, keys.shape[1]), dim=1).indices
