"""Plain tables, LETTER, RecBole and S3-Rec: tiny files with results worked out by hand, and every kind of bad input."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.readers import READERS, read, reader
from genrec_bench.datasets.readers.letter import read_index, write_index

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")

# name -> folder, users, items, interactions, as the papers print them
REAL = {
    "instruments": ("amazon2018-instruments", 24772, 9922, 206153),
    "beauty": ("amazon2014-beauty", 22363, 12101, 198502),
    "sports": ("amazon2014-sports", 35598, 18357, 296337),
    "movies": ("ml-latest-small", 610, 9724, 100836),  # 18 unrated movies of the catalogue are left out
    "lastfm": ("lastfm-s3rec", 1090, 3646, 52551),
}
INTERACTIONS = "user_id\titem_id\ttimestamp\nu2\tb\t30\nu1\tb\t20\nu1\ta\t10\nu2\tc\t30\n"
ITEMS = 'item_id\ttitle\tdescription\tcategories\na\tA "quoted\t\tx|y\nb\tB\tbe\t\nc\tC\t\t\nd\tD\t\t\n'


def data_of(path: Path, format: str, **options: object) -> InteractionData:
    return read(path, format, **options).to_data("toy")


def sequences(data: InteractionData) -> dict[str, list[str]]:
    """User id -> item ids in order."""
    item_ids = data.items["item_id"].tolist()
    return {user: [item_ids[i] for i in data.sequences.row(b)] for b, user in enumerate(data.user_ids)}


def plain_folder(folder: Path, interactions: str = INTERACTIONS, items: str | None = ITEMS) -> Path:
    (folder / "interactions.tsv").write_text(interactions)
    if items is not None:
        (folder / "items.tsv").write_text(items)
    return folder


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_counts(name: str) -> None:
    folder, users, items, interactions = REAL[name]
    data = data_of(SHARED / folder, "plain")
    assert (data.num_users, data.num_items, data.num_interactions) == (users, items, interactions)
    assert data.sha256 == data_of(SHARED / folder, "plain").sha256


@needs_shared
def test_published_codes_go_round_byte_for_byte(tmp_path: Path) -> None:
    with gzip.open(SHARED / "amazon2018-instruments" / "codes.json.gz", "rt") as stream:
        codes = {int(item): tokens for item, tokens in json.load(stream).items()}
    published = json.dumps({str(item): tokens for item, tokens in codes.items()})  # the style of the published files
    (tmp_path / "X.index.json").write_text(published)
    write_index(tmp_path / "again.json", read_index(tmp_path / "X.index.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "X.index.json").read_bytes()
    assert read_index(tmp_path / "again.json") == codes
    assert len(codes) == 9922


def test_a_table_of_letters_numbers_is_its_file_without_texts(tmp_path: Path) -> None:
    """So LETTER's Instruments.inter.json alone is the data set of our records, which were made of such a table."""
    (tmp_path / "X.inter.json").write_text('{"0": [0, 2, 1], "1": [2, 0]}')
    lines = "0\t0\t0\n0\t2\t1\n0\t1\t2\n1\t2\t0\n1\t0\t1\n"
    table = plain_folder(tmp_path, "user_id\titem_id\torder\n" + lines, "item_id\ttitle\n0\t\n1\t\n2\t\n")
    assert data_of(table, "plain").sha256 == data_of(tmp_path / "X.inter.json", "letter").sha256


def test_plain_sorts_numbers_and_keeps_the_text(tmp_path: Path) -> None:
    data = data_of(plain_folder(tmp_path), "plain")
    assert sequences(data) == {"u1": ["a", "b"], "u2": ["b", "c"]}  # the tie at 30 keeps the file order
    assert data.items.to_numpy().tolist() == [["a", 'A "quoted', "", "x|y"], ["b", "B", "be", ""], ["c", "C", "", ""]]
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [10, 20, 30, 30]


def test_integer_ids_are_numbered_by_value(tmp_path: Path) -> None:
    data = data_of(plain_folder(tmp_path, "user_id\titem_id\n10\t2\n9\t10\n10\t1\n", None), "plain")
    assert data.user_ids.tolist() == ["9", "10"]
    assert data.items["item_id"].tolist() == ["1", "2", "10"]
    assert sequences(data) == {"9": ["10"], "10": ["2", "1"]}  # no time column: file order
    assert data.timestamps is None


def test_order_column_is_not_a_time(tmp_path: Path) -> None:
    data = data_of(plain_folder(tmp_path, "user_id\titem_id\torder\nu\ta\t1\nu\tb\t0\n", None), "plain")
    assert sequences(data) == {"u": ["b", "a"]}
    assert data.timestamps is None


def test_csv_quotes_and_named_columns(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text('who,what,at\n"x, y",a,2\n"x, y",b,1\n')
    data = data_of(file, "plain", columns={"user": "who", "item": "what", "timestamp": "at"})
    assert sequences(data) == {"x, y": ["b", "a"]}


def test_parquet_and_gzip_give_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "gz").mkdir()
    (tmp_path / "parquet").mkdir()
    with gzip.open(tmp_path / "gz" / "interactions.tsv.gz", "wt") as stream:
        stream.write(INTERACTIONS)
    table = pd.read_csv(tmp_path / "gz" / "interactions.tsv.gz", sep="\t")
    table.to_parquet(tmp_path / "parquet" / "interactions.parquet")
    assert data_of(tmp_path / "gz", "plain").sha256 == data_of(tmp_path / "parquet", "plain").sha256


BAD_PLAIN = {
    "missing column": ("user\titem_id\nu\ta\n", "interactions.tsv: no column 'user_id'"),
    "time is text": ("user_id\titem_id\ttimestamp\nu\ta\t1\n\nu\tb\tsoon\n", "interactions.tsv:4: timestamp 'soon'"),
    "time is missing": ("user_id\titem_id\ttimestamp\nu\ta\t\n", "interactions.tsv:2: timestamp ''"),
    "time is not finite": ("user_id\titem_id\ttimestamp\nu\ta\tnan\n", "interactions.tsv:2: timestamp 'nan'"),
    "empty file": ("", "is empty"),
    "blank file": ("\n\n", "is empty"),
    "header alone": ("user_id\titem_id\n", "has a header but no rows"),
    "short line": ("user_id\titem_id\nu\ta\nu\n", "interactions.tsv:3: 1 fields where 2 are expected"),
    "empty id": ("user_id\titem_id\nu\ta\nu\t \n", "interactions.tsv:3: empty item id"),
    "unknown item": ("user_id\titem_id\nu\ta\nu\tz\n", "interactions.tsv:3: item 'z' is not in the item table"),
    "column twice": ("user_id\tuser_id\titem_id\nu\tu\ta\n", "column 'user_id' stands twice"),
    "zero bytes": ("user_id\titem_id\nu\ta\x00\x00\tb\tc\n", "interactions.tsv:2: not text"),
}


@pytest.mark.parametrize("case", BAD_PLAIN)
def test_bad_interactions_name_the_line(tmp_path: Path, case: str) -> None:
    content, message = BAD_PLAIN[case]
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read(plain_folder(tmp_path, content), "plain")


def test_binary_junk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "interactions.tsv").write_bytes(bytes(range(128, 256)) * 20)
    with pytest.raises(InputError, match="is not utf-8 text"):
        read(tmp_path, "plain")
    (tmp_path / "interactions.tsv").write_bytes(b"user_id\titem_id\nu\ta\n" + b"\xff\xfe\xfd\tb\n")
    with pytest.raises(InputError, match="is not utf-8 text"):
        read(tmp_path, "plain")
    (tmp_path / "interactions.tsv").rename(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read(tmp_path / "x.parquet", "plain")


def test_broken_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(INTERACTIONS.encode() * 200)
    (tmp_path / "interactions.tsv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="half a download"):
        read(tmp_path, "plain")
    (tmp_path / "interactions.tsv.gz").write_bytes(b"plainly not gzip")
    with pytest.raises(InputError, match="not valid gzip"):
        read(tmp_path, "plain")


def test_duplicate_item_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"items.tsv:6: item id 'a' stands twice"):
        read(plain_folder(tmp_path, items=ITEMS + "a\tagain\t\t\n"), "plain")


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean: recbole"):
        read(tmp_path, "recbol")
    with pytest.raises(InputError, match="Did you mean: columns"):
        read(tmp_path, "plain", colums={})
    with pytest.raises(InputError, match="Did you mean: timestamp"):
        read(plain_folder(tmp_path), "plain", columns={"timestmp": "t"})
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere", "plain")
    with pytest.raises(InputError, match="no interactions file"):
        read(tmp_path / "..", "plain")


@pytest.mark.parametrize("format", READERS)
def test_every_reader_exists_and_refuses_an_empty_folder(tmp_path: Path, format: str) -> None:
    assert reader(format).__doc__
    with pytest.raises(InputError, match=str(tmp_path)):
        read(tmp_path, format)


def letter_folder(folder: Path, sequences: object, items: object | None = None) -> Path:
    (folder / "X.inter.json").write_text(json.dumps(sequences))
    if items is not None:
        (folder / "X.item.json").write_text(json.dumps(items))
    return folder


def test_letter_keeps_its_own_numbers(tmp_path: Path) -> None:
    titles = {"0": {"title": "zero", "categories": "p, q"}, "1": {"title": "one\n&amp; more"}, "2": {}, "3": {}}
    data = data_of(letter_folder(tmp_path, {"0": [2, 0], "1": [0, 1, 2]}, titles), "letter")
    assert [data.sequences.row(b).tolist() for b in range(2)] == [[2, 0], [0, 1, 2]]
    assert data.num_items == 4  # item 3 stays: the code files refer to the numbers
    assert data.items["title"].tolist() == ["zero", "one & more", "", ""]
    assert data.items["categories"].tolist() == ["p|q", "", "", ""]


@pytest.mark.parametrize(
    ("sequences", "items", "message"),
    [
        ({"0": [0, 5]}, {"0": {}}, "user '0': item 5 is not in X.item.json"),
        ({"0": [0, -1]}, None, "item -1 is not in"),
        ({"0": []}, None, "sequence of user '0' is empty"),
        ({"0": ["1"]}, None, "list of item numbers"),
        ({}, None, "at least one entry"),
        ({"0": [0]}, {"0": {}, "2": {}}, "item 1 is missing"),
        ({"0": [0]}, {"zero": {}}, "key 'zero' is not an item number"),
    ],
)
def test_bad_letter_files(tmp_path: Path, sequences: object, items: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(letter_folder(tmp_path, sequences, items), "letter")


def test_bad_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "X.inter.json").write_text('{"0": [1,\n2,,3]}')
    with pytest.raises(InputError, match=r"X.inter.json:2: not valid JSON"):
        read(tmp_path, "letter")


@pytest.mark.parametrize("index", [{"a": ["<a_1>"]}, {"0": []}, {"0": [1]}, [], {"0": "<a_1>"}])
def test_bad_index_is_refused(tmp_path: Path, index: object) -> None:
    (tmp_path / "X.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"X\.index\.json"):
        read_index(tmp_path / "X.index.json")


def test_recbole(tmp_path: Path) -> None:
    (tmp_path / "m.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t9\t4\t5\n2\t8\t3\t1\n"
    )
    (tmp_path / "m.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "8\tHeat\t1995\tCrime Drama\n9\tX\tV\t\n"
    )
    events = read(tmp_path, "recbole", year="release_year")
    data = events.to_data("toy")
    assert sequences(data) == {"2": ["8", "9"]}
    assert data.items["title"].tolist() == ["Heat (1995)", "X"]
    assert data.items["categories"].tolist() == ["Crime|Drama", ""]
    assert events.rating is not None
    assert events.rating.tolist() == [3, 4]
    with pytest.raises(InputError, match="no column 'yaer'"):
        read(tmp_path, "recbole", year="yaer")
    (tmp_path / "m.inter").write_text("user_id\titem_id:token\n1\t2\n")
    with pytest.raises(InputError, match=r"m.inter:1: column 'user_id' is not NAME:TYPE"):
        read(tmp_path, "recbole")


def test_s3rec(tmp_path: Path) -> None:
    (tmp_path / "B.txt").write_text("1 3 1\n2 1 2\n")
    (tmp_path / "B_item2attributes.json").write_text('{"1": [7, 8], "3": []}')
    data = data_of(tmp_path, "s3rec")
    assert sequences(data) == {"1": ["3", "1"], "2": ["1", "2"]}
    assert data.items["categories"].tolist() == ["attr7|attr8", "", ""]
    assert np.array_equal(data.sequences.row(0), [2, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2\n2\n", "B.txt:2: the sequence of user '2' is empty"),
        ("1 2\n1 3\n", "B.txt:2: user '1' stands on line 1 already"),
        ("1 0\n", "B.txt:1: item 0"),
        ("1 x\n", "B.txt:1: items must be whole numbers"),
        ("\n", "has no sequences"),
    ],
)
def test_bad_s3rec_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "B.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path, "s3rec")
