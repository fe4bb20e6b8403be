"""Titles written from codes against the real ones."""

import numpy as np
import pytest

from genrec_bench.benchmark.text_scores import title_scores, token_f1, words
from genrec_bench.datasets.events import item_table
from genrec_bench.methods.popularity import Popularity

TITLES = ["Toy Story (1995)", "Heat", "", "Up"]


class Writer(Popularity):
    """Answers from a list."""

    written = ("toy story 1 9 9 5", "heat wave", "x", "Down")

    def write_titles(self, items: np.ndarray) -> list[str]:
        return [self.written[item] for item in items]


def table(titles=TITLES):
    return item_table([str(i) for i in range(4)], titles, [""] * 4, [""] * 4)


def test_by_hand():
    """Exact, one of two words right, nothing; the item without a title is not asked."""
    scores = title_scores(Writer(), table())
    assert scores == {"items": 3.0, "exact_match": pytest.approx(1 / 3), "token_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_who_writes_none_has_none():
    assert title_scores(Popularity(), table()) == {}
    assert title_scores(Writer(), table([""] * 4)) == {}


def test_words_and_their_overlap():
    assert words("L'Oréal 3-in-1, NEW!") == ["l", "oréal", "3", "in", "1", "new"]
    assert token_f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(2 * 1 / 5)
    assert token_f1([], []) == 0.0
