"""Exact top-k against torch.topk, masking, and scorers whose answers do not depend on how they are asked."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_histories
from hypothesis import given
from hypothesis import strategies as st

from genrec_bench.methods.scoring import Scorer, masked_scores, top_k

SCORES = np.array([0.3, -1.0, 2.0, 0.0, 2.5], np.float32)


class Fixed(Scorer):
    """Scores that depend on the last item: item j after i scores table[i, j]."""

    def __init__(self, table: np.ndarray):
        super().__init__()
        self.table = table

    def score(self, histories):
        last = [histories.row(b)[-1] if len(histories.row(b)) else 0 for b in range(len(histories))]
        return self.table[np.array(last, dtype=np.int64)]

    fit = save = load = None  # type: ignore[assignment]


@given(
    rows=st.integers(1, 4), num_items=st.integers(1, 700), k=st.integers(1, 25), seed=st.integers(0, 10**6),
    values=st.sampled_from([2, 30, 10**6]), hidden=st.booleans(),
    layout=st.sampled_from(["plain", "transposed", "strided", "offset"]),
)  # fmt: skip
def test_top_k_is_topk(rows, num_items, k, values, seed, hidden, layout):
    """Same values in the same order, each item once with its own score; few distinct values make ties everywhere."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, values, (rows, num_items)).astype(np.float32))
    if hidden:
        scores[torch.from_numpy(rng.random((rows, num_items)) < 0.5)] = -math.inf
    scores = {
        "plain": lambda: scores,
        "transposed": lambda: scores.T.contiguous().T,
        "strided": lambda: torch.stack([scores, scores + 1], 2)[:, :, 0],
        "offset": lambda: torch.cat([scores + 1, scores], 1)[:, num_items:],
    }[layout]()
    found, items = top_k(scores, k)
    expected = torch.topk(scores, min(k, num_items), dim=1).values
    assert torch.equal(found, expected)
    assert torch.equal(scores.gather(1, items), found)
    assert all(len(set(row)) == len(row) for row in items.tolist())


def test_top_k_searches_the_shorter_last_block():
    """1003 items, k=2: blocks of 22, the last 13 items make no whole block and hold the best two."""
    scores = torch.zeros(1, 1003)
    scores[0, 1002], scores[0, 995] = 5.0, 4.0
    assert top_k(scores, 2)[1].tolist() == [[1002, 995]]


def test_masking_hides_seen_items_only_when_asked():
    method = Fixed(np.stack([SCORES] * 5))
    histories = make_histories([[0, 2, 2], [], [4]])
    assert masked_scores(method, histories).tolist() == [SCORES.tolist()] * 3
    masked = masked_scores(method, replace(histories, mask_seen=True)).numpy()
    hidden = np.isneginf(masked)
    assert hidden.tolist() == [[True, False, True, False, False], [False] * 5, [False] * 4 + [True]]
    assert np.array_equal(masked[~hidden], np.stack([SCORES] * 3)[~hidden])


def test_masking_leaves_what_the_method_returned_alone():
    class Shares(Fixed):
        def score(self, histories):
            return self.table[: len(histories)]  # no copy

    for table in (np.stack([SCORES] * 2), torch.from_numpy(np.stack([SCORES] * 2))):
        masked_scores(Shares(table), replace(make_histories([[0, 2], [1]]), mask_seen=True))
        assert np.array_equal(np.asarray(table), np.stack([SCORES] * 2))


def test_recommend_by_hand():
    method = Fixed(np.stack([SCORES] * 5))
    ranking = method.recommend(replace(make_histories([[4], [0, 1, 2]]), mask_seen=True), 4)
    assert ranking.items.tolist() == [[2, 0, 3, 1], [4, 3, -1, -1]]  # two items are left for the second row
    assert ranking.scores.tolist() == [[2.0, pytest.approx(0.3), 0.0, -1.0], [2.5, 0.0, -math.inf, -math.inf]]
    assert ranking.items.dtype == np.int64
    assert ranking.scores.dtype == np.float32


def test_more_answers_than_items():
    ranking = Fixed(np.stack([SCORES] * 5)).recommend(make_histories([[0]]), 8)
    assert ranking.items.tolist() == [[4, 2, 0, 3, 1, -1, -1, -1]]


def test_nobody_asks():
    method = Fixed(np.stack([SCORES] * 5))
    assert method.recommend(make_histories([]), 3).items.shape == (0, 3)
    assert method.choose(make_histories([]), np.empty((0, 2), np.int64)).picked.shape == (0,)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 1000])
def test_answers_do_not_depend_on_batches(rows_at_a_time):
    rng = np.random.default_rng(0)
    method = Fixed(rng.random((30, 30), dtype=np.float32))
    histories = make_histories([rng.integers(0, 30, rng.integers(0, 9)).tolist() for _ in range(23)])
    whole = method.recommend(histories, 5)
    candidates = np.stack([rng.permutation(30)[:6] for _ in range(23)])
    chosen = method.choose(histories, candidates)
    method.rows_at_a_time = rows_at_a_time
    again = method.recommend(histories, 5)
    assert np.array_equal(whole.items, again.items)
    assert np.array_equal(whole.scores, again.scores)
    assert np.array_equal(chosen.scores, method.choose(histories, candidates).scores)
    one = method.recommend(histories.select(np.array([17])), 5)
    assert np.array_equal(one.items[0], whole.items[17])


def test_choose_by_hand():
    method = Fixed(np.stack([SCORES, SCORES[::-1], SCORES, SCORES, SCORES]))
    choice = method.choose(make_histories([[3], [1], []]), np.array([[3, 1, 2], [3, 1, 2], [0, 4, 2]]))
    assert choice.picked.tolist() == [2, 2, 1]
    assert choice.scores.tolist() == [[0.0, -1.0, 2.0], [-1.0, 0.0, 2.0], [pytest.approx(0.3), 2.5, 2.0]]


@pytest.mark.parametrize("kind", [np.float64, torch.bfloat16, torch.int64])
def test_scores_of_any_kind_become_float32(kind):
    table = np.stack([SCORES] * 5)
    method = Fixed(table.astype(kind) if kind is np.float64 else torch.from_numpy(table).to(kind))
    if kind is torch.int64:
        method.table = method.table + torch.arange(5) * 10
    ranking = method.recommend(replace(make_histories([[0], [2]]), mask_seen=True), 2)
    assert ranking.items.tolist() == [
        [4, 2 if kind is not torch.int64 else 3],
        [4, 0 if kind is not torch.int64 else 3],
    ]
    assert ranking.scores.dtype == np.float32
    assert method.choose(make_histories([[0]]), np.array([[1, 4]])).scores.dtype == np.float32
