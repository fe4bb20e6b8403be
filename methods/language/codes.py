"""Histories as sequences of code tokens, and the loss over those tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.decoding.causal import additive
from genrec_bench.methods.decoding.tokens import CodeTokens, TokenModel, unwrapped
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.language.batches import Asides, Packed, Pairs
from genrec_bench.methods.language.sequences import ASIDE, GIVEN, TEXT, TokenSequences, join, stack
from genrec_bench.methods.next_item import windows

LossOver = Literal["trie", "level", "vocabulary"]


@dataclass(frozen=True, eq=False)
class ItemTokens:
    """Each item's code in vocabulary ids, the end token of shorter codes included: ``ids`` (N, L) int32, -1 beyond.

    ``by_level``: per level (K_l,) int64, the id of each code.
    """

    ids: np.ndarray
    by_level: tuple[Tensor, ...]
    end_id: int

    @classmethod
    def of(cls, index: ItemIndex, by_level: Sequence[Tensor], end_id: int) -> "ItemTokens":
        """From the ids that a vocabulary gave to the codes of each level."""
        columns = [
            np.where(codes >= 0, np.asarray(ids)[np.maximum(codes, 0)], -1)
            for codes, ids in zip(index.codes.T, by_level, strict=True)
        ]
        ids = np.stack(columns, axis=1).astype(np.int32)
        short = np.flatnonzero(index.lengths < index.num_levels)
        ids[short, index.lengths[short]] = end_id
        return cls(ids, tuple(torch.as_tensor(ids, dtype=torch.int64) for ids in by_level), end_id)

    @cached_property
    def learned(self) -> TokenSequences:
        """Each item's code as a target, N rows."""
        real = self.ids >= 0
        offsets = np.concatenate([[0], np.cumsum(real.sum(1))]).astype(np.int64)
        levels = np.broadcast_to(np.arange(self.ids.shape[1], dtype=np.int8), self.ids.shape)
        return TokenSequences(offsets, self.ids[real], levels[real])

    @cached_property
    def read(self) -> TokenSequences:
        """Each item's code as something given, N rows."""
        return self.learned.given()

    @cached_property
    def asides(self) -> TokenSequences:
        """Each item's aside, N rows."""
        count = len(self.ids)
        tokens = np.arange(count, dtype=np.int32)
        return TokenSequences(np.arange(count + 1), tokens, np.full(count, ASIDE, dtype=np.int8))

    def histories(
        self, rows: Histories, learn: bool = False, separator: TokenSequences | None = None, asides: bool = False
    ) -> TokenSequences:
        """The codes of each row's items in a row, ``separator`` (one sequence) after each.

        With ``learn``, all items but a row's first are targets; with ``asides``, an aside follows each of them.
        """
        first = np.zeros(len(rows.items), dtype=bool)
        first[rows.offsets[:-1][rows.lengths > 0]] = True
        pieces = self.read.select(rows.items)
        if learn:
            both = stack(self.learned, self.read)
            pieces = both.select(rows.items + np.where(first, len(self.read), 0))
        if separator is not None:
            pieces = join(pieces, separator.repeated(len(pieces)))
        if asides:
            either = stack(self.asides, TokenSequences.of([[]]))
            pieces = join(pieces, either.select(np.where(first, len(self.asides), rows.items)))
        return pieces.grouped(rows.offsets)


def training_windows(
    sequences: Histories, max_history: int, rng: np.random.Generator, thinning: float = 0.0
) -> Histories:
    """Each user's sequence as windows of up to ``max_history`` items and the next; all but the first are targets.

    ``thinning``: see `thinned`.
    """
    if thinning:
        sequences = thinned(sequences, thinning, rng)
    starts, ends = windows(sequences, max_history, rng)
    users = np.repeat(sequences.users, sequences.lengths)[starts] if len(starts) else starts
    return _spans(sequences, users, starts, ends + 1)


def thinned(sequences: Histories, most: float, rng: np.random.Generator) -> Histories:
    """Each sequence without a share of its items, which ones at random; the share is uniform in [0, ``most``).

    What follows an item is then learned across gaps too, and few users make many sequences (the idea of item cropping
    and masking in CL4SRec, Xie et al., ICDE 2022, section 3.2, here on the targets as well).
    """
    share = most * rng.random(len(sequences))
    kept = rng.random(len(sequences.items)) >= np.repeat(share, sequences.lengths)
    before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return replace(sequences, offsets=before[sequences.offsets], items=sequences.items[kept])


def training_prefixes(sequences: Histories, max_history: int) -> Histories:
    """One row for every item but a user's first: up to ``max_history`` items and, last, the target."""
    row = np.repeat(np.arange(len(sequences)), sequences.lengths)
    place = np.arange(len(sequences.items)) - sequences.offsets[:-1][row]
    targets = np.flatnonzero(place > 0)
    starts = targets - np.minimum(place[targets], max_history)
    return _spans(sequences, sequences.users[row[targets]], starts, targets + 1)


def _spans(sequences: Histories, users: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Histories:
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, lengths)
    return Histories(users, offsets, sequences.items[at])


class CodeLoss:
    """Summed cross-entropy of a batch's targets.

    A code token competes with the codes that continue its prefix to a real item (``over="trie"``: the probabilities of
    all items sum to one), with the codes of its level ("level"), or with the whole vocabulary; text always with the
    whole vocabulary. Logits are divided by ``temperature`` first: LETTER's ranking-guided loss (section 3.3), which
    below 1 weighs hard negatives more. ``contrast`` adds its loss over a batch's asides.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: type,
        trie: ItemTrie,
        items: ItemTokens,
        over: LossOver,
        temperature: float,
        contrast: "Contrast | None" = None,
    ):
        self.model, self.adapter, self.trie, self.over, self.temperature = model, adapter, trie, over, temperature
        self.codes = CodeTokens(trie, items.by_level, items.end_id if trie.variable else None, trie.device)
        self.contrast = contrast

    def __call__(self, batch: Packed | Pairs) -> Tensor:
        """The loss, a scalar with a gradient."""
        if isinstance(batch, Pairs):
            at = (batch.levels != GIVEN).flatten().nonzero()[:, 0]
            states, read = answer_states(self.model, batch).flatten(0, 1)[at], batch.decoder.flatten()
            return self._of_targets(states, read, at, batch.answers.flatten()[at], batch.levels.flatten()[at].long())
        hidden = packed_states(self.model, batch, self.contrast.token if self.contrast else None)
        read = batch.tokens.flatten()
        total = self._of_targets(hidden[batch.at], read, batch.at, batch.targets, batch.levels)
        if self.contrast is not None and batch.asides is not None:
            # the mean over the batch's asides, in a sum that is divided by the number of the batch's targets
            weight = batch.asides.targets / len(batch.asides.pool)
            total = total + weight * self.contrast(hidden[batch.asides.at], batch.asides)
        return total

    def _of_targets(self, states: Tensor, read: Tensor, at: Tensor, targets: Tensor, levels: Tensor) -> Tensor:
        """Of ``targets`` (P,) that ``states`` (P, h) predict, at flat positions ``at`` of the tokens ``read``."""
        tokens: TokenModel = self.adapter(self.model)
        if self.over == "vocabulary":
            return self._cross_entropy(tokens.logits(states, None), targets)
        text = (levels == TEXT).nonzero()[:, 0]
        total = states.new_zeros((), dtype=torch.float32)
        if len(text):
            total = total + self._cross_entropy(tokens.logits(states[text], None), targets[text])
        choices = [self._choices(level, read, at, targets, levels) for level in range(len(self.codes.levels))]
        # one look-up for all levels: the gradient of each is as large as the head
        head, start = tokens.among(torch.cat([choice.tokens for choice in choices])), 0
        for choice in choices:
            logits = head.logits(states[choice.chosen], slice(start, start := start + len(choice.tokens)))
            if choice.closed is not None:
                logits = logits.float().masked_fill(choice.closed, -torch.inf)
            total = total + self._cross_entropy(logits, choice.targets)
        return total

    def _choices(self, level: int, read: Tensor, at: Tensor, targets: Tensor, levels: Tensor) -> "_Choices":
        """What the targets of a level compete with."""
        chosen, ids = (levels == level).nonzero()[:, 0], self.codes.levels[level]
        if self.over == "level":
            return _Choices(chosen, ids, self.codes.find(level, targets[chosen])[0])
        # the prefix of a target of level l is the l tokens read up to the position that predicts it
        nodes = torch.zeros_like(chosen)
        for depth in range(level):
            places, _ = self.codes.find(depth, read[at[chosen] - level + 1 + depth])
            nodes = self.trie.descend(depth, nodes, places)
        several = (self.trie.children(level, nodes)[2].sum(-1) > 1).nonzero()[:, 0]
        chosen = chosen[several]
        codes, _, real = self.trie.children(level, nodes[several])
        places = self.codes.places(level, codes)
        open_places = places[real].unique()  # of all that continue one of the prefixes
        columns = torch.where(real, torch.searchsorted(open_places, places), len(open_places))  # a spare one
        closed = torch.ones(len(chosen), len(open_places) + 1, dtype=torch.bool, device=places.device)
        closed = closed.scatter_(1, columns, False)[:, :-1]
        found = torch.searchsorted(open_places, self.codes.find(level, targets[chosen])[0])
        return _Choices(chosen, ids[open_places], found, closed)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float() / self.temperature, targets, reduction="sum")


@dataclass(frozen=True)
class _Choices:
    """Targets of a level and the tokens they compete with: ``chosen`` (n,), numbers of the targets; ``tokens`` (K,)
    vocabulary ids; ``targets`` (n,), places in ``tokens``; ``closed`` (n, K) bool, true where a token is no choice."""

    chosen: Tensor
    tokens: Tensor
    targets: Tensor
    closed: Tensor | None = None


class Contrast(Protocol):
    """A loss over a batch's asides (EAGER-LLM's is `genrec_bench.methods.language.contrast.GlobalContrast`)."""

    @property
    def token(self) -> Tensor:
        """(h,), the embedding that stands at every aside."""

    def __call__(self, states: Tensor, asides: Asides) -> Tensor:
        """The summed loss of ``states`` (A, h), the hidden states at the asides."""


def packed_states(model: nn.Module, batch: Packed, aside: Tensor | None = None) -> Tensor:
    """Hidden states (R x C, h) of a decoder-only model; ``aside`` (h,) is the embedding at the batch's asides."""
    bare = unwrapped(model)
    device = batch.tokens.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else bare.dtype
    given: dict[str, Tensor] = {"input_ids": batch.tokens}
    if batch.asides is not None and aside is not None:
        embedded = bare.get_input_embeddings()(batch.tokens)  # (R, C, h)
        shape = embedded.shape
        own = aside.to(embedded.dtype).expand(len(batch.asides.at), -1)
        given = {"inputs_embeds": embedded.flatten(0, 1).index_copy(0, batch.asides.at, own).view(shape)}
    out = bare.get_decoder()(
        **given, position_ids=batch.positions, attention_mask=additive(batch.visible(), dtype), use_cache=False
    )
    states: Tensor = out.last_hidden_state.flatten(0, 1)
    return states


def answer_states(model: nn.Module, batch: Pairs) -> Tensor:
    """Hidden states (B, A, h) of an encoder-decoder that predict each token of the answers."""
    bare = unwrapped(model)
    encoded = bare.get_encoder()(input_ids=batch.prompts, attention_mask=batch.mask).last_hidden_state
    out = bare.get_decoder()(
        input_ids=batch.decoder, encoder_hidden_states=encoded, encoder_attention_mask=batch.mask, use_cache=False
    )
    states: Tensor = out.last_hidden_state
    return states
