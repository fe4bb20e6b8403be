"""Histories as sequences of code tokens, and the loss over those tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.decoding.tokens import CodeTokens, TokenModel
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.language.batches import Packed, Pairs
from genrec_bench.methods.language.sequences import GIVEN, TEXT, TokenSequences, join, stack
from genrec_bench.methods.next_item import windows

LossOver = Literal["level", "vocabulary"]


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

    def histories(
        self, rows: Histories, learn: bool = False, separator: TokenSequences | None = None
    ) -> TokenSequences:
        """The codes of each row's items in a row, ``separator`` (one sequence) after each.

        With ``learn``, all items but a row's first are targets.
        """
        pieces = self.read.select(rows.items)
        if learn:
            first = np.zeros(len(rows.items), dtype=bool)
            first[rows.offsets[:-1][rows.lengths > 0]] = True
            both = stack(self.learned, self.read)
            pieces = both.select(rows.items + np.where(first, len(self.read), 0))
        if separator is not None:
            pieces = join(pieces, separator.select(np.zeros(len(pieces), dtype=np.int64)))
        return pieces.grouped(rows.offsets)


def training_windows(sequences: Histories, max_history: int, rng: np.random.Generator) -> Histories:
    """Each user's sequence as windows of up to ``max_history`` items and the next; all but the first are targets."""
    starts, ends = windows(sequences, max_history, rng)
    users = np.repeat(sequences.users, sequences.lengths)[starts] if len(starts) else starts
    return _spans(sequences, users, starts, ends + 1)


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

    Code tokens compete with the codes of their level (``over="level"``) or with the whole vocabulary; text always with
    the whole vocabulary. Logits are divided by ``temperature`` first: LETTER's ranking-guided loss (section 3.3), which
    below 1 weighs hard negatives more.
    """

    def __init__(
        self, model: nn.Module, adapter: type, trie: ItemTrie, items: ItemTokens, over: LossOver, temperature: float
    ):
        self.model, self.adapter, self.over, self.temperature = model, adapter, over, temperature
        end_id = items.end_id if trie.variable else None
        self.levels = CodeTokens(trie, items.by_level, end_id, trie.device).levels

    def __call__(self, batch: Packed | Pairs) -> Tensor:
        """The loss, a scalar with a gradient."""
        tokens: TokenModel = self.adapter(self.model)
        if isinstance(batch, Packed):
            hidden = packed_states(self.model, batch)
            targets, levels = batch.targets, batch.levels
        else:
            learned = batch.levels != GIVEN
            hidden = answer_states(self.model, batch)[learned]
            targets, levels = batch.answers[learned], batch.levels[learned].long()
        if self.over == "vocabulary":
            return self._cross_entropy(tokens.logits(hidden, None), targets)
        total = hidden.new_zeros((), dtype=torch.float32)
        for level in range(TEXT, len(self.levels)):
            chosen = (levels == level).nonzero()[:, 0]
            if not len(chosen):
                continue
            if level == TEXT:
                total = total + self._cross_entropy(tokens.logits(hidden[chosen], None), targets[chosen])
                continue
            ids = self.levels[level]
            order = torch.argsort(ids)
            code = order[torch.searchsorted(ids[order], targets[chosen])]
            total = total + self._cross_entropy(tokens.logits(hidden[chosen], ids), code)
        return total

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float() / self.temperature, targets, reduction="sum")


def packed_states(model: nn.Module, batch: Packed) -> Tensor:
    """Hidden states (P, h) of a decoder-only model that predict the batch's targets."""
    bare = _bare(model)
    visible = batch.visible()
    mask = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, torch.finfo(torch.bfloat16).min)
    dtype = torch.get_autocast_dtype(visible.device.type) if torch.is_autocast_enabled(visible.device.type) else None
    out = bare.get_decoder()(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=mask.to(dtype or bare.dtype),
        use_cache=False,
    )
    states: Tensor = out.last_hidden_state.flatten(0, 1)[batch.at]
    return states


def answer_states(model: nn.Module, batch: Pairs) -> Tensor:
    """Hidden states (B, A, h) of an encoder-decoder that predict each token of the answers."""
    bare = _bare(model)
    encoded = bare.get_encoder()(input_ids=batch.prompts, attention_mask=batch.mask).last_hidden_state
    out = bare.get_decoder()(
        input_ids=batch.decoder, encoder_hidden_states=encoded, encoder_attention_mask=batch.mask, use_cache=False
    )
    states: Tensor = out.last_hidden_state
    return states


def _bare(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
