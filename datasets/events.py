"""What a reader hands on: interactions in order, not yet filtered, with users and items already numbered.

Numbers follow the sorted source ids: as integers where every id is a plain integer (so `2` comes before `10`), as
strings otherwise. Items of a catalogue that nobody touched are left out, unless the format itself fixes the item
numbers (LETTER, S3-Rec), because published code files refer to those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import ITEM_COLUMNS, Histories, InteractionData

MAX_ITEMS = 10_000_000  # a larger item number in a numbered format is a fault, not a catalogue
# 18 digits always fit int64; a leading zero means a code, not a number.
_PLAIN_INTEGER = r"^(0|[1-9][0-9]{0,17})$"


@dataclass(frozen=True, eq=False)
class Events:
    """Interactions sorted by user, then time, then original file order."""

    user: np.ndarray  # (n,) int64, rows of user_ids
    item: np.ndarray  # (n,) int64, rows of items
    time: np.ndarray  # (n,) float64, seconds or an order number
    user_ids: np.ndarray  # (U,) str objects
    items: pd.DataFrame  # (N, 4), see ITEM_COLUMNS
    dated: bool  # time is in seconds since 1970
    rating: np.ndarray | None = None  # (n,) float64
    fixed_items: bool = False  # the format numbers the items: keep the whole catalogue

    def __len__(self) -> int:
        return len(self.user)

    def keep(self, mask: np.ndarray) -> "Events":
        """The interactions where ``mask`` is true; users and items keep their numbers."""
        rating = None if self.rating is None else self.rating[mask]
        return replace(self, user=self.user[mask], item=self.item[mask], time=self.time[mask], rating=rating)

    def to_data(self, name: str) -> InteractionData:
        """The finished record: numbers closed up over the users and items that are left.

        Raises InputError when no interaction is left.
        """
        if not len(self):
            raise InputError(f"Data set '{name}' has no interactions left after its filters; at least one is needed")
        users, user = np.unique(self.user, return_inverse=True)
        items, item = np.arange(len(self.items)), self.item
        if not self.fixed_items:
            items, item = np.unique(self.item, return_inverse=True)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))]).astype(np.int64)
        sequences = Histories(np.arange(len(users), dtype=np.int64), offsets, item.astype(np.int32))
        timestamps = self.time.astype(np.int64) if self.dated else None
        table = self.items.iloc[items].reset_index(drop=True)
        return InteractionData(name, self.user_ids[users], table, sequences, timestamps)


def ordered(
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray | None,
    user_ids: np.ndarray,
    items: pd.DataFrame,
    *,
    dated: bool,
    rating: np.ndarray | None = None,
    fixed_items: bool = False,
) -> Events:
    """Events from columns in file order; ``time=None`` means that the file order is the time order."""
    if time is None:
        time = np.arange(len(user), dtype=np.float64)
    order = np.lexsort((time, user))  # stable, so ties stay in file order
    rating = None if rating is None else np.asarray(rating, dtype=np.float64)[order]
    user, item, time = np.asarray(user)[order], np.asarray(item)[order], np.asarray(time, dtype=np.float64)[order]
    return Events(
        user.astype(np.int64), item.astype(np.int64), time, user_ids, items, dated, rating, fixed_items=fixed_items
    )


def number(values: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Source ids -> (numbers (n,) int64, distinct ids in number order as str objects)."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    encoded = pc.dictionary_encode(values)
    ids = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    order = sorted_ids(encoded.dictionary)
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return rank[encoded.indices.to_numpy()], ids[order]


def sorted_ids(ids: pa.Array) -> np.ndarray:
    """Positions that sort distinct ids: by value if all are plain integers, else by character."""
    if len(ids) and pc.all(pc.match_substring_regex(ids, _PLAIN_INTEGER)).as_py():
        return np.argsort(pc.cast(ids, pa.int64()).to_numpy(), kind="stable")
    return np.asarray(pc.array_sort_indices(ids).to_numpy())


def item_table(
    item_ids: Sequence[str] | np.ndarray,
    title: Sequence[str] | None = None,
    description: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The item table in column order; a text that is not given is empty."""
    empty = [""] * len(item_ids)
    columns = (list(item_ids), title or empty, description or empty, categories or empty)
    return pd.DataFrame(dict(zip(ITEM_COLUMNS, columns, strict=True)))


def aligned(item_ids: np.ndarray, known: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of ``known`` in the order of ``item_ids`` (text empty where absent), and a mask of the absent ones.

    Raises InputError, naming ``source``, when an item stands in ``known`` twice.
    """
    twice = known["item_id"].duplicated().to_numpy()
    if twice.any():
        raise InputError(f"{source}: item id '{known['item_id'].iloc[twice.argmax()]}' stands twice in the item table")
    rows = pd.Index(known["item_id"]).get_indexer(pd.Index(item_ids))
    absent = rows < 0
    table = known[list(ITEM_COLUMNS)].take(np.where(absent, 0, rows)) if len(known) else item_table(item_ids)
    table = table.reset_index(drop=True)
    table["item_id"] = item_ids
    table.loc[absent, list(ITEM_COLUMNS[1:])] = ""
    return table, absent
