"""The Yelp open data set: review and business files, JSON lines, names with or without `yelp_academic_dataset_`."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.files import find, folder_of, lines, required
from genrec_bench.datasets.readers.jsonlines import parse_record, read_json_lines, seconds
from genrec_bench.datasets.readers.text import joined, tidy

REVIEW_FIELDS = {"user_id": pa.string(), "business_id": pa.string(), "stars": pa.float64(), "date": pa.string()}
PREFIX = "yelp_academic_dataset_"


def read_yelp(path: Path, date_from: str | None = None, date_to: str | None = None) -> Events:
    """``path``: the folder, or the review file; only reviews from ``date_from`` on and not after ``date_to``.

    A day without a time means its first second, as in the published preprocessing (2019-01-01 to 2019-12-31).
    """
    source = path if path.is_file() else required(path, f"{PREFIX}review.json", "review.json", what="review")
    reviews = read_json_lines(source, REVIEW_FIELDS)
    time = seconds(reviews["date"], source)
    keep = (time >= _bound(date_from, float("-inf"))) & (time <= _bound(date_to, float("inf")))
    if not keep.any():
        raise InputError(f"{source}: no review between {date_from} and {date_to}")
    reviews, time = reviews.filter(pa.array(keep)), time[keep]
    user, user_ids = number(reviews["user_id"])
    item, item_ids = number(reviews["business_id"])
    items = item_table(item_ids)
    business = find(folder_of(source), f"{PREFIX}business.json", "business.json")
    if business is not None:
        items, _ = aligned(item_ids, _businesses(business, set(item_ids)), business)
    return ordered(user, item, time, user_ids, items, dated=True, rating=reviews["stars"].to_numpy())


def _bound(day: str | None, open_end: float) -> float:
    if day is None:
        return open_end
    return float(seconds(pa.chunked_array([[str(day)]]), Path("date_from/date_to"))[0])


def _businesses(path: Path, wanted: set[str]) -> pd.DataFrame:
    rows: dict[str, tuple[str, str]] = {}
    for line_number, line in lines(path):
        record = parse_record(line, path, line_number)
        business = str(record.get("business_id"))
        if business in wanted and business not in rows:
            rows[business] = (tidy(record.get("name")), joined(record.get("categories"), separator=","))
    return item_table(list(rows), [row[0] for row in rows.values()], categories=[row[1] for row in rows.values()])
