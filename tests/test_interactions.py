"""Ragged histories against lists of lists, and what the content hash covers."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_data, make_histories, rows_of
from hypothesis import given
from hypothesis import strategies as st

from genrec_bench.datasets.interactions import TrainView

ROWS = st.lists(st.lists(st.integers(0, 30), max_size=7), min_size=1, max_size=8)


@given(ROWS, st.data())
def test_select_takes_rows_in_the_given_order(rows, data):
    histories = make_histories(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    picked = histories.select(np.array(chosen, dtype=np.int64))
    assert rows_of(picked) == [rows[i] for i in chosen]
    assert picked.users.tolist() == chosen
    assert picked.offsets.dtype == np.int64
    assert picked.items.dtype == np.int32


@given(ROWS, st.integers(0, 4), st.integers(0, 9))
def test_select_takes_slices(rows, start, stop):
    assert rows_of(make_histories(rows).select(slice(start, stop))) == rows[start:stop]


@given(ROWS, st.integers(0, 9))
def test_last_and_without_last(rows, count):
    histories = make_histories(rows, users=range(100, 100 + len(rows)))
    last, rest = histories.last(count), histories.without_last(count)
    assert rows_of(last) == [row[max(len(row) - count, 0) :] for row in rows]
    assert rows_of(rest) == [row[: max(len(row) - count, 0)] for row in rows]
    assert [a + b for a, b in zip(rows_of(rest), rows_of(last), strict=True)] == rows
    assert last.users.tolist() == rest.users.tolist() == histories.users.tolist()


@given(ROWS)
def test_padded_on_the_right(rows):
    table = make_histories(rows).padded(pad=99)
    width = max(1, *map(len, rows))
    assert table.tolist() == [row + [99] * (width - len(row)) for row in rows]
    assert table.dtype == np.int64


def test_operations_keep_the_seen_item_setting_and_copy():
    histories = replace(make_histories([[1, 2, 3], [4]]), mask_seen=True)
    for derived in (histories.select(slice(None)), histories.last(2), histories.without_last(1)):
        assert derived.mask_seen
        assert not np.shares_memory(derived.items, histories.items)


def test_no_histories_at_all():
    empty = make_histories([])
    assert len(empty) == 0
    assert rows_of(empty.last(3)) == rows_of(empty.without_last(1)) == []
    assert empty.padded(pad=5).shape == (0, 1)


def test_item_counts_of_the_training_part_only():
    view = TrainView(
        num_users=2, items=make_data([[0, 2, 2], [2, 3]], num_items=5).items, sequences=make_histories([[0, 2, 2], [2]])
    )
    assert view.item_counts().tolist() == [1, 0, 3, 0, 0]


BASE = {"rows": [[0, 1, 2], [2, 0]], "timestamps": [[1, 2, 3], [4, 5]], "titles": ["ab", "c", "d"]}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [[0, 1], [2, 2, 0]]},  # a boundary moved, same items in the same order but one
        {"rows": [[0, 1, 2, 2], [0]], "timestamps": [[1, 2, 3, 4], [5]]},  # boundary alone
        {"rows": [[0, 1, 2], [2, 1]]},
        {"timestamps": [[1, 2, 3], [4, 6]]},
        {"timestamps": None},
        {"titles": ["a", "bc", "d"]},  # a character moved from one title to the next
    ],
)
def test_content_hash_changes_with_any_content(change):
    assert make_data(**{**BASE, **change}).sha256 != make_data(**BASE).sha256


def test_content_hash_is_of_the_content_alone():
    """The name is a label; the number is fixed so that stored records keep naming the same data."""
    data = make_data(**BASE)
    assert make_data(**BASE, name="other").sha256 == data.sha256
    assert (data.num_users, data.num_items, data.num_interactions) == (2, 3, 5)
    assert data.sha256[:12] == "b1b147ab2708"
