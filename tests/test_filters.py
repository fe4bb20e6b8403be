"""Filters against a naive implementation and against cases worked out by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import Events, item_table, ordered
from genrec_bench.datasets.filters import (
    apply,
    drop_repeats,
    first_of_pair,
    k_core,
    minimum_length,
    minimum_rating,
)

Pairs = list[tuple[int, int]]
logs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40)


def events_of(pairs: Pairs, rating: list[float] | None = None) -> Events:
    """Events in file order with a time each."""
    user, item = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    ids = np.array([f"u{u}" for u in range(5)], dtype=object)
    ratings = None if rating is None else np.array(rating)
    return ordered(user, item, None, ids, item_table([f"i{i}" for i in range(5)]), dated=False, rating=ratings)


def pairs_of(events: Events) -> Pairs:
    return list(zip(events.user.tolist(), events.item.tolist(), strict=True))


def by_user(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: pair[0])  # stable: file order within a user


def naive_k_core(pairs: Pairs, users: int, items: int) -> Pairs:
    while True:
        per_user, per_item = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        left = [(u, i) for u, i in pairs if per_user[u] >= users and per_item[i] >= items]
        if left == pairs:
            return pairs
        pairs = left


@given(logs, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_k_core_equals_the_naive_one(pairs: Pairs, users: int, items: int) -> None:
    core = k_core(events_of(pairs), users, items)
    assert pairs_of(core) == naive_k_core(by_user(pairs), users, items)
    assert pairs_of(k_core(core, users, items)) == pairs_of(core)


@given(logs)
@settings(max_examples=100, deadline=None)
def test_first_of_pair_equals_the_naive_one(pairs: Pairs) -> None:
    assert pairs_of(first_of_pair(events_of(pairs))) == list(dict.fromkeys(by_user(pairs)))


@given(logs, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_minimum_length_equals_the_naive_one(pairs: Pairs, length: int) -> None:
    counts = Counter(u for u, _ in pairs)
    expected = [pair for pair in by_user(pairs) if counts[pair[0]] >= length]
    assert pairs_of(minimum_length(events_of(pairs), length)) == expected


@given(logs)
@settings(max_examples=150, deadline=None)
def test_drop_repeats_equals_the_naive_one(pairs: Pairs) -> None:
    rows = [[i for u, i in pairs if u == user] for user in range(5)]
    everywhere, at_the_end = [], []
    for user, row in enumerate(rows):
        everywhere += [(user, item) for p, item in enumerate(row) if p == 0 or row[p - 1] != item]
        while len(row) > 1 and row[-1] == row[-2]:
            row = row[:-1]
        at_the_end += [(user, item) for item in row]
    assert pairs_of(drop_repeats(events_of(pairs))) == everywhere
    assert pairs_of(drop_repeats(events_of(pairs), only_last=True)) == at_the_end


def test_k_core_by_hand() -> None:
    # Item 2 falls (once only), then user 1 falls (one item left), then item 1 falls, and users 0 and 2 keep item 0.
    pairs = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 3), (0, 3)]
    assert pairs_of(k_core(events_of(pairs), 2, 2)) == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_ratings_stay_with_their_events() -> None:
    events = events_of([(1, 0), (0, 1), (1, 2)], [5.0, 1.0, 3.0])
    kept = minimum_rating(events, 3.0)
    assert pairs_of(kept) == [(1, 0), (1, 2)]
    assert kept.rating is not None
    assert kept.rating.tolist() == [5.0, 3.0]


def test_numbers_close_up_after_filters() -> None:
    data = minimum_length(events_of([(0, 4), (3, 1), (3, 4)]), 2).to_data("toy")
    assert data.user_ids.tolist() == ["u3"]
    assert data.items["item_id"].tolist() == ["i1", "i4"]
    assert data.sequences.items.tolist() == [0, 1]


def test_bad_filters() -> None:
    events = events_of([(0, 0)])
    with pytest.raises(InputError, match="Did you mean: k_core"):
        apply(events, [{"kcore": {}}])
    with pytest.raises(InputError, match="Filter 'k_core'"):
        apply(events, [{"k_core": {"user": 5}}])
    with pytest.raises(InputError, match="needs ratings"):
        apply(events, [{"minimum_rating": {"rating": 3}}])
    with pytest.raises(InputError, match="no interactions left"):
        apply(events, [{"k_core": {}}]).to_data("toy")
