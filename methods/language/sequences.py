"""Ragged token sequences, and the few operations that build every prompt and training example from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

TEXT = -1  # a target that is text
GIVEN = -2  # a token that is read, not learned
ASIDE = -3  # stands for an item and sees all before it, seen by no other token (EAGER-LLM's [CON])


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """S ragged sequences of vocabulary ids and what is to be learned of them.

    Sequence s is ``tokens[offsets[s]:offsets[s + 1]]``. ``levels``, aligned with tokens: the code level of a token that
    is a target, ``TEXT`` for any other target, ``GIVEN`` where nothing is learned, ``ASIDE`` where the token is the
    number of an item.
    """

    offsets: np.ndarray  # (S + 1,) int64
    tokens: np.ndarray  # (n,) int32
    levels: np.ndarray  # (n,) int8

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(S,) int64"""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], level: int = GIVEN) -> "TokenSequences":
        """From lists of vocabulary ids, all of one level."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        tokens = np.array([token for row in rows for token in row], dtype=np.int32)
        return cls(offsets, tokens, np.full(len(tokens), level, dtype=np.int8))

    def select(self, rows: np.ndarray) -> "TokenSequences":
        """The given rows (repeats allowed), in the given order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[:-1][rows], lengths)
        return TokenSequences(offsets, self.tokens[at], self.levels[at])

    def repeated(self, count: int) -> "TokenSequences":
        """The first row, ``count`` times."""
        return self.select(np.zeros(count, dtype=np.int64))

    def grouped(self, offsets: np.ndarray) -> "TokenSequences":
        """Neighbouring rows run together: new row b holds rows ``offsets[b]`` to ``offsets[b + 1]``."""
        return replace(self, offsets=self.offsets[offsets])

    def given(self) -> "TokenSequences":
        """The same tokens, none of them learned."""
        return replace(self, levels=np.full(len(self.levels), GIVEN, dtype=np.int8))

    def cut(self, longest: int) -> "TokenSequences":
        """Each row's first ``longest`` tokens."""
        lengths = np.minimum(self.lengths, longest)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[:-1], lengths)
        return TokenSequences(offsets, self.tokens[at], self.levels[at])


def join(*parts: TokenSequences) -> TokenSequences:
    """Row b of every part one after the other."""
    count = len(parts[0])
    order = np.arange(count * len(parts)).reshape(len(parts), count).T.ravel()
    return stack(*parts).select(order).grouped(np.arange(count + 1) * len(parts))


def stack(*parts: TokenSequences) -> TokenSequences:
    """All rows of the first part, then all of the next, and so on."""
    ends = np.cumsum([len(part.tokens) for part in parts])
    offsets = [part.offsets[1:] + (end - len(part.tokens)) for part, end in zip(parts, ends, strict=True)]
    return TokenSequences(
        np.concatenate([[0], *offsets]).astype(np.int64),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.levels for part in parts]),
    )
