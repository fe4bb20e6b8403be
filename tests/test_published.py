"""The printed figures: our names, no impossible row among the targets, misprints marked, verdicts at the edges."""

from collections import defaultdict

import pytest

from genrec_bench.benchmark import metrics, published
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.datasets import catalogue


def test_every_row_has_our_names_and_is_no_duplicate():
    rows = published.rows()
    assert len({row[:7] for row in rows}) == len(rows)
    for row in rows:
        assert row.metric in metrics.PER_USER[row.protocol]
        assert 0 <= row.value <= 1
        assert row.paper in published.PAPERS
        assert row.method == row.method.lower()
        assert row.ok or row.note
    assert not any(word in row.variant for row in rows for word in ("improvement", "average"))


def test_targets_pass_the_arithmetic_test():
    """With both neighbours printed and ok, a row is possible up to the rounding of four digits."""
    printed = defaultdict(dict)
    for row in published.rows():
        if row.ok and row.protocol == "full":
            printed[row[:6]][row.metric] = row.value
    assert len(printed) > 60
    impossible = {place: metrics.check_arithmetic(means, 0.00005) for place, means in printed.items()}
    assert [place for place, violations in impossible.items() if violations] == []


@pytest.mark.parametrize(
    ("paper", "table", "dataset", "method", "variant", "metric", "ok"),
    [
        ("EAGER-LLM", "3", "amazon2018-instruments", "lc_rec", "backbone=llama2-7b", "ndcg@10", False),
        ("EAGER-LLM", "3", "amazon2018-instruments", "lc_rec", "backbone=llama2-7b", "recall@10", True),
        ("EAGER-LLM", "2", "amazon2014-beauty", "lc_rec", "", "recall@10", False),
        ("EAGER-LLM", "4", "amazon2018-instruments", "eager_llm", "DKI", "ndcg@5", False),
        ("EAGER-LLM", "4", "amazon2018-instruments", "eager_llm", "DKI", "ndcg@10", True),
        ("AGRec", "2", "amazon2018-arts", "hgn", "", "recall@5", False),
        ("AGRec", "2", "amazon2018-instruments", "hgn", "", "ndcg@10", False),
        ("AGRec", "2", "amazon2018-games", "agrec", "", "ndcg@5", False),
        ("AGRec", "2", "amazon2018-games", "agrec", "", "ndcg@10", True),
        ("AGRec", "7", "yelp", "agrec", "w/o Graph", "recall@10", False),
        ("AGRec", "7", "yelp", "agrec", "w/o Graph", "recall@5", True),
        ("RSLLM", "4", "steam", "rsllm", "stage 1 only", "hitratio@1", False),
    ],
)
def test_known_misprints_are_marked(paper, table, dataset, method, variant, metric, ok):
    (row,) = [
        row
        for row in published.rows()
        if (row.paper, row.table, row.dataset, row.method, row.variant, row.metric)
        == (paper, table, dataset, method, variant, metric)
    ]
    assert row.ok is ok


def test_lookup_prefers_the_first_paper_and_the_main_row():
    assert published.lookup("amazon2014-beauty", "full", "TIGER")["recall@10"] == (0.0648, "EAGER-LLM", "2", "")
    tiger = published.lookup(
        "amazon2018-instruments", "full", "tiger"
    )  # .0863 in EAGER-LLM 2, .0870 in its 3 and AGRec
    assert tiger["recall@5"][:3] == (0.0863, "EAGER-LLM", "2")
    assert published.lookup("amazon2018-arts", "full", "LC-Rec")["recall@10"][:3] == (0.1133, "AGRec", "2")
    assert published.lookup("steam", "cand20", "rsllm")["hitratio@1"][:3] == (0.5241, "RSLLM", "2")
    assert published.lookup("ml-100k", "cand20", "llara")["hitratio@1"][:3] == (0.4526, "LLaRA", "README")
    caser = published.lookup("ml-100k", "cand20", "rsllm", variant="encoder=Caser")
    assert caser["hitratio@1"].value == 0.5273


def test_lookup_leaves_out_what_cannot_be_a_target():
    assert published.lookup("amazon2018-arts", "full", "hgn") == {}
    assert set(published.lookup("amazon2018-games", "full", "agrec")) == {"recall@10", "ndcg@10"}
    assert published.lookup("ml-100k", "full", "sasrec") == {}
    assert published.lookup("nowhere", "full", "sasrec") == {}


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (0.105, 0.104, 0.106, "reproduced"),  # exactly 5% above
        (0.095, 0.094, 0.096, "reproduced"),
        (0.120, 0.099, 0.141, "consistent"),  # 20% above, but 0.1 is inside the interval
        (0.106, 0.105, 0.107, "close"),
        (0.115, 0.114, 0.116, "close"),  # exactly 15% above
        (0.116, 0.115, 0.117, "higher"),
        (0.084, 0.083, 0.085, "lower"),
    ],
)
def test_verdicts(mean, low, high, expected):
    measured = Interval(mean=mean, low=low, high=high)
    assert published.verdict(measured, 0.1, same_protocol=True) == expected
    assert published.verdict(measured, 0.1, same_protocol=True, same_model=False) == "other model"
    assert published.verdict(measured, 0.1, same_protocol=True, same_model=False, same_data=False) == "other data"
    assert published.verdict(measured, 0.1, same_protocol=False, same_data=False) == "different protocol"


def test_every_paper_has_its_counts_on_the_data_sets_card():
    """Without them nothing could be said of that paper's figures."""
    for paper, dataset in {(row.paper, row.dataset) for row in published.rows()}:
        told = [one for one in catalogue.card(dataset).published if paper in one.source]
        assert len(told) == 1, (paper, dataset)
        assert published.same_cut(paper, dataset, (told[0].users, told[0].items, told[0].interactions))
    assert {row.paper for row in published.rows() if row.protocol == "cand20"} == set(published.SAMPLERS)


@pytest.mark.parametrize(
    ("paper", "dataset", "counts", "expected"),
    [
        ("AGRec", "amazon2018-instruments", (24_772, 9_922, 206_153), True),  # the paper counts a padding id
        ("EAGER-LLM", "amazon2018-instruments", (24_772, 9_922, 206_153), True),  # it prints 24,733
        ("EAGER-LLM", "amazon2014-beauty", (22_363, 12_101, 198_502), True),  # it prints 198,360
        ("RSLLM", "lastfm", (1090, 3646, 52551), False),
        ("RSLLM", "ml-100k", (943, 1682, 98_000), False),
        ("RSLLM", "amazon2014-beauty", (22_363, 12_101, 198_502), False),  # it prints nothing of it
        ("RSLLM", "mine", (943, 1682, 100_000), False),
    ],
)
def test_the_same_name_is_not_the_same_data(paper, dataset, counts, expected):
    assert published.same_cut(paper, dataset, counts) is expected
