"""MovieLens as GroupLens serves it: 100K (`u.data`), 1M and 10M (`ratings.dat`), latest and 20M/25M (`ratings.csv`).

Which one it is shows in the file names. Genres become categories; movies that nobody rated are left out.
"""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, aligned, item_table, number, ordered
from genrec_bench.datasets.readers.delimited import column, ids, numbers, read_delimited
from genrec_bench.datasets.readers.files import find, folder_of, lines, opened

MOVIES = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}  # beside each ratings file
COLUMNS = ["userId", "movieId", "rating", "timestamp"]
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_movielens(path: Path) -> Events:
    """``path``: the folder, or the ratings file in it."""
    folder = folder_of(path)
    source = find(folder, *MOVIES)
    if source is None:
        raise InputError(f"{folder}: no ratings file; expected one of {', '.join(MOVIES)}")
    table, header = _ratings(source), source.name.startswith("ratings.csv")
    user, user_ids = number(ids(table, "userId", source, "user", header=header))
    item, item_ids = number(ids(table, "movieId", source, "item", header=header))
    time = numbers(table, "timestamp", source, "timestamp", header=header)
    rating = numbers(table, "rating", source, "rating", header=header)
    items = item_table(item_ids)
    movies = find(folder, MOVIES[source.name.removesuffix(".gz")])
    if movies is not None:
        items, absent = aligned(item_ids, _movies(movies), movies)
        if absent.any():
            raise InputError(f"{source}: movie '{item_ids[absent.argmax()]}' is not in the movie table {movies.name}")
    return ordered(user, item, time, user_ids, items, dated=True, rating=rating)


def _ratings(source: Path) -> pa.Table:
    if source.name.startswith("u.data"):
        return read_delimited(source, "\t", names=COLUMNS)
    if source.name.startswith("ratings.csv"):
        return read_delimited(source, ",", quoted=True)
    with opened(source, "latin-1") as stream:
        content = stream.read()
    for line_number, line in enumerate(content.splitlines(), start=1):
        if line and (line.count("::") != len(COLUMNS) - 1 or "\t" in line):
            raise InputError(f"{source}:{line_number}: not {len(COLUMNS)} fields joined by '::'")
    text = content.replace("::", "\t").encode()
    return pa_csv.read_csv(
        io.BytesIO(text),
        read_options=pa_csv.ReadOptions(column_names=COLUMNS),
        parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
    )


def _movies(source: Path) -> pd.DataFrame:
    if source.name.startswith("u.item"):
        return _movies_100k(source)
    if source.name.startswith("movies.dat"):
        return _movies_dat(source)
    table = read_delimited(source, ",", quoted=True)
    item_ids, titles, genres = (
        column(table, name, source, name).to_pylist() for name in ("movieId", "title", "genres")
    )
    return item_table(item_ids, titles, categories=[_genres(value) for value in genres])


def _movies_100k(path: Path) -> pd.DataFrame:
    rows = []
    for line_number, line in lines(path, "latin-1"):
        fields = line.split("|")
        if len(fields) != 5 + len(GENRES_100K):
            raise InputError(f"{path}:{line_number}: {len(fields)} fields where {5 + len(GENRES_100K)} are expected")
        flags = zip(GENRES_100K, fields[5:], strict=True)
        rows.append((fields[0], fields[1], "|".join(genre for genre, flag in flags if flag == "1")))
    return _from_rows(rows)


def _movies_dat(path: Path) -> pd.DataFrame:
    rows = []
    for line_number, line in lines(path, "latin-1"):
        fields = line.split("::")
        if len(fields) != 3:
            raise InputError(f"{path}:{line_number}: {len(fields)} fields where 3 are expected")
        rows.append((fields[0], fields[1], _genres(fields[2])))
    return _from_rows(rows)


def _from_rows(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    item_ids, titles, groups = ([row[k] for row in rows] for k in range(3))
    return item_table(item_ids, titles, categories=groups)


def _genres(value: str) -> str:
    return "" if value == "(no genres listed)" else value
