"""Metrics against hand-worked values, a naive pessimistic ranking, and ranx."""

import math
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.benchmark import metrics
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories

NO_ANSWER = -1


def histories(*rows: list[int]) -> Histories:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Histories(np.arange(len(rows)), offsets, np.array([item for row in rows for item in row], dtype=np.int32))


def ranking(*rows: list[tuple[int, float]], width: int) -> tuple[np.ndarray, np.ndarray]:
    items = np.full((len(rows), width), NO_ANSWER)
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for row, answers in enumerate(rows):
        for column, (item, score) in enumerate(answers):
            items[row, column], scores[row, column] = item, score
    return items, scores


def test_ranks_by_hand():
    items, scores = ranking(
        [(4, 0.9), (2, 0.8), (7, 0.1)],  # target 2: second
        [(4, 0.9), (2, 0.8), (7, 0.8)],  # target 2 ties with 7: third, though listed second
        [(2, 0.5), (1, 0.5), (3, 0.5)],  # target 2 ties with all: third, though listed first
        [(5, 0.9)],  # target 2 not listed, two places empty
        [],  # no answer at all
        [(2, -1.0)],  # the only answer
        width=3,
    )
    assert metrics.target_ranks(items, scores, np.full(6, 2)).tolist() == [2, 3, 3, 0, 0, 1]
    assert metrics.target_ranks(items, scores, np.full(6, 2), ordered=True).tolist() == [2, 2, 1, 0, 0, 1]
    assert metrics.target_ranks(items, scores, np.full(6, 2), max_rank=2).tolist() == [2, 0, 0, 0, 0, 1]


def test_a_tie_beyond_the_last_rank_pushes_the_target_out():
    """21 answers are asked for 20 ranks: the 21st shows that rank 20 is shared."""
    scores = np.array([[*range(21, 1, -1), 2]], dtype=np.float32)
    items = np.arange(21)[None, :]
    assert metrics.target_ranks(items, scores, np.array([19])).tolist() == [0]
    assert metrics.target_ranks(items, scores, np.array([18])).tolist() == [19]
    assert metrics.target_ranks(items, scores, np.array([19]), ordered=True).tolist() == [20]


def test_padding_never_counts_and_never_matches():
    items, scores = ranking([(3, 0.5)], width=2)
    scores[0, 1] = 9.0  # whatever stands in an empty place
    assert metrics.target_ranks(items, scores, np.array([3])).tolist() == [1]
    with pytest.raises(ValueError, match="item numbers"):
        metrics.target_ranks(items, scores, np.array([NO_ANSWER]))


def test_nan_scores_are_refused():
    items, scores = ranking([(3, 0.5), (4, math.nan)], width=2)
    with pytest.raises(InputError, match="NaN"):
        metrics.target_ranks(items, scores, np.array([3]))
    with pytest.raises(InputError, match="NaN"):
        metrics.candidate_ranks(np.array([0]), np.array([[math.nan, 0.0]]), np.array([0]), 2)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=6),
    target=st.integers(0, 9),
    max_rank=st.integers(1, 8),
)
def test_ranks_equal_a_naive_pessimistic_ranking(scores, target, max_rank):
    """The whole catalogue is scored, cut to max_rank + 1 answers (ties in any order), and ranked from the cut."""
    for row in scores:
        order = np.argsort(-np.array(row), kind="stable")[: max_rank + 1]
        items, listed = order[None, :], np.array(row, dtype=np.float32)[order][None, :]
        better_or_equal = sum(score >= row[target] for score in row) if target < len(row) else 0
        expected = better_or_equal if 0 < better_or_equal <= max_rank else 0
        assert metrics.target_ranks(items, listed, np.array([target]), max_rank).tolist() == [expected]


def test_candidate_ranks_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.9, 0.5], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
    target = np.array([0, 0, 0, 1])
    picked = np.array([0, 0, 2, 1])
    assert metrics.candidate_ranks(picked, scores, target, 3).tolist() == [1, 2, 3, 3]
    assert metrics.candidate_ranks(np.array([0, 1, -1]), None, np.array([0, 0, 0]), 3).tolist() == [1, 2, 0]
    assert metrics.candidate_ranks(np.array([-1]), scores[:1], np.array([0]), 3).tolist() == [0]
    with pytest.raises(InputError, match="outside"):
        metrics.candidate_ranks(np.array([3]), None, np.array([0]), 3)
    with pytest.raises(InputError, match="shape"):
        metrics.candidate_ranks(np.array([0]), np.ones((1, 2)), np.array([0]), 3)


def test_full_metrics_by_hand():
    values = metrics.per_user(np.array([1, 2, 7, 15, 0]), "full")
    means = {name: column.mean() for name, column in values.items()}
    assert means == pytest.approx(
        {
            "recall@1": 1 / 5,
            "recall@5": 2 / 5,
            "recall@10": 3 / 5,
            "recall@20": 4 / 5,
            "ndcg@1": 1 / 5,
            "ndcg@5": (1 + 0.63092975) / 5,  # 1/log2(3)
            "ndcg@10": (1 + 0.63092975 + 1 / 3) / 5,  # 1/log2(8)
            "ndcg@20": (1 + 0.63092975 + 1 / 3 + 1 / 4) / 5,  # 1/log2(16)
            "mrr@20": (1 + 1 / 2 + 1 / 7 + 1 / 15) / 5,
        }
    )


def test_candidate_metrics_by_hand():
    """Five answers: two right, two wrong, one invalid."""
    values = metrics.per_user(np.array([1, 2, 0, 1, 13]), "cand20")
    assert values["hitratio@1"].mean() == pytest.approx(2 / 5)
    assert values["validratio"].mean() == pytest.approx(4 / 5)
    assert np.nanmean(values["hitratio@1_given_valid"]) == pytest.approx(2 / 4)
    assert np.isnan(values["hitratio@1_given_valid"]).tolist() == [False, False, True, False, False]


def test_aliases_and_unknown_names():
    ranks = np.array([3, 0])
    assert list(metrics.per_user(ranks, "full", ["Hit@10", "H@5", "NDCG@10"])) == ["recall@10", "recall@5", "ndcg@10"]
    with pytest.raises(InputError, match=r"ndcg@11.*ndcg@10"):
        metrics.per_user(ranks, "full", ["ndcg@11"])
    with pytest.raises(InputError, match="cand20"):
        metrics.per_user(ranks, "cand2")


@pytest.mark.parametrize("catalogue", [30, 7], ids=["larger than k", "smaller than k"])
def test_no_tie_case_agrees_with_ranx(catalogue, monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling ranx takes half a minute, running it nothing
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(catalogue)
    users, width = 50, min(21, catalogue)
    items = np.stack([rng.permutation(catalogue)[:width] for _ in range(users)])
    scores = -np.sort(-rng.random((users, width)).astype(np.float32), axis=1)
    items[rng.random(users) < 0.1] = NO_ANSWER
    targets = rng.integers(0, catalogue, users)
    values = metrics.per_user(metrics.target_ranks(items, scores, targets), "full")
    qrels = Qrels({str(u): {str(targets[u]): 1} for u in range(users)})
    answers = {
        str(u): {str(i): float(s) for i, s in zip(items[u], scores[u], strict=True) if i >= 0} or {"none": 0.0}
        for u in range(users)
    }
    for name, column in values.items():
        assert column.mean() == pytest.approx(evaluate(qrels, Run(answers), name)), name


def test_list_metrics_by_hand():
    """Four items with 6, 2, 0, 0 training interactions: shares with one added 7/12, 3/12, 1/12, 1/12."""
    top = np.array([[0, 1], [0, NO_ANSWER], [NO_ANSWER, NO_ANSWER]])
    values = metrics.list_metrics(top, np.array([6, 2, 0, 0]), histories([1], [0, 1], [0]))
    assert values == pytest.approx(
        {
            "coverage@10": 2 / 4,
            "novelty@10": (2 * math.log2(12 / 7) + 2) / 3,
            # lists: (6+2)/2 = 4 and 6; histories of the same two users: 2 and (6+2)/2 = 4
            "popularity_lift@10": (4 + 6) / (2 + 4),
        }
    )
    none = metrics.list_metrics(np.full((2, 2), NO_ANSWER), np.array([1, 1]), histories([0], [1]))
    assert none == {"coverage@10": 0.0}


def test_slices_by_hand():
    """Ten items: the two most popular are the head; lengths 1 2 3 9 have median 2.5."""
    counts = np.array([5, 0, 9, 1, 1, 1, 1, 1, 1, 5])  # head: 2, then 0 (tied with 9, lower number)
    masks = metrics.slice_masks(np.array([2, 0, 9, 1]), np.array([1, 2, 3, 9]), counts)
    assert {name: mask.astype(int).tolist() for name, mask in masks.items()} == {
        "short_history": [1, 1, 0, 0],
        "long_history": [0, 0, 1, 1],
        "head_target": [1, 1, 0, 0],
        "tail_target": [0, 0, 1, 1],
        "cold_target": [0, 0, 0, 1],
    }
    found = metrics.slices({"recall@1": np.array([1.0, 0.0, 0.0, 0.0])}, {**masks, "nobody": np.zeros(4, dtype=bool)})
    assert found["head_target"].users == 2
    assert found["head_target"].metrics["recall@1"].mean == 0.5
    assert found["cold_target"].metrics["recall@1"].model_dump() == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["nobody"].model_dump() == {"users": 0, "metrics": {}}


def test_summarise_has_all_parts():
    split = SimpleNamespace(
        test=SimpleNamespace(histories=histories([0], [1, 2], [2]), targets=np.array([1, 0, 1])),
        train=SimpleNamespace(item_counts=lambda: np.array([3, 1, 2])),
    )
    items, scores = ranking([(1, 0.9), (2, 0.1)], [(2, 0.9)], [], width=2)
    full = metrics.summarise(
        SimpleNamespace(ranks=np.array([1, 0, 0]), ranking=SimpleNamespace(items=items, scores=scores)), split, "full"
    )
    assert full["metrics"]["recall@10"].mean == pytest.approx(1 / 3)
    assert full["list_metrics"]["coverage@10"] == pytest.approx(2 / 3)
    assert full["slices"]["short_history"].users == 2
    invalid = metrics.summarise(SimpleNamespace(ranks=np.zeros(3, dtype=int), ranking=None), split, "cand20")
    assert invalid["list_metrics"] == {}
    assert set(invalid["metrics"]) == {"hitratio@1", "validratio"}  # nothing was valid, so no ratio among the valid


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_every_rank_vector_passes_the_arithmetic_check(ranks):
    for kind in metrics.PER_USER:
        values = metrics.per_user(np.array(ranks), kind)
        means = {name: float(np.nanmean(column)) for name, column in values.items() if np.isfinite(column).any()}
        assert metrics.check_arithmetic(means) == []


@pytest.mark.parametrize(
    ("means", "violation"),
    [
        # AGRec, table 2, Games, AGRec: 0.0099 where 0.0072..0.0089 is possible
        ({"recall@5": 0.0815, "recall@10": 0.1064, "ndcg@5": 0.0572, "ndcg@10": 0.0671}, "ndcg@10 - ndcg@5 = 0.0099"),
        ({"recall@5": 0.2, "recall@10": 0.1}, "recall@10 is below recall@5"),
        ({"recall@5": 0.1, "ndcg@5": 0.11}, "ndcg@5 = 0.11"),
        ({"recall@5": 1.2}, "not in"),
        ({"recall@5": math.nan}, "not in"),
        ({"hitratio@1": 0.6, "validratio": 0.5}, "hitratio@1 = 0.6 exceeds validratio"),
        ({"hitratio@1": 0.4, "validratio": 0.5, "hitratio@1_given_valid": 0.7}, "is not hitratio@1 / validratio"),
        ({"mrr@20": 0.3, "ndcg@20": 0.2}, "mrr@20 = 0.3 exceeds ndcg@20"),
    ],
)
def test_impossible_means_are_found(means, violation):
    assert any(violation in line for line in metrics.check_arithmetic(means, rounding=0.00005))


def test_printed_rounding_is_allowed_for():
    eager = {"recall@5": 0.0548, "recall@10": 0.0830, "ndcg@5": 0.0369, "ndcg@10": 0.0459}
    assert metrics.check_arithmetic(eager, rounding=0.00005) == []
