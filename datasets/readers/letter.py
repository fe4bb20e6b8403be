"""The JSON files of LETTER and LC-Rec: `X.inter.json`, `X.item.json`, `X.index.json`.

Users and items are numbered by the files themselves (items 0..N-1), and the index refers to those numbers, so they are
kept. `X.item.json` may be absent: then the items have no text. The index is code tokens, not data, and is read and
written by `read_index` and `write_index`; the latter gives back the published files byte for byte.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import MAX_ITEMS, Events, item_table, ordered
from genrec_bench.datasets.readers.files import folder_of, load_json
from genrec_bench.datasets.readers.text import joined, tidy


def read_letter(path: Path) -> Events:
    """``path``: the `.inter.json` file or a folder with exactly one."""
    source = _inter_file(path)
    sequences = _object(load_json(source), source)
    for user_id, items in sequences.items():
        _check_sequence(user_id, items, source)
    lengths = np.array([len(items) for items in sequences.values()], dtype=np.int64)
    item = np.fromiter(chain.from_iterable(sequences.values()), dtype=np.int64, count=int(lengths.sum()))
    user = np.repeat(np.arange(len(sequences)), lengths)
    user_ids = np.array(list(sequences), dtype=object)
    table_file = source.with_name(source.name.replace(".inter.json", ".item.json"))
    if table_file.is_file():
        items_table = _item_table(table_file)
    else:
        items_table = item_table([str(number) for number in range(int(item.max()) + 1)])
    outside = (item < 0) | (item >= len(items_table))
    if outside.any():
        first = int(outside.argmax())
        raise InputError(f"{source}: user '{user_ids[user[first]]}': item {item[first]} is not in {table_file.name}")
    return ordered(user, item, None, user_ids, items_table, dated=False, fixed_items=True)


def read_index(path: Path | str) -> dict[int, list[str]]:
    """Item number -> code tokens, in file order; InputError unless it is an object of lists of strings."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    index = {}
    for key, tokens in _object(load_json(path), path).items():
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{path}: item '{key}' must have a list of code tokens (strings), at least one")
        index[_number(key, path)] = tokens
    return index


def write_index(path: Path | str, index: Mapping[int, Sequence[str]]) -> None:
    """Write an index as LETTER and LC-Rec publish it: one line, items in the order of ``index``."""
    text = json.dumps({str(item): list(tokens) for item, tokens in index.items()})
    Path(path).write_text(text, encoding="utf-8")


def _inter_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(folder_of(path).glob("*.inter.json"))
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} .inter.json files; name the file itself, or a folder with exactly one")
    return found[0]


def _object(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} must hold a JSON object with at least one entry")
    return content


def _check_sequence(user: str, items: Any, path: Path) -> None:
    # bool is an int for Python, but not an item number
    if not isinstance(items, list) or any(type(item) is not int or abs(item) >= MAX_ITEMS for item in items):
        raise InputError(f"{path}: user '{user}' must have a list of item numbers (integers below {MAX_ITEMS:,})")
    if not items:
        raise InputError(f"{path}: the sequence of user '{user}' is empty; at least one item is needed")


def _number(key: str, path: Path) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > len(str(MAX_ITEMS)):
        raise InputError(f"{path}: key '{key}' is not an item number")
    return int(key)


def _item_table(path: Path) -> pd.DataFrame:
    known = {_number(key, path): value for key, value in _object(load_json(path), path).items()}
    missing = next((number for number in range(len(known)) if number not in known), None)
    if missing is not None:
        raise InputError(f"{path}: item {missing} is missing; {len(known)} items must be numbered 0..{len(known) - 1}")
    rows = [known[number] for number in range(len(known))]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: item '{number}' must be an object with title, description, ...")
    return item_table(
        [str(number) for number in range(len(rows))],
        [tidy(row.get("title")) for row in rows],
        [tidy(row.get("description")) for row in rows],
        [joined(row.get("categories"), separator=",") for row in rows],
    )
