"""What a decoder asks of a language model, and how codes become tokens and logits log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from genrec_bench.methods.decoding.trie import END, ItemTrie

Normalise = Literal["vocabulary", "level", "trie"]

WIDE_LEVEL = 1024  # codes; of more, logits are computed of those that are candidates of some beam only
FULL_LOGITS = 2**24  # full-vocabulary logits held at a time: 64 MB in float32, and as much again for their exponentials


@dataclass(frozen=True)
class Prompt:
    """B prompts, left-padded to P positions.

    ``tokens`` (B, P) int64. ``mask`` (B, P) bool, true at real positions; None where nothing is padded. ``embeddings``
    (B, P, h) stand in for the tokens' own where given; ``tokens`` may then be None.
    """

    tokens: Tensor | None
    mask: Tensor | None = None
    embeddings: Tensor | None = None


class TokenModel(Protocol):
    """A language model that decodes a tree of tokens after one prompt a row.

    A tree's tokens are appended to a row's prompt as further positions; each sees the prompt and its own ancestors.
    """

    @property
    def vocabulary_size(self) -> int:
        """Logits of the whole vocabulary."""

    def start(self, prompt: Prompt, room: int) -> tuple[Tensor, Any]:
        """Read the prompts: hidden states (B, h) that predict the first token, a state with ``room`` tree places."""

    def extend(self, state: Any, tokens: Tensor, depth: int | Tensor, visible: Tensor) -> Tensor:
        """Append ``tokens`` (B, n) int64 to the tree: hidden states (B, n, h) that predict the token after each.

        ``depth``: 1 for the token right after the prompt; one number, or (n,) int64 on the host. ``visible``
        (B or 1, n, t + n) bool: which of the t tokens before and the n new ones each sees (its ancestors and itself).
        """

    def rewind(self, state: Any) -> None:
        """Forget the tree, keep the prompt."""

    def logits(self, hidden: Tensor, tokens: Tensor | slice | None) -> Tensor:
        """Logits (..., K) of the given vocabulary ids (K,) int64, or (..., V) of the whole vocabulary for None."""

    def among(self, tokens: Tensor) -> "TokenModel":
        """This model with no token but ``tokens`` (K,) int64, numbered 0 to K - 1, for `logits` alone."""


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face model itself, where peft's adapters (which stay active) are wrapped around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


class CodeTokens:
    """Vocabulary ids of every code of a trie.

    ``token_ids``: per level (K_l,) int64, the LM's id of each code. ``end_id`` is the id that ends a shorter code,
    needed where the trie is variable. ``levels[l]`` (K_l,) or, where END may come, (K_l + 1,): END's id stands last.
    """

    def __init__(self, trie: ItemTrie, token_ids: Sequence[Tensor], end_id: int | None, device: torch.device | str):
        if [len(ids) for ids in token_ids] != list(trie.level_sizes):
            raise ValueError(f"token_ids of {[len(i) for i in token_ids]} codes; levels hold {trie.level_sizes}")
        if trie.variable and end_id is None:
            raise ValueError("Codes of different lengths need end_id, the token that ends a code")
        self.variable, self._sizes = trie.variable, trie.level_sizes
        end = torch.tensor([end_id] if trie.variable else [], dtype=torch.int64)
        self.levels = [
            torch.cat([torch.as_tensor(ids, dtype=torch.int64).cpu(), end if level else end[:0]]).to(device)
            for level, ids in enumerate(token_ids)
        ]

    def places(self, level: int, codes: Tensor) -> Tensor:
        """Places of codes (END included) in ``levels[level]``."""
        return torch.where(codes == END, len(self.levels[level]) - 1, codes) if self.variable else codes

    @cached_property
    def _ascending(self) -> list[tuple[Tensor, Tensor]]:
        """Per level its ids, ascending, and their places: only losses and the processor look ids up."""
        return [(ids.sort().values, ids.sort().indices) for ids in self.levels]

    def find(self, level: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Places of vocabulary ids in ``levels[level]``, and whether they are there at all."""
        ids, order = self._ascending[level]
        at = torch.searchsorted(ids, tokens.contiguous()).clamp(max=len(ids) - 1)
        return order[at], ids[at] == tokens

    def codes(self, level: int, places: Tensor) -> Tensor:
        """Codes (END included) at places of ``levels[level]``: the reverse of `places`."""
        return torch.where(places < self._sizes[level], places, END)


def candidate_log_probs(
    model: TokenModel, hidden: Tensor, tokens: CodeTokens, level: int, codes: Tensor, real: Tensor, normalise: Normalise
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and logits of candidate codes, both (B, n, F) float32; log-probability -inf where not real.

    ``hidden`` (B, n, h); ``codes`` (B, n, F) int64; ``real`` (B, n, F) bool. ``normalise`` says over what the
    probabilities sum to one: the whole vocabulary, the codes of the level (END included where it may come), or the
    real candidates.
    """
    places = tokens.places(level, codes)
    if normalise == "vocabulary":
        logits, total = full_logits(model, hidden, tokens.levels[level][places])
        return logits.masked_fill(~real, -torch.inf).sub_(total), logits
    if normalise == "trie" and len(tokens.levels[level]) > WIDE_LEVEL:
        looked_at = torch.where(real, places, 0).unique()
        at = torch.searchsorted(looked_at, places).clamp_(max=len(looked_at) - 1)
    else:
        looked_at, at = slice(None), places
    logits_of = model.logits(hidden, tokens.levels[level][looked_at]).float()
    logits = logits_of.gather(-1, at)
    scores = logits.masked_fill(~real, -torch.inf)
    total = (scores if normalise == "trie" else logits_of).logsumexp(-1, keepdim=True)
    total = total.masked_fill(total == -torch.inf, 0.0)  # a dead beam; -inf minus -inf would be NaN
    return scores.sub_(total), logits


def full_logits(
    model: TokenModel, hidden: Tensor, ids: Tensor, change: Callable[[Tensor, slice], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of ``ids`` (B, n, F) and the log of the vocabulary's summed exponentials (B, n, 1), some rows a time.

    ``hidden`` (B, n, h). ``change`` gets the logits (rows, V) of each part, and which of the B * n rows they are, and
    may write into them first.
    """
    count = max(FULL_LOGITS // model.vocabulary_size, 1)
    hidden, flat = hidden.flatten(0, 1), ids.flatten(0, 1)
    found, totals = [], []
    for start in range(0, len(flat), count):
        rows = slice(start, start + count)
        logits = model.logits(hidden[rows], None).float()
        if change is not None:
            change(logits, rows)
        found.append(logits.gather(-1, flat[rows]))
        totals.append(logits.logsumexp(-1, keepdim=True))
    return torch.cat(found).view(ids.shape), torch.cat(totals).view(*ids.shape[:2], 1)
