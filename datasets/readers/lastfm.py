"""Last.fm of HetRec 2011: artists that users tagged, in the order of tagging, or that they listened to.

Only tagging has times, so sequences come from there (one event a tag: drop repeated pairs afterwards). Listening counts
have none: with `events: listens` the order is that of the file, and the count stands as the rating.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from genrec_bench.datasets.errors import unknown
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.delimited import column, ids, numbers, read_delimited
from genrec_bench.datasets.readers.files import find, folder_of, required
from genrec_bench.datasets.readers.text import tidy

EVENTS = {"tags": "user_taggedartists-timestamps.dat", "listens": "user_artists.dat"}
MAX_TAGS = 20  # categories an artist: its most used tags


def read_lastfm(path: Path, events: str = "tags") -> Events:
    """``path``: the folder with the .dat files; ``events``: ``tags`` (timed) or ``listens`` (counts, not timed)."""
    if events not in EVENTS:
        raise unknown("kind of event", events, EVENTS)
    folder = folder_of(path)
    source = required(folder, EVENTS[events], what=events)
    table = read_delimited(source)
    user, user_ids = number(ids(table, "userID", source, "user"))
    item, item_ids = number(ids(table, "artistID", source, "artist"))
    items = _artists(folder, item_ids)
    if events == "listens":
        weight = numbers(table, "weight", source, "weight")
        return ordered(user, item, None, user_ids, items, dated=False, rating=weight)
    items["categories"] = _tags(folder, item, ids(table, "tagID", source, "tag"), len(item_ids))
    # milliseconds in the file
    time = np.floor(numbers(table, "timestamp", source, "timestamp") / 1000)
    return ordered(user, item, time, user_ids, items, dated=True)


def _artists(folder: Path, item_ids: np.ndarray) -> pd.DataFrame:
    source = find(folder, "artists.dat")
    if source is None:
        return item_table(item_ids)
    table = read_delimited(source)
    names = [tidy(name) for name in column(table, "name", source, "artist name").to_pylist()]
    items, _ = aligned(item_ids, item_table(ids(table, "id", source, "artist").to_pylist(), names), source)
    return items


def _tags(folder: Path, item: np.ndarray, tags: pa.ChunkedArray, num_items: int) -> list[str]:
    """Categories of each artist: its tags, most used first, ties by tag id."""
    tag, tag_ids = number(tags)
    source = find(folder, "tags.dat")
    names = [f"tag{i}" for i in tag_ids]
    if source is not None:
        table = read_delimited(source, encoding="latin-1")
        known = dict(
            zip(*(column(table, key, source, "tag").to_pylist() for key in ("tagID", "tagValue")), strict=True)
        )
        names = [tidy(known.get(i, f"tag{i}")).replace("|", "/") for i in tag_ids]
    pairs, counts = np.unique(item * len(tag_ids) + tag, return_counts=True)
    artist, used = np.divmod(pairs, len(tag_ids))
    groups: list[list[str]] = [[] for _ in range(num_items)]
    for row in np.lexsort((used, -counts, artist)):
        if len(groups[artist[row]]) < MAX_TAGS:
            groups[artist[row]].append(names[used[row]])
    return ["|".join(group) for group in groups]
