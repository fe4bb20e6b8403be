"""The one typed record of a data set, and the ragged item sequences that everything else is made of.

Users and items are numbered 0..U-1 and 0..N-1. Sequences are in time order, oldest first.
"""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

ITEM_COLUMNS = ("item_id", "title", "description", "categories")


@dataclass(frozen=True, eq=False)
class Histories:
    """Item sequences of B users as ragged arrays; row b belongs to user ``users[b]``.

    ``mask_seen`` is the protocol's seen-item setting: when true, no item of a row may be recommended to that row.
    """

    users: np.ndarray  # (B,) int64
    offsets: np.ndarray  # (B + 1,) int64, row b is items[offsets[b]:offsets[b + 1]]
    items: np.ndarray  # (n,) int32
    mask_seen: bool = False

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """(B,) int64"""
        return np.diff(self.offsets)

    def row(self, b: int) -> np.ndarray:
        """Items of row b, (length,) int32."""
        return self.items[self.offsets[b] : self.offsets[b + 1]]

    def select(self, rows: np.ndarray | slice) -> "Histories":
        """The given rows, in the given order."""
        rows = np.arange(len(self))[rows]
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        items = self.items[np.repeat(self.offsets[:-1][rows], lengths) + position]
        return replace(self, users=self.users[rows], offsets=offsets, items=items)

    def last(self, max_length: int) -> "Histories":
        """Each row cut to its ``max_length`` most recent items."""
        lengths = np.minimum(self.lengths, max_length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        items = self.items[np.repeat(self.offsets[1:] - lengths, lengths) + position]
        return replace(self, offsets=offsets, items=items)

    def without_last(self, count: int) -> "Histories":
        """Each row without its ``count`` most recent items (empty where it is shorter)."""
        lengths = np.maximum(self.lengths - count, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return replace(self, offsets=offsets, items=self.items[np.repeat(self.offsets[:-1], lengths) + position])

    def padded(self, pad: int) -> np.ndarray:
        """(B, longest row) int64, right-padded with ``pad``."""
        lengths = self.lengths
        table = np.full((len(self), max(int(lengths.max(initial=0)), 1)), pad, dtype=np.int64)
        table[np.arange(table.shape[1])[None, :] < lengths[:, None]] = self.items
        return table


@dataclass(frozen=True, eq=False)
class InteractionData:
    """A data set: who touched what, in which order, and what is known of the items.

    ``items`` has one row an item number, columns ``item_id, title, description, categories`` (strings, empty where
    unknown; categories joined by ``|``). ``sha256`` is the hash of all content and identifies the data set in records.
    """

    name: str
    user_ids: np.ndarray  # (U,) str objects, the source's own ids
    items: pd.DataFrame  # (N, 4)
    sequences: Histories  # all U users, whole sequences
    timestamps: np.ndarray | None = None  # (n,) int64 seconds, aligned with sequences.items; None where unknown
    sha256: str = field(default="")

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", self._content_hash())

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_interactions(self) -> int:
        return len(self.sequences.items)

    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        digest.update(self.sequences.offsets.astype("<i8").tobytes())
        digest.update(self.sequences.items.astype("<i4").tobytes())
        if self.timestamps is not None:
            digest.update(self.timestamps.astype("<i8").tobytes())
        # Length-prefixed so that moving a character from one field to the next changes the hash.
        for column in (self.user_ids, *(self.items[name].to_numpy() for name in ITEM_COLUMNS)):
            for value in column:
                text = str(value).encode()
                digest.update(b"%d:" % len(text))
                digest.update(text)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class TrainView:
    """All that a method may learn from: training interactions and the item catalogue, never a held-out item."""

    num_users: int
    items: pd.DataFrame  # (N, 4), as in InteractionData
    sequences: Histories  # training part of each user who has one
    timestamps: np.ndarray | None = None  # aligned with sequences.items

    @property
    def num_items(self) -> int:
        return len(self.items)

    def item_counts(self) -> np.ndarray:
        """Training interactions of each item, (N,) int64."""
        return np.bincount(self.sequences.items, minlength=self.num_items)
