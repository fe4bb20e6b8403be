"""Steam reviews and games as published with SASRec: Python literals, one record a line, usually as .gz.

A user is a `username`, an item a `product_id`; reviews carry a day, so several of one day keep the file order.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.files import find, folder_of, lines, required
from genrec_bench.datasets.readers.jsonlines import seconds
from genrec_bench.datasets.readers.literal import parse_literal
from genrec_bench.datasets.readers.text import joined, tidy

FIELDS = ("username", "product_id", "date")


def read_steam(path: Path) -> Events:
    """``path``: the folder with `steam_reviews.json` and, for texts, `steam_games.json`; or the reviews file."""
    source = path if path.is_file() else required(path, "steam_reviews.json", "steam_new.json", what="reviews")
    rows = list(_reviews(source))
    if not rows:
        raise InputError(f"{source} has no rows")
    users, products, dates = (pa.chunked_array([pa.array(column)]) for column in zip(*rows, strict=True))
    user, user_ids = number(users)
    item, item_ids = number(products)
    games = find(folder_of(path), "steam_games.json")
    items = item_table(item_ids)
    if games is not None:
        items, _ = aligned(item_ids, _games(games, set(item_ids)), games)
    time: np.ndarray = seconds(dates, source)
    return ordered(user, item, time, user_ids, items, dated=True)


def _reviews(path: Path) -> Iterator[tuple[str, str, str]]:
    for line_number, line in lines(path):
        record = parse_literal(line, path, line_number)
        values = [record.get(name) for name in FIELDS]
        if None in values:
            raise InputError(f"{path}:{line_number}: no field '{FIELDS[values.index(None)]}'")
        # Millions of reviews share a few thousand days and games: keep each string once.
        user, game, day = (sys.intern(str(value)) for value in values)
        yield user, game, day


def _games(path: Path, wanted: set[str]) -> pd.DataFrame:
    rows: dict[str, tuple[str, str]] = {}
    for line_number, line in lines(path):
        record = parse_literal(line, path, line_number)
        game = record.get("id")
        if game is not None and str(game) in wanted and str(game) not in rows:
            title = record.get("app_name") or record.get("title")
            rows[str(game)] = (tidy(title), joined(record.get("genres") or record.get("tags")))
    return item_table(list(rows), [row[0] for row in rows.values()], categories=[row[1] for row in rows.values()])
