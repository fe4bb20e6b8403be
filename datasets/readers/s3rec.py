"""S3-Rec's text format: a line a user, `user item item ...`, items numbered from 1; optional item attributes as JSON.

The item numbers are the format's own and published item tables refer to them, so item n is item number n - 1 here.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import MAX_ITEMS, Events, item_table, ordered
from genrec_bench.datasets.readers.files import lines, load_json


def read_s3rec(path: Path, attributes: str | None = None) -> Events:
    """``path``: the sequence file or a folder with exactly one `.txt`; ``attributes``: the item2attributes file.

    Without ``attributes``, `NAME_item2attributes.json` beside `NAME.txt` is taken if it is there.
    """
    source = _text_file(path)
    user_ids, sequences = _sequences(source)
    lengths = [len(items) for items in sequences]
    item = np.concatenate(sequences) - 1
    user = np.repeat(np.arange(len(sequences)), lengths)
    usual = source.with_name(f"{source.stem}_item2attributes.json")
    file = Path(attributes) if attributes else usual
    if attributes and not file.is_file():
        raise InputError(f"{file} does not exist")
    items = _item_table(int(item.max()) + 1, file if file.is_file() else None)
    return ordered(user, item, None, np.array(user_ids, dtype=object), items, dated=False, fixed_items=True)


def _text_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.txt"))
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} .txt files; name the file itself, or a folder with exactly one")
    return found[0]


def _sequences(path: Path) -> tuple[list[str], list[np.ndarray]]:
    user_lines: dict[str, int] = {}
    sequences = []
    for line_number, line in lines(path):
        user, *items = line.split()
        if not items:
            raise InputError(
                f"{path}:{line_number}: the sequence of user '{user}' is empty; at least one item is needed"
            )
        try:
            sequence = np.array(items, dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}:{line_number}: items must be whole numbers ({error})") from error
        if sequence.min() < 1:
            raise InputError(f"{path}:{line_number}: item {sequence.min()}; items are numbered from 1 (0 is padding)")
        if sequence.max() >= MAX_ITEMS:
            raise InputError(f"{path}:{line_number}: item {sequence.max()}; numbers must be below {MAX_ITEMS:,}")
        if user in user_lines:
            raise InputError(f"{path}:{line_number}: user '{user}' stands on line {user_lines[user]} already")
        user_lines[user] = line_number
        sequences.append(sequence)
    if not sequences:
        raise InputError(f"{path} has no sequences")
    return list(user_lines), sequences


def _item_table(count: int, attributes: Path | None) -> pd.DataFrame:
    item_ids = [str(number) for number in range(1, count + 1)]
    if attributes is None:
        return item_table(item_ids)
    known = load_json(attributes)
    if not isinstance(known, dict) or not all(isinstance(values, list) for values in known.values()):
        raise InputError(f"{attributes} must hold a JSON object: item number -> list of attribute numbers")
    groups = ["|".join(f"attr{value}" for value in known.get(item, [])) for item in item_ids]
    return item_table(item_ids, categories=groups)
