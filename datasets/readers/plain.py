"""Plain tables: interactions.{tsv,csv,parquet} and, if there, items.{tsv,csv,parquet}; text files also as .gz.

Interactions need a user and an item column; `timestamp` (seconds) or `order` gives the sequence, and without either
the file order does. Items need an id column; `title`, `description` and `categories` (joined by `|`) are optional.
In TSV quote characters mean nothing; CSV follows the usual quoting.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.delimited import check_unique, ids, line_of, numbers, read_delimited
from genrec_bench.datasets.readers.files import find, folder_of

SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".parquet", ".txt", ".txt.gz")
DEFAULT_COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "timestamp": "timestamp",
    "order": "order",
    "rating": "rating",
    "title": "title",
    "description": "description",
    "categories": "categories",
}


def read_plain(path: Path, columns: dict[str, str] | None = None, items: str | None = None) -> Events:
    """``path``: the folder or the interactions file; ``columns``: role -> column name where it is not the default.

    ``items`` names the item table if it is not `items.*` in the same folder.
    """
    named = dict(columns or {})
    for role in named:
        if role not in DEFAULT_COLUMNS:
            raise unknown("column role", role, DEFAULT_COLUMNS)
    roles = DEFAULT_COLUMNS | named
    source = _interactions_file(path)
    table = _table(source)
    user, user_ids = number(ids(table, roles["user"], source, "user"))
    item, item_ids = number(ids(table, roles["item"], source, "item"))
    time, dated = _time(table, roles, named, source)
    rating = None
    if "rating" in named or roles["rating"] in table.column_names:
        rating = numbers(table, roles["rating"], source, "rating")
    catalogue = _item_table(path, items, item, item_ids, roles, source)
    return ordered(user, item, time, user_ids, catalogue, dated=dated, rating=rating)


def _interactions_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = find(path, "interactions", suffixes=SUFFIXES)
    if found is None:
        raise InputError(f"{path}: no interactions file; expected interactions{{{','.join(SUFFIXES)}}}")
    return found


def _table(path: Path) -> pa.Table:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
        if not table.num_rows:
            raise InputError(f"{path} has no rows")
        numeric = (pa.types.is_floating, pa.types.is_timestamp)
        # Ids may be integers in Parquet; floats and times are only ever numbers here.
        columns = [
            column if any(check(column.type) for check in numeric) or pa.types.is_nested(column.type)
            else pc.cast(column, pa.string())
            for column in table.columns
        ]  # fmt: skip
        return pa.table(columns, names=table.column_names)
    if name.endswith(".csv"):
        return read_delimited(path, ",", quoted=True)
    if name.endswith((".tsv", ".txt")):
        return read_delimited(path, "\t")
    raise InputError(f"{path}: file type not known; the plain format reads {', '.join(SUFFIXES)}")


def _time(table: pa.Table, roles: dict[str, str], named: dict[str, str], path: Path) -> tuple[np.ndarray | None, bool]:
    """(time column or None, whether it is in seconds); a column that was asked for by name must be there."""
    for role, dated in (("timestamp", True), ("order", False)):
        if role in named or roles[role] in table.column_names:
            return numbers(table, roles[role], path, role), dated
    return None, False


def _item_table(
    path: Path, items: str | None, item: np.ndarray, item_ids: np.ndarray, roles: dict[str, str], interactions: Path
) -> pd.DataFrame:
    """The item table in number order; every item of a sequence must be in it."""
    source = Path(items) if items else find(folder_of(path), "items", suffixes=SUFFIXES)
    if source is None:
        return item_table(item_ids)
    if not source.is_file():
        raise InputError(f"{source} does not exist")
    table = _table(source)
    known_ids = ids(table, roles["item"], source, "item")
    check_unique(known_ids, source)
    text = {role: _text(table, roles[role]) for role in ("title", "description", "categories")}
    catalogue, absent = aligned(item_ids, pd.DataFrame({"item_id": known_ids.to_pandas(), **text}), source)
    if absent.any():
        row = int(absent[item].argmax())
        where = f"{interactions}:{line_of(interactions, row)}"
        raise InputError(f"{where}: item '{item_ids[item[row]]}' is not in the item table {source.name}")
    return catalogue


def _text(table: pa.Table, name: str) -> pd.Series | list[str]:
    if name not in table.column_names:
        return [""] * table.num_rows
    values = table[name]
    if pa.types.is_list(values.type):
        return ["|".join(map(str, value or [])) for value in values.to_pylist()]
    return pc.fill_null(pc.cast(values, pa.string()), "").to_pandas()
