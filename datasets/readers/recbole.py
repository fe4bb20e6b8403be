"""RecBole atomic files: `.inter` and, if there, `.item`, tab-separated with typed headers (`user_id:token`).

The `.user` file holds nothing that a data set record keeps, so it is not read. Token sequences are split at spaces.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.delimited import check_unique, ids, numbers, read_delimited

TYPES = ("token", "token_seq", "float", "float_seq")
TITLES = ("title", "movie_title", "name", "artist_name", "app_name")
DESCRIPTIONS = ("description",)
CATEGORIES = ("categories", "category", "genre", "genres", "class")


def read_recbole(
    path: Path, title: str | None = None, description: str | None = None, categories: str | None = None,
    year: str | None = None,
) -> Events:  # fmt: skip
    """``path``: the `.inter` file or a folder with exactly one.

    ``title``, ``description`` and ``categories`` name columns of the `.item` file where the usual names do not fit;
    ``year`` names a column whose numbers are put in brackets behind the title (MovieLens).
    """
    source = _inter_file(path)
    table = _typed(source)
    user, user_ids = number(ids(table, "user_id", source, "user"))
    item, item_ids = number(ids(table, "item_id", source, "item"))
    time = numbers(table, "timestamp", source, "timestamp") if "timestamp" in table.column_names else None
    rating = numbers(table, "rating", source, "rating") if "rating" in table.column_names else None
    catalogue = item_table(item_ids)
    item_file = source.with_suffix(".item")
    if item_file.is_file():
        known = _item_text(item_file, title, description, categories, year)
        catalogue, _ = aligned(item_ids, known, item_file)
    return ordered(user, item, time, user_ids, catalogue, dated=time is not None, rating=rating)


def _inter_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.inter"))
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} .inter files; name the file itself, or a folder with exactly one")
    return found[0]


def _typed(path: Path) -> pa.Table:
    """The table with plain column names, after a look at the types."""
    table = read_delimited(path)
    names = []
    for head in table.column_names:
        name, colon, kind = head.partition(":")
        if not colon or kind not in TYPES:
            raise InputError(f"{path}:1: column '{head}' is not NAME:TYPE with TYPE one of {', '.join(TYPES)}")
        names.append(name)
    return table.rename_columns(names)


def _item_text(
    path: Path, title: str | None, description: str | None, categories: str | None, year: str | None
) -> pd.DataFrame:
    table = _typed(path)
    item_ids = ids(table, "item_id", path, "item")
    check_unique(item_ids, path)
    titles = _text(table, title, TITLES, path)
    if year:
        years = _text(table, year, (), path)
        titles = [f"{t} ({y})" if y.isdigit() else t for t, y in zip(titles, years, strict=True)]
    groups = ["|".join(value.split()) for value in _text(table, categories, CATEGORIES, path)]
    return item_table(item_ids.to_pylist(), titles, _text(table, description, DESCRIPTIONS, path), groups)


def _text(table: pa.Table, asked: str | None, usual: tuple[str, ...], path: Path) -> list[str]:
    if asked and asked not in table.column_names:
        raise InputError(f"{path}: no column '{asked}'. Columns: {', '.join(table.column_names)}")
    name = asked or next((name for name in usual if name in table.column_names), None)
    return table[name].to_pylist() if name else [""] * table.num_rows
