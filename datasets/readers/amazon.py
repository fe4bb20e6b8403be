"""Amazon reviews of 2014 and 2018 as published: reviews and metadata, a record a line, usually as .gz.

Texts are looked up for reviewed items only. The 2014 metadata are Python literals, the 2018 ones JSON with some records
twice (the first counts) and some titles that are page source (taken as unknown).
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.files import lines
from genrec_bench.datasets.readers.jsonlines import parse_record, read_json_lines
from genrec_bench.datasets.readers.literal import parse_literal
from genrec_bench.datasets.readers.text import joined, tidy

FIELDS = {"reviewerID": pa.string(), "asin": pa.string(), "overall": pa.float64(), "unixReviewTime": pa.int64()}
_ASIN = re.compile(r"""u?['"]asin['"]\s*:\s*u?['"](\w+)['"]""")
_PAGE_SOURCE = re.compile(r"getTime|function\s*\(|var aPageStart")


def read_amazon2014(path: Path) -> Events:
    """``path``: the reviews file, or a folder with one `*.json` of reviews and, for texts, one `meta_*.json`."""
    return _read(_reviews_file(path), "categories")


def read_amazon2018(path: Path) -> Events:
    """``path``: the reviews file, or a folder with one `*.json` of reviews and, for texts, one `meta_*.json`."""
    return _read(_reviews_file(path), "category")


def _read(source: Path, categories: str) -> Events:
    reviews = read_json_lines(source, FIELDS)
    user, user_ids = number(reviews["reviewerID"])
    item, item_ids = number(reviews["asin"])
    items = item_table(item_ids)
    metadata = sorted(source.parent.glob("meta_*.json*"))
    if len(metadata) > 1:
        raise InputError(f"{source.parent}: {len(metadata)} meta_*.json files; keep only the one of this category")
    if metadata:
        items, _ = aligned(item_ids, _texts(metadata[0], set(item_ids), categories), metadata[0])
    time = reviews["unixReviewTime"].to_numpy().astype(np.float64)
    return ordered(user, item, time, user_ids, items, dated=True, rating=reviews["overall"].to_numpy())


def _reviews_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [file for file in sorted(path.glob("*.json*")) if not file.name.startswith("meta_")]
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} review files (*.json, *.json.gz); name the file, or keep exactly one")
    return found[0]


def _texts(path: Path, wanted: set[str], categories: str) -> pd.DataFrame:
    rows: dict[str, tuple[str, str, str]] = {}
    for line_number, line in lines(path):
        # Most of a metadata file is about items that nobody in the reviews file touched: a cheap look comes first.
        found = _ASIN.search(line)
        if found and found[1] not in wanted:
            continue
        # A JSON record and a literal one differ in the quote of the first key.
        parse = parse_record if line.lstrip("{ ").startswith('"') else parse_literal
        record = parse(line, path, line_number)
        asin = record.get("asin")
        if not isinstance(asin, str):
            raise InputError(f"{path}:{line_number}: no field 'asin'")
        if asin in wanted and asin not in rows:
            title = tidy(record.get("title"))
            title = "" if _PAGE_SOURCE.search(title) else title
            rows[asin] = (title, tidy(record.get("description")), joined(record.get(categories)))
    columns = [list(column) for column in zip(*rows.values(), strict=True)] or [[], [], []]
    return item_table(list(rows), *columns)
