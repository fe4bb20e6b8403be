"""From found codes to ranked items, and the one call that decodes any number of prompts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.decoding.beam import Beams, Hook, beam_search_each
from genrec_bench.methods.decoding.restriction import restrict
from genrec_bench.methods.decoding.tokens import Normalise, Prompt, TokenModel
from genrec_bench.methods.decoding.trie import ItemTrie

Embed = Callable[[Prompt, np.ndarray], Tensor]  # a padded prompt and the caller's row numbers -> embeddings (B, P, h)


def rank_items(beams: Beams, trie: ItemTrie, k: int) -> tuple[Tensor, Tensor]:
    """The items of the found leaves: items (B, k) int64 and scores (B, k) float32, -1 and -inf where a row is short.

    Items of one code share its score and stand in the trie's order. Items that the search's restriction leaves out do
    not appear, nor does any item twice.
    """
    starts = trie.starts[-1]
    leaves = beams.leaves.clamp(min=0)
    first = starts[leaves].long()
    last = torch.where(beams.leaves >= 0, starts[leaves + 1].long(), first)
    most = int(np.diff(trie.host.starts[-1]).max())
    if beams.restriction is None or not beams.restriction.open:
        closed = 0 if beams.restriction is None else beams.restriction.most[-1]
        most = min(most, k + closed)
    place = first.unsqueeze(-1) + torch.arange(most, device=first.device)
    kept = place < last.unsqueeze(-1)
    if beams.restriction is not None:
        allowed = beams.restriction.allows(trie.num_levels + 1, first, last, most)
        kept &= True if allowed is None else allowed
    found = trie.items[place.clamp(max=trie.num_items - 1)].long().flatten(1)
    kept = kept.flatten(1)
    rank = torch.where(kept, kept.long().cumsum(1) - 1, k).clamp(max=k)  # what is not kept goes to a spare column
    items = torch.full((len(found), k + 1), -1, device=found.device).scatter_(1, rank, found)
    shared = beams.scores.unsqueeze(-1).expand(-1, -1, most).flatten(1)
    scores = torch.full((len(found), k + 1), -torch.inf, device=found.device).scatter_(1, rank, shared)
    return items[:, :k], scores[:, :k]


def decode(
    model: TokenModel,
    offsets: np.ndarray,
    tokens: np.ndarray,
    trie: ItemTrie,
    token_ids: Sequence[Tensor],
    k: int,
    *,
    hook: Hook | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Items (B, k) int64 and scores (B, k) float32 for B prompts, -1 and -inf where a row has fewer than k.

    The one search of `decode_each`, whose options it takes.
    """
    return decode_each(model, offsets, tokens, trie, token_ids, k, [hook], **options)[0]


def decode_each(
    model: TokenModel,
    offsets: np.ndarray,
    tokens: np.ndarray,
    trie: ItemTrie,
    token_ids: Sequence[Tensor],
    k: int,
    hooks: Sequence[Hook | None],
    *,
    width: int = 20,
    pad_id: int = 0,
    end_id: int | None = None,
    token_budget: int = 16_384,
    normalise: Normalise = "vocabulary",
    exclude: Histories | None = None,
    allowed: Histories | None = None,
    embed: Embed | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each of ``hooks`` a search, all side by side (`beam_search_each`): items and scores as of `decode`.

    Prompt b is ``tokens[offsets[b]:offsets[b + 1]]``, vocabulary ids, not empty. Prompts of similar length are decoded
    together, left-padded, so that prompt and tree take at most ``token_budget`` positions a batch. ``exclude`` and
    ``allowed`` have one row a prompt, see `restrict`. A batch too large for the memory is tried again in halves.
    """
    lengths = np.diff(offsets)
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"Prompt {int(lengths.argmin())} is empty")
    for given in (exclude, allowed):
        if given is not None and len(given) != len(lengths):
            raise ValueError(f"{len(given)} rows of excluded or allowed items for {len(lengths)} prompts")
    answers = [
        (np.full((len(lengths), k), -1, dtype=np.int64), np.full((len(lengths), k), -np.inf, dtype=np.float32))
        for _ in hooks
    ]

    def run(rows: np.ndarray) -> None:
        prompt = _padded(offsets, tokens, rows, pad_id, trie.device)
        if embed is not None:
            prompt = Prompt(prompt.tokens, prompt.mask, embed(prompt, rows))
        restriction = restrict(trie, *(None if of is None else of.select(rows) for of in (exclude, allowed)))
        numbers = torch.from_numpy(rows).to(trie.device)
        found = beam_search_each(
            model, prompt, trie, token_ids, width, hooks, end_id=end_id, normalise=normalise, restriction=restriction,
            rows=numbers,
        )  # fmt: skip
        for beams, (items, scores) in zip(found, answers, strict=True):
            items[rows], scores[rows] = (t.cpu().numpy() for t in rank_items(beams, trie, k))

    for rows in batches(lengths, len(hooks) * width * (trie.num_levels - 1), token_budget):
        try:
            run(rows)
            continue
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        if trie.device.type == "cuda":  # outside the handler, whose exception keeps the failed batch alive
            torch.cuda.empty_cache()
        for half in np.array_split(rows, 2):
            run(half)
    return answers


def batches(lengths: np.ndarray, tree: int, token_budget: int) -> Iterator[np.ndarray]:
    """Row numbers in groups of similar length, longest first: rows times (longest + ``tree``) within the budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(token_budget // (int(lengths[order[start]]) + tree), 1)
        yield order[start : start + count]
        start += count


def _padded(offsets: np.ndarray, tokens: np.ndarray, rows: np.ndarray, pad_id: int, device: torch.device) -> Prompt:
    """The prompts of some rows, left-padded."""
    lengths = offsets[rows + 1] - offsets[rows]
    longest = int(lengths.max())
    place = np.arange(longest)[None, :] - (longest - lengths)[:, None]
    real = place >= 0
    table = np.where(real, tokens[np.where(real, offsets[rows][:, None] + place, 0)], pad_id).astype(np.int64)
    mask = None if real.all() else torch.from_numpy(real).to(device)
    return Prompt(torch.from_numpy(table).to(device), mask)
