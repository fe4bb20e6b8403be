"""Official raw files (Amazon, MovieLens, Last.fm, Steam, Yelp), as tiny files with results worked out by hand."""

import gzip
import json
from pathlib import Path

import pytest

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.filters import first_of_pair
from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.readers import jsonlines, read
from genrec_bench.datasets.readers.literal import parse_literal


def sequences(data: InteractionData) -> dict[str, list[str]]:
    """User id -> item ids in order."""
    item_ids = data.items["item_id"].tolist()
    return {user: [item_ids[i] for i in data.sequences.row(b)] for b, user in enumerate(data.user_ids)}


def review(user: str, asin: str, time: int, **more: object) -> str:
    return json.dumps({"reviewerID": user, "asin": asin, "overall": 5.0, "unixReviewTime": time, **more}) + "\n"


def write_gz(path: Path, text: str) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write(text)


def test_amazon_2014(tmp_path: Path) -> None:
    write_gz(tmp_path / "reviews_X_5.json.gz", review("u", "B1", 20, helpful=[0, 1]) + review("u", "A1", 10))
    write_gz(
        tmp_path / "meta_X.json.gz",
        "{'asin': 'A1', 'title': \"It's &amp; <b>nice</b>\", 'categories': [['Care', 'Hair'], ['Care']]}\n"
        "{'asin': 'ZZ', this line is not even Python, but nobody reviewed it}\n"
        '{"asin": "B1", "title": "plain JSON", "categories": [["A|B"]]}\n',
    )
    data = read(tmp_path, "amazon2014").to_data("toy")
    assert sequences(data) == {"u": ["A1", "B1"]}
    assert data.items["title"].tolist() == ["It's & nice", "plain JSON"]
    assert data.items["categories"].tolist() == ["Care|Hair", "A/B"]
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [10, 20]


def test_literals_are_never_run(tmp_path: Path) -> None:
    write_gz(tmp_path / "reviews_X_5.json.gz", review("u", "A1", 1))
    write_gz(tmp_path / "meta_X.json.gz", f"{{'asin': 'A1', 'title': open({str(tmp_path / 'made')!r}, 'w')}}\n")
    with pytest.raises(InputError, match=r"meta_X.json.gz:1: not a Python literal or JSON"):
        read(tmp_path, "amazon2014")
    assert not (tmp_path / "made").exists()


def test_amazon_2018(tmp_path: Path) -> None:
    (tmp_path / "X_5.json").write_text(review("u", "A1", 1, vote="3") + review("u", "B1", 1) + review("u", "C1", 0))
    (tmp_path / "meta_X.json").write_text(
        '{"asin": "A1", "title": "first", "category": ["M", "N"], "description": ["a", "b"]}\n'
        '{"asin": "A1", "title": "the same record again"}\n'
        '{"asin": "B1", "title": "<span>var aPageStart = (new Date()).getTime();</span>"}\n'
    )
    data = read(tmp_path, "amazon2018").to_data("toy")
    assert sequences(data) == {"u": ["C1", "A1", "B1"]}  # the tie at 1 keeps the file order
    assert data.items.to_numpy().tolist() == [["A1", "first", "a b", "M|N"], ["B1", "", "", ""], ["C1", "", "", ""]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"asin": "A"}\n', "X.json:2: no field 'reviewerID'"),
        (review("u", "A", 1).replace("1}", '"1"}'), "X.json:2: field 'unixReviewTime' is '1'"),
        ("{broken\n", "X.json:2: not valid JSON"),
        ("[1]\n", "X.json:2: not a JSON object"),
    ],
)
def test_bad_reviews_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "X.json").write_text(review("u", "A", 1) + line)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "X.json", "amazon2014")


def test_movielens_100k(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t10\t3\t200\n1\t2\t4\t100\n")
    flags = ["0"] * 19
    flags[5] = flags[18] = "1"  # Comedy, Western
    rows = [["2", "Café (1990)", "", "", "", *flags], ["10", "Ten (1991)", "", "", "", *["0"] * 19]]
    (tmp_path / "u.item").write_bytes("\n".join("|".join(row) for row in rows).encode("latin-1"))
    data = read(tmp_path, "movielens").to_data("toy")
    assert sequences(data) == {"1": ["2", "10"]}
    assert data.items["title"].tolist() == ["Café (1990)", "Ten (1991)"]
    assert data.items["categories"].tolist() == ["Comedy|Western", ""]
    (tmp_path / "u.data").write_text("1\t10\t3\t200\n1\t2\t4\tnever\n")
    with pytest.raises(InputError, match=r"u.data:2: timestamp 'never'"):
        read(tmp_path, "movielens")


def test_movielens_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::3::200\n1::2::4::100\n")
    (tmp_path / "movies.dat").write_bytes(
        "2::Café: a::b (1990)".replace("::b", ":b").encode("latin-1") + b"::A|B\n10::T::C\n"
    )
    data = read(tmp_path, "movielens").to_data("toy")
    assert sequences(data) == {"1": ["2", "10"]}
    assert data.items["title"].tolist() == ["Café: a:b (1990)", "T"]
    assert data.items["categories"].tolist() == ["A|B", "C"]
    (tmp_path / "ratings.dat").write_text("1::10::3::200\n1::2::4\n")
    with pytest.raises(InputError, match=r"ratings.dat:2: not 4 fields"):
        read(tmp_path, "movielens")
    (tmp_path / "ratings.dat").write_text("1::11::3::200\n")
    with pytest.raises(InputError, match="movie '11' is not in the movie table"):
        read(tmp_path, "movielens")


def test_movielens_latest(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,3.5,200\n1,2,4.0,100\n")
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n2,"Two, The",(no genres listed)\n10,T,A|B\n')
    events = read(tmp_path, "movielens")
    data = events.to_data("toy")
    assert sequences(data) == {"1": ["2", "10"]}
    assert data.items["title"].tolist() == ["Two, The", "T"]
    assert data.items["categories"].tolist() == ["", "A|B"]
    assert events.rating is not None
    assert events.rating.tolist() == [4.0, 3.5]


def test_hetrec_lastfm(tmp_path: Path) -> None:
    (tmp_path / "user_taggedartists-timestamps.dat").write_text(
        "userID\tartistID\ttagID\ttimestamp\n5\t7\t1\t3000\n5\t7\t2\t1000\n5\t8\t2\t2000\n6\t7\t2\t1\n"
    )
    (tmp_path / "artists.dat").write_text(
        'id\tname\turl\tpictureURL\n7\tThe "Seven\tx\ty\n8\tÅtta\tx\ty\n9\tNo\tx\ty\n'
    )
    (tmp_path / "tags.dat").write_bytes("tagID\ttagValue\n1\trock\n2\tcafé\n".encode("latin-1"))
    (tmp_path / "user_artists.dat").write_text("userID\tartistID\tweight\n5\t8\t12\n5\t7\t99\n")
    data = first_of_pair(read(tmp_path, "hetrec-lastfm")).to_data("toy")
    assert sequences(data) == {"5": ["7", "8"], "6": ["7"]}
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [1, 2, 0]
    assert data.items["title"].tolist() == ['The "Seven', "Åtta"]
    assert data.items["categories"].tolist() == ["café|rock", "café"]  # most used first
    listens = read(tmp_path, "hetrec-lastfm", events="listens")
    assert sequences(listens.to_data("toy")) == {"5": ["8", "7"]}
    with pytest.raises(InputError, match="Did you mean: tags"):
        read(tmp_path, "hetrec-lastfm", events="tag")


def test_steam(tmp_path: Path) -> None:
    write_gz(
        tmp_path / "steam_reviews.json.gz",
        "{u'username': u'Ann', u'hours': 1.5, u'product_id': u'20', u'date': u'2017-03-02', u'text': u\"it's\"}\n"
        "{u'username': u'Ann', u'text': u'{\\'product_id\\': u\\'99\\'', u'product_id': u'3', u'date': u'2017-03-01'}\n"
        "{u'username': u'Bob', u'product_id': u'3', u'date': u'2017-03-01', u'list': [1, 2]}\n",
    )
    write_gz(tmp_path / "steam_games.json.gz", "{u'id': u'3', u'app_name': u'Three', u'genres': [u'Indie', u'RPG']}\n")
    data = read(tmp_path, "steam").to_data("toy")
    assert sequences(data) == {"Ann": ["3", "20"], "Bob": ["3"]}
    assert data.items.to_numpy().tolist() == [["3", "Three", "", "Indie|RPG"], ["20", "", "", ""]]
    write_gz(tmp_path / "steam_reviews.json.gz", "{u'username': u'Ann', u'product_id': u'3'}\n")
    with pytest.raises(InputError, match=r"steam_reviews.json.gz:1: no field 'date'"):
        read(tmp_path, "steam")
    write_gz(tmp_path / "steam_reviews.json.gz", "{u'username': u'A', u'product_id': u'3', u'date': u'March'}\n")
    with pytest.raises(InputError, match="'March' is not a date"):
        read(tmp_path, "steam")


@pytest.mark.parametrize(
    "line", ["{u'a': u'x\\u00e9\\'', \"b\": 'q\"', u'c': True}", "{'a': '{\"b\": 1}'}", "{'a': ', b'}"]
)
def test_fast_literals_equal_the_slow_ones(line: str, tmp_path: Path) -> None:
    import ast

    slow = {key: str(value) for key, value in ast.literal_eval(line).items()}
    assert parse_literal(line, tmp_path, 1) == slow


@pytest.mark.parametrize("line", ["{'a': 1} + {}", "[1]", "{'a'}", "{'a': 'b', }}", "__import__('os')"])
def test_other_literals_are_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        parse_literal(line, tmp_path, 1)


def test_yelp(tmp_path: Path) -> None:
    days = ("2018-12-31 23:59:59", "2019-06-01 10:00:00", "2019-01-01 00:00:00", "2019-12-31 00:00:01")
    rows = [{"user_id": "u", "business_id": f"b{i}", "stars": 4.0, "date": day} for i, day in enumerate(days)]
    (tmp_path / "review.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    business = {"business_id": "b1", "name": "Café &amp; Co", "categories": "Food, Cafes"}
    (tmp_path / "business.json").write_text(json.dumps(business) + "\n")
    data = read(tmp_path, "yelp", date_from="2019-01-01", date_to="2019-12-31").to_data("toy")
    assert sequences(data) == {"u": ["b2", "b1"]}
    assert data.items.to_numpy().tolist() == [["b1", "Café & Co", "", "Food|Cafes"], ["b2", "", "", ""]]
    assert read(tmp_path, "yelp").to_data("toy").num_interactions == 4
    with pytest.raises(InputError, match="no review between 2025-01-01"):
        read(tmp_path, "yelp", date_from="2025-01-01")
    with pytest.raises(InputError, match="'soon' is not a date"):
        read(tmp_path, "yelp", date_from="soon")


@pytest.mark.parametrize("content", ["null\n", "null\n" + review("u", "A", 1), " \n\n", review("u", "A", 1) + "null"])
def test_lines_that_are_no_objects(tmp_path: Path, content: str) -> None:
    (tmp_path / "X.json").write_text(content)
    with pytest.raises(InputError, match=r"X\.json"):
        read(tmp_path / "X.json", "amazon2014")


def test_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 50)  # less than a line
    (tmp_path / "X.json").write_text("".join(review("u", f"A{i}", i) for i in range(9)).rstrip())
    assert read(tmp_path / "X.json", "amazon2014").item.tolist() == list(range(9))
